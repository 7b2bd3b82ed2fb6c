"""Folders that are kept once, named by digest, and never changed: staged beside, renamed, checked when read.

Promises: a folder under its digest is whole or not there; what was kept can be checked file by file.
Does not: know what a digest means, nor who still needs a folder.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from evergreen.home import disk_failure
from evergreen.records import BadInput

Files = dict[str, list]  # name -> [bytes, SHA-256]
LOCK_FILE, STAGING = ".store.lock", ".staging-"
LEFT_OUT = (".*", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin")  # only resuming needs
HASHED_AT_ONCE_BYTES = 64 << 20
DAY_SECONDS = 86400


@contextmanager
def locked(home: Path, doing: str = "") -> Iterator[None]:
    """Shared among those who keep folders or copy them; alone, with `doing` named, for who deletes.

    Raises BadInput when the store is in use for longer than ten seconds."""
    with open(home / LOCK_FILE, "a") as file:
        if not doing:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield
            return
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(f"a backup of {home} is being written: {doing} when it is done") from None
                time.sleep(0.05)
        yield


def stage(folder: Path, room: Path) -> tuple[Path, Files]:
    """A copy of the folder's own files beside their future place, flushed to the disk.

    Weights are hard links where the file system allows: safetensors writes a new file rather than into an old one.
    Raises Failure on a full disk, and leaves nothing then."""
    room.mkdir(parents=True, exist_ok=True)
    staged = room / f"{STAGING}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        staged.mkdir()
        for source in sorted(folder.iterdir()):
            if source.is_file() and not any(fnmatch(source.name, pattern) for pattern in LEFT_OUT):
                _put(source, staged / source.name)
        _flush(staged)
        return staged, {path.name: [path.stat().st_size, sha256_of(path)] for path in sorted(staged.iterdir())}
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise disk_failure(error, f"keeping {folder} in {room}") from None
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def put_in_place(staged: Path, place: Path) -> None:
    """Rename; what a killed process or damage left at the place gives way."""
    if place.exists():
        place.rename(staged.with_name(f"{staged.name}-gone"))
    staged.rename(place)
    _flush(place.parent)
    shutil.rmtree(staged.with_name(f"{staged.name}-gone"), ignore_errors=True)


def damage(place: Path, files: Files, thorough: bool) -> str:
    """What differs from what was kept, "" for nothing. Without `thorough`, files over 64 MiB by their size alone."""
    if not place.is_dir():
        return f"{place} is gone"
    for name, (size, digest) in files.items():
        path = place / name
        if not path.is_file():
            return f"{path} is gone"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size:,} bytes instead of {size:,}"
        if (thorough or size <= HASHED_AT_ONCE_BYTES) and sha256_of(path) != digest:
            return f"{path} has changed"
    return ""


def size_of(place: Path) -> int:
    """Bytes on the disk that deleting the folder would free: a file with another link costs nothing here."""
    paths = [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else []
    return sum(path.stat().st_size for path in paths if path.stat().st_nlink == 1)


def remove(place: Path) -> int:
    """Delete a folder; its name goes first, so that no half of it is ever found. Returns the bytes that are free."""
    if not place.is_dir():
        return 0
    size, gone = size_of(place), place.with_name(f"{STAGING}{os.getpid()}-{os.urandom(4).hex()}-gone")
    place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return size


def leftovers(room: Path) -> list[Path]:
    """Staged folders that no live process can still be at: nothing happened to them for a day."""
    old = time.time() - DAY_SECONDS
    return [path for path in room.glob(f"{STAGING}*") if path.stat().st_mtime < old]


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(source: Path, target: Path) -> None:
    if source.suffix != ".safetensors" or not _linked(source.resolve(), target):
        shutil.copyfile(source, target)
    _flush(target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
        return True
    except OSError:  # another file system, or one without links
        return False


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
