"""Staying close to what a model was, by its weights: L2-SP and EWC.

L2-SP (Li et al. 2018) holds the effective weights W near those the run began with, all of them alike. For LoRA it is a
penalty, alpha/2 * ||W - W_start||^2 summed over the adapted matrices: the effective weight is s * B A, and the norm
comes from r x r products without ever forming it. For weights that are trained themselves it is decoupled from the
loss, as weight decay is in AdamW (Loshchilov and Hutter 2019): before every update

    W <- W - lr * alpha * (W - W_start)

since Adam would divide a penalty's gradient by the running size of the loss's, and hold each weight the less the more
it is pulled away. EWC (Kirkpatrick et al. 2017) holds a parameter by what it matters to old data: alpha/2 * sum F *
(theta - theta_start)^2, F the diagonal Fisher information.

"Start" is what the run began with: prev_model, or the base when there is none. Neither L2-SP form holds for DoRA, whose
weight is normalised; it is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch

    from evergreen.data.packing import Row
    from evergreen.data.parts import RowLoss

Penalty = Callable[["torch.nn.Module"], "torch.Tensor"]


def l2sp(model: "torch.nn.Module", alpha: float) -> Penalty:
    """alpha/2 * ||W - W_start||^2 over the matrices that LoRA adapts; 0 for a model without LoRA."""
    import torch

    start = [(a, b, scale, a.detach().clone(), b.detach().clone()) for a, b, scale in _lora_pairs(model)]

    def penalty(_: torch.nn.Module) -> torch.Tensor:
        return alpha / 2 * sum((lora_distance(*pair) for pair in start), torch.zeros(()))

    return penalty


def lora_distance(
    a: "torch.Tensor", b: "torch.Tensor", scale: float, a_start: "torch.Tensor", b_start: "torch.Tensor"
) -> "torch.Tensor":
    """||s B A - s B0 A0||_F^2 for A [r, in], B [out, r], by traces of r x r products."""
    own = ((b.t() @ b) * (a @ a.t())).sum()
    crossed = ((b.t() @ b_start) * (a @ a_start.t())).sum()
    before = ((b_start.t() @ b_start) * (a_start @ a_start.t())).sum()
    return scale**2 * (own - 2 * crossed + before)


def pull_back(model: "torch.nn.Module", alpha: float) -> Callable[[float], None]:
    """The decoupled form for every trained weight that is not LoRA's: a function of the learning rate.

    It keeps a copy of those weights: in bf16 when that loses nothing (fp32 master weights of a bf16 model), else as
    they are, 2 or 4 bytes each. A step goes to the start at most, never past it."""
    import torch

    of_lora = {id(part) for a, b, _ in _lora_pairs(model) for part in (a, b)}
    trained = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in of_lora]
    start = [(weight, _smallest_copy(weight.detach())) for weight in trained]

    @torch.no_grad()
    def pull(learning_rate: float) -> None:
        for weight, before in start:
            weight.lerp_(before.to(weight.dtype), min(1.0, learning_rate * alpha))

    return pull


def _smallest_copy(weight: "torch.Tensor") -> "torch.Tensor":
    import torch

    narrow = weight.to(torch.bfloat16, copy=True)
    return narrow if torch.equal(narrow.to(weight.dtype), weight) else weight.clone()


def ewc(model: "torch.nn.Module", alpha: float, old_rows: Sequence["Row"], row_loss: "RowLoss") -> Penalty:
    """alpha/2 * sum F (theta - theta_start)^2 over the trained parameters; F is kept in fp32, theta_start as it is.

    For LoRA theta are the entries of A and B."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in parameters]
    fisher = fisher_diagonal(model, old_rows, row_loss)

    def penalty(_: torch.nn.Module) -> torch.Tensor:
        terms = ((f * (p.float() - s.float()) ** 2).sum() for p, s, f in zip(parameters, start, fisher, strict=True))
        return alpha / 2 * sum(terms, torch.zeros(()))

    return penalty


def fisher_diagonal(model: "torch.nn.Module", old_rows: Sequence["Row"], row_loss: "RowLoss") -> list["torch.Tensor"]:
    """The empirical Fisher information of every trained parameter, in their order.

    The mean over records, one a row, of the squared gradient of -log p(record's targets), the targets as recorded and
    not drawn from the model. Costs a forward and a backward pass over each."""
    import torch

    if not old_rows:
        raise BadInput("--regularization ewc measures on old data, and no replayed record is left to measure on")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    for row in old_rows:
        gradients = torch.autograd.grad(row_loss(model, row), parameters, allow_unused=True)
        for sum_of_squares, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_of_squares += gradient.float() ** 2
    return [sum_of_squares / len(old_rows) for sum_of_squares in total]


def _lora_pairs(model: "torch.nn.Module") -> Iterator[tuple["torch.Tensor", "torch.Tensor", float]]:
    """A [r, in], B [out, r] and the scale of every trained LoRA pair. Raises BadInput for DoRA."""
    for module in model.modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "scaling")):
            continue
        if any(getattr(module, "use_dora", {}).values()):
            raise BadInput("--regularization l2sp does not hold for DoRA, whose weight is normalised: use plain LoRA")
        pairs = [(name, module.lora_A[name].weight, module.lora_B[name].weight) for name in module.lora_A]
        pairs += [(name, module.lora_embedding_A[name], module.lora_embedding_B[name])
                  for name in module.lora_embedding_A]  # fmt: skip
        for name, a, b in pairs:
            if a.requires_grad:
                yield a, b, module.scaling[name]
