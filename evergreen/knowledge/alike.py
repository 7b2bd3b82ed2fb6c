"""Questions that mean the same: near to an embedder, and equal in all that turns an answer around.

An embedder alone must not decide: "price of X2 in May" and "price of X3 in May" are nearer to it than two ways of
asking for one of them. So numbers, dates, quoted words, names, negation, question words, opposites, and the words that
tell the prompt's sources apart must be the same, and the prompt's sources, too. What is left to it are word order and
synonyms.

Of Chinese questions the content words must be the same as well: no embedder for Chinese could be measured, and one for
English takes 形状 for 颜色.

Measured with all-MiniLM-L6-v2: of 700 English questions 26% were found under another wording (zsRE; the cosine alone:
55%); of 698 drawn for another relation of the same subject one was, which asked the same (3), and of 2,035 pairs of
questions about one Chinese paragraph none (CMRC 2018; 63).
Does not: know an entity that is written in ordinary lower-case words and stands in no source.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evergreen.knowledge.facts import Facts, facts_of, is_negated
from evergreen.knowledge.names import HAN, normal, word_list
from evergreen.knowledge.overlap import WORD, stem, terms_of

if TYPE_CHECKING:
    import numpy as np

NEAR = 0.95  # cosine
MAX_QUESTIONS = 20_000
MAX_CHARS = 300  # a longer question has no other wording
SYMBOL = re.compile(r"[^\w\s.,;:?!'\"()，。；：？！、“”‘’（）]")  # 5 + 3 is not 5 - 3
ENGLISH = """
    who whose when where why how many much long old far often date time place city country year month day first
    last next previous this former current new old oldest newest latest earliest before after since until more
    less most least max min maximum minimum highest lowest high low higher lower best worst better worse big small
    biggest smallest large largest long short longest shortest fast slow fastest slowest up down left right north
    south east west buy sell rise fall rose fell increase decrease increased decreased gain loss win lose won lost
    open close opened closed start end begin began started ended stop stopped enable disable add remove allow
    forbid import export upload download male female man woman men women he she his her father mother son daughter
    husband wife parent child today tomorrow yesterday now ago all any only except without and or than per
"""
CHINESE = (
    "谁哪几多少久大高长远首最上下前后本今去明昨新旧老小低短快慢好坏增减升"
    "降涨跌买卖进出开关始终起止胜负输赢男女父母子夫妻东南西北左右内外所只"
    "除和或比每年月日时因怎如"
)
TURNING = re.compile(rf"\b(?:{'|'.join(ENGLISH.split())})\b|[{CHINESE}]")


@dataclass(frozen=True)
class Meaning:
    """What two questions must share. `names` are names, rare words and what has digits, in their order, since "did Acme
    buy Orion" has another answer than "did Orion buy Acme"; `terms` are the content words, in their order."""

    facts: Facts
    is_negated: bool
    turning: tuple[str, ...]
    symbols: tuple[str, ...]
    names: tuple[str, ...]
    terms: tuple[str, ...]
    is_chinese: bool

    def equals(self, other: "Meaning", sources: Sequence[str]) -> bool:
        mine = self.facts, self.is_negated, self.turning, self.symbols, self.names
        if mine != (other.facts, other.is_negated, other.turning, other.symbols, other.names):
            return False
        if self.is_chinese or other.is_chinese:
            return self.terms == other.terms
        if _is_turned(self.terms, other.terms):
            return False
        return _telling(self.terms, sources) == _telling(other.terms, sources)


@lru_cache(maxsize=4096)
def meaning_of(question: str) -> Meaning:
    spelled, facts = normal(question), facts_of(question)
    named = set(WORD.findall(" ".join([*facts.names, *facts.quoted])))
    names = [word for word in WORD.findall(spelled) if word in named or not word.isalpha() or not _is_listed(word)]
    return Meaning(
        facts,
        is_negated(question),
        tuple(sorted(TURNING.findall(spelled))),
        tuple(SYMBOL.findall(spelled)),
        tuple(names),
        tuple(sorted(terms_of(question), key=lambda term: (spelled.find(term), term))),
        HAN.search(question) is not None,
    )


def _is_turned(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether three words stand in one and the reverse order: the cat chases the dog, the dog chases the cat."""
    places = [second.index(term) for term in first if term in second]
    return any(a > b > c for a, b, c in combinations(places, 3))


def _is_listed(word: str) -> bool:
    lists = word_list("plain") | word_list("stop") | word_list("never")
    return bool({word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ed"), stem(word)} & lists)


def _telling(terms: Sequence[str], sources: Sequence[str]) -> frozenset[str]:
    """The words that some of the sources have and others have not; of a single source, all."""
    found = [frozenset(term for term in terms if term in source) for source in sources]
    if len(found) < 2:
        return frozenset().union(*found)
    return frozenset().union(*found) - frozenset.intersection(*found)


class Alike:
    """The questions whose answers are in the cache, by what must be the same in their keys."""

    def __init__(self, embed: "Callable[[list[str]], np.ndarray]", near: float = NEAR):
        """`embed`: texts -> float32 [n, d], each of length 1."""
        self.embed, self.near = embed, near
        self._of: OrderedDict[str, dict[str, str]] = OrderedDict()  # rest -> key -> question
        self._vectors: OrderedDict[str, Any] = OrderedDict()  # question -> its vector
        self._num_questions = 0
        self._lock = threading.Lock()

    def add(self, rest: str, key: str, question: str) -> None:
        if len(question) > MAX_CHARS:
            return
        with self._lock:
            questions = self._of.setdefault(rest, {})
            self._of.move_to_end(rest)
            self._num_questions += key not in questions
            questions[key] = question
            while self._num_questions > MAX_QUESTIONS:
                self._num_questions -= len(self._of.popitem(last=False)[1])

    def find(self, rest: str, question: str, sources: Sequence[str]) -> list[str]:
        """The keys of questions that mean the same over the same sources, the nearest first."""
        with self._lock:
            others = dict(self._of.get(rest, {})) if len(question) <= MAX_CHARS else {}
        meaning, sources = meaning_of(question), [normal(source) for source in sources]
        equal = {key: other for key, other in others.items() if meaning.equals(meaning_of(other), sources)}
        if not equal:
            return []
        vectors = self._embedded([question, *equal.values()])
        scored = [(float(vectors[0] @ vector), key) for key, vector in zip(equal, vectors[1:], strict=True)]
        return [key for score, key in sorted(scored, reverse=True) if score >= self.near]

    def _embedded(self, questions: list[str]) -> list[Any]:
        with self._lock:
            known = {question: self._vectors[question] for question in questions if question in self._vectors}
        if missing := [question for question in dict.fromkeys(questions) if question not in known]:
            known |= zip(missing, self.embed(missing), strict=True)
        with self._lock:
            self._vectors |= known
            while len(self._vectors) > MAX_QUESTIONS:
                self._vectors.popitem(last=False)
        return [known[question] for question in questions]
