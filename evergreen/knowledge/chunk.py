"""Blocks of a document -> chunks, each of which can be an entry: what belongs together stays together.

Promises: a chunk never reaches over a heading, and carries the headings above it as its title; it is cut between
sentences (Chinese and English), list items, table rows or lines of code; a row says its columns' names itself. Equal
blocks give equal chunks, so what did not change in a document is known by its content.
Does not: let chunks overlap (one fact would then be two entries, to be corrected twice).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

BYTES_A_TOKEN = 4  # Qwen's tokenizers: 3 to 4 English characters, or 1.5 to 1.8 Chinese ones of 3 bytes each
MAX_TITLE = 200
SEPARATOR = " > "


@dataclass(frozen=True)
class Block:
    """A paragraph of sentences, or the lines of a list, a table or code, under its headings."""

    text: str
    path: tuple[str, ...] = ()
    kind: Literal["text", "lines"] = "text"


@dataclass(frozen=True)
class Chunk:
    title: str
    content: str


def estimated_tokens(text: str) -> int:
    """How many tokens a text has, near enough, without a tokenizer."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def chunks(blocks: Iterable[Block], size: int, count: Callable[[str], int] = estimated_tokens) -> Iterator[Chunk]:
    """Chunks of at most `size` as `count` measures them; the title is not counted."""
    for path, section in groupby(blocks, key=lambda block: block.path):
        for content in _packed(section, size, count):
            yield Chunk(title_of(path), content)


def title_of(path: tuple[str, ...]) -> str:
    """The headings as one line; of a long one the ends, which name the document and the place."""
    title = SEPARATOR.join(dict.fromkeys(part for part in path if part))
    return title if len(title) <= MAX_TITLE else f"{title[:60]} … {title[-(MAX_TITLE - 63) :]}"


def _packed(section: Iterable[Block], size: int, count: Callable[[str], int]) -> Iterator[str]:
    """Whole blocks as long as they fit; a block that is too long alone is cut into units."""
    held, room = "", size
    for block in section:
        cost = count(block.text)
        if cost <= room:
            held, room = (f"{held}\n{block.text}" if held else block.text), room - cost
            continue
        if held:
            yield held
        held, room = "", size
        if cost <= size:
            held, room = block.text, size - cost
            continue
        *whole, held = _cut(block, size, count)
        yield from whole
        room = size - count(held)
    if held:
        yield held


def _cut(block: Block, size: int, count: Callable[[str], int]) -> list[str]:
    """The block's units, as many to a part as fit."""
    parts, held, room = [], "", 0
    for unit in _units(block, size, count):
        cost = count(unit)
        if cost > room and held:
            parts.append(held)
            held = ""
        if not held:
            room = size
        held, room = held + unit, room - cost
    return [part.strip() for part in [*parts, held] if part.strip()]


def _units(block: Block, size: int, count: Callable[[str], int]) -> Iterator[str]:
    """Pieces that make up the text, none longer than `size`."""
    pieces = sentences(block.text) if block.kind == "text" else block.text.splitlines(keepends=True)
    for piece in pieces:
        if count(piece) <= size:
            yield piece
        else:
            yield from _halved(piece, size, count)


# -- sentences

CLOSING = "」』”’\"')）】》］]"
ENDS = re.compile(
    rf"[。！？!?｡…；;][。！？!?…]*[{re.escape(CLOSING)}]*\s*"  # Chinese marks, and those that both languages have
    rf"|\.+[{re.escape(CLOSING)}]*(?:\s+|$)"
    r"|\n+"
)
NO_END = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|No|Nos|Fig|Figs|Eq|Sec|Vol|pp|approx|Inc|Ltd|Corp|Co|cf|al|Jan|Feb|Mar|Apr|Jun|Jul"
    r"|Aug|Sept?|Oct|Nov|Dec)|\b(?:[A-Za-z]\.)*[A-Za-z]|\be\.g|\bi\.e|\betc)\.\s*$"
)
CLAUSE = re.compile(r"(?<=[，、；：,;:])\s*|\s+")


def sentences(text: str) -> list[str]:
    """The text cut behind its sentences; the pieces joined are the text. A full stop after an abbreviation or an
    initial, and one within a number, ends nothing."""
    found, start = [], 0
    for end in ENDS.finditer(text):
        piece = text[start : end.end()]
        if end.group()[0] == "." and NO_END.search(piece) and end.end() < len(text):
            continue
        if end.group()[0] in "!?;" and end.group()[-1] in "!?;" and end.end() < len(text) and text[end.end()].isascii():
            continue  # "?a=1" in an address, not the end of a sentence
        found.append(piece)
        start = end.end()
    return found + [text[start:]] if start < len(text) else found


def _halved(text: str, size: int, count: Callable[[str], int]) -> Iterator[str]:
    """A piece that is too long for any cut that reads well: behind a clause or a word near its middle, else there."""
    if count(text) <= size or len(text) < 2:
        yield text
        return
    middle = len(text) // 2
    places = [found.end() for found in CLAUSE.finditer(text) if 0 < found.end() < len(text)]
    near = min(places, key=lambda place: abs(place - middle), default=middle)
    place = near if len(text) // 4 <= near <= len(text) - len(text) // 4 else middle
    yield from _halved(text[:place], size, count)
    yield from _halved(text[place:], size, count)
