"""The body of OpenAI's Responses API, and the chat that it comes to.

Promises: a body means what the chat of the same messages, tools and sampling means: there is one way of answering. What
is refused is refused in this body's words. Items that a response has had may be sent back as they are; of reasoning the
text goes to the model, as far as its template takes thoughts, and what another server has encrypted is passed over.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PrivateAttr, Tag

from evergreen.records import Sampling
from evergreen.serve.call import Call
from evergreen.serve.input_items import Item, Turn, missing_field, turns_from
from evergreen.serve.protocol import chat_call
from evergreen.serve.schemas import (
    MAX_TOP_LOGPROBS,
    AllowedChoice,
    AllowedTools,
    ApiError,
    Body,
    ChatMessage,
    ChatRequest,
    ChosenFunction,
    ChosenTool,
    Function,
    JsonSchema,
    Metadata,
    Name,
    Nothing,
    PromptCacheOptions,
    ResponseFormat,
    SamplingBody,
    Tool,
    refusal,
)

LOGPROBS = "message.output_text.logprobs"
MAX_TOOLS = 128
NOT_A_CHATS = ("type", "allowed_callers", "defer_loading")  # of a function tool
WORDS = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
}  # a chat's field -> what it is here


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]  # all but the first ask for more of what is never in an answer here


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None


class Namespace(Body):
    """Functions that belong together: offered like any others, and a call to one says where it belongs."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)]


def kind_of_tool(tool: Any) -> str:
    return "namespace" if isinstance(tool, Namespace) or _type(tool) == "namespace" else "function"


def _type(tool: Any) -> Any:
    return tool.get("type") if isinstance(tool, dict) else None


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[Namespace, Tag("namespace")], Discriminator(kind_of_tool)
]


class FunctionChoice(Body):
    type: Literal["function"]
    name: str


class AllowedFunctions(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1)]


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None  # there is none: thoughts are shown as they are
    generate_summary: Literal["auto"] | None = None


class ResponsesRequest(SamplingBody):
    """POST /v1/responses."""

    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedFunctions | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # of calls that a server makes by itself
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None  # a client's own notes: the log keeps them

    n: Literal[1] | None = None
    access_programs: None = None
    background: Literal[False] | None = None
    background_options: None = None
    context_management: Nothing = None
    conversation: None = None
    image: None = None
    max_tokens: None = None
    moderation: None = None
    prompt: None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None
    response_format: None = None
    service_tier: Literal["auto", "default"] | None = None

    _num_before: int = PrivateAttr(0)  # items of the conversation that it goes on from, ahead of its own
    _was_text: bool = PrivateAttr(False)  # whether its own was one text

    def after(self, items: "Sequence[Item]") -> "ResponsesRequest":
        """The same, going on from `items`."""
        after = self.model_copy(update={"input": [*items, *items_of(self)]})
        after._num_before, after._was_text = len(items), isinstance(self.input, str)
        return after

    def place_of(self, i: int) -> str:
        """What a client calls item i."""
        if i < self._num_before:
            return "previous_response_id"
        is_text = self._was_text or isinstance(self.input, str)
        return "input" if is_text else f"input[{i - self._num_before}]"

    def functions(self) -> "list[FunctionTool]":
        return [
            one for tool in self.tools or () for one in (_of_namespace(tool) if isinstance(tool, Namespace) else [tool])
        ]


def response_call(body: ResponsesRequest, defaults: Mapping[str, Any] | None = None) -> Call:
    """As protocol.chat_call. Raises ApiError."""
    turns = turns_of(body)
    with in_its_words(turns):
        call = chat_call(_chat(body, turns), defaults)
    may_trim = None if body.truncation is None else body.truncation == "auto"
    return replace(call, kind="response", may_trim=may_trim, repeated=_repeated(body, call.sampling))


def chat_of(body: ResponsesRequest) -> ChatRequest:
    """The body as one for chat completions."""
    return _chat(body, turns_of(body))


@contextlib.contextmanager
def in_its_words(turns: Sequence[Turn] = ()) -> Iterator[None]:
    """What a chat is refused for, said of items and of this body's fields."""

    def item(found: re.Match) -> str:
        turn, call = turns[int(found[1])], found[2]
        return turn.call_places[int(call)] if call else turn.place

    def said(text: str) -> str:
        if turns:
            text = re.sub(r"\bmessages\[(\d+)\](?:\.tool_calls\[(\d+)\]\.function|\.tool_calls)?", item, text)
        text = re.sub(rf"\b({'|'.join(map(re.escape, WORDS))})\b", lambda found: WORDS[found[1]], text)
        return text.replace("].tool_call_id", "].call_id")

    try:
        yield
    except ApiError as error:
        error.param = error.param and said(error.param)
        error.message = re.sub("`[^`]*`", lambda found: said(found[0]), error.message)
        raise


def _chat(body: ResponsesRequest, turns: Sequence[Turn]) -> ChatRequest:
    shared = {name: getattr(body, name) for name in SamplingBody.model_fields}
    wants_logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    functions = body.functions()
    if len(functions) > MAX_TOOLS:
        raise refusal(f"`tools` holds more than {MAX_TOOLS} functions", "tools")
    return ChatRequest.model_construct(
        **shared | {"response_format": _format(body)},
        messages=[turn.message for turn in turns],
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs,
        tools=[Tool(type="function", function=Function(**_given(tool, *NOT_A_CHATS))) for tool in functions],
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        metadata=body.metadata,
        safety_identifier=body.safety_identifier,
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
    )


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    form = body.text.format if body.text else None
    if form is None:
        return None
    if form.type != "json_schema" and (extra := next(iter(_given(form, "type")), None)):
        raise refusal(f"`text.format.{extra}` stands with type json_schema", f"text.format.{extra}")
    if form.type != "json_schema":
        return ResponseFormat(type=form.type)
    if missing := next((name for name in ("name", "schema") if name not in _given(form)), None):
        raise missing_field(f"text.format.{missing}")
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(**_given(form, "type")))


def _choice(body: ResponsesRequest) -> str | ChosenTool | AllowedChoice | None:
    chosen = body.tool_choice
    if isinstance(chosen, FunctionChoice):
        return _chosen(chosen)
    if isinstance(chosen, AllowedFunctions):
        allowed = AllowedTools(mode=chosen.mode, tools=[_chosen(one) for one in chosen.tools])
        return AllowedChoice(type="allowed_tools", allowed_tools=allowed)
    return chosen


def _chosen(one: FunctionChoice) -> ChosenTool:
    return ChosenTool(type="function", function=ChosenFunction(name=one.name))


def _given(body: Body, *but: str) -> dict[str, Any]:
    return body.model_dump(by_alias=True, exclude_none=True, exclude=set(but))


def _repeated(body: ResponsesRequest, sampling: Sampling) -> dict[str, Any]:
    """The fields of a response that say again how it was asked for."""
    form = _given(body.text) if body.text else {}
    tools = [_repeated_tool(tool) for tool in body.tools or ()]
    chosen = body.tool_choice
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}} | form,
        "tool_choice": _given(chosen) if isinstance(chosen, Body) else chosen or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _repeated_tool(tool: FunctionTool | Namespace) -> dict[str, Any]:
    if isinstance(tool, Namespace):
        return {"description": "", **_given(tool), "tools": [_repeated_tool(one) for one in tool.tools]}
    return {"description": None, "parameters": None, "strict": False, **_given(tool)}


def _of_namespace(space: Namespace) -> list[FunctionTool]:
    """Its functions, which say what all of them are for."""
    return [
        one.model_copy(update={"description": "\n".join(filter(None, (space.description, one.description))) or None})
        for one in space.tools
    ]


def items_of(body: ResponsesRequest) -> list[Item]:
    return [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input


def turns_of(body: ResponsesRequest) -> list[Turn]:
    """The chat's messages. Raises ApiError for an item that is not one of its type."""
    said = (
        []
        if body.instructions is None
        else [Turn(ChatMessage(role="system", content=body.instructions), "instructions", [])]
    )
    turns = [*said, *turns_from(items_of(body), body.place_of)]
    if not turns:
        raise refusal("`input` is empty", "input")
    return turns
