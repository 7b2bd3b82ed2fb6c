"""The knowledge log: numbered changes in append-only JSONL segments, the one thing that all else is made from.

    HOME/knowledge/manifest.json       the segments in order; replaced atomically
    HOME/knowledge/log/000001.jsonl    a change a line: {"crc": ..., "n": 1, "at": ..., "op": ...}

Promises: `append` returns when its changes are on the disk (fsync), all of them or none; a change that was acknowledged
survives kill -9 and power loss. What a crash left half-written at the end is cut off by the next writer, who says so.
Writers in several processes take turns (flock); readers never wait and see whole appends only. A line that was damaged
since, the last one too, is an error that names file and place, and nothing is cut. `rewrite` is for what must be
forgotten: the old bytes are in no file of the log when it returns.
Does not: know what a change means, or work on a network file system without locks.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from evergreen.home import disk_failure, fsync_folder, in_turn, read_object, write_atomic, write_json
from evergreen.knowledge.lines import Change, decode, encode, whole_appends
from evergreen.records import BadInput, Failure

SEGMENT_BYTES = 16 << 20  # from here on a new segment is begun
FORMAT = 1
POSITION = (
    "last",
    "last_at",
    "forgotten",
    "_generation",
    "_segment",
    "_offset",
    "_segments",
)  # how far `read` has come
UNFINISHED = re.compile(r"\.\d{6}(-\d+)?\.jsonl\.\w{8}")  # what write_atomic calls a segment until it is whole
SEGMENT = re.compile(r"\d{6}(-\d+)?\.jsonl")  # 000002.jsonl, and 000002-1.jsonl after the first rewrite


def damage(path: Path, place: int) -> Failure:
    return Failure(f"{path} is damaged at byte {place}: bring it back from a backup, or remove that line")


class Log:
    """One process's view of the log; `read` gives what has come since the last time."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None):
        """`say` hears of a repair, one line."""
        self.folder, self.say = folder, say
        self.last, self.last_at = 0, ""  # number and time of the last change that `read` has given
        self._generation = -1
        self._segment, self._offset = 0, 0  # how far into which segment `read` has come
        self._seen: tuple = ()
        self._segments: list[dict] = []
        self._is_tidy = False  # of this generation's files
        self.forgotten = 0  # the last change whose wish to be forgotten `rewrite` has fulfilled

    # -- reading

    def read(self) -> tuple[bool, list[Change]]:
        """(whether all that was read before is void, the changes since then). Raises Failure for a damaged log."""
        before = {name: getattr(self, name) for name in POSITION}
        try:
            return self._read() if self._has_news() else (False, [])
        except BaseException as error:  # read it again next time: a writer who knew half would cut off the rest as torn
            vars(self).update(before, _seen=())
            if isinstance(error, OSError):
                raise disk_failure(error, "reading the knowledge log") from None
            raise

    def _read(self) -> tuple[bool, list[Change]]:
        is_new = self._open_manifest()
        found: list[Change] = []
        while self._segment < len(self._segments):
            found += self._read_segment()
            if self._segment + 1 == len(self._segments):
                break
            self._segment, self._offset = self._segment + 1, 0
        if found:
            self.last, self.last_at = found[-1]["n"], found[-1]["at"]
        return is_new, found

    def _has_news(self) -> bool:
        """Two calls of stat tell; reading is for every question, so this is what it costs."""
        seen = tuple(_stamp(path) for path in (self.manifest, self._active()))
        changed, self._seen = seen != self._seen, seen
        return changed

    def _open_manifest(self) -> bool:
        """Whether the log was rewritten since it was last read, which begins at its start then."""
        if not self.manifest.exists():
            self._check_is_new()
            return False
        manifest = self._read_manifest()
        self._segments, self.forgotten = manifest["segments"], manifest["forgotten"]
        if manifest["generation"] == self._generation:
            return False
        is_new, self._is_tidy = self._generation != -1, False
        self._generation, self._segment, self._offset, self.last = manifest["generation"], 0, 0, 0
        return is_new

    def _check_is_new(self) -> None:
        """A log is begun by its manifest, so segments without one have lost it; a new one would write over them."""
        left = sorted(path.name for path in (self.folder / "log").glob("*.jsonl") if path.stat().st_size)
        if left and not self.manifest.exists():  # another process may begin the log meanwhile
            raise Failure(f"{self.manifest} is missing, and {self.folder / 'log'} holds {', '.join(left[:3])}: "
                          "bring it back from a backup")  # fmt: skip

    def _read_manifest(self) -> dict:
        """Raises Failure for one that is damaged, or of a format that is not known here."""
        cure = "bring it back from a backup"
        try:
            found = read_object(self.manifest, {"format": int}, cure)
            if found["format"] != FORMAT:
                raise Failure(f"{self.manifest} has the format {found['format']}, this program reads {FORMAT}: "
                              "it was written by a newer one")  # fmt: skip
            found = read_object(self.manifest, {"generation": int, "forgotten": int, "segments": list}, cure)
        except BadInput as error:
            raise Failure(str(error)) from None
        except OSError as error:
            raise disk_failure(error, "reading the knowledge log") from None
        if not all(isinstance(one, dict) and SEGMENT.fullmatch(str(one.get("name"))) for one in found["segments"]):
            raise Failure(f"{self.manifest} is damaged, a segment has no name: {cure}")
        return found

    def _read_segment(self) -> list[Change]:
        """What the segment holds behind the offset, up to the end of its last whole append."""
        path, sealed_bytes = self._path(self._segment), self._segments[self._segment].get("bytes")
        if not path.exists():
            if sealed_bytes is not None:
                raise Failure(f"{path} is missing: bring it back from a backup")
            return []
        data = self._rest_of(path)
        found, size, damaged = whole_appends(data)
        while damaged is not None:
            again = self._rest_of(path)
            if again == data:  # else a writer cut off a torn tail meanwhile, and wrote in its place
                raise damage(path, self._offset + damaged)
            data = again
            found, size, damaged = whole_appends(data)
        self._offset += size
        if sealed_bytes is not None and self._offset != sealed_bytes:
            raise Failure(f"{path} has {self._offset:,} whole bytes of {sealed_bytes:,}: bring it back from a backup")
        return found

    def _rest_of(self, path: Path) -> bytes:
        with open(path, "rb") as file:
            file.seek(self._offset)
            return file.read()

    # -- writing

    def writing(self) -> AbstractContextManager[None]:
        """Hold the writers' lock; other processes wait. What is written was decided on all that came before."""
        return in_turn(self.folder, "log")

    def append(self, changes: Sequence[Change]) -> list[Change]:
        """Number the changes, stamp them and bring them to the disk, all or none. Only within `writing`, after a
        `read` that gave everything so far. Raises Failure when the disk is full: nothing was appended then."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        at = max(at, self.last_at)  # clocks are set back at times; the past is looked up by time
        numbered = [{"n": self.last + place, "at": at, **change} for place, change in enumerate(changes, 1)]
        try:
            data = b"".join(encode(change, change is numbered[-1]) for change in numbered)
        except TypeError as error:  # half of a surrogate pair, in an author or a reason
            raise BadInput(f"what is to be written is no text: {error}") from None
        try:
            if not self._is_tidy:
                self._tidy()
            self._make_room()
            path = self._active()
            self._cut_tail(path)
            _append_durably(path, data, self._offset)
        except OSError as error:
            raise disk_failure(error, "writing the knowledge log") from None
        self._offset += len(data)
        self.last, self.last_at = numbered[-1]["n"], at
        self._seen = tuple(_stamp(path) for path in (self.manifest, path))
        return numbered

    def rewrite(self, alter: Callable[[Change], Change], forgotten: int) -> None:
        """Replace every change by `alter(change)`, which keeps its number. Only within `writing`, after a `read`.
        Raises Failure for what was damaged since it was read: nothing is written then."""
        self._open_manifest()
        made = []
        for number in range(len(self._segments)):
            lines = self._altered(number, alter)
            name = f"{int(self._segments[number]['name'][:6]):06d}-{self._generation + 1}.jsonl"
            write_atomic(self.folder / "log" / name, b"".join(lines))
            made.append({"name": name, **self._seal(self.folder / "log" / name)})
        made[-1] = {"name": made[-1]["name"]}
        self.forgotten = forgotten
        self._segments, self._generation = made, self._generation + 1
        self._write_manifest(made, self._generation)
        self._segment, self._offset = len(made) - 1, self._active().stat().st_size
        self._tidy()

    def _tidy(self) -> None:
        """Remove segments that were replaced, and what a killed process left of replacing them: they may hold what must
        be forgotten. Only within `writing`. Raises Failure for changes that an older manifest does not know of."""
        for path in self._unnamed():
            if UNFINISHED.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif SEGMENT.fullmatch(path.name) and (first := _first_of(path)):
                if first["n"] > self.last:
                    raise Failure(f"{path} begins with change {first['n']:,}, and {self.manifest} knows of "
                                  f"{self.last:,}: bring back the manifest that belongs to it")  # fmt: skip
                path.unlink(missing_ok=True)
        self._is_tidy = True

    def _unnamed(self) -> list[Path]:
        """The files beside the segments."""
        named = {segment["name"] for segment in self._segments}
        return [path for path in sorted((self.folder / "log").iterdir()) if path.name not in named]

    def _altered(self, number: int, alter: Callable[[Change], Change]) -> list[bytes]:
        """The lines of a segment; of the active one, those up to the end of the last whole append."""
        path, lines, place = self._path(number), [], 0
        is_active = number == len(self._segments) - 1
        data = path.read_bytes() if path.is_file() or not is_active else b""  # named by the manifest, not begun yet
        for line in data[: self._offset if is_active else None].splitlines(keepends=True):
            if (change := decode(line)) is None:
                raise damage(path, place)
            place += len(line)
            is_end = change.pop("end")
            lines.append(encode(alter(change), is_end))
        return lines

    def merge(self) -> int:
        """Join neighbouring segments that have room in one, and remove files that the manifest does not name; how many
        segments fewer there are. Only within `writing`, after a `read`. No change is altered."""
        self._open_manifest()
        if not self._segments:
            return 0
        self._cut_tail(self._active())
        before, groups = self._segments, self._groups()
        if len(groups) < len(before):
            made = [self._joined(group) for group in groups]
            made[-1] = {"name": made[-1]["name"]}
            self._segments, self._generation = made, self._generation + 1
            self._write_manifest(made, self._generation)
            self._segment, self._offset = len(made) - 1, self._active().stat().st_size
        self._tidy()
        for path in self._unnamed():
            path.unlink()
        return len(before) - len(groups)

    def _groups(self) -> list[list[int]]:
        """Numbers of segments that follow each other and fit into one."""
        groups: list[list[int]] = []
        room = 0
        for number in range(len(self._segments)):
            path = self._path(number)
            size = path.stat().st_size if path.is_file() else 0
            if groups and size <= room:
                groups[-1].append(number)
            else:
                groups.append([number])
                room = SEGMENT_BYTES
            room -= size
        return groups

    def _joined(self, group: list[int]) -> dict:
        """The manifest's entry of a new segment that holds these."""
        if len(group) == 1:
            return self._segments[group[0]]
        path = self.folder / "log" / f"{int(self._segments[group[0]]['name'][:6]):06d}-{self._generation + 1}.jsonl"
        parts = [self._path(number) for number in group]
        write_atomic(path, b"".join(part.read_bytes() for part in parts if part.is_file()))
        return {"name": path.name, **self._seal(path)}

    def _make_room(self) -> None:
        """The manifest of a new log; a new segment when the active one is full."""
        if not self._segments:
            self._segments = [{"name": "000001.jsonl"}]
            self._generation = 0
            self._write_manifest(self._segments, 0)
        elif self._offset >= SEGMENT_BYTES:
            name = f"{int(self._segments[-1]['name'][:6]) + 1:06d}.jsonl"
            self._cut_tail(self._active())
            self._segments[-1] |= self._seal(self._active())
            self._segments.append({"name": name})
            self._write_manifest(self._segments, self._generation)
            self._segment, self._offset = self._segment + 1, 0

    def _cut_tail(self, path: Path) -> None:
        """Cut off what a killed writer left behind the last whole append."""
        size = path.stat().st_size if path.exists() else 0
        if size > self._offset:
            os.truncate(path, self._offset)
            self.say(f"{path}: {size - self._offset} bytes of a write that was never finished are cut off")

    def _write_manifest(self, segments: list[dict], generation: int) -> None:
        write_json(self.manifest, {
            "format": FORMAT, "generation": generation, "forgotten": self.forgotten, "segments": segments
        })  # fmt: skip
        fsync_folder(self.folder)  # what the new one names must be found after a power failure

    @staticmethod
    def _seal(path: Path) -> dict:
        with open(path, "rb") as file:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def verify(self) -> int:
        """Compare every sealed segment with its SHA-256; how many there are. Raises Failure for one that differs."""
        self._open_manifest()
        sealed = [(self._path(number), entry) for number, entry in enumerate(self._segments) if "sha256" in entry]
        for path, entry in sealed:
            if not path.is_file() or self._seal(path)["sha256"] != entry["sha256"]:
                raise Failure(f"{path} is not what was written: bring it back from a backup")
        return len(sealed)

    # -- places

    @property
    def generation(self) -> int:
        """Rises when the log is rewritten: what was made of it may then hold what must be forgotten."""
        return self._generation

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def _path(self, number: int) -> Path:
        return self.folder / "log" / self._segments[number]["name"]

    def _active(self) -> Path:
        return self._path(-1) if self._segments else self.folder / "log" / "000001.jsonl"


def _append_durably(path: Path, data: bytes, size: int) -> None:
    """Append and fsync, the folder too when the file is new; after an error the file has its old size again."""
    is_new = not path.exists()
    with open(path, "ab", buffering=0) as file:
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise
    if is_new:
        fsync_folder(path.parent)


def _first_of(path: Path) -> Change | None:
    with open(path, "rb") as file:
        return decode(file.readline())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
