"""A home in one file, taken while others write, and brought back whole or not at all.

Promises: the archive holds the database as it was at one moment, every version that it names, and the other files of
the home; its last member is a manifest with a SHA-256 of each. `restore` checks all of them before the new home gets
its name. Neither leaves a half-written target.
Does not: follow a file that is being appended to (it is cut at what was there), or keep a training run's locks.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import evergreen
from evergreen.home import disk_failure, home_dir
from evergreen.records import BadInput, Failure
from evergreen.registry import store
from evergreen.registry.registry import Registry
from evergreen.settings import BackupSettings, RestoreSettings

MANIFEST, FORMAT = "evergreen-backup.json", 1
DATABASE = "evergreen.db"
KINDS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz"}
HELD_BYTES = 64 << 20  # files up to this size are read in one go: a shorter or longer one next moment does not matter


def run_backup(given: BackupSettings) -> dict[str, Any]:
    """`evergreen backup FILE`: {file, files, bytes}."""
    target, home = _target(given.file), home_dir(given.home or None).resolve()
    if target.resolve().is_relative_to(home):
        raise BadInput(f"{target} lies in the home that is backed up: write it elsewhere")
    count = write_backup(Registry(home), target)
    size = target.stat().st_size
    if not given.json:
        print(f"{count:,} files of {home} in {target} ({size / 2**20:,.1f} MiB)")
    return {"file": str(target), "files": count, "bytes": size}


def run_restore(given: RestoreSettings) -> dict[str, Any]:
    """`evergreen restore FILE --home NEW`: {home, files, earlier}."""
    source = Path(given.file).expanduser()
    if not given.file or not source.is_file():
        raise BadInput(f"restore wants the file that backup wrote, and there is none at {given.file or '(nothing)'}")
    home = Path(given.home or os.environ.get("EVERGREEN_HOME") or ".evergreen").expanduser()
    count, earlier = restore_backup(source, home, given.force)
    if not given.json:
        print(
            f"{count:,} files of {source} in {home}, all checked"
            + (f"; what was there is in {earlier}" * bool(earlier))
        )
    return {"home": str(home), "files": count, "earlier": str(earlier) if earlier else None}


def write_backup(registry: Registry, target: Path) -> int:
    """Returns how many files the archive holds. Raises Failure on a full disk, and leaves no archive then."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with store.locked(registry.home), tempfile.TemporaryDirectory(dir=target.parent) as folder:
            registry.db.snapshot(Path(folder))  # first: what it names is kept until the lock is given back
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # a home may hold keys
            with os.fdopen(handle, "wb") as file, _opened_to_write(file, target) as archive:
                manifest = {DATABASE: _add(archive, Path(folder) / DATABASE, DATABASE)}
                for path, name in _files(registry.home):
                    entry = _add(archive, path, name)
                    manifest |= {name: entry} if entry else {}
                _add_manifest(archive, manifest)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, target)
        return len(manifest)
    except OSError as error:
        raise disk_failure(error, f"writing {target}") from None
    finally:
        partial.unlink(missing_ok=True)


def restore_backup(source: Path, home: Path, force: bool = False) -> tuple[int, Path | None]:
    """Returns how many files came back, and where what `home` held before lies now.

    Raises BadInput for a home that holds something (without `force`) and for an archive that is cut off, changed, or
    newer than this program; the home is then as it was."""
    if home.exists() and (not home.is_dir() or any(home.iterdir())) and not force:
        raise BadInput(f"{home} is not empty: restore into another --home, or --force to set it aside")
    if home.is_mount():
        raise BadInput(f"{home} is a mount point and cannot be renamed: restore into a folder below it")
    home.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}.restoring-"))
    try:
        staged.chmod(0o755)
        count = _unpack(source, staged)
        with _database_moved(staged, force):
            earlier = _exchange(staged, home)
        return count, earlier
    except OSError as error:
        raise disk_failure(error, f"restoring {source} into {home}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _target(name: str) -> Path:
    target = Path(name).expanduser()
    if not any(name.endswith(ending) for ending in KINDS):
        raise BadInput(f"backup wants a file that ends in {' or '.join(KINDS)}, got {name or 'none'}")
    if not target.parent.is_dir():
        raise BadInput(f"no folder {target.parent} to write the backup into")
    return target


@contextmanager
def _opened_to_write(file: IO[bytes], target: Path) -> Iterator[tarfile.TarFile]:
    kind = next(kind for ending, kind in KINDS.items() if target.name.endswith(ending))
    extra = {"compresslevel": 1} if kind else {}  # weights hardly shrink, whatever the effort
    with tarfile.open(fileobj=file, mode=f"w:{kind}", format=tarfile.PAX_FORMAT, **extra) as archive:
        yield archive


def _files(home: Path) -> Iterator[tuple[Path, str]]:
    """The home's files and their names in the archive: all but the database, locks and what is being staged."""
    seen = set()
    for folder, folders, names in os.walk(home, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((store.STAGING, ".saving")))
        for name in sorted(names):
            path = Path(folder) / name
            is_database = path.parent == home and name.startswith((DATABASE, f".{DATABASE}"))
            if path.is_file() and not is_database and name not in (".lock", store.LOCK_FILE):
                yield path, str(path.relative_to(home))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> list | None:
    """Put one file in; [bytes, SHA-256], None when it is gone meanwhile."""
    try:
        with open(path, "rb") as file:
            return _add_open(archive, file, name)
    except FileNotFoundError:
        return None


def _add_open(archive: tarfile.TarFile, file: IO[bytes], name: str) -> list:
    info = archive.gettarinfo(arcname=name, fileobj=file)
    if info.islnk():  # the same bytes are in already, under another name
        archive.addfile(info)
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    content: Any = file
    if info.size <= HELD_BYTES:
        held = file.read()
        info.size, content = len(held), io.BytesIO(held)
    counted = _Counted(content, info.size)
    archive.addfile(info, counted)
    if counted.is_short:
        raise Failure(f"{file.name} became shorter while it was read: back up again when that run is over")
    return [info.size, counted.sha.hexdigest()]


class _Counted:
    """A file of a given size that hashes what is read from it; past an early end it reads as zeros."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.left, self.sha, self.is_short = file, size, hashlib.sha256(), False

    def read(self, size: int) -> bytes:
        wanted = min(size, self.left)
        chunk = self.file.read(wanted)
        self.is_short |= len(chunk) < wanted
        chunk = chunk.ljust(wanted, b"\0")
        self.left -= wanted
        self.sha.update(chunk)
        return chunk


def _add_manifest(archive: tarfile.TarFile, files: dict[str, list]) -> None:
    text = json.dumps({"format": FORMAT, "evergreen": evergreen.__version__, "files": files}, ensure_ascii=False)
    info = tarfile.TarInfo(MANIFEST)
    info.size = len(text.encode())
    archive.addfile(info, io.BytesIO(text.encode()))


def _unpack(source: Path, folder: Path) -> int:
    try:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise BadInput(f"{source} is cut off or no backup: {' '.join(str(error).split())[:200]}") from None
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"{source} is cut off or no backup: it has no {MANIFEST} at its end")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise BadInput(
            f"{source} has format {manifest.get('format')}, this program knows {FORMAT}: use a newer evergreen"
        )
    (folder / MANIFEST).unlink()
    if found := store.damage(folder, manifest["files"], thorough=True):
        raise BadInput(f"{source} is damaged: {found.replace(str(folder) + '/', '')}")
    return len(manifest["files"])


@contextmanager
def _database_moved(staged: Path, force: bool) -> Iterator[None]:
    """The registry of the backup, brought up to date; under $EVERGREEN_DB its rows go to the server, committed when the
    block has ended well."""
    from evergreen import database

    source = database.Database(staged)
    url = database.url_of_environment()
    if not url:
        source.engine.dispose()
        yield
        return
    server = database.Database(staged, url)
    if not server.is_empty() and not force:
        raise BadInput(f"{server.name} holds a registry already: name an empty database, or --force to replace it")
    with server.write() as connection:
        server.fill(source, connection)
        source.engine.dispose()
        for rest in staged.glob(f"{DATABASE}*"):
            rest.unlink()
        yield


def _exchange(staged: Path, home: Path) -> Path | None:
    """Give the staged folder the home's name; what lay there before moves aside."""
    if not home.exists():
        staged.rename(home)
        return None
    if home.is_dir() and not any(home.iterdir()):
        staged.rename(home)  # replaces an empty folder in one step
        return None
    earlier = next(path for n in range(1, 10**6) if not (path := home.with_name(f"{home.name}.earlier-{n}")).exists())
    home.rename(earlier)
    try:
        staged.rename(home)
    except OSError:
        earlier.rename(home)
        raise
    return earlier
