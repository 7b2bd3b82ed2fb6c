"""Adapters from elsewhere, as they were when they were loaded: an engine may start again when their folder has changed.

Promises: a copy is whole or not there; it stays for as long as a server of this home that keeps it runs, and the next
server that starts removes it (the kernel takes a lock back even after kill -9).
"""

import contextlib
import fcntl
import os
import shutil
import threading
from pathlib import Path

from evergreen.model.adapters import WEIGHTS, adapter_digest
from evergreen.records import BadInput

ROOM = "serving"  # of the home


class Copies:
    """Those of one home; what nobody keeps any more is removed at once."""

    def __init__(self, home: Path):
        self.home = home.resolve()
        self._locks: dict[str, int] = {}  # by digest; file descriptors, closed with the process
        self._prune()

    def keep(self, folder: Path, digest: str) -> Path:
        """A folder with the adapter of this digest that nobody writes: its own where it lies in the home. Raises
        BadInput when it has changed meanwhile."""
        if folder.resolve().is_relative_to(self.home):
            return folder
        place = self.home / ROOM / digest
        while digest not in self._locks:
            if not place.is_dir():
                self._copy(folder, place, digest)
            lock = _shared(place)
            if lock is not None:
                self._locks[digest] = lock
        return place

    def _copy(self, folder: Path, place: Path, digest: str) -> None:
        staged = place.with_name(f".{digest}.{os.getpid()}.{threading.get_ident()}")
        staged.mkdir(parents=True, exist_ok=True)
        lock = _shared(staged)
        try:
            for file in ("adapter_config.json", *WEIGHTS):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, staged / file)
            if adapter_digest(staged) != digest:
                raise BadInput(f"{folder} changed while it was being loaded: load it when it is written")
            with contextlib.suppress(OSError):  # another server of this home was first
                staged.rename(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def _prune(self) -> None:
        with contextlib.suppress(OSError):  # a home that cannot be written holds nothing to remove
            for place in (self.home / ROOM).iterdir():
                _remove(place)


def _shared(place: Path) -> int | None:
    """A lock that keeps others from removing this folder; None when it is gone."""
    try:
        lock = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        if os.stat(place).st_ino == os.fstat(lock).st_ino:
            return lock
    except FileNotFoundError:
        pass
    os.close(lock)
    return None


def _remove(place: Path) -> None:
    """Unless somebody keeps it. It goes under another name first, so that nobody sees half of it."""
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = place.with_name(f".gone.{place.name}.{os.getpid()}")
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
