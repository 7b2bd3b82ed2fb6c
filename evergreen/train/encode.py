"""Records to token ids for training, with every row that cannot be trained refused or counted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evergreen.model.template import Encoded, encode
from evergreen.records import BadInput, Conversation, Preference, Record
from evergreen.settings import SftSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Encoder:
    """Encodes by the run's settings; `skipped` keeps the reason of every row that was left out."""

    tokenizer: "PreTrainedTokenizerBase"
    settings: SftSettings
    max_positions: int
    skipped: list[str] = field(default_factory=list)

    def __call__(self, records: Iterable[Record]) -> Iterator[Encoded]:
        for record in records:
            try:
                yield self.encode(record)
            except BadInput as error:
                if self.settings.on_bad_row == "error" and not isinstance(error, LeftOut):
                    raise
                self.skipped.append(str(error))

    def encode(self, record: Record) -> Encoded:
        """Ids and targets of one record. Raises BadInput when it is too long or has nothing to learn."""
        encoded = encode(_for_sft(record), self.tokenizer, self.settings.system, self.settings.loss_on)
        limit = min(self.settings.max_length, self.max_positions)
        if len(encoded.ids) <= limit:
            return encoded
        strategy = self.settings.truncation_strategy
        if strategy == "right" and any(encoded.is_target[1:limit]):
            return Encoded(encoded.ids[:limit], encoded.is_target[:limit])
        what = f"{record.origin}: {len(encoded.ids)} tokens, at most {limit} were wanted"
        if strategy != "error":
            raise LeftOut(what)
        raise BadInput(
            f"{what}: raise --max_length, or choose --truncation_strategy delete or right"
            if limit == self.settings.max_length
            else f"{what}: the model has no more positions"
        )


class LeftOut(BadInput):
    """A row that the settings say to leave out."""


def _for_sft(record: Record) -> Record:
    """A preference trains its better answer; a disliked answer (KTO) cannot be trained by SFT."""
    if isinstance(record, Preference):
        return Conversation((*record.prompt, replace(record.chosen, trained=True)), record.tools, origin=record.origin)
    if isinstance(record, Conversation) and record.label is False:
        raise LeftOut(f"{record.origin}: a disliked answer (label false) is not trained by sft")
    return record
