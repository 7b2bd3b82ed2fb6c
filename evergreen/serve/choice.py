"""One choice of an answer while it grows: text, thought, tool calls, log-probabilities, how it ended.

Promises: the parts that stream, joined, are what `whole` gives.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from evergreen.engine.answer import CLOSE as CLOSE_THOUGHT
from evergreen.engine.answer import OPEN as OPEN_THOUGHT
from evergreen.engine.answer import Piece
from evergreen.engine.base import Output, TokenLogprobs
from evergreen.records import Completion
from evergreen.serve.call import Call
from evergreen.serve.logprobs import chat_logprobs, completion_logprobs
from evergreen.serve.schemas import ApiError
from evergreen.serve.tools import Arguments, Part, ToolParser

NOT_FINISHED = {"finish_reason": None}


class Choice:
    """One choice while its outputs arrive. `prompt` is shown before its text (echo)."""

    def __init__(self, call: Call, index: int, prompt: str = ""):
        self.index, self.completion = index, None
        self._call, self._prompt = call, prompt
        self._offset = len(prompt) if call.sampling.prompt_logprobs is None else 0  # of the first logprob's token
        self._parser = ToolParser(in_call=call.must_call) if call.tools else None
        self.thought, self.said = "", []
        self._tool_calls: list[dict] = []
        self._logprobs: list[TokenLogprobs] = []
        self._starts: list[int] = []  # where in them the text or call at this place of `said` begins
        self._num_logprobs_before = 0  # the output that is being added
        self._num_logprobs_sent = 0
        self._num_tokens, self._num_before_text = 0, None
        self._is_begun = False

    completion: Completion | None
    said: list[str | dict]  # texts and tool calls, in order
    _num_before_text: int | None  # tokens of the thought, known when the text begins

    def add(self, output: Output) -> list[dict]:
        """What `output` adds, as entries of a chunk's `choices`. Raises ApiError where the engine gave up."""
        if output.error:
            raise ApiError(500, output.error, "server_error")
        self._num_logprobs_before = len(self._logprobs)
        self._logprobs += output.prompt_logprobs + output.logprobs
        if output.prompt_logprobs and not (output.token_ids or output.completion):
            return []
        contents = [] if self._is_begun or not self._prompt else self._said(self._prompt)
        for piece in output.pieces:
            contents += self._thought_of(piece) if piece.is_thought else self._text_of(piece)
        self._num_tokens += len(output.token_ids)
        self.completion = output.completion
        if self.completion and self._parser:
            contents += self._parsed(self._parser.close())
        parts = [self._part(content) for content in contents]
        return [*parts, self._part(self._empty, self._finish)] if self.completion else parts

    def whole(self) -> dict:
        """The entry of a response's `choices`, once the last output has come."""
        logprobs = self._shaped(self._logprobs, self._offset)
        end = {"index": self.index, "logprobs": logprobs, **self._finish}
        if not self._call.is_chat:
            return {"text": self._text, **end}
        message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None}
        if self._tool_calls:
            message |= {"content": self._text or None, "tool_calls": self._tool_calls}
        if self.thought:
            message["reasoning_content"] = self.thought
        return {"message": message, **end}

    def logprobs_of(self, place: int) -> list[dict]:
        """Those of the tokens of the text at this place of `said`, as a chat has them; none where nobody asked."""
        start, *rest = self._starts[place:] or [0]
        tokens = self._logprobs[start : rest[0] if rest else None]
        return (self._shaped(tokens, 0) or {"content": []})["content"]

    @property
    def _text(self) -> str:
        return "".join(one for one in self.said if isinstance(one, str))

    @property
    def num_thought_tokens(self) -> int:
        """Tokens from the start to where the text begins, if that was a thought."""
        if not self.thought:
            return 0
        return self._num_tokens if self._num_before_text is None else self._num_before_text

    def _thought_of(self, piece: Piece) -> list[dict | str]:
        is_first, self.thought = not self.thought, self.thought + piece
        if self._call.is_chat:
            return [{"reasoning_content": str(piece)}]
        return self._said(f"{OPEN_THOUGHT}\n{piece}" if is_first else str(piece))

    def _text_of(self, piece: Piece) -> list[dict | str]:
        is_first = self._num_before_text is None
        if is_first:
            self._num_before_text = self._num_tokens
        if self._parser:
            return self._parsed(self._parser.feed(piece))
        if is_first and self.thought and not self._call.is_chat:  # a raw completion keeps its marks
            return self._said(f"\n{CLOSE_THOUGHT}\n\n{piece}")
        return self._said(str(piece))

    def _parsed(self, parts: Sequence[Part]) -> list[dict | str]:
        return [content for part in parts for content in self._said_or_called(part)]

    def _said_or_called(self, part: Part) -> list[dict | str]:
        """A call streams as its name, then its arguments as they come."""
        if isinstance(part, Arguments):
            return self._argued(part)
        if isinstance(part, str):
            return self._said(part)
        begun = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
        self._tool_calls.append({**begun, "function": {"name": part.name, "arguments": ""}})
        self._begin_to_say(self._tool_calls[-1])
        shown = {"index": len(self._tool_calls) - 1, **begun, "function": {"name": part.name, "arguments": ""}}
        return [{"tool_calls": [shown]}, *(self._argued(part.arguments) if part.arguments else ())]

    def _argued(self, arguments: str) -> list[dict | str]:
        self._tool_calls[-1]["function"]["arguments"] += arguments
        return [{"tool_calls": [{"index": len(self._tool_calls) - 1, "function": {"arguments": str(arguments)}}]}]

    def _said(self, text: str) -> list[dict | str]:
        if self.said and isinstance(self.said[-1], str):
            self.said[-1] += text
        elif text:
            self._begin_to_say(str(text))
        return [{"content": text} if self._call.is_chat else text]

    def _begin_to_say(self, what: str | dict) -> None:
        self._starts.append(self._num_logprobs_before if self.said or self.thought else 0)
        self.said.append(what)

    def _part(self, content: dict | str, end: dict | None = None) -> dict:
        """An entry of a chunk: a chat's delta, a completion's text. Log-probabilities go with whatever comes next after
        them, as text may be held back."""
        new = self._logprobs[self._num_logprobs_sent :]
        sent = self._logprobs[: self._num_logprobs_sent]
        self._num_logprobs_sent = len(self._logprobs)
        offset = self._offset + sum(len(token.chosen.text) for token in sent)
        if isinstance(content, dict) and not self._is_begun:
            content = {"role": "assistant", "content": None if "tool_calls" in content else "", **content}
        self._is_begun = True
        name = "delta" if self._call.is_chat else "text"
        return {"index": self.index, name: content, "logprobs": self._shaped(new, offset), **(end or NOT_FINISHED)}

    def _shaped(self, tokens: Sequence[TokenLogprobs], offset: int) -> dict | None:
        if not tokens or self._call.sampling.logprobs is None:
            return None
        return chat_logprobs(tokens) if self._call.is_chat else completion_logprobs(tokens, offset)

    @property
    def _empty(self) -> dict | str:
        return {} if self._call.is_chat else ""

    @property
    def _finish(self) -> dict:
        """An answer that was cut off is as long as it could be. `stop_reason` is vLLM's: the stop string."""
        reason = "stop" if self.completion.finish_reason == "stop" else "length"
        if reason == "stop" and self._tool_calls:
            reason = "tool_calls"
        return {"finish_reason": reason, "stop_reason": self.completion.stop_reason or None}
