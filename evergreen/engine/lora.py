"""LoRA adapters over the linears of a loaded model: rows of one batch may each want another adapter, or none.

Promises: rows of slot 0 get exactly the base's output; every other row gets what PEFT computes for its adapter alone
(1e-5 in fp32), whatever else is in the batch; loading reads and converts in the caller's thread, a running step never
waits for it, and while others compute it takes a quarter of a core. Ranks, targets and scales may differ between
adapters and between the linears of one; DoRA is exact.
Does not: adapt embeddings or the output head, run other PEFT kinds or modules_to_save: `load` refuses them.

    adapters = Adapters(model, max_adapters=8)
    slot = adapters.load(digest, [folder])
    adapters.use(batch)  # batch.segments: [(slot, start, end)], rows of a slot beside each other
    model(...)
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

REST = 3.0  # seconds that a load waits for each one of work while others compute

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

    def add_to(self, output: torch.Tensor, input: torch.Tensor) -> None:
        """In place; both [rows, features]."""
        if self.gain is not None:
            output.mul_(self.gain)
            if self.shift is not None:
                output.add_(self.shift)
        output.addmm_(torch.mm(input, self.down), self.up)

    def to(self, dtype: torch.dtype) -> "Update":
        return Update(*(None if one is None else one.to(dtype) for one in (self.down, self.up, self.gain, self.shift)))

    def is_finite(self) -> bool:
        return all(one is None or bool(one.isfinite().all()) for one in (self.down, self.up, self.gain, self.shift))


class LoraLinear(nn.Module):
    """A linear of any kind (quantised too) with the updates of the adapters that target it."""

    def __init__(self, base: nn.Module, step: "Step"):
        super().__init__()
        self.base = base
        self.step = step
        self.updates: dict[int, Update] = {}  # by slot; no running row has a slot that is being written
        self.wide: dict[int, Update] = {}  # the same in fp32, for few rows of a 16-bit model

    def put(self, slot: int, update: Update, wide: Update) -> None:
        self.updates[slot], self.wide[slot] = update, wide

    def drop(self, slot: int) -> None:
        self.updates.pop(slot, None)
        self.wide.pop(slot, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.step.is_base_only or not self.updates:
            return y
        inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        _add(self.updates, self.step.segments, outputs, inputs)
        for start, end, segments in self.step.short_runs:
            output = outputs[start:end].float()
            _add(self.wide, segments, output, inputs[start:end].float())
            outputs[start:end] = output
        return y


def _add(updates: dict[int, Update], segments: list[Segment], outputs: torch.Tensor, inputs: torch.Tensor) -> None:
    """A pair of small products per segment.

    Measured beside it, eight adapters of rank 8: one product over all ranks with the others' columns masked costs
    twice as much (it multiplies eight times as often); batched products of stacked matrices cost the same when the
    segments are equally long and more when they are padded."""
    for slot, start, end in segments:
        if update := updates.get(slot):
            update.add_to(outputs[start:end], inputs[start:end])


class Step:
    """The segments of the running forward pass that have an adapter; one object that all LoraLinears look at."""

    def __init__(self, has_wide: bool):
        self.has_wide = has_wide
        self.set(())

    def set(self, segments: Sequence[Segment]) -> None:
        adapted = [segment for segment in segments if segment[0]]
        self.is_base_only = not adapted
        short = [segment for segment in adapted if self.has_wide and segment[2] - segment[1] < FEW_ROWS]
        self.segments = [segment for segment in adapted if segment not in short]
        self.short_runs = list(_runs(short))


def _runs(segments: list[Segment]) -> Iterator[tuple[int, int, list[Segment]]]:
    """(start, end, segments counted from start) of segments that lie beside each other."""
    while segments:
        count = 1
        while count < len(segments) and segments[count][1] == segments[count - 1][2]:
            count += 1
        run, segments = segments[:count], segments[count:]
        first = run[0][1]
        yield first, run[-1][2], [(slot, start - first, end - first) for slot, start, end in run]


class Adapters:
    """The adapters that a model holds ready, by digest. Any thread may load and unload while another runs steps."""

    def __init__(self, model: "PreTrainedModel", max_adapters: int):
        self.model = model
        self.max_adapters = max_adapters
        weight = model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device
        self.step = Step(has_wide=self.dtype != torch.float32 and self.device.type == "cpu")
        self._linears = dict(_decoder_linears(model))
        self._slots: dict[str, int] = {}
        self._row_norms: dict[str, torch.Tensor] = {}  # squares, of the linears' weights; only DoRA wants them
        self._loading = threading.Lock()  # one at a time; nothing that a step does waits for it

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

    def load(self, digest: str, folders: Sequence[Path], is_busy: Callable[[], bool] = lambda: False) -> int:
        """Make a chain of PEFT folders, innermost first, ready to be used; returns its slot (the same when it is
        loaded already). `is_busy` is asked again and again whether others compute. Raises BadInput when it does not fit
        the model or no slot is free."""
        with self._loading:
            if digest in self._slots:
                return self._slots[digest]
            slot = self._free_slot()
            updates = self._read([Path(folder) for folder in folders], is_busy)
            for name, (update, wide) in updates.items():
                self._lora_linear(name).put(slot, update, wide)
            self._slots[digest] = slot
            return slot

    def unload(self, digest: str) -> None:
        """Free its slot and memory. No running request may have it. Raises BadInput when it is not loaded."""
        slot = self.slot_of(digest)
        for linear in list(self._linears.values()):
            if isinstance(linear, LoraLinear):
                linear.drop(slot)
        self._slots.pop(digest, None)

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

    def _read(self, folders: list[Path], is_busy: Callable[[], bool]) -> dict[str, tuple[Update, Update]]:
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
            began = time.thread_time()
            wide = self._update(name, [one for one in chain if name in one.parts])
            update = wide.to(self.dtype)
            if not update.is_finite():
                raise BadInput(f"{folders[-1]}: its weights for {name} are not finite numbers in {self.dtype}")
            updates[name] = update, wide if self.step.has_wide else update
            if is_busy():
                time.sleep(REST * (time.thread_time() - began))
        return updates

    @torch.no_grad()
    def _update(self, name: str, chain: list[AdapterFolder]) -> Update:
        """The chain's matrices for a linear, in fp32: their ranks one behind another."""
        a = torch.cat([one.a(name) for one in chain]).to(self.device)
        up = torch.cat([one.up(name) for one in chain]).to(self.device)
        if not chain[0].is_dora:
            return Update(a.T, up)
        base = _base_of(self._linears[name])
        gain = chain[0].magnitude(name).to(self.device) / self._norms_with(name, a, up)
        shift = None if base.bias is None else base.bias.float() * (1 - gain)
        return Update(a.T, up * gain, gain, shift)

    def _norms_with(self, name: str, a: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """||W + up^T a|| of each row of W: from W's own norms, which are kept, and the linear's outputs for the rows of
        a. W is read as numbers once and not for every adapter: 168 linears of Qwen2.5-0.5B took 3 s each time."""
        base = _base_of(self._linears[name])
        if name not in self._row_norms:
            self._row_norms[name] = weight_of(base).square().sum(dim=1)
        bias = 0 if base.bias is None else base.bias.float()
        products = base(a.to(self.dtype)).float() - bias  # a W^T, [rank, out]
        both = (2 * products + (a @ a.T) @ up).mul_(up).sum(dim=0)
        return (self._row_norms[name] + both).clamp_(min=1e-24).sqrt_()


def _decoder_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of whatever multiplies by a matrix inside decoder layers, quantised or not."""
    for name, module in model.named_modules():
        if LAYER.search(f".{name}.") and hasattr(module, "in_features") and hasattr(module, "out_features"):
            yield name, module


def _base_of(linear: nn.Module) -> nn.Module:
    return linear.base if isinstance(linear, LoraLinear) else linear
