"""On which side of a number or date something lies: at least, more than and 以上 against at most, under and 以下.

Promises: a claim that has a number or date on the other side than the likest clause of its sources is told: under 12
years for over 12 years, until 2 June for from 2 June. Does not: judge where the claim denies what the sources do not
("not for children under 12" of what is for children over 12), or where a source has no such word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evergreen.knowledge.dates import Date
from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.facts import is_negated
from evergreen.knowledge.overlap import terms_of
from evergreen.knowledge.quantities import Quantity

MORE = (
    r"\b(?:over|above|beyond|exceed(?:s|ed|ing)?"
    r"|(?<!\bno )(?:more|greater|higher|older|longer|larger|heavier|taller) than"
    r"|at least|no (?:less|fewer|lower|younger|shorter|smaller|lighter) than|minimum(?: of)?)"
    "|超过|大于|高于|多于|至少|最少|起码|不少于|不低于|不小于|逾|(?<![不未])满"
)
LESS = (
    r"\b(?:under|below|within|up to|(?<!\bno )(?:less|fewer|lower|younger|shorter|smaller|lighter) than|at most"
    r"|no (?:more|longer|older|larger|heavier|higher|taller) than|maximum(?: of)?)"
    "|不超过|不高于|不大于|不多于|至多|最多|低于|小于|少于|不足|不到|不满|未满"
)
SINCE = r"\b(?:after|since|from|starting|not (?:before|until)|(?:no|not) earlier than)|(?<!截)自|从"
UNTIL = r"\b(?:before|until|till|by|to|through|(?:no|not) later than)|截至|截止|至|到"
BEHIND = r"[^\w,;]{0,3}(?:the age of |age )?(?:提前|到|于|为|约)?$"
FORMS = {  # is it a date's: (form before, form behind it, side)
    False: [
        (rf"(?:{LESS}){BEHIND}", r"\s?(?:or|and) (?:less|under|below|younger|fewer|lower|shorter|lighter)\b", -1),
        (rf"(?:{MORE}){BEHIND}", r"\s?(?:or|and) (?:more|over|above|older|longer|higher|up|heavier)\b", 1),
        ("(?!)", r"[个名次人件条岁家台]?(?:及|或)?(?:以下|以内|之内)", -1),
        ("(?!)", r"[个名次人件条岁家台]?(?:及|或)?以上", 1),
    ],
    True: [
        (rf"(?:{SINCE}){BEHIND}", r"\s?(?:起|之后|以后|以来|onwards?\b|后(?!者|续))", 1),
        (rf"(?:{UNTIL}){BEHIND}", r"\s?(?:之前|以前|前|为止|止|or earlier\b)", -1),
    ],
}
SIDES = {
    is_date: [(re.compile(before), re.compile(behind), side) for before, behind, side in forms]
    for is_date, forms in FORMS.items()
}
DENIED = re.compile(  # must not exceed, 不得低于; not of whom: not open to children under 12
    r"(?:\b(?:not|never|cannot)|n't|不得|不能|不可|不应|不会|禁止|切勿|请勿)(?!.*\b(?:to|for|who|that|with|of|the)\b)"
    r"[^,;.，；。]{0,16}(?:exceed(?:s|ed|ing)?|(?:more|less|fewer|longer|older|younger) than|超过|[低高少多]于)\s?$"
)
WORDS = re.compile(f"{MORE}|{LESS}")
COMMA = re.compile(r"[,，](?!\d{3})|[;；。!！?？\n]|\.\s")
BREAK = re.compile(r"[,，](?!\d{3})|[;；。!！?？\n:：]|\.\s|\b(?:but|and)\b|但|而")
REST = re.compile(
    r"\b(?:longer|larger|bigger|heavier|older|taller|more|beyond|(?:above|over|after) that|then|later|others?|otherwise"
    r"|rest)\b"
    "|其余|后|其他|超出|否则|以外|续"
)
SHUT = re.compile(r"\b(?:closed?|closes|shut|except|other than|apart from)\b|关闭|闭馆|停|除|免")


def side_of(text: str, start: int, end: int, is_date: bool) -> int:
    """1 for more or later than what stands there, -1 for less or earlier, 0 for neither."""
    before, behind = text[max(0, start - 40) : start], text[end : end + 16]
    for ahead, after, side in SIDES[is_date]:
        if ahead.search(before) or after.match(behind):
            return -side if DENIED.search(before) else side
    return 0


@dataclass(frozen=True)
class Limit:
    """A number or date with the side that a text has it on. `clause` is around it, `part` what commas bound,
    `is_denied` for a negation in the clause."""

    what: Quantity | Date
    said: str
    side: int
    clause: str
    part: str
    is_denied: bool
    has_rest: bool  # whether its sentence goes on with what lies beyond: longer vehicles, others, 其余

    def admits(self, quantity: Quantity) -> bool:
        return (quantity.value - self.what.value) * self.side > 0 or quantity.value == self.what.value


def turned_limit(claim: Claim, used: Sequence[Evidence]) -> str:
    """The first number or date of a claim that its sources have on the other side only, "" for none."""
    ours = [limit for limit in limits(claim.spelled) if limit.side]
    for mine in ours:
        told = [limit for one in used for limit in limits(one.text) if _is_same(mine.what, limit.what)]
        others = [q.text for q in claim.quantities if q.value != getattr(mine.what, "value", 0) and q.text in mine.part]
        shares = [
            (sum(text in limit.part for text in others), len(terms_of(limit.clause) & terms_of(mine.clause)))
            for limit in told
        ]
        likest = [limit for limit, share in zip(told, shares, strict=True) if share == max(shares)]
        if any(limit.clause == mine.clause and limit.side == mine.side for limit in told):
            continue
        if told and all(_speaks_against(limit, mine, claim) for limit in likest):
            return mine.said
    return ""


def _speaks_against(limit: Limit, mine: Limit, claim: Claim) -> bool:
    if limit.side != -mine.side or limit.is_denied != mine.is_denied:
        return False
    others = [q.text for q in claim.quantities if q is not mine.what and q != mine.what]
    return not limit.has_rest or any(text in limit.part for text in others)


def is_met(quantity: Quantity, claim: Claim, used: Sequence[Evidence]) -> bool:
    """Whether a number of the question, as 22 kg of a child of 22 kg, is within the limits of the clauses in which the
    sources have the claim's other numbers; there must be such."""
    units = (quantity.unit, "") if quantity.unit == "岁" else (quantity.unit,)
    told = [limit for one in used for limit in limits(one.text)
            if limit.side and isinstance(limit.what, Quantity) and limit.what.unit in units]  # fmt: skip
    others = [q.text for q in claim.quantities if q != quantity]
    told = [limit for limit in told if not others or any(text in limit.part for text in others)]
    return bool(told) and all(limit.admits(quantity) for limit in told)


@lru_cache(256)
def limits(text: str) -> tuple[Limit, ...]:
    """Of all numbers and dates of a text as `normal` gives it, also of those without a side."""
    claim = Claim(text)
    places = [(q, q.start, q.end, False) for q in claim.quantities]
    spans = [span for _, span in claim.dated]
    places += [(one, *span, True) for one, span in claim.dated if spans.count(span) == 1]  # not 14 to 25 July
    return tuple(_limit(text, *place) for place in places)


def _limit(text: str, what: Quantity | Date, start: int, end: int, is_date: bool) -> Limit:
    before, behind = BREAK.split(text[:start])[-1], BREAK.split(text[end:])[0]
    bare = WORDS.sub(" ", f"{DENIED.sub(' ', before)} {behind}")
    is_denied = is_negated(bare) != bool(SHUT.search(bare))
    rest = re.split(r"[。；;!?！？\n]|\.\s", text[end:])[0]
    side = side_of(text, start, end, is_date)
    clause = before + text[start:end] + behind
    part = COMMA.split(text[:start])[-1] + text[start:end] + COMMA.split(text[end:])[0]
    return Limit(what, text[start:end].strip(), side, clause, part, is_denied, bool(REST.search(rest)))


def _is_same(mine: Quantity | Date, its: Quantity | Date) -> bool:
    if isinstance(mine, Quantity) and isinstance(its, Quantity):
        return mine.value == its.value and mine.unit == its.unit
    if isinstance(mine, Date) and isinstance(its, Date):
        names = ("year", "month", "day", "quarter", "weekday", "time")
        return all(getattr(mine, n) == getattr(its, n) or not (getattr(mine, n) and getattr(its, n)) for n in names)
    return False
