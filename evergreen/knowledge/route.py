"""What a question asks for, and whether knowledge is shown for it: `understand`, then `decide`, by rules that are data.

Retrieval has always run by then (it costs milliseconds); this decides on what was found. How sure a model is says
nothing of how old its knowledge is, so freshness has signals of its own: time words, subjects that change, entries
newer than the model. Relevance is the share of the question's words in an entry, each weighed by its length: ranks and
their fusions (RRF) order entries and say nothing of whether the best one is any good.

Promises: a decision with its reasons, in well under a millisecond after the first question (which reads a dictionary).
Does not: judge whether an entry answers the question; the model may still say that it does not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.knowledge.dates import Date, dates
from evergreen.knowledge.facts import Facts, facts_of
from evergreen.knowledge.names import normal, word_list
from evergreen.knowledge.overlap import share_of, terms_of
from evergreen.records import BadInput, Entry

if TYPE_CHECKING:
    from evergreen.knowledge.retrieve import Hit

LANGUAGES = ("zh", "en")
RULES = Path(__file__).resolve().parents[1] / "assets" / "routing.yaml"
SHARES = ("stable", "fresh", "similar", "beside_best")
FACT = "fact"  # the kind of a question that no rule names

# -- rules ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of question that knowledge is not for. `unless_relevance` above 1: never."""

    name: str
    patterns: dict[str, re.Pattern]
    unless_relevance: float


@dataclass(frozen=True)
class Rules:
    """What routing.yaml says, its patterns compiled."""

    stable: float
    fresh: float
    similar: float
    beside_best: float
    time_words: dict[str, re.Pattern]
    volatile: dict[str, re.Pattern]
    settled: dict[str, re.Pattern]
    kinds: tuple[Kind, ...]


def load_rules(path: Path | None = None) -> Rules:
    """The rules of the file on top of the shipped ones. Raises BadInput that names the key for what cannot be one."""
    shipped = _read(RULES)
    given = _read(path) if path else {}
    _known(given, shipped, f"{path}: ")
    return _compiled({key: _over(value, given.get(key)) for key, value in shipped.items()}, str(path or RULES))


@lru_cache(maxsize=1)
def shipped_rules() -> Rules:
    return load_rules()


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no file {path}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise BadInput(f"{path} must hold keys such as relevance and time_words")
    return values or {}


def _known(given: dict, shipped: dict, where: str) -> None:
    if unknown := [key for key in given if key not in shipped]:
        raise BadInput(f"{where}{unknown[0]} is no rule: there are {', '.join(shipped)}")


def _over(shipped: Any, given: Any) -> Any:
    """Maps are overlaid, all else is replaced."""
    if isinstance(shipped, dict) and isinstance(given, dict):
        return {**shipped, **{key: _over(shipped.get(key), value) for key, value in given.items()}}
    return shipped if given is None else given


def _compiled(values: dict[str, Any], file: str) -> Rules:
    relevance = values["relevance"]
    if not isinstance(relevance, dict) or set(relevance) != set(SHARES):
        raise BadInput(f"{file}: relevance holds {', '.join(SHARES)}, each from 0 to 1")
    if not isinstance(values["kinds"], dict):
        raise BadInput(f"{file}: kinds holds one map per kind of question")
    return Rules(
        **{name: _share(relevance[name], f"{file}: relevance.{name}") for name in SHARES},
        time_words=_by_language(values["time_words"], f"{file}: time_words", whole_words=True),
        volatile=_by_language(values["volatile"], f"{file}: volatile", whole_words=True),
        settled=_by_language(values["settled"], f"{file}: settled", whole_words=True),
        kinds=tuple(_kind(name, kind, f"{file}: kinds.{name}") for name, kind in values["kinds"].items()),
    )


def _kind(name: str, values: Any, where: str) -> Kind:
    if not isinstance(values, dict):
        raise BadInput(f"{where} must hold patterns under {' and '.join(LANGUAGES)}")
    limit = values.get("unless_relevance")
    patterns = {key: value for key, value in values.items() if key != "unless_relevance"}
    return Kind(
        name, _by_language(patterns, where), 2.0 if limit is None else _share(limit, f"{where}.unless_relevance")
    )


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadInput(f"{where} is {value!r}: it must be a number from 0 to 1")
    return float(value)


def _by_language(values: Any, where: str, whole_words: bool = False) -> dict[str, re.Pattern]:
    """One expression per language out of a list of them; English words end where they end."""
    if not isinstance(values, dict) or any(key not in LANGUAGES for key in values):
        raise BadInput(f"{where} must hold lists under {' and '.join(LANGUAGES)}")
    return {language: _joined(language, patterns, f"{where}.{language}", whole_words)
            for language, patterns in values.items()}  # fmt: skip


def _joined(language: str, patterns: Any, where: str, whole_words: bool) -> re.Pattern:
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise BadInput(f"{where} must be a list of words or regular expressions")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise BadInput(f"{where}: {pattern!r} is no regular expression ({error})") from None
    if not patterns:
        return re.compile(r"(?!)")
    edge = r"\b" if whole_words and language == "en" else ""
    return re.compile("|".join(f"{edge}(?:{pattern}){edge}" for pattern in patterns), re.IGNORECASE)


# -- understanding --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Understanding:
    """A question taken apart. `as_of` is the date that it asks for the state of ("截至2025年底" -> "2025-12-31"), None
    without one. `terms` are its content words, for relevance; `volatile` are the words for what
    changes, none where the question says that it is over."""

    language: Literal["zh", "en"]
    facts: Facts = field(default=Facts())
    entities: tuple[str, ...] = ()
    time_words: tuple[str, ...] = ()
    kind: str = FACT
    as_of: str | None = None
    volatile: tuple[str, ...] = ()
    terms: frozenset[str] = frozenset()


def understand(question: str, now: str = "", rules: Rules | None = None) -> Understanding:
    """Take a question apart. `now` is a UTC time in ISO 8601, for "yesterday"; without it such words set no `as_of`."""
    rules = rules or shipped_rules()
    text = normal(question).strip()
    facts, language = facts_of(question), language_of(question)
    return Understanding(
        language=language,
        facts=facts,
        entities=tuple(sorted(facts.names | facts.quoted)),
        time_words=_found(rules.time_words, text),
        kind=next((kind.name for kind in rules.kinds if _found(kind.patterns, text)), FACT),
        as_of=as_of(text, now),
        volatile=() if _found(rules.settled, text) else _found(rules.volatile, text),
        terms=terms_of(question),
    )


def language_of(text: str) -> Literal["zh", "en"]:
    """Chinese when Chinese characters are there, unless English words such as "who is" hold the question together:
    names and code in a Chinese question are often Latin."""
    num_han = len(re.findall("[㐀-鿿]", text))
    num_held = sum(word in word_list("stop") for word in re.findall("[a-z]+", normal(text)))
    return "zh" if num_han > 2 * num_held else "en"


def _found(patterns: dict[str, re.Pattern], text: str) -> tuple[str, ...]:
    """What the patterns of both languages find; people mix them."""
    return tuple(dict.fromkeys(match[0] for pattern in patterns.values() for match in pattern.finditer(text)))


AS_OF = re.compile(
    r"(?:截至|截止到?|as of|up to|as at)\s*(?:the end of\s*)?(?P<when>.{2,30})|(?P<zh>\S{4,12}?)(?:为止|时点|当时)",
    re.I,
)


def as_of(text: str, now: str = "") -> str | None:
    """The last day of the date behind "as of": what was known then is asked for. Never later than `now`."""
    match = AS_OF.search(text)
    if not match:
        return None
    phrase = match["when"] or match["zh"]
    asked = next((day for one in dates(phrase) if (day := _last_day(one, now))), None) or _relative(phrase, now)
    return asked if asked and (not now or asked < now[:10]) else None


def _last_day(asked: Date, now: str) -> str | None:
    """2025 -> 2025-12-31. Without a year it is the latest such day that is past."""
    if asked.time or asked.weekday:
        return None
    month = asked.month or 3 * asked.quarter
    year = asked.year or (int(now[:4]) if now and month else 0)
    if not year:
        return None
    try:
        day = date(year, month or 12, asked.day) if asked.day else _month_end(year, month or 12)
    except ValueError:
        return None
    if not asked.year and day.isoformat() > now[:10]:
        return _last_day(replace(asked, year=year - 1), now)
    return day.isoformat()


def _month_end(year: int, month: int) -> date:
    return (date(year, month, 28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)


def _relative(phrase: str, now: str) -> str | None:
    if not now:
        return None
    today = date.fromisoformat(now[:10])
    if re.match("昨[天日]|yesterday", phrase):
        return (today - timedelta(days=1)).isoformat()
    if re.match("上个?月|last month", phrase):
        return (today.replace(day=1) - timedelta(days=1)).isoformat()
    if re.match("去年|last year", phrase):
        return f"{today.year - 1}-12-31"
    return None


def relevance(terms: frozenset[str], entry: Entry) -> float:
    """The share of a question's terms that stand in the entry, from 0 to 1."""
    return share_of(terms, normal(f"{entry.title} {entry.content} {' '.join(entry.tags)}"))


# -- decision -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Whether the hits are shown to the model, and which, with the reasons in words."""

    inject: bool
    reasons: list[str]
    hits: "list[Hit]"


def decide(
    understanding: Understanding,
    hits: "Sequence[Hit]",
    mode: Literal["auto", "on", "off"] = "auto",
    cutoff: str = "",
    rules: Rules | None = None,
) -> Decision:
    """Whether knowledge is shown. `on` shows whatever was found, `off` nothing; `cutoff` is the date up to which the
    model knows the world, "" when that is not known."""
    rules = rules or shipped_rules()
    if mode == "off":
        return Decision(False, ["knowledge is off for this request"], [])
    if not hits:
        return Decision(False, ["nothing was found"], [])
    if mode == "on":
        return Decision(True, ["knowledge is on for this request"], list(hits))
    relevances = [max(relevance(understanding.terms, hit.row.entry), hit.coverage) for hit in hits]
    fresh = _freshness(understanding, hits[max(range(len(hits)), key=relevances.__getitem__)], cutoff)
    limit, why = _limit(understanding, bool(fresh), rules)
    needed = max(limit, rules.beside_best * max(relevances))
    kept = [hit for hit, share in zip(hits, relevances, strict=True)
            if share >= needed or limit <= 1 and (hit.cosine or 0.0) >= rules.similar]  # fmt: skip
    found = f"the best entry has {max(relevances):.0%} of the question's words"
    if not kept:
        return Decision(False, [*why, *fresh, f"{found}, {limit:.0%} are needed" if limit <= 1 else found], [])
    return Decision(True, [*why, *fresh, f"{found}, {limit:.0%} were needed"], kept)


def _limit(understanding: Understanding, is_fresh: bool, rules: Rules) -> tuple[float, list[str]]:
    """The relevance that is needed, and why if it is more than the ordinary."""
    limit = rules.fresh if is_fresh else rules.stable
    kind = next((kind for kind in rules.kinds if kind.name == understanding.kind), None)
    return (limit, []) if kind is None else (kind.unless_relevance, [f"the question is of the kind {kind.name}"])


def _freshness(understanding: Understanding, best: "Hit", cutoff: str) -> list[str]:
    reasons = []
    if understanding.time_words:
        reasons.append(f"it asks for a time: {', '.join(understanding.time_words)}")
    if understanding.volatile:
        reasons.append(f"it is about what changes: {', '.join(understanding.volatile)}")
    if understanding.as_of:
        reasons.append(f"it asks for the state of {understanding.as_of}")
    if cutoff and best.row.entry.update_time[: len(cutoff)] > cutoff:
        reasons.append(f"the best entry ({best.row.entry.update_time[:10]}) is newer than the model ({cutoff})")
    return reasons
