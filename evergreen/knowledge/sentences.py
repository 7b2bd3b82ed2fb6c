"""The sentences of an answer, and what each piece of them cites.

Promises: "3.5 kg.", "Dr. Li" and "5 p.m. on Friday" end no sentence; a citation behind the full stop belongs to the
sentence before it; [1], [1, 2], [1-3], 【1】 and full-width digits are citations; brackets in code are none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

CITATION = re.compile(r"\s*[\[【［〔]\s*(\d{1,3}(?:\s*[,，、;；–-]\s*\d{1,3})*)\s*[\]】］〕]")
CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)、])\s+|^[#>\s]+")
END = re.compile(r"[。！？!?]+[”\"』」）)]*|\n+|\.(?=\s|$|[\[【])[\"”)]*")
ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|no|vs|inc|ltd|co|corp|approx|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|e\\.g|i\\.e"
)
NO_END = re.compile(rf"(?:\b(?:{ABBREVIATIONS})|\b[A-Z]|^\s*\d{{1,2}})$", re.I)
MAYBE_END = re.compile(r"(?:[ap]\.m|u\.s|u\.k)$", re.I)
SOURCE_WORD = re.compile(
    r"[\W_]*(?:资料来源|信息来源|来源|参考|参见|见|出处|sources?|see|refs?|references?)[\W_]*", re.I
)


@dataclass(frozen=True)
class Sentence:
    """`parts` are its pieces, each with the numbers that are cited right behind it; `text` is all of it."""

    text: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def numbers(self) -> list[int]:
        return list(dict.fromkeys(number for _, numbers in self.parts for number in numbers))


def split(answer: str) -> Iterator[Sentence]:
    """The sentences of a text, Chinese or English. Citations behind the full stop belong to the sentence before it."""
    text = CODE_BLOCK.sub(" ", answer)
    start = 0
    for match in END.finditer(text):
        if match.end() <= start or _goes_on(text, match):
            continue
        end = match.end()
        while citation := CITATION.match(text, end):
            end = citation.end()
        if sentence := _sentence(text[start:end]):
            yield sentence
        start = end
    if sentence := _sentence(text[start:]):
        yield sentence


def _goes_on(text: str, match: re.Match) -> bool:
    """Whether a full stop is one of an abbreviation or a list's number."""
    if not match[0].startswith("."):
        return False
    before = text[max(0, match.start() - 12) : match.start()].rsplit("\n", 1)[-1]
    follows = text[match.end() : match.end() + 2].strip()
    return bool(NO_END.search(before)) and follows != "" or bool(MAYBE_END.search(before) and not follows[:1].isupper())


def _sentence(text: str) -> Sentence | None:
    text = LIST_MARK.sub("", text).strip()
    if not re.search(r"\w", text):
        return None
    parts, start, numbers = [], 0, []
    for match in CITATION.finditer(text):
        piece = text[start : match.start()]
        if re.search(r"\w", piece) and not SOURCE_WORD.fullmatch(piece):
            parts.append((piece, []))
        if not parts:
            parts.append(("", []))
        parts[-1][1].extend(_numbers(match[1]))
        start = match.end()
    if re.search(r"\w", text[start:]):
        parts.append((text[start:], numbers))
    return Sentence(text, tuple((piece, tuple(numbers)) for piece, numbers in parts))


def _numbers(text: str) -> list[int]:
    """1, 3-5 -> 1 3 4 5."""
    found: list[int] = []
    for piece in re.split("[,，、;；]", text):
        first, _, last = re.sub("[–-]", "-", piece).partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
