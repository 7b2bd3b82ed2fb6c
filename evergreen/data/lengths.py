"""Which records are too long for a tokenizer, counted in batches and without tokenising more than the answer needs.

A row whose bytes already fit is not tokenised, since a token is at least one byte; of a row that is absurdly long only
its head is, when that alone is too many tokens.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from evergreen.data.files import RowError
from evergreen.data.wording import messages_of, said
from evergreen.records import Message, Preference, Record, Text

BATCH_ROWS = 256
HEAD_CHARACTERS = 32  # for each token that a record may have; ordinary text takes one to six


class TooLong(NamedTuple):
    """A record over the limit. `is_whole` is False when `num_tokens` are those of its head alone."""

    record: Record
    num_tokens: int
    max_length: int
    is_whole: bool = True


class Lengths:
    """The records over `max_length` tokens among those added. Lengths are counted with `count_tokens`, else with the
    tokenizer under its own chat template, else not at all."""

    def __init__(self, tokenizer: Any, max_length: int, count_tokens: Callable[[Record], int] | None = None):
        self.tokenizer, self.max_length, self.count_tokens = tokenizer, max_length, count_tokens
        self.waiting: list[tuple[Record, str]] = []

    def add(self, record: Record) -> list[TooLong]:
        """What is known to be too long so far and was not said before. Raises a RowError when the template refuses."""
        if self.count_tokens:
            count = self.count_tokens(record)
            return [TooLong(record, count, self.max_length)] if count > self.max_length else []
        if self.tokenizer is None or _most_tokens(record) <= self.max_length:
            return []
        from jinja2 import TemplateError

        try:
            self.waiting += [(record, text) for text in self._rendered(record)]
        except (TemplateError, TypeError) as error:
            raise RowError(f"the model's chat template refuses these turns: {error}") from None
        return self.rest() if len(self.waiting) >= BATCH_ROWS else []

    def rest(self) -> list[TooLong]:
        """Count what is waiting."""
        waiting, self.waiting = self.waiting, []
        head = HEAD_CHARACTERS * self.max_length
        counts = self._counted([text[:head] for _, text in waiting])
        longest: dict[int, TooLong] = {}
        for (record, text), count in zip(waiting, counts, strict=True):
            is_whole = len(text) <= head
            if not is_whole and count <= self.max_length:
                count, is_whole = self._counted([text])[0], True
            if count > max(self.max_length, longest.get(id(record), (None, 0))[1]):
                longest[id(record)] = TooLong(record, count, self.max_length, is_whole)
        return list(longest.values())

    def _counted(self, texts: list[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def _rendered(self, record: Record) -> list[str]:
        """The row as the model reads it; a preference pair is two texts."""
        if isinstance(record, Text):
            return [record.text]
        if isinstance(record, Preference):
            return [self._chat((*record.prompt, answer), record.tools) for answer in (record.chosen, record.rejected)]
        return [self._chat(record.messages, record.tools)]

    def _chat(self, messages: Sequence[Message], tools: Sequence[dict]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            return "\n".join(map(said, messages))
        chat = [_as_chat(message) for message in messages]
        return self.tokenizer.apply_chat_template(chat, tools=list(tools) or None, tokenize=False)


def _as_chat(message: Message) -> dict:
    chat: dict[str, Any] = {"role": message.role, "content": said(message)}
    if message.tool_calls:
        chat["tool_calls"] = [{"type": "function", "function": call} for call in message.tool_calls]
    return chat


def _most_tokens(record: Record) -> int:
    """Never less than the true count: bytes, and room for what a template puts around turns and tools."""
    messages = messages_of(record)
    tools = () if isinstance(record, Text) else record.tools
    calls: Iterable[dict] = [call for message in messages for call in message.tool_calls]
    structured = sum(len(json.dumps(part)) + 100 for part in (*tools, *calls))
    return sum(len(said(message).encode()) + 40 for message in messages) + structured + (1500 if tools else 300)
