"""A home comes back from one file, whole or not at all, also when others write while the file is made."""

import gzip
import itertools
import json
import multiprocessing
import os
import sqlite3
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from registry_homes import (
    SERVERS,
    check_invariants,
    make_release,
    new_database,
    registry_of,
)

from evergreen.feedback import Interaction, Log, Rating
from evergreen.records import BadInput, Failure
from evergreen.registry import backup, store
from evergreen.settings import BackupSettings, RestoreSettings

numbers = itertools.count()


@pytest.fixture(params=SERVERS)
def registry(request, tmp_path, monkeypatch):
    if request.param == "postgres":
        database = new_database(request.getfixturevalue("postgres"), f"backup{next(numbers)}")
        monkeypatch.setenv("EVERGREEN_DB", database)
    made = registry_of(tmp_path / "home")
    for name in ("one", "two"):
        made.promote(make_release(made, name).id)
    for name, text in (
        ("knowledge/log.jsonl", '{"内容": "青石相机"}\n'),
        ("keys.json", "secret"),
        ("runs/r/.lock", ""),
    ):
        (made.home / name).parent.mkdir(parents=True, exist_ok=True)
        (made.home / name).write_text(text)
    (made.home / "keys.json").chmod(0o600)
    return made


def save(home: Path, file: Path) -> dict:
    return backup.run_backup(BackupSettings(home=str(home), file=str(file), json=True))


def bring_back(file: Path, home: Path, force: bool = False) -> dict:
    return backup.run_restore(RestoreSettings(home=str(home), file=str(file), force=force, json=True))


def content(home: Path) -> dict[str, bytes]:
    """A home's files; the database and locks left out."""
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and "lock" not in path.name and not path.name.startswith("evergreen.db")
    }


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_what_comes_back_is_what_was_there(registry, tmp_path, ending, monkeypatch, request):
    file = tmp_path / f"saved.{ending}"
    saved = save(registry.home, file)
    assert saved["bytes"] == file.stat().st_size and (file.stat().st_mode & 0o777) == 0o600
    monkeypatch.delenv("EVERGREEN_DB", raising=False)  # a backup of a server opens anywhere
    assert bring_back(file, tmp_path / "new")["files"] == saved["files"]
    assert content(tmp_path / "new") == content(registry.home)
    assert (tmp_path / "new" / "keys.json").stat().st_mode & 0o777 == 0o600
    new = registry_of(tmp_path / "new")
    assert new.list() == registry.list() and new.history() == registry.history()
    assert new.rollback()["stable"] == registry.list()[1].id
    check_invariants(new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "made", "new", file.name]


def test_bytes_that_two_names_share_are_in_the_file_once(tmp_path):
    registry = registry_of(tmp_path / "home")
    big = registry.home / "increments" / "i1" / "adapter_model.safetensors"
    big.parent.mkdir(parents=True)
    big.write_bytes(os.urandom(3 << 20))
    os.link(big, registry.home / "other.safetensors")
    assert save(registry.home, tmp_path / "b.tar")["bytes"] < 4 << 20
    bring_back(tmp_path / "b.tar", tmp_path / "new")
    assert (tmp_path / "new" / "other.safetensors").read_bytes() == big.read_bytes()


def test_a_room_that_is_a_link_to_another_disk_comes_along(tmp_path):
    registry = registry_of(tmp_path / "home")
    (tmp_path / "big disk").mkdir()
    (tmp_path / "big disk" / "notes").write_text("kept")
    (registry.home / "knowledge").symlink_to(tmp_path / "big disk")
    (tmp_path / "big disk" / "circle").symlink_to(registry.home)
    save(registry.home, tmp_path / "b.tar")
    bring_back(tmp_path / "b.tar", tmp_path / "new")
    assert (tmp_path / "new" / "knowledge" / "notes").read_text() == "kept"


def test_a_home_that_holds_something_is_refused_and_with_force_set_aside(registry, tmp_path, monkeypatch):
    file, other = tmp_path / "b.tar", tmp_path / "other"
    save(registry.home, file)
    monkeypatch.delenv("EVERGREEN_DB", raising=False)
    other.mkdir()
    (other / "mine").write_text("mine")
    with pytest.raises(BadInput, match="is not empty"):
        bring_back(file, other)
    assert [path.name for path in other.iterdir()] == ["mine"]
    done = bring_back(file, other, force=True)
    assert (Path(done["earlier"]) / "mine").read_text() == "mine" and registry_of(other).alias("stable")


def test_a_file_that_is_cut_off_or_changed_brings_nothing_back(registry, tmp_path, monkeypatch):
    whole, bad, new = tmp_path / "b.tar", tmp_path / "bad.tar", tmp_path / "new"
    save(registry.home, whole)
    monkeypatch.delenv("EVERGREEN_DB", raising=False)
    data = whole.read_bytes()
    place = data.index(b"secret")
    damaged = {
        "cut": data[: len(data) // 2],
        "without its end": data[: data.rindex(b"evergreen-backup.json") - 512],
        "one byte": data[:place] + b"S" + data[place + 1 :],
        "no archive": b"hello" * 1000,
        "cut gzip": gzip.compress(data)[:-2000],
        "empty": b"",
    }
    for name, text in damaged.items():
        bad.write_bytes(text)
        with pytest.raises(BadInput, match=r"bad\.tar"):
            bring_back(bad, new)
        assert not new.exists(), name
    assert not list(tmp_path.glob(".new*"))


def test_a_file_of_a_newer_program_is_refused(tmp_path):
    registry_of(tmp_path / "home")
    save(tmp_path / "home", tmp_path / "b.tar")
    bring_back(tmp_path / "b.tar", tmp_path / "newer")
    with closing(sqlite3.connect(tmp_path / "newer" / "evergreen.db")) as connection, connection:
        connection.execute("UPDATE schema_number SET number = 99")
    with tarfile.open(tmp_path / "n.tar", "w") as archive:
        path = tmp_path / "newer" / "evergreen.db"
        archive.add(path, "evergreen.db")
        manifest = {"format": 1, "files": {"evergreen.db": [path.stat().st_size, store.sha256_of(path)]}}
        (tmp_path / "m").write_text(json.dumps(manifest))
        archive.add(tmp_path / "m", "evergreen-backup.json")
    with pytest.raises(BadInput, match="schema 99"):
        bring_back(tmp_path / "n.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_member_that_would_leave_the_home_is_refused(tmp_path):
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "x", "../outside")
    with pytest.raises(BadInput, match="no backup"):
        bring_back(tmp_path / "b.tar", tmp_path / "deep" / "new")
    assert not (tmp_path / "deep" / "outside").exists()


@pytest.mark.parametrize("file,word", [("b.zip", "ends in .tar"), ("", "ends in .tar"), ("none/b.tar", "no folder"),
                                       ("home/b.tar", "lies in the home")])  # fmt: skip
def test_a_place_for_the_backup_that_cannot_be_is_one_line(file, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry_of(tmp_path / "home")
    with pytest.raises(BadInput, match=word):
        save(tmp_path / "home", Path(file) if file else "")


def test_restoring_from_nothing_is_one_line(tmp_path):
    for file in ("", "none.tar"):
        with pytest.raises(BadInput, match="there is none at"):
            bring_back(file, tmp_path / "new")


def grow(home: Path, stop) -> None:
    """A busy home: releases, promotions, prunes, a log that is appended to, files that come and go."""
    registry = registry_of(home)
    for number in itertools.count():
        if stop.is_set():
            return
        registry.promote(make_release(registry, f"g{number}").id)
        with open(home / "knowledge" / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"number": number}) + "\n")
        (home / "runs" / f"temporary-{number}").write_text("x" * 1000)
        (home / "runs" / f"temporary-{number - 1}").unlink(missing_ok=True)
        if number % 3 == 2:
            try:
                registry.prune()
            except BadInput:
                assert number  # a backup takes long: prune says so


def test_backups_of_a_busy_home_are_whole(registry, tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    writer = context.Process(target=grow, args=(registry.home, stop))
    writer.start()
    files = [tmp_path / f"{number}.tar" for number in range(4)]
    for file in files:
        save(registry.home, file)
    stop.set()
    writer.join(60)
    assert writer.exitcode == 0
    monkeypatch.delenv("EVERGREEN_DB", raising=False)
    for file in files:
        home = tmp_path / f"new-{file.stem}"
        bring_back(file, home)
        assert check_invariants(registry_of(home)) >= 2
        lines = (home / "knowledge" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(line) for line in lines)


def test_a_backup_has_what_was_committed_last_although_the_file_does_not_hold_it_yet(tmp_path):
    registry = registry_of(tmp_path / "home")
    one = make_release(registry, "one")
    with closing(sqlite3.connect(registry.home / "evergreen.db")) as reader:
        reader.execute("SELECT * FROM releases").fetchall()  # as long as it is open, the log is not written back
        registry.promote(one.id)
        save(registry.home, tmp_path / "b.tar")
    bring_back(tmp_path / "b.tar", tmp_path / "new")
    assert registry_of(tmp_path / "new").alias("stable") == one


def test_pruning_waits_for_a_backup_and_says_so(registry, tmp_path, monkeypatch):
    clock = itertools.count(0, 6)
    real = type(registry.db).snapshot

    def prune_meanwhile(database, folder):
        with pytest.raises(BadInput, match="a backup of .* is being written"):
            registry.prune()
        real(database, folder)

    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(type(registry.db), "snapshot", prune_meanwhile)
    save(registry.home, tmp_path / "b.tar")
    registry.prune()


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_wrong_backup(tmp_path, monkeypatch):
    registry = registry_of(tmp_path / "home")
    (registry.home / "growing").write_bytes(b"x" * 5000)
    monkeypatch.setattr(backup, "HELD_BYTES", 10)
    real = tarfile.TarFile.gettarinfo

    def longer(self, **more):
        info = real(self, **more)
        info.size += 100 * info.name.endswith("growing")
        return info

    monkeypatch.setattr(tarfile.TarFile, "gettarinfo", longer)
    with pytest.raises(Failure, match="became shorter"):
        save(registry.home, tmp_path / "b.tar")
    assert not list(tmp_path.glob("*.tar")) and not list(tmp_path.glob(".b*"))


def test_a_full_disk_leaves_no_half_backup_and_no_half_home(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    try:
        registry = registry_of(tmp_path / "home")
        (registry.home / "big").write_bytes(os.urandom(2 << 20))
        with pytest.raises(Failure, match="No space left"):
            save(registry.home, disk / "b.tar")
        save(registry.home, tmp_path / "b.tar")
        with pytest.raises(Failure, match="No space left"):
            bring_back(tmp_path / "b.tar", disk / "new")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def ask(registry, id: str, text: str) -> None:
    """A request and a rating of it, as the server keeps them."""
    log = Log(registry.db)
    log.add(Interaction(id, "2026-11-21T10:00:00+00:00", "/generate", user="u", input={"prompt": text}, output=["42"]))
    log.rate(Rating(id, thumb="up")).result(30)
    log.close()


def asked(registry) -> dict[str, list[str]]:
    log = Log(registry.db)
    found = {row.id: [rating.thumb for rating in log.ratings_of(row.id)] for row in log.newest()}
    log.close()
    return found


@pytest.mark.slow
def test_a_backup_fills_an_empty_server_and_no_other(postgres, tmp_path, monkeypatch):
    registry = registry_of(tmp_path / "home")
    release = make_release(registry, "one")
    registry.promote(release.id)
    ask(registry, "r1", "青石相机多少钱?")
    save(registry.home, tmp_path / "b.tar")
    monkeypatch.setenv("EVERGREEN_DB", new_database(postgres, f"filled{next(numbers)}"))
    bring_back(tmp_path / "b.tar", tmp_path / "new")
    new = registry_of(tmp_path / "new")
    assert new.alias("stable") == release and not (tmp_path / "new" / "evergreen.db").exists()
    assert asked(new) == {"r1": ["up"]}
    newer = make_release(new, "two")
    new.promote(newer.id)  # numbers go on where the rows end
    with pytest.raises(BadInput, match="holds a registry already"):
        bring_back(tmp_path / "b.tar", tmp_path / "third")
    assert new.alias("stable") == newer and not (tmp_path / "third").exists()
    bring_back(tmp_path / "b.tar", tmp_path / "third", force=True)
    assert registry_of(tmp_path / "third").alias("stable") == release


@pytest.mark.slow
def test_a_server_with_nothing_but_requests_is_not_empty(postgres, tmp_path, monkeypatch):
    registry = registry_of(tmp_path / "home")
    make_release(registry, "one")
    save(registry.home, tmp_path / "b.tar")
    monkeypatch.setenv("EVERGREEN_DB", new_database(postgres, f"filled{next(numbers)}"))
    served = registry_of(tmp_path / "served")
    ask(served, "r2", "hello?")
    with pytest.raises(BadInput, match="holds a registry already"):
        bring_back(tmp_path / "b.tar", tmp_path / "new")
    assert asked(served) == {"r2": ["up"]}
