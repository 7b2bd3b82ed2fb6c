"""Numbers that stand in no source but follow from those that do: a difference, a year's sum, the days between dates.

Promises: exact sums, differences and products of what the claim's sentence says itself and its sources have, and half,
twice and a year's twelve; with a word for it ("that is", 即) also of what the sources say; the time between two of
their dates (一周后) or times of day. Does not: round, or chain more than two steps.
"""

import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import combinations, permutations

from evergreen.knowledge.dates import Date
from evergreen.knowledge.evidence import EACH, Claim, Evidence
from evergreen.knowledge.facts import quantities
from evergreen.knowledge.quantities import Quantity

COMPARES = re.compile(
    r"比|相差|差距|贵|便宜|省下|节省|多出|\b(?:than|differences?|cheaper|saves?|saving|behind|ahead|gap)\b"
)
SUMS_UP = re.compile(
    r"即|也就是|相当于|合计|总|共(?!有)|加起来|等于|=|\b(?:i\.?e\.?|that is|in (?:total|all)|total(?:s|led|ling)?"
    r"|altogether|together|combined|equals?|equivalent|amounts?|(?:comes?|adds?) (?:up )?to|works? out|each)\b"
)
YEAR = re.compile(r"年|\b(?:years?|yearly|annual(?:ly)?)\b")
HALF, DOUBLE = re.compile(r"一半|半价|五折|\bhal(?:f|ves)\b"), re.compile(r"一倍|翻番|\b(?:twice|doubled?)\b")
APART = re.compile(
    "后|前|时间|年间|早|晚|相隔|间隔|历时|为期|时隔|享年|终年|[岁周]|期间|持续"
    r"|\b(?:later|earlier|older|younger|after|before|between|aged?|lasted|lasts|apart|for|over|took|runs?)\b"
)
LIFE = re.compile(r"(?<!\d)(1\d{3}|20\d\d)\s?[-—~至]+\s?(1\d{3}|20\d\d)(?!\d)")  # 1889-1967
AGED = re.compile(r"\baged?(?: of)?\s*$")


def derives(claim: Claim, quantity: Quantity, used: Sequence[Evidence], is_first: bool = True) -> bool:
    """Whether a number of the claim follows from others that the sources have, or (in the `is_first` step) from one
    that does. A month's or day's number does not."""
    if quantity.noun[:1] in ("月", "日", "号"):
        return False
    is_time = quantity.unit in ("day", "month", "岁", "min") or AGED.search(claim.spelled[: quantity.start])
    if is_time and _is_between_dates(quantity, claim, used):
        return True
    others = [q for q in quantities(claim.sentence) if str(q) != str(quantity)]
    said = [q for q in others
            if any(one.has_quantity(q) for one in used) or is_first and derives(claim, q, used, False)]  # fmt: skip
    told = [q for one in used for q in one.claim.quantities] if quantity.unit else []
    sums_up = bool(SUMS_UP.search(claim.sentence))
    is_rated = sums_up or any(EACH.search(one.text) for one in used)
    is_sum = _is_sum(quantity, said, told if sums_up or COMPARES.search(claim.spelled) else [])
    return (
        is_sum or bool(quantity.unit) and _is_product(quantity, claim.sentence, others, said, told, sums_up, is_rated)
    )


def _is_sum(quantity: Quantity, said: Sequence[Quantity], told: Sequence[Quantity]) -> bool:
    """Of two of all, or of all that is said."""
    alike = [q.value for q in (*said, *told) if q.unit == quantity.unit]
    if any(quantity.value in (a - b, a + b) for a, b in permutations(alike, 2)):
        return True
    return len(said) > 2 and quantity.value == sum(q.value for q in said if q.unit == quantity.unit)


def _is_product(
    quantity: Quantity, text: str, others: Sequence[Quantity], said: Sequence[Quantity], told: Sequence[Quantity],
    sums_up: bool, is_rated: bool,
) -> bool:  # fmt: skip
    """Of a number of its unit and one or two of others: two months of 2,800, three books for five days at 0.2."""
    mine, its = ({q.value for q in each if q.unit == quantity.unit} for each in (said, (*said, *told)))
    counts = {_factor(q) for q in others if q.unit != quantity.unit}
    if any(quantity.value == count * value for count in counts for value in (its if is_rated else mine)):
        return True
    factors = {12} if YEAR.search(text) else set()
    factors |= {Decimal("0.5")} if HALF.search(text) else set()
    factors |= {2} if DOUBLE.search(text) else set()
    if sums_up:
        factors |= {*counts, *(_factor(q) for q in told if q.unit != quantity.unit)}
        factors |= {a * b for a, b in permutations(counts, 2)}
    return any(quantity.value == factor * value for factor in factors for value in its)


def counts(claim: Claim, quantity: Quantity, used: Sequence[Evidence]) -> bool:
    """Whether a number only says how many times one of the sources is taken: two hours at $15 are $30."""
    others = [q for q in quantities(claim.sentence) if str(q) != str(quantity)]
    told = [q for one in used for q in one.claim.quantities]
    pairs = ((a, b) for a in others for b in told if a.unit and a.unit == b.unit != quantity.unit)
    return any(a.value == quantity.said * b.value for a, b in pairs)


def _factor(quantity: Quantity) -> Decimal:
    return quantity.said / (100 if quantity.unit == "%" else 1)


def _is_between_dates(quantity: Quantity, claim: Claim, used: Sequence[Evidence]) -> bool:
    told = [one for source in used for one in _whole(source)]
    if quantity.unit == "min":
        times = [int(h) * 60 + int(m) for h, m, *_ in (one.time.split(":") for one in told if one.time)]
        return any(quantity.value == abs(a - b) for a, b in combinations(times, 2))
    if not APART.search(claim.spelled):
        return False
    for a, b in combinations([one for one in told if one.year], 2):
        years, months = a.year - b.year, 12 * (a.year - b.year) + a.month - b.month
        if quantity.unit in ("岁", "") and quantity.value in (abs(years), abs(years) - 1):
            return True
        if quantity.unit == "month" and quantity.value in (abs(12 * years), abs(months) if a.month and b.month else 0):
            return True
        if quantity.unit == "day" and _num_days(a, b) == quantity.value:
            return True
    return False


def _whole(source: Evidence) -> list[Date]:
    """Its dates; those without a year have that of the source's own date."""
    own = [one for one, _ in source.claim.dates]
    own += [Date(int(year)) for pair in LIFE.findall(source.text) for year in pair]
    own += [Date(int(q.value)) for q in source.claim.quantities if not q.unit and 1000 <= q.value <= 1500]
    year = int(source.source.date[:4] or 0) if source.source.date[:4].isdecimal() else 0
    return [Date(one.year or year, one.month, one.day) if one.month and not one.year else one for one in own]


def _num_days(one: Date, other: Date) -> int:
    """0 where they are no days."""
    try:
        return abs((date(one.year, one.month, one.day) - date(other.year, other.month, other.day)).days)
    except ValueError:
        return 0
