"""Cross-entropy at the targets only, in chunks, with or without a teacher.

A model prepared with `install` takes more arguments in `forward`: `target_positions` and `target_ids` make it return
{"loss": summed cross-entropy} without ever holding the logits of the whole row, `teacher` and `taught` add to it the
divergence from what an earlier model said at some of the targets, `num_top` returns instead what this model says there,
and `layout` makes its attention follow a packed row (train/attention.py). Called without them it is the model that it
was.
"""

import types
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from evergreen.train import attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from evergreen.data.packing import Layout, Row, Teacher

CHUNK_BYTES = 64 << 20  # of fp32 logits at a time; above it page faults cost more than larger products gain
TINY = 1e-30  # below every probability that matters, above fp32's underflow


def install(model: "PreTrainedModel") -> None:
    """Teach a causal language model (bare or under PEFT) the arguments above. Class and weights stay."""
    attention.register()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "evergreen_forward", None) is None:
        base.evergreen_forward = base.forward
        base.forward = types.MethodType(_forward, base)
        base.config._attn_implementation = attention.ATTENTION


def row_loss(model: torch.nn.Module, row: "Row") -> torch.Tensor:
    """Summed cross-entropy of a row's targets, and of the taught ones the weighted divergence from their teacher: a
    scalar in fp32."""
    return _call(model, row, target_ids=row.target_ids, teacher=row.teacher, taught=row.taught)["loss"]


def top_tokens(model: torch.nn.Module, row: "Row", k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens at each of a row's N targets (fewer in a smaller vocabulary), and their log-probabilities:
    [N, k] int32 and [N, k] fp32."""
    with torch.no_grad():
        return _call(model, row, num_top=k)["top"]


def _call(model: torch.nn.Module, row: "Row", **wanted: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {"attention_mask": row.attention_mask}
    if row.layout is not None:
        extra = {"position_ids": row.position_ids, "layout": row.layout}
    return model(input_ids=row.input_ids, target_positions=row.target_positions, **wanted, **extra)


def _forward(
    self: "PreTrainedModel",
    *args: Any,
    target_positions: torch.Tensor | None = None,
    target_ids: torch.Tensor | None = None,
    layout: "Layout | None" = None,
    teacher: "Teacher | None" = None,
    taught: torch.Tensor | None = None,
    num_top: int = 0,
    **kwargs: Any,
) -> Any:
    if target_positions is None:
        return self.evergreen_forward(*args, **kwargs)
    for name in ("labels", "return_dict", "output_attentions", "output_hidden_states", "inputs_embeds", "use_cache"):
        kwargs.pop(name, None)
    if layout is not None:
        # a 4-D mask keeps transformers from building one; attention reads the layout instead
        kwargs |= {"layout": layout, "attention_mask": layout.mask.new_empty(1, 1, 1, 1)}
    if _shapes_logits(self.config):
        states, head = self.evergreen_forward(*args, use_cache=False, **kwargs).logits, torch.nn.Identity()
    else:
        states = getattr(self, self.base_model_prefix)(*args, use_cache=False, **kwargs)[0]
        head = self.get_output_embeddings()
    states = states.flatten(0, 1).index_select(0, target_positions)
    if num_top:
        return {"top": _top_tokens(states, head, num_top)}
    return {"loss": summed_cross_entropy(states, head, target_ids, teacher=teacher, taught=taught)}


def _shapes_logits(config: "PreTrainedConfig") -> bool:
    """Some families scale or cap their logits after the head; their own forward must compute them."""
    return any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))


def summed_cross_entropy(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    targets: torch.Tensor,
    chunk_bytes: int = CHUNK_BYTES,
    teacher: "Teacher | None" = None,
    taught: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over N of -log softmax(head(hidden))[target], never more than `chunk_bytes` of logits at a time.

    hidden [N, H], targets [N]; `teacher` adds its weighted `divergence` at the targets `taught` [M], in rising order.
    A plain linear head takes the path whose gradient is made in the forward pass (as in Liger's fused linear
    cross-entropy, here in torch); an adapted head is recomputed chunk by chunk."""
    num_rows = _rows_a_chunk(hidden, head, chunk_bytes)
    if type(head) is torch.nn.Linear:
        lesson = (
            (None, None, None, 0.0) if teacher is None else (teacher.ids, teacher.log_probs, taught, teacher.weight)
        )
        return _LinearCrossEntropy.apply(hidden, head.weight, head.bias, targets, num_rows, *lesson)
    from torch.utils.checkpoint import checkpoint

    def chunk_loss(
        part: torch.Tensor, wanted: torch.Tensor, lesson: "Teacher | None", places: torch.Tensor | None
    ) -> torch.Tensor:
        logits = head(part).float()
        own = F.cross_entropy(logits, wanted, reduction="sum")
        return own if lesson is None else own + lesson.weight * divergence(logits.index_select(0, places), lesson)

    total = hidden.new_zeros((), dtype=torch.float32)
    bounds = _bounds(taught, len(targets), num_rows)
    for i, (part, wanted) in enumerate(zip(hidden.split(num_rows), targets.split(num_rows), strict=True)):
        first, last = bounds[i : i + 2]
        lesson = None if first == last else (teacher.part(first, last), taught[first:last] - i * num_rows)
        total = total + checkpoint(chunk_loss, part, wanted, *(lesson or (None, None)), use_reentrant=False)
    return total


def divergence(logits: torch.Tensor, teacher: "Teacher") -> torch.Tensor:
    """Sum over M of KL(teacher || softmax(logits)), both over k tokens and one class for all the others.

    logits [M, V] fp32. A lower bound of the divergence over the whole vocabulary: how the others share their part does
    not count. Distillation as in LwF (Li and Hoiem 2016), on replayed records as in DER++ (Buzzega et al. 2020)."""
    chances, rest = _chances(teacher.log_probs)
    log_all = torch.log_softmax(logits, -1)
    ids = teacher.ids.long()
    log_top, log_rest = log_all.gather(-1, ids), log_all.scatter(-1, ids, -torch.inf).logsumexp(-1)
    return (chances * (teacher.log_probs - log_top)).sum() + (torch.special.xlogy(rest, rest) - rest * log_rest).sum()


def _chances(log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a teacher's k tokens [M, k], and of all the others together [M]."""
    chances = log_probs.exp()
    return chances, (1 - chances.sum(-1)).clamp_min(0)


def _top_tokens(hidden: torch.Tensor, head: torch.nn.Module, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids, log_probs = [], []
    for part in hidden.split(_rows_a_chunk(hidden, head, CHUNK_BYTES)):
        logits = head(part).float()
        best = logits.topk(min(k, logits.shape[-1] - 1), -1)  # one token at least is left for the rest
        ids.append(best.indices.int())
        log_probs.append(best.values - logits.logsumexp(-1, keepdim=True))
    return torch.cat(ids), torch.cat(log_probs)


def _rows_a_chunk(hidden: torch.Tensor, head: torch.nn.Module, chunk_bytes: int) -> int:
    if isinstance(head, torch.nn.Identity):  # the logits are there already
        return max(1, len(hidden))
    return max(1, chunk_bytes // (4 * (getattr(head, "out_features", None) or head.weight.shape[0])))


def _bounds(taught: torch.Tensor | None, num_targets: int, num_rows: int) -> list[int]:
    """Where the taught targets of every chunk of `num_rows` begin, and where the last end."""
    edges = torch.arange(0, num_targets + num_rows, num_rows)
    return [0] * len(edges) if taught is None else torch.searchsorted(taught.cpu(), edges).tolist()


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over chunks: the logits of a chunk become its gradient in place."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        num_rows: int,
        teacher_ids: torch.Tensor | None,
        teacher_log_probs: torch.Tensor | None,
        taught: torch.Tensor | None,
        weight_of_teacher: float,
    ) -> torch.Tensor:
        wants = ctx.needs_input_grad
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, matrix = hidden.to(dtype), weight.to(dtype)
        loss = torch.zeros((), device=hidden.device, dtype=torch.float32)
        grad_hidden = torch.empty_like(states) if wants[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants[2] else None
        size = (min(num_rows, len(targets)), len(matrix))
        products, chances = states.new_empty(size), states.new_empty(size, dtype=torch.float32)
        wide = products if dtype is torch.float32 else torch.empty_like(chances)
        bounds = _bounds(taught, len(targets), num_rows)
        for i, start in enumerate(range(0, len(targets), num_rows)):
            part, wanted = states[start : start + num_rows], targets[start : start + num_rows, None]
            n = len(part)
            torch.mm(part, matrix.t(), out=products[:n])
            if bias is not None:
                products[:n] += bias.to(dtype)
            logits = wide[:n] if wide is products else wide[:n].copy_(products[:n])
            best, where = logits.max(-1, keepdim=True)
            slope = torch.softmax(logits, -1, out=chances[:n])
            # log-sum-exp from the greatest probability, which is at least 1/V and so never rounds to zero
            log_sum = best - slope.gather(1, where).log()
            loss += (log_sum - logits.gather(1, wanted)).sum()
            if (lesson := slice(*bounds[i : i + 2])).start < lesson.stop:
                places, ids = taught[lesson] - start, teacher_ids[lesson].long()
                log_top = logits[places[:, None], ids] - log_sum[places]
                loss += _learn(slope, log_top, places, ids, teacher_log_probs[lesson], weight_of_teacher)
            if not any(wants[:3]):
                continue
            slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, -1.0))
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope if dtype is torch.float32 else products[:n].copy_(slope)
            if grad_hidden is not None:
                torch.mm(slope, matrix, out=grad_hidden[start : start + n])
            if grad_weight is not None:
                grad_weight += (slope.t() @ part).float()
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if part is None else part.mul_(grad.to(part.dtype)).to(dtype)
            for part, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, *[None] * 6


def _learn(
    slope: torch.Tensor,
    log_top: torch.Tensor,
    places: torch.Tensor,
    ids: torch.Tensor,
    log_probs: torch.Tensor,
    weight: float,
) -> torch.Tensor:
    """`divergence` at the rows `places` [M] of a chunk, and its gradient added in place, without a copy of the chunk.

    `slope` [n, V] holds the chunk's probabilities q. For the teacher's tokens the gradient by the logit is q - p, for
    each of the others q (1 - rest_p / rest_q). `log_top` [M, k] are the model's log q of the teacher's tokens."""
    chances, rest = _chances(log_probs)
    at = (places[:, None], ids)
    top = slope[at]
    own_rest = slope.index_put_(at, slope.new_zeros(())).sum(-1)[places].clamp_min(TINY)
    factor = slope.new_ones(len(slope))
    factor[places] += weight * (1 - rest / own_rest)
    slope.mul_(factor[:, None]).index_put_(at, (1 + weight) * top - weight * chances)
    apart = (chances * (log_probs - log_top)).sum() + (torch.special.xlogy(rest, rest) - rest * own_rest.log()).sum()
    return weight * apart
