"""What is measured of a version beside its scores: how long one answer takes, and how far it drifted from another."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.evaluate import statistics
from evergreen.evaluate.harness import Version, open_engine
from evergreen.evaluate.tasks import Item
from evergreen.records import Sampling

if TYPE_CHECKING:
    from evergreen.settings import EvalSettings

NUM_TIMED, NUM_ROUNDS = 16, 3


def latency_ms(version: Version, items: Sequence[Item], settings: "EvalSettings") -> dict[str, float]:
    """Median and 95th percentile, with their 95% intervals, of milliseconds per answer, one at a time, after a warm-up;
    each prompt counts with its median of three rounds, so that a busy moment of the machine does not."""
    return statistics.percentile_intervals(_answer_ms(version, items, settings))


def latency_ratios(
    before: Version, after: Version, items: Sequence[Item], settings: "EvalSettings"
) -> dict[str, statistics.Interval]:
    """Median and 95th percentile of `after`'s answer times against `before`'s, prompt by prompt. Both are timed now,
    one after the other: yesterday's time says as much of the machine as of the version."""
    return statistics.percentile_ratios(*(_answer_ms(version, items, settings) for version in (before, after)))


def _answer_ms(version: Version, items: Sequence[Item], settings: "EvalSettings") -> list[float]:
    engine, encode = open_engine(version, settings, prefix_caching=False)  # a prompt is timed three times
    prompts = [encode(item) for item in items[:NUM_TIMED]]
    sampling = Sampling(max_new_tokens=min(settings.max_new_tokens, 64))
    engine.generate(prompts[:1], sampling)
    rounds = [[_seconds(engine, prompt, sampling) for prompt in prompts] for _ in range(NUM_ROUNDS)]
    return [1000 * sorted(times)[NUM_ROUNDS // 2] for times in zip(*rounds, strict=True)]


def _seconds(engine: Any, prompt: list[int], sampling: Sampling) -> float:
    began = time.perf_counter()
    engine.generate([prompt], sampling)
    return time.perf_counter() - began
