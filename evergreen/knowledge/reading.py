"""A file -> the entries that it stands for: chunks of a document, or rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from evergreen.home import digest_of
from evergreen.knowledge.chunk import Block, Chunk, chunks, estimated_tokens
from evergreen.knowledge.entries import check, moment_of
from evergreen.knowledge.parse import KINDS, Document, read_document
from evergreen.knowledge.route import language_of
from evergreen.knowledge.rows import Columns, read_rows
from evergreen.records import BadInput, Entry

FORMAT = 1  # rises when parsing or chunking does, so that unchanged files are read again


@dataclass(frozen=True)
class How:
    """What decides which chunks a file is."""

    chunk_size: int = 192
    count: Callable[[str], int] = estimated_tokens
    unit: str = "tokens"  # names `count`
    encoding: str = ""
    columns: Columns = Columns()
    source_url: str = ""  # of the folder; a file's is below it
    tags: tuple[str, ...] = ()
    update_time: str = ""

    def digest(self) -> str:
        named = [FORMAT, self.chunk_size, self.unit, self.encoding, self.columns.content, self.columns.title,
                 self.source_url, self.tags, self.update_time]  # fmt: skip
        return digest_of(named)[:16]


@dataclass(frozen=True)
class File:
    """A file to import, and its name below the place that was given."""

    path: Path
    name: str
    size: int
    is_alone: bool = False  # it was given itself, not a folder that it lies in

    @property
    def key(self) -> str:
        """The file wherever it is called from."""
        return str(self.path.resolve())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and self.key == other.key


@dataclass
class Reader:
    """Reads files. `bad` hears of a row that cannot be used, and raises it or goes on; `note` of what is left out of a
    file; `reached` of how many bytes of a long one are read."""

    how: How
    bad: Callable[[BadInput], None]
    note: Callable[[str], None] = lambda _: None
    reached: Callable[[int], None] = lambda _: None

    def entries(self, file: File) -> Iterator[Entry]:
        """Raises BadInput, naming file and place, for what cannot be read."""
        modified = datetime.fromtimestamp(file.path.stat().st_mtime, UTC).isoformat()
        url, when = self._url(file), self.how.update_time or modified
        if KINDS[file.path.suffix.lower()] in ("csv", "jsonl"):
            yield from self._rows(file, url, when)
            return
        found = read_document(file.path, self.how.encoding)
        for note in found.notes:
            self.note(note)
        when = self.how.update_time or found.update_time or when
        about = replace(found, source_url=found.source_url or url, update_time=when)
        for chunk in chunks(found.blocks, self.how.chunk_size, self.how.count):
            yield self._entry(chunk, about)

    def _rows(self, file: File, url: str, when: str) -> Iterator[Entry]:
        """A row an entry; one that is too long and has no id of its own is cut like a document."""
        unused: set[str] = set()
        for row in read_rows(file.path, self.how.encoding, self.how.columns, self.bad, unused, self.reached):
            source_url = row.source_url or ("" if row.id else url)
            said = Document(row.title, [], source_url, row.update_time or when, row.tags, row.language)
            for chunk in self._cut(row):
                yield replace(self._entry(chunk, said), id=row.id, version=row.version, valid_from=row.valid_from,
                              valid_until=row.valid_until)  # fmt: skip
        if unused:
            self.note(f"{file.path}: nothing is made of the columns {', '.join(sorted(unused))}")

    def _cut(self, row: Entry) -> list[Chunk]:
        if row.id or self.how.count(row.content) <= self.how.chunk_size:
            return [Chunk(row.title, row.content)]
        blocks = [Block(part, (row.title,)) for part in row.content.split("\n") if part.strip()]
        return list(chunks(blocks, self.how.chunk_size, self.how.count))

    def _entry(self, chunk: Chunk, about: Document) -> Entry:
        return check(
            Entry(
                content=chunk.content,
                title=chunk.title,
                source_url=about.source_url,
                update_time=moment_of(about.update_time),
                tags=tuple(dict.fromkeys((*about.tags, *self.how.tags))),
                language=about.language or language_of(chunk.content),
            )
        )

    def _url(self, file: File) -> str:
        if not self.how.source_url:
            return file.name
        return self.how.source_url if file.is_alone else f"{self.how.source_url.rstrip('/')}/{file.name}"
