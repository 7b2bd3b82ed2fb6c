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

# Fewer rows an adapter are computed in fp32, their 16-bit matrices widened first: 14 ms a step for 20 at 2 rows; at 16
# rows it is the dearer way, 354 us for 196 (896 x 4,864, eight adapters).
FEW_ROWS = 8
ALIKE_ROWS = 4  # segments of up to so many rows are padded to one length: reading the matrices costs more than the rows

SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # where they do not, they only cost more

REST = 3.0  # seconds that a load waits for each one of work while others compute

Segment = tuple[int, int, int]


class Batch(Protocol):
    """What `use` reads of a batch: (slot, start, end) of rows [start, end), slot 0 being the base."""

    segments: Sequence[Segment]


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one linear: y + x @ down^T @ up, or with DoRA y * gain + shift + x @ down^T @ up.

    `down` is A, [rank, in]; `up` is B transposed times the scale (and the gain), [rank, out]. In a `Stack` there is one
    dimension more in front, of the adapters."""

    down: torch.Tensor
    up: torch.Tensor
    gain: torch.Tensor | None = None  # [out], fp32, m / ||W + s B A||
    shift: torch.Tensor | None = None  # [out], fp32, what is left of the bias, which the gain does not multiply

    @property
    def kind(self) -> tuple[int, bool, bool]:
        return self.up.shape[-2], self.gain is None, self.shift is None

    def is_finite(self) -> bool:
        return all(one is None or bool(one.isfinite().all()) for one in _tensors(self))


@dataclass(frozen=True)
class Part:
    """Segments of a pass that one batched product computes: `rows` of the pass, as many for each of the `places` in a
    stack. Where a segment is shorter, its last row comes again. None stands for all there are."""

    rows: slice | torch.Tensor | None
    places: slice | torch.Tensor | None
    num_places: int
    dtype: torch.dtype  # of the products


class Stack:
    """Updates of linears that get the same input, one adapter's behind another's: many adapters cost one product. They
    are of one kind, so the same linears and ranks.

    Measured, eight adapters of rank 8, two rows each, fp32: their downs take 36 us as eight products and 10 as a
    batched one at 896 inputs, 115 and 41 at 4,864. One bf16 product over all ranks with the others' columns masked,
    its weights packed, costs a step of Qwen2.5-0.5B as much (15.6 ms for 14.2), and nothing can be picked from it."""

    def __init__(self, updates: dict[int, dict[str, Update]]):
        """By slot and linear."""
        self.slots = tuple(sorted(updates))
        all_of = [updates[slot] for slot in self.slots]
        self.kind = _kind(all_of[0])
        self.down = torch.stack([torch.cat([one.down for one in mine.values()]) for mine in all_of])
        self.parts: dict[str, tuple[slice, Update]] = {}  # by linear: its columns of x @ down^T, and what is stacked
        first = 0
        for name, one in all_of[0].items():
            columns = slice(first, first + len(one.up))
            stacked = (None if part[0] is None else torch.stack(part)
                       for part in zip(*(_tensors(mine[name])[1:] for mine in all_of), strict=True))  # fmt: skip
            self.parts[name] = columns, Update(self.down[:, columns], *stacked)
            first = columns.stop

    def updates(self) -> dict[int, dict[str, Update]]:
        def at(place: int) -> dict[str, Update]:
            picked = {name: (None if part is None else part[place] for part in _tensors(one))
                      for name, (_, one) in self.parts.items()}  # fmt: skip
            return {name: Update(*parts) for name, parts in picked.items()}

        return {slot: at(place) for place, slot in enumerate(self.slots)}

    def hidden(self, inputs: torch.Tensor, part: Part) -> torch.Tensor:
        """x @ down^T of all its linears, [places, rows of each, sum of ranks]."""
        x = inputs if part.rows is None else inputs[part.rows]
        down = self.down if part.places is None else self.down[part.places]
        return torch.bmm(x.to(part.dtype).view(part.num_places, -1, x.shape[-1]), down.to(part.dtype).transpose(1, 2))

    def add_to(self, outputs: torch.Tensor, name: str, hidden: torch.Tensor, part: Part) -> None:
        """In place, to the outputs [rows, out] of a linear."""
        columns, update = self.parts[name]
        mine = outputs if part.rows is None else outputs[part.rows]
        up = update.up if part.places is None else update.up[part.places]
        y = mine.to(part.dtype).view(part.num_places, -1, mine.shape[-1])
        if update.gain is not None:
            _scale(y, update, part)
        y.baddbmm_(hidden if len(self.parts) == 1 else hidden[..., columns], up.to(part.dtype))
        if isinstance(part.rows, torch.Tensor):
            outputs.index_copy_(0, part.rows, y.view(mine.shape).to(outputs.dtype))
        elif part.dtype != outputs.dtype:
            mine.copy_(y.view(mine.shape))


def _scale(y: torch.Tensor, update: Update, part: Part) -> None:
    """DoRA's share."""
    y.mul_(_pick(update.gain, part.places)[:, None])
    if update.shift is not None:
        y.add_(_pick(update.shift, part.places)[:, None])


def _tensors(update: Update) -> tuple[torch.Tensor | None, ...]:
    return update.down, update.up, update.gain, update.shift


def _kind(updates: dict[str, Update]) -> tuple:
    """Adapters of one kind can be computed in one product."""
    return tuple((name, *one.kind) for name, one in updates.items())


Product = tuple[Stack, Part, torch.Tensor]  # the tensor is `hidden`


def _pick(tensor: torch.Tensor, index: slice | torch.Tensor | None) -> torch.Tensor:
    return tensor if index is None else tensor[index]


class Shared:
    """The updates of linears that get the same input: x @ down^T is one product for all of them."""

    def __init__(self, step: "Step"):
        self.step = step
        self.stacks: tuple[Stack, ...] = ()  # replaced as a whole: a running pass may still have the former ones
        self._replacing = threading.Lock()  # a step may drop one while a load puts another; each takes milliseconds

    def put(self, slot: int, updates: dict[str, Update]) -> None:
        with self._replacing:
            alike = [stack for stack in self.stacks if stack.kind == _kind(updates)]
            others = [stack for stack in self.stacks if stack not in alike]
            self.stacks = (*others, Stack({slot: updates} | (alike[0].updates() if alike else {})))

    def drop(self, slot: int) -> None:
        with self._replacing:
            kept = [stack for stack in self.stacks if slot not in stack.slots]
            for stack in set(self.stacks) - set(kept):
                left = {one: updates for one, updates in stack.updates().items() if one != slot}
                kept += [Stack(left)] if left else []
            self.stacks = tuple(kept)

    def products(self, x: torch.Tensor) -> list[Product]:
        """The first halves of the products that there are for an input; those of the last input are kept."""
        shared, last, products = self.step.last
        if shared is not self or last is not x:
            inputs = x.reshape(-1, x.shape[-1])
            parts = [(stack, part) for stack in self.stacks for part in self.step.parts(stack.slots)]
            products = [(stack, part, stack.hidden(inputs, part)) for stack, part in parts]
            self.step.last = self, x, products
        return products


class LoraLinear(nn.Module):
    """A linear of any kind (quantised too) with the updates of the adapters that target it."""

    def __init__(self, base: nn.Module, name: str, shared: Shared):
        super().__init__()
        self.base, self.name, self.shared = base, name, shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if self.shared.step.is_base_only:
            return y
        outputs = y.view(-1, y.shape[-1])
        for stack, part, hidden in self.shared.products(x):
            if self.name in stack.parts:
                stack.add_to(outputs, self.name, hidden, part)
        return y


class Step:
    """The segments of the running forward pass that have an adapter; one object that all linears look at."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.few = torch.float32 if device.type == "cpu" else dtype  # the dtype of few rows
        self.set(())

    def set(self, segments: Sequence[Segment]) -> None:
        self.segments = [segment for segment in segments if segment[0]]
        self.is_base_only = not self.segments
        self.num_rows = max((end for _, _, end in segments), default=0)
        self.last: tuple[Shared | None, torch.Tensor | None, list[Product]] = None, None, []
        self._parts: dict[tuple[int, ...], list[Part]] = {}

    def parts(self, slots: tuple[int, ...]) -> list[Part]:
        """How the rows of the slots of a stack are computed. Most stacks have the same slots, so it is kept."""
        if slots not in self._parts:
            alike: dict[int, list[Segment]] = {}
            for slot, start, end in self.segments:
                if slot in slots:
                    length = max(ALIKE_ROWS, 1 << (end - start - 1).bit_length())
                    alike.setdefault(length, []).append((slots.index(slot), start, end))
            self._parts[slots] = [self._part(segments, len(slots)) for segments in alike.values()]
        return self._parts[slots]

    def _part(self, segments: list[Segment], num_slots: int) -> Part:
        """Of (place, start, end)."""
        places = [place for place, _, _ in segments]
        longest = max(end - start for _, start, end in segments)
        rows = [min(start + row, end - 1) for _, start, end in segments for row in range(longest)]
        dtype = self.few if longest < FEW_ROWS else self.dtype
        return Part(self._index(rows, self.num_rows), self._index(places, num_slots), len(places), dtype)

    def _index(self, numbers: list[int], count: int) -> slice | torch.Tensor | None:
        """What picks these of `count`: nothing is copied where they lie beside each other."""
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return torch.tensor(numbers, device=self.device)
        return None if len(numbers) == count else slice(numbers[0], numbers[0] + len(numbers))


class Adapters:
    """The adapters that a model holds ready, by digest. Any thread may load and unload while another runs steps."""

    def __init__(self, model: "PreTrainedModel", max_adapters: int):
        self.model = model
        self.max_adapters = max_adapters
        weight = model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device
        self.step = Step(self.dtype, self.device)
        self._linears = dict(_decoder_linears(model))
        self._shared: dict[str, Shared] = {}
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
            for place, mine in _by_input(updates).items():
                shared = self._shared.setdefault(place, Shared(self.step))
                shared.put(slot, mine)
                for name in mine:
                    self._replace(name, shared)
            self._slots[digest] = slot
            return slot

    def unload(self, digest: str) -> None:
        """Free its slot and memory. No running request may have it. Raises BadInput when it is not loaded."""
        slot = self.slot_of(digest)
        for shared in list(self._shared.values()):
            shared.drop(slot)
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

    def _replace(self, name: str, shared: Shared) -> None:
        """The linear of that name takes updates: from the next call on another one stands in the model."""
        linear = self._linears[name]
        if not isinstance(linear, LoraLinear):
            linear = self._linears[name] = LoraLinear(linear, name, shared).eval()
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, linear)

    def _read(self, folders: list[Path], is_busy: Callable[[], bool]) -> dict[str, Update]:
        """{linear: update in the model's dtype}."""
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
            update = self._update(name, [one for one in chain if name in one.parts])
            if not update.is_finite():
                raise BadInput(f"{folders[-1]}: its weights for {name} are not finite numbers in {self.dtype}")
            updates[name] = update
            if is_busy():
                time.sleep(REST * (time.thread_time() - began))
        return updates

    @torch.no_grad()
    def _update(self, name: str, chain: list[AdapterFolder]) -> Update:
        """The chain's matrices for a linear, in fp32: their ranks one behind another."""
        a = torch.cat([one.a(name) for one in chain]).to(self.device)
        up = torch.cat([one.up(name) for one in chain]).to(self.device)
        if not chain[0].is_dora:
            return Update(a.to(self.dtype), up.to(self.dtype))
        base = _base_of(self._linears[name])
        gain = chain[0].magnitude(name).to(self.device) / self._norms_with(name, a, up)
        shift = None if base.bias is None else base.bias.float() * (1 - gain)
        return Update(a.to(self.dtype), (up * gain).to(self.dtype), gain, shift)

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


def _by_input(updates: dict[str, Update]) -> dict[str, dict[str, Update]]:
    """The linears that get the same input, together: {a name for the input: {linear: update}}."""
    found: dict[str, dict[str, Update]] = {}
    for name in sorted(updates):
        parent, _, child = name.rpartition(".")
        place = next((f"{parent}.{'+'.join(names)}" for names in SAME_INPUT if child in names), name)
        found.setdefault(place, {})[name] = updates[name]
    return found


def _base_of(linear: nn.Module) -> nn.Module:
    return linear.base if isinstance(linear, LoraLinear) else linear
