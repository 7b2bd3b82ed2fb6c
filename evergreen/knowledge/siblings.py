"""Things that differ in one word: Mira Dam and Kolwe Dam, 标准版 and 长续航版, full-time and part-time.

Siblings end in the same word (in Chinese also the same character) behind another one. Two errors are told by them: a
value that the sources give for a sibling of what the claim names, while they give that another one; and a Chinese name
of which the sources have a sibling only, with a first word that none of them has (人事部 for 财务部).

Promises: for values only siblings that the sources name themselves count, so that another word for the same thing is
none; a replaced name is one only where the one or the other is a name, or ends in what names end in (部, 集团).
Does not: follow a subject beyond its sentence, but for one that goes on with "it" or 它.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.labels import Value, is_same, segments, values_of
from evergreen.knowledge.names import INSTITUTION, KINDS, PERSONS, Word, normal, word_list, words_of
from evergreen.knowledge.overlap import stem, terms_of
from evergreen.knowledge.scopes import SHARED
from evergreen.knowledge.sentences import split

LATIN = re.compile(r"[a-z][a-z0-9]*(?:['.][a-z0-9]+)*|\d+(?:\.\d+)*")
GOES_ON = re.compile(r"\s*(?:(?:it|its|they|their|he|she|his|her)\b|[其该它他她此])")
IN_COMPOUNDS = "nbjlszatve"  # first letters of the tags of words that make compounds


NUMBERED = re.compile("[一二三四五六七八九十]+[期批届轮季级]$")


@dataclass(frozen=True)
class Compound:
    """`head` with the word before it: dam, mira; 版, 标准."""

    head: str
    modifier: str
    said: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.said or self.modifier + self.head


@dataclass(frozen=True)
class Place:
    """A value in a text; `named` are the compounds of its clause, then of those before it, the last first."""

    value: Value
    named: tuple[Set[Compound], ...]

    def of(self, family: Set[Compound]) -> Set[Compound]:
        """Of which of a family it is told."""
        return next((found for each in self.named if (found := family & each)), frozenset())


# -- values -----------------------------------------------------------------------------------------------------------


def of_a_sibling(claim: Claim, used: Sequence[Evidence]) -> tuple[str, str] | None:
    """(a value, the sibling of which the sources tell it)"""
    theirs = [place for one in used for place in _places(one.content)]
    titled = {each for one in used for each in _compounds(normal(one.source.title))}
    for place in _places(claim.text):
        told = [other for other in theirs if other.value.kind == place.value.kind]
        own = [other for other in told if is_same(place.value, other.value)]
        rivals = [other for other in told if not is_same(place.value, other.value)]
        known = {each for other in told for named in other.named for each in named}
        for mine in {each for named in place.named for each in named} if own and rivals else ():
            family = {each for each in known if each.head == mine.head}
            its = [other for other in rivals if other.of(family) == {mine}]
            if not its or place.of(family) != {mine} or _is_at_home(place, mine, own, its):
                continue
            owners = [other.of(family) for other in own]
            if all(_are_others(each, mine, claim.spelled, titled) for each in owners):
                return place.value.text, str(min(owners[0], key=str))
    return None


def _is_at_home(place: Place, mine: Compound, own: list[Place], rivals: list[Place]) -> bool:
    """Whether it is named in an earlier clause only, and a word of the value's own clause stands where the source tells
    the value, and at none of the rivals."""
    words = frozenset() if mine in place.named[0] else terms_of(place.value.window)
    there, elsewhere = (terms_of(" ".join(one.value.clause for one in each)) for each in (own, rivals))
    return bool(words & there - elsewhere)


def _are_others(theirs: Set[Compound], mine: Compound, claim: str, titled: Set[Compound]) -> bool:
    """Whether the sources tell a value of siblings that the claim does not name; what a title names needs no naming."""
    if not theirs or mine in theirs or mine in titled and not theirs <= titled:
        return False
    return not any(each.modifier in claim for each in theirs)


@lru_cache(256)
def _places(text: str) -> tuple[Place, ...]:
    found: list[Place] = []
    before: list[Set[Compound]] = []
    for sentence in split(text):
        spelled, values = normal(sentence.text), list(values_of(sentence.text))
        before = before if GOES_ON.match(spelled) else []
        for clause in segments(spelled):
            for value in (each for each in values if each.clause == clause):
                own = {*_latin(clause), *_han(clause[: clause.find(value.text)])}  # 5元 of 停车费每小时5元
                found.append(Place(value, () if SHARED.search(clause) else (own, *before)))
            before = [_compounds(clause), *before]
    return tuple(found)


def _compounds(text: str) -> Set[Compound]:
    return {*_latin(text), *_han(text)}


def _latin(text: str) -> Iterator[Compound]:
    last = None
    for match in LATIN.finditer(text):
        word = match[0]
        said = text[last.start() : match.end()] if last else ""
        if last and text[last.end() : match.start()] in (" ", "-"):
            if len(word) == 1 and word.isalpha():
                yield Compound(stem(last[0]), said, said)  # zone b
            elif word[0].isalpha() and word not in word_list("stop"):
                yield Compound(stem(word), stem(last[0]), said)
        last = match if word[0].isalpha() and word not in word_list("stop") else None


def _han(text: str) -> Iterator[Compound]:
    last = Word("", "", -1)
    for word in words_of(text):
        is_part = word.tag[0] in IN_COMPOUNDS and word.text not in word_list("stop") or bool(NUMBERED.match(word.text))
        is_next = is_part and last.text and last.end == word.start
        if is_next:
            yield Compound(word.text, last.text)
        if is_part and len(word.text) > 1 and word.tag not in (*PERSONS, "ns"):  # but 西班 of 西班牙
            yield Compound(word.text[-1], word.text[:-1])
        last = word if is_part else Word("", "", -1)


# -- names ------------------------------------------------------------------------------------------------------------


def replaced(claim: Claim, used: Sequence[Evidence]) -> str:
    """What the claim has for a Chinese name of the sources, its first word another one that none of them has."""
    if any(one.language != "zh" for one in used):
        return ""
    source = "\n".join(normal(f"{one.source.title}\n{one.content}") for one in used)
    ours, theirs = words_of(claim.spelled), words_of(source)
    for head in dict.fromkeys([*_heads(ours), *(head for head in _heads(theirs) if head in claim.spelled)]):
        told = [_before(head, end, theirs) for end in _ends(head, source, theirs)]
        if not told or not all(other and other.is_noun and other.text not in claim.spelled for other in told):
            continue
        for end in _ends(head, claim.spelled, ours):
            word = _before(head, end, ours)
            if word and word.text not in source and _can_replace(word, told, head):
                return f"{word.text}{head}"
    return ""


def _can_replace(word: Word, told: list[Word], head: str) -> bool:
    """Whether it is another name, not another word: 新房均价 may be 住宅均价."""
    if any(each.is_proper for each in (word, *told)) and (word.is_noun or word.tag == "v") and not word.is_common:
        return True
    is_kind = head[-1] in KINDS or INSTITUTION.search(head) or head[-2:] in word_list("firms")
    return bool(is_kind) and word.is_noun


def _heads(words: list[Word]) -> Iterator[str]:
    """Nouns, with what stands between them and a word before: 中心, 发射中心; 部 of 财务部."""
    for n, last in enumerate(words):
        if last.tag not in ("n", "nt", "nz"):
            continue
        if len(last.text) > 2 and last.text[-1] in KINDS:
            yield last.text[-1]
        text, start = last.text, last.start
        if len(text) > 1 or text in KINDS:
            yield text
        for word in words[max(0, n - 2) : n][::-1]:
            if word.end != start or not (word.tag[0] == "n" or word.tag in ("v", "vn")):
                break
            text, start = word.text + text, word.start
            yield text


def _ends(head: str, text: str, words: list[Word]) -> list[int]:
    """Where it stands and ends a word."""
    ends = {word.end for word in words}
    return [match.end() for match in re.finditer(re.escape(head), text) if match.end() in ends]


def _before(head: str, end: int, words: list[Word]) -> Word | None:
    """The word right before a head, of one that goes on beyond it its part."""
    start = end - len(head)
    n = bisect_left(words, start, key=lambda word: word.start) - 1
    if n < 0 or words[n].end < start:
        return None
    text = re.sub("^[由为在到从以](?=..)", "", words[n].text[: start - words[n].start])
    return Word(text, words[n].tag, words[n].start) if len(text) > 1 and text not in word_list("stop") else None
