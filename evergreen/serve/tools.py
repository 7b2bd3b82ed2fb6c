"""Tool calls in the Hermes format that Qwen models write, told apart from text while an answer grows.

    <tool_call>
    {"name": "weather", "arguments": {"city": "北京"}}
    </tool_call>

Promises: what comes out, text and arguments joined, is the same however the answer is cut into pieces; text never ends
in a part of a mark; what does not begin as a call stays the text that it is. A call that the answer ends in counts
without its closing mark: a grammar or a stop string may have ended it there. White space around calls belongs to the
format, not to the text.
Does not: vouch for arguments. Once a name and the brace of its arguments are there they are given out as they come, so
an answer that is cut off has a call that is cut off, and a model that writes no JSON is passed on, as OpenAI does. A
grammar (tool_choice) prevents the latter. Calls written in another order come out whole, if they are good.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FORCED_START = f"{OPEN}\n"  # stands in the prompt when the answer has to be a call
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
END = re.compile(rf"\s*\}}?\s*(?:{CLOSE})?")


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is a JSON object as text: all of it, or "" where `Arguments` follow."""

    name: str
    arguments: str = ""


class Arguments(str):
    """More of the arguments of the call before."""


Part = str | ToolCall | Arguments


class ToolParser:
    """`feed` it an answer piece by piece, then `close` it. `in_call`: the prompt ends in FORCED_START."""

    def __init__(self, in_call: bool = False):
        self._in_call, self._after_call = in_call, False
        self._scan: _Scan | None = None  # while arguments are given out
        self._is_ending = False  # they have been, and the braces and the mark after them are to come
        self._mark = ""  # what a bad call began with: white space and the mark
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        """What `text` settles, in order."""
        self._held += text
        return self._settle()

    def close(self) -> list[Part]:
        """What is left when no more text comes."""
        parts = self._settle(is_end=True)
        rest, self._held = self._held, ""
        return _joined([*parts, rest])

    def _settle(self, is_end: bool = False) -> list[Part]:
        parts: list[Part] = []
        while (part := self._next(is_end)) is not None:
            parts.append(part)
        return _joined(parts)

    def _next(self, is_end: bool) -> Part | None:
        if self._scan:
            return self._read_arguments(is_end)
        if self._is_ending:
            return self._read_end(is_end)
        return self._read_call(is_end) if self._in_call else self._read_text()

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
        """The name of a call whose arguments begin; else the call up to the next closing mark that does not stand in a
        string of its JSON; the mark alone, as text, where there is none to be read; None when more text may bring
        one."""
        head = HEAD.match(self._held)
        if head and (name := _name(head[1])) is not None:
            self._held, self._in_call, self._scan = self._held[head.end() :], False, _Scan()
            return ToolCall(name)
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

    def _read_arguments(self, is_end: bool) -> Arguments | None:
        """As much of the arguments as is here; a closing mark outside of their strings ends them too."""
        shown, num_read = self._scan.read(self._held, is_end)
        self._held = self._held[num_read:]
        if self._scan.is_over:
            self._scan, self._is_ending = None, True
        return Arguments(shown) if shown or self._is_ending else None

    def _read_end(self, is_end: bool) -> str | None:
        """Nothing, once the call's brace and closing mark have been passed over, as far as they are there."""
        end = END.match(self._held).end()
        rest = self._held[end:]
        if not is_end and not self._held[:end].endswith(CLOSE) and CLOSE.startswith(rest):
            return None
        self._held, self._is_ending, self._after_call = rest, False, True
        return ""


class _Scan:
    """Finds the end of a JSON object piece by piece, by its braces and strings alone."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth, self._in_string, self._is_escaped = 0, False, False

    def read(self, text: str, is_end: bool) -> tuple[str, int]:
        """What of `text` belongs to the object, control characters in strings escaped, and how much was read."""
        shown: list[str] = []
        for place, character in enumerate(text):
            if character == "<" and not self._in_string:
                rest = text[place : place + len(CLOSE)]
                self.is_over = rest == CLOSE
                if self.is_over or (CLOSE.startswith(rest) and not is_end):
                    return "".join(shown), place
            is_control = self._in_string and character < " "
            shown.append(json.dumps(character)[1:-1] if is_control else character)
            self._step(character)
            if not self._depth:
                self.is_over = True
                return "".join(shown), place + 1
        return "".join(shown), len(text)

    def _step(self, character: str) -> None:
        if self._in_string:
            self._in_string = character != '"' or self._is_escaped
            self._is_escaped = character == "\\" and not self._is_escaped
        elif character == '"':
            self._in_string = True
        else:
            self._depth += (character in "{[") - (character in "}]")


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


def _name(text: str) -> str | None:
    """The string that `text` is in JSON, or None where it is none that can be sent on."""
    try:
        name = json.loads(text, strict=False)
        name.encode()
    except ValueError:
        return None
    return name


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


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts and neighbouring arguments as one, empty ones left out."""
    joined: list[Part] = []
    for part in parts:
        if part and joined and isinstance(part, str) and type(part) is type(joined[-1]):
            joined[-1] = type(part)(joined[-1] + part)
        elif part:
            joined.append(part)
    return joined
