"""The body of OpenAI's Responses API, and the chat that it comes to.

Promises: a body means what the chat of the same messages, tools and sampling means: there is one way of answering. What
is refused is refused in this body's words. Items that a response has had may be sent back as they are; of reasoning the
text goes to the model, as far as its template takes thoughts, and what another server has encrypted is passed over.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from evergreen.records import Sampling
from evergreen.serve.call import Call
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
    FunctionCall,
    JsonSchema,
    Metadata,
    Name,
    Nothing,
    PromptCacheOptions,
    ResponseFormat,
    SamplingBody,
    Text,
    Tool,
    ToolCall,
    refusal,
)

LOGPROBS = "message.output_text.logprobs"
FORMS = {
    "message": (("role", "content"), ("phase",)),
    "function_call": (("call_id", "name", "arguments"), ()),
    "function_call_output": (("call_id", "output"), ("name",)),
    "reasoning": ((), ("summary", "content", "encrypted_content")),
}  # what an item of a type has to have, and may have
ANY_ITEM = {"type", "id", "status"}
WORDS = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
}  # a chat's field -> what it is here


class Part(Body):
    """Text of an item. The fields after `text` are those that an answer has, and a hint."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Item(Body):
    """An item of any type; FORMS says which fields stand with which."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None  # a message needs none
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: Text | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


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
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedFunctions | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # of calls that a server makes by itself
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

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


@dataclass
class Turn:
    """A chat's message, and which items it comes from: the first, and that of each of its calls."""

    message: ChatMessage
    place: str
    call_places: list[str]


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
    return ChatRequest.model_construct(
        **shared | {"response_format": _format(body)},
        messages=[turn.message for turn in turns],
        max_completion_tokens=body.max_output_tokens,
        logprobs=wants_logprobs,
        top_logprobs=body.top_logprobs,
        tools=[Tool(type="function", function=Function(**_given(tool, "type"))) for tool in body.tools or ()],
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
    tools = [{"description": None, "parameters": None, "strict": False, **_given(tool)} for tool in body.tools or ()]
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


# items


def items_of(body: ResponsesRequest) -> list[Item]:
    return [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input


def turns_of(body: ResponsesRequest) -> list[Turn]:
    """The chat's messages. Calls join the assistant's message before them, and a text the calls before it: one response
    gives both. Raises ApiError for an item that is not one of its type."""
    turns, thought = [], ""
    if body.instructions is not None:
        turns.append(Turn(ChatMessage(role="system", content=body.instructions), "instructions", []))
    for i, item in enumerate(items_of(body)):
        place = f"input[{i}]" if isinstance(body.input, list) else "input"
        kind = _checked(item, place)
        if kind == "reasoning":
            thought += _text(item.content or (), "")
        elif kind == "function_call" or item.role == "assistant":
            _say(turns, item, place, thought)
            thought = ""
        else:
            turns.append(Turn(_heard(item), place, []))
            thought = ""
    if not turns:
        raise refusal("`input` is empty", "input")
    _check_calls(turns)
    return turns


def _check_calls(turns: Sequence[Turn]) -> None:
    called: set[str] = set()
    for turn in turns:
        called |= {call.id for call in turn.message.tool_calls or ()}
        if (id := turn.message.tool_call_id) and id not in called:
            raise refusal(f"`{turn.place}.call_id`: no function_call before it has the id {id[:80]!r}",
                          f"{turn.place}.call_id")  # fmt: skip


def _say(turns: list[Turn], item: Item, place: str, thought: str) -> None:
    """An item of the assistant's, as part of the last turn or as the next."""
    last = turns[-1].message if turns else None
    is_open = last is not None and last.role == "assistant"
    if not is_open or (item.type != "function_call" and last.content is not None):
        turns.append(Turn(ChatMessage(role="assistant"), place, []))
    turn, message = turns[-1], turns[-1].message
    message.reasoning_content = (message.reasoning_content or "") + thought or None
    if item.type == "function_call":
        call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments))
        message.tool_calls = [*(message.tool_calls or ()), call]
        turn.call_places.append(place)
    else:
        message.content = _text(item.content)


def _heard(item: Item) -> ChatMessage:
    if item.type == "function_call_output":
        return ChatMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id, name=item.name)
    return ChatMessage(role=item.role, content=_text(item.content))


def _text(content: str | Sequence[Part], between: str = "\n") -> str:
    return content if isinstance(content, str) else between.join(part.text for part in content)


def _checked(item: Item, place: str) -> str:
    """The item's type, whose fields it has."""
    kind = item.type or ("message" if item.role else "")
    if not kind:
        raise missing_field(f"{place}.type")
    needed, more = FORMS[kind]
    given = [name for name in Item.model_fields if getattr(item, name) is not None]
    if missing := next((name for name in needed if name not in given), None):
        raise missing_field(f"{place}.{missing}")
    if extra := next((name for name in given if name not in {*ANY_ITEM, *needed, *more}), None):
        raise refusal(f"`{place}.{extra}` does not belong to an item of type {kind}", f"{place}.{extra}")
    return kind


def missing_field(param: str) -> ApiError:
    return refusal(f"`{param}` is required", param, "missing_required_parameter")
