"""Texts that are nearly the same: candidates by MinHash, then the exact share of equal pieces.

One-permutation hashing (Li, Owen, Zhang 2012) over pieces of four characters, 64 bins in 16 bands of 4; empty bins take
their right neighbour's value (Shrivastava, Li 2014). Two texts that share 80% of their pieces meet in a band with a
probability of 99.98%, at 50% with 64%; what meets is compared exactly, so nothing is reported that is not so."""

from collections.abc import Sequence
from typing import Any

import numpy as np

PIECE = 4  # characters
BINS, BANDS = 64, 16
BATCH = 1000  # texts hashed at a time: some 30 MB
MAX_MET = 10  # texts that a new one is compared with: templates would cost the square of their number
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)


class Near:
    """Texts by key, and which of those before each new one is nearest."""

    def __init__(self, threshold: float, keys: Sequence[str] = (), texts: Sequence[str] = ()):
        """`texts` are those that were there before, under their keys."""
        self.threshold = threshold
        self._texts = dict(zip(keys, texts, strict=True))
        self._bands: list[dict[int, list[str]]] = [{} for _ in range(BANDS)]  # of the new ones
        self._old = list(keys)
        hashes = [_band_hashes(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        bands = np.concatenate(hashes).T if hashes else np.zeros((BANDS, 0), dtype=np.uint64)
        self._order = [band.argsort().astype(np.int32) for band in bands]
        self._sorted = [band[order] for band, order in zip(bands, self._order, strict=True)]

    def add(self, keys: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str, float]]:
        """Take texts in; (key, the nearest key before it, share of equal pieces) of those that have one."""
        found = []
        for start in range(0, len(keys), BATCH):
            some, words = keys[start : start + BATCH], texts[start : start + BATCH]
            hashes = _band_hashes(words)
            met = self._met_before(hashes)
            for key, text, bands, old in zip(some, words, hashes.tolist(), met, strict=True):
                if near := self._nearest(key, text, bands, old):
                    found.append((key, *near))
                self._take(key, text, bands)
        return found

    def _met_before(self, hashes: Any) -> list[set[str]]:
        """For each row of band hashes the keys from before that share a band with it."""
        met: list[set[str]] = [set() for _ in range(len(hashes))]
        for band, (values, order) in enumerate(zip(self._sorted, self._order, strict=True)):
            first = np.searchsorted(values, hashes[:, band], "left")
            last = np.searchsorted(values, hashes[:, band], "right")
            for row in np.flatnonzero(last > first).tolist():
                met[row] |= {self._old[place] for place in order[first[row] : min(last[row], first[row] + MAX_MET)]}
        return met

    def _nearest(self, key: str, text: str, bands: list[int], met: set[str]) -> tuple[str, float] | None:
        for band, value in zip(self._bands, bands, strict=True):
            met.update(band.get(value, ()))
        known = [other for other in sorted(met) if other in self._texts and other != key][:MAX_MET]
        share, other = max(((similarity(text, self._texts[other]), other) for other in known), default=(0.0, ""))
        return (other, share) if share >= self.threshold else None

    def _take(self, key: str, text: str, bands: list[int]) -> None:
        self._texts[key] = text
        for band, value in zip(self._bands, bands, strict=True):
            keys = band.setdefault(value, [])
            if len(keys) < MAX_MET:
                keys.append(key)


def similarity(one: str, other: str) -> float:
    """Jaccard's share of the pieces that two texts have in common, from 0 to 1."""
    left, right = _pieces(_plain(one)), _pieces(_plain(other))
    return len(left & right) / len(left | right) if left or right else 1.0


def _pieces(text: str) -> set[str]:
    return {text[place : place + PIECE] for place in range(max(1, len(text) - PIECE + 1))}


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def _band_hashes(texts: Sequence[str]) -> Any:
    """uint64 [texts, BANDS]: texts with equal numbers in a band are worth comparing."""
    padded = [_plain(text).ljust(PIECE, "\0") for text in texts]
    joined = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    pieces = np.zeros(len(joined), dtype=np.uint64)
    for place, factor in enumerate(FACTORS):
        pieces[: len(joined) - place] += joined[place:] * factor
    owner = np.repeat(np.arange(len(texts)) * BINS, lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    whole = np.arange(len(joined)) + PIECE <= ends  # a piece ends with its text
    hashes = _mixed(pieces[whole])
    bins = np.full(len(texts) * BINS, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(bins, owner[whole] + (hashes >> np.uint64(58)).astype(np.int64), hashes)
    bins = _filled(bins.reshape(len(texts), BINS)).reshape(len(texts), BANDS, BINS // BANDS)
    bands = np.zeros(bins.shape[:2], dtype=np.uint64)
    for place in range(bins.shape[2]):
        bands = _mixed(bands + bins[:, :, place])
    return bands


def _filled(bins: Any) -> Any:
    """Bins that no piece fell into get what the next one to the right has, round the end."""
    empty = bins == np.iinfo(np.uint64).max
    for _ in range(BINS):
        if not (empty := empty & (bins == np.iinfo(np.uint64).max)).any():
            break
        bins = np.where(empty, np.roll(bins, -1, axis=1), bins)
    return bins


def _mixed(numbers: Any) -> Any:
    """SplitMix64's finaliser: every bit of a number decides every bit of the result."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
