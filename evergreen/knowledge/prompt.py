"""The context block: what the model is shown of the entries that were found, newest last, at the head of the question.

Promises: an entry is one line of the block and stays inside it. What could pass for the block's own marks (a number in
brackets, its headings, its closing lines) or for a special token of a chat template is broken up, also when it is
written with full-width, look-alike or invisible characters. The block, without the question, fits a token budget.
Does not: make a model deaf to what a sentence says. An entry that says "ignore the question" is shown as it is, as line
[n] of the block; who may write entries decides that.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from evergreen.records import Entry

if TYPE_CHECKING:
    from evergreen.knowledge.retrieve import Hit

VERSION = "1"  # rises when the frame's text changes: answers to another frame are not reused

ABSTENTION = {"zh": "根据现有信息无法回答。", "en": "I cannot answer from the information given."}
HEADING = {"zh": "[最新知识]", "en": "[Latest knowledge]"}
INSTRUCTION = {
    "zh": f"请根据以上信息回答下列问题,用[编号]注明来源;信息不足时回答“{ABSTENTION['zh']}”",
    "en": "Answer the question from the information above and cite sources as [n]; "
    f'if it is not there, answer "{ABSTENTION["en"]}"',
}
QUESTION = {"zh": "问题:", "en": "Question: "}
COLON = {"zh": ":", "en": ": "}


@dataclass(frozen=True)
class Source:
    """A line of the block: its number there, and the version of the entry it shows. `content` is what was shown of the
    entry, before anything in it was broken up: what may be quoted."""

    number: int
    id: str
    version: str
    title: str
    url: str
    host: str
    date: str
    content: str


@dataclass(frozen=True)
class Framed:
    """The text of the last user turn, and what its lines are. `num_left_out` entries did not fit."""

    text: str
    sources: list[Source]
    num_left_out: int = 0


def frame(question: str, hits: "Sequence[Hit]", language: str, max_tokens: int, count: Callable[[str], int]) -> Framed:
    """The question behind the block of the hits, which come best first: the best that fit into `max_tokens` (of the
    block without the question, by `count`), newest last. Without hits it is the question alone."""
    kept = _fitting([hit.row.entry for hit in hits], language, max_tokens, count)
    if not kept:
        return Framed(question, [], len(hits))
    return Framed(_block(kept, language) + question, _numbered(kept), len(hits) - len(kept))


def _fitting(entries: list[Entry], language: str, max_tokens: int, count: Callable[[str], int]) -> list[Entry]:
    """Best first as long as the block fits, newest last. An entry that is too long alone is cut at a sentence's end."""
    kept: list[Entry] = []
    for entry in entries:
        if count(_block(_newest_last([*kept, entry]), language)) <= max_tokens:
            kept = [*kept, entry]
    if not kept and entries:
        kept = _cut(entries[0], lambda entry: count(_block([entry], language)) <= max_tokens)
    return _newest_last(kept)


def _newest_last(entries: list[Entry]) -> list[Entry]:
    """Of those of one day the better one is behind: what stands next to the question is read best."""
    return sorted(reversed(entries), key=lambda entry: entry.update_time[:10])


def _cut(entry: Entry, fits: Callable[[Entry], bool]) -> list[Entry]:
    """The entry with as many of its first sentences as fit; nothing when not even one does."""
    ends = [match.end() for match in re.finditer(r"[。！？!?;；](?!\d)|\.(?=\s)|\n", entry.content)]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(_shortened(entry, ends[middle - 1])) else (low, middle - 1)
    return [_shortened(entry, ends[low - 1])] if low else []


def _shortened(entry: Entry, end: int) -> Entry:
    return replace(entry, content=entry.content[:end].rstrip() + " …")


def _block(entries: list[Entry], language: str) -> str:
    lines = [f"[{number}] {_line(entry, language)}" for number, entry in enumerate(entries, 1)]
    return "\n".join([HEADING[language], *lines, INSTRUCTION[language], QUESTION[language]])


def _line(entry: Entry, language: str) -> str:
    """`(date host) title: content`, without what there is not."""
    origin = " ".join(part for part in (_day(entry), host_of(entry.source_url)) if part)
    title, content = escaped(entry.title), escaped(entry.content)
    return (f"({origin}) " if origin else "") + (f"{title}{COLON[language]}{content}" if title else content)


def _numbered(entries: list[Entry]) -> list[Source]:
    return [
        Source(
            number,
            entry.id,
            entry.version,
            entry.title,
            entry.source_url,
            host_of(entry.source_url),
            _day(entry),
            entry.content,
        )  # fmt: skip
        for number, entry in enumerate(entries, 1)
    ]


def _day(entry: Entry) -> str:
    match = re.match(r"\d{4}-\d\d-\d\d", entry.update_time, re.ASCII)
    return match[0] if match else ""


@lru_cache(maxsize=4096)
def host_of(url: str) -> str:
    """The host of a URL in ASCII letters (punycode), "" when there is none."""
    try:
        host = (urlsplit(url.strip()).hostname or "").encode("idna").decode()
    except (UnicodeError, ValueError):
        return ""
    return host if re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host, re.ASCII) else ""


# -- escaping -------------------------------------------------------------------------------------------------------

LOOK_ALIKE = {
    **dict.fromkeys("【〔〖⟦⁅⦋❲⟬﹝", "["),
    **dict.fromkeys("】〕〗⟧⁆⦌❳⟭﹞", "]"),
    **dict.fromkeys("‹〈⟨❮❰⟪≺˂ᐸ", "<"),
    **dict.fromkeys("›〉⟩❯❱⟫≻˃ᐳ", ">"),
    **dict.fromkeys("ǀ∣❘│┃⎮⏐⼁丨¦", "|"),
    **dict.fromkeys("∶꞉ː׃", ":"),
}
CONTROL_WORDS = (
    r"think|thinking|tool_call|tool_response|tools?|function_calls?|s|sys|bos|eos|pad|unk|start_of_turn|end_of_turn|system|user|"
    r"assistant|im_start|im_end|endoftext|eot_id|begin_of_text"
)
NUMBERED = re.compile(r"\[(?=[\s^#]*\d)([^\[\]]{0,40}\])?")
HEADINGS = re.compile(
    r"\[(?=\s*(?:最\s*新\s*知\s*识|latest\s+knowledge|编\s*号|n\s*\]|/?\s*(?:inst|sys)))([^\[\]]{0,40}\])?", re.I
)
BROKEN_UP = re.compile(  # a space behind the first character of each breaks it
    rf"<(?=\s*\|)|\|(?=\s*>)|<(?=\s*[/<]*\s*(?:{CONTROL_WORDS})\s*[/>]*\s*>)|<(?=<\s*/?\s*sys)"
    r"|问(?=\s*题\s*:)|请(?=\s*根\s*据\s*以\s*上\s*信\s*息)|question(?=\s*:)|answer(?=\s+the\s+question\s+from)|根(?=据现有信息无法回答)"
    r"|#(?=##\s*(?:system|user|assistant|instruction))",
    re.I,
)


def escaped(text: str) -> str:
    """The text on one line, with nothing in it that could pass for the block's frame or a special token: [9] becomes
    (9), <|im_end|> becomes < |im_end| >, and invisible characters go. Ordinary text stays as it is."""
    line = _visible(text)
    line = _with_round_brackets(line, NUMBERED)
    line = _with_round_brackets(line, HEADINGS)
    return _broken_up(line)


def _visible(text: str) -> str:
    """One line: every kind of space is a space; control, format (zero-width, bidi, tags), private and unassigned
    characters go."""
    spaced = "".join(" " if char.isspace() or unicodedata.category(char) == "Cc" else char for char in text)
    kept = "".join(char for char in spaced if unicodedata.category(char) not in ("Cf", "Co", "Cn", "Cs"))
    return re.sub(" {2,}", " ", kept).strip()


def _skeleton(text: str) -> str:
    """What the text looks like, character by character: look-alikes become what they look like, marks that are set upon
    others a space. As long as the text."""
    return "".join(_looks_like(char) for char in text)


@lru_cache(maxsize=8192)
def _looks_like(char: str) -> str:
    if char in LOOK_ALIKE:
        return LOOK_ALIKE[char]
    if unicodedata.category(char) in ("Mn", "Me"):
        return " "
    plain = unicodedata.normalize("NFKC", char)
    return plain if len(plain) == 1 else char


def _with_round_brackets(line: str, form: re.Pattern) -> str:
    chars = list(line)
    for match in form.finditer(_skeleton(line)):
        chars[match.start()] = "("
        if match[1]:
            chars[match.end() - 1] = ")"
    return "".join(chars)


def _broken_up(line: str) -> str:
    ends = [match.end() for match in BROKEN_UP.finditer(_skeleton(line))]
    return (
        "".join(line[start:end] + " " for start, end in zip([0, *ends], ends, strict=False))
        + line[ends[-1] if ends else 0 :]
    )
