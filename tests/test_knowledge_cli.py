"""`evergreen knowledge ...` as a person types it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from registry_homes import make_release, registry_of

from evergreen import cli
from evergreen.knowledge import log as knowledge_log
from evergreen.knowledge.cache import Cache, Key, Value, open_cache
from evergreen.knowledge.prompt import Source
from evergreen.knowledge.purges import Purges
from evergreen.knowledge.store import Store
from evergreen.records import Entry


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(home, capsys):
    """`run("list", ...)` gives the JSON document."""

    def knowledge(*words: str) -> dict:
        code = cli.main(["knowledge", *words, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    return knowledge


@pytest.fixture
def refused(home, capsys):
    """The one line that a command ends with, exit code 2."""

    def knowledge(*words: str) -> str:
        code = cli.main(["knowledge", *words])
        line = capsys.readouterr().err
        assert code == 2 and line.count("\n") == 1 and line.startswith("evergreen: "), line
        return line

    return knowledge


def store_of(home: Path) -> Store:
    return Store(home / "knowledge")


def remembered(home: Path, id: str, text: str) -> tuple[Cache, Key]:
    """A cache in which an answer stands on the entry."""
    cache = open_cache(home / "knowledge")
    source = Source(1, id, "1.0.0", "", "", "", "2026-01-01", "old")
    key = Key.of("?", epoch=cache.epoch(), sources=[source])
    assert cache.put(key, Value(text, [], {}, is_checked=True), [id], 600) and cache.get(key).text == text
    return cache, key


def test_an_entry_is_added_updated_found_and_withdrawn(run):
    made = run("add", "Acme Cam costs 42 dollars.", "--title", "Acme Cam", "--tags", "cam", "price", "--reason", "list")
    assert made == {"id": made["id"], "version": "1.0.0", "snapshot": "live", "n": 1}
    made = run("update", made["id"], "--content", "Acme Cam costs 45 dollars.", "--bump", "minor")
    assert made["version"] == "1.1.0"
    found = run("search", "How much is the Acme Cam?")
    [hit] = found["results"]
    assert hit.keys() >= {"id", "content", "source_url", "update_time", "version", "tags", "score"}
    assert hit["content"] == "Acme Cam costs 45 dollars." and hit["tags"] == ["cam", "price"]
    assert run("withdraw", made["id"]) == {"id": made["id"], "version": "1.1.0", "snapshot": "live", "n": 3,
                                           "ids": [made["id"]]}  # fmt: skip
    assert run("search", "How much is the Acme Cam?")["results"] == []
    assert [one["version"] for one in run("history", made["id"])["versions"]] == ["1.0.0", "1.1.0"]
    assert [change["op"] for change in run("audit", made["id"])["changes"]] == ["add", "update", "withdraw"]


def test_text_comes_from_stdin_and_goes_to_stdout(run, monkeypatch, capsys, home):
    monkeypatch.setattr(sys, "stdin", io.StringIO("青石相机的价格是42元。\n"))
    made = run("add", "-", "--source_url", "https://example.com/a")
    assert cli.main(["knowledge", "export", "-"]) == 0
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["id"] == made["id"] and row["content"] == "青石相机的价格是42元。"


def test_parts_of_an_entry_are_replaced_or_cleared(run):
    made = run("add", "x", "--title", "T", "--tags", "a", "--valid_until", "2030-01-01")
    run("update", made["id"], "--title", "", "--tags", "", "--valid_until", "")
    shown = run("show", made["id"])
    assert (shown["title"], shown["tags"], shown["valid_until"], shown["content"]) == ("", [], "", "x")


def test_snapshots_and_dates_are_read_as_they_were(run):
    one = run("add", "one")["id"]
    assert run("publish") == {"snapshot": 1, "n": 2}
    run("update", one, "--content", "two")
    run("add", "three", "--valid_from", "2999-01-01")
    run("publish")
    said = {state: [entry["content"] for entry in run("list", "--snapshot", state)["entries"]] for state in ("1", "2")}
    assert said == {"1": ["one"], "2": ["two"]} and run("list", "--snapshot", "latest")["snapshot"] == 2
    assert run("list", "--as_of", "2020-01-01")["entries"] == []
    assert [entry["content"] for entry in run("list", "--as_of", "2999-06-01")["entries"]] == ["three", "two"]
    assert run("search", "one", "--snapshot", "1")["results"][0]["content"] == "one"
    differs = run("diff", "1", "live")
    assert [(kind, [one["content"] for one in differs[kind]]) for kind in ("added", "removed", "updated")] == [
        ("added", ["three"]), ("removed", []), ("updated", ["two"])
    ]  # fmt: skip


def test_what_is_redacted_is_in_no_file_of_the_home(run, home):
    secret, other = "kumquatsecret", "persimmon"
    id = run("add", f"The code is {secret}.")["id"]
    run("add", f"It is a {other}.")
    run("search", "code")
    run("reindex")
    cache, key = remembered(home, id, f"{secret} [1]")
    assert any(secret.encode() in path.read_bytes() for path in home.rglob("*") if path.is_file())
    run("redact", id)
    assert not [path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert cache.get(key) is None and run("search", other)["results"][0]["content"] == f"It is a {other}."
    assert run("history", id)["versions"][0]["redacted"]


@pytest.mark.parametrize("change", [["update", "a", "--content", "new"], ["withdraw", "a"], ["redact", "a"]])
def test_a_change_is_out_of_the_cache_when_the_command_returns(run, home, change):
    run("add", "old", "--id", "a")
    cache, key = remembered(home, "a", "old [1]")
    run(*change)
    assert cache.get(key) is None


@pytest.mark.parametrize(
    "change",
    [
        ["update", "a", "--content", "new"],
        ["update", "a", "--content", "new", "--version", "2.0.0"],
        ["withdraw", "a", "b"],
        ["redact", "a", "b"],
    ],
)
def test_a_change_whose_purge_failed_is_repeated_until_it_is_out_of_the_cache(run, home, change, capsys, monkeypatch):
    run("add", "old", "--id", "a")
    run("add", "other", "--id", "b")
    cache, key = remembered(home, "a", "old [1]")

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("add", "void"):
        monkeypatch.setattr(Purges, name, full)
    for _ in range(2):
        assert cli.main(["knowledge", *change]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "No space left on device; the change itself is made: run the command" in said
    monkeypatch.undo()
    monkeypatch.setenv("EVERGREEN_HOME", str(home))
    assert run(*change)["id"] == "a" and cache.get(key) is None
    numbers = [one["n"] for one in run("audit", "a")["changes"]]
    assert len(numbers) == 2 or "--version" not in change and change[0] == "update"


def test_an_import_of_a_changed_file_clears_the_cache_of_what_it_said(run, home, tmp_path):
    (tmp_path / "a.md").write_text("# Cam\n\nIt costs 42 dollars.\n")
    run("import", str(tmp_path / "a.md"))
    [id] = [row.entry.id for row in store_of(home).visible()]
    cache, key = remembered(home, id, "42 [1]")
    (tmp_path / "a.md").write_text("# Cam\n\nIt costs 45 dollars.\n")
    assert run("import", str(tmp_path / "a.md"))["updated"] == 1 and cache.get(key) is None


def test_an_export_is_imported_by_another_home(run, tmp_path, monkeypatch):
    run(
        "add",
        "青石相机的价格是42元。",
        "--title",
        "价格",
        "--tags",
        "a",
        "b",
        "--id",
        "x",
        "--valid_until",
        "2040-01-01",
    )
    run("add", "second " * 400)  # longer than a chunk: an entry is what it was
    run("update", "x", "--content", "青石相机的价格是45元。")
    exported = run("export", str(tmp_path / "all.jsonl"))
    assert exported["rows"] == 2
    before = run("list")["entries"]
    assert run("export", str(tmp_path / "versions.jsonl"), "--all")["rows"] == 3
    monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / "other"))
    assert run("import", str(tmp_path / "all.jsonl"))["added"] == 2
    after = run("list")["entries"]
    without_n = [[{key: value for key, value in one.items() if key not in ("n", "language")} for one in many]
                 for many in (before, after)]  # fmt: skip
    assert sorted(without_n[0], key=lambda one: one["id"]) == sorted(without_n[1], key=lambda one: one["id"])
    assert run("import", str(tmp_path / "all.jsonl"))["unchanged"] == 2


def test_a_folder_is_imported_with_what_a_person_should_know(home, tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Cam\n\nThe Acme Cam costs 42 dollars in every shop of the whole wide country.\n")
    (folder / "b.txt").write_text("The Acme Cam costs 43 dollars in every shop of the whole wide country.")
    (folder / "c.docx").write_bytes(b"PK")
    (folder / "bad.txt").write_bytes(b"\xff\xff\xff")
    assert cli.main(["knowledge", "import", str(folder), "--on_bad_row", "skip"]) == 0
    out = capsys.readouterr().out
    assert "3 files: 2 entries added" in out and "nearly the same" in out and "1 .docx" in out and "bad.txt:1" in out


def test_chunks_are_measured_as_asked(run, tmp_path):
    (tmp_path / "a.txt").write_text("One sentence of some words stands here. " * 60)
    units = {"tokens": [], "characters": ["--chunk_unit", "characters"], "nano": ["--model", "nano"]}
    for unit, more in units.items():
        run("import", str(tmp_path / "a.txt"), "--chunk_size", "64", *more, "--home", str(tmp_path / unit))
    contents = {unit: [row.entry.content for row in Store(tmp_path / unit / "knowledge").visible()] for unit in units}
    assert max(map(len, contents["characters"])) <= 64 < max(map(len, contents["tokens"])) <= 256
    assert max(map(len, contents["nano"])) != max(map(len, contents["tokens"]))


def test_snapshots_are_served_through_a_child_of_the_stable_release(run, home):
    registry = registry_of(home)
    release = make_release(registry, "one")
    registry.promote(release.id)
    run("add", "one")
    run("publish")
    run("add", "two")
    back = run("rollback", "1", "--reason", "wrong prices")
    assert back["snapshot"] == 1 and back["previous"] == release.id
    stable = registry.alias("stable")
    assert (stable.id, stable.knowledge, stable.parent) == (back["stable"], "1", release.id)
    assert "wrong prices" in registry.history("stable")[0].reason
    live = run("live")
    assert live["snapshot"] == "live" and registry.alias("stable").knowledge == "live"
    canary = run("canary", "1", "--share", "0.25")
    assert canary["snapshot"] == 1 and registry.share("candidate") == 0.25
    assert registry.alias("candidate").knowledge == "1" and registry.alias("stable").knowledge == "live"


def test_a_change_that_a_pinned_release_does_not_show_is_told_of(home, capsys):
    def said(*words: str) -> tuple[str, str]:
        assert cli.main(["knowledge", *words]) == 0
        return capsys.readouterr()

    assert said("add", "Acme Cam costs 42 dollars.", "--id", "cam").err == ""
    said("add", "The camera is black.", "--id", "camera")
    said("publish")
    registry = registry_of(home)
    registry.promote(make_release(registry, "one").id, "stable", "first")
    assert said("update", "cam", "--content", "Acme Cam costs 45 dollars.").err == ""
    said("rollback", "1")
    for words in (["add", "B."], ["update", "cam", "--title", "Cam"], ["withdraw", "cam"]):
        out, err = said(*words)
        assert "answers come from snapshot 1" in err and err.count("\n") == 1 and "no answer" not in out
    said("live")
    assert said("add", "C.").err == ""
    said("canary", "1", "--share", "0.25")
    assert (
        "25% of the users are answered from snapshot 1, which has it as it was"
        in said("update", "camera", "--title", "Cam").err
    )
    said("live")
    assert said("add", "D.").err == "" and registry.share() == 0


def test_an_entry_may_be_named_by_the_beginning_of_its_id(run, refused):
    run("add", "Acme Cam costs 42 dollars.", "--id", "camera-one")
    run("add", "Acme Cam costs 43 dollars.", "--id", "camera-two")
    assert run("update", "camera-o", "--content", "Acme Cam costs 45 dollars.")["id"] == "camera-one"
    assert len(run("history", "camera-o")["versions"]) == len(run("audit", "camera-o")["changes"]) == 2
    assert run("show", "camera-o")["id"] == run("withdraw", "camera-o")["id"] == "camera-one"
    assert "no entry camera-:" in refused("redact", "camera-")
    assert "no entry cam:" in refused("show", "cam")


def test_a_flag_like_no_other_is_not_likened_to_one(refused):
    assert "nearest" not in refused("update", "x", "--foo", "3")
    assert "the nearest is --title" in refused("update", "x", "--titel", "3")


def test_the_history_of_a_withdrawn_entry_says_when_and_why(home, capsys):
    cli.main(["knowledge", "add", "Acme Cam costs 42 dollars.", "--id", "cam"])
    cli.main(["knowledge", "withdraw", "cam", "--reason", "sold out"])
    capsys.readouterr()
    assert cli.main(["knowledge", "history", "cam"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == "2" and last[1].startswith("20") and last[2] == "withdraw" and last[-2:] == ["sold", "out"]
    assert cli.main(["knowledge", "update", "cam", "--content", "x"]) == 2
    assert "the entry cam was withdrawn on 20" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add"], "wants a text"),
        (["add", "x", "--valid_from", "2026-02-01", "--valid_until", "2026-01-01"], "is not after valid_from"),
        (["add", "x", "--version", "1"], "MAJOR.MINOR.PATCH"),
        (["add", "x", "--id", "a"], "evergreen knowledge update --id a"),
        (["add", "x", "--update_time", "soon"], "is not a date"),
        (["update"], "wants an entry"),
        (["update", "a"], "wants what changes"),
        (["update", "nobody", "--content", "x"], "no entry nobody"),
        (["update", "a", "--content", "x", "--version", "0.9.0"], "not above 1.0.0"),
        (["withdraw"], "wants entries by id"),
        (["withdraw", "a", "nobody"], "no entry nobody"),
        (["redact", "nobody"], "no entry nobody"),
        (["show", "a", "--snapshot", "7"], "no snapshot 7"),
        (["list", "--snapshot", "latest"], "no snapshot has been published"),
        (["list", "--snapshot", "1", "--as_of", "2026-01-01"], "give one of them"),
        (["list", "--as_of", "someday"], "is not a date"),
        (["search"], "wants a question"),
        (["diff", "1"], "wants two states"),
        (["rollback"], "wants a snapshot's number"),
        (["rollback", "3"], "no snapshot 3"),
        (["canary", "1", "--share", "1.5"], "--share must be at most 1"),
        (["live"], "evergreen release create"),
        (["import"], "wants files or folders"),
        (["import", "nowhere"], "no file or folder nowhere"),
        (["export"], "wants a file"),
        (["export", "nowhere/x.jsonl"], "no folder nowhere"),
        (["audit", "nobody"], "no entry nobody"),
        (["lst"], "no command 'knowledge lst'; the nearest is knowledge list"),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(refused, home, words, said):
    store_of(home).add([Entry(content="there", id="a")])
    assert said in refused(*words)
    assert [row.entry.content for row in store_of(home).visible()] == ["there"]


def test_an_export_does_not_replace_a_file_unasked(run, refused, tmp_path):
    run("add", "x")
    (tmp_path / "kept.jsonl").write_text("mine")
    assert "--overwrite" in refused("export", str(tmp_path / "kept.jsonl"))
    assert (tmp_path / "kept.jsonl").read_text() == "mine"
    run("export", str(tmp_path / "kept.jsonl"), "--overwrite")
    assert "mine" not in (tmp_path / "kept.jsonl").read_text()


def test_compacting_merges_segments_and_loses_nothing(run, home, monkeypatch):
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 2000)
    store = store_of(home)
    for number in range(60):
        store.add([Entry(content=f"fact {number} " + "x" * 100, id=f"e{number}")])
        if number % 20 == 0:
            store.publish()
    store.update("e1", content="changed")
    reader = store_of(home)
    states = [{row.entry.content for row in reader.visible(reader.at(number))} for number in (1, 2, 3, "live")]
    segments = len(list((home / "knowledge" / "log").iterdir()))
    (home / "knowledge" / "log" / "000099.jsonl").write_bytes(b"left by a crash")
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 6000)
    done = run("compact")
    assert done["merged"] > 3 and len(list((home / "knowledge" / "log").iterdir())) == segments - done["merged"]
    for store in (reader, store_of(home)):
        assert [
            {row.entry.content for row in store.visible(store.at(number))} for number in (1, 2, 3, "live")
        ] == states
        assert len(store.history("e1")) == 2 and len(store.audit()) == 64
    reader.add([Entry(content="goes on")])
    assert run("compact")["merged"] == 0 and "goes on" in {row.entry.content for row in store_of(home).visible()}


def test_compacting_refuses_a_log_that_is_not_what_was_written(run, home, monkeypatch, capsys):
    monkeypatch.setattr(knowledge_log, "SEGMENT_BYTES", 500)
    for number in range(12):
        store_of(home).add([Entry(content=f"fact {number}")])
    first = sorted((home / "knowledge" / "log").iterdir())[0]
    data = first.read_bytes()
    first.write_bytes(data.replace(b"fact 0", b"fake 0"))
    assert cli.main(["knowledge", "compact"]) == 1
    assert "bring it back from a backup" in capsys.readouterr().err
    assert sorted((home / "knowledge" / "log").iterdir())[0] == first


def test_listing_imports_nothing_heavy(home):
    store_of(home).add([Entry(content="x")])
    code = "import sys; from evergreen.cli import main; main(['knowledge', 'list']); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = out.splitlines()[-1]
    assert not [name for name in ("torch", "transformers", "numpy", "pymilvus", "jieba", "sqlalchemy", "rich")
                if f"'{name}'" in loaded]  # fmt: skip


@pytest.mark.parametrize("words", [("update", "a", "--content", "two"), ("withdraw", "a"), ("redact", "a")])
def test_a_cache_that_cannot_be_is_told_before_anything_is_changed(home, run, refused, monkeypatch, words):
    run("add", "one", "--id", "a")
    monkeypatch.setenv("EVERGREEN_CACHE", "nonsense")
    assert "EVERGREEN_CACHE wants" in refused(*words)
    assert [row.entry.content for row in store_of(home).visible()] == ["one"] and store_of(home).refresh() == 1


def test_an_index_that_cannot_be_cleared_of_what_is_redacted_says_what_is_left(home, run, capsys, monkeypatch):
    run("add", "one", "--id", "a")
    monkeypatch.setenv("EVERGREEN_INDEX", "nonsense")
    assert cli.main(["knowledge", "redact", "a"]) == 1
    assert "out of the log, every snapshot and cache, but not yet out of the search index" in capsys.readouterr().err


def test_a_home_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        monkeypatch.setenv("EVERGREEN_HOME", str(tmp_path / place))
        assert cli.main(["knowledge", "list"]) == 2
        assert "cannot be made" in capsys.readouterr().err


def test_an_export_onto_a_folder_is_refused(home, run, refused, tmp_path):
    run("add", "one")
    assert "is a folder" in refused("export", str(tmp_path), "--overwrite")
