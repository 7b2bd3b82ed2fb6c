"""What a piece of an answer claims, what a source says, and whether the one stands in the other.

Numbers agree when they are equal in a base unit, or, said roughly, within a step of what was said; a date may take its
year from another date of the source; names are looked up as they are written, and by their initials and adjectives.
"""

import re
from datetime import date
from decimal import Decimal
from functools import cached_property
from itertools import permutations

from evergreen.knowledge.dates import MONTH_OF, Date, dated, without
from evergreen.knowledge.facts import is_negated, quantities
from evergreen.knowledge.names import NO_NAME_PART, codes, han_names, latin_names, normal, quoted
from evergreen.knowledge.overlap import share_of, stem, stems_of, terms_of
from evergreen.knowledge.prompt import Source
from evergreen.knowledge.quantities import Quantity
from evergreen.knowledge.sentences import split

ROUGH = Decimal("0.05")  # "about 4,200" may be off by this share, and by less than a step of what it says
ADJECTIVES = frozenset("n an ian ean ese ish i s ns ans ians".split())
ALIKE = 0.75  # the share of a claim's words in a clause, from which on a negation more or less is the opposite
VERSIONED = re.compile(r"([a-z]?[A-Z][A-Za-z]+) ?(\d+(?:\.\d+)*)(?![\w%]|[.,]\d)")
NUMBERED = re.compile(r"([一-鿿]{2})([一二三四五六七八九十]+|\d+)号")
_DAY = "(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:周|星期)[一二三四五六日天])"
WEEKDAY_RANGE = re.compile(rf"{_DAY}\s?(?:to|through|until|-|至|到)\s?{_DAY}")
BARE_DECIMAL = re.compile(r"\d+\.\d+")
UP = re.compile(
    "上涨|增长|增加|上升|提高|提升|上调|攀升|"
    r"\b(?:rise[sn]?|rose|rising|increase[sd]?|increasing|grew|grow[sn]?|gained|raised)\b"
)
DOWN = re.compile(
    "下跌|下降|减少|降低|下调|下滑|缩减|"
    r"\b(?:falls?|fell|fallen|falling|drop(?:s|ped)?|decrease[sd]?|declined?|declines|lowered)\b"
)
COMPARES = re.compile("比|相差|差距|贵|便宜|省下|节省|" r"\b(?:than|difference|cheaper|saves?|saving)\b")
YEARLY = re.compile(r"月.*年|\bmonth.*\b(?:year|annual)")


class Claim:
    """A piece of an answer, taken apart once."""

    def __init__(self, text: str, sentence: str = ""):
        """`sentence` is what it is a piece of."""
        self.text = text
        self.spelled = normal(text)
        self.sentence = normal(sentence or text)

    @cached_property
    def language(self) -> str:
        """ "" for a bare value, such as a name: it may stand in a text of any language."""
        if num_han := len(
            re.findall("[一-鿿]", self.text)
        ):  # a name in brackets makes an English sentence no Chinese one
            return "zh" if num_han >= len(re.findall(r"(?<!\S)[a-z]{2,}", self.text)) else "en"
        return "en" if len(re.findall(r"(?<!\S)[a-z]{2,}", self.text)) > 1 else ""

    @cached_property
    def quantities(self) -> list[Quantity]:
        return quantities(self.spelled, [span for _, span in self.dated])

    @cached_property
    def dates(self) -> list[tuple[Date, str]]:
        return [(one, self.spelled[start:end].strip()) for one, (start, end) in self.dated]

    @cached_property
    def dated(self) -> list[tuple[Date, tuple[int, int]]]:
        """(date, its place)"""
        return list(dated(self.spelled))

    @cached_property
    def codes(self) -> list[str]:
        return codes(self.spelled)

    @cached_property
    def versions(self) -> list[tuple[str, str]]:
        """Names with the number behind them: (python, 3.12), (windows, 7), (长风, 二)."""
        found = [(name.lower(), number) for name, number in VERSIONED.findall(self.text)]
        return [pair for pair in found if pair[0][:3] not in MONTH_OF] + NUMBERED.findall(self.spelled)

    @property
    def named(self) -> list[str]:
        """Its codes, and its names with the number behind them: x2, kestrel 4."""
        return self.codes + [f"{name} {number}" for name, number in self.versions if name + number not in self.codes]

    @cached_property
    def quoted(self) -> list[str]:
        return quoted(self.text)

    @cached_property
    def names(self) -> list[str]:
        return [*latin_names(self.text), *han_names(self.text)]

    @property
    def has_facts(self) -> bool:
        return bool(self.quantities or self.dates or self.codes or self.quoted or self.names)

    @cached_property
    def terms(self) -> frozenset[str]:
        """Its words without those that make up its numbers and dates."""
        numbers = [(quantity.start, quantity.end) for quantity in self.quantities]
        return terms_of(without(self.spelled, [*numbers, *(span for _, span in self.dated)]).replace("\0", " "))

    def derives(self, quantity: Quantity, used: "list[Evidence]") -> bool:
        """Whether it is the sum or difference of two others that the sources have, of the sentence or, where it
        compares, of theirs; or a year's sum of a month's. A month's or day's number is none."""
        if quantity.noun in ("月", "日", "号"):
            return False
        others = [q.value for q in quantities(self.sentence)
                  if q.unit == quantity.unit and any(one.has_quantity(q) for one in used)]  # fmt: skip
        if quantity.value in {12 * value for value in others} and YEARLY.search(self.sentence):
            return True
        if quantity.unit and COMPARES.search(self.spelled):
            others += [own.value for one in used for own in one.claim.quantities if own.unit == quantity.unit]
        return any(quantity.value in (a - b, a + b) for a, b in permutations(others, 2))


class Evidence:
    """A source, or one sentence of it, and what stands in it."""

    def __init__(self, source: Source, content: str | None = None):
        self.source = source
        self.content = source.content if content is None else content
        head = f"{source.title}\n{source.date} {source.host}\n" if content is None else ""
        self.text = normal(head + self.content)
        self.claim = Claim(head + self.content)

    @cached_property
    def lines(self) -> "list[Evidence]":
        return [Evidence(self.source, sentence.text) for sentence in split(self.content)]

    def named_in(self, clause: "Evidence", besides: str) -> list[str]:
        """What a clause names; what its line, or else the title, does, where the clause names nothing or only compares
        with it (比 X1 贵, than the X1)."""
        own = [name for name in clause.claim.named if name != besides]
        if own and not re.search(r"比|\bthan\b", clause.text):
            return own
        title = Claim(self.source.title).named
        lines = [name for line in self.lines if clause.content in line.content for name in line.claim.named]
        return own + (title or lines)

    @property
    def language(self) -> str:
        return self.claim.language

    @cached_property
    def squeezed(self) -> str:
        return re.sub(r"[\W_]+", "", self.text)

    @cached_property
    def stems(self) -> set[str]:
        return stems_of(self.text)

    def has_quantity(self, wanted: Quantity) -> bool:
        if any(_agree(wanted, own) for own in self.claim.quantities):
            return True
        if wanted.unit == "day" and wanted.value in self._num_days:
            return True
        if not wanted.unit and re.search(rf"(?<![\d.]){re.escape(wanted.text)}(?![\d]|[.,]\d)", self.text):
            return True
        if wanted.is_word and (not wanted.unit or wanted.value == 1 or wanted.unit == "month" and wanted.value == 12):
            return not any(_rivals(wanted, own) for own in self.claim.quantities)
        return False

    @cached_property
    def _num_days(self) -> set[int]:
        """How long its ranges of days are, both ends counted or not: 7 and 6 of 10月1日至7日."""
        dated = self.claim.dated
        pairs = [(one.day, other.day) for one, span in dated for other, same in dated if span == same]
        return {last - first + more for first, last in pairs if 0 < first < last for more in (0, 1)}

    def has_date(self, wanted: Date) -> bool:
        own = [one for one, _ in self.claim.dates]
        if wanted.time or wanted.weekday:
            return (
                wanted in own
                or wanted.time.count(":") == 2
                and any(
                    q.unit == "min" and abs(q.value - _minutes(wanted.time)) < Decimal("0.001")
                    for q in self.claim.quantities
                )
                or wanted.weekday in self._weekdays
                or any(wanted.time and one.time.startswith(f"{wanted.time}:") for one in own)
            )
        if wanted.year and not wanted.month and any(q.value == wanted.year for q in self.claim.quantities):
            return True
        return any(_says(wanted, one, own) for one in own)

    @cached_property
    def _weekdays(self) -> set[int]:
        """Those that it names, those of its dates, and those between two that it names (Monday to Friday)."""
        own = {one.weekday for one, _ in self.claim.dates} | {_weekday_of(one) for one, _ in self.claim.dates}
        for match in WEEKDAY_RANGE.finditer(self.text):
            first, last = (one.weekday for one, _ in dated(match[0]))
            own |= set(range(first, last + 1 if last >= first else 8))
        return own - {0}

    def has_words(self, words: str) -> bool:
        return re.sub(r"[\W_]+", "", normal(words)) in self.squeezed

    def has_together(self, name: str, number: str) -> bool:
        """Whether they stand next to each other, or in one clause (version 3.2 of Lark)."""
        own = rf"(?<![\d.]){re.escape(number)}(?!\.?\d)"
        is_beside = self.has_words(name + number)
        return is_beside or any(name in one.text and re.search(own, one.text) for one in self.clauses)

    def has_name(self, name: str, claim: Claim) -> bool:
        """Whether a name stands there; in a source of another language it cannot be looked up."""
        if self.has_words(name):
            return True
        if re.search("[一-鿿]", name):  # 从云溪, 云溪将: cut with a word too much
            return (
                self.language == "en"
                or len(name) > 2
                and any(
                    self.has_words(rest)
                    for rest in (re.sub(f"^[{NO_NAME_PART}往去]", "", name), re.sub(f"[{NO_NAME_PART}]$", "", name))
                )
            )
        if self.language == "zh" and claim.language == "en":
            return True
        return stem(normal(name)) in self.stems or self._has_initials(name) or self._has_root(normal(name))

    def _has_root(self, name: str) -> bool:
        """Whether it is the adjective of a name there, or the other way round (Kenyan, Kenya)."""
        pairs = (sorted((name, word), key=len) for word in self.words if len(word) > 3 and word[:4] == name[:4])
        return len(name) > 3 and any(long.removeprefix(short) in ADJECTIVES for short, long in pairs)

    @cached_property
    def words(self) -> set[str]:
        return set(re.findall(r"[^\W\d_]+", self.text))

    def _has_initials(self, name: str) -> bool:
        """Whether an abbreviation (U.S., EU) is made of the first letters of words there."""
        letters = re.sub(r"\W", "", normal(name))
        if not (2 <= len(letters) <= 5 and re.sub(r"\W", "", name).isupper()):
            return False
        initials = "".join(word[0] for word in re.findall("[a-z]+", self.text))
        return letters in initials

    def denies(self, claim: Claim) -> bool:
        """Whether its clause that is most like the claim says it with a negation more or less, or one with the claim's
        numbers tells of the opposite direction."""
        if self.language != claim.language:
            return False
        ways = _direction(claim.spelled)
        if any(_direction(clause.text) * ways < 0 for clause in self.clauses for q in claim.quantities
               if q.unit and clause.has_quantity(q)):  # fmt: skip
            return True
        terms = claim.terms - {stem(normal(name)) for name in claim.names}
        terms = terms if len(terms) > 1 else claim.terms
        if len(terms) < 2 or len(terms) == 2 and claim.names and terms == claim.terms:
            return False
        alike = [(share_of(terms, f"{normal(self.source.title)} {one.text}"), one) for one in self.clauses]
        best = max((share for share, _ in alike), default=0.0)
        said = {is_negated(one.text) for share, one in alike if share == best}
        return best >= (ALIKE if len(terms) > 2 else 1.0) and is_negated(claim.text) not in said

    @cached_property
    def clauses(self) -> "list[Evidence]":
        parts = re.split(r"[,，](?!\d)\s*|[;；。!！?？\n]\s*|\.\s", self.content)
        return [Evidence(self.source, part) for part in parts if part.strip()]


def _direction(text: str) -> int:
    """1 where something rises, -1 where it falls, 0 where neither or both is told."""
    return bool(UP.search(text)) - bool(DOWN.search(text))


def _agree(wanted: Quantity, own: Quantity) -> bool:
    units = {wanted.unit, own.unit}
    if wanted.unit != own.unit and "" not in units and units != {"lb", "GBP"}:
        return False
    if "" in units and wanted.unit != own.unit:  # a table's cell, "down from 58": the unit stands elsewhere
        return wanted.said == own.said
    if wanted.value == own.value:
        return BARE_DECIMAL.fullmatch(wanted.text) is None or bool(own.unit) or wanted.text == own.text  # 7.0 is not 7
    off = abs(wanted.value - own.value)
    return wanted.is_rough and off < abs(wanted.step) and off <= ROUGH * abs(own.value)


def _rivals(wanted: Quantity, own: Quantity) -> bool:
    """Whether a source's number of the same things speaks against a small one in words (two of them, 一年)."""
    return own.unit == wanted.unit and bool(wanted.unit or own.noun and own.noun == wanted.noun)


def _says(wanted: Date, own: Date, others: list[Date]) -> bool:
    """Whether a source's date says the wanted one: all that both tell is equal, and what its own lacks (the year of
    11月8日) another date of the source gives."""
    fields = ("year", "month", "day", "quarter")
    asked = {name: value for name in fields if (value := getattr(wanted, name))}
    if any(getattr(own, name) not in (0, value) for name, value in asked.items()):
        return False
    if not getattr(own, list(asked)[-1]):
        return False
    lacking = [name for name in asked if not getattr(own, name)]
    return not lacking or any(all(getattr(other, name) == asked[name] for name in lacking) for other in others)


def _minutes(time: str) -> Decimal:
    """2:09:31 as a duration."""
    hours, minutes, seconds = map(Decimal, time.split(":"))
    return hours * 60 + minutes + seconds / 60


def _weekday_of(one: Date) -> int:
    try:
        return date(one.year, one.month, one.day).isoweekday()
    except ValueError:
        return 0
