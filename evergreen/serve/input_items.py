"""The items of OpenAI's Responses API that a client sends, and the turns of a chat that they come to.

Promises: items that a response has had may be sent back as they are, in their order; one that is not of its type is
refused by its place. Of reasoning the text is taken, what another server has encrypted is passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evergreen.serve.schemas import ApiError, Body, ChatMessage, FunctionCall, Text, ToolCall, refusal

FORMS = {
    "message": (("role", "content"), ("phase",)),
    "function_call": (("call_id", "name", "arguments"), ("namespace",)),
    "function_call_output": (("call_id", "output"), ("name", "namespace")),
    "reasoning": ((), ("summary", "content", "encrypted_content")),
    "item_reference": (("id",), ()),
}  # what an item of a type has to have, and may have
ANY_ITEM = {"type", "id", "status"}


class Part(Body):
    """Text of an item. The fields after `text` are those that an answer has, and a hint."""

    type: Literal["input_text", "output_text", "reasoning_text", "summary_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class Item(Body):
    """An item of any type; FORMS says which fields stand with which."""

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: Text | None = None
    name: str | None = None  # as the model wrote it
    namespace: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None
    encrypted_content: str | None = None


@dataclass
class Turn:
    """A chat's message, and which items it comes from: the first, and that of each of its calls."""

    message: ChatMessage
    place: str
    call_places: list[str]


def turns_from(items: Sequence[Item], place_of: Callable[[int], str]) -> list[Turn]:
    """The messages of a chat. Calls join the assistant's message before them, and a text the calls before it: one
    response gives both. `place_of` is what a client calls an item. Raises ApiError for one that is not of its type."""
    turns, thought = [], ""
    for i, item in enumerate(items):
        place = place_of(i)
        kind = _checked(item, place)
        if kind == "item_reference":
            raise refusal(f"`{place}.id`: no item with the id {item.id[:80]!r} is kept", f"{place}.id")
        if kind == "reasoning":
            thought += _text(item.content or (), "")
        elif kind == "function_call" or item.role == "assistant":
            _say(turns, item, place, thought)
            thought = ""
        else:
            turns.append(Turn(_heard(item), place, []))
            thought = ""
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
        message.tool_calls = message.tool_calls or []
        message.tool_calls.append(call)
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
    kind, given = kind_of(item), [name for name in Item.model_fields if getattr(item, name) is not None]
    if not kind:
        raise missing_field(f"{place}.type")
    needed, more = FORMS[kind]
    if missing := next((name for name in needed if name not in given), None):
        raise missing_field(f"{place}.{missing}")
    if extra := next((name for name in given if name not in {*ANY_ITEM, *needed, *more}), None):
        raise refusal(f"`{place}.{extra}` does not belong to an item of type {kind}", f"{place}.{extra}")
    return kind


def kind_of(item: Item) -> str:
    """An item's type, which a message and a reference need not say; "" where it is neither."""
    return item.type or ("message" if item.role else "item_reference" if item.model_fields_set == {"id"} else "")


def missing_field(param: str) -> ApiError:
    return refusal(f"`{param}` is required", param, "missing_required_parameter")
