"""Who does what: whom a text names before, behind and "by" a verb, and whose something is.

A claim that has one name in a role is told apart from sources that have only another one in it, while they name the
claim's elsewhere: Goldcrest as the developer where it is the publisher, A bought B for B bought A.

Promises: looks at the same word in both (bought, 收购) and at the names right beside it, active or passive. Does not:
parse, know that a sale is a purchase, or look at names that the sources do not have.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.names import HAN, Word, are_one, latin_spans, normal, noun_spans, word_list, words_of
from evergreen.knowledge.overlap import share_of, stem
from evergreen.knowledge.sentences import split

BREAK = re.compile(r"[,;:!?()\n]|。|\.(?= |$)|\b(?:and|while|but|who|which|that)\b")
HAN_BREAK = re.compile(r"[,;:。!?()\n]")
ALSO = "(?: (?:also|has|had|have|will|then|later|now|already|recently|first|who|which|that|officially|reportedly))*"
NO_OBJECT = r"(?! (?:in|on|at|by|for|with|to|from)\b|[?.:]| *$)"  # was X released in June; X, released in June
ACTIVE = re.compile(rf"{ALSO} ([a-z][a-z-]+(?<!ed)|[a-z-]+ed{NO_OBJECT})(?![a-z-])")
PASSIVE = re.compile(rf"{ALSO} (?:is|was|were|are|been|be|being){ALSO} ([a-z][a-z-]+(?:ed|en|ght|ld))\b")
OWNED = re.compile(r"['’]s?(?: [a-z]+)? ([a-z][a-z-]{2,})")
OF_ANOTHER = re.compile(r"\b(?:of|in|at|from|for|with|to|by|on) (?:the )?$")  # the mayor of X opened
BEHIND = (
    re.compile(r"\b([a-z][a-z-]{2,}) (by|of|from|to|for|with|in|at|on|over|via|under)(?: (?:the|an?|its|their))? $"),
    re.compile(r"\b([a-z][a-z-]{2,})()(?: (?:the|an?|its|their)(?: [a-z-]+){0,2})? $"),
)
LABEL = re.compile("([一-鿿]{2})[方者][是为]([一-鿿]{2,10})")  # 领投方是启明资本


@dataclass(frozen=True)
class Role:
    """`name` in the role `kind` ("does", "is done", "of", a preposition) of a word."""

    word: str
    kind: str
    name: str
    clause: str
    sentence: str

    def __str__(self) -> str:
        return f'"{self.word} {self.kind}" {self.name}'

    @property
    def around(self) -> str:
        """Where the others of the same event stand: a Chinese clause, an English sentence."""
        return self.clause if HAN.search(self.word) else self.sentence


def other_role(claim: Claim, used: Sequence[Evidence]) -> Role | None:
    """The sources' role that speaks against one of the claim's."""
    told = [role for one in used for role in roles(one.content)]
    titles = " ".join(normal(one.source.title) for one in used)
    ours = roles(claim.text)
    for mine in ours:
        same = [role for role in told if role.word == mine.word]
        its = [role for role in same if role.kind == mine.kind]
        if turned := _turned(mine, ours, same):
            return turned
        if not its or not any(mine.name in one.text for one in used):
            continue
        if any(are_one(role.name, mine.name) or _is_beside(mine, role) for role in its):
            continue
        if mine.name not in titles and _is_only(mine, its, claim, used):
            return its[0]
    return None


def _turned(mine: Role, ours: Sequence[Role], told: list[Role]) -> Role | None:
    """The sources' role of a word that the claim, which names who does it and to whom, has the other way round."""
    other = {"does": "is done", "is done": "does"}.get(mine.kind, "")
    if not any(role.word == mine.word and role.kind == other for role in ours):
        return None
    is_verb = len(mine.word) > 3 or not mine.word.isascii()  # GB per month
    if not is_verb or any(role.kind == mine.kind and are_one(role.name, mine.name) for role in told):
        return None
    return next((role for role in told if role.kind == other and role.name == mine.name), None)


def _is_beside(mine: Role, role: Role) -> bool:
    """Whether the source names it on the same side of the word, further off."""
    if re.search(f"{re.escape(mine.word)}[了过]?{re.escape(mine.name)}", role.sentence):
        return True
    before, word, after = role.sentence.partition(mine.word)
    if mine.kind == "does" and role.name in before:
        return mine.name in before
    clause = next((part for part in BREAK.split(role.sentence) if role.name in part), "")
    side = clause.partition(mine.word)[2] if mine.kind == "is done" and mine.word in clause else clause
    return mine.name in side


def _is_only(mine: Role, its: list[Role], claim: Claim, used: Sequence[Evidence]) -> bool:
    """Whether the sources use the word for these alone, and say what else the claim does."""
    form = rf"\b{mine.word}" if mine.word.isascii() else re.escape(mine.word)
    num_places = sum(len(re.findall(form, one.text)) for one in used)
    texts = (mine.clause, claim.spelled)
    rest = next(filter(None, (Claim(text.replace(mine.name, " ")).terms - {mine.word} for text in texts)), frozenset())
    is_named = any(role.name in claim.spelled for role in its)
    return num_places == len(its) and not is_named and any(share_of(rest, role.around) >= 0.5 for role in its)


@lru_cache(256)
def roles(text: str) -> tuple[Role, ...]:
    """Of the names of a text."""
    sentences = [sentence.text for sentence in split(text)]
    return tuple(role for each in sentences for role in (*_english(each), *_chinese(normal(each))))


def _english(text: str) -> Iterator[Role]:
    for name, start in latin_spans(text):
        before, after = text[:start], text[start + len(name) :]
        clause = normal(BREAK.split(before)[-1] + name + BREAK.split(after)[0])
        for word, kind in _beside(before, after):
            if word not in word_list("stop"):
                yield Role(stem(word), kind, normal(name), clause, normal(text))


def _beside(before: str, after: str) -> Iterator[tuple[str, str]]:
    """(word, role) of what stands between two pieces of a text."""
    if owned := OWNED.match(after):
        yield owned[1], "of"
    elif passive := PASSIVE.match(after):
        yield passive[1], "is done"
    elif (active := ACTIVE.match(after)) and not OF_ANOTHER.search(before):
        yield active[1], "does"
    if behind := next(filter(None, (form.search(before) for form in BEHIND)), None):
        yield behind[1], {"by": "does", "": "is done"}.get(behind[2], behind[2])


def _chinese(text: str) -> Iterator[Role]:
    for clause in HAN_BREAK.split(text):
        for label in LABEL.finditer(clause):
            yield Role(label[1], "does", label[2], clause, text)
        words = words_of(clause)
        names = list(noun_spans(words))
        for n, word in enumerate(words):
            if len(word.text) > 1 and word.text not in word_list("stop"):
                found = _of_verb(n, words, names, clause) if word.tag[0] == "v" else _of_noun(n, words)
                yield from (Role(word.text, kind, name, clause, text) for kind, name in found)


def _of_verb(n: int, words: list[Word], names: list[tuple[str, int]], clause: str) -> Iterator[tuple[str, str]]:
    verb = words[n]
    first = names[0][0] if names and names[0][1] == 0 and len(names[0][0]) <= verb.start else ""
    by = next((word for word in words[max(0, n - 4) : n][::-1] if word.text in ("由", "被")), None)
    if by and by.end < verb.start:
        yield "does", clause[by.end : verb.start]
        if first and len(first) <= by.start:
            yield "is done", first
    elif first:
        yield "does", first
    behind = verb.end + bool(re.match("[了过]", clause[verb.end :]))
    yield from (("is done", name) for name, at in names if at == behind and clause[at + len(name) :][:1] != "的")


def _of_noun(n: int, words: list[Word]) -> Iterator[tuple[str, str]]:
    """任命周文澜, whose verb is tagged as a noun; 董事长陆怀川."""
    follows = words[n + 1] if n + 1 < len(words) else None
    if words[n].tag[0] == "n" and follows and follows.is_person and follows.start == words[n].end:
        yield "is done", follows.text
