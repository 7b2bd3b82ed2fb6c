"""The gate decides by evidence: each limit alone turns the verdict, and it errs as rarely as it promises."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evergreen.evaluate import bounds, gates
from evergreen.evaluate.advice import advice_on
from evergreen.evaluate.gates import Gate, judge, read_gate
from evergreen.evaluate.statistics import Interval
from evergreen.records import BadInput, Check, Verdict
from evergreen.settings import EvolveSettings


def pairs(n: int, lost: int, gained: int) -> tuple[list[float], list[float]]:
    """Right/wrong scores of two versions on n items."""
    before = [1.0] * lost + [0.0] * (n - lost)
    after = [0.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained)
    return before, after


LEARNT, HELD, FALLEN, UNSURE = pairs(500, 5, 150), pairs(500, 4, 4), pairs(500, 40, 5), pairs(100, 5, 3)
GOOD = {"new": {"new": LEARNT}, "old": {"old": HELD}}
FAST = Interval(1.1, 1.0, 1.2, 16)


# Bounds


def tango_score(n: int, lost: int, gained: int, drop: float) -> float:
    """Tango's statistic for "the true difference is -drop", with its restricted estimate in closed form."""
    a = -2 * n
    b = (lost + gained) * (1 - drop) - 2 * gained * drop - 2 * (n - lost - gained) * drop
    c = gained * drop * (1 - drop)
    p_gained = (-b - math.sqrt(b * b - 4 * a * c)) / (2 * a)
    return ((gained - lost) / n + drop) / math.sqrt((2 * p_gained + drop - drop**2) / n)


def chance_to_pass(n: int, changed: float, drop: float, limit: float) -> float:
    """The slow way: every outcome of n items, whether its p-value passes the limit, and how likely it is."""
    p_lost, p_gained, total = (changed + drop) / 2, (changed - drop) / 2, 0.0
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            rest = n - lost - gained
            chance = math.comb(n, lost) * math.comb(n - lost, gained) * p_lost**lost * p_gained**gained
            chance *= (1 - changed) ** rest
            if chance > 1e-9 and bounds.evidence(pairs(n, lost, gained), -limit) < 0.05:
                total += chance
    return total


@pytest.mark.parametrize(
    "n, lost, gained", [(100, 0, 0), (100, 1, 0), (500, 12, 3), (50, 0, 5), (12, 1, 0), (500, 9, 9)]
)
def test_the_score_is_tangos(n, lost, gained):
    p_value = bounds.evidence(pairs(n, lost, gained), -0.03)
    score = tango_score(n, lost, gained, 0.03)
    wanted = 0.5 * math.erfc(score / math.sqrt(2)) / bounds.CALIBRATION if score > 0 else 1.0
    assert p_value == pytest.approx(min(wanted, 1.0), rel=1e-5)


def test_the_bound_is_where_the_evidence_ends():
    for some in (UNSURE, HELD, FALLEN, (np.zeros(200), np.random.default_rng(0).normal(0, 0.2, 200).clip(-1, 1))):
        found = bounds.bounds(some)
        assert bounds.evidence(some, found.low) == pytest.approx(0.05, rel=1e-3)
        assert bounds.evidence_below(some, found.high) == pytest.approx(0.05, rel=1e-3)
        assert found.low < found.mean < found.high


@pytest.mark.parametrize("n, changed", [(12, 0.3), (14, 0.5), (30, 0.2), (41, 0.15), (60, 0.1), (90, 0.0301)])
def test_a_true_drop_to_the_limit_passes_at_most_once_in_twenty(n, changed):
    assert chance_to_pass(n, changed, 0.03, 0.03) <= 0.05


def test_equal_items_exclude_what_the_rule_of_three_excludes():
    assert bounds.bounds(pairs(100, 0, 0)).low > -0.03 > bounds.bounds(pairs(90, 0, 0)).low
    assert bounds.bounds(pairs(12, 0, 0)).low < -0.2


def test_scores_that_are_not_right_or_wrong_are_bounded_too():
    """3% collapse and the rest only trembles: where the mean of 100 items hardly shows it, the bound stays below."""
    random = np.random.default_rng(1)
    drawn = [np.where(random.random(150) < 0.03, -0.9, random.normal(0, 0.05, 150)) for _ in range(60)]
    missed = sum(bounds.bounds((np.zeros(150), one)).low > 0.03 * -0.9 for one in drawn)
    assert missed <= 8
    steady = bounds.bounds((np.full(1000, 0.5), 0.5 + random.normal(0, 0.1, 1000).clip(-0.5, 0.5)))
    assert -0.02 < steady.low < steady.high < 0.02


# Verdicts


def test_what_gains_and_holds_is_promoted():
    verdict = judge(Gate(), **GOOD)
    assert verdict.promoted and not verdict.advice and all(check.passed for check in verdict.checks)


@pytest.mark.parametrize("change, name, decision", [
    ({"new": {"new": pairs(500, 10, 10)}}, "gain", "reject"),
    ({"new": {"new": pairs(100, 10, 14)}}, "gain", "undecided"),
    ({"old": {"old": FALLEN}}, "old", "reject"),
    ({"old": {"old": UNSURE}}, "old", "undecided"),
    ({"old": {"old": HELD, "other": FALLEN}}, "old", "reject"),
    ({"best": {"old": pairs(500, 60, 10)}}, "best", "reject"),
    ({"best": {"old": pairs(60, 4, 2)}}, "best", "undecided"),
    ({"retention": {"suite": FALLEN}}, "retention", "reject"),
    ({"drift": {"mean": 0.6, "low": 0.55, "high": 0.7}}, "drift", "reject"),
    ({"drift": 0.6}, "drift", "reject"),
    ({"drift": math.nan}, "drift", "reject"),
    ({"drift": {"mean": 0.45, "low": 0.4, "high": 0.6}}, "drift", "undecided"),
    ({"latency": {"p50": FAST, "p95": Interval(3.0, 2.5, 4.0, 16)}}, "latency", "reject"),
    ({"latency": {"p50": Interval(1.9, 1.7, 2.3, 16), "p95": FAST}}, "latency", "undecided"),
])  # fmt: skip
def test_each_limit_alone_turns_the_verdict(change, name, decision):
    gate = Gate(max_drift=0.5, max_latency_ratio=2.0)
    fine = {"drift": 0.1, "latency": {"p50": FAST, "p95": FAST}, "retention": {"suite": HELD}}
    assert judge(gate, **GOOD | fine).promoted
    verdict = judge(gate, **GOOD | fine | change)
    assert verdict.decision == decision and not verdict.promoted
    assert {check.name for check in verdict.checks if not check.passed} == {name}
    assert verdict.advice


def test_a_drop_that_is_real_and_allowed_is_no_harm():
    assert judge(Gate(), {"new": LEARNT}, {"old": pairs(5000, 60, 10)}).promoted


def test_best_is_not_asked_about_where_it_is_the_previous_version():
    verdict = judge(Gate(), **GOOD, best={"old": HELD})
    assert [check.name for check in verdict.checks] == ["gain", "old"]


def test_forgetting_that_adds_up_is_caught_by_the_best_version():
    """2 points below the previous version, which is allowed, and 8 below the best."""
    steps = {"old": {"old": pairs(3000, 78, 18)}, "best": {"old": pairs(3000, 270, 30)}}
    assert judge(Gate(), {"new": LEARNT}, steps["old"]).promoted
    assert judge(Gate(), {"new": LEARNT}, **steps).decision == "reject"


def test_twelve_items_cannot_decide_and_say_so():
    verdict = judge(Gate(), {"new": LEARNT}, {"tiny": pairs(12, 0, 0)})
    assert verdict.decision == "undecided" and verdict.items_needed == 100
    assert "88 more items needed (100 in all)" in verdict.reasons[0]


def test_min_items_lets_a_tiny_task_watch_only():
    gate = Gate(min_items=20)
    assert judge(gate, {"new": LEARNT}, {"tiny": pairs(12, 0, 0)}).promoted
    assert judge(gate, {"new": LEARNT}, {"tiny": pairs(12, 8, 0)}).decision == "reject"


def test_undecided_is_let_through_when_asked_and_says_so():
    gate = Gate(on_undecided="promote")
    verdict = judge(gate, {"new": LEARNT}, {"old": UNSURE})
    assert verdict.promoted and "let through" in verdict.reasons[0]
    assert judge(gate, {"new": LEARNT}, {"old": FALLEN}).decision == "reject"


def test_many_harmless_tasks_make_no_alarm_of_one_unlucky_one():
    unlucky = pairs(500, 22, 10)
    assert judge(Gate(), {"new": LEARNT}, {"a": unlucky}).decision == "reject"
    many = {f"task {place}": HELD for place in range(9)}
    assert judge(Gate(), {"new": LEARNT}, {"a": unlucky, **many}).decision == "undecided"


def test_a_task_without_items_is_refused():
    with pytest.raises(BadInput, match="old has no item"):
        judge(Gate(), {"new": LEARNT}, {"old": ([], [])})


# Rates


def rates(candidates: int, n: int, changed: float, drop: float, num_tasks: int = 1) -> dict[str, float]:
    random, found = np.random.default_rng(7), []
    for _ in range(candidates):
        falls = [drop] + [0.0] * (num_tasks - 1)
        counts = [random.multinomial(n, [(changed + d) / 2, (changed - d) / 2, 1 - changed])[:2] for d in falls]
        old = {str(place): pairs(n, *map(int, count)) for place, count in enumerate(counts)}
        found.append(judge(Gate(), {"new": LEARNT}, old).decision)
    return {name: found.count(name) / candidates for name in ("promote", "reject", "undecided")}


def test_a_drop_of_three_points_is_hardly_ever_promoted():
    """True rate 3.8%; 10% of 200 would be a chance of one in 10,000."""
    assert rates(200, 500, 0.05, 0.03)["promote"] < 0.1
    assert rates(100, 500, 0.1, 0.03, num_tasks=3)["promote"] < 0.1


def test_the_number_that_an_undecided_verdict_names_decides():
    verdict = judge(Gate(), {"new": LEARNT}, {"old": pairs(100, 3, 2)})
    assert verdict.decision == "undecided"
    harmless = rates(200, verdict.items_needed, 0.05, 0.0)
    harmful = rates(200, verdict.items_needed, 0.05, 0.03)
    assert harmless["promote"] > 0.9 and harmless["undecided"] < 0.05
    assert harmful["reject"] > 0.9 and harmful["undecided"] < 0.05


# Advice


def advised(checks: list[Check], facts: dict, means: dict | None = None) -> str:
    return "\n".join(advice_on(Verdict("reject", (), tuple(checks)), facts, means or {}))


FORGOT = Check("old", "a", -0.2, -0.25, -0.03, False)
NO_GAIN = Check("gain", "n", 0.0, -0.01, 0.0, False)


@pytest.mark.parametrize("check, facts, wanted", [
    (FORGOT, {"replay_samples": 0.0}, "--replay_samples 0.05"),
    (FORGOT, {"replay_samples": 0.05}, "--replay_samples 0.1 in place of 0.05"),
    (FORGOT, {"regularization_alpha": 0.5}, "--regularization_alpha 2 in place of 0.5"),
    (FORGOT, {}, "--unfreeze auto"),
    (FORGOT, {"shift": {"total": 0.6}}, "shift 0.60"),
    (NO_GAIN, {}, "a higher --learning_rate"),
    (NO_GAIN, {"num_train_rows": 240}, "240 training rows are few"),
    (NO_GAIN, {"train_loss_first": 2.0, "train_loss_last": 1.95, "learning_rate": 1e-4}, "--learning_rate 0.0003"),
    (NO_GAIN, {"train_loss_first": 2.0, "train_loss_last": 5.0, "learning_rate": 3e-2}, "--learning_rate 0.01"),
    (FORGOT, {"train_loss_first": 2.0, "train_loss_last": math.nan}, "training went wrong"),
    (NO_GAIN, {"train_loss_first": 2.0, "train_loss_last": 0.3}, "train and dev"),
    (NO_GAIN, {"regularization_alpha": 2.0}, "--regularization_alpha 0.5"),
])  # fmt: skip
def test_advice_fits_the_numbers(check, facts, wanted):
    assert wanted in advised([check], facts)


def test_advice_does_not_pull_both_ways():
    told = advised([FORGOT, NO_GAIN], {"regularization_alpha": 2.0})
    assert "--regularization_alpha 8" in told and "--regularization_alpha 0.5" not in told


def test_advice_names_a_wrong_previous_model_when_all_old_tasks_are_back_at_the_base():
    means = {("old", "a"): (0.8, 0.31), ("old", "b"): (0.7, 0.1)}
    assert "right version (--prev_model)" in advised([FORGOT], {"base_scores": {"a": 0.3, "b": 0.1}}, means)
    assert "more than half" in advised([FORGOT], {}, means)
    assert "--prev_model" not in advised([FORGOT], {}, means | {("old", "b"): (0.7, 0.69)})


def test_nothing_is_left_to_gain_at_the_top():
    assert "nothing is left to gain" in advised([NO_GAIN], {"num_train_rows": 10}, {("gain", "n"): (0.99, 0.99)})


# Words and files


def test_reasons_read_as_sentences_in_points_worst_first():
    verdict = judge(Gate(), {"立场": LEARNT}, {"20Minuten": pairs(500, 32, 11), "Py150": HELD})
    assert verdict.reasons[0] == "20Minuten fell by 4.2 points (95% lower bound -6.6, allowed -3.0), 500 items"
    assert verdict.reasons[1].startswith("立场 gained 29.0 points (95% lower bound +25.")
    assert verdict.reasons[2].startswith("Py150 did not move")
    assert gates.summary(verdict) == f"reject: {verdict.reasons[0]} (and 2 more)"


def test_the_verdict_is_the_same_after_json(tmp_path):
    from evergreen.home import read_json, write_json

    verdict = judge(Gate(max_drift=1.0), **GOOD | {"old": {"old": UNSURE}}, drift=math.nan)
    write_json(tmp_path / "verdict.json", gates.document(verdict))
    assert gates.verdict_of(read_json(tmp_path / "verdict.json")) == verdict
    assert "NaN" not in (tmp_path / "verdict.json").read_text()


def test_a_printed_gate_reads_back_as_itself(tmp_path):
    for gate in (Gate(), Gate(max_drift=0.2, max_drop=0.01, min_items=30, on_undecided="promote")):
        (tmp_path / "gate.yaml").write_text(gates.as_yaml(gate))
        assert read_gate(str(tmp_path / "gate.yaml")) == gate


@pytest.mark.parametrize("text, complaint", [
    ("max_dorp: 0.02", "knows no limit max_dorp; the nearest is max_drop"),
    ("max_drop: 3", "max_drop must be at most 1, got 3.* 0.03 is 3 points"),
    ("max_drop: 0", "max_drop must be above 0"),
    ("max_drop: lots", "max_drop wants a number"),
    ("max_drop: [0.1]", "max_drop wants a number"),
    ("max_drop:", "max_drop wants a value"),
    ("min_items: 2.5", "min_items wants a whole number"),
    ("on_undecided: perhaps", "on_undecided wants one of reject, promote"),
    ("- max_drop", "wants `limit: value` lines, got a list"),
    ("max_drop: {", "cannot be read"),
])  # fmt: skip
def test_a_bad_gate_file_is_refused_in_one_line(tmp_path, text, complaint):
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(BadInput, match=complaint) as error:
        read_gate(str(tmp_path / "gate.yaml"))
    assert "\n" not in str(error.value) and "--max" not in str(error.value)


def test_flags_lie_over_the_file_and_off_is_off(tmp_path):
    given = EvolveSettings()
    assert gates.gate_of(given) == Gate()
    assert gates.gate_of(replace(given, gate="off")) is None
    with pytest.raises(BadInput, match="--max_drop limits"):
        gates.gate_of(replace(given, gate="off", max_drop=0.1))
    with pytest.raises(BadInput, match="no file nowhere.yaml"):
        gates.gate_of(replace(given, gate="nowhere.yaml"))
    (tmp_path / "gate.yaml").write_text("max_drop: 0.01\nmin_items: 40\n")
    found = gates.gate_of(replace(given, gate=str(tmp_path / "gate.yaml"), max_drop=0.02))
    assert found == Gate(max_drop=0.02, min_items=40)
