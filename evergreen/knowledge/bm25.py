"""BM25 over rows that come one by one, are visible at some moments, and are sometimes taken out.

Promises: the statistics (how many rows hold a word, how long rows are) are those of the rows that a question may see:
a search of the past scores as an index of only that past would. Adding a row costs its own words and, now and then, a
merge; taking rows out leaves none of their words behind.
Does not: cut texts into words, or keep anything on the disk (`arrays` and `of_arrays` are for who does).

Scores: idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), idf = ln(1 + (N - df + 0.5) / (df + 0.5))
(Robertson and Zaragoza 2009, with Lucene's idf, which is never negative).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

K1, B = 0.9, 0.4
BLOCK_ROWS = 1024  # are counted at once while many come
FREQUENT = 0.05  # of the rows hold a frequent word
SAMPLED = 16  # every such score tells how high the best ones are


@dataclass
class Segment:
    """Postings of a run of rows, by word: those of `terms[i]` are `rows[starts[i]:starts[i + 1]]`, rising."""

    num_rows: int
    terms: np.ndarray  # int32, rising
    starts: np.ndarray  # int64, one more than terms
    rows: np.ndarray  # int32
    counts: np.ndarray  # uint8: how often the word stands in the row, at most 255

    def postings(self, term: int) -> tuple[np.ndarray, np.ndarray] | None:
        place = int(self.terms.searchsorted(term))
        if place == len(self.terms) or self.terms[place] != term:
            return None
        span = slice(self.starts[place], self.starts[place + 1])
        return self.rows[span], self.counts[span]

    def term_of_each(self) -> np.ndarray:
        return np.repeat(self.terms, np.diff(self.starts))


class Postings:
    """Which rows hold which words. Rows are numbered from 0 in the order in which they came."""

    def __init__(self) -> None:
        self.number_of: dict[str, int] = {}  # word -> term
        self._num_terms = 0  # ever given: a number is not given twice
        self.segments: list[Segment] = []  # of consecutive rows, each more than twice as large as the next
        self.lengths = np.zeros(0, np.int32)  # words in each row
        self._kept: tuple | None = None

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    def add(self, rows: Iterable[Sequence[str]]) -> None:
        """Append rows, each given by its words."""
        block: list[Sequence[str]] = []
        for row in rows:
            block.append(row)
            if len(block) == BLOCK_ROWS:
                self._add_block(block)
                block = []
        if block:
            self._add_block(block)

    def _add_block(self, block: list[Sequence[str]]) -> None:
        first = self.num_rows
        lengths = np.fromiter(map(len, block), np.int32, len(block))
        terms = np.fromiter((self._number(word) for row in block for word in row), np.int64, int(lengths.sum()))
        rows = np.repeat(np.arange(first, first + len(block)), lengths)
        pairs, counts = np.unique(terms << 32 | rows, return_counts=True)
        self.lengths = np.concatenate([self.lengths, lengths])
        self.segments.append(
            _segment(
                len(block),
                (pairs >> 32).astype(np.int32),
                (pairs & 0xFFFFFFFF).astype(np.int32),
                np.minimum(counts, 255).astype(np.uint8),
            )  # fmt: skip
        )
        while len(self.segments) > 1 and self.segments[-2].num_rows <= 2 * self.segments[-1].num_rows:
            last = self.segments.pop()
            self.segments[-1] = _merged([self.segments[-1], last])

    def _number(self, word: str) -> int:
        number = self.number_of.get(word)
        if number is None:
            number = self.number_of[word] = self._num_terms
            self._num_terms += 1
        return number

    def search(
        self, words: Sequence[str], visible: np.ndarray, allowed: np.ndarray | None = None, top_k: int = 5
    ) -> list[tuple[int, float, float]]:
        """(row, score, coverage) of the best rows, best first, older rows first among equals; none scores 0.

        visible: [num_rows] bool, the rows whose statistics count; allowed: those of them that may be found (default:
        all). Coverage is the share, by idf, of the question's different words that the row holds.

        Frequent words come last, and then only for rows that could still be among the best (MaxScore: Turtle and Flood
        1995), which changes nothing in the result: half of a question's postings are those of 的, 是, 年."""
        num_visible, penalty = self._statistics(visible)
        if not num_visible or not words:
            return []
        terms = [self._term(word, words.count(word), visible, num_visible) for word in dict.fromkeys(words)]
        scores = np.zeros(len(visible), np.float32)
        candidates = None
        rest = sum(term.most for term in terms)
        for term in sorted(terms, key=lambda term: len(term.rows)):
            if candidates is None and len(term.rows) > FREQUENT * num_visible:
                candidates = _still_possible(scores, allowed, rest, top_k)
            term.add_to(scores, penalty, candidates)
            rest -= term.most
        if allowed is not None:
            scores *= allowed
        found = best(scores, top_k) if candidates is None else candidates[best(scores[candidates], top_k)]
        found = found[scores[found] > 0]
        coverage = sum(term.idf * term.holds(found) for term in terms) / sum(term.idf for term in terms)
        return [(int(row), float(scores[row]), float(share)) for row, share in zip(found, coverage, strict=True)]

    def _statistics(self, visible: np.ndarray) -> tuple[int, np.ndarray]:
        """(how many rows are visible, [num_rows] float32: what is added to a count below the line). The last are kept:
        most questions are of now."""
        if self._kept is None or self._kept[0] is not visible or self._kept[1] is not self.lengths:
            num_visible = int(np.count_nonzero(visible))
            mean = max(float(self.lengths.sum(where=visible)) / max(num_visible, 1), 1.0)
            penalty = np.float32(K1 * B / mean) * self.lengths.astype(np.float32) + np.float32(K1 * (1 - B))
            self._kept = (visible, self.lengths, num_visible, penalty)
        return self._kept[2:]

    def _term(self, word: str, weight: int, visible: np.ndarray, num_visible: int) -> "_Term":
        number = self.number_of.get(word, -1)
        parts = [found for segment in self.segments if (found := segment.postings(number))]
        rows, counts = np.zeros(0, np.int32), np.zeros(0, np.uint8)
        if parts:
            rows, counts = (
                column[0] if len(parts) == 1 else np.concatenate(column) for column in zip(*parts, strict=True)
            )
        if num_visible < len(visible):
            is_seen = visible[rows]
            rows, counts = rows[is_seen], counts[is_seen]
        return _Term(rows, counts, float(np.log1p((num_visible - len(rows) + 0.5) / (len(rows) + 0.5))), weight)

    def remove(self, gone: Sequence[int]) -> None:
        """Take rows out; their numbers stay, empty. Words that only they held are forgotten."""
        if not len(gone):
            return
        is_gone = np.zeros(self.num_rows, bool)
        is_gone[np.asarray(gone)] = True
        self.lengths = np.where(is_gone, 0, self.lengths)
        for place, segment in enumerate(self.segments):
            kept = ~is_gone[segment.rows]
            if not kept.all():
                terms = segment.term_of_each()[kept]
                self.segments[place] = _segment(segment.num_rows, terms, segment.rows[kept], segment.counts[kept])
        held = np.zeros(self._num_terms, bool)
        for segment in self.segments:
            held[segment.terms] = True
        self.number_of = {word: number for word, number in self.number_of.items() if held[number]}

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, in one segment, numbers of words closed up."""
        whole = _merged(self.segments) if self.segments else _segment(0, *[np.zeros(0, np.int32)] * 3)
        order = sorted(self.number_of, key=self.number_of.__getitem__)
        return {
            "words": np.frombuffer("\n".join(order).encode(), np.uint8),
            "terms": np.searchsorted([self.number_of[word] for word in order], whole.terms).astype(np.int32),
            "starts": whole.starts,
            "rows": whole.rows,
            "counts": whole.counts,
            "lengths": self.lengths,
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> "Postings":
        made = cls()
        words = arrays["words"].tobytes().decode()
        made.number_of = {word: number for number, word in enumerate(words.split("\n"))} if words else {}
        made._num_terms = len(made.number_of)
        made.lengths = arrays["lengths"]
        columns = (arrays[name] for name in ("terms", "starts", "rows", "counts"))
        made.segments = [Segment(len(made.lengths), *columns)] if len(made.lengths) else []
        return made


@dataclass
class _Term:
    """A word of a question: the visible rows that hold it, rising."""

    rows: np.ndarray
    counts: np.ndarray
    idf: float
    weight: int  # how often it stands in the question

    @property
    def most(self) -> float:
        """What it can add to a row's score at most."""
        return self.weight * self.idf * (K1 + 1) if len(self.rows) else 0.0

    def add_to(self, scores: np.ndarray, penalty: np.ndarray, candidates: np.ndarray | None) -> None:
        rows, counts = self.rows, self.counts
        if candidates is not None:
            places = self._places(candidates)
            rows, counts = rows[places], counts[places]
        counts = counts.astype(np.float32)
        scores[rows] += np.float32(self.most) * counts / (counts + penalty[rows])

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """[rows] bool."""
        if not len(self.rows):
            return np.zeros(len(rows), bool)
        return self.rows[np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)] == rows

    def _places(self, wanted: np.ndarray) -> np.ndarray:
        """Of those `wanted` rows that hold the word."""
        places = np.searchsorted(self.rows, wanted)
        places = places[places < len(self.rows)]
        return places[self.rows[places] == wanted[: len(places)]]


def _still_possible(scores: np.ndarray, allowed: np.ndarray | None, rest: float, top_k: int) -> np.ndarray | None:
    """The rows that can be among the best when at most `rest` is added to any of them; None when that is most rows."""
    if allowed is not None:
        scores = np.where(allowed, scores, 0)
    if top_k >= len(scores):
        return None
    least = scores[best(scores, top_k)[-1]] - rest
    return np.flatnonzero(scores >= least) if least > 0 else None


def best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Places of the highest scores, highest first, earlier ones first among equals.

    Every 16th score tells about where the best begin, in a tenth of the time of a partition of all."""
    places = np.arange(len(scores))
    if top_k < len(scores):
        rank = 8 + 3 * top_k // SAMPLED
        sample = scores[::SAMPLED]
        if rank < len(sample):
            places = np.flatnonzero(scores >= np.partition(sample, -rank)[-rank])
        if len(places) < top_k or len(places) > 4096:
            places = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    return places[np.argsort(-scores[places], kind="stable")[:top_k]]


def _segment(num_rows: int, terms: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> Segment:
    """Of postings that are ordered by word, then row."""
    is_first = np.ones(len(terms), bool)
    is_first[1:] = terms[1:] != terms[:-1]
    starts = np.append(np.flatnonzero(is_first), len(terms))
    return Segment(num_rows, terms[is_first], starts, rows, counts)


def _merged(segments: Sequence[Segment]) -> Segment:
    """One segment of several that follow each other: each one's postings of a word go behind those before."""
    terms = np.unique(np.concatenate([segment.terms for segment in segments]))
    places = [np.searchsorted(terms, segment.terms) for segment in segments]
    sizes = np.zeros(len(terms), np.int64)
    for segment, at in zip(segments, places, strict=True):
        sizes[at] += np.diff(segment.starts)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    free = starts[:-1].copy()
    rows, counts = np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.uint8)
    for segment, at in zip(segments, places, strict=True):
        lengths = np.diff(segment.starts)
        target = np.repeat(free[at] - segment.starts[:-1], lengths)
        target += np.arange(len(target))
        rows[target], counts[target] = segment.rows, segment.counts
        free[at] += lengths
    return Segment(sum(segment.num_rows for segment in segments), terms, starts, rows, counts)
