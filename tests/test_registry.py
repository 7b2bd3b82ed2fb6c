"""Versions are kept once and whole, releases are immutable, aliases move with a history that rollback can trust."""

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from registry_homes import (
    FAILED,
    PASSED,
    SERVERS,
    check_invariants,
    digest,
    make_adapter,
    make_base,
    make_release,
    new_database,
    registry_of,
)

from evergreen.records import BadInput, Failure
from evergreen.registry import Registry, locate

numbers = itertools.count()


@pytest.fixture(params=SERVERS)
def registry(request, tmp_path, monkeypatch):
    if request.param == "postgres":
        server = request.getfixturevalue("postgres")
        monkeypatch.setenv("EVERGREEN_DB", new_database(server, f"test{next(numbers)}"))
    return registry_of(tmp_path / "home")


def ids(moves) -> list[str]:
    return [move.release for move in moves]


# -- versions


def test_a_version_is_kept_once_under_its_digest_with_its_lineage(registry, tmp_path):
    folder = make_adapter(tmp_path / "run", make_base(tmp_path / "base"), parent="p" * 64, seed=7)
    version = registry.add_version(folder, report="report.md")
    kept = registry.home / "adapters" / version
    before = (kept / "adapter_model.safetensors").stat().st_ino
    assert registry.add_version(folder) == version
    assert (
        (kept / "adapter_model.safetensors").stat().st_ino
        == before
        == (folder / "adapter_model.safetensors").stat().st_ino
    )
    assert {path.name for path in kept.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "args.json", "version.json"
    }  # fmt: skip
    record = registry.versions.find(version)
    assert record.parent == "p" * 64 and record.report == "report.md" and record.facts["seed"] == 7
    assert record.facts["data"]["hash"] == "data of run" and record.facts["settings"] == {"learning_rate": 0.003}
    assert [path.name for path in (registry.home / "adapters").iterdir()] == [version]


def test_a_full_model_is_kept_and_a_base_from_elsewhere_only_named(registry, tmp_path):
    outside, model = make_base(tmp_path / "outside"), make_base(tmp_path / "tuned")
    (model / "version.json").write_text(json.dumps({"digest": digest(model), "base": str(outside)}))
    version = registry.add_version(make_adapter(tmp_path / "run", model))
    assert (registry.home / "models" / digest(model) / "model.safetensors").is_file()
    assert registry.versions.find(version).base == digest(model)
    assert registry.add_base(str(outside)) == digest(outside)
    assert not (registry.home / "models" / digest(outside)).exists()
    assert registry.add_base("Qwen/Qwen2.5-7B", digest="q" * 64) == "q" * 64


def test_the_adapters_below_a_version_are_kept_with_it(registry, tmp_path):
    base = make_base(tmp_path / "base")
    first = make_adapter(tmp_path / "first", base)
    link = {"digest": digest(first), "path": "/moved/away", "relative": "../first", "method": "lora"}
    version = registry.add_version(make_adapter(tmp_path / "second", base, chain=[link]))
    assert registry.versions.find(version).chain == (digest(first),)
    assert (registry.home / "adapters" / digest(first)).is_dir()
    (first / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(BadInput, match="stands on the adapter"):
        Registry(tmp_path / "new", digest=digest).add_version(tmp_path / "second")


def test_a_folder_that_changed_since_its_run_is_refused(registry, tmp_path):
    folder = make_adapter(tmp_path / "run", make_base(tmp_path / "base"))
    (folder / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(BadInput, match="has changed since its run"):
        registry.add_version(folder)
    with pytest.raises(BadInput, match="neither an adapter nor a model"):
        registry.add_version(tmp_path)


def test_a_damaged_version_is_told_never_promoted_never_served_and_mended_by_adding_it_again(registry, tmp_path):
    one, two = make_release(registry, "one"), make_release(registry, "two")
    registry.promote(one.id)
    registry.promote(two.id)
    kept = registry.home / "adapters" / one.adapter
    (kept / "adapter_config.json").write_text("[]")
    assert "adapter_config.json has changed" in registry.damage(one.id) and registry.damage(two.id) == ""
    for attempt in (lambda: registry.promote(one.id), registry.rollback, lambda: registry.locate(one.id)):
        with pytest.raises(Failure, match="damaged"):
            attempt()
    assert registry.alias("stable").id == two.id
    registry.add_version(tmp_path / "made" / "one")
    assert registry.damage(one.id) == "" and registry.rollback()["stable"] == one.id


def test_a_base_that_is_gone_or_has_changed_is_damage(registry, tmp_path):
    release = make_release(registry, "one")
    weights = tmp_path / "made" / "base" / "model.safetensors"
    weights.write_bytes(b"others")
    assert "has changed" in registry.damage(release.id)
    weights.unlink()
    (tmp_path / "made" / "base" / "config.json").unlink()
    weights.parent.rmdir()
    assert "is gone" in registry.damage(release.id)


# -- releases


def test_a_release_is_its_content(registry):
    one = make_release(registry, "one", prompt={"system": "你是助手。", "template": ""}, sampling={"temperature": 0.5})
    again = make_release(
        registry, "one", prompt={"template": "", "system": "你是助手。"}, sampling={"temperature": 0.5}
    )
    other = make_release(registry, "one")
    assert one == again == registry.get(one.id) and other.id != one.id
    assert one.prompt == {"system": "你是助手。", "template": ""} and one.knowledge == "live" and one.edits is None
    assert [release.id for release in registry.list()] == [other.id, one.id]


def test_a_reference_is_an_alias_an_id_a_version_or_the_beginning_of_one(registry):
    one, two = make_release(registry, "one"), make_release(registry, "two")
    newer = registry.create(adapter=one.adapter, knowledge="3")
    registry.promote(two.id)
    assert registry.get("stable").id == registry.get(two.id[:8]).id == registry.get(two.adapter[:8]).id == two.id
    assert registry.get(one.adapter).id == newer.id  # the newest release of a version
    with pytest.raises(BadInput, match="candidate points to nothing yet"):
        registry.get("candidate")
    for ref in ("0" * 8, "one", "", one.id[:3]):
        with pytest.raises(BadInput, match="no release"):
            registry.get(ref)


def test_an_ambiguous_reference_is_refused(registry):
    release = make_release(registry, "one")
    with registry.db.write() as tx:
        row = registry._rows(tx)[0]._mapping
        tx.execute(registry.releases.insert().values({**row, "number": 99, "id": release.id[:8] + "0" * 56}))
    with pytest.raises(BadInput, match="give more of it"):
        registry.get(release.id[:8])
    assert registry.get(release.id) == release


def test_a_release_takes_only_parts_that_belong_together(registry, tmp_path):
    one = make_release(registry, "one")
    other = registry.add_base(str(make_base(tmp_path / "other")))
    with pytest.raises(BadInput, match="was trained on"):
        registry.create(other, one.adapter)
    with pytest.raises(BadInput, match="no version"):
        registry.create(adapter="ab" * 32)
    with pytest.raises(BadInput, match="a whole model, not an adapter"):
        registry.create(adapter=other)
    assert registry.create(str(tmp_path / "other")).base == other


def test_the_difference_of_two_releases_names_parts_data_and_settings(registry):
    one, other = make_release(registry, "one"), make_release(registry, "other", parent=None, gate=FAILED)
    difference = registry.diff(one.id, other.id)
    assert difference["data.hash"] == ("data of one", "data of other")
    assert difference["settings.learning_rate"] == (0.003, 0.005)
    assert difference["gate.decision"] == ("promote", "reject")
    assert set(difference) == {"adapter", "data.hash", "settings.learning_rate", "gate.decision", "gate.reasons"}
    assert registry.diff(one.id, one.id) == {}


# -- aliases


def test_stable_wants_a_passed_gate_or_a_reason_that_is_kept(registry):
    good, bad, unjudged = make_release(registry, "one"), make_release(registry, "two", FAILED), None
    unjudged = make_release(registry, "three", None)
    assert registry.promote(good.id) == {"stable": good.id, "previous": None}
    for release, word in ((bad, "reject"), (unjudged, "never judged")):
        with pytest.raises(BadInput, match=f"has not passed a gate .{word}"):
            registry.promote(release.id)
        with pytest.raises(BadInput):
            registry.promote(release.id, force=" \n")
    assert registry.promote(bad.id, force="the old one\nlies about prices") == {"stable": bad.id, "previous": good.id}
    registry.promote(unjudged.id, to="candidate")  # what is to be judged needs no verdict
    newest, first = registry.history()
    assert newest.forced and newest.reason == "the old one lies about prices" and "@" in newest.by and newest.at
    assert not first.forced and (newest.previous, newest.release) == (good.id, bad.id)
    assert [move.forced for move in registry.history("candidate")] == [True]


def test_promoting_what_is_served_already_is_no_move(registry):
    one = make_release(registry, "one")
    registry.promote(one.id)
    assert registry.promote("stable") == {"stable": one.id, "previous": one.id}
    assert len(registry.history()) == 1


def test_rollbacks_go_further_back_and_never_to_and_fro(registry):
    a, b, c = (make_release(registry, name).id for name in ("a", "b", "c"))
    for release in (a, b, c):
        registry.promote(release)
    assert registry.rollback(reason="wrong prices") == {"stable": b, "previous": c}
    assert registry.rollback() == {"stable": a, "previous": b}
    with pytest.raises(BadInput, match="is the first that it pointed to"):
        registry.rollback()
    registry.promote(c)
    assert registry.rollback()["stable"] == a  # c came after a this time
    assert ids(registry.history()) == [a, c, a, b, c, b, a]
    assert [move.reason for move in registry.history() if move.action == "rollback"] == ["", "", "wrong prices"]
    with pytest.raises(BadInput, match="never pointed to anything"):
        registry.rollback("candidate")
    with pytest.raises(BadInput, match="no alias"):
        registry.rollback("production")
    check_invariants(registry)


# -- making room


def test_prune_keeps_three_promoted_and_frees_the_others(registry):
    made = [make_release(registry, f"r{number}") for number in range(6)]
    for release in made:
        registry.promote(release.id)
    would = registry.prune(keep=1, dry_run=True)
    assert all(registry.damage(release.id) == "" for release in made)
    done = registry.prune(keep=1)
    assert done == would and done.releases == tuple(release.id for release in made[:3])
    assert done.versions == tuple(release.adapter for release in made[:3])
    assert {path.name for path in (registry.home / "adapters").iterdir()} == {release.adapter for release in made[3:]}
    assert [release.id for release in registry.list()] == [release.id for release in made[:2:-1]]
    assert (
        registry.get(made[0].id) == made[0] and registry.versions.find(made[0].adapter).facts["data"]
    )  # lineage stays
    assert registry.rollback()["stable"] == made[4].id and registry.rollback()["stable"] == made[3].id
    with pytest.raises(BadInput, match="was pruned"):
        registry.rollback()
    assert registry.prune(keep=1).versions == ()
    check_invariants(registry)


def test_prune_keeps_the_last_three_promoted_however_many_came_after(registry):
    promoted = [make_release(registry, f"p{number}") for number in range(4)]
    for release in promoted:
        registry.promote(release.id)
    rejected = [make_release(registry, f"r{number}", FAILED) for number in range(5)]
    assert registry.prune().kept == tuple(release.id for release in promoted[1:] + rejected[2:])
    assert registry.rollback() and registry.rollback() == {"stable": promoted[1].id, "previous": promoted[2].id}


def test_prune_says_what_the_disk_really_gets_back(registry, tmp_path):
    import shutil

    made = [make_release(registry, f"r{number}", FAILED) for number in range(4)]
    shutil.rmtree(tmp_path / "made" / "r0")  # the run's own link to the weights is gone
    kept = registry.home / "adapters" / made[0].adapter
    size = sum(path.stat().st_size for path in kept.iterdir())
    assert registry.prune().freed_bytes == size > 1000


def test_prune_keeps_what_an_alias_needs_however_old_and_the_adapters_below(registry, tmp_path):
    base = make_base(tmp_path / "made" / "base")
    first = make_adapter(tmp_path / "made" / "first", base)
    link = {"digest": digest(first), "path": str(first), "relative": "../first", "method": "lora"}
    below = registry.create(adapter=registry.add_version(first), gate=FAILED)
    stacked = registry.add_version(make_adapter(tmp_path / "made" / "stacked", base, chain=[link]))
    served = registry.create(adapter=stacked, gate=PASSED)
    registry.promote(served.id, to="candidate")
    for number in range(5):
        registry.promote(make_release(registry, f"r{number}").id)
    done = registry.prune()
    assert below.id in done.releases and served.id in done.kept
    assert digest(first) not in done.versions and registry.damage(served.id) == ""


def test_a_pruned_version_comes_back_when_it_is_added_again(registry, tmp_path):
    made = [make_release(registry, f"r{number}", FAILED) for number in range(4)]
    registry.prune()
    with pytest.raises(BadInput, match="was pruned"):
        registry.promote(made[0].id, force="it was better")
    with pytest.raises(BadInput, match="was pruned"):
        registry.create(adapter=made[0].adapter, knowledge="2")
    assert make_release(registry, "r0", FAILED).id == made[0].id
    assert registry.promote(made[0].id, force="it was better")["stable"] == made[0].id
    assert registry.list()[-1].id == made[0].id


def test_prune_leaves_for_a_day_what_may_still_be_promoted(registry):
    made = [
        make_release(registry, f"r{number}", gate) for number, gate in enumerate([PASSED, None, FAILED] + [FAILED] * 3)
    ]
    assert registry.prune().releases == (made[2].id,)
    with registry.db.write() as tx:
        tx.execute(registry.releases.update().values(created="2026-01-01T00:00:00+00:00"))
    assert registry.prune().releases == (made[0].id, made[1].id)


def test_prune_leaves_a_new_version_without_release_and_clears_what_killed_processes_left(registry, tmp_path):
    fresh = registry.add_version(make_adapter(tmp_path / "run", make_base(tmp_path / "base")))
    room = registry.home / "adapters"
    for name in ("ab" * 32, ".staging-1-a"):
        (room / name).mkdir()
        (room / name / "adapter_model.safetensors").write_bytes(b"half")
    os.utime(room / ".staging-1-a", (0, 0))
    (room / ".staging-2-b").mkdir()  # of a live process
    assert registry.prune().freed_bytes == 8
    assert {path.name for path in room.iterdir()} == {fresh, ".staging-2-b"}


# -- --model RELEASE


def test_a_release_a_version_and_an_alias_lead_to_their_folders(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release = make_release(registry, "one")
    registry.promote(release.id)
    wanted = str(tmp_path / "made" / "base"), (str(registry.home / "adapters" / release.adapter),)
    for ref in ("stable", release.id, release.id[:10], release.adapter, release.adapter[:10]):
        assert locate(ref, registry.home) == wanted
    assert locate(release.base, registry.home) == (wanted[0], ())
    assert locate("decade", registry.home) is locate("Qwen/Qwen2.5-7B", registry.home) is None
    (tmp_path / "stable").mkdir()
    assert locate("stable", registry.home) is None  # a folder goes first


def test_nothing_is_opened_or_made_for_a_name_that_cannot_be_a_release(tmp_path):
    assert locate("abcdef", tmp_path / "home") is None and not (tmp_path / "home").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import evergreen.registry, sys; assert 'sqlalchemy' not in sys.modules"]
    )
    assert done.returncode == 0


def test_places_in_the_package_and_in_the_home_hold_after_a_move(registry, tmp_path):
    from evergreen.registry.versions import PACKAGE

    versions = registry.versions
    assert versions._portable(str(PACKAGE / "model" / "nano")) == "evergreen:model/nano"
    assert versions.place_of("evergreen:model/nano") == str(PACKAGE / "model" / "nano")
    inside = make_base(registry.home / "runs" / "x")
    assert versions._portable(str(inside)) == "home:runs/x" and versions.place_of("home:runs/x") == str(inside)


# -- schema


FIRST_SCHEMA = """
CREATE TABLE versions (number INTEGER NOT NULL PRIMARY KEY, digest VARCHAR NOT NULL UNIQUE, kind VARCHAR NOT NULL,
  place VARCHAR NOT NULL, base VARCHAR, parent VARCHAR, chain TEXT NOT NULL, facts TEXT NOT NULL,
  report VARCHAR NOT NULL, files TEXT NOT NULL, created VARCHAR NOT NULL);
CREATE TABLE releases (number INTEGER NOT NULL PRIMARY KEY, id VARCHAR NOT NULL UNIQUE,
  base VARCHAR NOT NULL REFERENCES versions (digest), adapter VARCHAR REFERENCES versions (digest),
  knowledge VARCHAR NOT NULL, edits VARCHAR, prompt TEXT, sampling TEXT, parent VARCHAR REFERENCES releases (id),
  gate TEXT, created VARCHAR NOT NULL);
CREATE TABLE aliases (name VARCHAR NOT NULL PRIMARY KEY, release VARCHAR NOT NULL REFERENCES releases (id));
CREATE TABLE moves (number INTEGER NOT NULL PRIMARY KEY, alias VARCHAR NOT NULL, action VARCHAR NOT NULL,
  release VARCHAR NOT NULL REFERENCES releases (id), previous VARCHAR REFERENCES releases (id),
  reason VARCHAR NOT NULL, forced INTEGER NOT NULL, "by" VARCHAR NOT NULL, at VARCHAR NOT NULL);
CREATE TABLE schema_number (number INTEGER NOT NULL);
INSERT INTO versions (digest, kind, place, chain, facts, report, files, created)
  VALUES ('bbbbbbbb', 'base', 'some/hub-name', '[]', 'null', '', 'null', '2026-01-01T00:00:00+00:00');
INSERT INTO releases (id, base, knowledge, gate, created)
  VALUES ('aaaaaaaa', 'bbbbbbbb', 'live', '{"decision":"promote"}', '2026-01-01T00:00:00+00:00');
INSERT INTO aliases VALUES ('stable', 'aaaaaaaa');
INSERT INTO moves (alias, action, release, reason, forced, "by", at)
  VALUES ('stable', 'promote', 'aaaaaaaa', '', 0, 'a@b', '2026-01-01T00:00:00+00:00');
INSERT INTO schema_number VALUES (1);
"""
SECOND_SCHEMA = (
    FIRST_SCHEMA
    + """
ALTER TABLE versions ADD COLUMN pruned VARCHAR;
ALTER TABLE releases ADD COLUMN pruned VARCHAR;
UPDATE schema_number SET number = 2;
"""
)
THIRD_SCHEMA = (
    SECOND_SCHEMA
    + """
CREATE TABLE requests (id VARCHAR NOT NULL PRIMARY KEY, at VARCHAR NOT NULL, route VARCHAR NOT NULL,
  "key" VARCHAR NOT NULL, "user" VARCHAR NOT NULL, model VARCHAR NOT NULL, release VARCHAR, base VARCHAR,
  adapter VARCHAR, knowledge INTEGER, input TEXT, output TEXT, status INTEGER NOT NULL,
  finish_reason VARCHAR NOT NULL, error VARCHAR NOT NULL, prompt_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, first_token_seconds FLOAT,
  latency_seconds FLOAT NOT NULL);
CREATE TABLE ratings (id VARCHAR NOT NULL PRIMARY KEY, request VARCHAR NOT NULL, at VARCHAR NOT NULL,
  "key" VARCHAR NOT NULL, "user" VARCHAR NOT NULL, trusted INTEGER NOT NULL, thumb VARCHAR, correction TEXT,
  comment TEXT, dwell_ms INTEGER, action VARCHAR);
CREATE INDEX ix_ratings_request ON ratings (request);
UPDATE schema_number SET number = 3;
"""
)
OLDER = {1: FIRST_SCHEMA, 2: SECOND_SCHEMA, 3: THIRD_SCHEMA}


def columns_of(engine) -> dict:
    from sqlalchemy import inspect

    found = inspect(engine)
    return {
        table: {column["name"]: (str(column["type"]), column["nullable"]) for column in found.get_columns(table)}
        for table in found.get_table_names()
    }


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("kind", SERVERS)
def test_every_older_schema_is_brought_up_to_date_with_its_rows(number, kind, tmp_path, request, monkeypatch):
    home, fresh = tmp_path / "old", registry_of(tmp_path / "fresh")
    home.mkdir()
    if kind == "sqlite":
        with closing(sqlite3.connect(home / "evergreen.db")) as connection:
            connection.executescript(OLDER[number])
    else:
        import psycopg

        server = request.getfixturevalue("postgres")
        monkeypatch.setenv("EVERGREEN_DB", new_database(server, f"fresh{next(numbers)}"))
        fresh = registry_of(tmp_path / "fresh")
        monkeypatch.setenv("EVERGREEN_DB", new_database(server, f"old{next(numbers)}"))
        with psycopg.connect(os.environ["EVERGREEN_DB"]) as connection:
            connection.execute(
                OLDER[number].replace("number INTEGER NOT NULL PRIMARY KEY", "number SERIAL PRIMARY KEY")
            )
    old = registry_of(home)
    assert columns_of(old.db.engine) == columns_of(fresh.db.engine)
    assert old.alias("stable").id == "aaaaaaaa" and len(old.history()) == 1
    newer = make_release(old, "newer")
    assert old.promote(newer.id)["previous"] == "aaaaaaaa" and old.rollback()["stable"] == "aaaaaaaa"


def test_a_schema_newer_than_the_program_is_refused_in_one_line(registry):
    from evergreen import database

    with registry.db.write() as connection:
        connection.execute(database.schema.update().values(number=99))
    with pytest.raises(BadInput, match="schema 99, this program knows up to"):
        Registry(registry.home)


def test_every_schema_before_this_one_is_tested():
    from evergreen import database

    assert set(OLDER) == set(range(1, database.SCHEMA))


# -- what can be wrong with a database


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "evergreen.db").write_text("not a database, " * 200)
    with pytest.raises(Failure, match="is damaged"):
        Registry(tmp_path)


@pytest.mark.parametrize("url,word", [("mysql://a@b/c", "postgresql:// URL"), ("nonsense", "EVERGREEN_DB wants")])
def test_another_kind_of_server_is_refused(url, word, tmp_path):
    with pytest.raises(BadInput, match=word):
        Registry(tmp_path, url)


def test_a_server_that_cannot_be_reached_is_one_line_without_its_password(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(Failure, match="cannot be used") as caught:
        Registry(tmp_path, "postgresql://me:secret@127.0.0.1:9/none")
    assert "secret" not in str(caught.value)


def test_what_the_model_room_calls_a_digest_is_what_the_registry_checks(tmp_path):
    from evergreen.model.adapters import adapter_digest

    folder = make_adapter(tmp_path / "run", make_base(tmp_path / "base"))
    record = json.loads((folder / "version.json").read_text()) | {"digest": adapter_digest(folder)}
    (folder / "version.json").write_text(json.dumps(record))
    assert Registry(tmp_path / "home", digest=adapter_digest).add_version(folder) == adapter_digest(folder)
    assert Path(tmp_path / "home" / "adapters" / adapter_digest(folder)).is_dir()
