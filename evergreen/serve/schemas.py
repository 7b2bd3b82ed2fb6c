"""The bodies that clients send, OpenAI's and vLLM's fields, as pydantic models.

Promises: a field is honoured, or it is refused by name; nothing is ignored. A field whose type holds one value (or
only null) is one that this server cannot do anything else with: that value says so and means what it does elsewhere.
What asks for nothing is never refused: null, for any name at all, and what is empty.
`read` turns bytes into a body; what is wrong with them becomes one `ApiError` in OpenAI's words.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

MAX_CHOICES = 128  # of one prompt
MAX_PROMPTS = 256
MAX_STOP = 16  # OpenAI takes 4
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_METADATA = 16
INT64 = 2**63

Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
AdapterName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
]
Nothing = Annotated[list[None], Field(max_length=0)] | None
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class ApiError(Exception):
    """A refusal as OpenAI words it. `param` is the field at fault, as in messages[0].content."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code


def refusal(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client's own mistake: 400."""
    return ApiError(400, message, param=param, code=code)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_null_strangers(cls, value: Any) -> Any:
        """Some clients write every field that they know, null where it is not used."""
        if not isinstance(value, dict) or None not in value.values():
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: inner for name, inner in value.items() if inner is not None or name in known}


class TextPart(Body):
    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None  # a hint, as `prompt_cache_key` is


class FunctionCall(Body):
    name: str  # as the model wrote it
    arguments: str


class ToolCall(Body):
    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # clients send streamed calls back as they came


class ChatMessage(Body):
    """Any role's message; prompts.py checks which fields stand with which role. The fields after `reasoning` are
    those that an answer has and that clients send back, the last two what clients keep with it for themselves."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name for it
    refusal: Literal[""] | None = None
    annotations: Nothing = None
    audio: None = None
    function_call: None = None
    provider_specific_fields: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function
    cache_control: dict[str, Any] | None = None


class ChosenFunction(Body):
    name: str


class ChosenTool(Body):
    type: Literal["function"]
    function: ChosenFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1)]


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's name for a grammar: one of the four."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[Text] | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    include_obfuscation: Literal[False] | None = None


class PromptCacheOptions(Body):
    mode: Literal["implicit"] | None = None


class LoraRequest(Body):
    lora_name: Text


class EvergreenOptions(Body):
    """What the knowledge base adds to an answer: entries that held at `as_of`, with all of `tags`."""

    knowledge: Literal["auto", "on", "off"] | None = None
    as_of: str | None = None
    tags: list[str] | None = None


class SamplingBody(Body):
    """What the generating endpoints share."""

    model: str | None = None
    lora_request: LoraRequest | None = None
    evergreen: EvergreenOptions | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None  # -1 and 0: no limit
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] | None
    ) = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: str | Annotated[list[Text], Field(max_length=MAX_STOP)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    cache_salt: str | None = None  # who else sends it shares the prefix cache
    priority: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # higher is later: a client can only stand back
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[Text] | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    use_beam_search: Literal[False] | None = None
    length_penalty: Literal[1.0] | None = None
    skip_special_tokens: Literal[True] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    truncate_prompt_tokens: None = None
    prompt_logprobs: None = None
    allowed_token_ids: None = None
    bad_words: Nothing = None
    guided_grammar: Literal[""] | None = None
    return_token_ids: Literal[False] | None = None
    return_tokens_as_token_ids: Literal[False] | None = None


class ChatRequest(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None  # the newer name of `user`
    prompt_cache_key: str | None = None  # the prefix cache finds what it has whatever the key is
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: Literal[True] | None = None
    add_generation_prompt: bool | None = None

    audio: None = None
    echo: Literal[False] | None = None
    add_special_tokens: Literal[False] | None = None  # the template has written them
    continue_final_message: Literal[False] | None = None
    chat_template: None = None
    documents: Nothing = None
    functions: Nothing = None
    function_call: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


class CompletionRequest(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # 0: only the prompt's echo
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | Literal[False] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    best_of: int | None = None  # only `n` itself
    suffix: Literal[""] | None = None


class GenerateRequest(SamplingBody):
    """POST /generate."""

    prompt: Prompt
    echo: bool | None = None
    add_special_tokens: bool | None = None


class FeedbackRequest(Body):
    """POST /v1/feedback: what a person did with the answer `response_id`."""

    response_id: Annotated[str, Field(min_length=1, max_length=128)]
    thumb: Literal["up", "down"] | None = None
    correction: Annotated[str, Field(max_length=1_000_000)] | None = None
    comment: Annotated[str, Field(max_length=100_000)] | None = None
    dwell_ms: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    action: Literal["copy", "regenerate", "click"] | None = None


class LoadAdapterRequest(Body):
    """POST /v1/load_lora_adapter."""

    lora_name: AdapterName
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapterRequest(Body):
    """POST /v1/unload_lora_adapter."""

    lora_name: AdapterName


T = TypeVar("T", bound=Body)


def read(kind: type[T], raw: bytes) -> T:
    """A body from what came over the wire. Raises ApiError: broken JSON, NaN, an unknown or refused field, a wrong
    type."""
    try:
        raw = raw.removeprefix(codecs.BOM_UTF8)
        body = from_json(raw, allow_inf_nan=False)
        json.loads(raw, object_pairs_hook=_once)
    except ValueError as error:
        raise refusal(f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(body, dict):
        raise refusal(f"the body must be a JSON object, not {_shown(body)}")
    if not all(map(math.isfinite, _floats(body))):
        raise refusal("the body holds a number that is too large")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False), body) from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Of a name that stands twice, readers take one or the other. Raises ApiError."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)[:64]
        raise refusal(f"`{name}` stands twice in one object", name)


def invalid(errors: Sequence[dict], body: Any) -> ApiError:
    """The refusal for pydantic's errors over `body`: of several (a union has one per member) the one furthest in."""
    paths = [_path(error, body) for error in errors]
    place = max(range(len(paths)), key=lambda i: (len(paths[i]), -i))
    error, param = errors[place], _spelled(paths[place])
    kind, value = error["type"], error.get("input")
    if kind == "missing":
        return refusal(f"`{param}` is required", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return refusal(f"`{param}` is not a parameter that this server knows", param, "unknown_parameter")
    if kind == "none_required":
        return refusal(f"`{param}` is not supported by this server: leave it out", param, "unsupported_parameter")
    wish = re.sub("^(Input|String|List|Dictionary|Value) ", "", error["msg"]).removeprefix("should ")
    wish = {"False": "be false", "True": "be true"}.get(wish.removeprefix("be "), wish)
    code = "unsupported_value" if kind == "literal_error" else "invalid_value"
    return refusal(f"`{param}` should {wish}, not {_shown(value)}", param, code)


def _path(error: dict, body: Any) -> list[str | int]:
    """Where an error is, without the names of union members that pydantic puts between."""
    path, value = [], body
    for step in error["loc"]:
        is_key = isinstance(value, dict) and step in value
        if is_key or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
            path, value = [*path, step], value[step]
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _spelled(path: Sequence[str | int]) -> str:
    """messages[0].content"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")[:200]


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return json.dumps(value, ensure_ascii=False)[:60]


def _floats(value: Any) -> Iterator[float]:
    """pydantic's own check does not look into free-form objects, and 1e999 is JSON."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _floats(inner)
