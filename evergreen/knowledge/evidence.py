"""What a piece of an answer claims, what a source says, and whether the one stands in the other.

Numbers agree when they are equal in a base unit, or, said roughly, within a step of what was said; a date may take its
year from another date of the source; names are looked up as they are written, and by their initials and adjectives.
"""

import re
from datetime import date
from decimal import Decimal
from functools import cached_property

from evergreen.knowledge.dates import MONTH_OF, Date, dated, without
from evergreen.knowledge.facts import SCORE, quantities
from evergreen.knowledge.names import NO_NAME_PART, codes, han_names, latin_names, normal, quoted
from evergreen.knowledge.overlap import share_of, stem, stems_of, terms_of
from evergreen.knowledge.prompt import Source
from evergreen.knowledge.quantities import Quantity
from evergreen.knowledge.sentences import split

ROUGH = Decimal("0.05")  # "about 4,200" may be off by this share, and by less than a step of what it says
ADJECTIVES = frozenset("n an ian ean ese ish i s ns ans ians".split())
VERSIONED = re.compile(r"([a-z]?[A-Z][A-Za-z]+) ?(\d+(?:\.\d+)*)(?![\w%]|[.,]\d)")
NUMBERED = re.compile(r"([一-鿿]{2})([一二三四五六七八九十]+|\d+)号")
_DAY = "(?:(?:mon|tues|wednes|thurs|fri|satur|sun)days?|(?:周|星期)[一二三四五六日天])"
WEEKDAY_RANGE = re.compile(rf"{_DAY}\s?(?:to|through|until|-|至|到)\s?{_DAY}")
WEEKEND, WORKDAYS = re.compile(r"周末|双休日|\bweekends?\b"), re.compile(r"工作日|\b(?:week|working |business )days?\b")
EACH = re.compile(r"每|\b(?:an?|per|every|each|daily|yearly|hourly) ")
TWICE = re.compile(r"\btwice\b|两[次回遍]")
BARE_DECIMAL = re.compile(r"\d+\.\d+")


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
        places = [(q.start, q.end) for q in self.quantities if q.unit]  # Combine 500 g
        found = [(match[1].lower(), match[2]) for match in VERSIONED.finditer(self.text)
                 if not any(start <= match.start(2) < end for start, end in places)]  # fmt: skip
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

    @cached_property
    def scores(self) -> set[tuple[int, ...]]:
        """2比1 and its other side, 1比2, as one."""
        return {tuple(sorted(map(int, match.groups()))) for match in SCORE.finditer(self.spelled)}

    @property
    def has_facts(self) -> bool:
        return bool(self.quantities or self.dates or self.codes or self.quoted or self.names)

    @cached_property
    def terms(self) -> frozenset[str]:
        """Its words without those that make up its numbers and dates."""
        numbers = [(quantity.start, quantity.end) for quantity in self.quantities]
        return terms_of(without(self.spelled, [*numbers, *(span for _, span in self.dated)]).replace("\0", " "))


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
        if wanted.value == 2 and (wanted.unit == "倍" or wanted.noun[:1] == "次") and TWICE.search(self.text):
            return True
        if not wanted.unit and re.search(rf"(?<![\d.]){re.escape(wanted.text)}(?![\d]|[.,]\d)", self.text):
            return True
        if wanted.is_word and wanted.unit and wanted.said == 1 and EACH.search(self.text):
            return True
        if wanted.is_word and (not wanted.unit or wanted.said == 1 or wanted.value == 1):
            return not any(_rivals(wanted, own) for own in self.claim.quantities)
        return False

    @cached_property
    def _num_days(self) -> set[int]:
        """How long its ranges of days are, both ends counted or not: 7 and 6 of 10月1日至7日."""
        dated = self.claim.dated
        pairs = [(one.day, other.day) for one, span in dated for other, same in dated if span == same]
        return {last - first + more for first, last in pairs if 0 < first < last for more in (0, 1)}

    def has_date(self, wanted: Date, claim: Claim | None = None) -> bool:
        """Whether a date stands there; that of the source itself only where the line that is most like the claim has
        no other one."""
        own = [one for one, _ in self.claim.dates]
        if wanted.time or wanted.weekday:
            return wanted in own or wanted.weekday in self._weekdays or self._has_time(wanted)
        if wanted.year and not wanted.month and any(q.value == wanted.year for q in self.claim.quantities):
            return True
        told = [one for one in own if _says(wanted, one, own)]
        if not told or not claim or any(one != self._issued for one in told):
            return bool(told)
        return not any(one.month and one.month != wanted.month for one, _ in self._likest(claim).claim.dates)

    @cached_property
    def _issued(self) -> Date:
        return next((one for one, _ in dated(normal(self.source.date))), Date())

    def _likest(self, claim: Claim) -> "Evidence":
        return max(self.lines, key=lambda line: share_of(claim.terms, line.text), default=self)

    def _has_time(self, wanted: Date) -> bool:
        """A time as a duration, too (2:09:31), and one without its seconds."""
        if not wanted.time:
            return False
        if wanted.time.count(":") == 2:
            of = _minutes(wanted.time)
            return any(q.unit == "min" and abs(q.value - of) < Decimal("0.001") for q in self.claim.quantities)
        return any(one.time.startswith(f"{wanted.time}:") for one, _ in self.claim.dates)

    @cached_property
    def _weekdays(self) -> set[int]:
        """Those that it names, those of its dates, and those between two that it names (Monday to Friday)."""
        own = {one.weekday for one, _ in self.claim.dates} | {_weekday_of(one) for one, _ in self.claim.dates}
        for match in WEEKDAY_RANGE.finditer(self.text):
            first, last = (one.weekday for one, _ in dated(match[0]))
            own |= set(range(first, last + 1 if last >= first else 8))
        own |= {6, 7} if WEEKEND.search(self.text) else set()
        own |= set(range(1, 6)) if WORKDAYS.search(self.text) else set()
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
            is_country = len(name) == 2 and name[1] == "国"
            return (
                self.language == "en"
                or is_country
                and bool(re.search(f"[赴访旅留驻抵返来离在对]{name[0]}|{name[0]}[籍方企]", self.text))
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

    @cached_property
    def clauses(self) -> "list[Evidence]":
        parts = re.split(r"[,，](?!\d)\s*|[;；。!！?？\n]\s*|\.\s", self.content)
        return [Evidence(self.source, part) for part in parts if part.strip()]


def _agree(wanted: Quantity, own: Quantity) -> bool:
    units = {wanted.unit, own.unit}
    if units == {"day", "min"}:  # two days, 48 hours
        return wanted.value * (1440 if wanted.unit == "day" else 1) == own.value * (1440 if own.unit == "day" else 1)
    if wanted.unit != own.unit and "" not in units and units != {"lb", "GBP"}:
        return False
    if "" in units and wanted.unit != own.unit:  # a table's cell, "down from 58": the unit stands elsewhere
        return wanted.said == own.said and not (wanted.unit and _is_counted(own))
    if wanted.value == own.value:
        return BARE_DECIMAL.fullmatch(wanted.text) is None or bool(own.unit) or wanted.text == own.text  # 7.0 is not 7
    off = abs(wanted.value - own.value)
    return wanted.is_rough and off < abs(wanted.step) and off <= ROUGH * abs(own.value)


def _is_counted(own: Quantity) -> bool:
    """Whether a number counts things: 8次, 2,400 people."""
    if not own.noun.isascii():
        return own.noun[0] in "次人名岁张份项届倍本章"
    return bool(re.fullmatch("people|men|women|children|[a-z]{3,}s", own.noun))


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
