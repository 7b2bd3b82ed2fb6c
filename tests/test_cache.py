"""Cached answers: what is equal, what is kept, and that nothing purged is ever served."""

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from evergreen.knowledge import levels, purges
from evergreen.knowledge.cache import HALF_LIFE_SECONDS, Cache, Key, Value, normal, open_cache
from evergreen.records import BadInput, Failure, Sampling

ANSWER = Value("青石相机的价格是42元。[1]", [{"number": 1, "id": "a"}], {"finish_reason": "stop"}, is_checked=True)


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def source(id: str, version: str = "1.0.0", content: str = "") -> SimpleNamespace:
    return SimpleNamespace(id=id, version=version, title=id, content=content or f"{id} {version}")


def key_of(cache: Cache, question: str = "青石相机多少钱?", *ids: str, **more) -> Key:
    return Key.of(question, epoch=cache.epoch(), sources=[source(id) for id in ids or ("a",)], **more)


def kept(cache: Cache, question: str, *ids: str, seconds: float = 60, **more) -> Key:
    key = key_of(cache, question, *ids, **more)
    assert cache.put(key, ANSWER, ids, seconds)
    return key


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# -- keys


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("青石相机多少钱?", "青石相机多少钱？"),
        ("青石相机多少钱", "　青石相机多少钱 ？"),
        ("How much is Acme Cam?", "how much  is acme cam"),
        ("价格是１２元吗", "价格是12元吗?"),
    ],
)
def test_questions_that_are_spelled_differently_are_one(first, second):
    assert normal(first) == normal(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 5!", "What is 5"),
        ("x² = 4", "x2 = 4"),
        ("How large is the US market?", "How large is the us market?"),
        ("第①项", "第1项"),
        ("print(Name)\nwhat?", "print(name)\nwhat?"),
        ("What does `Is` do?", "What does `is` do?"),
        ("What does A x  B mean;", "What does A x B mean;"),
        ("价格是12元吗", "价格是21元吗"),
        ("?", ""),
    ],
)
def test_questions_that_may_mean_different_things_are_two(first, second):
    assert normal(first) != normal(second)


def test_everything_that_decides_an_answer_is_in_its_key():
    base = {"epoch": 1, "sources": [source("a"), source("b")], "history": [{"role": "user", "content": "hi"}],
            "release": "r1", "prompt": "1", "sampling": Sampling(temperature=0.5, seed=1)}  # fmt: skip
    others = [
        {"sources": [source("b"), source("a")]},
        {"sources": [source("a")]},
        {"sources": [source("a", "1.0.1"), source("b")]},
        {"sources": [source("a", content="the same version of a home that was restored"), source("b")]},
        {"history": []},
        {"release": "r2"},
        {"prompt": "2"},
        {"sampling": Sampling(temperature=0.5, seed=2)},
        {"sampling": Sampling(temperature=0.5, seed=1, max_new_tokens=5)},
        {"sampling": Sampling()},
    ]
    digests = [Key.of("q", **base).digest, Key.of("p", **base).digest]
    digests += [Key.of("q", **(base | other)).digest for other in others]
    assert len(set(digests)) == len(digests)
    assert Key.of("q ?", **(base | {"epoch": 9, "n": 5, "request": object()})).digest == digests[0]


def test_a_greedy_answer_is_the_same_whatever_the_draw():
    greedy = [Sampling(temperature=0, seed=seed, top_p=top_p) for seed, top_p in ((None, 1.0), (7, 0.3))]
    assert len({Key.of("q", epoch=1, sampling=sampling).digest for sampling in greedy}) == 1


# -- what is kept, and how long


def test_an_answer_comes_back_whole_in_every_process_and_after_a_restart(tmp_path):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    key = key_of(cache)
    assert cache.get(key) is None and other.get(key) is None
    assert cache.put(key, ANSWER, ["b"], 60)
    for found in (cache.get(key), other.get(key), other.get(key), Cache(tmp_path).get(key)):
        assert (found.text, list(found.citations), found.more) == (ANSWER.text, ANSWER.citations, ANSWER.more)
        assert set(found.ids) == {"a", "b"}
    assert other.get(key_of(other, "青石相机多少钱 ？")).text == ANSWER.text


@pytest.mark.parametrize(
    ("value", "sampling", "seconds"),
    [
        (replace(ANSWER, is_checked=False), Sampling(), 60),
        (ANSWER, Sampling(temperature=0.7), 60),
        (ANSWER, Sampling(logprobs=2), 60),
        (ANSWER, Sampling(), 0),
        (replace(ANSWER, text="x" * (1 << 20)), Sampling(), 60),
    ],
)
def test_what_was_not_checked_or_cannot_be_repeated_is_not_kept(tmp_path, value, sampling, seconds):
    cache = Cache(tmp_path)
    key = key_of(cache, sampling=sampling)
    assert not cache.put(key, value, ["a"], seconds)
    assert cache.get(key) is None and Cache(tmp_path).get(key) is None


def test_a_hit_prolongs_nothing(tmp_path):
    clock = Clock()
    cache, other = Cache(tmp_path, clock=clock), Cache(tmp_path, clock=clock)
    key = kept(cache, "q", "a", seconds=60)
    for _ in range(59):
        clock.now += 1
        assert cache.get(key) and other.get(key)
    clock.now += 1
    assert cache.get(key) is None and other.get(key) is None and Cache(tmp_path, clock=clock).get(key) is None


def test_memory_keeps_what_was_used_last_up_to_its_limit():
    memory = levels.Memory(10_000)
    for number in range(100):
        memory.put(replace(ANSWER, key=f"k{number}", ids=["a", f"e{number}"]))
        assert memory.num_bytes <= 10_000 and memory.get("k0")
    assert memory.get("k99") and not memory.get("k50")
    memory.drop(["e99"])
    assert not memory.get("k99") and memory.get("k0")
    memory.drop(["a"])
    assert memory.num_bytes == 0 and not memory._of


def test_the_file_keeps_its_limit_and_the_newest_values(tmp_path, monkeypatch):
    monkeypatch.setattr("evergreen.knowledge.cache.LINES_BYTES", 20_000)
    cache, other = Cache(tmp_path), Cache(tmp_path)
    keys = []
    for number in range(200):
        keys.append(kept(cache, f"q{number}", "a"))
        assert cache.lines.path.stat().st_size <= 20_000
        assert other.lines.get(keys[-1].digest)
    fresh = Cache(tmp_path)
    assert all(fresh.get(key) for key in keys[-10:]) and not fresh.get(keys[0])


def test_a_file_that_is_mostly_expired_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "WASTE_BYTES", 2_000)
    clock = Clock()
    cache = Cache(tmp_path, clock=clock)
    for number in range(50):
        kept(cache, f"q{number}", "a", seconds=60)
    size = cache.lines.path.stat().st_size
    clock.now += 100
    stray = tmp_path / ".answers.jsonl.killed"
    stray.write_text("half")
    key = kept(cache, "last", "a")
    assert cache.lines.path.stat().st_size < size / 10 and not stray.exists()
    assert Cache(tmp_path, clock=clock).get(key)


def test_what_a_killed_writer_left_harms_no_other_value(tmp_path):
    cache = Cache(tmp_path)
    keys = [kept(cache, "first", "a")]
    with open(cache.lines.path, "ab") as file:
        file.write(levels.encode(replace(ANSWER, key=keys[0].digest))[:-20])
    keys.append(kept(Cache(tmp_path), "second", "a"))
    for reader in (cache, Cache(tmp_path)):
        assert all(reader.get(key) for key in keys)


def test_a_damaged_value_is_a_miss(tmp_path):
    cache = Cache(tmp_path)
    key = kept(cache, "first", "a")
    path = cache.lines.path
    path.write_bytes(path.read_bytes().replace(b"42", b"43"))
    assert Cache(tmp_path).get(key) is None


def test_a_disk_that_takes_nothing_costs_no_answer_and_is_said_once(tmp_path, monkeypatch):
    said = []
    cache = Cache(tmp_path, said.append)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.epoch()
    monkeypatch.setattr(os, "pwrite", full)
    keys = [kept(cache, question, "a") for question in ("first", "second")]
    assert all(cache.get(key) for key in keys) and Cache(tmp_path).get(keys[0]) is None
    assert len(said) == 1 and "No space left" in said[0]


def test_a_folder_that_cannot_be_had_costs_no_answer_and_is_said_once(tmp_path):
    said = []
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = Cache(tmp_path / "cache", said.append)
    for _ in range(2):
        key = key_of(cache)
        assert cache.get(key) is None and not cache.put(key, ANSWER, ["a"], 60) and cache.get(key) is None
    cache.purge(["a"])
    assert len(said) == 1 and "cannot be cached" in said[0], said


def test_purges_that_cannot_be_read_serve_nothing(tmp_path, monkeypatch):
    said = []
    cache = Cache(tmp_path, said.append)
    key = kept(cache, "q", "a")
    Cache(tmp_path).purge(["b"])

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert cache.get(key) is None and not cache.put(key_of(cache, "p"), ANSWER, ["a"], 60)
    monkeypatch.undo()
    assert cache.get(key) and all("Input/output error" in line for line in said)


def test_a_cache_that_is_off_keeps_nothing_and_still_purges(tmp_path, monkeypatch):
    cache = open_cache(tmp_path)
    key = kept(cache, "q", "a")
    monkeypatch.setenv("EVERGREEN_CACHE", "off")
    off = open_cache(tmp_path)
    assert off.get(key) is None and not off.put(key_of(off, "p"), ANSWER, ["a"], 60)
    off.purge(["a"])
    assert cache.get(key) is None


# -- purges


def test_a_purge_is_complete_in_every_level_and_process(tmp_path):
    cache, other, command = Cache(tmp_path), Cache(tmp_path), Cache(tmp_path)
    gone = [kept(cache, f"SECRET {number}", "a", f"e{number}") for number in range(20)]
    gone.append(kept(other, "another SECRET", "b", "a"))
    stays = kept(cache, "kept", "b")
    assert all(one.get(key) for one in (cache, other) for key in [*gone, stays])
    command.purge(["a"])
    for reader in (cache, other, Cache(tmp_path)):
        assert not any(reader.get(key) for key in gone) and reader.get(stays)
    assert b"SECRET" not in bytes_in(tmp_path) and cache.near.get(gone[0].digest) is None


def test_an_older_answer_of_the_same_question_leaves_the_disk_too(tmp_path):
    clock = Clock()
    cache = Cache(tmp_path, clock=clock)
    kept(cache, "q", "a")
    clock.now += 100
    cache.put(key_of(cache, "q", "a"), replace(ANSWER, text="another one"), ["a"], 60)
    Cache(tmp_path, clock=clock).purge(["a"])
    assert "青石".encode() not in bytes_in(tmp_path)


def test_an_answer_that_was_begun_before_a_purge_is_not_kept_after_it(tmp_path):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    late, unrelated = key_of(cache, "q", "a"), key_of(cache, "p", "b")
    other.purge(["a"])
    assert not cache.put(late, ANSWER, ["a"], 60) and cache.put(unrelated, ANSWER, ["b"], 60)
    assert not cache.put(key_of(cache, "p", "b"), ANSWER, ["b", "c"], 0)
    assert kept(cache, "q", "a") == late or cache.get(key_of(cache, "q", "a"))


def test_a_late_copy_in_any_level_is_not_served(tmp_path):
    cache = Cache(tmp_path)
    key = kept(cache, "q", "a")
    value = cache.get(key)
    cache.purge(["a"])
    cache.near.put(value)
    cache.lines.put(value)
    assert cache.get(key) is None and Cache(tmp_path).get(key) is None


def test_an_entry_cited_but_not_in_the_prompt_purges_as_well(tmp_path):
    cache = Cache(tmp_path)
    key = key_of(cache, "q", "a")
    cache.put(key, ANSWER, ["from the turn before"], 60)
    cache.purge(["from the turn before"])
    assert cache.get(key) is None


def test_a_home_where_nobody_cached_stays_without_a_cache(tmp_path):
    Cache(tmp_path / "cache").purge(["a"])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "line", ["{}", "[1]", '{"cache": 5, "floor": "a"}', '{"epoch": "b", "ids": 3}', '{"ids": [1]}']
)
def test_an_odd_line_among_the_purges_voids_what_was_before(tmp_path, line):
    cache = Cache(tmp_path)
    key = kept(cache, "q", "a")
    with open(tmp_path / "purges.jsonl", "a") as file:
        file.write(line + "\n")
    assert cache.get(key) is None and Cache(tmp_path).get(key) is None
    key = kept(cache, "q", "a")
    assert Cache(tmp_path).get(key)
    Cache(tmp_path).purge(["a"])
    assert cache.get(key) is None


@pytest.mark.parametrize("harm", ["removed", "damaged", "torn"])
def test_after_harm_to_the_purges_nothing_from_before_is_served(tmp_path, harm):
    cache = Cache(tmp_path)
    keys = [kept(cache, "q", "a")]
    late = key_of(cache, "late", "b")
    cache.purge(["b"])
    path = tmp_path / "purges.jsonl"
    if harm == "removed":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"b"', b"#b#") if harm == "damaged" else data + b'{"epoch": 1')
    for one in (cache, Cache(tmp_path)):
        if harm == "removed" or (harm == "damaged" and one is not cache):  # who has read the line needs it no more
            assert one.get(keys[0]) is None
        assert not one.put(late, ANSWER, ["b"], 60)
        key = kept(one, "afterwards", "c")
        assert cache.get(key) and Cache(tmp_path).get(key)
    Cache(tmp_path).purge(["c"])
    assert cache.get(key) is None and Cache(tmp_path).get(key) is None


def test_purges_beyond_the_limit_begin_the_file_anew_and_void_what_was_before(tmp_path, monkeypatch):
    monkeypatch.setattr(purges, "MAX_BYTES", 2_000)
    cache, other = Cache(tmp_path), Cache(tmp_path)
    for number in range(100):
        key = kept(cache, f"q{number}", "a")
        assert other.get(key)
        other.purge(["a", "x" * 30])
        assert cache.get(key) is None and other.get(key) is None
        assert other.purges.path.stat().st_size < 2_100
    assert Cache(tmp_path).epoch() == cache.epoch() == other.epoch()


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_purge_that_the_disk_has_no_room_for_forgets_everything_in_every_process(tmp_path, monkeypatch):
    said: list[str] = []
    cache, other = Cache(tmp_path, said.append), Cache(tmp_path)
    keys = [kept(cache, "q", "a"), kept(cache, "p", "b")]
    assert all(other.get(key) for key in keys)
    late = key_of(other, "late")
    monkeypatch.setattr(purges, "append", full)
    cache.purge(["a"])
    assert not any(one.get(key) for one in (cache, other, Cache(tmp_path)) for key in keys)
    assert "青石".encode() not in bytes_in(tmp_path) and len(said) == 1 and "No space left" in said[0]
    monkeypatch.undo()
    assert not other.put(late, ANSWER, ["a"], 60) and other.get(late) is None
    assert Cache(tmp_path).get(kept(cache, "q", "a"))


def test_a_purge_that_the_disk_cannot_take_is_an_error_and_can_be_repeated(tmp_path, monkeypatch):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    key = kept(cache, "q", "a")
    monkeypatch.setattr(purges, "append", full)
    monkeypatch.setattr(purges.Purges, "void", full)
    with pytest.raises(Failure, match="purging the cache failed: No space left"):
        cache.purge(["a"])
    monkeypatch.undo()
    cache.purge(["a"])
    assert cache.get(key) is None and other.get(key) is None


def test_clear_forgets_everything(tmp_path):
    cache, other = Cache(tmp_path), Cache(tmp_path)
    keys = [kept(cache, "q", "a"), kept(other, "p", "b")]
    cache.clear()
    assert not any(one.get(key) for one in (cache, other, Cache(tmp_path)) for key in keys)
    assert "青石".encode() not in bytes_in(tmp_path)
    assert other.get(kept(cache, "q", "a"))


# -- concurrent traffic

TRAFFIC = """
import json, random, sys, time
from dataclasses import replace
from pathlib import Path
from evergreen.knowledge.cache import Cache, Key, Value

folder, url, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rng, cache = random.Random(seed), Cache(folder / "cache", print, url)

def states():  # entry -> [its version, the version whose purge has returned]
    while True:
        try:
            return json.loads((folder / "states.json").read_text())
        except json.JSONDecodeError:
            pass

hits = wrong = 0
print("ready", flush=True)
while not (folder / "stop").exists():
    ids = rng.sample(sorted(states()), 2)
    key = Key.of(" ".join(sorted(ids)), epoch=cache.epoch())  # no versions: the purge alone must do it
    made_from = states()
    time.sleep(rng.random() * 0.01)  # it is searched
    before = states()
    value = cache.get(key)
    if value:
        hits += 1
        wrong += any(value.more[id] < before[id][1] for id in ids)
        continue
    time.sleep(rng.random() * 0.003)  # the answer is being made
    cache.put(key, Value("x", more={id: made_from[id][0] for id in ids}, is_checked=True), ids, 60)
print(json.dumps({"hits": hits, "wrong": wrong}), flush=True)
"""


def write_states(folder: Path, states: dict) -> None:
    (folder / "states.new").write_bytes(orjson.dumps(states))
    os.replace(folder / "states.new", folder / "states.json")


def traffic(folder: Path, url: str = "", seconds: float = 3.0, disturb=lambda number: None) -> int:
    """Three processes ask while this one updates entries and purges; the hits. No value may be older than its entries'
    last purge that had returned when it was asked for."""
    states = {f"e{number}": [0, 0] for number in range(4)}
    write_states(folder, states)
    command = [sys.executable, "-c", TRAFFIC, str(folder), url]
    readers = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(3)]
    assert all(reader.stdout.readline() == "ready\n" for reader in readers)
    cache, number, until = Cache(folder / "cache", url=url), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        id = f"e{number % 4}"
        states[id][0] += 1
        write_states(folder, states)  # the store's write ...
        cache.purge([id])
        states[id][1] = states[id][0]  # ... is in every answer from here on
        write_states(folder, states)
        disturb(number)
        number += 1
        time.sleep(0.01)
    (folder / "stop").touch()
    ends = [orjson.loads(reader.communicate(timeout=60)[0].splitlines()[-1]) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers) and sum(end["wrong"] for end in ends) == 0, ends
    return sum(end["hits"] for end in ends)


def test_under_traffic_no_process_serves_what_was_purged(tmp_path):
    assert traffic(tmp_path) > 20


WRITER = """
import sys
from pathlib import Path
from evergreen.knowledge import levels, purges
from evergreen.knowledge.cache import Cache, Key, Value

levels.WASTE_BYTES, levels.WASTE_SECONDS, purges.MAX_BYTES = 3000, 0, 2000  # files often begin anew
cache, number = Cache(Path(sys.argv[1])), int(sys.argv[2])
while True:
    number += 1
    for question in ("p", "q"):
        key = Key.of(question, epoch=cache.epoch())
        assert cache.put(key, Value("x" * 200, more={"number": number}, is_checked=True), ["a"], 60)
    cache.purge(["a"])
    print(number, flush=True)
"""


def test_after_kills_at_any_moment_every_purge_that_returned_holds(tmp_path):
    rng, number = random.Random(1), 0
    for _ in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(number)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        acknowledged = writer.stdout.readline()
        time.sleep(rng.random() * 0.2)
        writer.kill()
        number = int((acknowledged + writer.communicate()[0]).split()[-1])
        for cache in (Cache(tmp_path), Cache(tmp_path)):
            found = [cache.get(Key.of(question, epoch=cache.epoch())) for question in ("p", "q")]
            assert all(value.more["number"] > number for value in found if value)
            assert cache.get(kept(cache, "another", "b"))


# -- Redis


class RedisServer:
    """A redis-server that can be killed and started again with what it had on its disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.process = f"redis://127.0.0.1:{self.port}/0", None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--dir", str(self.folder), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "yes", "--appendfsync", "always"], stdout=subprocess.DEVNULL)  # fmt: skip
        for _ in range(500):
            try:
                if self.client().ping():
                    return
            except OSError:
                pass
            except Exception as error:  # it is loading what it had
                assert type(error).__module__.startswith("redis"), error
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def client(self):
        import redis

        return redis.Redis(port=self.port)

    def texts(self) -> list[bytes]:
        """All values that it holds."""
        client = self.client()
        return [client.get(name) for name in client.scan_iter("evergreen:*:v:*")]


@pytest.fixture
def redis_server(tmp_path):
    pytest.importorskip("redis", reason="no redis client: pip install redis")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server: apt-get install redis-server")
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def impatient(monkeypatch):
    """Redis is tried again after a moment."""
    monkeypatch.setattr(levels, "PAUSE_SECONDS", (0.02, 0.05))


def until_back(cache: Cache, said: list[str]) -> None:
    for _ in range(500):
        cache.get(key_of(cache, "is it back", "nothing"))
        if said[-1].startswith("Redis is back"):
            return
        time.sleep(0.02)
    raise AssertionError(said)


def test_servers_share_values_through_redis(tmp_path, redis_server):
    cache, other = (Cache(tmp_path / "home", url=redis_server.url) for _ in range(2))
    key = kept(cache, "q", "a", "b")
    other.lines.get = lambda _: None  # the file aside
    assert other.get(key).text == ANSWER.text and other.get(key).more == ANSWER.more
    assert other.near.memory.num_bytes == 0


def test_homes_on_one_redis_know_nothing_of_each_other(tmp_path, redis_server):
    first, second = (Cache(tmp_path / name, url=redis_server.url) for name in ("first", "second"))
    key = kept(first, "q", "a")
    assert second.get(replace(key, epoch=second.epoch())) is None
    second.purge(["a"])
    second.clear()
    assert first.get(key) and len(redis_server.texts()) == 1


def test_redis_forgets_a_value_by_itself_and_a_purged_one_at_once(tmp_path, redis_server):
    cache, command = Cache(tmp_path / "home", url=redis_server.url), Cache(tmp_path / "home", url=redis_server.url)
    keys = [kept(cache, f"q{number}", "a", f"e{number}") for number in range(5)]
    client = redis_server.client()
    assert all(0 < client.pttl(name) <= 60_000 for name in client.scan_iter("evergreen:*:v:*"))
    command.purge(["e1"])
    assert len(redis_server.texts()) == 4
    command.purge(["a"])
    assert redis_server.texts() == [] and not any(cache.get(key) for key in keys)


def test_a_purge_from_a_process_without_redis_leaves_it_at_the_next_question(tmp_path, redis_server):
    cache = Cache(tmp_path / "home", url=redis_server.url)
    key = kept(cache, "q", "a")
    Cache(tmp_path / "home").purge(["a"])
    assert cache.get(key) is None and redis_server.texts() == []


def test_a_redis_that_was_never_there_costs_one_warning(tmp_path, redis_server, impatient):
    redis_server.kill()
    said = []
    cache = Cache(tmp_path / "home", said.append, redis_server.url)
    keys = [kept(cache, f"q{number}", "a") for number in range(5)]
    assert all(cache.get(key) for key in keys) and cache.near.memory.num_bytes
    assert len(said) == 1 and said[0].startswith("Redis is away, cached answers are kept in this process"), said
    redis_server.start()
    until_back(cache, said)
    kept(cache, "afterwards", "a")
    assert len(redis_server.texts()) == 1 and len(said) == 2, said


@pytest.mark.parametrize("harm", ["kill", "hang"])
def test_a_redis_that_dies_in_the_middle_fails_no_request_and_comes_back(tmp_path, redis_server, impatient, harm):
    said = []
    cache = Cache(tmp_path / "home", said.append, redis_server.url)
    before = kept(cache, "before", "a")
    if harm == "kill":
        redis_server.kill()
    else:
        redis_server.process.send_signal(signal.SIGSTOP)
    assert cache.get(before).text == ANSWER.text  # by the file
    during = kept(cache, "during", "a")
    cache.lines.get = lambda _: None
    assert cache.get(during).text == ANSWER.text  # by the memory
    assert len(said) == 1, said
    if harm == "kill":
        redis_server.start()
    else:
        redis_server.process.send_signal(signal.SIGCONT)
    until_back(cache, said)
    assert cache.get(before).text == ANSWER.text and kept(cache, "afterwards", "a") and len(said) == 2


@pytest.mark.parametrize("who", ["the same process", "a new process"])
def test_a_purge_while_redis_is_away_holds_when_it_is_back(tmp_path, redis_server, impatient, who):
    said = []
    cache, command = (Cache(tmp_path / "home", said.append, redis_server.url) for _ in range(2))
    gone, stays = kept(cache, "gone", "a"), kept(cache, "stays", "b")
    redis_server.kill()
    command.purge(["a"])
    assert cache.get(gone) is None and cache.epoch()
    redis_server.start()
    assert len(redis_server.texts()) == 2  # its disk had them
    if who == "a new process":
        cache = Cache(tmp_path / "home", said.append, redis_server.url)
        assert cache.get(gone) is None
    else:
        until_back(cache, said)
    assert cache.get(gone) is None and cache.get(stays)
    assert len(redis_server.texts()) == 1


def test_redis_is_emptied_when_it_missed_more_purges_than_are_known(tmp_path, redis_server, impatient, monkeypatch):
    monkeypatch.setattr(purges, "MAX_BYTES", 300)
    said = []
    cache = Cache(tmp_path / "home", said.append, redis_server.url)
    kept(cache, "q", "a")
    redis_server.kill()
    for id in ["a"] + 20 * ["something else"]:
        Cache(tmp_path / "home").purge([id])
    cache.get(key_of(cache, "p", "c"))
    redis_server.start()
    until_back(cache, said)
    assert redis_server.texts() == []


def test_a_value_that_arrives_behind_its_purge_leaves_redis_again(tmp_path, redis_server, monkeypatch):
    cache, command = (Cache(tmp_path / "home", url=redis_server.url) for _ in range(2))
    key, put = key_of(cache, "q", "a"), cache.near.put

    def overtaken(value: Value) -> None:
        command.purge(["a"])
        put(value)

    monkeypatch.setattr(cache.near, "put", overtaken)
    assert not cache.put(key, ANSWER, ["a"], 60) and redis_server.texts() == []


def test_a_redis_that_takes_nothing_more_is_as_one_that_is_away(tmp_path, redis_server):
    said = []
    cache = Cache(tmp_path / "home", said.append, redis_server.url)
    kept(cache, "q", "a")
    redis_server.client().config_set("maxmemory", "1")
    key = kept(cache, "p", "a")
    assert cache.get(key) and len(said) == 1 and "maxmemory" in said[0]


def test_under_traffic_nothing_purged_comes_out_of_redis_even_when_it_dies(tmp_path, redis_server):
    def disturb(number: int) -> None:
        if number % 60 == 20:
            redis_server.kill()
        if number % 60 == 30:
            redis_server.start()
        if number % 60 == 50:
            redis_server.process.send_signal(signal.SIGSTOP)
        if number % 60 == 51:
            redis_server.process.send_signal(signal.SIGCONT)

    assert traffic(tmp_path, redis_server.url, 5.0, disturb) > 20


@pytest.mark.parametrize("url", ["http://localhost:6379", "redis://localhost:port/0", "localhost:6379"])
def test_a_url_that_is_none_of_redis_is_one_line(tmp_path, monkeypatch, url):
    monkeypatch.setenv("EVERGREEN_CACHE", url)
    with pytest.raises(BadInput, match="EVERGREEN_CACHE wants redis://host:6379/0"):
        open_cache(tmp_path)


def test_without_a_client_redis_is_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERGREEN_CACHE", "redis://localhost:6379/0")
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(BadInput, match="pip install"):
        open_cache(tmp_path)


# -- hot questions


def test_what_is_asked_often_is_due_before_it_expires(tmp_path):
    clock = Clock()
    cache = Cache(tmp_path, clock=clock)
    often, seldom = kept(cache, "often", "a", seconds=600), kept(cache, "seldom", "a", seconds=600)
    for _ in range(5):
        cache.get(often)
    cache.get(seldom)
    assert cache.due() == []
    clock.now += 545
    assert cache.due() == [often]
    assert cache.get(often) and cache.get(often, ahead=True) is None
    cache.put(often, ANSWER, ["a"], 600)
    assert cache.due() == [] and cache.get(often, ahead=True)


def test_what_is_asked_often_is_due_after_a_purge_and_after_a_change(tmp_path):
    cache = Cache(tmp_path)
    key = kept(cache, "often", "a", n=7, request={"model": "m"})
    for _ in range(5):
        cache.get(key)
    assert cache.due(n=7) == []
    assert [found.request for found in cache.due(n=8)] == [{"model": "m"}]
    cache.get(key_of(cache, "often", "a", n=8), ahead=True)  # the same entries: nothing to make
    assert cache.due(n=8) == []
    cache.purge(["a"])
    assert [found.n for found in cache.due(n=8)] == [8]


def test_what_was_answered_ahead_in_vain_is_not_due_until_something_changes(tmp_path):
    clock = Clock()
    cache = Cache(tmp_path, clock=clock)
    key = key_of(cache, "often", "a", n=3)  # of a release that is pinned: it will not see change 8
    for _ in range(5):
        cache.get(key)
    assert cache.due(n=8) == [key]
    assert cache.get(key, ahead=True) is None  # and what is said is not kept: it failed its check
    assert cache.due(n=8) == [] and cache.due(n=9) == [key]
    cache.put(key, ANSWER, ["a"], 600)
    assert cache.due(n=9) == [key] and cache.get(key, ahead=True) and cache.due(n=9) == []
    clock.now += 550
    assert cache.due(n=9) == [key]
    cache.get(key, ahead=True)
    assert cache.due(n=9) == []
    clock.now += 100
    assert cache.due(n=9) == [key]


def test_answering_ahead_keeps_no_question_hot(tmp_path):
    clock = Clock()
    cache = Cache(tmp_path, clock=clock)
    key = kept(cache, "often", "a", seconds=60)
    for _ in range(8):
        cache.get(key)
    for _ in range(3):
        clock.now += HALF_LIFE_SECONDS
        assert len(cache.due()) == (1 if clock.now < 1_000_000 + 2 * HALF_LIFE_SECONDS else 0)
        cache.get(key, ahead=True)


def test_the_questions_that_are_counted_have_a_limit(tmp_path):
    cache = Cache(tmp_path)
    hot = key_of(cache, "hot")
    for number in range(3000):
        cache.heat.saw(replace(hot, ask=f"{number}"), 0.0, True)
        cache.heat.saw(hot, 0.0, True)
    assert len(cache.heat._asked) < 2500 and cache.heat.hot(0.0)[0][0] == hot


def test_a_command_that_purges_loads_nothing_heavy(tmp_path):
    code = "import sys, pathlib; from evergreen.knowledge.cache import open_cache; " \
           "open_cache(pathlib.Path(sys.argv[1])).purge(['a']); " \
           "print([name for name in ('redis', 'numpy', 'jieba', 'torch') if name in sys.modules])"  # fmt: skip
    kept(open_cache(tmp_path), "q", "a")
    assert subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True) == "[]\n"
    assert "青石".encode() not in bytes_in(tmp_path)


# -- questions that mean the same


def all_near(texts: list[str]):
    """An embedder to which all texts are one: only what must be equal besides keeps them apart."""
    import numpy as np

    return np.ones((len(texts), 1), np.float32)


def alike_cache(folder: Path, embed=all_near) -> Cache:
    cache = Cache(folder)
    cache.find_alike(embed)
    return cache


SOURCES = [source("a", content="Acme Cam costs 42 dollars."), source("b", content="Orion Cam costs 58 dollars.")]


def ask(cache: Cache, question: str, **more) -> Key:
    return Key.of(question, **({"epoch": cache.epoch(), "sources": SOURCES} | more))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What does the Acme Cam cost?", "What is the cost of the Acme Cam?"),
        ("Which city is Acme Cam made in?", "In what city is Acme Cam made?"),
        ("青石相机的价格是42元吗", "青石相机价格是42元吗"),
    ],
)
def test_another_wording_is_found_when_it_is_asked_for(tmp_path, first, second):
    cache = Cache(tmp_path)
    cache.put(ask(cache, first), ANSWER, ["a"], 60)
    assert cache.get(ask(cache, second)) is None
    for later in (alike_cache(tmp_path), alike_cache(tmp_path)):
        assert later.get(ask(later, second)).text == ANSWER.text
    later.purge(["a"])
    assert later.get(ask(later, second)) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What does the Acme Cam 2 cost?", "What does the Acme Cam 3 cost?"),
        ("What did Acme Cam cost in May 2026?", "What did Acme Cam cost in June 2026?"),
        ("What does Acme Cam cost?", "What does Orion Cam cost?"),
        ("what does acme cam cost", "what does orion cam cost"),
        ("what does zorb cost", "what does quux cost"),
        ("Does Acme Cam support video?", "Does Acme Cam not support video?"),
        ("Who founded Acme?", "When was Acme founded?"),
        ("Did Acme buy Orion?", "Did Orion buy Acme?"),
        ("did the cat chase the dog", "did the dog chase the cat"),
        ("What is the highest price of Acme Cam?", "What is the lowest price of Acme Cam?"),
        ("What was the price of Acme Cam last year?", "What is the price of Acme Cam this year?"),
        ("青石相机多少钱", "云岭相机多少钱"),
        ("青石相机是什么形状", "青石相机是什么颜色"),
        ("青石相机支持录像吗", "青石相机不支持录像吗"),
        ("甲公司收购了乙公司吗", "乙公司收购了甲公司吗"),
        ("What is 5 + 3?", "What is 5 - 3?"),
        ("Is price < cost here?", "Is price > cost here?"),
        ("青石相机2024年的价格是多少", "青石相机2025年的价格是多少"),
        ("青石相机最高价格是多少", "青石相机最低价格是多少"),
        ("What is the price of 'Blue'?", "How is Blue made?"),
    ],
)
def test_what_turns_an_answer_around_is_never_another_wording(tmp_path, first, second):
    cache = alike_cache(tmp_path)
    cache.put(ask(cache, first), ANSWER, ["a"], 60)
    assert cache.get(ask(cache, second)) is None and cache.get(ask(cache, first))


def test_another_wording_over_other_sources_or_of_another_release_is_another_question(tmp_path):
    cache = alike_cache(tmp_path)
    first, second = "What does the Acme Cam cost?", "What is the cost of the Acme Cam?"
    cache.put(ask(cache, first), ANSWER, ["a"], 60)
    others = ({"sources": SOURCES[:1]}, {"release": "r2"}, {"history": [{"role": "user", "content": "hi"}]})
    assert not any(cache.get(ask(cache, second, **other)) for other in others) and cache.get(ask(cache, second))


def test_an_embedder_that_fails_costs_the_other_wording_and_is_said_once(tmp_path):
    said = []
    cache = alike_cache(tmp_path, lambda texts: (_ for _ in ()).throw(OSError("connection refused")))
    cache.say = said.append
    cache.put(ask(cache, "What does the Acme Cam cost?"), ANSWER, ["a"], 60)
    for _ in range(3):
        assert cache.get(ask(cache, "What is the cost of the Acme Cam?")) is None
    assert len(said) == 1 and "connection refused" in said[0]
