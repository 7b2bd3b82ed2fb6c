"""From the data flags to token ids: every row is trained, or refused with its place, or left out and counted."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from evergreen.home import digest_of
from evergreen.model.template import Encoded, encode
from evergreen.records import BadInput, Conversation, Preference, Record, Text
from evergreen.settings import SftSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evergreen.data.mixture import Mixture, StreamingMixture
    from evergreen.data.packing import Teacher


class LeftOut(BadInput):
    """A row that the settings say to leave out."""


@dataclass(frozen=True)
class TrainingRecord(Encoded):
    """An encoded record that knows where it came from and, when it is replayed, what the model once said to it."""

    origin: str = ""
    teacher: "Teacher | None" = field(default=None, compare=False, repr=False)


@dataclass
class Sources:
    """What the data flags name, read but not yet encoded. `extra` are records joined by the caller, such as replay."""

    mixture: "Mixture | StreamingMixture"
    validation: "Mixture | None"
    extra: Sequence[Record] = ()

    @property
    def hash(self) -> str:
        """Identity of everything that is trained."""
        if not self.extra:
            return self.mixture.hash
        from evergreen.data.mixture import record_digest

        return digest_of([self.mixture.hash, [record_digest(record).hex() for record in self.extra]])

    @property
    def is_stream(self) -> bool:
        return self.mixture.streaming


@dataclass
class TrainingData:
    """Encoded records, the run's own (`new`) and replayed ones (`old`). A stream is encoded as it is read, and `new` is
    then empty."""

    new: list[TrainingRecord]
    evaluation: list[TrainingRecord]
    encoder: "Encoder"
    old: list[TrainingRecord] = field(default_factory=list)

    @property
    def train(self) -> list[TrainingRecord]:
        return [*self.new, *self.old]

    @property
    def longest(self) -> int:
        """Tokens of the longest record; the limit when the source is a stream."""
        return max((len(record.ids) for record in self.train), default=self.encoder.max_tokens)

    @property
    def mean_tokens(self) -> float:
        return sum(len(record.ids) for record in self.train) / len(self.train) if self.train else self.longest


@dataclass
class Encoder:
    """Encodes by the run's settings; `skipped` keeps the reason of every row that was left out."""

    tokenizer: "PreTrainedTokenizerBase"
    settings: SftSettings
    max_positions: int
    skipped: list[str] = field(default_factory=list)

    @property
    def max_tokens(self) -> int:
        return min(self.settings.max_length, self.max_positions)

    def for_old_rows(self) -> "Encoder":
        """The same for replayed rows: one that an earlier run took under a larger limit is left out, not refused."""
        if self.settings.truncation_strategy != "error":
            return self
        return replace(self, settings=replace(self.settings, truncation_strategy="delete"))

    def __call__(self, records: Iterable[Record]) -> Iterator[TrainingRecord]:
        for record in records:
            try:
                yield self.encode(record)
            except BadInput as error:
                if self.settings.on_bad_row == "error" and not isinstance(error, LeftOut):
                    raise
                self.skipped.append(str(error))

    def encode(self, record: Record) -> TrainingRecord:
        """Ids and targets of one record. Raises BadInput when it is too long or has nothing to learn."""
        limit, strategy = self.max_tokens, self.settings.truncation_strategy
        at_least = _num_characters(record) // self.longest_token
        if at_least > 8 * limit:  # a whole book in one row would take minutes and gigabytes to be told too long
            raise self._too_long(f"{record.origin}: more than {at_least} tokens, at most {limit} were wanted")
        encoded = encode(_for_sft(record), self.tokenizer, self.settings.system, self.settings.loss_on)
        if len(encoded.ids) <= limit or (strategy == "right" and any(encoded.is_target[1:limit])):
            origin = str(record.origin) if record.origin.file else ""
            return TrainingRecord(encoded.ids[:limit], encoded.is_target[:limit], origin)
        raise self._too_long(f"{record.origin}: {len(encoded.ids)} tokens, at most {limit} were wanted")

    def _too_long(self, what: str) -> BadInput:
        if self.settings.truncation_strategy != "error":
            return LeftOut(what)
        if self.max_tokens < self.settings.max_length:
            return BadInput(f"{what}: the model has no more positions; choose --truncation_strategy delete or right")
        return BadInput(f"{what}: raise --max_length, or choose --truncation_strategy delete or right")

    @cached_property
    def longest_token(self) -> int:
        """Characters that one token can stand for at most."""
        return max(map(len, self.tokenizer.get_vocab()))


def read_sources(settings: SftSettings, replay: Callable[[int], Sequence[Record]] | None = None) -> Sources:
    """The records that the data flags name. Raises BadInput."""
    from evergreen.data.mixture import load_mixture

    common = {
        "dataset_dir": settings.dataset_dir,
        "seed": settings.seed,
        "max_samples": settings.max_samples,
        "on_bad_row": settings.on_bad_row,
        "model_name": settings.model_name,
        "model_author": settings.model_author,
    }
    mixture = load_mixture(
        settings.dataset,
        probabilities=settings.interleave_prob,
        streaming=settings.streaming,
        stopping_strategy=settings.stopping_strategy,
        **common,
    )
    validation = _load_validation(settings.val_dataset, common) if settings.val_dataset else None
    return Sources(mixture, validation, replay(len(mixture)) if replay else ())


def _load_validation(sources: list[str], common: dict) -> "Mixture":
    """A complaint about a source names the flag that it was given by."""
    from evergreen.data.mixture import load_mixture

    try:
        return load_mixture(sources, split="validation", **common)
    except BadInput as error:
        rest = str(error).removeprefix("--dataset ")
        raise BadInput(f"--val_dataset {rest}" if rest != str(error) else rest) from None


def encode_sources(sources: Sources, encoder: Encoder) -> TrainingData:
    """Encode everything that is held in memory, and hold out `split_dataset_ratio` of it when asked to."""
    evaluation = list(encoder(sources.validation)) if sources.validation is not None else []
    if sources.is_stream:
        return TrainingData([], evaluation, encoder)
    new = list(encoder(sources.mixture))
    if not new:
        raise BadInput(f"none of the {len(sources.mixture)} records can be trained: {encoder.skipped[0]}")
    old = encode_old(sources.extra, encoder)
    if not evaluation and encoder.settings.split_dataset_ratio:
        new, evaluation = _split(new, encoder.settings.split_dataset_ratio, encoder.settings.seed)
    return TrainingData(new, evaluation, encoder, old)


def encode_old(records: Sequence[Record], encoder: Encoder) -> list[TrainingRecord]:
    """Replayed rows. Raises BadInput when there are some and none can be trained."""
    lenient = encoder.for_old_rows()
    old = list(lenient(records))
    if records and not old:
        raise BadInput(
            f"none of the {len(records)} rows to be replayed can be trained: {encoder.skipped[-len(records)]}"
        )
    return old


def _split(records: list[TrainingRecord], share: float, seed: int) -> tuple[list[TrainingRecord], list[TrainingRecord]]:
    """At least one record is held out, and at least one stays."""
    count = min(max(1, int(len(records) * share)), len(records) - 1)
    held = set(random.Random(seed).sample(range(len(records)), count))
    return [record for i, record in enumerate(records) if i not in held], [records[i] for i in sorted(held)]


def _num_characters(record: Record) -> int:
    if isinstance(record, Text):
        return len(record.text)
    messages = record.messages if isinstance(record, Conversation) else (*record.prompt, record.chosen)
    return sum(len(message.content) + len(message.thought) for message in messages)


def _for_sft(record: Record) -> Record:
    """A preference trains its better answer; a disliked answer (KTO) is not trained by SFT."""
    if isinstance(record, Preference):
        messages = (*record.prompt, replace(record.chosen, trained=True))
        return Conversation(messages, record.tools, origin=record.origin)
    if isinstance(record, Conversation) and record.label is False:
        raise LeftOut(f"{record.origin}: a disliked answer (label false) is not trained by sft")
    return record
