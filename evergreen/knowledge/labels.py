"""What a value is said to be: the words around it in a claim against those around it in the sources.

Promises: a value that the sources give, while the claim's words for it stand around another value of the same unit
only, is told (a profit given as the revenue), and so are a change told the wrong way round, and who is what where both
say "X is the Y". Does not: see that other words mean another thing, or whose a value is when its clause does not name
it; where no word tells two values apart, both pass. bench/knowledge_cite.py: about two thirds are told.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import commonprefix

from evergreen.knowledge.dates import Date
from evergreen.knowledge.denials import DOWN, UP
from evergreen.knowledge.evidence import Claim, Evidence
from evergreen.knowledge.limits import LESS, MORE, side_of
from evergreen.knowledge.names import normal
from evergreen.knowledge.overlap import stem, stems_of, terms_of
from evergreen.knowledge.quantities import Quantity
from evergreen.knowledge.sentences import split

BREAK = re.compile(r"[,，](?!(?<=\d,)\d{3}(?!\d))|[;；。!！?？\n]|[:：](?!\d)|\.(?:\s|$)")
JOIN = re.compile(r"(?:\b(?:and|while|whereas|but)\b|而|并|、)(?!\s*\W?\d)")  # but not rooms 3 and 5
PHONE = re.compile(r"\d-\d|-\d")
CONTRAST = re.compile(r"\b(?:against|versus|vs|compared (?:with|to))\b")
RESPECTIVELY = re.compile("分别|respectively")
ELLIPSIS = re.compile(  # 学费5,800元,医学院为6,500元; costs rose to $4 and wages to $2
    r"[一-鿿]{2,8}?[为是]?|(?:and )?(?:an? |the )?[a-z]+"
    r"|(?:and|while) (?:the )?(?:\w+ ){1,3}(?:to|at|by|in|on|from|for)"
)
CHANGE = re.compile(rf"{UP.pattern}|{DOWN.pattern}|同比|环比|分别|(?<!-)\b(?:up|down)\b")
LINKS = re.compile(
    rf"{CHANGE.pattern}|{MORE}|{LESS}|\b(?:stands?|stood|reach(?:es|ed)?|amount(?:s|ed)?|totall?(?:s|ed)|came)\b|达到?|共计?|约"
)
NUMBERS = re.compile(r"\d[\d.,:]*\s?(?:[ap]\.?m\b\.?|[年月日点时分])?")
CLOCK = re.compile(r"\d+[时点:]\d*分?")
FROM_TO = (
    re.compile(r"(?:由|从)(?P<first>[^,，;；由从]{1,16}?)[^\d,，;；]{0,8}[到至为](?P<second>[^,，;；]{1,16})"),
    re.compile(r"\bfrom (?P<first>.{1,24}?) to (?P<second>.{1,24})"),
)
IS_ZH = re.compile(r"([一-鿿]{2,12})[是为叫]([一-鿿]{2,12})(?![一-鿿])")
IS_EN = re.compile(
    r"^\W*(?:dr\. |mr\. |ms\. )?(?P<name>[a-z' -]+?) (?:is|was) (?:the |a |an |its |their )(?P<label>[a-z]+)"
)


@dataclass(frozen=True)
class Value:
    """A number or date in a text: `segment` is the clause around it, `window` what lies between its neighbours."""

    what: Quantity | Date
    text: str
    before: str
    after: str
    segment: str
    clause: str = ""
    limits: frozenset[str] = frozenset()  # of the clause's other values: "1 30000 g" of over 30 kg
    led: str = ""  # the clauses without a value before it: mira dam, the smaller of the two
    topic: str = ""  # the same of the first value of a sentence only
    elided: str = ""  # what the clause before says of both: 学费 of 学费5,800元,医学院为6,500元

    @property
    def window(self) -> str:
        return f"{self.before} {self.after}"

    @property
    def kind(self) -> str:
        return _kind(self.what)


def mislabelled(claim: Claim, used: list[Evidence]) -> str:
    """The first value of a claim that its sources give for something else, "" for none."""
    if other := _turned_change(claim.spelled, used) or _other_role(claim, used):
        return other
    subject = terms_of(" ".join(one.source.title for one in used))
    theirs = [value for one in used for value in values_of(one.content)]
    ours = list(values_of(claim.text))
    for value in ours:
        group = [other for other in ours if (other.segment, other.kind) == (value.segment, value.kind)]
        is_one = len(group) == 1  # of 52.3% to 44.1% it is not known whose words are whose
        if _has_other_noun(value, theirs) or is_one and _is_of_another(value, theirs, subject):
            return value.text
        if not is_one and _are_of_another(group, theirs, subject):
            return value.text
    return ""


def values_of(text: str) -> Iterator[Value]:
    """The numbers and dates of a text with the words around them."""
    for sentence in split(text):
        lead, led, kinds = "", "", set()
        for segment in segments(normal(sentence.text)):
            found = _found(segment)
            is_contrast = (
                segment[:1] == "、"
                or bool(CONTRAST.match(segment.strip()))
                or bool(found)
                and _is_change(segment[: found[0][0]])
            )
            sides = {what: f"{side} {what}" for start, end, what, _ in found
                     if (side := side_of(segment, start, end, isinstance(what, Date)))}  # fmt: skip
            for start, end, what, said in found:
                alike = [each for each in found if _kind(each[2]) == _kind(what)]
                first = max((each[1] for each in alike if each[1] <= start), default=0)
                last = min((each[0] for each in alike if each[0] >= end), default=len(segment))
                is_elided = _kind(what) in kinds and not first and ELLIPSIS.fullmatch(segment[:start].strip())
                before = (f"{lead} " if is_contrast and not first else "") + segment[first:start]
                whole = (f"{lead} " if is_contrast else "") + segment
                limits = frozenset(limit for other, limit in sides.items() if other is not what)
                yield Value(
                    what, said, before, segment[end:last], whole, segment, limits, led, "" if kinds else led,
                    lead if is_elided else "",
                )  # fmt: skip
            led = "" if found else f"{led} {segment}"
            if found and not is_contrast:
                lead, kinds = segment[: found[0][0]], {_kind(each[2]) for each in found}


def _found(segment: str) -> list[tuple[int, int, Quantity | Date, str]]:
    """(start, end, value, as it is spelled)"""
    claim = Claim(segment)
    numbers = [
        q for q in claim.quantities if q.unit or not q.is_word and not PHONE.search(segment, q.start - 1, q.end + 2)
    ]
    found = [(q.start, q.end, q, q.text) for q in numbers]
    found += [(start, end, one, segment[start:end]) for one, (start, end) in claim.dated]
    return sorted(found, key=lambda each: each[:2])


def _is_change(before: str) -> bool:
    """Whether a clause tells of a change only, and of what stands in the one before: 同比增长 8.3%, up 6%."""
    return bool(CHANGE.search(before)) and not terms_of(CHANGE.sub(" ", before))


def _kind(what: Quantity | Date) -> str:
    """Values of one kind can stand for each other: their unit, or what of a date they tell."""
    if isinstance(what, Quantity):
        return f"number {what.unit}"
    return next((name for name in ("time", "weekday", "quarter") if getattr(what, name)), "date")


def segments(sentence: str) -> Iterator[str]:
    """Clauses; "and" parts two where both have a number and words of their own."""
    for clause in BREAK.split(sentence):
        start = 0
        joints = [] if RESPECTIVELY.search(clause) else [*CONTRAST.finditer(clause), *JOIN.finditer(clause)]
        for match in sorted(joints, key=lambda match: match.start()):
            left, right = clause[start : match.start()], clause[match.end() :]
            if all(re.search(r"\d", side) and terms_of(re.sub(r"[\d.,]+\S?", " ", side)) for side in (left, right)):
                yield left
                start = match.start()
        yield clause[start:]


def _are_of_another(group: list[Value], theirs: list[Value], subject: frozenset[str]) -> bool:
    """The same of the values of one clause together: from 8 am to 8 pm."""
    words = _parts(terms_of(NUMBERS.sub(" ", LINKS.sub(" ", group[0].segment))) - subject)
    told: dict[str, list[Value]] = {}
    for other in theirs:
        if other.kind == group[0].kind:
            told.setdefault(f"{other.led} {other.segment}", []).append(other)
    num_same = {text: sum(any(is_same(mine, its) for its in found) for mine in group) for text, found in told.items()}
    own = [_standing(words, text) for text, num in num_same.items() if num == len(group)]
    rivals = [_standing(words, text) for text, num in num_same.items() if not num and len(told[text]) >= len(group)]
    return bool(own) and any(2 * len(its) > len(words) and all(mine < its for mine in own) for its in rivals)


def _is_of_another(value: Value, theirs: list[Value], subject: frozenset[str]) -> bool:
    """Whether all its places lack words of the claim that stand around another value of its kind."""
    words = _parts(terms_of(CLOCK.sub(" ", LINKS.sub(" ", value.window))) - subject)
    alike = [other for other in theirs if other.kind == value.kind]
    own, rivals = ([other for other in alike if is_same(value, other) == same] for same in (True, False))
    if not own or not words:
        return False
    near = _nearest(value, words)
    led = words | terms_of(value.led)
    said = [_standing(led, f"{other.led} {other.segment}") | value.limits & other.limits for other in own]
    standing = [_standing(words, f"{it.topic} {it.elided} {it.window}") | value.limits & it.limits for it in rivals]
    likely = [its for its in standing if its & near and len(its) > len(words) / 2]
    return any(all(mine < its and (mine or its in likely) for mine in said) for its in standing)


def _parts(words: Iterable[str]) -> set[str]:
    """The words; long Chinese ones in halves, too: 二期工程, 二期, 工程."""
    halves = (half for word in words if len(word) == 4 and "一" <= word[0] <= "鿿" for half in (word[:2], word[2:]))
    return {*words, *halves}


def _standing(words: set[str], text: str) -> set[str]:
    own = terms_of(text)
    return {word for word in words if word in own or "一" <= word[0] <= "鿿" and word in text}


def _nearest(value: Value, words: set[str]) -> set[str]:
    """The last words before the value and the first behind it."""
    ends = {word: value.before.rfind(word) + len(word) for word in words if word in value.before}
    starts = {word: value.after.find(word) for word in words if word in value.after}
    last, first = max(ends.values(), default=0), min(starts.values(), default=0)
    near = {word for word, end in ends.items() if end == last} | {word for word, at in starts.items() if at == first}
    return _parts(near)


def is_same(value: Value, other: Value) -> bool:
    mine, its = value.what, other.what
    if isinstance(mine, Quantity) and isinstance(its, Quantity):
        off = abs(mine.value - its.value)
        return off == 0 or off < abs(mine.step) and off * 20 <= abs(its.value)
    if isinstance(mine, Date) and isinstance(its, Date):
        names = ("year", "month", "day", "quarter", "weekday", "time")
        return all(getattr(mine, n) == getattr(its, n) or not (getattr(mine, n) and getattr(its, n)) for n in names)
    return False


def _has_other_noun(value: Value, theirs: list[Value]) -> bool:
    """17 ferries where it says 42 ferries, and 17 routes; 218层 where it says 218米, and 46层."""
    if not isinstance(value.what, Quantity) or value.what.unit:
        return False
    noun = stem(value.what.noun) if value.what.noun.isascii() else value.what.noun[:1]
    numbers = [other for other in theirs if isinstance(other.what, Quantity)]
    counted = [other for other in numbers if not other.what.unit and _counts(other, noun)]
    own = [other for other in numbers if other.what.said == value.what.said]
    if not (terms_of(noun) and own and counted) or any(other in counted for other in own):
        return False
    return not any(noun in stems_of(other.after) or not (other.what.unit or terms_of(other.what.noun)) for other in own)


def _counts(value: Value, noun: str) -> bool:
    own = value.what.noun
    return stem(own) == noun if noun.isascii() else own[:1] == noun


def _turned_change(text: str, used: list[Evidence]) -> str:
    """A change told the wrong way round: from 45 to 30 for from 30 to 45, from Rome to Bonn for from Bonn to Rome."""
    told = {pair for one in used for pair in _changes(one.text)}
    for first, second in _changes(text):
        if (second, first) in told and (first, second) not in told and first != second:
            return f"from {first} to {second}"
    return ""


def _changes(text: str) -> Iterator[tuple[str, str]]:
    for form in FROM_TO:
        for match in form.finditer(text):
            numbers = [re.search(r"\d[\d,]*(?:\.\d+)?", match[side]) for side in ("first", "second")]
            if all(numbers):
                yield tuple(number[0].replace(",", "") for number in numbers)
            elif text.isascii():
                words = [re.findall("[a-z0-9'-]+", match[side]) for side in ("first", "second")]
                yield tuple(next((word for word in each if word not in ("the", "a", "an")), "") for each in words)


def _other_role(claim: Claim, used: list[Evidence]) -> str:
    """X in "the director is X" where the sources call X something else and another one the director."""
    segments = [part for one in used for part in BREAK.split(one.text)]
    found = [(m[1], m[2]) for clause in BREAK.split(claim.spelled) for m in IS_ZH.finditer(clause)]
    found += [(m["label"], m["name"]) for m in [IS_EN.search(claim.spelled)] if m]
    for label, name in found:
        head = label[-2:] if "一" <= label[0] <= "鿿" else label
        is_said = re.compile(f"{head}(?:[是为叫]| (?:is|was))|(?:is|was) (?:(?:the|its|their) )?{head}")
        words = {head, *terms_of(label)}
        others = [_standing(words, part) for part in segments if is_said.search(part) and name not in part]
        own = [_standing(words, part) for part in segments if name in part]
        if not own and (said := re.search(f"{head}[是为叫]([一-鿿]{{2,12}})", "\n".join(segments))):
            kind = commonprefix([name[::-1], said[1][::-1]])[::-1]
            if len(kind) > 1 and not any(name.removesuffix(kind) in part for part in segments):
                return name
        if own and any(all(mine < its for mine in own) for its in others):
            return name
    return ""
