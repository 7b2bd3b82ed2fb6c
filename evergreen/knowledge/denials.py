"""Whether a source says the opposite of a claim: a negation more or less, another direction, a leave that it refuses.

Promises: what is said in nearly the same words with and without "not" is told, and up for down of the same number; a
thing that may be had or done by the claim, while every clause of the sources about it forbids, or the other way round.
Does not: know antonyms.
"""

import re
from collections.abc import Iterator, Sequence

from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.facts import is_negated
from evergreen.knowledge.names import normal
from evergreen.knowledge.overlap import share_of, stem, terms_of

ALIKE = 0.75  # the share of a claim's words in a clause, from which on a negation more or less is the opposite
UP = re.compile(
    "上涨|增长|增加|上升|提高|提升|上调|攀升|"
    r"\b(?:rise[sn]?|rose|rising|increase[sd]?|increasing|grew|grow[sn]?|gained|raised)\b"
)
DOWN = re.compile(
    "下跌|下降|减少|降低|下调|下滑|缩减|"
    r"\b(?:falls?|fell|fallen|falling|drop(?:s|ped)?|decrease[sd]?|declined?|declines|lowered)\b"
)
EVEN = frozenset("still also well too even both either 仍 仍然 依然 也 同样 都".split())
LEAVE = re.compile(
    r"可以|可(?=[^能见知达])|允许|准许|能(?!力|量|源|耗)|接受"
    r"|\b(?:may|can|allow(?:s|ed)?|permit(?:s|ted)?|accept(?:s|ed)?|welcome)\b"
)
REFUSAL = re.compile(
    "不可|不能|不得|不允许|不准|不接受|禁止|禁用|严禁|谢绝|不行|不许|切勿|请勿"
    r"|\b(?:may not|can ?not|must not|forbid(?:s|den)?|bann(?:ed)|prohibit(?:s|ed)?)\b|\bcan't\b|\bmustn't\b"
    r"|(?:\b(?:not|never|no)\b|n't)[^,;.]{0,20}\b(?:allowed|permitted|accepted|welcome)\b"
)
OTHERWISE = re.compile(
    "除|以外|只有|只能|最多|至多|超过|如果|须|无"
    r"|\b(?:except|unless|other than|apart from|instead|without|if|only|exceed|at most|up to)\b"
)
SHORT = re.compile(
    r"^\W*(?:不可以|不行|不能|没有|不是|不会|否|可以|能|是的|有|No|Yes)[,，。.]\s*"
)  # what answers yes or no
NOT_BUT = re.compile(r", (?:and |but )?not (?:to|by|from|in|at|on|for|the|an?)\b|而不是|而非")
AND = r"s?(?:,| (?:and|or) (?:the )?|[和与及或、])"
ELLIPSIS = re.compile(r"\b(?:is|are|can|may|do|does)(?: not|n't)[.\s]*$")
PIECE = re.compile(r"[,，。；;:!?！？\n]|\.\s|\b(?:but|while|whereas|though)\b|但|而")


def denied(claim: Claim, used: Sequence[Evidence]) -> bool:
    claim = Claim(SHORT.sub("", claim.text))
    return any(_denies(one, claim) for one in used) or _has_other_leave(claim, used)


def _denies(one: Evidence, claim: Claim) -> bool:
    """Whether its clause that is most like the claim says it with a negation more or less, or one with the claim's
    numbers tells of the opposite direction."""
    if one.language != claim.language:
        return False
    ways = _direction(claim.spelled)
    if any(_direction(clause.text) * ways < 0 for clause in one.clauses for q in claim.quantities
           if q.unit and clause.has_quantity(q)):  # fmt: skip
        return True
    if NOT_BUT.search(claim.spelled):
        return False
    names = {stem(normal(name)) for name in claim.names}
    terms = claim.terms - EVEN - names if len(claim.terms - EVEN - names) > 1 else claim.terms - EVEN
    if len(terms) < 2 or len(terms) == 2 and claim.names and terms == claim.terms:
        return False
    title = normal(one.source.title)
    alike = [(max(share_of(each, f"{title} {clause.text}") for each in (terms, claim.terms - EVEN)), clause)
             for clause in one.clauses]  # fmt: skip
    best = max((share for share, _ in alike), default=0.0)
    said = {is_negated(clause.text) for share, clause in alike if share == best}
    return best >= (ALIKE if len(terms) > 2 else 1.0) and is_negated(claim.text) not in said


def _direction(text: str) -> int:
    """1 where something rises, -1 where it falls, 0 where neither or both is told."""
    return bool(UP.search(text)) - bool(DOWN.search(text))


def _has_other_leave(claim: Claim, used: Sequence[Evidence]) -> bool:
    """Whether the claim allows a thing that its sources forbid wherever they name it, or forbids what they allow."""
    told = [pair for one in used for pair in _leaves(one.text)]
    for piece, leave in _leaves(claim.spelled):
        if not leave:
            continue
        *_, behind = REFUSAL.split(LEAVE.sub("不可", piece))  # what is allowed, without who is
        for part in (behind, REFUSAL.sub(" ", LEAVE.sub(" ", piece))):
            sides = {word: {its for each, its in told if _has(word, each)} for word in terms_of(part)}
            against = [re.escape(word) for word, its in sides.items() if its == {-leave}]
            held = [re.escape(word) for word, its in sides.items() if its == {leave}]
            joined = (rf"{a}{AND}{b}|{b}{AND}{a}" for a in against for b in held)
            if against and (not held or any(re.search(form, piece) for form in joined)):
                return True
    return False


def _leaves(text: str) -> Iterator[tuple[str, int]]:
    """(clause, leave); "dogs are not" has that of the clause before, turned."""
    last = 0
    for piece in filter(str.strip, PIECE.split(text)):
        last = -last if ELLIPSIS.search(piece) else _leave(piece)
        yield piece, last


def _leave(text: str) -> int:
    """1 where a text allows, -1 where it forbids, 0 where neither or under a condition."""
    if OTHERWISE.search(text):
        return 0
    return -1 if REFUSAL.search(text) else int(bool(LEAVE.search(text)))


def _has(word: str, text: str) -> bool:
    return word in text if not word.isascii() else word in terms_of(text)
