"""One data file as rows, each with its real line number: JSON, JSONL, CSV, TSV, Parquet, Arrow and plain text.

Promises: every file but a JSON object is read in constant memory, a JSON list included (element by element); `.gz`,
`.bz2` and `.xz` are unpacked on the way; a file may call itself `.json` and hold JSON lines, or the other way round.
Text is UTF-8, with or without a byte-order mark, and nothing else: another encoding is an error naming the line.
Parquet and Arrow have no lines, their rows are counted from 1. Columns are data/formats.py's affair.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from evergreen.records import BadInput, Origin

UNPACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
CHUNK_CHARACTERS = 1 << 18


class RowError(BadInput):
    """One row that cannot be used. `kind` is what `data check` files it under; `fatal`: nothing after it was read."""

    def __init__(self, problem: str, kind: str = "unreadable", origin: Origin | None = None, fatal: bool = False):
        link = " " if problem.startswith("is not") else ": "
        super().__init__(f"{origin}{link}{problem}" if origin else problem)
        self.problem, self.kind, self.origin, self.fatal = problem, kind, origin or Origin(), fatal

    def at(self, origin: Origin) -> "RowError":
        return RowError(self.problem, self.kind, origin, self.fatal)


Scanned = Iterator[tuple[int, dict | RowError]]


def is_data_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and data_suffix(path) in SUFFIXES


def data_suffix(path: Path) -> str:
    """`.jsonl` of `a.jsonl` and of `a.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in UNPACK:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line, row) for every row; the first that cannot be read raises a RowError naming file and line."""
    for line, row in scan_rows(path):
        if isinstance(row, RowError):
            raise row
        yield line, row


def scan_rows(path: str | Path) -> Scanned:
    """Like `read_rows`, but a row that cannot be read comes as a RowError value, and reading goes on where it can."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"no file {path}")
    if path.is_dir() or data_suffix(path) not in SUFFIXES:
        raise BadInput(f"{path} is no data file: it wants one of {', '.join(SUFFIXES)}, each also as .gz, .bz2 or .xz")
    for line, row in _guarded(path):
        if not isinstance(row, dict | RowError):
            row = RowError(f"a row wants to be an object {{...}}, got {shown(row)}")
        yield line, row.at(Origin(str(path), line)) if isinstance(row, RowError) else row


def shown(value: Any) -> str:
    """A value in an error message: short, on one line, with its kind."""
    kinds = {type(None): "nothing", list: "a list", dict: "an object", bool: "true or false", str: "text"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value}"[:60]
    text = json.dumps(value, ensure_ascii=False, default=str)
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return kind if value is None else f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"


def _guarded(path: Path) -> Scanned:
    """What the operating system, the decoder or a library says about a file becomes one row error."""
    line = 0
    try:
        for line, row in _reader(path):  # noqa: B007 the last line read is needed below
            yield line, row
    except UnicodeDecodeError:
        yield _first_line_that_is_not_utf8(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield line + 1, RowError(f"cannot be read: {error}", fatal=True)


def _reader(path: Path) -> Iterator[tuple[int, Any]]:
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _json(path, suffix != ".json")
    if suffix in (".csv", ".tsv"):
        return _csv(path)
    return {".parquet": _parquet, ".arrow": _arrow, ".txt": _paragraphs}[suffix](path)


def _open(path: Path) -> IO[bytes]:
    return UNPACK.get(path.suffix.lower(), open)(path, "rb")


def _open_text(path: Path, newline: str | None = None) -> IO[str]:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline=newline)


def _first_line_that_is_not_utf8(path: Path) -> tuple[int, RowError]:
    with _open(path) as file:
        for line, data in enumerate(file, 1):
            problem = _utf8_problem(data)
            if problem:
                return line, problem
    return 1, RowError("is not UTF-8: save it as UTF-8", fatal=True)


def _utf8_problem(data: bytes) -> RowError | None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "GB18030 or another encoding"
        return RowError(f"is not UTF-8 (byte {data[error.start]:#04x}; {guess}?): save the file as UTF-8", fatal=True)
    return None


# JSON and JSON lines


def _json(path: Path, named_lines: bool) -> Iterator[tuple[int, Any]]:
    """A list, an object with one list inside, one object, or lines, by what the file holds rather than by its name."""
    with _open(path) as file:
        head = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            return iter([_first_line_that_is_not_utf8(path)])
        if head.startswith(b"["):
            return _json_list(path)
        if named_lines or not head:
            return _json_lines(path)
        file.seek(0)
        first = next(line for line in file if line.strip()).removeprefix(b"\xef\xbb\xbf")
        more = any(line.strip() for line in file)
    return _json_lines(path) if more and _is_json(first) else _json_object(path)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        for line, data in enumerate(file, 1):  # bytes: str.splitlines would also cut at U+2028 inside a text
            data = data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data
            if not data.strip():
                continue
            problem = _utf8_problem(data)
            if problem:
                problem.fatal = False
            try:
                yield line, problem or json.loads(data.decode("utf-8"))  # given bytes, json would guess at UTF-16 too
            except (ValueError, RecursionError) as error:
                yield line, RowError(f"is not JSON: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return str(error)


def _json_list(path: Path) -> Iterator[tuple[int, Any]]:
    with _open_text(path) as file:
        cursor = _Cursor(file)
        try:
            cursor.take("[")
            yield from _elements(cursor)
            if cursor.peek():
                raise json.JSONDecodeError("more after the end of the list", "", 0)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            yield cursor.error_line(error), RowError(f"is not JSON: {getattr(error, 'msg', error)}", fatal=True)


def _json_object(path: Path) -> Iterator[tuple[int, Any]]:
    """An object is one row when it looks like one, else the wrapper of the one list of objects in it."""
    with _open_text(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield getattr(error, "lineno", 1), RowError(f"is not JSON: {getattr(error, 'msg', error)}", fatal=True)
        return
    lists = [key for key, part in value.items() if isinstance(part, list) and part and isinstance(part[0], dict)]
    if not lists or set(lists) & {"messages", "conversations", "conversation", "prompt", "chosen", "tools"}:
        yield 1, value
    elif len(lists) > 1:
        yield 1, RowError(f"holds several lists ({', '.join(lists)}): put each into a file of its own", fatal=True)
    else:
        cursor = _Cursor(io.StringIO(text))
        cursor.take("{")
        while cursor.value() != lists[0]:  # the keys before the list, each with its value
            cursor.take(":")
            cursor.value()
            cursor.take(",")
        cursor.take(":")
        cursor.take("[")
        yield from _elements(cursor)


def _elements(cursor: "_Cursor") -> Iterator[tuple[int, Any]]:
    """The elements of a list whose bracket has been taken, up to and with its closing bracket."""
    if cursor.peek() == "]":
        return cursor.take("]")
    while True:
        cursor.peek()
        line = cursor.line
        yield line, cursor.value()
        if cursor.peek() == "]":
            return cursor.take("]")
        cursor.take(",")


class _Cursor:
    """JSON values one after the other out of a text file of any size, with the line each begins on."""

    def __init__(self, file: IO[str]):
        self.file, self.text, self.at, self.line = file, "", 0, 1
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            rest = self.at
            while rest < len(self.text) and self.text[rest] in " \t\r\n":
                rest += 1
            self._advance(rest)
            if rest < len(self.text) or not self._more():
                return self.text[rest : rest + 1]

    def take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            wanted = f"Expecting {character!r}"
            raise json.JSONDecodeError(wanted + (f", got {found!r}" if found else ", got the end of the file"), "", 0)
        self._advance(self.at + 1)

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._more():  # a number at the end of the buffer may go on
                    break
            except json.JSONDecodeError:  # perhaps only the buffer's end
                if not self._more():
                    raise
        self._advance(end)
        return value

    def error_line(self, error: Exception) -> int:
        return self.line + self.text.count("\n", self.at, max(self.at, getattr(error, "pos", 0)))

    def _advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _more(self) -> bool:
        """Read at least as much again as is waiting, so that a long value is not parsed over and over."""
        chunk = self.file.read(max(CHUNK_CHARACTERS, len(self.text) - self.at))
        if chunk:
            self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)


# Tables and plain text


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open_text(path) as file:
        first = file.readline()
    delimiter = "\t" if data_suffix(path) == ".tsv" else max(",;\t", key=first.count)
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            yield 1, RowError(f"the header names a column twice: {', '.join(header)}", fatal=True)
            return
        line = reader.line_num + 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield line, RowError(f"is not CSV: {error}", fatal=True)
                return
            if cells is None:
                return
            if len(cells) > len(header):
                yield (
                    line,
                    RowError(
                        f"{len(cells)} cells under a header of {len(header)} ({', '.join(header)}): "
                        "put cells that hold the separator into double quotes"
                    ),
                )
            elif cells:
                yield line, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
            line = reader.line_num + 1


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield from _batches(file.iter_batches(batch_size=256, use_threads=False))
    except pyarrow.ArrowException as error:
        yield 1, RowError(f"is not Parquet: {' '.join(str(error).split())}", fatal=True)


def _arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """Arrow files, and the streams that `datasets` saves."""
    import pyarrow
    from pyarrow import ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            batches = ipc.open_file(source) if is_file else ipc.open_stream(source)
            yield from (
                _batches(batches.get_batch(i) for i in range(batches.num_record_batches))
                if is_file
                else _batches(batches)
            )
    except pyarrow.ArrowException as error:
        yield 1, RowError(f"is not Arrow: {' '.join(str(error).split())}", fatal=True)


def _batches(batches: Any) -> Iterator[tuple[int, Any]]:
    line = 0
    for batch in batches:
        for row in batch.to_pylist():
            line += 1
            yield line, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    """A struct column gives every object the keys of all: what is null in it was not there when it was written."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _paragraphs(path: Path) -> Iterator[tuple[int, Any]]:
    """Paragraphs when empty lines part the text, else one row a line."""
    with _open_text(path) as file:
        lines = (line.strip() for line in file)
        next((line for line in lines if line), None)
        has_paragraphs = any(not line and any(lines) for line in lines)
    start, kept = 0, []
    with _open_text(path) as file:
        for number, text in enumerate(file, 1):
            if kept and not (has_paragraphs and text.strip()):
                yield start, {"text": "\n".join(kept)}
                kept = []
            if text.strip():
                start = start if kept else number
                kept.append(text.rstrip())
    if kept:
        yield start, {"text": "\n".join(kept)}
