"""A web page -> its title, its blocks under their headings, and what its head says of it.

The content is `main`, the one `article`, or else the body, without what surrounds it on every page (navigation, header,
footer, forms) and without what a reader would not see (hidden elements can hold text that is meant for machines)."""

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from evergreen.knowledge.chunk import Block
from evergreen.knowledge.entries import moment_of
from evergreen.knowledge.parse import Document, joined, row_text
from evergreen.records import BadInput

LEFT_OUT = frozenset(
    "script style noscript template nav footer aside form button select option input textarea svg math canvas iframe "
    "object video audio head title dialog -comment _comment".split()
)
INLINE = frozenset(
    "a abbr b bdi bdo big cite code data del dfn em font i img ins kbd label mark q rp rt ruby s samp small span "
    "strong strike sub sup time tt u var wbr -text".split()
)
UNSEEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d]))", re.I)
MAX_SPAN = 100
MAX_LISTS = 30  # within each other; what lies deeper is left out
NESTED = ("ul", "ol", "dl", "table", "pre")
MAX_DEPTH = 200  # from here on only the text is taken
DATES = ("article:modified_time", "og:updated_time", "last-modified", "article:published_time", "date", "dc.date")


def read_html(text: str, name: str) -> Document:
    """`name` is the title of a page that has none."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    meta = {}
    for node in tree.css("meta[content]"):
        about = node.attributes.get("property") or node.attributes.get("name") or node.attributes.get("itemprop") or ""
        meta.setdefault(about.lower(), (node.attributes.get("content") or "").strip())
    own = tree.css_first("head > title")
    title = joined(own.text()) if own else ""
    title = title or meta.get("og:title", "") or name
    link = tree.css_first("link[rel=canonical]")
    url = (link.attributes.get("href") or "") if link else meta.get("og:url", "")
    language = (tree.root.attributes.get("lang") or "")[:2].lower() if tree.root else ""
    blocks = list(_Page((title,)).blocks(_content(tree))) if tree.body else []
    return Document(title, blocks, url if "://" in url else "", _date(meta), (), language)


def html_blocks(text: str, path: tuple[str, ...]) -> list[Block]:
    """The blocks of a piece of HTML that stands in another document."""
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(text).body
    return list(_Page(path).blocks(body)) if body else []


def _content(tree: Any) -> Any:
    for place in ("main", "[role=main]", "article"):
        found = tree.css(place)
        if len(found) == 1 and found[0].text(deep=True).strip():
            return found[0]
    return tree.body


def _date(meta: dict[str, str]) -> str:
    for name in DATES:
        try:
            return moment_of(meta[name], name)
        except (KeyError, BadInput):
            continue
    return ""


class _Page:
    """Walks the elements: headings make the path, runs of inline elements a paragraph, lists and tables lines."""

    def __init__(self, path: tuple[str, ...]):
        self.top = path
        self.headings: list[tuple[int, str]] = []
        self.run: list[str] = []  # the inline text that is open

    @property
    def path(self) -> tuple[str, ...]:
        """A page's own first heading says more than its title, which often names the site."""
        texts = tuple(text for _, text in self.headings)
        return texts if texts and self.headings[0][0] == 1 and len(self.top) == 1 else (*self.top, *texts)

    def blocks(self, node: Any) -> Iterator[Block]:
        yield from self._inside(node, 0)
        yield from self._flush()

    def _inside(self, node: Any, depth: int) -> Iterator[Block]:
        for child in node.iter(include_text=True):
            tag = child.tag
            if tag == "-text":
                self.run.append(child.text(deep=False))
            elif tag in LEFT_OUT or _is_unseen(child) or (tag == "header" and node.tag == "body"):
                continue
            elif tag == "br":
                self.run.append("\n")
            elif tag == "img":
                self.run.append(child.attributes.get("alt") or "")
            elif tag in INLINE and depth < MAX_DEPTH:
                yield from self._inside(child, depth + 1)
            else:
                yield from self._flush()
                yield from self._block(child, tag, depth)
                yield from self._flush()

    def _block(self, node: Any, tag: str, depth: int) -> Iterator[Block]:
        if depth >= MAX_DEPTH:
            self.run.append(node.text(deep=True, separator=" "))
        elif re.fullmatch("h[1-6]", tag):
            if text := _words(node).strip("§¶ "):  # marks of links to the heading
                level = int(tag[1])
                self.headings = [(one, name) for one, name in self.headings if one < level] + [(level, text)]
        elif tag in ("ul", "ol", "dl"):
            yield from self._lines("\n".join(_items(node, 0)))
        elif tag == "table" and not node.css_first("table table") and node.css("tr"):
            yield from self._lines("\n".join(_rows(node)))
        elif tag == "pre":
            yield from self._lines(node.text(deep=True).strip("\n"))
        else:
            yield from self._inside(node, depth + 1)

    def _lines(self, text: str) -> Iterator[Block]:
        if text.strip():
            yield Block(text, self.path, "lines")

    def _flush(self) -> Iterator[Block]:
        text, self.run = joined(_spaced("".join(self.run))), []
        if text:
            yield Block(text, self.path)


def _is_unseen(node: Any) -> bool:
    has = node.attributes
    return "hidden" in has or has.get("aria-hidden") == "true" or bool(UNSEEN.search(has.get("style") or ""))


def _words(node: Any, without: tuple[str, ...] = ()) -> str:
    """An element's text on one line, without its unseen parts and the elements named."""
    parts: list[str] = []

    def walk(element: Any, depth: int) -> None:
        for child in element.iter(include_text=True):
            if child.tag == "-text":
                parts.append(child.text(deep=False))
            elif child.tag in LEFT_OUT or child.tag in without or _is_unseen(child) or depth > MAX_DEPTH:
                continue
            else:
                parts.append(" " if child.tag not in INLINE else "")
                walk(child, depth + 1)

    walk(node, 0)
    return joined(_spaced("".join(parts)))


def _items(node: Any, depth: int) -> Iterator[str]:
    """A line an item, those of a list within it further in."""
    number = 0
    for child in node.iter():
        if child.tag in LEFT_OUT or _is_unseen(child):
            continue
        if child.tag not in ("li", "dt", "dd"):
            yield from _within(child, depth)
            continue
        number += 1
        mark = {"ul": "- ", "ol": f"{number}. "}.get(node.tag, "- " if child.tag == "dt" else "  ")
        if text := _words(child, NESTED):
            yield "  " * depth + mark + text
        for inner in child.iter():
            yield from _within(inner, depth + 1)


def _within(node: Any, depth: int) -> Iterator[str]:
    """The lines of the lists, tables and code in an item."""
    if depth > MAX_LISTS or node.tag in LEFT_OUT or _is_unseen(node):
        return
    if node.tag == "table":
        yield from ("  " * depth + row for row in _rows(node))
    elif node.tag == "pre":
        yield from node.text(deep=True).strip("\n").splitlines()
    elif node.tag in ("ul", "ol", "dl"):
        yield from _items(node, depth)
    elif node.tag not in INLINE:
        for child in node.iter():
            yield from _within(child, depth)


def _rows(table: Any) -> Iterator[str]:
    """A line a row. A head of several rows names a column by all of them."""
    names: list[str] = []
    is_head = True
    for cells in _grid(table):
        texts = [text for _, text in cells]
        is_head = is_head and all(tag == "th" for tag, _ in cells)
        if is_head:
            names = [_both(above, text) for above, text in zip_longest(names, texts, fillvalue="")]
        elif not names and len(cells) == 2 and cells[0][0] == "th":  # a table of properties
            yield row_text(texts[:1], texts[1:])
        elif any(texts):
            yield row_text(names, texts)


def _grid(table: Any) -> Iterator[list[tuple[str, str]]]:
    """(tag, text) of the cells of each row; a cell that spans several columns or rows is in all of them."""
    below: dict[int, tuple[int, tuple[str, str]]] = {}  # column -> (rows that it still goes on, cell)
    for row in table.css("tr"):
        cells: list[tuple[str, str]] = []
        own = [cell for cell in row.iter() if cell.tag in ("td", "th") and not _is_unseen(cell)]
        for cell in own:
            _go_on(below, cells)
            said = (cell.tag, _words(cell))
            rows = _span(cell, "rowspan")
            for _ in range(_span(cell, "colspan")):
                if rows > 1:
                    below[len(cells)] = (rows - 1, said)
                cells.append(said)
        _go_on(below, cells)
        if own:
            yield cells


def _go_on(below: dict[int, tuple[int, tuple[str, str]]], cells: list[tuple[str, str]]) -> None:
    """Take over the cells that reach down to here."""
    while len(cells) in below:
        column = len(cells)
        rows, said = below.pop(column)
        cells.append(said)
        if rows > 1:
            below[column] = (rows - 1, said)


def _span(cell: Any, name: str) -> int:
    said = cell.attributes.get(name) or ""
    return min(int(said), MAX_SPAN) if said.isdecimal() and int(said[:9]) else 1


def _both(above: str, text: str) -> str:
    return above if text == above else f"{above} {text}".strip()


def _spaced(text: str) -> str:
    """Runs of spaces are one, as a browser shows them; line breaks stay for `joined`."""
    return re.sub(r"[ \t\f\r\u00a0]+", " ", text)
