"""One turn of a dialogue as a Message, in sharegpt's words (from, value) or OpenAI's (role, content).

Tool calls become {"name", "arguments": object}, tools become OpenAI's {"type": "function", "function": {...}}, whether
they were written as objects or as JSON in a text. `<think>...</think>` at the head of an assistant's text is a thought.
"""

import json
import re
from dataclasses import replace
from typing import Any

from evergreen.data.files import RowError, shown
from evergreen.records import Message

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
}
THOUGHTS = ("reasoning", "reasoning_content", "thought")
THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")


def turns_if_any(value: Any, where: str) -> list[Message] | None:
    """Turns from a list, a turn, or a table's cell that holds them as JSON; None for ordinary text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return None
        turns = parsed if isinstance(parsed, list) else [parsed]
        return read_turns(turns, where) if turns and all(map(_is_turn, turns)) else None
    if isinstance(value, dict):
        value = [value]
    return read_turns(value, where) if isinstance(value, list) else None


def _is_turn(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and ({"role", "content"} <= set(value) or set(value) == {"from", "value"})
        and str(value.get("role", value.get("from"))) in ROLES
    )


def read_turns(value: Any, where: str) -> list[Message]:
    return [_turn(turn, f'turn {number} of "{where}"') for number, turn in enumerate(read_list(value, where), 1)]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{where} wants an object with role and content (or from and value), got {shown(turn)}")
    word = turn.get("role") if turn.get("role") is not None else turn.get("from")
    role = ROLES.get(word.strip().lower()) if isinstance(word, str) else None
    if role is None:
        raise RowError(
            f"{where} wants the role user, assistant, system or tool (or human, gpt, function_call, "
            f"observation), got {shown(word)}",
            "unknown_role",
        )
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if role == "call":
        return _call_turn(content, where)
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    text = _content(content, where)
    if role != "assistant":
        return Message(role, text)
    message = split_thought(text)
    thought = next((turn[key] for key in THOUGHTS if turn.get(key)), "")
    message = with_thought(message, read_text(thought, f"the reasoning of {where}")) if thought else message
    calls = turn.get("tool_calls") or turn.get("function_call")
    return replace(message, tool_calls=_calls(calls, where) if calls else (), trained=_is_trained(turn, where))


def _content(value: Any, where: str) -> str:
    """Text, or OpenAI's list of text parts joined."""
    if not isinstance(value, list):
        return read_text(value, where)
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url", "input_image", "video", "audio", "input_audio"):
            raise RowError(f"{where} holds images, audio or video, which text training cannot use: leave the row out")
        if kind != "text":
            raise RowError(f"{where} wants text or a list of {{type: text, text: ...}}, got {shown(part)}")
        texts.append(read_text(part.get("text") if part.get("text") is not None else part.get("value"), where))
    return "".join(texts)


def _is_trained(turn: dict, where: str) -> bool:
    """OpenAI's `weight`, ms-swift's `loss`, LLaMA-Factory's `loss_weight`: 0 and false make a turn context."""
    value = next((turn[key] for key in ("weight", "loss", "loss_weight") if turn.get(key) is not None), 1)
    if value not in (0, 1):
        raise RowError(f"the weight of {where} wants 0 or 1, got {shown(value)}")
    return bool(value)


def split_thought(text: str) -> Message:
    """An assistant's turn, with what stands between <think> and </think> at its head as the thought."""
    match = THINK.match(text)
    return Message("assistant", text[match.end() :], match[1].strip()) if match else Message("assistant", text)


def with_thought(message: Message, thought: str) -> Message:
    if message.thought and message.thought != thought.strip():
        raise RowError("has two thoughts for one answer, a <think> block and a reasoning column: keep one")
    return replace(message, thought=thought.strip())


# Tools


def _call_turn(content: Any, where: str) -> Message:
    if not isinstance(content, str):
        return Message("assistant", tool_calls=_calls(content, where))
    message = split_thought(content)
    return replace(message, content="", tool_calls=_calls(message.content, where))


def _calls(value: Any, where: str) -> tuple[dict, ...]:
    """{"name", "arguments": object} for each call, from OpenAI's nesting or from JSON text."""
    value = _unpacked(value, f"the call in {where}")
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = _unpacked(call, f"the call in {where}")
        call = call.get("function", call) if isinstance(call, dict) and isinstance(call.get("function"), dict) else call
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise RowError(f'the call in {where} wants {{"name": ..., "arguments": {{...}}}}, got {shown(call)}')
        arguments = call.get("arguments") if call.get("arguments") is not None else call.get("parameters")
        arguments = _unpacked(arguments or {}, f"the arguments of the call in {where}")
        if not isinstance(arguments, dict):
            raise RowError(f"the arguments of the call in {where} want an object, got {shown(arguments)}")
        calls.append({"name": call["name"], "arguments": arguments})
    return tuple(calls)


def read_tools(value: Any) -> tuple[dict, ...]:
    """Tools as OpenAI nests them, {"type": "function", "function": {...}}, whatever way they were written."""
    value = _unpacked(value or [], '"tools"')
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        tool = _unpacked(tool, '"tools"')
        if not isinstance(tool, dict):
            raise RowError(f'"tools" wants a list of objects, got {shown(tool)}')
        tools.append(tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool})
    return tuple(tools)


def _unpacked(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError):
        raise RowError(f"{where} wants JSON, got {shown(value)}") from None


# Values


def read_text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{where} wants text, got {shown(value)}")
    if not value.isascii() and HALF_A_CHARACTER.search(value):
        raise RowError(f"{where} holds half of a character (an unpaired \\ud8.. escape): write the character itself")
    return value


def read_list(value: Any, where: str) -> list:
    """A list, also when a table's cell holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise RowError(f'"{where}" wants a list, got {shown(value)}') from None
    if not isinstance(value, list):
        raise RowError(f'"{where}" wants a list, got {shown(value)}')
    return value
