"""A word in the place of another: lactose where the sources have fructose between the same neighbours, 海草 for 海绵.

A claim is laid over the sources' sentences by units (Chinese characters, English stems, numbers, breaks). A noun of the
claim that none of the cited sources has, nor the question, stands in a slot when the units beside it are beside another
noun there.

Promises: who quotes with one noun changed is told, by name of the noun: a rare one between equal neighbours, or one of
a source that is not cited (the lentil soup's cumin in the stew) behind or before one; ordinary ones only where they
exclude the other by their meaning (words.txt, [exclusive]). Does not: know synonyms, so frequent words, verbs, and
Chinese words with a character in common pass.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os.path import commonprefix

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.names import (
    HAN,
    KINDS,
    NO_NAME_PART,
    begins_like_a_person,
    is_name,
    is_plain,
    latin_spans,
    normal,
    noun_spans,
    word_groups,
    word_list,
    words_of,
)
from evergreen.knowledge.overlap import stem, stems_of
from evergreen.knowledge.quantities import SMALL

UNIT = re.compile(r"[a-z0-9]+(?:[.,'-][a-z0-9]+)*|[一-鿿]|[,.;:!?，。；：！？、()\n]")
CLAUSE = re.compile(r"[,，。；;!?！？\n]|\.\s")
SAME = {"把": "将", "到": "至", "于": "在", "为": "是"}  # characters that say the same beside a name
STOP = re.compile(r"[。；;!?！？\n]|\.\s")
UNSAID = frozenset("the a an its their his her 的 了 地 得".split())
NO_NOUN = ("ed", "ing", "ly", "n't", "ous", "ful", "ive", "able", "ible", "less")
MAX_GAP = 3  # units of a slot: English words
MAX_HAN_GAP = 6
REACH = 3  # neighbours that are looked at, on either side


@dataclass(frozen=True)
class Unit:
    key: str
    start: int
    end: int


@lru_cache(256)
def units(text: str) -> tuple[Unit, ...]:
    """Of a text as `normal` gives it, its ends as breaks."""
    found = [Unit("|", 0, 0)]
    for match in UNIT.finditer(text):
        if match[0] in UNSAID:
            continue
        key = "|" if not match[0][0].isalnum() else SAME.get(match[0]) or stem(match[0])
        if key != "|" or found[-1].key != "|":
            found.append(Unit(key, *match.span()))
    return (*found, Unit("|", len(text), len(text)))


@dataclass(frozen=True)
class Place:
    """Where a word stands in a claim."""

    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        return self.text[self.start : self.end]

    @property
    def behind(self) -> str:
        return self.text[self.end :]

    @property
    def clause(self) -> str:
        return CLAUSE.split(self.text[: self.start])[-1] + self.word + CLAUSE.split(self.behind)[0]

    @cached_property
    def left(self) -> list[str]:
        return [unit.key for unit in units(self.text) if unit.end <= self.start][-REACH:][::-1]

    @cached_property
    def right(self) -> list[str]:
        return [unit.key for unit in units(self.text) if unit.start >= self.end][:REACH]

    @property
    def is_behind_noun_mark(self) -> bool:
        """Whether the word before it makes it a noun: of, with, the."""
        before = re.search(r"(?:^|\W)([a-z]+) $", self.text[: self.start])
        return bool(before) and (before[1] in word_list("before_nouns") or before[1].endswith("ed"))


@dataclass(frozen=True)
class Slot:
    """What stands in the source for a word, and how many units beside it are equal."""

    source: str
    start: int
    end: int
    left: int
    right: int

    @property
    def instead(self) -> str:
        return self.source[self.start : self.end]

    @property
    def near(self) -> int:
        return self.left + self.right

    @property
    def sentence(self) -> str:
        before, behind = self.source[: self.start], self.source[self.end :]
        return f"{STOP.split(before)[-1]}{self.instead}{STOP.split(behind)[0]}"

    @property
    def clause(self) -> str:
        return CLAUSE.split(self.source[: self.start])[-1] + self.instead + CLAUSE.split(self.source[self.end :])[0]


def replaced(
    claim: Claim, used: Sequence[Evidence], others: Sequence[Evidence], question: str
) -> tuple[str, str] | None:
    """(a noun of the claim, what the sources have in its place). `others` are not cited."""
    if any(one.language != claim.language for one in used if one.language and claim.language):
        return None
    texts = [*(one.text for one in used), normal(question)]
    elsewhere = [one.text for one in others]
    for start, end in _new_nouns(claim.spelled, texts):
        place = Place(claim.spelled, start, end)
        is_borrowed = not _is_new(place.word, elsewhere)
        for slot in (slot for text in texts[:-1] for slot in _slots(place, text)):
            if _is_taken(slot, place, is_borrowed):
                return place.word, slot.instead
    return _other_person(claim, used) or _misplaced(claim, used) or _exchanged(claim, used)


def _other_person(claim: Claim, used: Sequence[Evidence]) -> tuple[str, str] | None:
    """何雨晴 for 何雨桐: a last character that no source has behind a surname and a given name's first."""
    for match in re.finditer("(?=([一-鿿]{2})([一-鿿]))", claim.spelled):
        name, last, end = match[1], match[2], claim.spelled[match.end() + 3 :][:1]
        goes_on = re.escape(end) if HAN.match(end) else "(?![一-鿿])"
        if begins_like_a_person(name) and not any(last in one.text for one in used):
            others = [found for one in used for found in re.findall(f"{name}[一-鿿](?={goes_on})", one.text)]
            if others and last not in NO_NAME_PART:
                return name + last, others[0]
    return None


def _misplaced(claim: Claim, used: Sequence[Evidence]) -> tuple[str, str] | None:
    """A name that the sources have elsewhere only: behind the same words they have another one."""
    theirs = {pair for one in used for pair in _names(one.content)}
    for name, kind in theirs:
        bounds = (r"(?<![a-z])", r"(?![a-z])") if name.isascii() else ("", "")
        for match in re.finditer(re.escape(name).join(bounds), claim.spelled):
            place = Place(claim.spelled, *match.span())
            slots = [slot for one in used for slot in _slots(place, one.text) if slot.left == REACH]
            others = [slot for slot in slots if (slot.instead, kind) in theirs and name not in slot.sentence]
            if others and not any(name.startswith(slot.instead) for slot in slots):
                return name, others[0].instead
    return None


def _exchanged(claim: Claim, used: Sequence[Evidence]) -> tuple[str, str] | None:
    """A noun that the sources have in other clauses only, and no title: in the claim's they have another one."""
    for start, end in _told_nouns(claim.spelled):
        place = Place(claim.spelled, start, end)
        is_there = not _is_new(place.word, [one.text for one in used]) and end - start > 1
        is_there = is_there and _is_new(place.word, [normal(one.source.title) for one in used])  # else it is the topic
        slots = [slot for one in used for slot in _slots(place, normal(one.content))] if is_there else ()
        slots = [slot for slot in slots if slot.left and slot.right and slot.near > 3]
        if any(stem(slot.instead) == stem(place.word) or slot.instead in place.clause for slot in slots):
            continue
        for slot in slots:
            if (
                _is_noun_phrase(slot.instead)
                and _is_new(place.word, [slot.clause])
                and all(_apart(place.word, slot.instead))
            ):
                return place.word, slot.instead
    return None


@lru_cache(256)
def _names(text: str) -> frozenset[tuple[str, str]]:
    """(name, kind) of a text."""
    words = words_of(normal(text))
    latin = [(normal(name), "latin") for name, _ in latin_spans(text)]
    han = [(word.text, word.tag[:2]) for word in words if is_name(word.text, word.tag)]
    firms = [(name, "firm") for name, _ in noun_spans(words) if name[-2:] in word_list("firms")]
    return frozenset((*latin, *han, *firms))


def _new_nouns(text: str, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of words that may be nouns and stand in none of the texts; neighbours are one."""
    start = end = -1
    for first, last in _told_nouns(text):
        if not _is_new(text[first:last], texts) and not (last - first == 1 and first == end):
            continue
        if start >= 0 and text[end:first].strip():
            yield start, end
            start = -1
        start, end = (first if start < 0 else start), last
    if start >= 0:
        yield start, end


def _told_nouns(text: str) -> list[tuple[int, int]]:
    """Places of words that may be nouns, without those that anything may be called by: product, 产品."""
    found = sorted([*_latin_nouns(text), *_han_nouns(text)])
    return [(start, end) for start, end in found if text[start:end] not in word_list("generic")]


def _latin_nouns(text: str) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"(?<![a-z0-9'-])[a-z]{3,}(?:-[a-z]+)*(?![a-z0-9'-])", text):
        if _is_latin_noun(match[0]):
            yield match.span()


def _han_nouns(text: str) -> Iterator[tuple[int, int]]:
    """One character only behind another noun: 码头街."""
    for word in words_of(text):
        if (word.is_noun or _groups_of(word.text)) and word.text not in word_list("stop"):
            yield word.start, word.end


def _is_latin_noun(word: str) -> bool:
    if any(word in group for group in word_groups("exclusive")):
        return True
    is_function = word in word_list("stop") or word in word_list("never") or word in word_list("verbs")
    return not is_function and not word.endswith(NO_NOUN)


def _is_new(word: str, texts: Sequence[str]) -> bool:
    if not word.isascii():
        is_word = len(word) > 1 or any(word in group for group in word_groups("exclusive"))
        return is_word and not any(_stands(word, text) for text in texts)
    return not any(stem(each) in _stems(text) for each in word.split() for text in texts)


def _stands(word: str, text: str) -> bool:
    """Whether a Chinese word is there, a longer one in two parts: 女子组 where it has 女子 and 全程组."""
    return word in text or any(word[:at] in text and word[at:] in text for at in range(1, len(word)) if len(word) > 2)


_stems = lru_cache(256)(stems_of)


def _slots(place: Place, source: str) -> Iterator[Slot]:
    theirs = units(source)
    keys = [unit.key for unit in theirs]
    max_gap = MAX_GAP if place.word.isascii() else MAX_HAN_GAP
    for at in range(len(keys) - 2):
        before = _num_equal(place.left, keys[max(0, at - REACH + 1) : at + 1][::-1])
        for last in range(at + 2, min(at + 2 + max_gap, len(keys))):
            if keys[last - 1] == "|":
                break
            after = _num_equal(place.right, keys[last : last + REACH])
            if before + after > 1:
                yield Slot(source, theirs[at + 1].start, theirs[last - 1].end, before, after)


def _num_equal(mine: Sequence[str], its: Sequence[str]) -> int:
    """How many are equal, up to a break."""
    for n, (a, b) in enumerate(zip(mine, its, strict=False)):
        if a != b or a == "|":
            return n + (a == b)
    return min(len(mine), len(its))


def _is_taken(slot: Slot, place: Place, is_borrowed: bool) -> bool:
    """Whether what the slot has is another noun than the word, which its neighbours and its kind must make likely."""
    word, instead = place.word, slot.instead
    mine, its = _apart(word, instead)
    if not (mine and its) or instead in place.text:
        return False
    is_as_long = len(instead.split()) == len(word.split()) and (word.isascii() or abs(len(instead) - len(word)) < 2)
    if is_as_long and are_exclusive(word, instead):
        return bool(slot.left and slot.right) or slot.left > 1
    if is_borrowed and slot.near > 2 and is_as_long and _is_word(instead):
        return True
    if not _is_noun_phrase(its if len(its) > 1 else instead):
        return False
    if is_borrowed:
        return place.is_behind_noun_mark or not re.search("(?<!s)s$", word)
    return _is_taken_in_english(slot, place) if word.isascii() else _is_taken_in_chinese(slot, place, mine, its)


def _is_taken_in_english(slot: Slot, place: Place) -> bool:
    is_between = bool(slot.left and slot.right)
    if any(is_plain(word) for word in place.word.split()):  # ordinary words are said otherwise, but not in compounds
        is_in_compound = re.match(" [a-z]{3,}", place.behind) and _is_latin_noun(place.behind.split()[0].strip(",.;:"))
        return bool(is_in_compound) and is_between and slot.near > 3
    if is_between and slot.near > 4 and place.left[0] in SMALL:
        return True
    return place.is_behind_noun_mark and (slot.left == REACH or is_between and slot.near > 2)


def _is_taken_in_chinese(slot: Slot, place: Place, mine: str, its: str) -> bool:
    word, num_shared = place.word, len(place.word) - len(mine)
    is_name = len(word) > 2 and word[-1] in KINDS  # 法学院, but not 球队
    if is_name and slot.left == REACH:
        return True
    if (
        not (slot.left and slot.right)
        or slot.near < 4
        or words_of(word)[0].is_common
        and not (is_name or num_shared and slot.near > 4)
    ):
        return False
    if re.match(r"\W*\d", place.behind) and not num_shared:  # 用时2小时: values are called by many words
        return False
    is_other_tail = slot.left > 1 and word[-1] == slot.instead[-1] and word[-1] not in KINDS and len(its) > 1
    return is_name or min(len(mine), len(its)) > 1 or num_shared > 1 or is_other_tail  # 橙汁 for 葡萄柚汁


def _is_word(text: str) -> bool:
    """Whether it is one word that may be a noun by its form only: shipbuilding, 造纸."""
    if text.isascii():
        return text.isalpha() and text.endswith("ing")
    return len(text) > 1 and len(words_of(text)) == 1 and words_of(text)[0].tag[0] == "v"


def _is_noun_phrase(text: str) -> bool:
    if text.isascii():
        words = text.split()
        return (
            _is_latin_noun(words[-1])
            and words[-1].replace("-", "").isalpha()
            and not any(w in word_list("stop") for w in words)
        )
    return "一" <= text[0] <= "鿿" and all(word.is_noun or word.tag == "m" for word in words_of(text))


def _apart(word: str, other: str) -> tuple[str, str]:
    """Two Chinese words without what they begin or end with alike: 会展中心, 体育中心 -> 会展, 体育."""
    if word.isascii():
        return word, other
    head = len(commonprefix([word, other]))
    tail = len(commonprefix([word[head:][::-1], other[head:][::-1]]))
    return word[head : len(word) - tail], other[head : len(other) - tail]


def are_exclusive(word: str, other: str) -> bool:
    """Whether they are two of one group of words that exclude each other: red and blue, 东 and 西."""
    mine, its = _groups_of(word), _groups_of(other)
    return any(its.get(group, own) != own for group, own in mine.items())


def _groups_of(text: str) -> dict[int, str]:
    """{group: its word that stands in the text}"""
    words = {stem(word) for word in text.split()} if text.isascii() else ()
    return {
        n: each
        for n, group in enumerate(word_groups("exclusive"))
        for each in group
        if (stem(each) in words if each.isascii() else each in text)
    }
