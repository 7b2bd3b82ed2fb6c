"""The gate: may this version take the place of the one before it.

Promises: every limit is tested on identical items, pair by pair. A version is promoted when each limit is shown to hold
(its one-sided 95% bound lies inside), so a version that breaks one limit passes at most once in twenty, however many
tasks there are. It is rejected when harm, or the absence of gain, is shown; tasks are corrected for one another (Holm
1979), so that many harmless tasks do not make a false alarm. Between the two it is undecided, and the verdict says how
many items would decide; undecided is not promoted unless `on_undecided` says so.
Does not: score anything, or choose among candidates; each shortened step is a candidate of its own. Nothing corrects
for trying several, or for asking again with more items.

    gain        new task: candidate - previous above min_gain
    old         each earlier task: candidate - previous above -max_drop
    best        each earlier task: candidate - the best version so far above -max_forgetting
    retention   each suite: candidate - start above -max_retention_drop
    drift       nats per token from the previous version on the new task's items, at most max_drift
    latency     median and 95th percentile of answer times against the previous version's, at most max_latency_ratio

The last two hold when their 95% interval lies below the limit, and fail when it lies above.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evergreen.evaluate import bounds
from evergreen.evaluate.advice import advice_on
from evergreen.evaluate.statistics import Interval, Pairs
from evergreen.options import option, parse
from evergreen.records import BadInput, Check, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from evergreen.settings import EvolveSettings

ALPHA = 0.05
NO_GAIN = 0.03  # above min_gain: a gain that is surely smaller counts as none
ON, OFF = ("", "on", "true"), ("off", "false")  # a recipe's bare on and off are true and false


@dataclass(frozen=True)
class Gate:
    """Limits as fractions: 0.03 is 3 points."""

    min_gain: float = option(0.0, "the new task must gain more than this", (), at_least=-1, at_most=0.9)
    max_drop: float = option(0.03, "an old task may lose less than this", (), above=0, at_most=1)
    max_forgetting: float = option(0.05, "and less than this against its best version ever", (), above=0, at_most=1)
    max_retention_drop: float = option(0.03, "a retention suite may lose less than this", (), above=0, at_most=1)
    max_drift: float | None = option(None, "nats per token on the new task's items; null is no limit", (), above=0)
    max_latency_ratio: float | None = option(
        None, "answer time (median, 95th percentile) against the previous version's; null is no limit", (), above=0
    )
    min_items: int = option(0, "a task with fewer items can reject, and need not be passed", (), at_least=0)
    on_undecided: str = option("reject", "what too few items lead to: reject or promote", (), ("reject", "promote"))


@dataclass(frozen=True)
class _Question:
    """The limit holds when the difference is surely above `limit`, and is broken when it is surely below `harm`."""

    name: str
    task: str
    pairs: Pairs
    limit: float
    harm: float


def gate_of(given: "EvolveSettings") -> Gate | None:
    """`--gate FILE|off` with the limits given as flags over it; None when it is off. Raises BadInput."""
    flags = {one.name: value for one in fields(Gate) if (value := getattr(given, one.name)) is not None}
    if given.gate in OFF:
        if flags:
            raise BadInput(f"--gate off lets everything through, and --{next(iter(flags))} limits: give one of them")
        return None
    return replace(Gate() if given.gate in ON else read_gate(given.gate), **flags)


def read_gate(path: str) -> Gate:
    """A gate.yaml. Raises BadInput for anything in it that is not a limit with a fitting value."""
    import yaml

    if not Path(path).is_file():
        raise BadInput(f"--gate wants a file such as gate.yaml, or off; there is no file {path}")
    try:
        limits = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"--gate {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(limits, dict):
        raise BadInput(f"--gate {path} wants `limit: value` lines, got a {type(limits).__name__}")
    known = {one.name: one.default for one in fields(Gate)}
    for name, value in limits.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise BadInput(f"{path}: the gate knows no limit {name}{hint} (it knows {', '.join(known)})")
        if value is None and known[name] is not None:
            raise BadInput(f"{path}: {name} wants a value; without the line it is {known[name]}")
    try:
        return parse(Gate, [f"--{name}={value}" for name, value in limits.items() if value is not None], "evolve")
    except BadInput as error:
        raise BadInput(f"{path}: {error} (limits are fractions: 0.03 is 3 points)".replace(" --", " ")) from None


def as_yaml(gate: Gate) -> str:
    """What a gate.yaml holds, with a word on each limit."""
    values = {one.name: "null" if getattr(gate, one.name) is None else getattr(gate, one.name) for one in fields(gate)}
    words = {one.name: one.metadata["help"] for one in fields(gate)}
    lines = [f"{f'{name}: {value}':<25} # {words[name]}" for name, value in values.items()]
    return "\n".join(["# fractions of 1: 0.03 is 3 points", *lines]) + "\n"


def judge(
    gate: Gate,
    new: Mapping[str, Pairs],
    old: Mapping[str, Pairs],
    best: Mapping[str, Pairs] | None = None,
    retention: Mapping[str, Pairs] | None = None,
    drift: Mapping[str, float] | float | None = None,
    latency: Mapping[str, Interval] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Verdict:
    """`new`, `old`, `best` and `retention` map tasks to (scores before, scores of the candidate) on identical items;
    `best` has the best version so far in place of the previous one. `drift` is in nats per token, alone or as {mean,
    low, high}; `latency` has the ratios of p50 and p95 to the previous version's; `facts` is what advice is made of
    (see advice.advice_on)."""
    questions = _questions(gate, new, old, best or {}, retention or {})
    checks = (*_checks(gate, questions), *_drift_check(gate, drift), *_latency_checks(gate, latency))
    decision = _decision(gate, checks)
    needed = max((check.items_needed or 0 for check in checks if check.required), default=0) or None
    verdict = Verdict(decision, tuple(_reasons(gate, decision, checks)), checks, (), needed)
    means = {(one.name, one.task): (float(np.mean(one.pairs[0])), float(np.mean(one.pairs[1]))) for one in questions}
    return replace(verdict, advice=tuple(advice_on(verdict, facts or {}, means)))


def summary(verdict: Verdict) -> str:
    """The verdict in one line: the decision, its first reason, and how many more there are."""
    more = len(verdict.reasons) - 1
    told = f": {verdict.reasons[0]}" if verdict.reasons else ""
    return verdict.decision + told + (f" (and {more} more)" if more > 0 else "")


def describe(verdict: Verdict, name: str) -> "RenderableType":
    """The verdict for a terminal."""
    from rich.text import Text

    colour = {"promote": "green", "reject": "red", "undecided": "yellow"}[verdict.decision]
    text = Text.assemble((f"{name}: {verdict.decision}", f"bold {colour}"))
    for reason in verdict.reasons:
        text.append(f"\n  {reason}")
    for advice in verdict.advice:
        text.append(f"\n  try: {advice}", "italic")
    return text


def document(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON; `verdict_of` reads it back."""
    return asdict(verdict) | {"promoted": verdict.promoted}


def verdict_of(document: Mapping[str, Any]) -> Verdict:
    checks = tuple(Check(**check) for check in document["checks"])
    return Verdict(document["decision"], tuple(document["reasons"]), checks, tuple(document["advice"]),
                   document["items_needed"])  # fmt: skip


# The tests


def _questions(
    gate: Gate, new: Mapping[str, Pairs], old: Mapping[str, Pairs], best: Mapping[str, Pairs],
    retention: Mapping[str, Pairs],
) -> list[_Question]:  # fmt: skip
    """The best version is asked about only where it is not the previous one, whose limit is meant to be closer."""
    best = {
        task: pairs
        for task, pairs in best.items()
        if task not in old or gate.max_forgetting < gate.max_drop or not _are_equal(pairs, old[task])
    }
    asked = [
        *(_Question("gain", task, pairs, gate.min_gain, gate.min_gain + NO_GAIN) for task, pairs in new.items()),
        *(_Question("old", task, pairs, -gate.max_drop, 0.0) for task, pairs in old.items()),
        *(_Question("best", task, pairs, -gate.max_forgetting, 0.0) for task, pairs in best.items()),
        *(_Question("retention", task, pairs, -gate.max_retention_drop, 0.0) for task, pairs in retention.items()),
    ]
    for one in asked:
        if not len(one.pairs[0]):
            raise BadInput(f"{one.task} has no item that both versions answered: the gate has nothing to judge by")
    return asked


def _are_equal(one: Pairs, other: Pairs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _checks(gate: Gate, questions: Sequence[_Question]) -> list[Check]:
    gains = [one for one in questions if one.name == "gain"]
    held = [one for one in questions if one.name != "gain"]
    return [*_family(gate, gains), *_family(gate, held)]


def _family(gate: Gate, questions: Sequence[_Question]) -> list[Check]:
    """Questions whose alarms are corrected for one another: harm is shown at 5% for all of them together."""
    p_values = [bounds.evidence_below(one.pairs, one.harm) for one in questions]
    broken = _holm(p_values, ALPHA)
    return [_check(gate, one, place in broken, ALPHA / len(questions)) for place, one in enumerate(questions)]


def _holm(p_values: Sequence[float], alpha: float) -> set[int]:
    """Which hypotheses fall, with chance `alpha` at most that a true one does (Holm 1979)."""
    found: set[int] = set()
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - place):
            break
        found.add(index)
    return found


def _check(gate: Gate, one: _Question, is_broken: bool, alpha_harm: float) -> Check:
    bound, n = bounds.bounds(one.pairs, 1 - ALPHA), len(one.pairs[0])
    passed = True if bound.low > one.limit else False if is_broken else None
    needed = None
    if passed is None:
        needed = max(n + 1, bounds.items_to_decide(one.pairs, one.limit, one.harm, ALPHA, alpha_harm))
    required = n >= gate.min_items
    return Check(one.name, one.task, bound.mean, bound.low, one.limit, passed, bound.high, n, needed, required)


def _drift_check(gate: Gate, drift: Mapping[str, float] | float | None) -> list[Check]:
    if gate.max_drift is None or drift is None:
        return []
    found = drift if isinstance(drift, Mapping) else {}
    value = found.get("mean", drift)
    return [_at_most("drift", "", value, found.get("low", value), found.get("high", value), gate.max_drift)]


def _latency_checks(gate: Gate, latency: Mapping[str, Interval] | None) -> list[Check]:
    if gate.max_latency_ratio is None:
        return []
    return [_at_most("latency", name, ratio.mean, ratio.low, ratio.high, gate.max_latency_ratio)
            for name, ratio in (latency or {}).items()]  # fmt: skip


def _at_most(name: str, task: str, value: float, low: float, high: float, limit: float) -> Check:
    """What is not a number is above every limit."""
    passed = True if high <= limit else None if low <= limit else False
    return Check(name, task, _finite(value), _finite(low), limit, passed, _finite(high))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _decision(gate: Gate, checks: Sequence[Check]) -> str:
    if any(check.passed is False for check in checks):
        return "reject"
    if gate.on_undecided == "promote" or all(check.passed for check in checks if check.required):
        return "promote"
    return "undecided"


# Words


def _reasons(gate: Gate, decision: str, checks: Sequence[Check]) -> list[str]:
    """One sentence for each check, the worst first."""
    if decision == "promote" and any(check.passed is None and check.required for check in checks):
        return ["too few items to decide, let through because on_undecided is promote", *_sentences(checks)]
    return _sentences(checks)


def _sentences(checks: Sequence[Check]) -> list[str]:
    worst_first = sorted(checks, key=lambda check: {False: 0, None: 1 if check.required else 2, True: 3}[check.passed])
    return [_sentence(check) for check in worst_first]


def _sentence(check: Check) -> str:
    if check.name == "drift":
        value = "not a number" if check.value is None else f"{check.value:.3f} nats a token"
        return f"drift from the previous version: {value}{_span(check)}, allowed {check.limit:g}{_unsure(check)}"
    if check.name == "latency":
        which = {"p50": "the median answer takes", "p95": "the slowest twentieth of the answers takes"}[check.task]
        value = "no finite multiple of" if check.value is None else f"{check.value:.2f} times"
        allowed = f"allowed {check.limit:g} times{_unsure(check)}"
        return f"{which} {value} the previous version's time{_span(check)}, {allowed}"
    return f"{check.task} {_moved(check)} ({_bound(check)}), {_items(check.num_items)}{_what_would_do(check)}"


def _span(check: Check) -> str:
    has_width = check.low is not None and check.high is not None and check.low < check.high
    return f" (95%: {check.low:.3g} to {check.high:.3g})" if has_width else ""


def _unsure(check: Check) -> str:
    return ": undecided" if check.passed is None else ""


def _moved(check: Check) -> str:
    against = {"best": " against its best version", "retention": " against the start"}.get(check.name, "")
    amount = f"{abs(100 * check.value):.1f}"
    if amount == "0.0":
        return f"did not move{against}"
    up, down = ("gained", "lost") if check.name == "gain" else ("rose by", "fell by")
    return f"{up if check.value > 0 else down} {amount} points{against}"


def _bound(check: Check) -> str:
    if check.name == "gain" and check.passed is False:
        return f"95% upper bound {100 * check.high:+.1f}, no gain worth the name"
    digits = 1 if abs(check.low - check.limit) > 0.001 else 2
    wanted = "wanted above" if check.name == "gain" else "allowed"
    return f"95% lower bound {100 * check.low:+.{digits}f}, {wanted} {100 * check.limit:+.{digits}f}"


def _items(n: int) -> str:
    return "1 item" if n == 1 else f"{n:,} items"


def _what_would_do(check: Check) -> str:
    if check.passed is not None:
        return ""
    if not check.required:
        return ": too few to decide, and fewer than min_items asks for"
    more = check.items_needed - check.num_items
    return f": undecided, {more:,} more items needed ({check.items_needed:,} in all)"
