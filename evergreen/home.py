"""Where state lives, and the ways to write it so that a crash leaves the old or the new, never half of either."""

import errno
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evergreen.records import BadInput, Failure

DISK_WORDS = ("No space left on device", "Disk quota exceeded", "Read-only file system")
TORCH_DISK_WORDS = ("PytorchStreamWriter failed", "inline_container.cc")  # all that torch says of a full disk


def home_dir(given: str | None = None) -> Path:
    """`--home`, else $EVERGREEN_HOME, else ./.evergreen; made when first needed."""
    path = home_place(given)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the home {path} cannot be made ({error.strerror}): choose another --home") from None
    return path


def home_place(given: str | None = None) -> Path:
    """Where `home_dir` is, made or not."""
    return Path(given or os.environ.get("EVERGREEN_HOME") or ".evergreen").expanduser()


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, real characters."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of milliseconds, then random ones, so that ids sort by time."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return str(uuid.UUID(int=number & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62))


def write_atomic(path: str | Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write beside the target, flush to the disk, rename: a reader sees the old file or the new one."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fsync_folder(path: str | Path) -> None:
    """Bring the names in a folder to the disk, so that a new or renamed file survives a power failure."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The file's value; a BadInput that names file and place when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no file {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not JSON: {error}") from None


def read_object(path: str | Path, wanted: Mapping[str, Any], cure: str) -> dict[str, Any]:
    """A JSON object with these fields, each of its type; `dict | None` is one that may be missing. Raises BadInput that
    names the file, what is odd about it and, in `cure`, what to do."""
    try:
        value = read_json(path)
    except BadInput as error:
        raise BadInput(f"{error}; {cure}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} wants an object, got a {type(value).__name__}: {cure}")
    for name, kind in wanted.items():
        if not isinstance(value.get(name), kind):
            got = f"got a {type(value[name]).__name__}" if name in value else "and there is none"
            raise BadInput(f"{path} wants another `{name}`, {got}: {cure}")
    return value


def append_jsonl(path: str | Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path, cure: str = "take that line out") -> Iterator[dict]:
    """Whole rows only: a last line torn by a crash is left out. Raises BadInput for any other line that is no JSON
    object, with its number and, in `cure`, what to do."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield _row(line, f"{path}:{number}", cure)


def _row(line: bytes, place: str, cure: str) -> dict:
    try:
        row = json.loads(line.decode())
    except ValueError as error:
        raise BadInput(f"{place} is damaged ({getattr(error, 'msg', 'no UTF-8')}): {cure}") from None
    if not isinstance(row, dict):
        raise BadInput(f"{place} is damaged (a {type(row).__name__}, no object): {cure}")
    return row


@contextmanager
def exclusive(path: Path, doing: str) -> Iterator[None]:
    """Hold `path` as a lock for as long as the block runs; the kernel frees it even after kill -9.

    Raises BadInput when another process holds it, or when there can be no such file."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 the block below closes it
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BadInput(f"{path.parent} cannot be written ({error.strerror}): choose another directory") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another process is {doing} ({path}): wait for it or choose another directory") from None
        yield


@contextmanager
def in_turn(folder: Path, room: str = "") -> Iterator[None]:
    """Hold the lock of all who write in a folder, which is made with its `room`; other processes wait. The kernel frees
    the lock of a killed one. Raises BadInput when the folder cannot be written."""
    import fcntl

    try:
        (folder / room).mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")  # noqa: SIM115 the block below closes it
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error.strerror}): choose another --home") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written or read; torch and safetensors have names of their own for that."""
    text = str(error)
    return isinstance(error, OSError) or any(word in text for word in DISK_WORDS + TORCH_DISK_WORDS)


def disk_failure(error: BaseException, doing: str) -> Failure:
    """What the operating system said about a file, as one line."""
    reason, name = getattr(error, "strerror", None) or str(error), getattr(error, "filename", None)
    if any(word in reason for word in TORCH_DISK_WORDS):
        reason = "a file could not be written to its end: the disk is full"
    return Failure(f"{doing} failed: {' '.join(reason.split())}" + (f" ({name})" if name else ""))


def is_reachable(address: str) -> bool:
    """Whether a connection to a URL's host opens within three seconds; behind a proxy nobody can say, so yes.

    The hub's libraries would try for 25 to 50 seconds before they give up."""
    import socket
    import urllib.parse
    import urllib.request

    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(address)
    try:
        with socket.create_connection((parts.hostname, parts.port or 443), timeout=3):
            return True
    except OSError:
        return False
