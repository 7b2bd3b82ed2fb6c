"""CSV and JSONL -> entries, a row an entry, read line by line.

Columns are known by the names that people give them, in English and Chinese. A CSV without a column of texts is a table
of facts: its rows become `name: value; name: value`."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.knowledge.encoding import encoding_of
from evergreen.knowledge.entries import check, checked_version
from evergreen.knowledge.parse import KINDS, row_text
from evergreen.records import BadInput, Entry

NAMES = {
    "content": ("content", "text", "body", "passage", "answer", "fact", "内容", "正文", "文本", "答案", "事实"),
    "title": ("title", "question", "heading", "标题", "问题"),
    "id": ("id", "编号"),
    "source_url": ("source_url", "url", "link", "source", "来源", "链接", "网址"),
    "update_time": ("update_time", "updated_at", "updated", "date", "更新时间", "更新日期", "日期", "时间"),
    "version": ("version", "版本"),
    "tags": ("tags", "tag", "labels", "标签"),
    "language": ("language", "lang", "语言"),
    "valid_from": ("valid_from", "生效时间", "生效日期"),
    "valid_until": ("valid_until", "expires", "失效时间", "失效日期"),
}  # fmt: skip
FACTS = (
    "id",
    "source_url",
    "tags",
    "update_time",
    "valid_from",
    "valid_until",
)  # what a table of facts may say besides
EXPORTED = ("n", "op", "at", "author", "reason", "ended", "redacted", "snapshot", "score", "kind")  # not of the entry
MAX_CELL = 16 << 20
TOLD_EVERY = 500  # rows


@dataclass(frozen=True)
class Columns:
    """Which columns hold the content and the title, where they are not called so."""

    content: str = ""
    title: str = ""


def read_rows(
    path: Path,
    encoding: str,
    columns: Columns,
    bad: Callable[[BadInput], None],
    unused: set[str],
    reached: Callable[[int], None] = lambda _: None,
) -> Iterator[Entry]:
    """The entries of a file. `bad` hears of each row that cannot be one, naming its line, and raises it or goes on;
    columns that nothing is made of are put into `unused`; `reached` hears now and then how many bytes are read."""
    found = encoding_of(path, encoding)
    rows = _csv_rows if KINDS[path.suffix.lower()] == "csv" else _json_rows
    for line, row in rows(path, found, bad, reached):
        try:
            entry = _entry(row, columns, path, unused)
            checked_version(entry.version)
            check(entry)
        except BadInput as error:
            bad(BadInput(f"{path}:{line}: {error}"))
            continue
        yield entry


def _json_rows(
    path: Path, encoding: str, bad: Callable[[BadInput], None], reached: Callable[[int], None]
) -> Iterator[tuple[int, dict]]:
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if number % TOLD_EVERY == 0:
                reached(file.buffer.tell())
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: a number of more than 4,300 digits, too
                bad(BadInput(f"{path}:{number}: not JSON: {error}"))
                continue
            if not isinstance(row, dict):
                bad(BadInput(f"{path}:{number}: wants an object with a content, got {type(row).__name__}"))
                continue
            if row.get("ended") is not None or row.get("redacted"):
                bad(BadInput(f"{path}:{number}: a version that has ended (an export of all versions is for keeping): "
                             "export without --all can be imported"))  # fmt: skip
                continue
            yield number, {str(name): value for name, value in row.items() if name not in EXPORTED}


def _csv_rows(
    path: Path, encoding: str, bad: Callable[[BadInput], None], reached: Callable[[int], None]
) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(MAX_CELL)
    with open(path, encoding=encoding, newline="") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=_delimiter(head, path), strict=True)
        names: list[str] = []
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # an open quote takes in the rest of the file: nothing after it is a row
                bad(BadInput(f"{path}:{reader.line_num}: {error}"))
                return
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not names:
                names = _header(cells, path)
            elif len(cells) != len(names):
                bad(BadInput(f"{path}:{reader.line_num}: {len(cells)} cells where the header has {len(names)}"))
            else:
                if reader.line_num % TOLD_EVERY == 0:
                    reached(file.buffer.tell())
                yield reader.line_num, dict(zip(names, cells, strict=True))


def _delimiter(head: str, path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)


def _header(cells: list[str], path: Path) -> list[str]:
    if doubled := next((name for name in cells if name and cells.count(name) > 1), ""):
        raise BadInput(f"{path}: the header names {doubled!r} twice")
    return [name or f"column {number}" for number, name in enumerate(cells, 1)]


def _entry(row: dict[str, Any], columns: Columns, path: Path, unused: set[str]) -> Entry:
    known = {name.lower(): name for name in row}
    for wanted in (columns.content, columns.title):
        if wanted and wanted.lower() not in known:
            raise BadInput(f"no column {wanted!r}: there are {', '.join(row)}")
    place = {field: next((known[name] for name in names if name in known), "") for field, names in NAMES.items()}
    place |= {field: known[name.lower()] for field in ("content", "title") if (name := getattr(columns, field))}
    if not place["content"] and KINDS[path.suffix.lower()] == "csv":
        return _fact(row, place, path)
    if not place["content"]:
        raise BadInput(f"no content: there are {', '.join(row) or 'no fields'} (--content_column names one)")
    unused |= set(row) - set(place.values())
    return Entry(**{field: _value(field, row[name]) for field, name in place.items() if name and _is_given(row[name])}
                 | {"content": _text("content", row[place["content"]])})  # fmt: skip


def _fact(row: dict[str, str], place: dict[str, str], path: Path) -> Entry:
    """A row of a table without texts: all its cells are the content, but those that an entry has fields for."""
    about = {field: place[field] for field in FACTS if place[field] and row[place[field]]}
    names = [name for name in row if name not in about.values()]
    content = row_text(names, [row[name] for name in names])
    if not content:
        raise BadInput("a row with nothing in it")
    title = row[place["title"]] if place["title"] else path.stem
    return Entry(**{field: _value(field, row[name]) for field, name in about.items()} | {"content": content,
                 "title": title})  # fmt: skip


def _is_given(value: Any) -> bool:
    return value is not None and value != "" and value != []


def _value(field: str, value: Any) -> Any:
    if field != "tags":
        return _text(field, value)
    parts = value if isinstance(value, list) else re.split(r"[,，;；|]", _text(field, value))
    return tuple(dict.fromkeys(word for part in parts if (word := str(part).strip())))


def _text(field: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadInput(f"{field} wants a text, got {'null' if value is None else type(value).__name__}")
    return str(value).strip()
