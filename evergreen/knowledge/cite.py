"""Whether an answer's citations hold: a ladder of cheap checks, each with a reason in words.

1. the numbers in brackets are sources of the block; 2. these are neither withdrawn, replaced nor expired; 3. numbers
with their units, dates, quoted words and names of a sentence stand in the sources it cites or follow from them
(derived.py); 4. they stand there about the same thing (siblings.py, relations.py, roles.py, scopes.py, labels.py), with
the same nouns around them (slots.py), on the same side of their limits (limits.py), and are not denied (denials.py);
5. enough of the sentence's words stand there (with an embedder: its meaning); 6. a bare value is not that of another
thing than the question names (asked.py).

Promises: every sentence that states something is checked against the sources cited for it, one without a citation
against all that the answer cites. Greetings, and the abstention, are no statements.
Does not: understand. Other words than the source's may be rejected: a paraphrase of a name, a figure of two steps.
These pass: an ordinary noun replaced in a sentence of other words than the source's, or by one that the source has
elsewhere (in the right place of a quoted sentence both are told); a wrong verb; a name beside the wrong thing in
another sentence than the source's; a rate told of the wrong quantity; a value that stands in the source and answers
another question. bench/knowledge_cite.py measures.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evergreen.knowledge import siblings, slots
from evergreen.knowledge.asked import unfit
from evergreen.knowledge.dates import in_the_afternoon
from evergreen.knowledge.denials import denied
from evergreen.knowledge.derived import SUMS_UP, counts, derives
from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.facts import quantities
from evergreen.knowledge.labels import mislabelled
from evergreen.knowledge.limits import is_met, turned_limit
from evergreen.knowledge.names import cued_names, new_names, normal
from evergreen.knowledge.overlap import share_of, terms_of
from evergreen.knowledge.prompt import ABSTENTION, Source
from evergreen.knowledge.quantities import Quantity
from evergreen.knowledge.relations import turned
from evergreen.knowledge.roles import other_role
from evergreen.knowledge.scopes import of_another
from evergreen.knowledge.sentences import CITATION, Sentence, split
from evergreen.knowledge.siblings import of_a_sibling

if TYPE_CHECKING:
    import numpy as np

Embedder = Callable[[list[str]], "np.ndarray"]

VERSION = "4"  # rises when the check changes: answers that passed another one are not reused
MIN_SUPPORT = 0.3  # of a sentence's words in its sources
OF_ANYTHING = {"version", "release"}  # version 4.2 is Lark 4.2
MIN_SIMILARITY = 0.6  # cosine, where there is an embedder
ABSTAINS = re.compile(
    "|".join(re.escape(normal(text).rstrip(".。")) for text in ABSTENTION.values())
    + r"|无法(?:回答|确定|得知|判断)|(?:没有|未)(?:提供|提到|提及|找到|包含|给出)|不知道|信息不足"
    r"|\b(?:cannot|can't|could not|couldn't|unable to) (?:answer|determine|find|tell)\b|\bi (?:don't|do not) know\b"
    r"|\b(?:does not|do not|doesn't|don't) (?:say|mention|contain|include|provide|specify)\b"
    r"|\b(?:is|are) not (?:mentioned|given|stated)\b"
)


@dataclass(frozen=True)
class Problem:
    """A sentence that does not hold; `number` is the source it cites, None without one."""

    sentence: str
    number: int | None
    reason: str


@dataclass(frozen=True)
class Citations:
    """`cited` are the numbers in the order of the answer, those that do not exist, too."""

    ok: bool
    is_abstention: bool
    cited: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def check(
    answer: str,
    sources: Sequence[Source],
    is_current: Callable[[str, str], bool] = lambda id, version: True,
    embedder: Embedder | None = None,
    question: str = "",
) -> Citations:
    """Check an answer against the block's sources. `is_current(id, version)` tells whether that version of the entry
    may still be used; `embedder` (unit vectors of texts) lets a sentence in other words pass step 5; without the
    `question` step 6 is not taken."""
    evidence = {source.number: Evidence(source) for source in sources}
    sentences = list(split(answer))
    cited = list(dict.fromkeys(number for sentence in sentences for number in sentence.numbers))
    if not cited and _only_abstains(sentences):
        return Citations(True, True)
    current = {source.number for source in sources if is_current(source.id, source.version)}
    held = [evidence[number] for number in cited if number in evidence]
    block = Block(evidence, current, held, embedder, question)
    problems = [problem for sentence in sentences for problem in _problems(sentence, block)]
    if question and not problems and len(sentences) == 1 and (reason := unfit(question, sentences[0].text, held)):
        problems = [Problem(sentences[0].text, cited[0], reason)]
    return Citations(not problems, False, cited, problems)


@dataclass(frozen=True)
class Block:
    """What an answer is checked against: `current` may still be cited, `held` are cited anywhere in it."""

    evidence: dict[int, Evidence]
    current: set[int]
    held: list[Evidence]
    embedder: Embedder | None
    question: str

    def others(self, used: list[Evidence]) -> list[Evidence]:
        return [one for one in self.evidence.values() if one not in used]


def _problems(sentence: Sentence, block: Block) -> Iterator[Problem]:
    """At most one per step of the ladder; a step is taken when those before it hold."""
    evidence = block.evidence
    for number in sentence.numbers:
        if number not in evidence:
            there = f"there are 1 to {len(evidence)}" if evidence else "there are none"
            yield Problem(sentence.text, number, f"source [{number}] does not exist: {there}")
        elif number not in block.current:
            yield Problem(sentence.text, number, f"source [{number}] has been withdrawn, replaced or has expired")
    if any(number not in evidence for number in sentence.numbers):
        return
    if not sentence.numbers and is_abstention(sentence.text):
        return
    for part, numbers in sentence.parts:
        claim = Claim(part, CITATION.sub(" ", sentence.text))
        used = [evidence[number] for number in numbers] or block.held
        where = "source " + "".join(f"[{number}]" for number in numbers or [one.source.number for one in used])
        if not numbers and not claim.has_facts:
            continue
        if not used:
            yield Problem(sentence.text, None, "it states something and cites no source")
        elif reason := _fault(claim, used, where, block, is_cited=bool(numbers)):
            yield Problem(sentence.text, numbers[0] if numbers else None, reason)


def _fault(claim: Claim, used: list[Evidence], where: str, block: Block, is_cited: bool) -> str:
    """Why a claim does not hold, "" when it does."""
    if missing := _missing(claim, used, block):
        return f"{missing} is not in {where}"
    if other := _about_another(claim, used) or of_a_sibling(claim, used):
        return f"{where} says {other[0]} of {other[1]}"
    if role := turned(claim, used) or other_role(claim, used):
        return f"{where} says {role}"
    if other := of_another(claim, used):
        return f"{where} says of {other[1]} what is said of {other[0]}"
    if name := siblings.replaced(claim, used):
        return f"{name} is not in {where}"
    if pair := slots.replaced(claim, used, block.others(used), block.question):
        return f"{where} has {pair[1]} in the place of {pair[0]}"
    if value := mislabelled(claim, used):
        return f"{where} says {value} of something else"
    if limit := turned_limit(claim, used):
        return f"{where} has {limit} as a limit on the other side"
    if denied(claim, used):
        return f"{where} says the opposite"
    if is_cited and not _is_supported(claim, used, block):
        return f"too few of its words are in {where}"
    return ""


def _missing(claim: Claim, used: list[Evidence], block: Block) -> str:
    """The first fact that no source has, as it stands in the answer."""
    for quantity in claim.quantities:
        stands = any(one.has_quantity(quantity) for one in used) or derives(claim, quantity, block.held)
        if not stands and not counts(claim, quantity, used) and not _is_asked(quantity, claim, used, block.question):
            return quantity.text
    for asked, text in claim.dates:
        if not any(one.has_date(each, claim) for one in used for each in (asked, *in_the_afternoon(asked, text))):
            return text
    for score in claim.scores - {score for one in used for score in one.claim.scores}:
        return f"{score[1]}比{score[0]}"
    for name in claim.codes + claim.quoted:
        if not any(one.has_words(name) or one.has_words(name.removesuffix("s")) for one in used):
            return name
    for name, number in claim.versions:
        told = {pair for one in used for pair in one.claim.versions if name == pair[0] or name.isascii()}
        its = {number for other, number in told if other.startswith(name)}
        others = {other for other, its in told if its == number} - OF_ANYTHING
        is_of_one = bool(others) and name in OF_ANYTHING
        stands = is_of_one or number in its or any(one.has_together(name, number) for one in used)
        if (its or others) and not stands:
            return f"{name} {number}"
    names = [*claim.names, *(name for run in _novel(claim, used) for name in new_names(run))]
    missing = (name for name in names if not any(one.has_name(name, claim) for one in used))
    strangers = (name for name in cued_names(claim.spelled) if not any(one.has_words(name[:2]) for one in used))
    return next(missing, "") or next(strangers, "")


def _is_asked(quantity: Quantity, claim: Claim, used: list[Evidence], question: str) -> bool:
    """Whether a number is the question's, and within the sources' limits, or what the claim reckons with."""
    asked = Claim(question).quantities
    is_there = any(q.said == quantity.said and q.unit in ("", quantity.unit) for q in asked)
    return is_there and (is_met(quantity, claim, used) or bool(SUMS_UP.search(claim.sentence)))


def _novel(claim: Claim, used: list[Evidence]) -> list[str]:
    """Chinese runs of the claim of which no two neighbouring characters stand in a source: cut on their own they are
    tagged better than in a sentence."""
    text = claim.spelled
    pairs = [text[at : at + 2] for at in range(len(text) - 1)]
    known = {at + step for at, pair in enumerate(pairs) if any(pair in one.text for one in used) for step in (0, 1)}
    left = "".join(" " if at in known else char for at, char in enumerate(text))
    return re.findall("[一-鿿]{2,}", left)


def _is_supported(claim: Claim, used: list[Evidence], block: Block) -> bool:
    """What the claim has from the question only counts neither for it nor against it."""
    if not claim.terms or any(one.language != claim.language for one in used if claim.language and one.language):
        return True  # nothing but numbers, which stand there; or another language, whose words cannot
    text = " ".join(one.text for one in used)
    asked = frozenset(term for term in terms_of(block.question) if not share_of(frozenset((term,)), text))
    share = share_of(claim.terms - asked, text)
    needed = _needed(claim)
    if share >= needed or block.embedder is None:
        return share >= needed
    vectors = block.embedder([claim.text, *(one.source.content for one in used)])
    return float((vectors[1:] @ vectors[0]).max()) >= MIN_SIMILARITY


def _needed(claim: Claim) -> float:
    """The share of its words that a claim needs. A word or two alone are a value, which stands there or does not; a
    number or date that stands there is support already."""
    if any(not quantity.is_word for quantity in claim.quantities) or claim.dates:
        return 0.0
    if claim.has_facts:
        return MIN_SUPPORT / 2 if len(claim.terms) > 3 else 0.0
    return 1.0 if len(claim.terms) <= 2 else MIN_SUPPORT


def _about_another(claim: Claim, used: list[Evidence]) -> tuple[str, str] | None:
    """A value that the sources state of a sibling of what the claim names (S2, not S3): (it, the sibling)."""
    values = [(quantity.text, "", lambda one, it=quantity: one.has_quantity(it)) for quantity in claim.quantities]
    values += [(text, "", lambda one, it=asked: one.has_date(it)) for asked, text in claim.dates]
    shapes = [_shape(code) for code in claim.codes]  # two of one shape are compared with each other: S5 with S3
    alone = [code for code in claim.codes if shapes.count(_shape(code)) == 1]
    values += [(code, code, lambda one, it=code: one.has_words(it)) for code in alone]
    for text, code, stands_in in values:
        ours = [name for name in claim.named if name != code]
        ours = [] if all(_is_compared(name, claim.spelled) for name in ours) else ours
        clauses = [(one, clause) for one in used for clause in one.clauses if ours and stands_in(clause)]
        siblings = [_sibling(one.named_in(clause, code), ours) for one, clause in clauses]
        if siblings and all(siblings) and not siblings[0].endswith(f" {text}"):
            return text, siblings[0]
    return None


def _sibling(theirs: list[str], ours: list[str]) -> str:
    """A name of theirs that differs from one of ours in its digits only, when they have none of ours."""
    if set(theirs) & set(ours):
        return ""
    shapes = {_shape(name) for name in ours}
    return next((name for name in theirs if _shape(name) in shapes), "")


def _is_compared(name: str, text: str) -> bool:
    """Whether it is only what something else is measured against: 比P1贵, than the P1."""
    return bool(re.search(rf"(?:比|与|较|\bthan\b|compared (?:to|with))[^,;。]{{0,8}}{re.escape(name)}", text))


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _only_abstains(sentences: list[Sentence]) -> bool:
    """Whether a sentence says that there is no answer, and no other states anything."""
    others = [sentence for sentence in sentences if not is_abstention(sentence.text)]
    return len(others) < len(sentences) and not any(Claim(sentence.text).has_facts for sentence in others)


def is_abstention(text: str) -> bool:
    """Whether the text says that the question cannot be answered, in either language, and states no number beside."""
    spelled = normal(text).replace("’", "'")
    return bool(ABSTAINS.search(spelled)) and not quantities(CITATION.sub("", spelled))
