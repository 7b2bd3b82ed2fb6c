"""What was purged from the cache: numbered lines of one file, which every process looks at before it serves a value.

    HOME/knowledge/cache/purges.jsonl    {"cache": id, "floor": 7}, then {"epoch": 8, "ids": ["a", "b"]}, ...

A value was made at an epoch, and is good as long as none of its entries was purged at a later one. So a purge holds
from the moment that its line is on the disk, wherever copies of the value still lie; clearing them is housekeeping.

Promises: when `add` returns its line is on the disk (fsync), and every `follow` that begins later, in any process, has
it; a `follow` without news is one stat. Values from before a file that was removed, or a line that cannot be read, are
void.
Does not: know what a value is, or work on a network file system without locks.
"""

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import orjson

from evergreen.home import fsync_folder, in_turn, write_atomic

MAX_BYTES = 4 << 20  # some 250,000 entries; then the file begins anew, and what was made before is void


class Purges:
    """One process's view of the file; safe in several threads."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "purges.jsonl"
        self.id = ""  # of this cache; another one after the file was lost. "": there is no cache yet
        self.epoch = self.floor = 0  # the last purge; values made before the floor are void
        self.purged: dict[str, int] = {}  # entry -> the epoch of its last purge
        self._file, self._offset, self._stamp = None, 0, None
        self._lock = threading.RLock()

    def holds(self, epoch: int, ids: Iterable[str]) -> bool:
        """Whether what was made at `epoch` from these entries is good, as far as `follow` has seen."""
        return self.floor <= epoch <= self.epoch and all(self.purged.get(id, 0) <= epoch for id in ids)

    def since(self, epoch: int | None) -> list[str] | None:
        """The entries purged after `epoch` (None: after the floor); None when they are not known any more."""
        if epoch is not None and epoch < self.floor:
            return None
        return [id for id, at in list(self.purged.items()) if at > (epoch or 0)]

    def has_news(self) -> bool:
        return _stamp(self.path) != self._stamp

    def follow(self) -> list[str]:
        """Take in what has been purged since the last look; the entries. The first look has none."""
        with self._lock:
            stamp = _stamp(self.path)  # before reading: what is appended meanwhile is next time's news
            news = self._read(stamp)
            self._stamp = stamp
        return news

    def make(self) -> None:
        """Begin the file if there is none. Raises BadInput for a folder that cannot be written."""
        with self.locked(), self._lock:
            self.follow()
            if not self.id:
                self.begin()

    def add(self, ids: Sequence[str]) -> None:
        """Purge these entries. Only within `locked`. Raises OSError when the disk cannot take the line."""
        with self._lock:
            self.follow()
            if not self.id:
                self.begin()
            append(self.path, orjson.dumps({"epoch": self.epoch + 1, "ids": list(ids)}) + b"\n")
            if self.path.stat().st_size > MAX_BYTES:
                self.begin()

    def void(self) -> None:
        """Everything that was ever made is void, in every process; takes no room on the disk. Only within `locked`."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            fsync_folder(self.folder)
            self.follow()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of all who write in this folder; other processes wait."""
        return in_turn(self.folder)

    # -- inside

    def _read(self, stamp: tuple | None) -> list[str]:
        if stamp is None:
            self._forget()
            return []
        if self._file is None or _stamp_of(os.fstat(self._file.fileno()))[0] != stamp[0]:
            self._open()
        before, news, is_first = self.epoch, [], not self.id
        for line in os.pread(self._file.fileno(), max(0, stamp[1] - self._offset), self._offset).split(b"\n")[:-1]:
            self._offset += len(line) + 1
            news += self._take(line, before)
        return [] if is_first else news

    def _open(self) -> None:
        """The file is another one. It stays open, so that its inode number cannot come back as a third one's."""
        if self._file:
            self._file.close()
        self._file, self._offset = open(self.path, "rb", buffering=0), 0  # noqa: SIM115 held as long as it is followed

    def _take(self, line: bytes, before: int) -> list[str]:
        """One line's effect; its entries when they were purged after the epoch `before`."""
        row = _row(line) or {"cache": self.id, "floor": self.epoch + 1}  # an odd line may have purged anything
        if "cache" in row:
            self.id, self.epoch, self.floor, self.purged = row["cache"], row["floor"], row["floor"], {}
            return []
        self.epoch = max(self.epoch, row["epoch"])
        self.purged |= dict.fromkeys(row["ids"], row["epoch"])
        return row["ids"] if row["epoch"] > before else []

    def _forget(self) -> None:
        if self._file:
            self._file.close()
        self.id, self.epoch, self.floor, self.purged = "", 0, 0, {}
        self._file, self._offset = None, 0

    def begin(self) -> None:
        """Begin the file anew; what was made before is void. Only within `locked`. Epochs begin at the clock's
        milliseconds, so that nothing made under an earlier file, which may be lost, can be good here."""
        floor = max(self.epoch + 1, time.time_ns() // 1_000_000)
        write_atomic(self.path, orjson.dumps({"cache": self.id or uuid.uuid4().hex[:12], "floor": floor}) + b"\n")
        fsync_folder(self.folder)
        self.follow()


def _row(line: bytes) -> dict | None:
    """None for a line that is neither a head nor a purge."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    if isinstance(row.get("cache"), str) and isinstance(row.get("floor"), int):
        return row
    is_purge = isinstance(row.get("epoch"), int) and isinstance(row.get("ids"), list)
    return row if is_purge and "cache" not in row and all(isinstance(id, str) for id in row["ids"]) else None


def append(path: Path, line: bytes) -> None:
    """Bring a line to the end of the file and to the disk, behind whatever a killed writer left there."""
    with open(path, "rb+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
            line = b"\n" + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())


def _stamp(path: Path) -> tuple | None:
    try:
        return _stamp_of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _stamp_of(found: os.stat_result) -> tuple:
    return (found.st_dev, found.st_ino), found.st_size
