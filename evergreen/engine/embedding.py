"""Texts as vectors, by the language model itself: the mean of its last hidden states."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from evergreen.model.load import LoadedModel


def embedder(
    loaded: "LoadedModel", max_tokens: int = 256, batch_size: int = 16
) -> "Callable[[Sequence[str]], np.ndarray]":
    """`embed(texts)` -> [n, hidden], unit length, of the first `max_tokens` tokens of each text."""
    import torch

    body = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model

    def embed(texts: Sequence[str]) -> "np.ndarray":
        parts = [_mean_states(body.model, loaded.tokenizer, texts[start : start + batch_size], max_tokens)
                 for start in range(0, len(texts), batch_size)]  # fmt: skip
        return torch.cat(parts).cpu().numpy()

    return embed


def _mean_states(body: "torch.nn.Module", tokenizer, texts: Sequence[str], max_tokens: int) -> "torch.Tensor":  # noqa: F821
    """[len(texts), hidden] in fp32; padding takes no part."""
    import torch

    rows = [tokenizer.encode(text or " ", add_special_tokens=False)[:max_tokens] or [0] for text in texts]
    width = max(map(len, rows))
    device = next(body.parameters()).device
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    with torch.no_grad():
        states = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
    means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(means, dim=-1)
