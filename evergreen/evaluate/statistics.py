"""How sure a mean or a difference is. Scores are fractions from 0 to 1, intervals cover 95%, every draw is seeded.

Promises: a mean of right/wrong scores has Wilson's interval, any other mean the percentile bootstrap with its
percentiles widened for small n (Hesterberg 2015); a difference is paired, item by item, and called real only when its
bootstrap interval excludes 0 and an exact sign-flip test agrees (for right/wrong scores that test is McNemar's).
Several tasks weigh the same however many items each has. Equal items do not prove equality: where no pair differs, the
interval is what so many items can exclude. Figures over many versions come from one joint bootstrap: a task's items are
drawn once for all versions, so what the versions share does not widen an interval.
Does not: correct for looking several times, or for items that depend on each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Z95 = NormalDist().inv_cdf(0.975)
Z_POWER = NormalDist().inv_cdf(0.8)
NUM_RESAMPLES = 4000
NUM_FLIPS = 10_000
MAX_EXACT_FLIPS = 14
BLOCK_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class McNemar:
    """Counts of right/wrong pairs and the exact two-sided binomial p-value of only_a against only_b."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """b - a. `standard_error` is of the mean difference; `is_real` asks both the interval and the test."""

    mean: float
    low: float
    high: float
    n: int
    p_value: float
    standard_error: float

    @property
    def is_real(self) -> bool:
        return (self.low > 0 or self.high < 0) and self.p_value < 0.05


Pairs = tuple[Sequence[float], Sequence[float]]  # scores of a and of b on the same items


def mean_interval(scores: Sequence[float], seed: int = 0) -> Interval:
    """Wilson when every score is 0 or 1, else the bootstrap."""
    n, mean = len(scores), float(np.mean(scores))
    if set(scores) <= {0.0, 1.0}:
        return Interval(mean, *wilson(round(sum(scores)), n), n)
    low, high = _bootstrap_interval([np.asarray(scores, float)], seed)
    return Interval(mean, max(low, 0.0), min(high, 1.0), n)


def overall_interval(tasks: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Of the mean of task means."""
    if len(tasks) == 1:
        return mean_interval(tasks[0], seed)
    low, high = _bootstrap_interval([np.asarray(scores, float) for scores in tasks], seed)
    mean = float(np.mean([np.mean(scores) for scores in tasks]))
    return Interval(mean, max(low, 0.0), min(high, 1.0), sum(map(len, tasks)))


def wilson(num_right: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    share, square = num_right / n, Z95**2 / n
    centre = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / n + square / n / 4) / (1 + square)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_difference(tasks: Sequence[Pairs], seed: int = 0) -> Difference:
    """Mean over tasks of the mean of b - a."""
    differences = [np.asarray(b, float) - np.asarray(a, float) for a, b in tasks]
    mean = float(np.mean([np.mean(task) for task in differences]))
    low, high = _bootstrap_interval(differences, seed)
    return Difference(
        mean,
        max(low, -1.0),
        min(high, 1.0),
        sum(map(len, differences)),
        _sign_flip_p_value(differences, seed),
        _standard_error(differences),
    )


def mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    """For scores of 0 and 1 (McNemar 1947, with the exact binomial in place of chi-squared)."""
    pairs = [(x > 0.5, y > 0.5) for x, y in zip(a, b, strict=True)]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    p_value = min(1.0, float(2 * tail / 2**n)) if n < 1000 else _normal_p_value(n, fewer)
    return McNemar(pairs.count((True, True)), only_a, only_b, pairs.count((False, False)), p_value)


def items_needed(difference: Difference, wanted: float = 0.02) -> int | None:
    """Items after which a difference of `wanted` would be seen four times in five, if pairs keep differing as much as
    these do; None when no pair differs, because then nothing is known about that."""
    if not difference.standard_error:
        return None
    return math.ceil(difference.n * (difference.standard_error * (Z95 + Z_POWER) / wanted) ** 2)


def resampled_matrices(tasks: Sequence[np.ndarray], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Means [num_resamples, versions, tasks] of scores resampled jointly: each task [versions, items] draws its items
    once a time for all versions, and tasks draw apart. A version without scores of a task holds NaN there."""
    random = np.random.default_rng(seed)
    return np.stack([_resampled_jointly(np.asarray(task, float), random, num_resamples) for task in tasks], axis=-1)


def resampled_interval(
    value: float, resampled: np.ndarray, sizes: Sequence[int], is_reflected: bool = False
) -> tuple[float, float]:
    """95% from the values that a figure takes in the resamples; `sizes` are the numbers of items of its tasks.

    Reflected (the basic bootstrap) for a figure that picks the best of several: its resamples lie above the value by
    about as much as the value lies above the truth. Where nothing varies: what so many items can exclude."""
    if np.ptp(resampled) <= 1e-12:
        half = _unseen(sizes)
        return value - half, value + half
    share = _tail_share(sizes)
    low, high = float(np.quantile(resampled, share)), float(np.quantile(resampled, 1 - share))
    return (2 * value - high, 2 * value - low) if is_reflected else (low, high)


def amount_interval(amounts: Sequence[float], seed: int = 0) -> Interval:
    """Of a mean of amounts that are no scores, such as nats or seconds; no width where all are equal."""
    values = np.asarray(amounts, float)
    low = high = mean = float(values.mean())
    if np.ptp(values):
        low, high = _bootstrap_interval([values], seed)
    return Interval(mean, low, high, len(values))


def is_right_or_wrong(*scores: Sequence[float]) -> bool:
    return all(set(task) <= {0.0, 1.0} for task in scores)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile; 0 of nothing."""
    p50, p95 = np.percentile(values, (50, 95)) if values else (0.0, 0.0)
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def percentile_intervals(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """`percentiles` with p50_low, p50_high, p95_low and p95_high, by the bootstrap. The 95th percentile of few values
    is little below the largest one, and its interval cannot reach above that."""
    if not values:
        return dict.fromkeys(("p50", "p50_low", "p50_high", "p95", "p95_low", "p95_high"), 0.0)
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (1000, len(values)))
    found = percentiles(values)
    for name, wanted in (("p50", 50), ("p95", 95)):
        low, high = np.percentile(np.percentile(drawn, wanted, axis=1), (2.5, 97.5))
        found |= {f"{name}_low": round(float(low), 3), f"{name}_high": round(float(high), 3)}
    return found


def percentile_ratios(before: Sequence[float], after: Sequence[float], seed: int = 0) -> dict[str, Interval]:
    """The ratio of the medians and that of the 95th percentiles, by the paired bootstrap: both sides of an item are
    drawn together."""
    sides, n = (np.asarray(before, float), np.asarray(after, float)), len(before)
    places = np.random.default_rng(seed).integers(0, n, (1000, n))
    found = {}
    for name, wanted in (("p50", 50), ("p95", 95)):
        value, drawn = (np.divide(*(np.percentile(side, wanted, axis=-1) for side in reversed(each)))
                        for each in (sides, [side[places] for side in sides]))  # fmt: skip
        found[name] = Interval(float(value), *map(float, np.percentile(drawn, (2.5, 97.5))), n)
    return found


# The bootstrap and the sign-flip test


def _bootstrap_interval(tasks: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean of task means, each task resampled by itself."""
    mean = float(np.mean([task.mean() for task in tasks]))
    if all(np.ptp(task) == 0 for task in tasks):
        half = _unseen([len(task) for task in tasks])
        return mean - half, mean + half
    random = np.random.default_rng(seed)
    means = np.mean([_resampled_means(task, random) for task in tasks], axis=0)
    share = _tail_share([len(task) for task in tasks])
    return float(np.quantile(means, share)), float(np.quantile(means, 1 - share))


def _unseen(sizes: Sequence[int]) -> float:
    """Rarer deviants than this share were missed by so many equal items, 19 times in 20."""
    return float(np.mean([1 - 0.05 ** (1 / n) for n in sizes]))


def _tail_share(sizes: Sequence[int]) -> float:
    """The percentile whose interval is as wide as Student's t wants it for so many items."""
    freedom = max(sum(n - 1 for n in sizes), 1)
    return NormalDist().cdf(-math.sqrt((freedom + 1) / freedom) * _t_quantile(freedom))


def _resampled_means(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    n = len(values)
    return np.concatenate([values[random.integers(0, n, (size, n))].mean(axis=1) for size in _blocks(NUM_RESAMPLES, n)])


def _resampled_jointly(scores: np.ndarray, random: np.random.Generator, num_resamples: int) -> np.ndarray:
    """[versions, n] -> means [num_resamples, versions]: how often each item was drawn, times the scores."""
    n = scores.shape[1]
    means = []
    for size in _blocks(num_resamples, n):
        drawn = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means.append(counts @ scores.T / n)
    return np.concatenate(means)


def _blocks(total: int, n: int) -> list[int]:
    """Sizes that add up to `total`, each small enough that size x n numbers take some 16 MB."""
    size = max(BLOCK_NUMBERS // n, 1)
    return [min(size, total - start) for start in range(0, total, size)]


def _t_quantile(freedom: int) -> float:
    """Student's t at 97.5% by Cornish-Fisher; 2.23 for 10 degrees of freedom, within 1% from 4 on."""
    z = Z95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def _sign_flip_p_value(tasks: Sequence[np.ndarray], seed: int) -> float:
    """Two-sided: the share of sign flips whose mean is as far from 0; all flips up to 14 unequal pairs, else 10,000."""
    weights = np.concatenate([task / len(task) / len(tasks) for task in tasks])
    weights = weights[weights != 0]
    if not len(weights):
        return 1.0
    as_far = abs(weights.sum()) - 1e-12
    if len(weights) <= MAX_EXACT_FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(weights))[:, None] >> np.arange(len(weights)) & 1)
        return float(np.mean(np.abs(signs @ weights) >= as_far))
    random, found = np.random.default_rng(seed), 0
    for size in _blocks(NUM_FLIPS, len(weights)):
        signs = 1.0 - 2.0 * random.integers(0, 2, (size, len(weights)))
        found += int(np.sum(np.abs(signs @ weights) >= as_far))
    return (1 + found) / (1 + NUM_FLIPS)


def _standard_error(tasks: Sequence[np.ndarray]) -> float:
    return math.sqrt(sum(np.var(task, ddof=1) / len(task) for task in tasks if len(task) > 1)) / len(tasks)


def _normal_p_value(n: int, fewer: int) -> float:
    """The binomial's tail by its normal limit with continuity correction: from 1,000 pairs on the two agree."""
    return min(1.0, 2 * NormalDist().cdf((fewer + 0.5 - n / 2) / (math.sqrt(n) / 2)))
