"""What a client says, as the token ids of a prompt.

Promises: in a chat, special tokens that a client writes are characters and never control tokens, so nobody opens a
system turn from inside a message; results of tools stand in the order of their calls, whatever order they came in.
In plain prompts special tokens are tokens: there the client writes the whole prompt.
"""

import inspect
import json
import re
import secrets
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from evergreen.model import template
from evergreen.records import BadInput, Message
from evergreen.serve.schemas import ChatMessage, refusal
from evergreen.serve.tools import OPEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
RESULT_MARKS = {"<tool_response>", "</tool_response>"}  # not special to the tokenizer, and as good as a role


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """OpenAI's messages as records. Raises ApiError for what does not belong to a role, and for calls without results
    or results without calls."""
    named = _named(messages)
    checked = [_message(message, f"messages[{i}]", named) for i, message in enumerate(messages)]
    ordered, i = [], 0
    while i < len(messages):
        end = i + 1
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        _check_results(messages, i, end)
        places = {call.id: place for place, call in enumerate(messages[i].tool_calls or ())}
        results = sorted(range(i + 1, end), key=lambda place: places[messages[place].tool_call_id])
        ordered += [checked[i], *(checked[place] for place in results)]
        i = end
    return tuple(ordered)


def _named(messages: Sequence[ChatMessage]) -> set[str]:
    """The roles in which several speak, who are told apart by name."""
    speakers = {(message.role, message.name or "") for message in messages if message.role != "tool"}
    return {role for role, count in Counter(role for role, _ in speakers).items() if count > 1}


def _message(message: ChatMessage, where: str, named: Container[str]) -> Message:
    role, thought = message.role, message.reasoning_content or message.reasoning or ""
    for field, owner in (
        ("tool_calls", "assistant"),
        ("reasoning_content", "assistant"),
        ("reasoning", "assistant"),
        ("tool_call_id", "tool"),
    ):
        if getattr(message, field) and role != owner:
            raise refusal(f"`{where}.{field}` belongs to the role {owner}, not {role}", f"{where}.{field}")
    if message.content is None and role != "assistant":
        raise refusal(f"`{where}.content` is required", f"{where}.content", "missing_required_parameter")
    content = message.content or ""
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    if message.name and role in named and content:  # chat templates have no place for names
        content = f"{message.name}: {content}"
    calls = tuple(
        {"name": call.function.name, "arguments": _arguments(call.function.arguments)}
        for call in message.tool_calls or ()
    )
    return Message("system" if role == "developer" else role, content, thought, calls)


def _arguments(text: str) -> dict | str:
    """As an object. What is none (a model's call that was cut off, and is sent back) goes to the template as text."""
    try:
        arguments = json.loads(text or "{}")
        from_json(text or "{}")  # that takes no half characters and nothing nested too deeply for a template
    except (ValueError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text


def _check_results(messages: Sequence[ChatMessage], first: int, end: int) -> None:
    """messages[first] with the results [first + 1, end) that follow it: one for each of its calls, named right."""
    names = {call.id: call.function.name for call in messages[first].tool_calls or ()}
    if len(names) < len(messages[first].tool_calls or ()):
        raise refusal("two tool calls have the same id", f"messages[{first}].tool_calls")
    if messages[first].role == "tool":
        raise refusal("a tool's message has to follow an assistant's tool calls", f"messages[{first}].role")
    open_calls = dict(names)
    for place in range(first + 1, end):
        id, name = messages[place].tool_call_id, messages[place].name
        if open_calls.pop(id, None) is None:
            raise refusal(f"{id!r} is not the id of an open tool call before it", f"messages[{place}].tool_call_id")
        if name and name != names[id]:
            raise refusal(f"the call {id!r} is to {names[id]!r}, not {name[:64]!r}", f"messages[{place}].name")
    if open_calls:
        raise refusal(
            f"the tool call {next(iter(open_calls))!r} has no result in the messages after it",
            f"messages[{first}].tool_calls",
        )


def chat_ids(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[dict] = (),
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
    answer_next: bool = True,
) -> list[int]:
    """Ids of a conversation up to where the answer begins. `variables` are for the template. Raises ApiError."""
    _check_variables(variables or {}, tokenizer)
    if tools and OPEN not in (tokenizer.chat_template or ""):
        raise refusal(f"this model's chat template does not know tools in the {OPEN} format", "tools")
    nonce, marks = secrets.token_hex(8), _marks(tokenizer)
    numbers = {mark: number for number, mark in enumerate(marks)}
    pattern = re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def hidden(value: Any) -> Any:
        """Text with each mark replaced by a word that no client can guess; into objects too."""
        if isinstance(value, str):
            return pattern.sub(lambda found: f"{nonce}x{numbers[found[0]]}x", value)
        if isinstance(value, dict):
            return {hidden(key): hidden(inner) for key, inner in value.items()}
        return [hidden(inner) for inner in value] if isinstance(value, list) else value

    said = [
        replace(
            message,
            content=hidden(message.content),
            thought=hidden(message.thought),
            tool_calls=tuple(map(hidden, message.tool_calls)),
        )
        for message in messages
    ]
    try:
        text = template.render(said, tokenizer, hidden(list(tools)), system, answer_next, hidden(dict(variables or {})))
    except BadInput as error:
        raise refusal(str(error), "messages") from None
    ids: list[int] = []
    for place, piece in enumerate(re.split(f"{nonce}x([0-9]+)x", text)):
        for part in (marks[int(piece)][:1], marks[int(piece)][1:]) if place % 2 else (piece,):
            ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


@lru_cache(maxsize=16)
def _marks(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What the tokenizer would read as control tokens, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or token.content in RESULT_MARKS}
    return sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)


def _check_variables(variables: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> None:
    """A variable that the template does not use would be ignored; one of the rendering itself would be a hole."""
    taken = {"messages", "raise_exception", "strftime_now", *tokenizer.special_tokens_map}
    taken |= set(inspect.signature(tokenizer.apply_chat_template).parameters)
    for name in variables:
        is_known = re.search(rf"\b{re.escape(name)}\b", tokenizer.chat_template or "")
        if name in taken or not (is_known or variables[name] in (None, False, "")):
            place = name if name == "reasoning_effort" else "chat_template_kwargs"
            raise refusal(f"`{place}`: the model's chat template has no variable {name[:64]!r}", place)


def text_ids(text: str, tokenizer: "PreTrainedTokenizerBase", add_special_tokens: bool, as_chat: bool) -> list[int]:
    """Ids of a prompt in which special tokens are tokens. `as_chat`: a ChatML prompt that ends with the end of a turn
    gets the header of the assistant's."""
    if as_chat and TURN_START in text and text.rstrip("\n").endswith(TURN_END):
        text = f"{text.rstrip(chr(10))}\n{TURN_START}assistant\n"
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens and not begins)
