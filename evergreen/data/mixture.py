"""What a run trains on: several sources, sampled, mixed and filled, as one list or one stream of records.

Promises
- deterministic: the same sources, settings and seed give the same records in the same order on every machine;
- `#N` below a source's length takes the first N of a permutation seeded by `seed` alone, kept in the file's order, so
  `#100` is a part of `#200` and no source changes another's choice; above it, the source is repeated whole and the rest
  sampled so. `max_samples` caps every source in the same way;
- probabilities choose the source of every next record (each source keeps its order) until the first is used up, or,
  with `all_exhausted`, until each has been used up once, the short ones starting again;
- in memory, `hash` is that of the records in order, whatever the files are called or whichever type they have; a
  streamed mixture's is that of the files' contents and the settings;
- streamed, memory holds `SHUFFLE_BUFFER` records and 8 bytes a row for a source with #N, never the set; sources
  without probabilities are woven together in proportion to their size, and every epoch has an order of its own.
"""

import dataclasses
import hashlib
import itertools
import random
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evergreen.data.formats import Skipped
from evergreen.data.sources import Located, Source, parse_source, resolve, split_sources
from evergreen.home import canonical_json, digest_of
from evergreen.records import BadInput, Record

__all__ = ["Mixture", "Source", "StreamingMixture", "fill_identity", "load_mixture", "parse_source", "resolve"]

SHUFFLE_BUFFER = 1000
PLACEHOLDER = re.compile(r"\{\{(name|author|NAME|AUTHOR)\}\}")


class Mixture(Sequence):
    """The records of a run in memory. `sources`: [{name, path, rows, used, format, sha256}] as they were given."""

    streaming = False

    def __init__(self, records: list[Record], sources: list[dict], skipped: Skipped):
        self.records, self.sources, self.skipped = records, sources, skipped

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the records in order: any character, and any change of order, makes it another."""
        total, seen = hashlib.sha256(), {}
        for record in self.records:
            if id(record) not in seen:  # a repeated record is digested once
                seen[id(record)] = record_digest(record)
            total.update(seen[id(record)])
        return total.hexdigest()


class StreamingMixture:
    """The records of a run, read as they are asked for; its length is not known, so a trainer needs max_steps.

    `set_epoch(n)` chooses the order of the next iteration. In `sources`, rows and used are None where nothing had to be
    counted. `skipped` is of the latest iteration."""

    streaming = True

    def __init__(
        self,
        streams: list[Callable[[], Iterator[Record]]],
        weights: list[float],
        stopping: str | None,
        seed: int,
        sources: list[dict],
        skipped: Skipped,
        hash: str,
    ):
        self.streams, self.weights, self.stopping, self.seed = streams, weights, stopping, seed
        self.sources, self.skipped, self.hash, self.epoch = sources, skipped, hash, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Record]:
        self.skipped.clear()
        rng = random.Random(self.seed * 1_000_003 + self.epoch)
        if self.stopping:
            chosen = _interleave(self.streams, self.weights, self.stopping, random.Random(self.seed))
        else:
            chosen = _weave(self.streams, self.weights, rng)
        return _shuffled(chosen, rng)


def load_mixture(
    sources: Sequence[str],
    *,
    dataset_dir: str = "",
    seed: int = 42,
    probabilities: Sequence[float] = (),
    stopping_strategy: str = "first_exhausted",
    max_samples: int | None = None,
    streaming: bool = False,
    on_bad_row: str = "error",
    model_name: str = "",
    model_author: str = "",
    split: str = "train",
) -> Mixture | StreamingMixture:
    """Read, sample and mix `sources` (NAME[#N], each; see data/sources.py for what a name can be).

    `split` is train or validation: which files of a folder are meant. `on_bad_row="skip"` leaves bad rows out and
    counts them in `.skipped`. Raises BadInput for anything that cannot be used, an empty source included."""
    given = split_sources([sources] if isinstance(sources, str) else sources)
    _check_probabilities(probabilities, len(given), stopping_strategy)
    located = [resolve(source, dataset_dir, split, streaming) for source in given]
    read = _Reading(on_bad_row, model_name, model_author, seed, max_samples)
    if streaming:
        return _streaming(located, read, probabilities, stopping_strategy)
    return _in_memory(located, read, probabilities, stopping_strategy)


@dataclasses.dataclass
class _Reading:
    """How every source of one mixture is read."""

    on_bad_row: str
    model_name: str
    model_author: str
    seed: int
    max_samples: int | None
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    def records(self, source: Located, skipped: Skipped) -> Iterator[Record]:
        """Every record with its placeholders filled; bad rows go to `skipped`."""
        for record in source.records(self.on_bad_row, skipped):
            yield fill_identity(record, self.model_name, self.model_author)

    def wanted(self, source: Located, num_rows: int) -> int:
        wanted = num_rows if source.num_samples is None else source.num_samples
        return min(wanted, self.max_samples) if self.max_samples else wanted


def _check_probabilities(probabilities: Sequence[float], num_sources: int, stopping_strategy: str) -> None:
    if stopping_strategy not in ("first_exhausted", "all_exhausted"):
        raise BadInput(f"--stopping_strategy wants first_exhausted or all_exhausted, got {stopping_strategy!r}")
    if not probabilities:
        return
    if len(probabilities) != num_sources:
        raise BadInput(f"--interleave_prob wants one number for each source ({num_sources}), got {len(probabilities)}")
    if min(probabilities) < 0 or not abs(sum(probabilities) - 1) < 1e-3:
        raise BadInput(
            f"--interleave_prob wants numbers from 0 that add up to 1, got {' '.join(map(str, probabilities))}"
        )
    if min(probabilities) == 0 and stopping_strategy == "all_exhausted":
        raise BadInput("--interleave_prob 0 never uses that source up: take it out or use first_exhausted")


# In memory


def _in_memory(located: list[Located], read: _Reading, probabilities: Sequence[float], stopping: str) -> Mixture:
    parts, summary = [], []
    for source in located:
        records = list(read.records(source, read.skipped))
        if not records:
            raise _empty(source, read.skipped)
        part = [records[index] for index in sample_indices(len(records), read.wanted(source, len(records)), read.seed)]
        digest = source.sha256 or hashlib.sha256(b"".join(map(record_digest, records))).hexdigest()
        summary.append(_summary(source, len(records), len(part), digest))
        parts.append(part)
    if probabilities:
        streams = [
            lambda part=part, number=number: ((number, record) for record in part) for number, part in enumerate(parts)
        ]
        chosen = list(_interleave(streams, probabilities, stopping, random.Random(read.seed)))
        for number, entry in enumerate(summary):
            entry["used"] = sum(source == number for source, _ in chosen)
        return Mixture([record for _, record in chosen], summary, read.skipped)
    return Mixture(list(itertools.chain.from_iterable(parts)), summary, read.skipped)


def sample_indices(num_rows: int, num_wanted: int, seed: int) -> Sequence[int]:
    """Which rows `#num_wanted` takes: whole repeats, then the first of a seeded permutation in the rows' own order."""
    repeats, rest = divmod(num_wanted, num_rows)
    if not rest:
        return array("q", range(num_rows)) * repeats
    order = array("q", range(num_rows))
    random.Random(seed).shuffle(order)
    return array("q", range(num_rows)) * repeats + array("q", sorted(order[:rest]))


def _summary(source: Located, rows: int | None, used: int | None, digest: str) -> dict:
    path = str(Path(source.path).resolve()) if source.files else source.path  # still true when run from elsewhere
    return {"name": source.name, "path": path, "rows": rows, "used": used, "format": source.format(), "sha256": digest}


def _empty(source: Located, skipped: Skipped) -> BadInput:
    why = f": {skipped.count} skipped, the first being {skipped.examples[0]}" if skipped.count else ""
    return BadInput(f"{source.path} holds no row to train on{why}")


# Streamed


def _streaming(
    located: list[Located], read: _Reading, probabilities: Sequence[float], stopping: str
) -> StreamingMixture:
    streams, weights, summary = [], [], []
    for source in located:
        rows = used = None
        unusable = Skipped()
        if next(read.records(source, unusable), None) is None:
            raise _empty(source, unusable)
        if source.num_samples is not None or read.max_samples:
            rows = sum(1 for _ in read.records(source, Skipped()))
            used = read.wanted(source, rows)
        streams.append(_stream(source, read, rows, used))
        weights.append(source.num_bytes * (used / rows if rows else 1))
        summary.append(_summary(source, rows, used, source.sha256))
    usual = sum(weights) / max(1, sum(map(bool, weights))) or 1  # for hub sets, whose size is not known
    weights = list(probabilities) or [weight or usual for weight in weights]
    settings = [[source["sha256"] or source["name"], source["used"]] for source in summary]
    identity = digest_of(
        [
            settings,
            list(probabilities),
            stopping if probabilities else "",
            read.seed,
            read.model_name,
            read.model_author,
        ]
    )
    return StreamingMixture(
        streams, weights, stopping if probabilities else None, read.seed, summary, read.skipped, identity
    )


def _stream(source: Located, read: _Reading, rows: int | None, used: int | None) -> Callable[[], Iterator[Record]]:
    """A source's chosen records, in the same order as in memory."""

    def whole() -> Iterator[Record]:
        return read.records(source, read.skipped)

    if rows is None or rows == used:
        return whole
    repeats, rest = divmod(used, rows)

    def sampled() -> Iterator[Record]:
        for _ in range(repeats):
            yield from whole()
        chosen = iter(sample_indices(rows, rest, read.seed) if rest else ())
        following = next(chosen, None)
        for index, record in enumerate(whole() if rest else ()):
            if index == following:
                yield record
                following = next(chosen, None)
                if following is None:
                    return

    return sampled


def _interleave(
    streams: Sequence[Callable[[], Iterator]], probabilities: Sequence[float], stopping: str, rng: random.Random
) -> Iterator:
    """Draw the source of every next item; ends with the last item of the first source (or of the last) to run out."""
    iterators = [stream() for stream in streams]
    waiting = [next(iterator) for iterator in iterators]
    exhausted = [False] * len(streams)
    while True:
        source = rng.choices(range(len(streams)), probabilities)[0]
        yield waiting[source]
        try:
            waiting[source] = next(iterators[source])
        except StopIteration:
            exhausted[source] = True
            if stopping == "first_exhausted" or all(exhausted):
                return
            iterators[source] = streams[source]()
            waiting[source] = next(iterators[source])


def _weave(streams: Sequence[Callable[[], Iterator]], weights: Sequence[float], rng: random.Random) -> Iterator:
    """Every item of every stream once, drawn by weight so that all run out at about the same time."""
    running = [(stream(), weight) for stream, weight in zip(streams, weights, strict=True)]
    while running:
        index = rng.choices(range(len(running)), [weight for _, weight in running])[0] if len(running) > 1 else 0
        try:
            yield next(running[index][0])
        except StopIteration:
            running.pop(index)


def _shuffled(items: Iterable, rng: random.Random) -> Iterator:
    """A buffer's worth of disorder: each item leaves at random among the `SHUFFLE_BUFFER` that wait."""
    buffer: list = []
    for item in items:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(item)
            continue
        index = rng.randrange(SHUFFLE_BUFFER)
        item, buffer[index] = buffer[index], item
        yield item
    rng.shuffle(buffer)
    yield from buffer


# Records


def record_digest(record: Record) -> bytes:
    """SHA-256 of what a record says, without where it came from."""
    return hashlib.sha256(canonical_json(_plain(record)).encode()).digest()


def _plain(value: Any) -> Any:
    """Frozen nouns as JSON values; `dataclasses.asdict` copies every string and takes four times as long."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value):
        fields = {name: _plain(part) for name, part in vars(value).items() if name != "origin"}
        return {"kind": type(value).__name__, **fields}
    return value


def fill_identity(record: Record, name: str, author: str) -> Record:
    """{{name}}, {{NAME}}, {{author}} and {{AUTHOR}} in every text filled; BadInput for one that has no value."""

    def fill(match: re.Match) -> str:
        flag, value = ("--model_name", name) if match[1].lower() == "name" else ("--model_author", author)
        if not value:
            raise BadInput(f"{record.origin} holds {match[0]}: say what to put there with {flag}")
        return value

    return _with_texts(record, lambda text: PLACEHOLDER.sub(fill, text) if "{{" in text else text)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with every text changed; what does not change is not copied."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [_with_texts(part, change) for part in value]
        return type(value)(parts) if any(new is not old for new, old in zip(parts, value, strict=True)) else value
    if isinstance(value, dict):
        parts = {key: _with_texts(part, change) for key, part in value.items()}
        return parts if any(parts[key] is not value[key] for key in parts) else value
    if dataclasses.is_dataclass(value):
        changed = {
            name: new
            for name, part in vars(value).items()
            if name != "origin" and (new := _with_texts(part, change)) is not part
        }
        return dataclasses.replace(value, **changed) if changed else value
    return value
