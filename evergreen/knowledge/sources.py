"""What each imported file said when it was last read, and which entry says it now: lines of one file.

    HOME/knowledge/imports.jsonl    {"file": path, "sha256": ..., "how": ..., "chunks": [[entry id, chunk digest], ...]}

A later line of a file takes the place of an earlier one, so a line is written once its entries are in the log: what a
crash leaves out is found again by reading the file. Losing all of it costs a second reading, and knowing which files
have vanished."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from evergreen.home import disk_failure, write_atomic


@dataclass(frozen=True)
class Source:
    """A file as it was read; `how` stands for the settings that decide what its chunks are. A chunk whose entry was
    made by hand before has the id ""."""

    file: str
    sha256: str
    how: str
    chunks: tuple[tuple[str, str], ...] = ()


class Sources:
    """All files that were ever imported and not forgotten. One process writes at a time."""

    def __init__(self, folder: Path):
        self.path = folder / "imports.jsonl"
        self._of: dict[str, Source] = {}
        self._num_lines = 0
        self._uses: Counter[str] = Counter()  # entry id -> how many files say it
        data = self.path.read_bytes() if self.path.is_file() else b""
        self._is_torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            self._num_lines += 1
            try:
                values = orjson.loads(line)
                self.take(Source(values["file"], values["sha256"], values["how"], tuple(map(tuple, values["chunks"]))))
            except (ValueError, KeyError, TypeError):  # torn by a crash
                continue

    def get(self, file: str) -> Source | None:
        return self._of.get(file)

    def under(self, folder: str) -> list[Source]:
        """The files that lay in a folder, or the file of that name itself."""
        return [one for name, one in self._of.items() if name == folder or name.startswith(f"{folder.rstrip('/')}/")]

    def is_shared(self, id: str) -> bool:
        """Whether more than one file says what the entry says."""
        return self._uses[id] > 1

    def is_imported(self, id: str) -> bool:
        return self._uses[id] > 0

    def take(self, source: Source) -> None:
        """A file as it is now; one without chunks is forgotten. `write` makes it last."""
        if old := self._of.pop(source.file, None):
            self._uses.subtract({id for id, _ in old.chunks if id})
        if source.chunks:
            self._of[source.file] = source
            self._uses.update({id for id, _ in source.chunks if id})

    def write(self, sources: Sequence[Source]) -> None:
        """Bring files to the disk. Raises Failure when it is full."""
        if not sources:
            return
        try:
            with open(self.path, "ab") as file:
                file.write(b"\n" * self._is_torn + b"".join(map(_line, sources)))
        except OSError as error:
            raise disk_failure(error, "writing what was imported") from None
        self._is_torn = False
        self._num_lines += len(sources)

    def compact(self) -> int:
        """Drop the lines that later ones have replaced; how many bytes that frees."""
        before = self.path.stat().st_size if self.path.is_file() else 0
        if self._num_lines > len(self._of):
            write_atomic(self.path, b"".join(map(_line, self._of.values())))
            self._num_lines = len(self._of)
        return before - (self.path.stat().st_size if before else 0)


def _line(source: Source) -> bytes:
    return (
        orjson.dumps({"file": source.file, "sha256": source.sha256, "how": source.how, "chunks": source.chunks}) + b"\n"
    )
