"""How much memory a run will need, and which settings would fit when it does not.

A forecast, not a promise: weights, gradients and optimizer states are counted exactly, activations from the layer
shapes; it is meant to be within a quarter of the peak. What a process needs before it holds a model is measured.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evergreen.settings import SftSettings

GIB = 1 << 30
ADAM_BYTES = 12  # a trainable parameter's gradient and two moments in fp32


@dataclass(frozen=True)
class Forecast:
    """Bytes a training run will hold at its peak, by what holds them."""

    weights: int
    optimizer: int
    activations: int
    logits: int
    process: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    @property
    def to_come(self) -> int:
        """What is still to be allocated once the model is loaded."""
        return self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / GIB:.2f}" for field in dataclasses.fields(self))
        return f"{self.total / GIB:.2f} GiB ({parts})"


def forecast(
    model: "PreTrainedModel", settings: "SftSettings", dtype: "torch.dtype", longest_record: int, step_tokens: int
) -> Forecast:
    """For rows as long as the data will make them: `longest_record` tokens at least, a step's tokens at most."""
    from evergreen.train.loss import CHUNK_BYTES

    config = model.config.get_text_config()
    row_tokens = (
        min(max_row_tokens(settings), step_tokens)
        if settings.packing
        else settings.per_device_train_batch_size * longest_record
    )
    row_tokens = max(row_tokens, longest_record)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    bytes_each = dtype.itemsize
    per_layer = _layer_floats(config) * bytes_each + 8 * config.hidden_size  # two norms keep fp32 copies
    layers = config.num_hidden_layers
    if settings.gradient_checkpointing:
        activations = row_tokens * (layers * config.hidden_size * bytes_each + 2 * per_layer)
    else:
        activations = row_tokens * layers * per_layer
    logits = min(CHUNK_BYTES, 4 * config.vocab_size * row_tokens) * 2
    return Forecast(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        optimizer=trainable * ADAM_BYTES,
        activations=int(activations),
        logits=logits,
        process=_process_bytes(model),
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
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def peak_bytes(device: str) -> int:
    """The most memory this process has held: of the GPU if it computes there, else resident."""
    import resource

    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fitting_settings(settings: "SftSettings", estimate: Forecast, available: int, longest_record: int) -> list[str]:
    """Flags to add, in the order in which they cost least speed, until the forecast fits `available` bytes."""
    flags: list[str] = []
    rest = estimate.total - estimate.activations
    activations = estimate.activations
    if not settings.gradient_checkpointing and settings.packing and max_row_tokens(settings) > longest_record:
        smallest = max(longest_record, 64)
        flags.append(f"--max_row_tokens {smallest}")
        activations = activations * smallest // max(smallest, max_row_tokens(settings))
    if rest + activations > available and not settings.gradient_checkpointing:
        flags.append("--gradient_checkpointing true")
        activations //= 6
    if rest + activations > available and settings.train_type == "full":
        flags.append("--train_type lora")
        rest -= estimate.optimizer
    if rest + activations > available and settings.train_type in ("lora", "full"):
        flags.append("--train_type qlora")
        rest -= estimate.weights * 2 // 3
    if rest + activations > available:
        flags.append(f"--max_length {max(64, longest_record // 2)} --truncation_strategy delete")
    return flags or ["a smaller model"]


def _layer_floats(config: object) -> int:
    """Numbers per token that a decoder layer keeps for its backward pass, by shapes: inputs of its products, the
    heads, the gate's factors and their LoRA shares."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * head
    return 6 * hidden + 3 * heads + 4 * inner


def _process_bytes(model: "PreTrainedModel") -> int:
    """What the interpreter and its libraries hold, without the weights."""
    import psutil

    if next(model.parameters()).is_cuda:
        return 0
    return max(0, psutil.Process().memory_info().rss - sum(parameter.nbytes for parameter in model.parameters()))


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
