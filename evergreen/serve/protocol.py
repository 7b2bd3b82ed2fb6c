"""OpenAI's HTTP language: a body to a Call, a Call to engine requests, outputs to the JSON that clients read.

    body = read(ChatRequest, raw)                                 # schemas.py; raises ApiError, as all of these may
    call = chat_call(body, defaults=release.sampling)             # what is asked, checked; compiles a grammar
    prompts = prompt_ids(call, tokenizer, system)                 # slow for long prompts: not on the event loop
    requests = engine_requests(call, prompts, id, max_context_tokens, adapter, tenant)
    choices = [Choice(call, i) for i in range(len(requests))]
    for part in choices[i].add(output): chunk(call, head, part)   # what streams, as outputs come
    respond(call, head, choices)                                  # the same, whole, once all have their completion
    Chunks(call, choices)                                         # both, as one of two `Writer`s: see output_items.py

Promises: an answer's stream joined is the answer given whole; in a chat nothing that a client writes becomes a control
token; choice i of a seeded request is what a request for one choice with seed + i gives.
Knows nothing of HTTP servers, of the engine's process or of which model a name means.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from evergreen.engine.base import Request
from evergreen.records import Sampling
from evergreen.serve.call import Call, Kind
from evergreen.serve.choice import Choice
from evergreen.serve.prompts import chat_ids, messages_of, text_ids
from evergreen.serve.sampling import calls_grammar, grammar_of, sampling_of, schema_grammar
from evergreen.serve.schemas import (
    INT64,
    AllowedChoice,
    ApiError,
    ChatRequest,
    ChosenTool,
    CompletionRequest,
    GenerateRequest,
    SamplingBody,
    refusal,
)
from evergreen.serve.tools import CLOSE, FORCED_START, call_schema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPLETION_TOKENS = 16  # OpenAI's and vLLM's when a completion says no max_tokens
OBJECTS = {"chat": "chat.completion", "completion": "text_completion"}
CHUNKS = {"chat": "chat.completion.chunk", "completion": "text_completion"}
ROOM_WORDS = {"chat": ("messages", "max_tokens"), "response": ("input", "max_output_tokens")}
DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"  # a comment, which clients leave out


@dataclass(frozen=True)
class Head:
    """What all parts of one answer have in common. `created` is in Unix seconds, `fingerprint` the release's or the
    model's digest, `evergreen` the object that goes with the end of the answer."""

    id: str
    model: str
    created: int
    fingerprint: str = ""
    evergreen: dict | None = None


# bodies to calls


def chat_call(body: ChatRequest, defaults: Mapping[str, Any] | None = None) -> Call:
    """`defaults` are a release's sampling: fields of Sampling, used where the body says nothing."""
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise refusal("`max_tokens` and `max_completion_tokens` differ: give one", "max_completion_tokens")
    if body.top_logprobs and not body.logprobs:
        raise refusal("`top_logprobs` needs `logprobs`: true", "top_logprobs")
    if body.user and body.safety_identifier and body.user != body.safety_identifier:
        raise refusal("`user` and `safety_identifier` differ: give one", "safety_identifier")
    tools, must_call, strict = _offered_tools(body)
    sampling = sampling_of(
        body,
        defaults,
        max_tokens=body.max_completion_tokens or body.max_tokens or 0,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=_chat_grammar(grammar_of(body), tools, must_call, strict),
        more_stop=(CLOSE,) if tools and not must_call and body.parallel_tool_calls is False else (),
    )
    return Call(
        **_shared(body),
        kind="chat",
        messages=messages_of(body.messages),
        tools=tools,
        must_call=must_call,
        sampling=sampling,
        add_generation_prompt=body.add_generation_prompt is not False,
        template_variables=_effort(body.reasoning_effort) | (body.chat_template_kwargs or {}),
        user=body.user or body.safety_identifier or "",
        metadata=body.metadata or {},
    )


def completion_call(body: CompletionRequest, defaults: Mapping[str, Any] | None = None) -> Call:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise refusal("`best_of` is not supported: leave it out, or give it the value of `n`", "best_of")
    if body.max_tokens == 0 and not body.echo:
        raise refusal("`max_tokens` 0 needs `echo`: nothing else would be answered", "max_tokens")
    return _text_call("completion", body, defaults, None if body.logprobs is False else body.logprobs)


def generate_call(body: GenerateRequest, defaults: Mapping[str, Any] | None = None) -> Call:
    return _text_call("generate", body, defaults, None)


def _text_call(
    kind: Kind,
    body: CompletionRequest | GenerateRequest,
    defaults: Mapping[str, Any] | None,
    logprobs: int | None,
) -> Call:
    prompts = body.prompt if isinstance(body.prompt, list) and not isinstance(body.prompt[0], int) else [body.prompt]
    max_tokens = body.max_tokens or (defaults or {}).get("max_new_tokens") or COMPLETION_TOKENS
    sampling = sampling_of(body, defaults, max_tokens, logprobs, grammar_of(body))
    if body.echo and (logprobs is not None or body.max_tokens == 0):
        sampling = replace(sampling, prompt_logprobs=logprobs or 0)
    return Call(
        **_shared(body),
        kind=kind,
        prompts=tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts),
        sampling=sampling,
        echo=bool(body.echo),
        is_only_echo=body.max_tokens == 0,
        add_special_tokens=body.add_special_tokens is not False,
        user=body.user or "",
    )


def _shared(body: SamplingBody) -> dict[str, Any]:
    if body.stream_options and body.stream_options.include_usage and not body.stream:
        raise refusal("`stream_options` needs `stream`: true", "stream_options")
    return {
        "model": body.model or "",
        "lora": body.lora_request.lora_name if body.lora_request else "",
        "n": body.n or 1,
        "stream": bool(body.stream),
        "include_usage": bool(body.stream_options and body.stream_options.include_usage),
        "cache_salt": body.cache_salt or "",
        "priority": body.priority or 0,
        "evergreen": body.evergreen,
    }


def _effort(effort: str | None) -> dict[str, Any]:
    """Variables for the template; one that knows nothing of thinking does not mind that there should be none."""
    if effort == "none":
        return {"enable_thinking": False}
    return {"reasoning_effort": effort} if effort else {}


def _chat_grammar(form: str, tools: Sequence[dict], must_call: bool, strict: Container[str]) -> str:
    """Sampling.grammar, where `form` is what the body says of the answer and `strict` names the tools whose arguments
    have to match their schema also where the model need not call them."""
    if must_call:
        return schema_grammar(call_schema(tools), "tools")
    held = [tool if tool["name"] in strict else {"name": tool["name"]} for tool in tools]
    return calls_grammar(call_schema(held), form) if tools and (form or strict) else form


def _offered_tools(body: ChatRequest) -> tuple[tuple[dict, ...], bool, set[str]]:
    """The function objects that the model may call, whether it has to, and the names of the strict ones."""
    tools = {tool.function.name: tool.function.model_dump(exclude_none=True) for tool in body.tools or ()}
    if len(tools) < len(body.tools or ()):
        raise refusal("two tools have the same name", "tools")
    choice = body.tool_choice
    names = list(tools)
    if isinstance(choice, ChosenTool):
        names, choice = [choice.function.name], "required"
    elif isinstance(choice, AllowedChoice):
        names, choice = [tool.function.name for tool in choice.allowed_tools.tools], choice.allowed_tools.mode
    if unknown := [name for name in names if name not in tools]:
        raise refusal(f"`tool_choice` names {unknown[0][:64]!r}, which is not among `tools`", "tool_choice")
    if choice == "required" and not tools:
        raise refusal("`tool_choice` required needs `tools`", "tool_choice")
    if choice == "none":
        return (), False, set()
    strict = {name for name in names if tools[name].pop("strict", False)}
    return tuple(tools[name] for name in dict.fromkeys(names)), choice == "required", strict


# calls to requests


def prompt_ids(call: Call, tokenizer: "PreTrainedTokenizerBase", system: str | None = None) -> list[tuple[int, ...]]:
    """One prompt for a chat, one for each of `call.prompts` otherwise. `system` stands where a chat has none of its
    own. Raises ApiError: messages that the template refuses, a token id outside the vocabulary."""
    _check_ids([token for token, _ in call.sampling.logit_bias], len(tokenizer), "logit_bias")
    _check_ids(call.sampling.stop_token_ids, len(tokenizer), "stop_token_ids")
    if call.is_chat:
        prompts = [_chat_prompt(call, tokenizer, system)]
    else:
        prompts = [_text_prompt(call, prompt, tokenizer) for prompt in call.prompts]
    if not all(prompts):
        raise refusal("the prompt is empty", "prompt")
    return prompts


def _chat_prompt(call: Call, tokenizer: "PreTrainedTokenizerBase", system: str | None) -> tuple[int, ...]:
    ids = chat_ids(
        call.messages, tokenizer, call.tools, system, call.template_variables, answer_next=call.add_generation_prompt
    )
    start = tokenizer.encode(FORCED_START, add_special_tokens=False) if call.must_call else ()
    return (*ids, *start)


def _text_prompt(call: Call, prompt: str | tuple[int, ...], tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(text_ids(prompt, tokenizer, call.add_special_tokens, as_chat=call.kind == "generate"))
    _check_ids(prompt, len(tokenizer), "prompt")
    return prompt


def _check_ids(ids: Sequence[int], num_tokens: int, param: str) -> None:
    if wrong := next((token for token in ids if token >= num_tokens), None):
        raise refusal(f"`{param}`: {wrong} is not a token id of this model, which has {num_tokens}", param)


def engine_requests(
    call: Call,
    prompts: Sequence[tuple[int, ...]],
    id: str,
    max_context_tokens: int,
    adapter: str = "",
    tenant: str = "",
) -> list[Request]:
    """Request p * n + i is choice i of prompt p, named "{id}-{p * n + i}". Raises ApiError (context_length_exceeded)
    when a prompt with its max_tokens is longer than the context: nothing is cut."""
    requests: list[Request] = []
    tenant = f"{tenant}\0{call.cache_salt}" if call.cache_salt else tenant
    for prompt in prompts:
        sampling = replace(call.sampling, max_new_tokens=_room(call, len(prompt), max_context_tokens))
        for i in range(call.n):
            name = f"{id}-{len(requests)}"
            requests.append(Request(name, prompt, _seeded(sampling, i), adapter, tenant, call.priority))
    return requests


def _room(call: Call, prompt_tokens: int, max_context_tokens: int) -> int:
    """How many tokens the answer may have."""
    asked = call.sampling.max_new_tokens
    if call.is_only_echo and prompt_tokens < max_context_tokens:
        return 0
    if prompt_tokens + max(asked, 1) <= max_context_tokens:
        return asked or max_context_tokens - prompt_tokens
    asks, limits = ROOM_WORDS.get(call.kind, ("prompt", "max_tokens"))
    raise refusal(
        f"this model's context is {max_context_tokens} tokens: the prompt has {prompt_tokens}"
        + (f" and `{limits}` asks for {asked}" if asked else ", which leaves no room for an answer"),
        asks if prompt_tokens >= max_context_tokens else limits,
        "context_length_exceeded",
    )


def _seeded(sampling: Sampling, i: int) -> Sampling:
    if sampling.seed is None or i == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + i + INT64) % (2 * INT64) - INT64)


# outputs to responses


class Writer(Protocol):
    """Writes one answer from its choices: whole, or as server-sent events in order: `some`* then `end` or `failed`."""

    def __init__(self, call: Call, choices: Sequence[Choice]): ...

    def some(self, head: Head, parts: Sequence[dict]) -> str:
        """What `Choice.add` has given, as it comes."""

    def end(self, head: Head) -> str: ...

    def failed(self, head: Head, reason: ApiError) -> str: ...

    def whole(self, head: Head) -> dict: ...

    def logged(self, head: Head) -> Any:
        """What the request's row keeps; None where nothing has been answered."""


class Chunks:
    """The writer of chat completions, completions and /generate."""

    def __init__(self, call: Call, choices: Sequence[Choice]):
        self.call, self.choices = call, choices

    def some(self, head: Head, parts: Sequence[dict]) -> str:
        return "".join(event(chunk(self.call, head, part)) for part in parts)

    def end(self, head: Head) -> str:
        return (event(usage_chunk(self.call, head, self.choices)) if self.call.include_usage else "") + DONE

    def failed(self, head: Head, reason: ApiError) -> str:
        return event(error(reason)) + DONE

    def whole(self, head: Head) -> dict:
        return respond(self.call, head, self.choices)

    def logged(self, head: Head) -> Any:
        return [choice.whole() for choice in self.choices if choice.completion] or None


def respond(call: Call, head: Head, choices: Sequence[Choice]) -> dict:
    """The response that is not streamed, in the shape of the call's endpoint."""
    entries = [choice.whole() for choice in choices]
    if call.kind == "generate":
        texts = {"text": [entry["text"] for entry in entries], "finish_reasons": [e["finish_reason"] for e in entries]}
        return _ended({"id": head.id, "model": head.model, **texts, "usage": usage(call, choices)}, head)
    return _ended({**_headed(call, head, OBJECTS[call.kind]), "choices": entries, "usage": usage(call, choices)}, head)


def chunk(call: Call, head: Head, part: dict) -> dict:
    """One event of a stream; the last one of each choice has `head.evergreen`."""
    if call.kind == "generate":
        event = {"id": head.id, "model": head.model, "index": part["index"], "text": [part["text"]]}
        event["finish_reason"] = part["finish_reason"]
    else:
        event = {**_headed(call, head, CHUNKS[call.kind]), "choices": [part]}
        if call.include_usage:
            event["usage"] = None
    return _ended(event, head) if part["finish_reason"] else event


def usage_chunk(call: Call, head: Head, choices: Sequence[Choice]) -> dict:
    """The last event where the call has include_usage."""
    if call.kind == "generate":
        return {"id": head.id, "model": head.model, "text": [], "usage": usage(call, choices)}
    return {**_headed(call, head, CHUNKS[call.kind]), "choices": [], "usage": usage(call, choices)}


def usage(call: Call, choices: Sequence[Choice]) -> dict:
    """Tokens of all choices that have ended; a prompt counts once, whatever its number of choices."""
    done = [choice for choice in choices if choice.completion]
    prompts = [choice.completion for choice in done if choice.index % call.n == 0]
    num_prompt = sum(one.prompt_tokens for one in prompts)
    num_answer = sum(choice.completion.completion_tokens for choice in done)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {"cached_tokens": sum(one.num_cached_tokens for one in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(choice.num_thought_tokens for choice in done)},
    }


def _headed(call: Call, head: Head, name: str) -> dict:
    shown = {"id": head.id, "object": name, "created": head.created, "model": head.model}
    return shown | {"system_fingerprint": head.fingerprint or None}


def _ended(value: dict, head: Head) -> dict:
    return value if head.evergreen is None else value | {"evergreen": head.evergreen}


def error(error: ApiError) -> dict:
    """The body of a refusal."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def event(value: dict) -> str:
    """One server-sent event."""
    return f"data: {orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()}\n\n"
