"""O-LoRA (Wang et al. 2023, arXiv 2310.14152): a new adapter learns in directions that those below it leave free.

The rows of A span what an adapter reads of its input. The penalty is lambda * sum |A_below A^T|, the entries' absolute
values summed over the modules that both adapt and over all adapters below; 0 when they read in orthogonal directions.
Does not: keep B apart, or protect what was learnt by other means than an adapter below.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def orthogonal(
    model: "torch.nn.Module", below: Sequence[Path], strength: float
) -> Callable[["torch.nn.Module"], "torch.Tensor"]:
    """A penalty on the trained adapter's A [r, in] against those of the adapter folders `below`, each [r_k, in].

    Without adapters below it is 0. Adapters of other modules do not meet and cost nothing."""
    import torch

    earlier = [_reading(folder) for folder in below]
    pairs = []
    for name, module in model.named_modules():
        for adapter in getattr(module, "lora_A", {}):
            a = module.lora_A[adapter].weight
            stacked = [found[name].to(a.device, a.dtype) for found in earlier if name in found]
            if stacked and a.requires_grad:
                pairs.append((a, torch.cat(stacked)))

    def penalty(_: torch.nn.Module) -> torch.Tensor:
        return strength * sum(((before @ a.t()).abs().sum() for a, before in pairs), torch.zeros(()))

    return penalty


def _reading(folder: Path) -> dict[str, "torch.Tensor"]:
    """Every lora_A of an adapter folder, by the name of its module."""
    from peft.utils.save_and_load import load_peft_weights

    mark = ".lora_A.weight"
    weights = load_peft_weights(str(folder), device="cpu")
    return {name.removesuffix(mark): tensor for name, tensor in weights.items() if name.endswith(mark)}
