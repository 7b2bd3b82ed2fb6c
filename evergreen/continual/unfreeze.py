"""Where to learn: the decoder layers whose gradient on new data is large and does not work against old data.

A step along -g_new changes the loss on old data by -lr <g_new, g_old> (to first order), layer by layer. So a layer
whose two gradients point apart (cosine below 0) forgets as it learns, and one with a small g_new has little to learn.

The rule: a layer learns when its cosine is not negative and its g_new is at least half the mean over the layers. At
least a third of the layers learn: where fewer qualify, those that conflict least join them.

Gradients are those of the parameters that would be trained. For LoRA these are dL/dA = s B^T G and dL/dB = s G A^T,
with G the gradient of the effective weight; a new adapter has B = 0, and only B's is there. Does not: look further than
the first step, or choose among embeddings, norms and the head outside the layers.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from evergreen.records import BadInput, Failure

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from evergreen.data.packing import Row

    Gradients = dict[int, list[torch.Tensor]]  # by layer

LARGE = 0.5  # of the mean over the layers
AT_LEAST = 1 / 3  # of the layers


@dataclass(frozen=True)
class LayerGradient:
    """One decoder layer: the norms of the mean gradient per target on new and on old data, and their cosine."""

    layer: int
    new: float
    old: float
    cosine: float
    learns: bool = False


@dataclass(frozen=True)
class LayerChoice:
    """What was measured, in the order of the layers, and with it which of them learn."""

    rows: tuple[LayerGradient, ...]

    @property
    def layers(self) -> set[int]:
        return {row.layer for row in self.rows if row.learns}

    def document(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def table(self) -> "Table":
        from rich.table import Table

        title = f"gradients by layer: {len(self.layers)} of {len(self.rows)} learn"
        table = Table(title=title, title_justify="left")
        for column in ("layer", "|g new|", "|g old|", "cosine"):
            table.add_column(column, justify="right")
        table.add_column("learns")
        for row in self.rows:
            norms = (f"{row.new:.3g}", f"{row.old:.3g}", f"{row.cosine + 0.0:+.2f}")
            table.add_row(str(row.layer), *norms, "yes" if row.learns else "-", style="" if row.learns else "dim")
        return table


def choose(
    model: "torch.nn.Module",
    new_rows: Sequence["Row"],
    old_rows: Sequence["Row"],
    row_loss: "Callable[[torch.nn.Module, Row], torch.Tensor]",
) -> LayerChoice:
    """Measure every layer on both kinds of rows, all of which are computed, and apply the rule above.

    `row_loss(model, row)` is the summed cross-entropy of a row's targets. The mode of the model is the caller's, and
    its gradients are None afterwards. Holds two gradients of what is trained, as Adam's state will. Raises BadInput
    without old rows or without a layer that could learn, Failure for a gradient that is not finite."""
    if not old_rows:
        raise BadInput("--unfreeze auto compares new data with old, and there is none: give --replay_samples or "
                       "--general_replay")  # fmt: skip
    new, old = (_gradients(model, rows, row_loss) for rows in (new_rows, old_rows))
    if not new:
        raise BadInput("--unfreeze auto found no decoder layer that could learn")
    return decide([_compare(layer, new[layer], old[layer]) for layer in sorted(new)])


def decide(measured: Sequence[LayerGradient]) -> LayerChoice:
    """The rule, applied to what was measured."""
    large = LARGE * sum(row.new for row in measured) / len(measured)
    chosen = {row.layer for row in measured if row.cosine >= 0 and row.new >= large}
    wanted = math.ceil(AT_LEAST * len(measured))
    by_conflict = sorted(measured, key=lambda row: -row.cosine)
    others = [row.layer for row in by_conflict if row.layer not in chosen]
    chosen |= set(others[: max(0, wanted - len(chosen))])
    return LayerChoice(tuple(replace(row, learns=row.layer in chosen) for row in measured))


def _gradients(
    model: "torch.nn.Module", rows: Sequence["Row"], row_loss: "Callable[[torch.nn.Module, Row], torch.Tensor]"
) -> "Gradients":
    """Of the mean loss over all targets of the rows, the trained parameters of each decoder layer."""
    num_targets = max(1, sum(row.num_targets for row in rows))
    model.zero_grad(set_to_none=True)
    for row in rows:
        if row.num_targets:
            (row_loss(model, row) / num_targets).backward()
    found: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        layer = _layer_of(name)
        if parameter.requires_grad and layer is not None:
            gradient = parameter.grad
            found.setdefault(layer, []).append(parameter.new_zeros(()) if gradient is None else gradient)
    model.zero_grad(set_to_none=True)
    return found


def _layer_of(name: str) -> int | None:
    """The number of the decoder layer that a parameter belongs to: the first number in its name."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else None


def _compare(layer: int, new: "Sequence[torch.Tensor]", old: "Sequence[torch.Tensor]") -> LayerGradient:
    pairs = list(zip(new, old, strict=True))
    crossed = sum(float((a.float() * b.float()).sum()) for a, b in pairs)
    norms = [math.sqrt(sum(float(part.float().square().sum()) for part in parts)) for parts in (new, old)]
    if not math.isfinite(crossed + sum(norms)):
        raise Failure(f"--unfreeze auto: the gradient of layer {layer} is not finite before the first step: try "
                      "--torch_dtype float32")  # fmt: skip
    return LayerGradient(layer, *norms, crossed / (norms[0] * norms[1]) if all(norms) else 0.0)
