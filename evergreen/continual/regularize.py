"""Staying close to what a model was: penalties that join the loss once an optimizer step.

L2-SP (Li et al. 2018) on the effective weight: alpha/2 * ||W - W_start||^2 summed over the trained matrices, so that
only what this run changes is paid for. For LoRA the effective weight is s * B A, and the norm comes from r x r products
without ever forming it; it does not hold for DoRA, whose weight is normalised, and is refused there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch

Penalty = Callable[["torch.nn.Module"], "torch.Tensor"]


def l2sp(model: "torch.nn.Module", alpha: float) -> Penalty:
    """A penalty towards the model's present weights."""
    import torch

    layers = _lora_layers(model)
    adapted = {id(parameter) for a, b, _ in layers for parameter in (a, b)}
    start = [(a, b, scale, a.detach().clone(), b.detach().clone()) for a, b, scale in layers]
    plain = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad and id(p) not in adapted]

    def penalty(_: torch.nn.Module) -> torch.Tensor:
        total = sum((lora_distance(*layer) for layer in start), torch.zeros(()))
        total = total + sum((((p - before) ** 2).sum() for p, before in plain), torch.zeros(()))
        return alpha / 2 * total

    return penalty


def lora_distance(
    a: "torch.Tensor", b: "torch.Tensor", scale: float, a_start: "torch.Tensor", b_start: "torch.Tensor"
) -> "torch.Tensor":
    """||s B A - s B0 A0||_F^2 for A [r, in], B [out, r], by traces of r x r products."""
    own = ((b.t() @ b) * (a @ a.t())).sum()
    crossed = ((b.t() @ b_start) * (a @ a_start.t())).sum()
    before = ((b_start.t() @ b_start) * (a_start @ a_start.t())).sum()
    return scale**2 * (own - 2 * crossed + before)


def _lora_layers(model: "torch.nn.Module") -> list[tuple["torch.Tensor", "torch.Tensor", float]]:
    found = []
    for module in model.modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "scaling")):
            continue
        if any(getattr(module, "use_dora", {}).values()):
            raise BadInput("--regularization_alpha does not hold for DoRA, whose weight is normalised: use plain LoRA")
        found += [
            (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])
            for name in module.lora_A
            if module.lora_A[name].weight.requires_grad
        ]
    return found
