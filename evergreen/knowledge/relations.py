"""Who does it and to whom: two names and the word that joins them, told apart from the same the other way round.

Promises: A taught B, B was taught by A, A was B's teacher, B studied under A, 甲收购乙, 乙被甲收购, 甲是乙的老师 and
乙师从甲 are read as pairs; a claim whose pair the sources have only turned round is told. A pronoun at the head of a
sentence, and a missing subject, are who the entry begins with. Does not: follow others.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.names import (
    HAN,
    INSTITUTION,
    KINDS,
    are_one,
    begins_like_a_person,
    latin_spans,
    normal,
    word_groups,
    word_list,
    words_of,
)
from evergreen.knowledge.overlap import WORD, stem
from evergreen.knowledge.sentences import split

MUTUAL = re.compile(
    r"[a-z][,;:]|\b(?:while|whereas|but)\b|\b(?:and|or|with|versus|vs|met|meets|married|marries|drew)\b|[与和同跟及、比平]|合作|结婚"
)
PASSIVE = re.compile(r"\bby(?: [a-z]+){0,3}\s*$|[被由遭]")  # by the agency ESRA
POSSESSED = re.compile(r"(?:\s*['’]s?|[^,，]{0,8}的)\s*(?:[a-z]+ )?(?P<word>[a-z]+|[一-鿿]{2,3})")  # X was Y's teacher
POSSESSOR = re.compile(  # 白仲谦, ...,学生有庄礼文
    r"(?:\s*['’]s?|[^,，]{0,8}的)\s*(?:[a-z]+ )?(?P<word>[a-z]+|[一-鿿]{2,3}?)(?:[是为有]|包括|,? (?:is|was)|,)?\s*$"
    r"|.*[,，](?P<after>[一-鿿]{2,3})(?:[是为有]|包括)$"
)
INDIRECT = re.compile(r"\b(?:at|in|on|from|for|with|near|of|into|around|about)(?: the| its)?\s*$")  # developed at B
PRONOUN = re.compile(r"^(?:(?:He|She|It|They)\b|[他她它])\s*")
NOUN_OF = re.compile(r"\s*(?:is|was|,)\s*(?:the |an? )?(?:[a-z]+ )*?(?P<word>[a-z]+) (?:of|to) (?:the )?$")
MAX_BETWEEN = 60  # characters
NAMED = re.compile("[一-鿿·]+")
MAX_NAME = 12  # Chinese characters


@dataclass(frozen=True)
class Relation:
    """`one` does it to, or is it for, `other`."""

    word: str
    one: str
    other: str

    def __str__(self) -> str:
        return f'"{self.word}" of {self.one} and {self.other}, in this order,'

    def is_turned(self, its: "Relation") -> bool:
        return self.word == its.word and are_one(self.one, its.other) and are_one(self.other, its.one)

    def is_same(self, its: "Relation") -> bool:
        return self.word == its.word and are_one(self.one, its.one) and are_one(self.other, its.other)


def turned(claim: Claim, used: Sequence[Evidence]) -> Relation | None:
    """The sources' relation that the claim has the other way round."""
    source = " ".join(f"{one.source.title} {one.content}" for one in used)
    ours = list(_relations(claim.text, source))
    told = [relation for one in used for relation in _relations(_with_topic(one), claim.text)] if ours else []
    for mine in ours:
        its = [relation for relation in told if mine.is_turned(relation)]
        if its and not any(mine.is_same(relation) for relation in told):
            return its[0]
    return None


def _with_topic(one: Evidence) -> str:
    """Its content, where pronouns and sentences without a subject get the name that it begins with."""
    spans = [name for name, start in latin_spans(one.content) if start == 0]
    topic = spans[0] if spans else _named((HAN.match(one.content) or [""])[0][:MAX_NAME])
    if not topic:
        return one.content
    sentences = [sentence.text for sentence in split(one.content)]
    has_subject = re.compile(rf"^[^,，]{{0,20}}{re.escape(topic)}")
    return " ".join(
        PRONOUN.sub(f"{topic} ", each) if PRONOUN.match(each)
        else each if each.isascii() or has_subject.search(each) else f"{topic}，{each}"
        for each in sentences
    )  # fmt: skip


def _relations(text: str, other: str) -> Iterator[Relation]:
    """Of the names of a text that the other has, too."""
    for sentence in split(text):
        spelled = normal(sentence.text)
        names = [(normal(name), start) for name, start in latin_spans(sentence.text)] or _common(spelled, normal(other))
        for (one, first), (other_, second) in pairwise(names):
            between, behind = spelled[first + len(one) : second], spelled[second + len(other_) :]
            if len(between) <= MAX_BETWEEN and not MUTUAL.search(between):
                yield from _between(one, other_, between, behind)


def _between(one: str, other: str, between: str, behind: str) -> Iterator[Relation]:
    owned, owner = POSSESSED.match(behind), POSSESSOR.match(between)
    if owner and (word := _noun(owner["word"] or owner["after"])):  # Oren's teacher Sandow
        yield _relation(word, other, one)
        return
    elif owned and (word := _noun(owned["word"])) or (of := NOUN_OF.match(between)) and (word := _noun(of["word"])):
        yield _relation(word, one, other)
    for word in () if INDIRECT.search(between) else _verbs(between):
        pair = (other, one) if PASSIVE.search(between) else (one, other)
        yield _relation(word, *pair)


def _relation(word: str, one: str, other: str) -> Relation:
    form, is_turned = converses().get(word, (word, False))
    return Relation(form, other, one) if is_turned else Relation(form, one, other)


def _noun(word: str) -> str:
    """Of a person or firm that does something: teacher, owner; "" for other nouns."""
    if not word.isascii():
        return next((form for form in (word, word[:2]) if form in converses()), "")
    form = stem(word)
    return form if form in converses() or re.search("(?:er|or)$", form) and len(form) > 5 else ""


def _verbs(between: str) -> list[str]:
    if HAN.search(between):
        verbs = [word.text for word in words_of(between) if word.tag[0] == "v" or word.text in converses()]
        return [word for word in verbs if word not in word_list("stop") and word not in "在以是为"]
    return [stem(word) for word in WORD.findall(between) if word not in word_list("stop") and not word[0].isdigit()]


@cache
def converses() -> dict[str, tuple[str, bool]]:
    """{form: (the first of its group, is it the other way round)}: taught -> teach, pupil -> teach, turned."""
    found = {}
    for group in word_groups("converse"):
        forms, turned_round = group[: group.index("|")], group[group.index("|") + 1 :]
        found |= {stem(form): (forms[0], False) for form in forms}
        found |= {stem(form): (forms[0], True) for form in turned_round}
    return found


def _common(text: str, other: str) -> list[tuple[str, int]]:
    """(name, place) of the longest pieces of Chinese text that the other has, too, as far as they look like names."""
    found, at = [], 0
    while at < len(text) - 1:
        length = next(
            (n for n in range(MAX_NAME, 1, -1) if text[at : at + n] in other and NAMED.fullmatch(text[at : at + n])), 0
        )
        piece = text[at : at + length]
        if length and (name := _named(piece)):
            found.append((name, at + piece.index(name)))
        at += length or 1
    return found


def _named(piece: str) -> str:
    """The name at the end or the head of a piece: 前锋陈越, 东江队主场; "" for none."""
    if "·" in piece:
        return piece.strip("·")
    for start in range(len(piece) - 1):
        for end in range(len(piece), start + 1, -1):
            part = piece[start:end]
            is_person = len(part) < 4 and (begins_like_a_person(part) or words_of(part)[0].is_person)
            is_kind = len(part) > 2 and (
                part[-1] in KINDS or INSTITUTION.search(part) or part[-2:] in word_list("firms")
            )
            if (is_person or is_kind) and part not in word_list("no_names"):
                return part
    return ""
