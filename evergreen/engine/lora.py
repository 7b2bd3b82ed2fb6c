"""LoRA adapters over the linears of a loaded model: rows of one batch may each want another adapter, or none.

Promises: rows of slot 0 get exactly the base's output; every other row gets what PEFT computes for its adapter alone
(1e-5 in fp32), whatever else is in the batch; loading reads and converts in the caller's thread and a running step
never waits for it. Ranks, targets and scales may differ between adapters and between the linears of one; DoRA is exact.
Does not: adapt embeddings or the output head, run other PEFT kinds or modules_to_save: `load` refuses them.

    adapters = Adapters(model, max_adapters=8)
    slot = adapters.load(digest, [folder])
    adapters.use(batch)  # batch.segments: [(slot, start, end)], rows of a slot beside each other
    model(...)
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from evergreen.engine.adapter_folder import AdapterFolder
from evergreen.engine.quantize import weight_of
from evergreen.model.adapters import LAYER
from evergreen.records import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW_ROWS = 32  # a 16-bit product of fewer rows costs the CPU more than an fp32 one: 20 us against 4 at two rows

Segment = tuple[int, int, int]


class Batch(Protocol):
    """What `use` reads of a batch: (slot, start, end) of rows [start, end), slot 0 being the base."""

    segments: Sequence[Segment]


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one linear: y + x @ down @ up, or with DoRA y * gain + shift + x @ down @ up.

    `down` is A transposed, [in, rank]; `up` is B transposed times the scale (and the gain), [rank, out]."""

    down: torch.Tensor
    up: torch.Tensor
    gain: torch.Tensor | None = None  # [out], m / ||W + s B A||
    shift: torch.Tensor | None = None  # [out], what is left of the bias, which the gain does not multiply

    def scale(self, output: torch.Tensor) -> None:
        """What DoRA does to the base's output, [rows, out], in place."""
        if self.gain is not None:
            output.mul_(self.gain)
            if self.shift is not None:
                output.add_(self.shift)

    def add_to(self, output: torch.Tensor, input: torch.Tensor) -> None:
        """In place; both [rows, features]."""
        output.addmm_(torch.mm(input, self.down), self.up)

    def to(self, dtype: torch.dtype) -> "Update":
        return Update(*(None if one is None else one.to(dtype) for one in (self.down, self.up, self.gain, self.shift)))

    def is_finite(self) -> bool:
        return all(one is None or bool(one.isfinite().all()) for one in (self.down, self.up, self.gain, self.shift))


@dataclass(frozen=True)
class Stack:
    """One linear's matrices of all slots, so that one batched product serves many slots: [slots, rank, features].

    Slots that an adapter does not target, and ranks that it lacks, are zeros. One grows by being replaced: a step that
    runs meanwhile keeps the two that belong together."""

    downs: torch.Tensor
    ups: torch.Tensor

    def grown(self, num_slots: int, rank: int) -> "Stack":
        if num_slots <= self.downs.shape[0] and rank <= self.downs.shape[1]:
            return self
        return Stack(_grown(self.downs, num_slots, rank), _grown(self.ups, num_slots, rank))

    def write(self, slot: int, update: Update) -> None:
        self.clear(slot)
        rank = len(update.up)
        self.downs[slot - 1, :rank], self.ups[slot - 1, :rank] = update.down.T, update.up

    def clear(self, slot: int) -> None:
        self.downs[slot - 1 : slot], self.ups[slot - 1 : slot] = 0, 0

    def get(self, slot: int, update: Update) -> Update:
        """The same update, its matrices those of the stack."""
        rank = len(update.up)
        return Update(self.downs[slot - 1, :rank].T, self.ups[slot - 1, :rank], update.gain, update.shift)

    def add_to(self, output: torch.Tensor, input: torch.Tensor, run: "Run") -> None:
        """In place, the rows of a run; without what DoRA scales."""
        downs, ups = self.downs[run.slots], self.ups[run.slots]
        if run.rows is not None:
            input = input.index_select(0, run.rows)
        hidden = torch.bmm(input.view(len(downs), run.length, -1), downs.transpose(1, 2))
        if run.places is None:
            output.view(len(ups), run.length, -1).baddbmm_(hidden, ups)
        else:
            output.add_(torch.bmm(hidden, ups).flatten(0, 1).index_select(0, run.places))


def _grown(stack: torch.Tensor, num_slots: int, rank: int) -> torch.Tensor:
    grown = stack.new_zeros(max(num_slots, stack.shape[0]), max(rank, stack.shape[1]), stack.shape[2])
    grown[: stack.shape[0], : stack.shape[1]] = stack
    return grown


class LoraLinear(nn.Module):
    """A linear of any kind (quantised too) with the updates of the adapters that target it."""

    def __init__(self, base: nn.Module, step: "Step"):
        super().__init__()
        self.base = base
        self.step = step
        self.updates: dict[int, Update] = {}  # by slot; no running row has a slot that is being written
        self.wide: dict[int, Update] = {}  # the same in fp32, for few rows of a 16-bit model
        self.stack: Stack | None = None

    def put(self, slot: int, update: Update, wide: Update) -> None:
        empty = Stack(wide.up.new_zeros(0, 0, len(wide.down)), wide.up.new_zeros(0, 0, wide.up.shape[1]))
        self.stack = (self.stack or empty).grown(slot, len(wide.up))
        self.stack.write(slot, wide)
        self.wide = {slot: self.stack.get(slot, one) for slot, one in (self.wide | {slot: wide}).items()}
        self.updates = self.wide if update is wide else self.updates | {slot: update}

    def drop(self, slot: int) -> None:
        if slot in self.wide:
            self.wide = {other: one for other, one in self.wide.items() if other != slot}
            self.updates = {other: one for other, one in self.updates.items() if other != slot}
            self.stack.clear(slot)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.step.is_base_only or not self.updates:
            return y
        inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for slot, start, end in self.step.segments:
            if update := self.updates.get(slot):
                update.scale(outputs[start:end])
                update.add_to(outputs[start:end], inputs[start:end])
        for run in self.step.runs:
            self._add_run(outputs[run.start : run.end], inputs[run.start : run.end], run)
        return y

    def _add_run(self, outputs: torch.Tensor, inputs: torch.Tensor, run: "Run") -> None:
        wide, stack = self.wide, self.stack
        dtype = stack.ups.dtype
        output, input = outputs.to(dtype), inputs.to(dtype)
        there = [(wide[slot], start, end) for slot, start, end in run.segments if slot in wide]
        for update, start, end in there:
            update.scale(output[start:end])
        if (
            run.is_even
            and run.slots.stop <= len(stack.ups)
            and stack.ups.shape[1] * run.num_slots <= 2 * sum(len(update.up) for update, _, _ in there)
        ):
            stack.add_to(output, input, run)
        else:
            for update, start, end in there:
                update.add_to(output[start:end], input[start:end])
        if outputs.dtype != dtype:
            outputs.copy_(output)


@dataclass(frozen=True)
class Run:
    """Short segments beside each other, for one batched product of `length` rows per slot where they are even enough.

    `rows` says which row stands at each of the num_slots * length places, `places` the reverse; None: one to one."""

    start: int
    end: int
    segments: list[Segment]  # counted from `start`
    length: int = 0
    rows: torch.Tensor | None = None
    places: torch.Tensor | None = None

    @property
    def slots(self) -> slice:
        return slice(self.segments[0][0] - 1, self.segments[-1][0])

    @property
    def num_slots(self) -> int:
        return self.slots.stop - self.slots.start

    @property
    def is_even(self) -> bool:
        return self.length > 0


def _run(segments: list[Segment], device: torch.device) -> Run:
    first, end = segments[0][1], segments[-1][2]
    run = Run(first, end, [(slot, start - first, end - first) for slot, start, end in segments])
    length = max(end - start for _, start, end in segments)
    if len(segments) < 3 or run.num_slots * length > 2 * (end - first) or not _is_sorted(segments):
        return run
    if run.num_slots * length == end - first:
        return replace(run, length=length)
    rows, places = [0] * (run.num_slots * length), []
    for slot, start, stop in run.segments:
        for row in range(start, stop):
            place = (slot - 1 - run.slots.start) * length + row - start
            rows[place] = row
            places.append(place)
    return replace(
        run, length=length, rows=torch.tensor(rows, device=device), places=torch.tensor(places, device=device)
    )


def _is_sorted(segments: list[Segment]) -> bool:
    return all(one[0] < other[0] for one, other in pairwise(segments))


class Step:
    """The segments of the running forward pass that have an adapter; one object that all LoraLinears look at.

    Long ones go one by one. Short ones beside each other are a run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.set(())

    def set(self, segments: Sequence[Segment]) -> None:
        adapted = [segment for segment in segments if segment[0]]
        self.is_base_only = not adapted
        self.segments = [segment for segment in adapted if segment[2] - segment[1] >= FEW_ROWS]
        short = [segment for segment in adapted if segment[2] - segment[1] < FEW_ROWS]
        self.runs = [_run(segments, self.device) for segments in _neighbours(short)]


def _neighbours(segments: list[Segment]) -> Iterator[list[Segment]]:
    """Those that lie beside each other, together."""
    while segments:
        count = 1
        while count < len(segments) and segments[count][1] == segments[count - 1][2]:
            count += 1
        yield segments[:count]
        segments = segments[count:]


class Adapters:
    """The adapters that a model holds ready, by digest. Any thread may load and unload while another runs steps."""

    def __init__(self, model: "PreTrainedModel", max_adapters: int):
        self.model = model
        self.max_adapters = max_adapters
        weight = model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device
        self.wide_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        self.step = Step(self.device)
        self._linears = dict(_decoder_linears(model))
        self._slots: dict[str, int] = {}
        self._lock = threading.Lock()

    def use(self, batch: Batch) -> None:
        """The batch of the forward passes that follow. Not while one runs."""
        self.step.set(batch.segments)

    def slot_of(self, digest: str) -> int:
        """The slot of a loaded adapter; "" is the base, slot 0. Raises BadInput when it is not loaded."""
        if not digest:
            return 0
        if digest not in self._slots:
            raise BadInput(f"adapter {digest[:12]} is not loaded; loaded are: {self._loaded()}")
        return self._slots[digest]

    def load(self, digest: str, folders: Sequence[Path]) -> int:
        """Make a chain of PEFT folders, innermost first, ready to be used; returns its slot (the same when it is
        loaded already). Raises BadInput when it does not fit the model or no slot is free."""
        with self._lock:
            if digest in self._slots:
                return self._slots[digest]
            slot = self._free_slot()
            updates = self._read([Path(folder) for folder in folders])
            for name, (update, wide) in updates.items():
                self._lora_linear(name).put(slot, update, wide)
            self._slots[digest] = slot
            return slot

    def unload(self, digest: str) -> None:
        """Free its slot and memory. No running request may have it. Raises BadInput when it is not loaded."""
        with self._lock:
            slot = self.slot_of(digest)
            self._slots.pop(digest, None)
            for linear in self._linears.values():
                if isinstance(linear, LoraLinear):
                    linear.drop(slot)

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    def digests(self) -> tuple[str, ...]:
        return tuple(self._slots)

    def _loaded(self) -> str:
        return ", ".join(digest[:12] for digest in self._slots) or "none"

    def _free_slot(self) -> int:
        free = set(range(1, self.max_adapters + 1)) - set(self._slots.values())
        if not free:
            raise BadInput(
                f"no room for another adapter: {self.max_adapters} are loaded ({self._loaded()}); unload one"
            )
        return min(free)

    def _lora_linear(self, name: str) -> LoraLinear:
        """The linear of that name, which now takes updates: it stands in the model from the next call on."""
        linear = self._linears[name]
        if not isinstance(linear, LoraLinear):
            linear = self._linears[name] = LoraLinear(linear, self.step).eval()
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, linear)
        return linear

    def _read(self, folders: list[Path]) -> dict[str, tuple[Update, Update]]:
        """{linear: (update in the model's dtype, in fp32)}; one object where these are the same."""
        chain = [AdapterFolder(folder) for folder in folders]
        linears = {name: _base_of(linear) for name, linear in self._linears.items()}
        for one in chain:
            one.check(self.model.name_or_path, linears)
            if one.is_dora and len(chain) > 1:
                raise BadInput(f"{one.path} is a DoRA adapter, whose scale is of the whole sum: it cannot be one of a "
                               "chain of adapters; merge the ones below it into the base")  # fmt: skip
        updates = {}
        for name in dict.fromkeys(name for one in chain for name in one.parts):
            wide = self._update(name, [one for one in chain if name in one.parts])
            update = wide.to(self.dtype)
            if not update.is_finite():
                raise BadInput(f"{folders[-1]}: its weights for {name} are not finite numbers in {self.dtype}")
            updates[name] = update, update if self.wide_dtype == self.dtype else wide
        return updates

    @torch.no_grad()
    def _update(self, name: str, chain: list[AdapterFolder]) -> Update:
        """The chain's matrices for a linear, in fp32: their ranks one behind another."""
        a = torch.cat([one.a(name) for one in chain]).to(self.device)
        up = torch.cat([one.up(name) for one in chain]).to(self.device)
        if not chain[0].is_dora:
            return Update(a.T, up)
        base = _base_of(self._linears[name])
        norm = torch.linalg.norm(torch.addmm(weight_of(base), up.T, a), dim=1)
        gain = chain[0].magnitude(name).to(self.device) / norm
        shift = None if base.bias is None else base.bias.float() * (1 - gain)
        return Update(a.T, up * gain, gain, shift)


def _decoder_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of whatever multiplies by a matrix inside decoder layers, quantised or not."""
    for name, module in model.named_modules():
        if LAYER.search(f".{name}.") and hasattr(module, "in_features") and hasattr(module, "out_features"):
            yield name, module


def _base_of(linear: nn.Module) -> nn.Module:
    return linear.base if isinstance(linear, LoraLinear) else linear
