"""Dates and times of day, as they stand in Chinese and English texts.

Promises: 2026年10月2日, Oct 2, 2026 and 2026-10-02 are one date; 晚上7点半 and 7:30 p.m. are one time; "4 to 19
July" is two dates. Does not: resolve 今天 or "last year".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evergreen.knowledge.quantities import SCALE, UNIT, chinese_number


@dataclass(frozen=True)
class Date:
    """A day, a month, a year, a day of any year: what is not said is 0. `time` is "19:30", `weekday` 1 to 7."""

    year: int = 0
    month: int = 0
    day: int = 0
    quarter: int = 0
    weekday: int = 0
    time: str = ""

    def __str__(self) -> str:
        if self.time:
            return f"T{self.time}"
        if self.weekday:
            return f"W{self.weekday}"
        if self.quarter:
            return f"{self.year or '-'}-Q{self.quarter}"
        parts = [f"{self.year:04d}" if self.year else "-"]
        parts += [f"{self.month:02d}" if self.month else "-"] if self.month or self.day else []
        return "-".join([*parts, f"{self.day:02d}"] if self.day else parts)


# -- forms ----------------------------------------------------------------------------------------------------------

MONTHS = "january february march april may june july august september october november december".split()
MONTH_OF = {form: n for n, name in enumerate(MONTHS, 1) for form in (name, name[:3])} | {"sept": 9}
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
QUARTERS = "first second third fourth".split()

_MONTH = "(?P<month>" + "|".join(sorted(MONTH_OF, key=len, reverse=True)) + r")\.?(?![a-z])"
_FIRST = r"(?<![:.])(?P<first>\d{1,2})(?:st|nd|rd|th)?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?(?!\d|,\d{3}|\.\d|:\d|\s?[ap]\.?m\b)"
_TO = r"\s?(?:to|and|until|till|through|-)\s?"
BEFORE_MONTHS = "in for by since until early mid late from between to till through and of".split()
_IN = "(?:" + "|".join(rf"(?<=\b{word}\s)" for word in BEFORE_MONTHS) + ")"
_FULL_YEAR = r"(?P<year>(?:1[5-9]|20|21)\d\d)(?!\d)"
_YEAR = r"(?P<year>(?:1[5-9]|20|21)\d\d)(?![\d,]*\d|\.\d)"

_DIGIT = "[零〇一二三四五六七八九]"
_HAN = r"(?:\d{1,2}|[一二三四五六七八九十]{1,3})"
_HAN_YEAR = rf"(?P<year>(?:1\d|20|21)\d\d|{_DIGIT}{{4}})\s?年"
_HAN_MONTH = rf"(?P<month>{_HAN})\s?月"
_HAN_DAY = rf"(?P<day>{_HAN})\s?[日号號]"

# those that say most come first
FORMS = [
    re.compile(form)
    for form in (
        rf"(?:{_HAN_YEAR})?\s?{_HAN_MONTH}\s?(?P<first>{_HAN})\s?日?\s?(?:至|到|-|~)\s?{_HAN_DAY}",
        r"(?<![\d.])(?P<year>\d{4})(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})(?!\d|\.\d)",
        rf"{_HAN_YEAR}\s?{_HAN_MONTH}(?:份|\s?{_HAN_DAY})?",
        rf"(?:{_HAN_YEAR})?\s?(?<!前)第?(?P<quarter>[一二三四1234])季度",
        rf"{_HAN_YEAR}(?!级|来|间|以上)",
        rf"(?<![\d.]){_HAN_MONTH}\s?{_HAN_DAY}",
        rf"(?<![\d.个]){_HAN_MONTH}(?:份|(?!\w?球|亮))",
        r"(?<![\d.])(?P<day>\d{1,2})\s?[日号號](?!元|线|楼|机|店|院|馆|门|文|产|均|内)",
        rf"\b{_FIRST}{_TO}{_DAY}\s{_MONTH}(?:,?\s{_FULL_YEAR})?",
        rf"\b{_MONTH}\s{_FIRST}{_TO}{_DAY}(?:,?\s{_FULL_YEAR})?",
        rf"\b{_MONTH}\s{_DAY},?\s{_FULL_YEAR}",
        rf"\b{_DAY}(?:\sof)?\s{_MONTH},?\s{_FULL_YEAR}",
        rf"\b{_MONTH},?\s(?:of\s)?{_YEAR}",
        rf"\b{_MONTH}\s{_DAY}",
        rf"(?<!\bover )(?<!under )(?<!above )(?<!below )(?<!than )(?<!aged )\b{_DAY}(?:\sof)?\s{_MONTH}",
        rf"\bq(?P<quarter>[1-4])(?:\s(?:of\s)?{_YEAR})?\b",
        rf"\b(?P<quarter_word>{'|'.join(QUARTERS)})\squarter(?:\sof\s{_FULL_YEAR})?",
        rf"{_IN}(?P<year>1[0-4]\d\d)\b(?=\s?(?:$|[,.;()]|and\b|by\b|as\b|when\b))",
        rf"{_IN}(?P<month>{'|'.join(MONTHS)})\b(?!(?<=\bmay) (?!and|to|until|through)[a-z])",
        rf"\bhalf past (?P<half_hour>{'|'.join(HOURS)})\b(?: (?:in the|at) (?P<half>afternoon|evening|night))?",
        r"\b(?:(?P<midnight>midnight)|(?P<noon>noon|midday))\b|(?P<zero>零点|午夜)",
        r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])(?:\s?(?P<half>[ap])\.?m\b\.?)?",
        r"(?<![\d:.])(?P<hour>1[0-2]|0?\d)\s?(?P<half>[ap])\.?m\b\.?",
        rf"(?P<half>上午|下午|晚上|凌晨|中午|早上|傍晚|清晨)?(?<![\d.])(?P<hour>{_HAN})\s?"
        rf"[点點时時](?!间|代|候|段|速|{_DIGIT}+(?![十分刻]|{_DIGIT}))"  # but not 3.5 in words
        rf"(?:(?P<minute>{_HAN})\s?分|(?P<half_past>半)|整|钟)?",
        r"(?:星期|周|礼拜)(?P<weekday_han>[一二三四五六日天])(?!年|班|次|场|期|节|个)",
        rf"\b(?P<weekday>{'|'.join(WEEKDAYS)})s?\b",
        rf"(?<![\d.,$€£¥#-])\b{_YEAR}(?!\s?(?:{UNIT}|{SCALE})|[a-z-]?\d)\b(?!%)",
    )
]


def _number_of(text: str | None) -> int:
    if not text:
        return 0
    return int(text) if text.isdecimal() else int(chinese_number(text) or 0)


def dated(text: str) -> Iterator[tuple[Date, tuple[int, int]]]:
    """(date, its place), the forms that say most first; a place is read once."""
    for form in FORMS:
        spans = []
        for match in form.finditer(text):
            if (date := _date(match.groupdict())) is None:
                continue
            spans.append(match.span())
            yield date, match.span()
            if first := _number_of(match.groupdict().get("first")):
                yield replace(date, day=first), match.span()
        text = without(text, spans)


def _date(part: dict[str, str | None]) -> Date | None:
    if part.get("hour"):
        return _time(part)
    if part.get("half_hour"):
        return Date(time=f"{HOURS.index(part['half_hour']) + 1 + 12 * bool(part['half'])}:30")
    if any(part.get(name) for name in ("midnight", "noon", "zero")):
        return Date(time="12:00" if part["noon"] else "0:00")
    if part.get("weekday_han"):
        return Date(weekday=min("一二三四五六日天".index(part["weekday_han"]) + 1, 7))
    if part.get("weekday"):
        return Date(weekday=WEEKDAYS.index(part["weekday"]) + 1)
    year = _number_of(part.get("year"))
    if word := part.get("quarter_word"):
        return Date(year, quarter=QUARTERS.index(word) + 1)
    if part.get("quarter"):
        return Date(year, quarter=_number_of(part["quarter"]))
    month = MONTH_OF.get(part.get("month") or "") or _number_of(part.get("month"))
    day = _number_of(part.get("day"))
    return Date(year, month, day) if month <= 12 and day <= 31 else None


def _time(part: dict[str, str | None]) -> Date | None:
    """On the 24-hour clock."""
    hour, minute = _number_of(part["hour"]), 30 if part.get("half_past") else _number_of(part.get("minute"))
    if part.get("half") in ("p", "下午", "晚上", "傍晚") and hour < 12:
        hour += 12
    if part.get("half") == "a" and hour == 12:
        hour = 0
    second = f":{part['second']}" if part.get("second") else ""
    return Date(time=f"{hour}:{minute:02d}{second}") if hour <= 24 and minute < 60 else None


def in_the_afternoon(one: Date, text: str) -> Iterator[Date]:
    """17:00, which 5点 may mean, where nothing is said of the half of the day."""
    if (
        one.time
        and re.match(r"[\d一二三四五六七八九十]+\s?[点點时時]|half past", text)
        and (hour := int(one.time.split(":")[0])) < 12
    ):
        yield replace(one, time=f"{hour + 12}:{one.time.split(':')[1]}")


def dates(text: str) -> list[Date]:
    return [date for date, _ in dated(text)]


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with other characters in these places, so that places stay."""
    if not spans:
        return text
    chars = list(text)
    for start, end in spans:
        chars[start:end] = "\0" * (end - start)
    return "".join(chars)
