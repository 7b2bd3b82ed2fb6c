"""What the knowledge log promises, seen: states of many entries, kills while it is written, many processes at once.

states: publish, rollback and live, within a process and as commands; opening the store, also behind a kill in the
middle of an append. kills: a process that adds, updates, withdraws, redacts, publishes and compacts dies by kill -9 at
a random moment; then the log is compared with what was acknowledged. processes: four read while one writes, then while
two do. bench/knowledge.py runs them.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evergreen.knowledge import log as knowledge_log
from evergreen.knowledge.store import Store
from evergreen.records import Entry

BATCH, REPEATS = 1000, 20
KILLS_PER_LOG = 40  # then another one is begun
SMALL_SEGMENT_BYTES = 20_000  # so that kills meet the sealing and the replacing of segments
LATEST_KILL_SECONDS = 0.1  # behind the start of the process, or its first acknowledgement


# -- states


def states(num_entries: int) -> dict[str, Any]:
    from evergreen.model.find import NANO, version_digest
    from evergreen.registry import Registry
    from evergreen.registry.knowledge import serve_knowledge

    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        store = Store(home / "knowledge")
        for start in range(0, num_entries, BATCH):
            store.add([Entry(f"entry {number} " + "x" * 120) for number in range(start, start + BATCH)])
        registry = Registry(home, digest=version_digest)
        registry.promote(registry.create(str(NANO)).id, force="the first")
        store.publish()

        def rollback() -> None:
            store.snapshot(1)
            serve_knowledge(registry, "1")

        found: dict[str, Any] = {"entries": num_entries, "publish": milliseconds(store.publish)}
        found["rollback"] = milliseconds(rollback, between=lambda: serve_knowledge(registry, "live"))
        found["live"] = milliseconds(lambda: serve_knowledge(registry, "live"), between=rollback)
        for name, words in (("publish", []), ("rollback", ["1"]), ("live", [])):
            command = [sys.executable, "-m", "evergreen", "knowledge", name, *words, "--home", place]
            found[f"{name} command"] = milliseconds(lambda: subprocess.run(command, check=True, stdout=-3), 3)  # noqa: B023
        found["open"] = milliseconds(lambda: Store(home / "knowledge").refresh(), 3)
        killed_in_an_append(home / "knowledge")
        found["open behind a kill"] = milliseconds(lambda: Store(home / "knowledge").refresh(), 1)
        late = Store(home / "knowledge")
        found["open and write behind a kill"] = milliseconds(lambda: late.add([Entry("the first behind it")]), 1)
        return found


def milliseconds(call: Callable[[], Any], repeats: int = REPEATS, between: Callable[[], Any] = lambda: None) -> Any:
    """Wall time of a call, the middle one and the slowest, and the CPU time of it and its children for the middle one:
    what is left is the disk's, or other work's."""
    walls, cpus = [], []
    for _ in range(repeats):
        between()
        started, worked = time.perf_counter(), cpu_seconds()
        call()
        walls.append(1e3 * (time.perf_counter() - started))
        cpus.append(1e3 * (cpu_seconds() - worked))
    middle = repeats // 2
    return {"p50_ms": sorted(walls)[middle], "max_ms": max(walls), "cpu_p50_ms": sorted(cpus)[middle]}


def cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def killed_in_an_append(folder: Path) -> None:
    """A real kill, and behind what it left a beginning of an append, for one that did not meet any."""
    killed(lambda tell: write_until(folder, time.monotonic() + 60, tell), 1, 0.01)
    store = Store(folder)
    store.refresh()
    change = {"n": store.log.last + 1, "at": store.log.last_at, "op": "add", "id": "torn", "entry": {}}
    with open(store.log._active(), "ab") as file:
        file.write(knowledge_log.encode(change, True)[:-9])


# -- kills


@dataclass
class Truth:
    """What a store has to say when the operations 0, 1, ... are done. Each is decided by its number and by what there
    is, so that writer and judge go the same way."""

    live: dict[str, str] = field(default_factory=dict)
    snapshots: list[dict[str, str]] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=dict)  # of each entry, the beginnings of all its contents
    forgotten: list[str] = field(default_factory=list)  # beginnings that may be in no file any more

    def operation(self, number: int) -> tuple[str, Any]:
        draw = random.Random(number)
        kinds = {"add": 50, "update": 20, "withdraw": 8, "redact": 7, "publish": 10, "compact": 5}
        kind = draw.choices(list(kinds), list(kinds.values()))[0]
        if kind == "add" or len(self.live) < 2 and kind in ("update", "withdraw", "redact"):
            parts, size = draw.choice([(1, 3000), (3, 3000), (3, 3000), (20, 3000), (2, 1_000_000)])  # large ones tear
            return "add", {
                f"e{number}-{part}": f"[{number}.{part}] " + "z" * draw.randrange(size) for part in range(parts)
            }
        ids = draw.sample(sorted(self.live), 2)
        return kind, {ids[0]: f"[{number}.u] " + "u" * 300} if kind == "update" else ids

    def take(self, kind: str, what: Any) -> None:
        if kind in ("add", "update"):
            self.live |= what
            for id, content in what.items():
                self.said.setdefault(id, []).append(content.partition(" ")[0])
        elif kind == "publish":
            self.snapshots.append(dict(self.live))
        elif kind != "compact":
            for id in what:
                del self.live[id]
            if kind == "redact":
                self.forgotten += [mark for id in what for mark in self.said[id]]
                self.snapshots = [{id: text for id, text in one.items() if id not in what} for one in self.snapshots]

    def is_told_by(self, store: Store) -> bool:
        n = store.refresh()
        found = [contents(store, n), *(contents(store, one.n) for one in store.snapshots)]
        return found == [self.live, *self.snapshots]


def contents(store: Store, n: int) -> dict[str, str]:
    return {row.entry.id: row.entry.content for row in store.visible(n)}


def carry_out(store: Store, kind: str, what: Any) -> None:
    if kind == "add":
        store.add([Entry(content, id) for id, content in what.items()])
    elif kind == "update":
        [[id, content]] = what.items()
        store.update(id, content=content)
    elif kind == "publish":
        store.publish()
    elif kind == "compact":
        with store.log.writing():
            store.refresh()
            store.log.merge()
    else:
        getattr(store, kind)(what)


def kills(num_kills: int, seed: int = 0) -> dict[str, Any]:
    """Raises AssertionError for whatever was lost, half-visible, or not forgotten."""
    draw, result, segment_bytes = random.Random(seed), {"kills": 0, "acknowledged": 0, "in_flight": 0, "torn": 0}, 0
    segment_bytes, knowledge_log.SEGMENT_BYTES = knowledge_log.SEGMENT_BYTES, SMALL_SEGMENT_BYTES
    try:
        while result["kills"] < num_kills:
            with tempfile.TemporaryDirectory() as place:
                kill_one_log(Path(place), min(KILLS_PER_LOG, num_kills - result["kills"]), draw, result)
    finally:
        knowledge_log.SEGMENT_BYTES = segment_bytes
    return result


def kill_one_log(folder: Path, num_kills: int, draw: random.Random, result: dict[str, int]) -> None:
    truth, number = Truth(), draw.randrange(10**6)
    for _ in range(num_kills):
        seconds = draw.random() * LATEST_KILL_SECONDS
        acknowledged = killed(partial(write_on, folder, truth, number), draw.choice([0, 1, 1]), seconds)
        for _ in range(acknowledged):
            truth.take(*truth.operation(number))
            number += 1
        check_forgotten(folder, truth)
        torn: list[str] = []
        store = Store(folder, torn.append)
        if not truth.is_told_by(store):
            truth.take(*truth.operation(number))
            number += 1
            result["in_flight"] += 1
            assert truth.is_told_by(store), f"behind operation {number - 1}: something was lost, or is there by half"
        store.publish()
        truth.take("publish", None)
        check_forgotten(folder, truth)
        result["kills"] += 1
        result["acknowledged"] += acknowledged
        result["torn"] += bool(torn)


def check_forgotten(folder: Path, truth: Truth) -> None:
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not [mark for mark in truth.forgotten if mark.encode() in held], "what was redacted is in a file"


def write_on(folder: Path, truth: Truth, number: int, tell: Callable[[], None]) -> None:
    store = Store(folder)
    store.refresh()
    while True:
        kind, what = truth.operation(number)
        carry_out(store, kind, what)
        tell()
        truth.take(kind, what)
        number += 1


def killed(work: Callable[[Callable[[], None]], None], num_first: int, seconds: float) -> int:
    """Have a process work, kill it so long behind its start or (`num_first` 1) its first acknowledgement; how many it
    gave."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(lambda: os.write(theirs, b"."))
        finally:
            os._exit(1)
    os.close(theirs)
    told = len(os.read(ours, 1)) if num_first else 0
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(ours, 65536):
        told += len(more)
    os.close(ours)
    return told


# -- processes


def processes(seconds: float = 3.0) -> dict[str, Any]:
    """Four that read, while one and then two write; what each of them saw. Raises AssertionError for a part of a write,
    or for what was there and is not any more."""
    found = {}
    for num_writers in (1, 2):
        with tempfile.TemporaryDirectory() as place:
            folder, until = Path(place), time.monotonic() + seconds
            readers = [started(lambda: read_until(folder, until)) for _ in range(4)]  # noqa: B023
            writers = [started(lambda: write_until(folder, until)) for _ in range(num_writers)]  # noqa: B023
            written, reads = [ended(one) for one in writers], [ended(one) for one in readers]
            store = Store(folder)
            n = store.refresh()
            assert n == 3 * sum(written) == len(list(store.visible())), "something was lost"
            found[f"{num_writers} writers"] = {"writes_per_second": [one / seconds for one in written],
                                               "reads_per_second": [one / seconds for one in reads]}  # fmt: skip
    return found


def read_until(folder: Path, until: float) -> int:
    store, last, count = Store(folder), 0, 0
    while time.monotonic() < until:
        n = store.refresh()
        size = sum(1 for _ in store.visible(n))
        assert size == n >= last and n % 3 == 0, (size, n, last)
        last, count = n, count + 1
    return count


def write_until(folder: Path, until: float, tell: Callable[[], Any] = lambda: None) -> int:
    store, count = Store(folder), 0
    while time.monotonic() < until:
        store.add([Entry(f"{count} {part} " + "x" * 200) for part in range(3)])
        tell()
        count += 1
    return count


def started(work: Callable[[], int]) -> tuple[int, int]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, str(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    return child, ours


def ended(process: tuple[int, int]) -> int:
    child, pipe = process
    said = os.read(pipe, 64)
    os.close(pipe)
    os.waitpid(child, 0)
    assert said, "a process has failed; what it said stands above"
    return int(said)
