"""Of whom a text tells what: the clauses of each name, up to the next name of its kind.

A claim names one thing, and what it says of it stands in a clause of another thing of that kind only, which the claim
does not name: "the champions are B" where A are the champions and B are second.

Promises: more than half of a claim's clause stands with the other name, and less, and nothing else, with its own. Does
not: tell what an entry is about (its title, its first name) from others; that may go on under any word. Nor does it
follow "the company".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.names import are_one, is_plain, latin_spans, normal, noun_spans, words_of
from evergreen.knowledge.overlap import terms_of
from evergreen.knowledge.sentences import split

PARTS = re.compile(r"[;；:：]|[，,](?=[^,]{0,40}[一-鿿])|, (?=(?:and|while|but|with)\b)| (?:while|whereas) ")
PRONOUN = re.compile(r"\b(?:it|its|they|their|them|he|she|his|her|him)\b|[其该它他她本]")
SHARED = re.compile(r"均|都|各|皆|两款|两者|\b(?:both|all|each|every|same)\b")


@dataclass(frozen=True)
class Scope:
    """A clause that tells of a name. `kind`: "latin", "person", or the last character of a Chinese compound.
    `is_own`: not for a pronoun only."""

    name: str
    kind: str
    clause: str
    is_own: bool


def of_another(claim: Claim, used: Sequence[Evidence]) -> tuple[str, str] | None:
    """(a name of the claim, the other one of which the sources tell what it says)"""
    named = [name for name, _ in names_in(claim.text)]
    told = [scope for one in used for scope in scopes(one.content)] if named else []
    titles = frozenset(word for one in used for word in _content(normal(one.source.title)))
    topics = " ".join(topic for one in used for topic in (normal(one.source.title), _first(one.content)))
    for clause in PARTS.split(claim.text):
        for name, kind in names_in(clause):
            kin = [scope for scope in told if scope.kind == kind]
            own = [scope.clause for scope in kin if are_one(scope.name, name)]
            words = _content(normal(clause).replace(name, " ")) - titles
            if not own or not words or name in topics or is_plain(name):
                continue
            mine = [words & _content(each) for each in own]
            for scope in kin:
                is_other = scope.is_own and not any(are_one(scope.name, each) for each in named)
                its = words & _content(scope.clause) if is_other and name not in scope.clause else frozenset()
                is_most = 2 * len(its) + bool(PRONOUN.search(scope.clause)) > len(words)
                if is_most and all(each < its for each in mine):
                    return name, scope.name
    return None


@lru_cache(256)
def scopes(text: str) -> tuple[Scope, ...]:
    """A clause without a name goes on about the last one of its sentence, and one with a pronoun about those of the
    sentence before, too."""
    found: list[Scope] = []
    about: dict[str, list[str]] = {}
    for sentence in split(text):
        goes_on = bool(PRONOUN.search(normal(sentence.text)))
        about = about if goes_on else {}
        for clause in PARTS.split(sentence.text):
            named: dict[str, list[str]] = {}
            for name, kind in names_in(clause):
                named.setdefault(kind, []).append(name)
            kept = {kind: names for kind, names in about.items() if goes_on or kind not in named}
            about = {kind: named.get(kind, []) + kept.get(kind, []) for kind in {**kept, **named}}
            if not SHARED.search(normal(clause)):
                found += [Scope(name, kind, normal(clause), not goes_on or name in named.get(kind, ()))
                          for kind, names in about.items() for name in names]  # fmt: skip
    return tuple(found)


def names_in(text: str) -> Iterator[tuple[str, str]]:
    """(name, kind)"""
    yield from ((normal(name), "latin") for name, _ in latin_spans(text))
    words = words_of(normal(text))
    people = {word.text for word in words if word.is_person}
    yield from ((name, "person" if name in people else name[-1]) for name, _ in noun_spans(words) if "每" not in name)


def _first(text: str) -> str:
    return next((normal(name) for name, _ in latin_spans(text)), "")


@lru_cache(1024)
def _content(text: str) -> frozenset[str]:
    return terms_of(text) | set(re.findall(r"\d[\d.,:]*\d|\d", text))
