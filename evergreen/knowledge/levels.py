"""Where cached values lie: in this process, in Redis, in a JSONL file of the home.

Each level answers `get(key)`, `put(value)` and `drop(ids)`, the last by a reverse index from entries to values. None of
them is asked whether a value is still good: the cache does that, by what was purged. A level that fails is a miss.
"""

import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from evergreen.home import write_atomic
from evergreen.knowledge.purges import Purges
from evergreen.records import BadInput

KEPT_SECONDS = 7 * 24 * 3600  # the longest that Redis keeps a value, and its reverse index after the last one
REDIS_SECONDS = 0.2  # for a connection, and for an answer
PAUSE_SECONDS = (1.0, 30.0)  # between attempts to reach a Redis that is away, first and longest
WASTE_BYTES, WASTE_SECONDS = 64 << 10, 60.0  # from what size on, and how often, a file is looked at for waste
AWAY = object()
Clock = Callable[[], float]  # seconds since 1970


@dataclass(frozen=True)
class Value:
    """An answer as it was given: its text, its citations (JSON objects) and what else its response needs (`more`).
    `is_checked`: it passed the citation check, or stands on no entry. The rest is filled in by `Cache.put`."""

    text: str
    citations: Sequence[dict] = ()
    more: dict[str, Any] = field(default_factory=dict)
    is_checked: bool = False
    key: str = ""
    question: str = ""
    rest: str = ""  # the key without the question
    ids: Sequence[str] = ()  # the entries that it cites or was made from
    epoch: int = 0
    made: float = 0.0  # seconds since 1970, as is `expires`
    expires: float = 0.0


def encode(value: Value) -> bytes:
    """One line without its end, the checksum of the rest first."""
    data = orjson.dumps(asdict(value))
    return b"%08x %b" % (zlib.crc32(data), data)


def decode(line: bytes) -> Value | None:
    """None for what is not a whole value: cut off, overwritten, of another format."""
    if line[:8] != b"%08x" % zlib.crc32(line[9:]):
        return None
    try:
        return Value(**orjson.loads(line[9:]))
    except (orjson.JSONDecodeError, TypeError):
        return None


class Memory:
    """The values used last, up to a number of bytes."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._of: dict[str, set[str]] = {}  # entry -> keys
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, value: Value) -> None:
        size = len(encode(value)) + 500  # what the objects take beside their text, roughly
        with self._lock:
            self._remove(value.key)
            self._values[value.key] = value, size
            self.num_bytes += size
            for id in value.ids:
                self._of.setdefault(id, set()).add(value.key)
            while self.num_bytes > self.max_bytes:
                self._remove(next(iter(self._values)))

    def drop(self, ids: Iterable[str]) -> None:
        with self._lock:
            for key in {key for id in ids for key in self._of.get(id, ())}:
                self._remove(key)

    def remove(self, key: str) -> None:
        with self._lock:
            self._remove(key)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._of.clear()
            self.num_bytes = 0

    def _remove(self, key: str) -> None:
        value, size = self._values.pop(key, (None, 0))
        self.num_bytes -= size
        for id in value.ids if value else ():
            self._of[id].discard(key)
            if not self._of[id]:
                del self._of[id]


class Redis:
    """Values that several servers share; while Redis is away, those of this process.

        evergreen:CACHE:v:KEY   a value, with its expiry
        evergreen:CACHE:e:ID    the keys of the values that stand on an entry
        evergreen:CACHE:swept   the epoch of the last purge that was carried out here

    A purge that Redis missed is made up for, by the first process that reaches it again."""

    def __init__(self, url: str, memory: Memory, purges: Purges, say: Callable[[str], None], clock: Clock = time.time):
        self.memory, self.purges, self.clock, self._say = memory, purges, clock, say
        self._client, self._errors = _client(url), _errors()
        self._is_away, self._was_told, self._try_at, self._pause = True, False, 0.0, PAUSE_SECONDS[0]
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        found = self._ask(lambda redis: redis.get(self._name("v", key)))
        if found is AWAY:
            return self.memory.get(key)
        return decode(found) if found else None

    def put(self, value: Value) -> None:
        milliseconds = int(1000 * min(value.expires - self.clock(), KEPT_SECONDS))
        if milliseconds <= 0:
            return

        def write(redis: Any) -> None:
            with redis.pipeline(transaction=True) as pipe:
                pipe.set(self._name("v", value.key), encode(value), px=milliseconds)
                for id in value.ids:
                    pipe.sadd(self._name("e", id), value.key)
                    pipe.expire(self._name("e", id), KEPT_SECONDS)
                pipe.execute()

        if self._ask(write) is AWAY:
            self.memory.put(value)

    def drop(self, ids: Iterable[str]) -> None:
        """Remove these entries' values."""
        ids, epoch = list(ids), self.purges.epoch
        self.memory.drop(ids)
        self._ask(lambda redis: self._remove(redis, ids, epoch))

    def remove(self, key: str) -> None:
        self.memory.remove(key)
        self._ask(lambda redis: redis.unlink(self._name("v", key)))

    def clear(self) -> None:
        self.memory.clear()
        self._ask(lambda redis: self._remove(redis, None, self.purges.epoch))

    # -- reaching it

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        """What Redis answers, AWAY when it does not; then it is left alone for a while."""
        if not self.purges.id or (self._is_away and not self._can_try()):
            return AWAY
        try:
            if self._is_away:
                self._come_back()
            return call(self._client)
        except self._errors as error:
            self._go_away(error)
            return AWAY

    def _can_try(self) -> bool:
        """True for one thread at a time."""
        with self._lock:
            now = time.monotonic()
            if now < self._try_at:
                return False
            self._try_at = now + self._pause
            return True

    def _come_back(self) -> None:
        """Make up for purges that were missed; before that, nothing is read."""
        swept, epoch = self._client.get(self._name("swept")), self.purges.epoch
        self._remove(self._client, self.purges.since(int(swept) if swept else None), epoch)
        self._is_away, self._pause = False, PAUSE_SECONDS[0]
        if self._was_told:
            self._say("Redis is back, and keeps cached answers again")
        self._was_told = False

    def _go_away(self, error: Exception) -> None:
        with self._lock:
            self._is_away, self._try_at = True, time.monotonic() + self._pause
            self._pause = min(2 * self._pause, PAUSE_SECONDS[1])
            is_news, self._was_told = not self._was_told, True
        if is_news:
            self._say(f"Redis is away, cached answers are kept in this process until it is back: {_one_line(error)}")

    def _remove(self, redis: Any, ids: list[str] | None, epoch: int) -> None:
        """Values that stand on these entries (None: all), and then the mark that purges up to `epoch` are done."""
        if ids is None:
            names = list(redis.scan_iter(self._name("*"), count=1000))
        else:
            names = [self._name("e", id) for id in ids]
            for some in _batches(names):
                names += [self._name("v", key.decode()) for key in redis.sunion(some)]
        for some in _batches(names):
            redis.unlink(*some)
        redis.set(self._name("swept"), epoch)

    def _name(self, *parts: str) -> str:
        return ":".join(("evergreen", self.purges.id, *parts))


def _batches(names: list, size: int = 1000) -> list[list]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _client(url: str) -> Any:
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError:
        raise BadInput("EVERGREEN_CACHE names Redis, whose client is absent: pip install evergreen-lm[redis]") from None
    again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))  # one for a connection that went stale
    try:
        return redis.Redis.from_url(
            url, socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS, retry=again
        )
    except ValueError as error:
        raise BadInput(f"EVERGREEN_CACHE wants redis://host:6379/0, got {url!r}: {error}") from None


def _errors() -> tuple[type[Exception], ...]:
    import redis

    return redis.RedisError, OSError


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class Lines:
    """Values in a file that survives restarts, one a line; the last of a key counts. Every process follows what others
    append. Dropped ones are overwritten with spaces where they stand, so that a purge costs what it hits, and what must
    not be seen again is on the disk no more. Writers hold the cache's lock."""

    def __init__(self, path: Path, max_bytes: int, clock: Clock = time.time):
        self.path, self.max_bytes, self.clock = path, max_bytes, clock
        self._lock = threading.RLock()
        self._file, self._checked = None, 0.0
        self.notice: Callable[[Value], None] = lambda _: None  # hears of every value that is read or written here
        self._forget()

    def read_again(self) -> None:
        """`notice` hears of all there are."""
        with self._lock:
            self._open(False)
            self._follow()

    def get(self, key: str) -> Value | None:
        with self._lock:
            self._follow()
            if key not in self._places:
                return None
            offset, length, _ = self._places[key]
            value = decode(os.pread(self._file.fileno(), length, offset))
        return value if value and value.key == key else None

    def put(self, value: Value) -> None:
        """Only under the cache's lock."""
        line = encode(value) + b"\n"
        with self._lock:
            if not self.path.exists():
                self.path.touch(mode=0o600)  # what was asked and answered
            self._follow()
            if self._size + len(line) > self.max_bytes or self._is_mostly_waste():
                self._compact()
            if self._size > self._offset:  # what a killed writer left
                line = b"\n" + line
            os.pwrite(self._file.fileno(), line, self._size)
            self._follow()

    def drop(self, ids: Iterable[str]) -> None:
        """Only under the cache's lock; returns when the disk has it."""
        with self._lock:
            self._follow()
            self._tidy()
            places = {place for id in ids for place in self._of.pop(id, ())}
            for offset, length in places:
                os.pwrite(self._file.fileno(), b" " * length, offset)
            if places:
                os.fsync(self._file.fileno())

    def clear(self) -> None:
        """Only under the cache's lock."""
        with self._lock:
            self._tidy()
            self.path.unlink(missing_ok=True)
            self._follow()

    def _follow(self) -> None:
        """Take in what was appended; begin anew when the file is another one."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            self._open(False)
            return
        is_same = self._file and os.fstat(self._file.fileno()).st_ino == found.st_ino and found.st_size >= self._size
        if not is_same:
            self._open(True)
        if found.st_size == self._size:
            return
        data = os.pread(self._file.fileno(), found.st_size - self._offset, self._offset)
        self._size = self._offset + len(data)
        for line in data.split(b"\n")[:-1]:
            self._take(line)

    def _open(self, is_there: bool) -> None:
        """It stays open, so that its inode number cannot come back as a third file's."""
        if self._file:
            self._file.close()
        self._file = open(self.path, "rb+", buffering=0) if is_there else None  # noqa: SIM115 see above
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, tuple[int, int, float]] = {}  # key -> offset and length of its line, its expiry
        self._of: dict[str, list[tuple[int, int]]] = {}  # entry -> offset and length of every line that stands on it
        self._size = self._offset = 0  # of the file; of it, what stands in whole lines

    def _take(self, line: bytes) -> None:
        place = self._offset, len(line)
        self._offset += len(line) + 1
        if value := decode(line):
            self.notice(value)
            self._places[value.key] = *place, value.expires
            for id in value.ids:
                self._of.setdefault(id, []).append(place)

    def _is_mostly_waste(self) -> bool:
        """Whether more than half of the file is expired, overwritten or said again further down; a look a minute."""
        now = self.clock()
        if self._size < WASTE_BYTES or now - self._checked < WASTE_SECONDS:
            return False
        self._checked = now
        return 2 * sum(length for _, length, expires in self._places.values() if expires > now) < self._size

    def _compact(self) -> None:
        """Keep the newest values that have not expired, up to half of the room."""
        self._tidy()
        kept, num_bytes, now = [], 0, self.clock()
        for offset, length, expires in sorted(self._places.values(), reverse=True):
            line = os.pread(self._file.fileno(), length, offset)
            num_bytes += length + 1
            if num_bytes > self.max_bytes // 2:
                break
            if expires > now and decode(line):
                kept.append(line)
        write_atomic(self.path, b"".join(line + b"\n" for line in reversed(kept)), mode=0o600)
        self._follow()

    def _tidy(self) -> None:
        """Remove what a compaction that was killed left behind."""
        for path in self.path.parent.glob(f".{self.path.name}.*"):
            path.unlink(missing_ok=True)
