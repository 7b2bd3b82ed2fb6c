"""How much memory a run will need, and which settings would fit when it does not.

A forecast, not a promise: weights, gradients, optimizer states and what a penalty keeps of the start are counted
exactly, activations from the layer shapes; it is meant to be within a quarter of the peak. What a process needs before
it holds a model is measured.
"""

import dataclasses
import math
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evergreen.settings import SftSettings

GIB = 1 << 30
HEADROOM = 0.8  # of free memory: a forecast may be a fifth too low
FISHER_BYTES = 4  # of a trainable parameter under --regularization ewc, beside a copy of it
ADAM_BYTES = 12  # a trainable parameter's gradient and two moments in fp32


@dataclass(frozen=True)
class Workload:
    """What a forecast needs to know of a model, its data and its device; `settings` may then vary."""

    config: object
    dtype: "torch.dtype"
    longest_record: int  # tokens
    mean_record: float
    on_cpu: bool

    def row_tokens(self, settings: "SftSettings") -> int:
        """Tokens of the longest row: a packed one holds what fits into it of a step, at least the longest record."""
        records = settings.per_device_train_batch_size
        if not settings.packing:
            return records * self.longest_record
        step_tokens = int(self.mean_record * records * settings.gradient_accumulation_steps)
        return max(min(max_row_tokens(settings), step_tokens), self.longest_record)

    def activations(self, settings: "SftSettings") -> int:
        """Bytes kept for the backward pass, and what one layer's takes while it runs."""
        config, each = self.config, self.dtype.itemsize
        tokens, layers = self.row_tokens(settings), config.num_hidden_layers
        layer = tokens * (_layer_floats(config) * each + 8 * config.hidden_size)  # two norms keep fp32 copies
        scores = self._scores(tokens) if settings.packing else 0
        kept = layer + scores * (4 if each == 4 else 4 + each)  # softmax in fp32, and its copy in a narrower dtype
        if settings.gradient_checkpointing:
            return tokens * layers * config.hidden_size * each + 2 * kept + 12 * scores
        return layers * kept + 12 * scores

    def logits(self, settings: "SftSettings") -> int:
        from evergreen.train.loss import CHUNK_BYTES

        return int(2.5 * min(CHUNK_BYTES, 4 * self.config.vocab_size * self.row_tokens(settings)))

    def _scores(self, tokens: int) -> int:
        """Attention scores that a layer holds: short records are multiplied out on a CPU (train/attention.py)."""
        from evergreen.train.attention import MAX_SCORES

        of_a_record = self.config.num_attention_heads * self.longest_record**2
        num_records = min(math.ceil(tokens / self.mean_record), MAX_SCORES // of_a_record)
        return num_records * of_a_record if self.on_cpu and num_records > 1 else 0


@dataclass(frozen=True)
class Forecast:
    """Bytes a training run will hold at its peak, by what holds them."""

    weights: int
    optimizer: int
    activations: int
    logits: int
    process: int
    workload: Workload
    penalty: int = 0  # the start's weights and their Fisher information, see continual/regularize.py

    @property
    def total(self) -> int:
        return self.weights + self.process + self.to_come

    @property
    def to_come(self) -> int:
        """What is still to be allocated once the model is loaded."""
        return self.optimizer + self.penalty + self.activations + self.logits

    def __str__(self) -> str:
        names = ("weights", "optimizer", *["penalty"] * bool(self.penalty), "activations", "logits", "process")
        parts = ", ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        return f"{self.total / GIB:.2f} GiB ({parts})"


def forecast(
    model: "PreTrainedModel",
    settings: "SftSettings",
    dtype: "torch.dtype",
    longest_record: int,
    mean_record: float,
    process: int,
) -> Forecast:
    """For rows as long as the data will make them. `process` is what `held_bytes` gave before the model was loaded."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    workload = Workload(model.config.get_text_config(), dtype, longest_record, mean_record, on_cpu)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainable = sum(parameter.numel() for parameter in learning)
    start = sum(parameter.nbytes for parameter in learning)
    kept = {"l2sp": start, "ewc": start + FISHER_BYTES * trainable} if settings.regularization_alpha else {}
    return Forecast(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        optimizer=trainable * ADAM_BYTES,
        activations=int(workload.activations(settings)),
        logits=workload.logits(settings),
        process=process,
        workload=workload,
        penalty=kept.get(settings.regularization, 0),
    )


def max_row_tokens(settings: "SftSettings") -> int:
    return settings.max_row_tokens or settings.per_device_train_batch_size * settings.max_length


def available_bytes(device: str) -> int:
    """Free memory of the device; on a CPU, what can be had without swapping, within the process's own limit."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0]
    import resource

    import psutil

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    free = psutil.virtual_memory().available
    return free if limit == resource.RLIM_INFINITY else min(free, limit - psutil.Process().memory_info().vms)


def held_bytes(device: str) -> int:
    """What this process holds now: of the GPU if it computes there, else resident."""
    import psutil
    import torch

    return torch.cuda.memory_reserved() if device.startswith("cuda") else psutil.Process().memory_info().rss


def peak_bytes(device: str) -> int:
    """The most memory this process has held: of the GPU if it computes there, else resident."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # ru_maxrss of a fresh process is that of the process which started it
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fitting_settings(settings: "SftSettings", estimate: Forecast, available: int, longest_record: int) -> list[str]:
    """Flags to add, in the order in which they cost least speed, until what is to come fits `available` bytes."""
    flags: list[str] = []
    beside = estimate.optimizer + estimate.penalty
    available = int(available * HEADROOM)

    def fits() -> bool:
        return beside + estimate.workload.activations(settings) + estimate.workload.logits(settings) <= available

    def add(**changes: Any) -> None:
        nonlocal settings
        settings = dataclasses.replace(settings, **changes)
        flags.extend(f"--{name} {str(value).lower()}" for name, value in changes.items())

    if settings.packing and max_row_tokens(settings) > (smallest := max(longest_record, 64)):
        add(max_row_tokens=smallest)
    elif not settings.packing and settings.per_device_train_batch_size > 1:
        records = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        add(per_device_train_batch_size=1, gradient_accumulation_steps=records)
    if not fits() and not settings.gradient_checkpointing:
        add(gradient_checkpointing=True)
    if not fits() and settings.train_type == "full":
        add(train_type="lora")
        beside = 0
    if not fits() and settings.train_type == "lora":
        add(train_type="qlora")
        available += estimate.weights * 2 // 3
    if not fits():
        flags.append(f"--max_length {max(64, longest_record // 2)} --truncation_strategy delete")
    return flags or ["a smaller model"]


def _layer_floats(config: object) -> int:
    """Numbers per token that a decoder layer keeps for its backward pass, by shapes: inputs of its products, the
    heads, the gate's factors and their LoRA shares."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * head
    return 6 * hidden + 3 * heads + 4 * inner


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of giving them back and faulting them in again at the next step.

    Rows differ in length, so every step allocates anew; on a 0.5B model page faults took 40% of the time."""
    import ctypes

    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # not glibc
    trim_threshold, mmap_max = -1, -4
    libc.mallopt(trim_threshold, (1 << 31) - 1)
    libc.mallopt(mmap_max, 0)
