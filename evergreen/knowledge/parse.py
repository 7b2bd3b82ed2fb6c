"""A file of prose -> its title, its blocks under their headings, and what it says of itself.

Markdown by markdown-it-py (CommonMark and tables), HTML by selectolax's Lexbor, PDF by pypdf, plain text by its blank
lines. Contents are plain text: marks of emphasis and links go, a table's row says its columns' names itself.
Does not: read scans (no text recognition), run scripts, fetch anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from evergreen.knowledge.chunk import Block
from evergreen.knowledge.encoding import read_text
from evergreen.knowledge.entries import moment_of
from evergreen.records import BadInput

KINDS = {
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".log"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".pdf": "pdf",
}
HAN = "\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
BETWEEN_HAN = re.compile(rf"(?<=[{HAN}])\s*\n\s*(?=[{HAN}])")


@dataclass(frozen=True)
class Document:
    """`title` stands above all headings. What the file does not say of itself is ""."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    source_url: str = ""
    update_time: str = ""
    tags: tuple[str, ...] = ()
    language: str = ""
    notes: tuple[str, ...] = ()  # what is left out, for a person


def read_document(path: Path, encoding: str = "") -> Document:
    """Raises BadInput, naming file and place, for what cannot be read."""
    kind = KINDS[path.suffix.lower()]
    if kind == "pdf":
        from evergreen.knowledge.pdf import read_pdf

        return read_pdf(path)
    text = read_text(path, encoding)
    if kind == "html":
        from evergreen.knowledge.html import read_html

        return read_html(text, path.stem)
    if kind == "markdown":
        return read_markdown(text, path)
    return Document(path.stem, [Block(part, (path.stem,)) for part in paragraphs(text)])


def paragraphs(text: str) -> list[str]:
    """Paragraphs of plain text, which stand between blank lines; their own lines are joined."""
    return [joined(part) for part in re.split(r"\n\s*\n", text) if part.strip()]


def joined(text: str) -> str:
    """Lines as one: without a space where Chinese goes on."""
    return re.sub(r"\s*\n\s*", " ", BETWEEN_HAN.sub("", text.strip()))


def row_text(names: list[str], cells: list[str]) -> str:
    """A table's row as a sentence: `name: value; name: value.`, in Chinese marks under Chinese names."""
    if not any(names):
        return " | ".join(cell for cell in cells if cell)
    colon, semicolon, stop = ("：", "；", "。") if re.search(f"[{HAN}]", "".join(names)) else (": ", "; ", ".")
    named = zip(names + [""] * (len(cells) - len(names)), cells, strict=False)
    row = semicolon.join(f"{name}{colon}{cell}" if name else cell for name, cell in named if cell)
    return row + stop if row[-1:].isalnum() and "://" not in row.rpartition(colon)[2] else row


# -- Markdown


def read_markdown(text: str, path: Path) -> Document:
    about, text = _front_matter(text, path)
    blocks = list(_Markdown(about.title, is_named=about.title != path.stem).blocks(_markdown_it().parse(text)))
    return replace(about, blocks=blocks)


@lru_cache
def _markdown_it() -> Any:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _front_matter(text: str, path: Path) -> tuple[Document, str]:
    """What the YAML between two lines of --- at the top says, and the text below it."""
    found = re.match(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", text, re.S)
    if not found:
        return Document(path.stem), text
    import yaml

    try:
        values = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"{path}: the front matter is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):  # two rules with text between them
        return Document(path.stem), text
    values = {str(name).lower(): value for name, value in values.items() if value is not None}
    tags = values.get("tags", ())
    tags = re.split(r"[,，\s]+", tags) if isinstance(tags, str) else tags
    when = next((str(values[name]) for name in ("update_time", "updated", "lastmod", "date") if name in values), "")
    about = Document(
        title=str(values.get("title", path.stem)),
        source_url=str(values.get("source_url", values.get("url", ""))),
        update_time=moment_of(when, f"{path}: the front matter's date") if when else "",
        tags=tuple(str(tag) for tag in tags if str(tag)) if isinstance(tags, (list, tuple)) else (str(tags),),
        language=str(values.get("language", values.get("lang", "")))[:2].lower(),
    )
    return about, text[found.end() :]


class _Markdown:
    """Walks markdown-it's tokens: headings make the path, a list or table becomes lines."""

    def __init__(self, title: str, is_named: bool):
        """`is_named`: the document says its title itself; else its headings do better than its file's name."""
        self.title, self.is_named = title, is_named
        self.headings: list[tuple[int, str]] = []
        self.lines: list[str] = []  # of the list that is open
        self.lists: list[int | None] = []  # per open list: its next number, None for bullets
        self.marker = ""
        self.names: list[str] = []
        self.cells: list[str] = []

    @property
    def path(self) -> tuple[str, ...]:
        headings = tuple(text for _, text in self.headings)
        return headings if headings and not self.is_named else (self.title, *headings)

    def blocks(self, tokens: list[Any]) -> Iterator[Block]:
        table: list[str] = []
        heading = 0
        for token in tokens:
            kind = token.type
            if kind == "heading_open" and token.level == 0:
                heading = int(token.tag[1])
            elif kind == "inline" and heading:
                text = inline_text(token)
                self.headings = [(level, name) for level, name in self.headings if level < heading] + [(heading, text)]
                heading = 0
            elif kind == "table_open":
                self.names, table = [], []
            elif kind in ("th_open", "td_open"):
                self.cells.append("")
            elif kind == "tr_close":
                if self.names:
                    table.append(row_text(self.names, self.cells))
                else:
                    self.names = self.cells
                self.cells = []
            elif kind == "table_close":
                yield from self._given("\n".join(table) or " | ".join(self.names), "lines")
            elif kind in ("bullet_list_open", "ordered_list_open"):
                self.lists.append(int(token.attrGet("start") or 1) if kind.startswith("ordered") else None)
            elif kind == "list_item_open":
                self._begin_item()
            elif kind in ("bullet_list_close", "ordered_list_close"):
                self.lists.pop()
                if not self.lists:
                    lines, self.lines = self.lines, []
                    yield from self._given("\n".join(lines), "lines")
            elif kind == "inline" and self.cells:
                self.cells[-1] = inline_text(token).replace("\n", " ")
            elif kind == "inline":
                yield from self._given(inline_text(token), "text")
            elif kind in ("fence", "code_block"):
                yield from self._given(token.content.rstrip(), "lines")
            elif kind == "html_block":
                yield from self._html(token.content)

    def _begin_item(self) -> None:
        number = self.lists[-1]
        mark = "-" if number is None else f"{number}."
        if number is not None:
            self.lists[-1] = number + 1
        self.marker = "  " * (len(self.lists) - 1) + mark + " "

    def _given(self, text: str, kind: Any) -> Iterator[Block]:
        """A block, or within a list more of its lines."""
        if not text.strip():
            return
        if not self.lists:
            yield Block(text, self.path, kind)
            return
        self.lines += [self.marker + line if not place else line for place, line in enumerate(text.splitlines())]
        self.marker = "  " * len(self.lists)

    def _html(self, text: str) -> Iterator[Block]:
        from evergreen.knowledge.html import html_blocks

        for block in html_blocks(text, self.path):
            yield from self._given(block.text, block.kind)


def inline_text(token: Any) -> str:
    """A paragraph's words, without its marks."""
    parts = []
    for child in token.children or ():
        if child.type in ("text", "code_inline", "image"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak") or child.content.startswith("<br"):
            parts.append("\n")
    return joined("".join(parts))
