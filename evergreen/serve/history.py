"""A chat that does not fit any more, shortened by whole exchanges."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from evergreen.records import Message
from evergreen.serve import protocol
from evergreen.serve.models import Served
from evergreen.serve.protocol import Call

MAX_RESERVED_TOKENS = 512  # for the answer, when max_tokens is not given


def trimmed(
    call: Call, prompts: list[tuple[int, ...]], served: Served, room: int
) -> tuple[Call, list[tuple[int, ...]], int]:
    """The call without as many of its oldest exchanges as it takes to fit, its prompt, and how many messages went.

    System messages stay, and so does the last exchange, whether it fits or not."""
    wanted = room - (call.sampling.max_new_tokens or min(MAX_RESERVED_TOKENS, room // 4))
    starts = exchanges(call.messages)
    low, high = 0, len(starts) - 1  # exchanges to drop: `low` do not suffice unless it is 0
    if len(prompts[0]) <= wanted or high < 1:
        return call, prompts, 0
    while low < high:
        middle = (low + high) // 2
        shorter = replace(call, messages=_without(call.messages, starts[middle]))
        if len(protocol.prompt_ids(shorter, served.tokenizer, served.system)[0]) <= wanted:
            high = middle
        else:
            low = middle + 1
    shorter = replace(call, messages=_without(call.messages, starts[low]))
    prompts = protocol.prompt_ids(shorter, served.tokenizer, served.system)
    return shorter, prompts, len(call.messages) - len(shorter.messages)


def exchanges(messages: Sequence[Message]) -> list[int]:
    """Where each exchange begins: at the user's turns."""
    return [i for i, message in enumerate(messages) if message.role == "user"]


def _without(messages: Sequence[Message], start: int) -> tuple[Message, ...]:
    kept: Iterable[Message] = (message for message in messages[:start] if message.role == "system")
    return (*kept, *messages[start:])
