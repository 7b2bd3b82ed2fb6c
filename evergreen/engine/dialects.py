"""How servers want a request said and how they answer: OpenAI's completions, vLLM's over them, llama.cpp's own.

A dialect is pure: fields out, events in. Every field of Sampling is said, defaults too, because servers have defaults
of their own (llama.cpp keeps 40 tokens and cuts at min_p 0.05, vLLM takes what the model's folder suggests); what a
server has no word for is refused, never left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from evergreen.engine.base import Logprob, Request, TokenLogprobs
from evergreen.engine.grammar import CALLS, FORM_OR_CALLS
from evergreen.records import BadInput, Sampling


@dataclass(frozen=True)
class Delta:
    """What one event adds: tokens where the server tells ids, else text."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str = ""  # the server's word
    stop_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)  # prompt_tokens, completion_tokens, cached_tokens


class Dialect(Protocol):
    path: str
    takes_ids: bool  # prompts as token ids
    tells_ids: bool  # all ids of an answer; else the text counts, and ids are only passed on
    can_load: bool  # adapters while it runs, by /v1/load_lora_adapter

    def body(self, request: Request, model: str, prompt: str | list[int]) -> dict[str, Any]:
        """`model` is the server's name for base or adapter. Raises BadInput for what cannot be said."""

    def read(self, event: dict[str, Any]) -> Delta: ...


class Plain:
    """Any OpenAI-compatible server, told text and believed text."""

    path, takes_ids, tells_ids, can_load = "/v1/completions", False, False, False
    refused: tuple[str, ...] = (
        "top_k", "min_p", "repetition_penalty", "min_new_tokens", "stop_token_ids", "include_stop", "ignore_eos",
        "grammar",
    )  # fmt: skip

    def body(self, request: Request, model: str, prompt: str | list[int]) -> dict[str, Any]:
        sampling = request.sampling
        _refuse(sampling, self.refused, "this server")
        body = {
            "model": model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
            "stop": list(sampling.stop) or None, "seed": sampling.seed, "logprobs": sampling.logprobs,
            "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        }  # fmt: skip
        return {name: value for name, value in body.items() if value is not None}

    def read(self, event: dict[str, Any]) -> Delta:
        choice = (event.get("choices") or [{}])[0]
        stop = choice.get("stop_reason")
        return Delta(
            tuple(choice.get("token_ids") or ()),
            choice.get("text") or "",
            _completion_logprobs(choice.get("logprobs") or {}),
            choice.get("finish_reason") or "",
            stop if isinstance(stop, str) else "",
            _usage(event.get("usage") or {}),
        )


class Vllm(Plain):
    """vLLM: token ids both ways; adapters loaded under the beginning of their digest. Stop strings are looked for
    here, in the text and not in a thought; closing the connection ends the work."""

    takes_ids, tells_ids, can_load = True, True, True
    refused = ()

    def body(self, request: Request, model: str, prompt: str | list[int]) -> dict[str, Any]:
        sampling = request.sampling
        body = super().body(request, model, prompt) | {
            "top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
            "min_tokens": sampling.min_new_tokens, "ignore_eos": sampling.ignore_eos, "return_token_ids": True,
            "return_tokens_as_token_ids": sampling.logprobs is not None, "priority": request.priority,
            "skip_special_tokens": False, **_structured(sampling.grammar),
        }  # fmt: skip
        body.pop("stop", None)
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        if request.tenant:
            body["cache_salt"] = request.tenant
        return body


class LlamaCpp:
    """llama.cpp's /completion. The list of all adapters goes with every request, zeros included: without it a request
    to the base was answered from the keys and values that the last adapter had left in the slot.

    A stream loses the ids of tokens that are parts of a character; asked for logprobs, the answer comes in one piece,
    with all ids, but without the logprobs of such tokens."""

    path, takes_ids, tells_ids, can_load = "/completion", True, False, False

    def __init__(self, adapters: Sequence[str] = ()):
        """Digests in the order in which the server was started with them."""
        self.adapters = list(adapters)

    def body(self, request: Request, model: str, prompt: str | list[int]) -> dict[str, Any]:
        sampling = request.sampling
        _refuse(sampling, ("min_new_tokens", "stop_token_ids"), "llama.cpp")
        if request.adapter and request.adapter not in self.adapters:
            raise BadInput(f"no adapter {request.adapter[:12]} is loaded")
        body = {
            "prompt": prompt, "n_predict": sampling.max_new_tokens, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p,
            "repeat_penalty": sampling.repetition_penalty, "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_last_n": len(request.prompt) + sampling.max_new_tokens,
            "seed": -1 if sampling.seed is None else sampling.seed,
            "ignore_eos": sampling.ignore_eos, "logit_bias": [list(pair) for pair in sampling.logit_bias],
            # slots know nothing of tenants, whose keys and values must not be shared
            "cache_prompt": not request.tenant,
            "lora": [{"id": place, "scale": float(digest == request.adapter)}
                     for place, digest in enumerate(self.adapters)],
        }  # fmt: skip
        return body | self._form(sampling) | self._grammar(sampling.grammar)

    def _form(self, sampling: Sampling) -> dict[str, Any]:
        """A stream, in which stop strings are looked for here, as in the embedded engine; or one piece with logprobs,
        for which the server must look for them."""
        if sampling.logprobs is None:
            return {"stream": True}
        return {"stream": False, "return_tokens": True, "n_probs": max(sampling.logprobs, 1),
                "stop": list(sampling.stop)}  # fmt: skip

    def _grammar(self, grammar: str) -> dict[str, Any]:
        kind, _, text = grammar.partition(":")
        _refuse_calls(kind, "llama.cpp")
        if kind == "regex":
            raise BadInput("llama.cpp takes no regular expressions: use --engine embedded, or a JSON schema")
        return {"json_schema": json.loads(text) if text else {"type": "object"}} if grammar else {}

    def read(self, event: dict[str, Any]) -> Delta:
        words = {"eos": "stop", "word": "stop", "limit": "length"}
        usage = {}
        if event.get("stop"):
            cached = event.get("timings", {}).get("cache_n", 0)
            usage = {"prompt_tokens": event.get("tokens_evaluated", 0), "cached_tokens": cached,
                     "completion_tokens": event.get("tokens_predicted", 0)}  # fmt: skip
        return Delta(
            tuple(event.get("tokens") or ()),
            # the stop string that was cut off, for him who looks for it
            (event.get("content") or "") + (event.get("stopping_word") or ""),
            tuple(_one_logprobs(one) for one in event.get("completion_probabilities") or ()),
            words.get(event.get("stop_type", ""), "length") if event.get("stop") else "",
            event.get("stopping_word") or "",
            usage,
        )


def _refuse(sampling: Sampling, names: Sequence[str], server: str) -> None:
    plain = Sampling()
    if wanted := [name for name in names if getattr(sampling, name) != getattr(plain, name)]:
        raise BadInput(f"{server} cannot be told {', '.join(wanted)}: leave it out, or use --engine embedded")


def _refuse_calls(kind: str, server: str) -> None:
    if kind in (CALLS, FORM_OR_CALLS):
        raise BadInput(
            f"{server} is not told to hold tool calls to a schema where an answer may be something else: leave out "
            "`strict` or the form, give `tool_choice` required, or use --engine embedded"
        )


def _structured(grammar: str) -> dict[str, Any]:
    kind, _, text = grammar.partition(":")
    _refuse_calls(kind, "vLLM")
    if kind == "schema":
        return {"structured_outputs": {"json": json.loads(text)}}
    if kind == "regex":
        return {"structured_outputs": {"regex": text}}
    return {"structured_outputs": {"json_object": True}} if grammar else {}


def _usage(given: dict[str, Any]) -> dict[str, int]:
    if not given:
        return {}
    details = given.get("prompt_tokens_details") or {}
    return {"prompt_tokens": given.get("prompt_tokens", 0), "completion_tokens": given.get("completion_tokens", 0),
            "cached_tokens": details.get("cached_tokens") or 0}  # fmt: skip


def _completion_logprobs(given: dict[str, Any]) -> tuple[TokenLogprobs, ...]:
    """The shape of /v1/completions; vLLM's spellings may be token_id:123."""
    if "content" in given:
        return tuple(_one_logprobs(one) for one in given["content"])
    tops = given.get("top_logprobs") or [None] * len(given.get("tokens") or ())
    return tuple(
        TokenLogprobs(_spelled(text, value), tuple(_spelled(*one) for one in (top or {}).items()))
        for text, value, top in zip(given.get("tokens") or (), given.get("token_logprobs") or (), tops, strict=False)
    )


def _spelled(text: str, logprob: float) -> Logprob:
    kind, _, number = text.partition(":")
    if kind == "token_id" and number.isdigit():
        return Logprob(int(number), "", logprob, b"")
    return Logprob(-1, text, logprob, text.encode())


def _one_logprobs(given: dict[str, Any]) -> TokenLogprobs:
    return TokenLogprobs(_listed(given), tuple(_listed(one) for one in given.get("top_logprobs") or ()))


def _listed(given: dict[str, Any]) -> Logprob:
    text = given.get("token", "")
    spelled = given.get("bytes")
    return Logprob(given.get("id", -1), text, given["logprob"], text.encode() if spelled is None else bytes(spelled))
