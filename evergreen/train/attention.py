"""Attention over packed rows: the records of a row do not see each other, but all see the prefix that they share.

Promises: what each record gets alone, to rounding, values and gradients, whichever of the ways is taken. How a row is
laid out is said by `data.packing.Layout`. Does not: know losses, nor cap its scores (`can_pack` says which models can).
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from evergreen.data.packing import Layout

ATTENTION = "evergreen_packed"
MAX_SCORES = 1 << 25  # attention scores that are worth holding whole
BATCH_ROTARY = {"longrope", "dynamic"}  # frequencies depend on the longest sequence of the batch


def register() -> None:
    """Make it known to transformers by the name ATTENTION."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def can_pack(config: "PreTrainedConfig") -> str:
    """Why rows of this model cannot be packed, or "" when they can."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {
        str(part.get("rope_type", part.get("type", ""))) for part in [rope, *rope.values()] if isinstance(part, dict)
    }
    if kinds & BATCH_ROTARY:
        return f"its rotary frequencies ({', '.join(kinds & BATCH_ROTARY)}) depend on the batch"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps its logits"
    return ""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: "Layout | None" = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a packed row: query [1, H, T, D], key and value [1, G, T, D] -> [1, T, H, D].

    Computed record by record in one batched SDPA when that is less work than the whole T x T mask: 16 chats of 45
    tokens in a row of 700 need a fifteenth of it. Without a layout this is transformers' own SDPA."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **rest,
        )
    rate = dropout if module.training else 0.0
    num_records, num_queries = layout.queries.shape
    if num_records * num_queries * layout.keys.shape[1] < query.shape[2] ** 2:
        return _by_record(query, key, value, layout, scaling, rate, sliding_window), None
    if query.is_cuda and rate == 0.0 and not sliding_window:
        return _flex(query, key, value, layout, scaling).transpose(1, 2).contiguous(), None
    mask = layout.dense_mask()
    if sliding_window:
        depth = _depths(layout)
        mask = mask & (depth[None, :] > depth[:, None] - sliding_window)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=rate, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def _by_record(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: "Layout",
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> torch.Tensor:
    mask = layout.mask
    if sliding_window:
        depth = _depths(layout)
        mask = mask & (depth[layout.keys][:, None, None, :] > depth[layout.queries][:, None, :, None] - sliding_window)
    q, k, v = (_take(query, layout.queries, layout), _take(key, layout.keys, layout), _take(value, layout.keys, layout))
    if query.is_cuda or dropout or mask.numel() * query.shape[1] > MAX_SCORES:
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=True)
    else:
        out = _small_attention(q, k, v, mask, scaling or q.shape[-1] ** -0.5)
    return _Scatter.apply(out.transpose(1, 2).flatten(0, 1).flatten(1), layout.place).view(-1, *out.shape[1::2])[None]


def _small_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention by two batched products: q [R, H, Q, D], k and v [R, G, K, D], mask [R, 1, Q, K] -> [R, H, Q, D].

    On a CPU the gradient of torch's SDPA takes several times as long as this on records of a few hundred tokens."""
    num_records, heads, num_queries, width = q.shape
    groups = k.shape[1]
    grouped = q.reshape(num_records, groups, heads // groups * num_queries, width)
    scores = ((grouped * scaling) @ k.transpose(-1, -2)).unflatten(2, (heads // groups, num_queries))
    chances = scores.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1, dtype=torch.float32).to(v.dtype)
    return (chances.flatten(2, 3) @ v).view(num_records, heads, num_queries, width)


def _take(states: torch.Tensor, indices: torch.Tensor, layout: "Layout") -> torch.Tensor:
    """[1, H, T, D] and [R, L] -> [R, H, L, D]."""
    tokens = states[0].transpose(0, 1)
    taken = _Gather.apply(tokens.flatten(1), indices.flatten(), *layout.inverse(indices))
    return taken.view(*indices.shape, *tokens.shape[1:]).transpose(1, 2)


class _Gather(torch.autograd.Function):
    """Rows of a matrix by index; the gradient of a row is gathered too, and summed only where it was taken twice.

    torch's own gradient adds row by row into zeros, which on a CPU costs more than the attention between."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        indices: torch.Tensor,
        place: torch.Tensor,
        again_row: torch.Tensor,
        again_place: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(place, again_row, again_place)
        return rows.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        place, again_row, again_place = ctx.saved_tensors
        total = grad.index_select(0, place)
        if again_row.numel():
            total.index_add_(0, again_row, grad.index_select(0, again_place))
        return total, None, None, None, None


class _Scatter(torch.autograd.Function):
    """Rows at `place`, each taken once; the rows left out get no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        [place] = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, place, grad), None


def _depths(layout: "Layout") -> torch.Tensor:
    """Position in its record of every token of the row, [T]: how many tokens see-or-are it minus one."""
    return layout.dense_mask()[0, 0].sum(-1) - 1


def _flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: "Layout", scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask

    last, length = layout.last, query.shape[2]
    mask = create_block_mask(
        lambda b, h, q, k: (k <= q) & (q <= last[k]), None, None, length, length, device=query.device
    )
    return _compiled_flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
