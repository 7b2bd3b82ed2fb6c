"""One forward pass of the model over pieces of many sequences, with keys and values in a paged cache.

Promises: the scores of a sequence are those of the model's own forward pass over its ids (1e-4 in fp32), however its
tokens were cut into chunks and whatever else was computed beside them; the model computes what it did between passes. A
model that this does not hold for is refused when the runner is made: a few tokens are computed both ways.
Does not: decide what runs (`scheduler`), draw tokens (`sampler`), or run on more than one device.
Tried on CPUs only; nothing in the pass itself is particular to one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evergreen.engine.attention import Batch, PagedCache, paged
from evergreen.engine.base import EngineSettings
from evergreen.engine.packed import pack
from evergreen.engine.sequence import Chunk
from evergreen.records import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKENS_PER_SEQUENCE = 2048  # that the cache has room for where no size is given
MAX_SHARE = 0.25  # of the memory that is free, likewise
BATCH_ROTARY = {"longrope", "dynamic"}  # frequencies depend on the longest sequence of the batch
MAX_ERROR, MAX_ROUNDED_ERROR = 1e-3, 0.25  # of the scores' size; in 16 bits or quantised they differ by rounding


class Runner:
    """`num_blocks` blocks of `bytes_per_block` bytes each; `adapters` are those of `lora.Adapters`."""

    def __init__(self, model: "PreTrainedModel", settings: EngineSettings):
        """The model is as it shall run: quantised, stretched. Its other linears are packed, so it trains no more.
        Raises BadInput for a model that cannot run here and for settings that do not fit it."""
        from evergreen.engine.lora import Adapters

        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config: PreTrainedConfig = self.model.config.get_text_config()
        self.window = settings.sliding_window
        weight = self.model.get_input_embeddings().weight
        self.dtype, self.device = weight.dtype, weight.device
        _refuse_unknown(self.model)
        check_length(self.config, settings)
        if self.model is model:  # PEFT's layers look at the weights below them
            pack(self.model)
        self._check_by_trying()
        self.adapters = Adapters(self.model, settings.max_adapters)
        self.block_size = settings.block_size
        self.bytes_per_block = self._bytes_per_token() * settings.block_size
        self.num_blocks = self._num_blocks(settings)
        self.cache = self._make_cache(self.num_blocks, settings.block_size)

    def __str__(self) -> str:
        size = self.num_blocks * self.bytes_per_block
        num_tokens = self.num_blocks * self.block_size
        return f"KV cache: {size / 1e6:,.0f} MB, {num_tokens:,} tokens in blocks of {self.block_size}"

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute the chunks. Returns fp32 scores [scored tokens, vocab], in the order of the chunks.

        Raises FloatingPointError when keys or values are not finite; nothing of them stays in the cache."""
        batch = Batch(chunks, self.cache, self.window)
        self.adapters.use(batch)
        scores = self._forward(batch)
        if not self.cache.is_finite(batch.places):
            self.cache.clear(batch.places)
            raise FloatingPointError(f"its activations are not finite numbers in {str(self.dtype).split('.')[-1]}")
        return scores

    def _forward(self, batch: Batch) -> torch.Tensor:
        with paged(self.config):
            if len(batch.scored_rows):
                model, extra = self.model, {"logits_to_keep": batch.scored_rows}
            else:
                model, extra = self.model.base_model, {}
            output = model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, batch=batch, **extra
            )
        return output.logits[0].float() if extra else torch.empty(0, self.config.vocab_size, device=self.device)

    def _make_cache(self, num_blocks: int, block_size: int) -> PagedCache:
        shape = (self.config.num_hidden_layers, num_blocks, block_size, *_kv_shape(self.config))
        return PagedCache(*shape, self.dtype, self.device)

    def _bytes_per_token(self) -> int:
        num_heads, head_dim = _kv_shape(self.config)
        return 2 * self.config.num_hidden_layers * num_heads * head_dim * self.dtype.itemsize

    def _num_blocks(self, settings: EngineSettings) -> int:
        wanted = settings.kv_cache_bytes
        if not wanted:
            longest = settings.max_model_len or trained_length(self.config) or TOKENS_PER_SEQUENCE
            blocks = -(-min(longest, TOKENS_PER_SEQUENCE) // settings.block_size)
            free = _free_bytes(self.device)
            wanted = int(min(settings.max_num_seqs * blocks * self.bytes_per_block, MAX_SHARE * free))
        if wanted < self.bytes_per_block:
            raise BadInput(f"a KV cache of {wanted:,} bytes holds not one block of {settings.block_size} tokens, which "
                           f"takes {self.bytes_per_block:,}: raise kv_cache_bytes")  # fmt: skip
        return wanted // self.bytes_per_block

    @torch.inference_mode()
    def _check_by_trying(self) -> None:
        """Two short sequences, whole and in two pieces each, give the same scores. Raises BadInput when they do not."""
        from evergreen.engine.quantize import is_quantized

        rows = [_Trial([1, 2, 3, 4, 5], [3, 1]), _Trial([5, 4, 3, 2], [0, 2])]
        cache = self._make_cache(num_blocks=4, block_size=4)
        try:
            for pieces in ([Chunk(rows[0], 0, 3), Chunk(rows[1], 0, 3)], [Chunk(rows[0], 3, 2), Chunk(rows[1], 3, 1)]):
                found = self._forward(Batch(pieces, cache))
        except (
            RuntimeError,
            NotImplementedError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            IndexError,
        ) as error:
            from evergreen.model.load import is_out_of_memory

            if is_out_of_memory(error):
                raise
            raise _unsupported(self.model, " ".join(str(error).split())[:200]) from error
        is_exact = self.dtype == torch.float32 and not is_quantized(self.model)
        for row, scores in zip(rows, found, strict=True):
            ids = torch.tensor([row.ids], device=self.device)
            wanted = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
            if (scores - wanted).norm() > (MAX_ERROR if is_exact else MAX_ROUNDED_ERROR) * wanted.norm():
                raise _unsupported(self.model, "its scores over cached keys are not those of its own forward pass")


def trained_length(config: "PreTrainedConfig") -> int:
    """Tokens of context that the model says it can take; 0 when it does not say."""
    return getattr(config, "max_position_embeddings", None) or 0


def check_length(config: "PreTrainedConfig", settings: EngineSettings) -> None:
    """Raises BadInput for a context that the model, as it was loaded, was not made for."""
    longest, wanted = trained_length(config), settings.max_model_len
    if settings.rope_scaling and settings.rope_scaling not in _rotary_kinds(config):
        raise BadInput(f"rope_scaling {settings.rope_scaling} is set when the model is loaded: pass it to load_model")
    if longest and wanted > longest:
        raise BadInput(f"max_model_len is {wanted}; the model takes {longest} tokens: add --rope_scaling yarn")


@dataclass(eq=False)
class _Trial:
    ids: list[int]
    block_table: list[int]
    adapter_slot: int = 0


def _refuse_unknown(model: "PreTrainedModel") -> None:
    config = model.config.get_text_config()
    if kinds := _rotary_kinds(config) & BATCH_ROTARY:
        raise _unsupported(model, f"its rotary frequencies ({', '.join(kinds)}) depend on what else is in the batch")
    if other := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise _unsupported(model, f"it has layers of the kind {', '.join(sorted(other))}")
    if not getattr(model, "_supports_attention_backend", False):
        raise _unsupported(model, "its modules do not take another attention")


def _unsupported(model: "PreTrainedModel", reason: str) -> BadInput:
    return BadInput(f"{type(model).__name__} cannot run in the embedded engine: {reason}; try --engine vllm")


def _rotary_kinds(config: "PreTrainedConfig") -> set[str]:
    rope = getattr(config, "rope_parameters", None) or {}
    return {str(part.get("rope_type", "")) for part in [rope, *rope.values()] if isinstance(part, dict)}


def _kv_shape(config: "PreTrainedConfig") -> tuple[int, int]:
    """Key heads and their dimension."""
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return getattr(config, "num_key_value_heads", None) or num_heads, head_dim


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
