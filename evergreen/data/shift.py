"""How far an increment lies from what came before it: in its words, its lengths, its kinds of answer and its meaning.

Every figure is a distance from 0 (the same) to 1 (nothing in common), and finite samples are never at 0. So each is
measured twice on sets of the same size: between the increment and a random part of the earlier data, and between two
random parts of the earlier data. `shift` is how much of the way from that usual distance to 1 the increment has gone:
0 is like more of the earlier data, 1 is like nothing in it.

| figure | distance |
|---|---|
| vocabulary | Jensen-Shannon divergence of the words' frequencies, in bits |
| new words | share of the running words that the earlier part has nowhere |
| prompt and answer length | Kolmogorov-Smirnov: the largest gap between the two distributions of words |
| kind of answer | total variation between the shares of letters, numbers, JSON, short answers, prose, ... |
| meaning | energy coefficient (Szekely and Rizzo 2013) of the model's own embeddings, each dimension scaled |

With the means over a small model's states, halves of one task lie at 0.00 in meaning, one topic against the rest of a
task at 0.02, and tasks in other languages and forms at 0.35 to 0.56; in vocabulary at 0.00, 0.2 and 0.83 to 0.99.
Does not say whether the increment will be learnt or will harm: it says what to expect and to look at.
"""

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evergreen.data.mixture import sample_indices
from evergreen.data.wording import prompt_and_answer, said, words
from evergreen.records import BadInput, Preference, Record, Text

if TYPE_CHECKING:
    import numpy as np

    Embed = Callable[[list[str]], np.ndarray]

MAX_ROWS, MAX_EMBEDDED, EMBEDDED_CHARACTERS = 1000, 128, 2000
NUM_SPLITS = 10
SEED = 42
FEW_ROWS = 30  # below it chance alone moves a figure by some 0.1
FAR, NEAR = 0.3, 0.03
LETTER = re.compile(r"\(?[A-Za-z]\)?[.:。]?")
NUMBER = re.compile(r"[-+−]?[$€£¥]? ?[\d,]*\.?\d+ ?%?[.。]?")
SHORT_WORDS, LONG_WORDS = 8, 100
LABELS = {
    "vocabulary": "vocabulary",
    "new_words": "words never seen before",
    "prompt_length": "words in a prompt",
    "answer_length": "words in an answer",
    "answer_kind": "kind of answer",
    "embedding": "meaning",
}


@dataclass(frozen=True)
class Figure:
    """A distance between the increment and earlier data, and the usual one between two parts of the earlier data."""

    distance: float
    usual: float

    @property
    def shift(self) -> float:
        """0: as the earlier data differs from itself; 1: nothing in common."""
        return max(0.0, min(1.0, (self.distance - self.usual) / (1 - self.usual))) if self.usual < 1 else 0.0

    def document(self) -> dict[str, float]:
        values = {"shift": self.shift, "distance": self.distance, "usual": self.usual}
        return {name: round(value, 4) + 0.0 for name, value in values.items()}


@dataclass(frozen=True)
class Shift:
    """An increment against earlier data. Lengths are medians in words (old, new); `kinds` are shares of the answers by
    their kind (old, new). `embedding` is None when no model was asked."""

    rows: tuple[int, int]
    vocabulary: Figure
    new_words: Figure
    prompt_length: Figure
    answer_length: Figure
    answer_kind: Figure
    embedding: Figure | None
    prompt_words: tuple[float, float]
    answer_words: tuple[float, float]
    kinds: dict[str, tuple[float, float]]
    advice: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, Figure]:
        named = {
            "vocabulary": self.vocabulary,
            "new_words": self.new_words,
            "prompt_length": self.prompt_length,
            "answer_length": self.answer_length,
            "answer_kind": self.answer_kind,
        }
        return named | ({"embedding": self.embedding} if self.embedding else {})

    @property
    def total(self) -> float:
        """One number for the whole, from 0 to 1: what the model sees where it was asked, else the words."""
        return (self.embedding or self.vocabulary).shift

    def document(self) -> dict[str, Any]:
        """JSON values: every figure with shift, distance and usual; the rest as it is."""
        plain = {key: value for key, value in asdict(self).items() if key not in (*self.figures, "embedding")}
        return {"total": round(self.total, 4)} | {name: one.document() for name, one in self.figures.items()} | plain


@dataclass(frozen=True)
class _Sample:
    """What is measured of one record."""

    text: str
    words: list[str]
    prompt_words: int
    answer_words: int
    kind: str


def measure(new: Sequence[Record], old: Sequence[Record], embed: "Embed | None" = None) -> Shift:
    """The shift of `new` against `old`, deterministic, from at most 1,000 rows of each (128 for the embeddings).

    `embed(texts)` gives an array [len(texts), d]. Raises BadInput when there is nothing to compare."""
    import numpy as np

    if not len(new) or len(old) < 2:
        raise BadInput(f"a shift wants rows and at least two earlier ones, got {len(new)} and {len(old)}")
    new_samples, old_samples = _sampled(new, MAX_ROWS), _sampled(old, 2 * MAX_ROWS)
    known = {word for one in (*new_samples, *old_samples) for word in one.words}
    number = {word: place for place, word in enumerate(known)}

    def figure(of: Callable[[_Sample], Any], distance: Callable[[Any, Any], float]) -> Figure:
        return _figure([of(one) for one in new_samples], [of(one) for one in old_samples], distance)

    def numbered(one: _Sample) -> "np.ndarray":
        return np.array([number[word] for word in one.words], dtype=int)

    shift = Shift(
        rows=(len(old), len(new)),
        vocabulary=figure(numbered, lambda left, right: _divergence(left, right, len(number))),
        new_words=figure(numbered, _share_of_new),
        prompt_length=figure(lambda one: one.prompt_words, _largest_gap),
        answer_length=figure(lambda one: one.answer_words, _largest_gap),
        answer_kind=figure(lambda one: one.kind, _variation),
        embedding=_embedded(new_samples, old_samples, embed) if embed else None,
        prompt_words=tuple(float(np.median([one.prompt_words for one in part])) for part in (old_samples, new_samples)),
        answer_words=tuple(float(np.median([one.answer_words for one in part])) for part in (old_samples, new_samples)),
        kinds=_kinds(old_samples, new_samples),
    )
    return Shift(**{**vars(shift), "advice": tuple(_advice(shift))})


def print_shift(shift: Shift, name: str = "", console: Any = None) -> None:
    """A table of the figures with what lies behind them, then the advice."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    table = Table(
        title=f"{escape(name) or 'new data'} against what came before ({shift.rows[1]:,} rows)",
        caption="shift: 0 is like more of the earlier data, 1 has nothing in common with it",
    )
    for heading in ("", "before", "now"):
        table.add_column(heading, no_wrap=True)
    table.add_column("shift", justify="right", no_wrap=True, min_width=5)
    table.add_column("", no_wrap=True)
    behind = {
        "prompt_length": [f"{length:.0f}" for length in shift.prompt_words],
        "answer_length": [f"{length:.0f}" for length in shift.answer_words],
        "answer_kind": [_most_common(shift.kinds, 0), _most_common(shift.kinds, 1)],
        "new_words": [f"{shift.new_words.usual:.0%}", f"{shift.new_words.distance:.0%}"],
    }
    for key, figure in shift.figures.items():
        bar = "#" * round(10 * figure.shift)
        table.add_row(LABELS[key], *behind.get(key, ["", ""]), f"{figure.shift:.2f}", bar)
    console.print(table)
    for line in shift.advice:
        console.print(escape(f"- {line}"), soft_wrap=True)


def _sampled(records: Sequence[Record], most: int) -> list[_Sample]:
    indices = sample_indices(len(records), min(len(records), most), SEED)
    return [_sample(records[index]) for index in indices]


def _sample(record: Record) -> _Sample:
    if isinstance(record, Text):
        told = words(record.text)
        return _Sample(record.text, told, 0, len(told), "plain text")
    asked, answers = prompt_and_answer(record)
    answers = answers[:1] if isinstance(record, Preference) else answers
    prompt = "\n".join(message.content for message in asked)
    answer = "\n".join(said(message) for message in answers)
    asked_words, answer_words = words(prompt), words(answer)
    kind = "tool call" if any(message.tool_calls for message in answers) else _kind(answer, len(answer_words))
    return _Sample(f"{prompt}\n{answer}", asked_words + answer_words, len(asked_words), len(answer_words), kind)


def _kind(answer: str, num_words: int) -> str:
    answer = unicodedata.normalize("NFKC", answer).strip()
    if answer.startswith("<think>"):
        return "thought first"
    if LETTER.fullmatch(answer):
        return "one letter"
    if answer.startswith(("{", "[")) and _is_json(answer):
        return "JSON"
    if NUMBER.fullmatch(answer):
        return "number"
    return "short" if num_words <= SHORT_WORDS else "sentences" if num_words <= LONG_WORDS else "long text"


def _is_json(answer: str) -> bool:
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True


def _kinds(old: Sequence[_Sample], new: Sequence[_Sample]) -> dict[str, tuple[float, float]]:
    counts = [Counter(one.kind for one in part) for part in (old, new)]
    names = sorted(set(counts[0]) | set(counts[1]))
    return {name: (counts[0][name] / len(old), counts[1][name] / len(new)) for name in names}


def _most_common(kinds: dict[str, tuple[float, float]], which: int) -> str:
    name = max(kinds, key=lambda kind: kinds[kind][which])
    return f"{kinds[name][which]:.0%} {name}"


# Distances


def _figure(new: Sequence[Any], old: Sequence[Any], distance: Callable[[Any, Any], float]) -> Figure:
    """Means over random parts of equal size: the increment's with one part of the earlier data, and two such parts."""
    size = min(len(new), len(old) // 2)
    chance = random.Random(SEED)
    between, usual = [], []
    for _ in range(NUM_SPLITS):
        part = chance.sample(new, size)
        both = chance.sample(old, 2 * size)
        between.append(distance(part, both[:size]))
        usual.append(distance(both[size:], both[:size]))
    return Figure(sum(between) / NUM_SPLITS, sum(usual) / NUM_SPLITS)


def _divergence(left: Sequence["np.ndarray"], right: Sequence["np.ndarray"], num_words: int) -> float:
    """Jensen-Shannon, base 2, of two sets of rows of word numbers."""
    import numpy as np

    p, q = (np.bincount(np.concatenate(rows), minlength=num_words) for rows in (left, right))
    if not p.sum() or not q.sum():
        return float(bool(p.sum()) != bool(q.sum()))
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float(sum(0.5 * np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])) for x in (p, q)))


def _share_of_new(left: Sequence["np.ndarray"], right: Sequence["np.ndarray"]) -> float:
    """Of the running words of `left`, those that stand nowhere in `right`."""
    import numpy as np

    running = np.concatenate(left)
    return float(np.mean(~np.isin(running, np.concatenate(right)))) if len(running) else 0.0


def _largest_gap(left: Sequence[int], right: Sequence[int]) -> float:
    """Kolmogorov-Smirnov: of the two cumulative distributions."""
    import numpy as np

    places = np.unique([*left, *right])
    below = [np.searchsorted(np.sort(part), places, side="right") / len(part) for part in (left, right)]
    return float(np.abs(below[0] - below[1]).max())


def _variation(left: Sequence[str], right: Sequence[str]) -> float:
    one, other = Counter(left), Counter(right)
    return sum(abs(one[name] / len(left) - other[name] / len(right)) for name in set(one) | set(other)) / 2


def _embedded(new: Sequence[_Sample], old: Sequence[_Sample], embed: "Embed") -> Figure:
    new, old = _spread(new, MAX_EMBEDDED), _spread(old, 2 * MAX_EMBEDDED)
    points = _scaled(embed([one.text[:EMBEDDED_CHARACTERS] for one in (*new, *old)]))
    apart = _distances(points)
    places = list(range(len(points)))
    return _figure(places[: len(new)], places[len(new) :], lambda left, right: _energy(apart, left, right))


def _spread(samples: Sequence[_Sample], most: int) -> list[_Sample]:
    return [samples[index] for index in sample_indices(len(samples), min(len(samples), most), SEED)]


def _scaled(points: "np.ndarray") -> "np.ndarray":
    """Every dimension with a deviation of 1: a few dimensions of a language model's states dwarf all others."""
    import numpy as np

    points = np.asarray(points, dtype=np.float64)
    deviation = points.std(axis=0)
    return (points - points.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def _distances(points: "np.ndarray") -> "np.ndarray":
    """Euclidean, [n, n]."""
    import numpy as np

    squares = (points**2).sum(axis=1)
    return np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0))


def _energy(apart: "np.ndarray", left: Sequence[int], right: Sequence[int]) -> float:
    """(2E|X-Y| - E|X-X'| - E|Y-Y'|) / 2E|X-Y|, unbiased: no point is compared with itself."""
    import numpy as np

    across = apart[np.ix_(left, right)].mean()
    if across == 0 or len(left) < 2:
        return 0.0
    inside = [apart[np.ix_(part, part)].sum() / (len(part) * (len(part) - 1)) for part in (left, right)]
    return float(1 - sum(inside) / (2 * across))


# Words for a person


def _advice(shift: Shift) -> Iterator[str]:
    old, new = shift.answer_words
    if min(shift.rows) < FEW_ROWS:
        yield f"{min(shift.rows)} rows are few for these figures: chance alone moves them by about 0.1"
    if shift.answer_kind.shift > FAR:
        yield (
            f"answers are {_most_common(shift.kinds, 1)}, before {_most_common(shift.kinds, 0)}: expect old questions "
            "to be answered in the new form; keep rows of every old form in the mixture (--replay_samples 0.05 or more)"
        )
    elif shift.answer_length.shift > FAR:
        yield (
            f"answers of {new:.0f} words, before {old:.0f} (medians): expect old answers to grow or shrink alike; "
            "--replay_samples 0.05 or more holds them, and the items scored need --max_new_tokens to fit"
        )
    if shift.prompt_length.shift > FAR and shift.prompt_words[1] > 2 * shift.prompt_words[0]:
        yield (
            f"prompts of {shift.prompt_words[1]:.0f} words, before {shift.prompt_words[0]:.0f} (medians): "
            "see that they fit into --max_length (evergreen data check counts their tokens)"
        )
    if shift.new_words.shift > FAR:
        yield (
            f"{shift.new_words.distance:.0%} of the words are not in the earlier data ({shift.new_words.usual:.0%} is "
            "usual): another language or field, which takes more --num_train_epochs or a higher --lora_rank"
        )
    if shift.total > FAR:
        yield (
            f"far from the earlier data ({shift.total:.2f}): what was learnt is at risk; more --replay_samples, then "
            "--regularization_alpha or a lower --learning_rate, protect it"
        )
    elif max(figure.shift for figure in shift.figures.values()) < NEAR and min(shift.rows) >= FEW_ROWS:
        yield (
            "nothing sets it apart from the earlier data: see that it is not the same data again (evergreen data "
            "check lists duplicates); if it is more of the same, little will change"
        )
