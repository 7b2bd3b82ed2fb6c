"""A PDF -> its title and its paragraphs, each under the page that it begins on.

Lines that stand at the top or bottom of most pages (running titles, page numbers) are left out; a sentence that goes on
over the page's end is one sentence."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from evergreen.knowledge.chunk import CLOSING, Block
from evergreen.knowledge.entries import moment_of
from evergreen.knowledge.parse import Document, joined
from evergreen.records import BadInput

MIN_PAGES = 3  # from which on repeated lines are running titles
COMPLETE = re.compile(rf"[.!?。！？…:：;；][{re.escape(CLOSING)}]*\s*$")
ITEM = re.compile(r"\s*[•▪◦‣●○■□–—*]\s")
LEADERS = re.compile(r"(?:\s?[.．·…]){4,}")  # the dots of a table of contents
HYPHENATED = re.compile(r"(?<=[a-z])[-\u00ad]\n(?=[a-z])")


def read_pdf(path: Path) -> Document:
    """Raises BadInput for a file that is no PDF, is locked by a password, or holds pictures of text only."""
    title, when, pages = _read(path)
    pages = _without_running_titles(pages)
    empty = sum(1 for page in pages if not page.strip())
    if empty == len(pages):
        raise BadInput(f"{path}: none of its {len(pages)} pages holds text (a scan?): run text recognition over it "
                       "first, such as ocrmypdf")  # fmt: skip
    notes = (f"{path}: {empty} of {len(pages)} pages hold no text",) if empty else ()
    name = title or path.stem
    blocks = [Block(text, (name, f"p. {number}")) for number, text in _paragraphs(pages)]
    return Document(name, blocks, update_time=when, notes=notes)


def _read(path: Path) -> tuple[str, str, list[str]]:
    """(title, time of the last change, text of each page)"""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it complains of what it can mend
    place = "it"
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadInput(f"{path} is locked by a password: save it without one first")
        pages = []
        for number, page in enumerate(reader.pages, 1):
            place = f"page {number}"
            pages.append(page.extract_text() or "")
        place = "what it says of itself"
        return *_about(reader), pages
    except BadInput:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the parser
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{path} cannot be read as a PDF, {place} is damaged: {said}") from None


def _about(reader: Any) -> tuple[str, str]:
    about = reader.metadata or {}
    try:
        changed = getattr(about, "modification_date", None) or getattr(about, "creation_date", None)
    except ValueError:
        changed = None
    title = about.get("/Title")
    return " ".join(str(title).split()) if title else "", moment_of(changed.isoformat(), "a date") if changed else ""


def _without_running_titles(pages: list[str]) -> list[str]:
    if len(pages) < MIN_PAGES:
        return pages
    split = [[line for line in page.splitlines() if line.strip()] for page in pages]
    seen = Counter(_shape(line) for lines in split for line in {*lines[:1], *lines[-1:]})
    running = {shape for shape, number in seen.items() if number > len(pages) / 2}
    for lines in split:
        while lines and _shape(lines[0]) in running:
            lines.pop(0)
        while lines and _shape(lines[-1]) in running:
            lines.pop()
    return ["\n".join(lines) for lines in split]


def _shape(line: str) -> str:
    """A line with its numbers taken for one: page 7 and page 8 look alike."""
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _paragraphs(pages: list[str]) -> list[tuple[int, str]]:
    """(page, text): a line that ends a sentence well before the page's usual width ends a paragraph."""
    found: list[tuple[int, str]] = []
    open_text, begun = "", 1
    for number, page in enumerate(pages, 1):
        lines = page.splitlines()
        width = max(map(len, lines), default=0)
        for line in lines:
            if ITEM.match(line) and open_text:
                found.append((begun, open_text))
                open_text = ""
            if not open_text:
                begun = number
            is_last = not line.strip() or (COMPLETE.search(line) and len(line.strip()) < 0.85 * width)
            open_text += line.rstrip() + "\n"
            if is_last:
                found.append((begun, open_text))
                open_text = ""
        if open_text and COMPLETE.search(open_text):
            found.append((begun, open_text))
            open_text = ""
    found.append((begun, open_text))
    cleared = ((page, LEADERS.sub(" … ", joined(HYPHENATED.sub("", text)))) for page, text in found)
    return [(page, text) for page, text in cleared if text]
