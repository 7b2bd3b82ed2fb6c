"""One-sided bounds of a paired difference that hold when few items change.

Promises: for right/wrong scores the bound is Tango's score bound (Tango 1998), which needs no changed item at all: 100
equal items exclude a drop of 3 points (the rule of three). Other scores have the same bound in its nonparametric form:
the distribution nearest to the data under the hypothesis is its empirical likelihood (Owen 1988), and it may put weight
on the worst difference, -1, seen or not. At 95% the exact chance that right/wrong scores pass a limit of 3 points which
the truth does not is at most 5% from 12 items on, whatever share of the items changes.
Does not: correct for looking several times, or for items that depend on each other. Below some 100 items the bound of
scores that are not right/wrong is wider than theirs would have to be if no answer could collapse.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from evergreen.evaluate.statistics import Interval, Pairs

CALIBRATION = 0.8  # Tango's bound at 95% errs in up to 6.0% (30 items, a fifth changed), at 96% in at most 5.0%
UNSEEN = 1e-9  # items that count for the worst difference before any is seen
MAX_TILT = 60.0
Atoms = tuple[tuple[float, ...], tuple[float, ...]]  # distinct differences, and how many items have each


def bounds(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Mean of b - a; the truth is above `low` with `confidence`, and below `high` with the same."""
    atoms, z = _atoms(pairs), quantile(confidence)
    low, high = _low(atoms, z), -_low(_mirrored(atoms), z)
    return Interval(_mean(atoms), low, high, len(pairs[0]))


def evidence(pairs: Pairs, limit: float) -> float:
    """One-sided p-value of "the true difference is at most `limit`": small when it is surely above."""
    atoms = _atoms(pairs)
    return 1.0 if _mean(atoms) <= limit else min(1.0, NormalDist().cdf(-_score(atoms, limit)) / CALIBRATION)


def evidence_below(pairs: Pairs, limit: float) -> float:
    """One-sided p-value of "the true difference is at least `limit`"."""
    return evidence((pairs[1], pairs[0]), -limit)


def items_to_decide(pairs: Pairs, low_limit: float, high_limit: float, alpha_low: float, alpha_high: float) -> int:
    """Items after which one of two things is shown whatever comes out, if items go on changing as these do: the
    difference is above `low_limit` (with error `alpha_low`) or below `high_limit` (with error `alpha_high`)."""
    atoms = _atoms(pairs)
    half_low = quantile(1 - alpha_low) * _deviation(atoms, low_limit)
    half_high = quantile(1 - alpha_high) * _deviation(atoms, high_limit)
    return math.ceil(((half_low + half_high) / (high_limit - low_limit)) ** 2)


def quantile(confidence: float) -> float:
    return -NormalDist().inv_cdf(CALIBRATION * (1 - confidence))


def _atoms(pairs: Pairs) -> Atoms:
    difference = np.asarray(pairs[1], float) - np.asarray(pairs[0], float)
    values, counts = np.unique(difference, return_counts=True)
    return tuple(values.tolist()), tuple(counts.tolist())


def _mirrored(atoms: Atoms) -> Atoms:
    return tuple(-value for value in reversed(atoms[0])), tuple(reversed(atoms[1]))


def _mean(atoms: Atoms) -> float:
    return float(np.dot(*atoms)) / sum(atoms[1])


@lru_cache(maxsize=1024)
def _low(atoms: Atoms, z: float) -> float:
    """The mean whose nearest distribution is `z` standard errors below the observed one."""
    tilt = _bisect(lambda tilt: _score_of(atoms, *_tilted(atoms, tilt)) < z)
    return _tilted(atoms, tilt)[0]


@lru_cache(maxsize=1024)
def _score(atoms: Atoms, limit: float) -> float:
    """How many standard errors under "the mean is `limit`" the observed mean lies above it (negative: below)."""
    if _mean(atoms) < limit:
        return -_score(_mirrored(atoms), -limit)
    return _score_of(atoms, limit, _deviation(atoms, limit))


def _score_of(atoms: Atoms, limit: float, deviation: float) -> float:
    above = _mean(atoms) - limit
    return above / deviation * math.sqrt(sum(atoms[1])) if deviation else math.copysign(math.inf, above) * (above != 0)


def _deviation(atoms: Atoms, limit: float) -> float:
    """Standard deviation of one difference in the distribution of mean `limit` nearest to the data."""
    if _mean(atoms) < limit:
        return _deviation(_mirrored(atoms), -limit)
    return _tilted(atoms, _bisect(lambda tilt: _tilted(atoms, tilt)[0] > limit))[1]


def _tilted(atoms: Atoms, tilt: float) -> tuple[float, float]:
    """Mean and standard deviation of the maximum-likelihood weights along the one-parameter family of lower means:
    each item's weight is proportional to 1 / (1 + k * difference), k = 1 - exp(-tilt)."""
    values = np.asarray((-1.0, *atoms[0]))
    rest = math.exp(-tilt)
    weights = np.asarray((UNSEEN, *atoms[1])) / (rest + (1 - rest) * (1 + values))
    weights /= weights.sum()
    mean = float(weights @ values)
    return mean, math.sqrt(max(float(weights @ (values - mean) ** 2), 0.0))


def _bisect(is_below: Callable[[float], bool]) -> float:
    """The tilt at which `is_below` turns false."""
    low, high = 0.0, MAX_TILT
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low
