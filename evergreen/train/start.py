"""The model as it stands before the first step, for the parts of continual learning that measure it.

Promises: what is measured is the model without dropout, in the dtype that it will learn in; it is left as it was found,
in its mode and without gradients. Which records are shown depends on the seed alone.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evergreen.data.parts import Parts
from evergreen.train import loss
from evergreen.train.dataset import TrainingData, TrainingRecord

if TYPE_CHECKING:
    import torch

    from evergreen.data.packing import Row

MAX_PROBED = 64  # records of each kind on which the layers are chosen
MAX_MEASURED = 256  # replayed records that a penalty is measured on


class Start:
    """A trainer before its first step, with the records that it will see."""

    def __init__(self, trainer: Any, data: TrainingData, dtype: "torch.dtype", seed: int):
        self.trainer, self.model, self.data, self.dtype, self.seed = trainer, trainer.model, data, dtype, seed
        self.device = next(trainer.model.parameters()).device

    def choose_layers(self, parts: Parts) -> set[int]:
        new, old = (self._some(records, MAX_PROBED) for records in (self.data.new, self.data.old))
        with self._as_it_is():
            return parts.choose_layers(self.model, self._rows_of(new), self._rows_of(old), loss.row_loss)

    def stay_close(self, parts: Parts, num_repeats: int) -> None:
        """Give the trainer its penalty, pull and teacher. Replayed records come `num_repeats` times, one copy after the
        other; a penalty is measured on one of each."""
        with self._as_it_is():
            if parts.penalty:
                distinct = self.data.old[: max(1, len(self.data.old) // num_repeats)]
                single = [row for one in self._some(distinct, MAX_MEASURED) for row in self._rows_of([one])]
                self.trainer.penalty = parts.penalty(self.model, single, loss.row_loss)
            if parts.pull:
                self.trainer.pull = parts.pull(self.model)
            if parts.teach:
                self.data.old = parts.teach(self.data.old, self._top_tokens)
                self.trainer.train_dataset = self.data.train

    def _top_tokens(self, records: list[TrainingRecord], k: int) -> list[tuple["torch.Tensor", "torch.Tensor"]]:
        """The model's k likeliest tokens at the targets of every record, with their log-probabilities, on the CPU."""
        import torch

        order = sorted(range(len(records)), key=lambda i: records[i].ids)  # as packing does, so that rows keep it
        rows = self._rows_of([records[i] for i in order])
        ids, log_probs = zip(*(loss.top_tokens(self.model, row, k) for row in rows), strict=True)
        counts = [records[i].num_targets for i in order]
        split = [torch.cat(parts).cpu().split(counts) for parts in (ids, log_probs)]
        found = dict(zip(order, zip(*split, strict=True), strict=True))
        return [found[i] for i in range(len(records))]

    def _some(self, records: list[TrainingRecord], at_most: int) -> list[TrainingRecord]:
        return random.Random(self.seed).sample(records, min(at_most, len(records)))

    def _rows_of(self, records: list[TrainingRecord]) -> list["Row"]:
        return [row.to(self.device) for row in self.trainer.rows_of(records)]

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        import torch

        was_training, is_narrow = self.model.training, self.dtype is not torch.float32
        self.model.eval()
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=is_narrow):
                yield
        finally:
            self.model.train(was_training)
            self.model.zero_grad(set_to_none=True)
