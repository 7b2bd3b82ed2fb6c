"""Whatever happens to a writer (company, kill -9, a full disk), an alias points to the old release or to the new."""

import contextlib
import itertools
import multiprocessing
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
from registry_homes import (
    PASSED,
    SERVERS,
    check_invariants,
    make_adapter,
    make_base,
    make_release,
    new_database,
    postgres_server,
    registry_of,
)
from waiting import wait_until

from evergreen.records import BadInput, Failure

fork = multiprocessing.get_context("fork")  # SQLAlchemy is imported once, not in every process


@pytest.fixture(params=SERVERS)
def home(request, tmp_path, monkeypatch):
    """A home's folder; with a server, the whole test goes to one database of it."""
    if request.param == "sqlite":
        yield tmp_path / "home"
        return
    with postgres_server() as server:
        monkeypatch.setenv("EVERGREEN_DB", new_database(server, "crash"))
        yield tmp_path / "home"


def start(function, *arguments) -> multiprocessing.Process:
    process = fork.Process(target=function, args=arguments)
    process.start()
    return process


def write_much(home: Path, number: int, rounds: int) -> None:
    """One writer: makes releases, promotes them to one of the aliases, takes moves back, prunes."""
    registry, chance = registry_of(home), random.Random(number)
    alias = ("stable", "candidate")[number % 2]
    for round_number in range(rounds):
        registry.promote(make_release(registry, f"w{number}-{round_number}").id, to=alias)
        if chance.random() < 0.5 and len(registry.history(alias)) > 9:
            registry.rollback(alias)
        if chance.random() < 0.3:
            registry.prune()


def promote_at(home: Path, release: str, barrier) -> None:
    registry = registry_of(home)
    barrier.wait()
    registry.promote(release)


def read_until(home: Path, stop, broken) -> None:
    registry = registry_of(home)
    while not stop.is_set():
        release = registry.alias("stable")
        if release is None or registry.versions.find(release.adapter) is None:
            broken.set()


def test_eight_writers_on_a_new_home_lose_nothing(home):
    writers = [start(write_much, home, number, 2) for number in range(8)]
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    registry = registry_of(home)
    check_invariants(registry)
    assert len({release.adapter for release in registry.list(pruned=True)}) == 16
    moves = [*registry.history(), *registry.history("candidate")]
    assert sum(move.action == "promote" for move in moves) == 16


def test_eight_writers_of_the_same_version_keep_it_once(home):
    writers = [start(make_release_alone, home) for _ in range(8)]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8
    [release] = registry_of(home).list()
    assert [path.name for path in (home / "adapters").iterdir()] == [release.adapter]


def make_release_alone(home: Path) -> None:
    base = make_base(home.parent / f"base of {os.getpid()}" / "base")
    registry = registry_of(home)
    folder = make_adapter(home.parent / f"run of {os.getpid()}" / "same", base)
    registry.create(adapter=registry.add_version(folder), gate=PASSED)


def test_of_two_that_promote_at_once_each_sees_what_the_other_left(home):
    registry = registry_of(home)
    first, *both = (make_release(registry, name).id for name in ("first", "left", "right"))
    registry.promote(first)
    stop, broken = fork.Event(), fork.Event()
    reader = start(read_until, home, stop, broken)
    for _ in range(5):
        barrier = fork.Barrier(2)
        writers = [start(promote_at, home, release, barrier) for release in both]
        for writer in writers:
            writer.join(60)
            assert writer.exitcode == 0
        assert registry.alias("stable").id in both
    stop.set()
    reader.join(60)
    assert not broken.is_set()
    check_invariants(registry)


def write_anything(home: Path, number: int) -> None:
    """A writer without end: mostly promotes, now and then takes back, adds a version or prunes."""
    registry, chance = registry_of(home), random.Random(number)
    for round_number in itertools.count():
        dice = chance.random()
        with contextlib.suppress(BadInput):  # nothing to take back, or what was chosen has just been pruned
            if dice < 0.7:
                registry.promote(chance.choice(registry.list()).id)
            elif dice < 0.8:
                registry.rollback()
            elif dice < 0.95:
                make_release(registry, f"k{number}-{round_number}")
            else:
                registry.prune()


def test_twenty_killed_writers_leave_the_old_or_the_new(home):
    registry, chance, num_moves = registry_of(home), random.Random(5), 0
    for name in "abcd":
        registry.promote(make_release(registry, name).id)
    for number in range(20):
        num_seen = len(registry.history())
        writer = start(write_anything, home, number)
        if number % 2:  # the others are killed wherever they are, which may be before their first move
            wait_until(lambda num_seen=num_seen: len(registry.history()) != num_seen)
        time.sleep(chance.uniform(0.03, 0.3))
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        moves = check_invariants(registry)
        assert moves >= num_moves  # nothing committed is ever lost
        num_moves = moves
    assert num_moves >= 4 + 10
    registry.promote(make_release(registry, "last").id)
    registry.prune()
    kept = {path.name for path in (home / "adapters").iterdir() if not path.name.startswith(".")}
    with registry.db.read() as tx:
        assert kept == {one.digest for one in registry.versions.all(tx) if one.kind == "adapter" and not one.pruned}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    path = folder / "filler"
    with open(path, "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue
    return path


def test_on_a_full_disk_nothing_moves_and_everything_can_be_read(small_disk, tmp_path):
    registry = registry_of(small_disk / "home")
    old, new = make_release(registry, "old"), make_release(registry, "new")
    elsewhere = make_adapter(tmp_path / "run", make_base(tmp_path / "base"))
    registry.promote(old.id)
    filler = fill(small_disk)
    for attempt in (lambda: registry.promote(new.id), registry.prune, lambda: registry.add_version(elsewhere)):
        with pytest.raises(Failure, match="the disk is full|No space left"):
            attempt()
    assert registry_of(small_disk / "home").alias("stable").id == old.id
    assert registry.damage(old.id) == "" and len(registry.list()) == 2
    filler.unlink()
    assert not list((small_disk / "home" / "adapters").glob(".staging-*"))
    assert registry.promote(new.id) == {"stable": new.id, "previous": old.id}
    assert registry.damage(registry.create(adapter=registry.add_version(elsewhere)).id) == ""
    check_invariants(registry)
