"""The one training loop: transformers' Trainer with our batches and our loss.

What comes from transformers: the optimizer, schedules, checkpoints, resuming, TensorBoard, DDP and friends through
accelerate. What is ours: a batch is all records of one optimizer step, laid out in rows (data/packing.py); the loss is
the mean over all target tokens of that step, counted here, so that packing, accumulation, a short last step and several
processes all give the same number. Methods differ by `row_loss` and `penalty`, never by a loop of their own.
"""

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from evergreen.data.packing import EncodedRecord, Row, pack, pad
from evergreen.records import Failure
from evergreen.train import loss
from evergreen.train.checkpoints import newest_checkpoint

MAX_PLACES = 3  # records named when a loss is not a number


class StepSampler:
    """Record indices, one list per optimizer step, over all processes; shuffled anew, and repeatably, every epoch."""

    def __init__(self, num_records: int, records_per_step: int, seed: int):
        self.num_records, self.records_per_step, self.seed, self.epoch = num_records, records_per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_records / self.records_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(
            self.num_records, generator=torch.Generator().manual_seed(self.seed + self.epoch)
        ).tolist()
        for start in range(0, self.num_records, self.records_per_step):
            yield order[start : start + self.records_per_step]


class StepLoader(DataLoader):
    """A DataLoader that passes the epoch on to its sampler."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, StepSampler):
            self.batch_sampler.set_epoch(epoch)


class Endless(IterableDataset):
    """A streamed source, begun again in a new order whenever it ends; `max_steps` says when to stop."""

    def __init__(self, mixture: Any, encoder: Callable[[Iterable], Iterator[EncodedRecord]]):
        self.mixture, self.encoder = mixture, encoder

    def __iter__(self) -> Iterator[EncodedRecord]:
        for epoch in itertools.count():
            self.mixture.set_epoch(epoch)
            num_read = 0
            for record in self.encoder(self.mixture):
                num_read += 1
                yield record
            if not num_read:
                return


class Totals(TrainerCallback, ExportableState):
    """What a run has done from its first step on. Checkpoints keep it, so that a resumed run's figures are the whole
    run's."""

    def __init__(self) -> None:
        self.num_tokens = self.num_targets = 0  # of the records that this process trained
        self.loss_sum = 0.0  # over optimizer steps, of the mean loss per target
        self.loop_seconds = 0.0

    def state(self) -> dict:
        return {"args": {}, "attributes": {name: value for name, value in vars(self).items() if name != "started"}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        before = state.stateful_callbacks.setdefault("Totals", self.state())  # a checkpoint's, when it is resumed
        vars(self).update(before["attributes"])
        self.started = time.monotonic() - self.loop_seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.loop_seconds = time.monotonic() - self.started


class EvergreenTrainer(Trainer):
    """`args.per_device_train_batch_size` is here the records of a whole optimizer step on one device.

    `row_loss(model, row)` is the summed loss of a row's targets, `penalty(model)` a term added once a step and
    `pull(learning_rate)` a change of the weights just before each update. `finish_checkpoint(folder)` adds files to a
    checkpoint before it becomes visible under its final name."""

    def __init__(
        self,
        *,
        batch_size: int,
        max_row_tokens: int,
        packing: bool,
        pad_id: int,
        row_loss: Callable[[torch.nn.Module, Row], torch.Tensor] = loss.row_loss,
        penalty: Callable[[torch.nn.Module], torch.Tensor] | None = None,
        pull: Callable[[float], None] | None = None,
        finish_checkpoint: Callable[[Path], None] = lambda folder: None,
        **rest: Any,
    ):
        super().__init__(**rest)
        self.batch_size, self.max_row_tokens, self.packing, self.pad_id = batch_size, max_row_tokens, packing, pad_id
        self.row_loss, self.penalty, self.pull, self.finish_checkpoint = row_loss, penalty, pull, finish_checkpoint
        self.totals = Totals()
        self.add_callback(self.totals)
        self._penalties: list[float] = []  # of the steps since the last log line
        self.has_stepped = False  # in this process: a finished run that is resumed has nothing left to do
        self._staging = False

    @property
    def mean_loss(self) -> float:
        """Over the whole run, of its steps' mean loss per target."""
        return self.totals.loss_sum / max(1, self.state.global_step)

    # -- batches

    def rows_of(self, records: Sequence[EncodedRecord]) -> list[Row]:
        if self.packing:
            return pack(records, self.max_row_tokens)
        return pad(records, self.batch_size, self.pad_id)

    def get_train_dataloader(self) -> DataLoader:
        per_step = self.args.per_device_train_batch_size * self.args.world_size
        if isinstance(self.train_dataset, IterableDataset):
            return StepLoader(self.train_dataset, batch_size=per_step, collate_fn=self._collate)
        sampler = StepSampler(len(self.train_dataset), per_step, self.args.seed)
        return StepLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self._collate)

    def _collate(self, records: list[EncodedRecord]) -> dict[str, Any]:
        """This process's share of a step. A process left without records computes one without targets, so that the
        collective operations of the others find it."""
        mine = records[self.args.process_index :: self.args.world_size]
        return {"rows": self.rows_of(mine or [_without_targets(records[0])])}

    # -- steps

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Target tokens of the optimizer step over all processes."""
        if not batch_samples:
            return None
        mine = torch.tensor(sum(row.num_targets for batch in batch_samples for row in batch["rows"]), device=device)
        return self.accelerator.reduce(mine, "sum")

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        model.train()
        rows = [row.to(self.args.device) for row in inputs["rows"]]
        scale = self.args.world_size / max(1, int(num_items_in_batch))
        parts = []
        for i, row in enumerate(rows):
            is_last = i == len(rows) - 1
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                part = self.row_loss(model, row) * scale
                held = self.penalty(model) if is_last and self.penalty is not None else part.new_zeros(())
                self.accelerator.backward(part + held)
            parts.append(part.detach())
        total = torch.stack(parts).sum()
        self._check_finite(total + held.detach(), parts, rows)
        self._penalties.append(float(held.detach()))
        self.has_stepped = True
        self.totals.loss_sum += float(total)
        self.totals.num_tokens += sum(row.num_tokens for row in rows)
        self.totals.num_targets += sum(row.num_targets for row in rows)
        return total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The penalty is told apart from the loss, which it would drown."""
        if self.penalty is not None and "loss" in logs and self._penalties:
            logs["penalty"] = sum(self._penalties) / len(self._penalties)
            self._penalties.clear()
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.pull is not None:
            optimizer.register_step_pre_hook(lambda optimizer, *_: self.pull(optimizer.param_groups[0]["lr"]))
        return optimizer

    def _check_finite(self, total: torch.Tensor, parts: list[torch.Tensor], rows: list[Row]) -> None:
        if torch.isfinite(total):
            return
        places = [place for part, row in zip(parts, rows, strict=True) if not torch.isfinite(part)
                  for place in row.origins]  # fmt: skip
        more = f" and {len(places) - MAX_PLACES} more" if len(places) > MAX_PLACES else ""
        where = f" on {', '.join(places[:MAX_PLACES])}{more}" if places else ""
        raise self._stopped(f"the loss became {float(total)} at step {self.state.global_step + 1}{where}")

    def _stopped(self, what: str) -> Failure:
        kept = newest_checkpoint(Path(self.args.output_dir))
        return Failure(
            f"{what}; nothing was saved from that step on (last good checkpoint: {kept or 'none'}); try a smaller "
            "--learning_rate or --torch_dtype float32"
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers' estimate wants input_ids; bench/train.py counts properly

    # -- evaluation

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all target tokens of the evaluation records."""
        records = list(eval_dataset if eval_dataset is not None else self.eval_dataset)
        share = records[self.args.process_index :: self.args.world_size] or [_without_targets(records[0])]
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for start in range(0, len(share), self.args.per_device_eval_batch_size):
                for row in self.rows_of(share[start : start + self.args.per_device_eval_batch_size]):
                    sums += torch.tensor(
                        [float(self.row_loss(model, row.to(self.args.device))), row.num_targets],
                        dtype=torch.float64,
                        device=self.args.device,
                    )
        model.train()
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(1, count)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, ".saving") if self._staging else folder

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write beside, then rename: a checkpoint that has its name is whole, whatever killed the process."""
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters() if weight.requires_grad):
            raise self._stopped(f"the weights are no longer finite after step {self.state.global_step}")
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        if self.args.should_save:
            final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            staged = Path(self.args.output_dir) / ".saving" / final.name
            self.finish_checkpoint(staged)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staged, final)
            shutil.rmtree(staged.parent)
            rotate_checkpoints(
                output_dir=self.args.output_dir, save_total_limit=self.args.save_total_limit, use_mtime=False
            )
        self.accelerator.wait_for_everyone()


def _without_targets(record: EncodedRecord) -> EncodedRecord:
    return type(record)(record.ids, (False,) * len(record.ids))
