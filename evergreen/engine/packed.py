"""Linears whose weights lie in memory as oneDNN's products read them, for CPUs.

Promises: the same numbers to rounding, and the weight back bit by bit from `dequantize`. Does not: train.
Against `F.linear`, one thread, weights from memory (EPYC with avx512_bf16, shapes of Qwen2.5-0.5B):

    rows     1          2          4          16         128        512
    fp32     0.9-1.2x   1.3-2.0x   1.5-2.1x   1.2-1.8x   1.2-1.4x   1.2x
    bf16     1.5-1.9x   1.2-1.5x   1.5-2.3x   1.4-1.8x   1.0-1.1x   1.05x

Packing reads and writes every weight once, at 2 to 4 GB/s. A tied output head is packed beside the embedding's table.
"""

import torch
from torch import nn

MIN_WEIGHTS = 1 << 16  # a call costs 15 us more than F.linear's, as much as a smaller product gains
NUM_ROWS = 16  # that the layout is chosen for; one for 1 row is no faster at 16, one for 16 nearly as fast at 1
DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Takes the place of a linear; `bias` stays as it was."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), NUM_ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def dequantize(self) -> torch.Tensor:
        """The weight [out, in] in fp32, as quantised linears name it too."""
        return self.packed.to_dense().float()


def pack(model: nn.Module) -> None:
    """Replace the model's linears in place, one by one, wherever that makes them faster; on a GPU none are."""
    if not torch.backends.mkldnn.is_available():
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and _is_worth_it(module.weight):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, PackedLinear(module))


def _is_worth_it(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in DTYPES and weight.numel() >= MIN_WEIGHTS
