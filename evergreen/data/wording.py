"""What a record says: its turns, prompt, answer and words, and the hashes under which two records count as the same.

Two prompts are the same when they differ only in width, case, white space or their last punctuation; the system prompt
is no part of what is asked. Texts are compared as wholes: a paraphrase is another text.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from evergreen.records import Conversation, Message, Origin, Preference, Record, Text

UNSPACED = r"\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af"  # Chinese, Japanese and Korean: a character counts as a word
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


class Fingerprint(NamedTuple):
    """What is kept of a record: hashes instead of texts."""

    origin: Origin
    is_train: bool
    prompt: bytes  # what is asked, normalised, without system prompt and tools; all of a plain text
    question: bytes  # what wants one answer: prompt, system prompt, tools; and what is compared, for pairs and labels
    answer: bytes
    whole: bytes


def fingerprint(record: Record, is_train: bool) -> Fingerprint:
    """Of a record that ends in an answer, or of a plain text."""
    if isinstance(record, Text):
        text = prompt_hash(record)
        return Fingerprint(record.origin, is_train, text, text, text, text)
    prompt, answers = prompt_and_answer(record)
    said = [_turn_text(message) for message in answers]
    frame = [json.dumps(record.tools), *(message.content for message in prompt if message.role == "system")]
    label = str(record.label) if isinstance(record, Conversation) and record.label is not None else ""
    compared = sorted(said) if label or isinstance(record, Preference) else []
    return Fingerprint(
        record.origin,
        is_train,
        prompt_hash(record),
        digest(*frame, *_asked(prompt), *compared),
        digest(*said, label),
        digest(json.dumps(record.tools), *map(_turn_text, prompt), *said, label),
    )


def prompt_hash(record: Record) -> bytes:
    """Of what a record asks; it may do without an answer."""
    if isinstance(record, Text):
        return digest(_spaced(record.text))
    return digest(*_asked(prompt_and_answer(record)[0]))


def prompt_and_answer(record: Conversation | Preference) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The last assistant turn is the answer, all before it the prompt; a pair has two answers, a bare prompt none."""
    if isinstance(record, Preference):
        return record.prompt, (record.chosen, record.rejected)
    answered = [number for number, message in enumerate(record.messages) if message.role == "assistant"]
    last = answered[-1] if answered else len(record.messages)
    return record.messages[:last], record.messages[last:]


def messages_of(record: Record) -> tuple[Message, ...]:
    """Every turn of a record; a plain text is one."""
    if isinstance(record, Preference):
        return (*record.prompt, record.chosen, record.rejected)
    return record.messages if isinstance(record, Conversation) else (Message("user", record.text),)


def said(message: Message) -> str:
    """A turn's text with its thought before it, as templates write it."""
    thought = f"<think>\n{message.thought}\n</think>\n\n" if message.thought else ""
    return thought + message.content


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; where no spaces are written, characters."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """The same for texts that differ in width, case, white space or their last punctuation, as 你好? and 你好？ do."""
    joined = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return joined.rstrip(".。!?,;:…") or joined


def digest(*texts: str) -> bytes:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=12).digest()


def _asked(prompt: Sequence[Message]) -> list[str]:
    return [f"{message.role} {normalised(message.content)}" for message in prompt if message.role != "system"]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _turn_text(message: Message) -> str:
    return _spaced(f"{message.role} {said(message)} {json.dumps(message.tool_calls) if message.tool_calls else ''}")
