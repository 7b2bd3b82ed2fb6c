"""Attention of many sequences over keys and values that lie in blocks, in whatever order the blocks were free.

Promises: a sequence's result is what attention over its tokens alone gives (the same sums in another order: 1e-6 in
fp32), whoever is beside it; windows and capped scores are those of the model. One pass writes the keys and values of
all its rows before any query reads, so a sequence may read what another one computes in the same pass.
Does not: know which block is whose (`block_manager`), nor run without the `batch` argument that `Runner` hands down.
How: transformers' own modules call `paged_attention` through AttentionInterface. Rows that decode are grouped by
length, their blocks gathered by one copy, and the query heads that share a key head stand as rows of one product; a
prompt's chunk goes through SDPA by itself. All indices and masks are made once per pass (and window), not per layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from evergreen.engine.sequence import Chunk

ATTENTION = "evergreen_paged"
GROUP_BLOCKS = 128  # gathered at a time: 2 MB at most models' 16 KB a block, what a core's own cache still holds
MAX_WASTE = 16  # blocks of padding in a group; one more group costs about as much as gathering them


class PagedCache:
    """Keys and values of `num_blocks` blocks of every layer: [layer, key|value, head, block, token, dim].

    Heads come before blocks, so that gathering a sequence gives its keys as the batched product wants them."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (num_layers, 2, num_heads, num_blocks, block_size, head_dim)
        self.block_size, self.head_dim = block_size, head_dim
        self.pages = torch.zeros(shape, dtype=dtype, device=device)  # never empty(): a masked NaN would still count
        self._blocks = [[part.flatten(2) for part in layer] for layer in self.pages]
        self._cells = [[part.flatten(1, 2) for part in layer] for layer in self.pages]

    def write(self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values [heads, tokens, dim] go to `places` [tokens], block * block_size + offset each."""
        keys, values = self._cells[layer]
        keys.index_copy_(1, places, key)
        values.index_copy_(1, places, value)

    def read(self, layer: int, blocks: torch.Tensor, num_sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [heads, num_sequences, tokens, dim] of `blocks`, as many for each sequence."""
        keys, values = self._blocks[layer]
        shape = (len(keys), num_sequences, -1, self.head_dim)
        return keys.index_select(1, blocks).view(shape), values.index_select(1, blocks).view(shape)

    def is_finite(self, places: torch.Tensor) -> bool:
        """Whether what lies at `places` is, in all layers."""
        total = self.pages.flatten(3, 4).index_select(3, places).sum(dtype=torch.float32)
        return bool(total.isfinite())

    def clear(self, places: torch.Tensor) -> None:
        self.pages.flatten(3, 4).index_fill_(3, places, 0)


@dataclass(frozen=True)
class Group:
    """Sequences whose queries attend in one call: `rows` of the pass, equally many of each."""

    rows: slice | torch.Tensor
    num_sequences: int = 1
    blocks: torch.Tensor | None = None  # [num_sequences * blocks of each], to be gathered
    mask: torch.Tensor | None = None  # [num_sequences, rows of each, keys of the blocks], added to the scores
    num_before: int = 0  # without a mask: tokens in the blocks, all seen by all rows, which see each other causally

    @property
    def is_decode(self) -> bool:
        return self.mask is not None and self.mask.shape[1] == 1


class Batch:
    """One forward pass: T rows, one a token, those of one adapter beside each other.

    `input_ids`, `position_ids` [1, T]; `slots` [T] the adapter of each row, `segments` [(slot, start, end)] the same in
    runs; `scored_rows` the rows whose scores are wanted, in the order of the chunks given."""

    def __init__(self, chunks: Sequence["Chunk"], cache: PagedCache, window: int = 0):
        """`window` keeps every layer from looking further back than so many tokens (0: the model's own windows)."""
        self.cache, self.window = cache, window
        self.device, self.dtype = cache.pages.device, cache.pages.dtype
        self.chunks = sorted(chunks, key=_order)
        self.starts = _running_sum(chunk.num_tokens for chunk in self.chunks)
        self.segments = self._segments()
        self.slots = self._tensor([slot for slot, start, end in self.segments for _ in range(start, end)])
        self.input_ids = self._tensor([id for chunk in self.chunks for id in _ids(chunk)])[None]
        self.position_ids = self._tensor([place for chunk in self.chunks for place in _positions(chunk)])[None]
        self.places = self._tensor([place for chunk in self.chunks for place in self._places(chunk)])
        first_rows = dict(zip(map(id, self.chunks), self.starts, strict=False))
        self.scored_rows = self._tensor(
            [first_rows[id(chunk)] + place for chunk in chunks for place in chunk.scored_places()]
        )
        self._groups: dict[tuple[int, bool], list[Group]] = {}

    def groups(self, window: int | None, can_merge: bool) -> list[Group]:
        """How the rows attend in a layer that looks `window` tokens back (None or 0: as far as there are any).
        `can_merge`: whether attention over a row's keys can be put together from that over parts of them."""
        key = min(filter(None, (window, self.window)), default=0), can_merge
        if key not in self._groups:
            self._groups[key] = list(self._make_groups(*key))
        return self._groups[key]

    def _make_groups(self, window: int, can_merge: bool) -> Iterator[Group]:
        decodes = []
        for chunk, row in zip(self.chunks, self.starts, strict=False):
            if chunk.num_tokens == 1:
                decodes.append((self._needed(chunk, window), row, chunk))
            elif (chunk.start == 0 or can_merge) and (not window or chunk.start + chunk.num_tokens <= window):
                yield self._unmasked(chunk, row)
            else:
                yield self._group([(self._needed(chunk, window), row, chunk)], window)
        for alike in _alike(sorted(decodes, key=lambda one: (len(one[0]), one[1]))):
            yield self._group(alike, window)

    def _unmasked(self, chunk: "Chunk", row: int) -> Group:
        rows = slice(row, row + chunk.num_tokens)
        if not chunk.start:
            return Group(rows)
        blocks = chunk.sequence.block_table[: -(-chunk.start // self.cache.block_size)]
        return Group(rows, blocks=self._tensor(blocks), num_before=chunk.start)

    def _group(self, members: list[tuple[range, int, "Chunk"]], window: int) -> Group:
        num_blocks = max(len(needed) for needed, _, _ in members)
        tables = [_padded(chunk.sequence.block_table, needed, num_blocks) for needed, _, chunk in members]
        size = self.cache.block_size
        firsts = self._tensor([needed.start * size for needed, _, _ in members])
        queries = self._tensor([list(_positions(chunk)) for _, _, chunk in members])[..., None]
        keys = firsts[:, None, None] + torch.arange(num_blocks * size, device=self.device)
        hidden = keys > queries
        if window:
            hidden |= keys <= queries - window
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)
        rows = [row + place for _, row, chunk in members for place in range(chunk.num_tokens)]
        return Group(self._rows(rows), len(members), self._tensor(tables).flatten(), mask)

    def _needed(self, chunk: "Chunk", window: int) -> range:
        """Which of its sequence's blocks, counted from the sequence's beginning, a chunk looks at."""
        size = self.cache.block_size
        first = max(0, chunk.start + 1 - window) // size if window else 0
        return range(first, -(-(chunk.start + chunk.num_tokens) // size))

    def _segments(self) -> list[tuple[int, int, int]]:
        segments: list[tuple[int, int, int]] = []
        for chunk, start in zip(self.chunks, self.starts, strict=False):
            slot, end = chunk.sequence.adapter_slot, start + chunk.num_tokens
            if segments and segments[-1][0] == slot:
                start = segments.pop()[1]
            segments.append((slot, start, end))
        return segments

    def _places(self, chunk: "Chunk") -> Iterator[int]:
        size, table = self.cache.block_size, chunk.sequence.block_table
        return (table[place // size] * size + place % size for place in _positions(chunk))

    def _rows(self, rows: list[int]) -> slice | torch.Tensor:
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return self._tensor(rows)

    def _tensor(self, values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    batch: Batch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' attention modules call: query [1, heads, T, dim], key and value [1, key heads, T, dim] of the
    batch's rows. Returns [1, T, heads, dim]. Raises NotImplementedError for what is not computed here."""
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("its attention has sinks or a position bias")
    query, key, value = query[0], key[0], value[0]
    batch.cache.write(module.layer_idx, batch.places, key, value)
    output = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
    can_merge = not softcap and query.device.type == "cpu"
    for group in batch.groups(sliding_window, can_merge):
        rows, cached = group.rows, ()
        if group.blocks is not None:
            cached = batch.cache.read(module.layer_idx, group.blocks, group.num_sequences)
        if group.is_decode:
            output[rows] = _decode(query[:, rows], *cached, group.mask, scaling, softcap)
        elif group.mask is not None:
            output[rows] = _extend(query[:, rows], *cached, group.mask, scaling, softcap)
        elif not cached:
            output[rows] = _extend(query[:, rows], key[:, None, rows], value[:, None, rows], None, scaling, softcap)
        else:
            before = [one[:, :, : group.num_before] for one in cached]
            output[rows] = _merge(query[:, rows], *before, key[:, None, rows], value[:, None, rows], scaling)
    return output[None], None


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """One query row of each sequence: query [heads, sequences, dim], keys and values [key heads, sequences, L, dim].
    The heads that share a key head are the rows of its product. Returns [sequences, heads, dim]."""
    num_key_heads, num_sequences = keys.shape[:2]
    query = query.unflatten(0, (num_key_heads, -1)).transpose(1, 2)
    output = _attention(query, keys, values, mask[None], scaling, softcap)
    return output.transpose(0, 1).reshape(num_sequences, -1, values.shape[-1])


def _extend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """T query rows of one sequence: query [heads, T, dim], keys and values [key heads, 1, L, dim]. No mask is a causal
    one. Returns [T, heads, dim]."""
    query, keys, values = _by_key_head(query, keys, values)
    output = _attention(query, keys, values, mask, scaling, softcap, is_causal=mask is None)
    return output.permute(2, 0, 1, 3).flatten(1, 2)


def _merge(
    query: torch.Tensor,
    keys_before: torch.Tensor,
    values_before: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """As `_extend`, with the keys in two parts: those before, which all rows see, and the rows' own, seen causally.
    Each part's share of a softmax over both follows from the logarithms of their sums; two calls without a mask take
    a half to a third of the time of one with it (512 rows after 512 and 3,584 tokens: 30 ms for 54, 106 for 381)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, keys_before, values_before = _by_key_head(query, keys_before, values_before)
    before, sums_before = flash(rows, keys_before, values_before, scale=scaling)
    own, sums = flash(*_by_key_head(query, keys, values), is_causal=True, scale=scaling)
    share = torch.sigmoid(sums_before - sums).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, before, share).permute(2, 0, 1, 3).flatten(1, 2)


def _by_key_head(query: torch.Tensor, *keys_and_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[heads, T, dim] as [key heads, heads that share one, T, dim], keys and values expanded to that without a copy."""
    query = query.unflatten(0, (len(keys_and_values[0]), -1))
    return query, *(one.expand(-1, query.shape[1], -1, -1) for one in keys_and_values)


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    is_causal: bool = False,
) -> torch.Tensor:
    if not softcap:
        return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal, scale=scaling)
    scores = torch.tanh(query @ keys.transpose(-1, -2) * ((scaling or query.shape[-1] ** -0.5) / softcap)) * softcap
    if is_causal:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype) @ values


@contextmanager
def paged(config: "PreTrainedConfig") -> Iterator[None]:
    """Inside, the modules of this config's model attend by `paged_attention`; outside it is the model that it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, paged_attention)  # and no mask function of that name: no masks are made
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _order(chunk: "Chunk") -> tuple[int, bool, int]:
    return chunk.sequence.adapter_slot, chunk.num_tokens > 1, chunk.start


def _ids(chunk: "Chunk") -> list[int]:
    return chunk.sequence.ids[chunk.start : chunk.start + chunk.num_tokens]


def _positions(chunk: "Chunk") -> range:
    return range(chunk.start, chunk.start + chunk.num_tokens)


def _running_sum(counts: Iterable[int]) -> list[int]:
    """[0, first, first + second, ...]: one longer than `counts`."""
    sums = [0]
    for count in counts:
        sums.append(sums[-1] + count)
    return sums


def _padded(table: list[int], needed: range, num_blocks: int) -> list[int]:
    """The needed blocks, and the last of them again until there are `num_blocks`."""
    return table[needed.start : needed.stop] + [table[needed.stop - 1]] * (num_blocks - len(needed))


def _alike(members: list[tuple[range, int, "Chunk"]]) -> Iterator[list[tuple[range, int, "Chunk"]]]:
    """Runs of members, sorted by their number of blocks, that are worth padding to one length."""
    group: list[tuple[range, int, Chunk]] = []
    for member in members:
        num_blocks = len(member[0])
        waste = sum(num_blocks - len(needed) for needed, _, _ in group)
        if group and (waste > MAX_WASTE or (len(group) + 1) * num_blocks > GROUP_BLOCKS):
            yield group
            group = []
        group.append(member)
    if group:
        yield group
