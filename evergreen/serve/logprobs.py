"""Log-probabilities of tokens in OpenAI's two shapes."""

import math
from collections.abc import Sequence

from evergreen.engine.base import Logprob, TokenLogprobs

LOWEST = -9999.0  # JSON has no minus infinity; OpenAI's word for it, as null is for what there is none of


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict:
    """A list of tokens, each with its likeliest rivals."""
    return {
        "content": [_entry(token.chosen) | {"top_logprobs": [_entry(top) for top in token.top]} for token in tokens],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> dict:
    """Four lists of one length. `offset` is where the first token begins in the text, in characters. The token that was
    chosen is among `top_logprobs`, one more than asked for where it is not likely enough."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.chosen.text)
    return {
        "tokens": [token.chosen.text for token in tokens],
        "token_logprobs": [_finite(token.chosen) for token in tokens],
        "top_logprobs": [_tops(token) for token in tokens],
        "text_offset": offsets,
    }


def _entry(one: Logprob) -> dict:
    return {"token": one.text, "logprob": _finite(one), "bytes": list(one.bytes)}


def _tops(token: TokenLogprobs) -> dict | None:
    if math.isnan(token.chosen.logprob):
        return None
    return {one.text: _finite(one) for one in reversed((*token.top, token.chosen))}


def _finite(one: Logprob) -> float | None:
    return None if math.isnan(one.logprob) else max(one.logprob, LOWEST)
