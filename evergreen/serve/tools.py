"""Tool calls in the Hermes format that Qwen models write, told apart from text while an answer grows.

    <tool_call>
    {"name": "weather", "arguments": {"city": "北京"}}
    </tool_call>

Promises: what comes out, text joined, is the same however the answer is cut into pieces; text never ends in a part of a
mark; a call is given out whole, once its JSON is known to be good, and what is not a good call stays the text that it
is. A call that the answer ends in counts without its closing mark: a grammar or a stop string may have ended it there.
White space around calls belongs to the format, not to the text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FORCED_START = f"{OPEN}\n"  # stands in the prompt when the answer has to be a call


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is a JSON object as text."""

    name: str
    arguments: str


class ToolParser:
    """`feed` it an answer piece by piece, then `close` it. `in_call`: the prompt ends in FORCED_START."""

    def __init__(self, in_call: bool = False):
        self._in_call, self._after_call = in_call, False
        self._mark = ""  # what a bad call began with: white space and the mark
        self._held = ""

    def feed(self, text: str) -> list[str | ToolCall]:
        """What `text` settles, in order."""
        self._held += text
        return self._settle()

    def close(self) -> list[str | ToolCall]:
        """What is left when no more text comes."""
        parts = self._settle(is_end=True)
        rest, self._held = self._held, ""
        return _joined([*parts, rest])

    def _settle(self, is_end: bool = False) -> list[str | ToolCall]:
        parts: list[str | ToolCall] = []
        while (part := self._read_call(is_end) if self._in_call else self._read_text()) is not None:
            parts.append(part)
        return _joined(parts)

    def _read_text(self) -> str | None:
        """The text before the next mark, or as much of it as cannot belong to one; None when that is nothing."""
        if self._after_call:
            self._held = self._held.lstrip()
            self._after_call = not self._held
        text, mark, rest = self._held.partition(OPEN)
        if not mark:
            text = text[: len(text) - _overlap(text)]
        shown = text.rstrip()
        if mark:
            self._in_call, self._mark, self._held = True, text[len(shown) :] + mark, rest
            return shown
        self._held = self._held[len(shown) :]
        return shown or None

    def _read_call(self, is_end: bool) -> str | ToolCall | None:
        """The call up to the next closing mark that does not stand in a string of its JSON; the mark alone, as text,
        where there is none to be read; None when more text may bring one."""
        end = self._held.find(CLOSE)
        while end >= 0 and not (call := _read(self._held[:end])) and _is_in_string(self._held[:end]):
            end = self._held.find(CLOSE, end + 1)
        if end < 0 and not is_end:
            return None
        if end < 0:
            call = _read(self._held)
        self._in_call = False
        if not call:
            return self._mark
        self._held = self._held[end + len(CLOSE) :] if end >= 0 else ""
        self._after_call = True
        return call


def call_schema(tools: Sequence[dict]) -> dict:
    """What the JSON of a call to one of `tools` (OpenAI's function objects) has to match."""
    calls = []
    for i, tool in enumerate(tools):
        place = f"#/anyOf/{i}/properties/arguments"
        arguments = _moved(tool.get("parameters") or {"type": "object"}, place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": calls}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself hold when it stands at `place` of another."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    moved = {key: _moved(value, place) for key, value in schema.items()}
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _read(text: str) -> ToolCall | None:
    """The call that `text` is, or None."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse)
        if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
            return None
        name, arguments = value["name"], json.dumps(value["arguments"], ensure_ascii=False, allow_nan=False)
        f"{name}{arguments}".encode()  # half a surrogate pair is JSON and not text
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, arguments) if isinstance(name, str) and isinstance(value["arguments"], dict) else None


def _is_in_string(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return False


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _overlap(text: str) -> int:
    """Length of the longest end of `text` that could be the start of a mark."""
    return max((size for size in range(1, len(OPEN)) if text.endswith(OPEN[:size])), default=0)


def _joined(parts: Sequence[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one, empty ones left out."""
    joined: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined
