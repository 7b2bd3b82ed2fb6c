"""What to try when a version is not promoted: sentences that fit the numbers, the likeliest cause first."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from evergreen.records import Verdict

FEW_ROWS = 1000
COLLAPSED = 0.5  # of the score before
NEAR_BASE = 0.05
PERFECT = 0.97
HARDLY, RISEN = 0.9, 1.1  # of the first training loss
PLENTY_REPLAY = 0.2  # of the new rows
FAR_SHIFT = 0.3  # data.shift calls this far

Means = Mapping[tuple[str, str], tuple[float, float]]


def advice_on(verdict: Verdict, facts: Mapping[str, Any], means: Means) -> Iterator[str]:
    """`means` has (score before, score of the candidate) by check and task. `facts` may hold num_train_rows,
    train_loss_first, train_loss_last, shift (a document of data.shift), replay_samples, regularization_alpha,
    learning_rate, and base_scores (task -> score of the model that everything began from)."""
    if verdict.promoted:
        return
    broken = {check.name for check in verdict.checks if check.passed is False}
    missed = {check.name for check in verdict.checks if not check.passed}
    if missed & {"old", "best", "retention", "gain"}:
        yield from _on_training(facts, "gain" in missed)
    has_forgotten = bool(broken & {"old", "best", "retention"})
    if has_forgotten:
        yield from _on_forgetting(facts, means)
    if "gain" in broken:
        yield from _on_no_gain(facts, means, has_forgotten)
    if "drift" in broken:
        yield f"answers moved far from the previous version's: {_lower_rate(facts)} or fewer --num_train_epochs"
    if "latency" in broken:
        yield (
            "answers take longer: see whether they grew (the scores folder keeps them); a chain of adapters costs time "
            "too, which --chain merge, or one adapter from --merge_chain svd, saves"
        )
    unsure = [check for check in verdict.checks if check.passed is None and check.required]
    if any(not check.items_needed for check in unsure):
        yield "drift or latency lies too near its limit to tell: more dev items, an idle machine, or a wider limit"
    unsure = [check for check in unsure if check.items_needed]
    if unsure:
        counts = ", ".join(f"{check.task} {check.items_needed:,}" for check in unsure)
        yield f"more dev items ({counts} would decide), or --on_undecided promote to take the risk"


def _on_training(facts: Mapping[str, Any], has_missed_gain: bool) -> Iterator[str]:
    """What the training loss says. A loss that hardly fell explains a missing gain, not a loss of old tasks."""
    first, last = facts.get("train_loss_first"), facts.get("train_loss_last")
    if first is None or last is None:
        return
    told = f"{first:.2f} to {last:.2f}"
    if not math.isfinite(last) or last > RISEN * first:
        yield f"training went wrong, its loss went from {told}: {_lower_rate(facts)}"
    elif has_missed_gain and last > HARDLY * first:
        yield f"the training loss hardly fell ({told}): {_higher_rate(facts)} or more --num_train_epochs"


def _on_forgetting(facts: Mapping[str, Any], means: Means) -> Iterator[str]:
    old = {task: scores for (name, task), scores in means.items() if name == "old"}
    fallen = [task for task, (before, after) in old.items() if before > 0.1 and after < COLLAPSED * before]
    base = facts.get("base_scores") or {}
    if len(old) > 1 and len(fallen) == len(old):
        if base and all(task in base and old[task][1] < base[task] + NEAR_BASE for task in fallen):
            yield "every old task is back at the base's level: see that it began from the right version (--prev_model)"
        else:
            yield f"every old task lost more than half of its score: {_lower_rate(facts)}, or the wrong --prev_model"
    yield from _more_replay(facts)
    alpha = facts.get("regularization_alpha") or 0.0
    if alpha:
        yield f"hold the model closer: --regularization_alpha {4 * alpha:g} in place of {alpha:g}"
    else:
        yield "hold the model closer: --regularization kl --regularization_alpha 1, which holds its answers to old data"
    yield "other layers: --unfreeze auto trains those that gain without harm, --freeze_layers leaves some as they are"
    shift = (facts.get("shift") or {}).get("total") or 0.0
    if shift > FAR_SHIFT:
        yield (
            f"the new data lies far from the earlier data (shift {shift:.2f} of 1): {_lower_rate(facts)}, or take it "
            "in smaller increments"
        )


def _more_replay(facts: Mapping[str, Any]) -> Iterator[str]:
    replay, rows = facts.get("replay_samples") or 0.0, facts.get("num_train_rows")
    share = replay if replay < 1 else replay / rows if rows else PLENTY_REPLAY
    if not replay:
        yield "nothing was replayed: --replay_samples 0.05 mixes earlier rows in"
    elif share < PLENTY_REPLAY:
        yield f"more replay: --replay_samples {2 * replay:g} in place of {replay:g}"


def _on_no_gain(facts: Mapping[str, Any], means: Means, has_forgotten: bool) -> Iterator[str]:
    before = min((scores[0] for (name, _), scores in means.items() if name == "gain"), default=0.0)
    if before > PERFECT:
        yield f"the previous version already scores {100 * before:.1f}: nothing is left to gain, no version is needed"
        return
    first, last = facts.get("train_loss_first"), facts.get("train_loss_last")
    if first is None or last is None:
        yield f"{_higher_rate(facts)}, more --num_train_epochs or more rows"
    elif last <= HARDLY * first:
        yield (
            f"the training loss fell ({first:.2f} to {last:.2f}) without a gain on the dev set: see that train and dev "
            "ask the same and want the same form of answer (evergreen data check)"
        )
    rows = facts.get("num_train_rows")
    if rows and rows < FEW_ROWS:
        yield f"{rows:,} training rows are few: {FEW_ROWS:,} or more are usual, or more --num_train_epochs"
    alpha = facts.get("regularization_alpha") or 0.0
    if alpha and not has_forgotten:  # then it is to be held closer
        yield f"the model is held near its start: --regularization_alpha {alpha / 4:g} in place of {alpha:g}"


def _lower_rate(facts: Mapping[str, Any]) -> str:
    rate = facts.get("learning_rate")
    return f"--learning_rate {rate / 3:.1g} in place of {rate:g}" if rate else "a lower --learning_rate"


def _higher_rate(facts: Mapping[str, Any]) -> str:
    rate = facts.get("learning_rate")
    return f"--learning_rate {3 * rate:.1g} in place of {rate:g}" if rate else "a higher --learning_rate"
