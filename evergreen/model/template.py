"""Conversations to token ids and targets, through the tokenizer's own chat template and nothing else.

Promises: training ids are exactly what `tokenizer.apply_chat_template` gives for the same messages, so that what was
trained is what is asked later; targets are the trained assistant turns with their end-of-turn token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.records import BadInput, Conversation, Message, Record, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
    + QWEN_SYSTEM
    + "<|im_end|>\n' }}{% endif %}"
    + CHATML
)
NAMED_TEMPLATES = {
    "chatml": CHATML,
    "qwen3": CHATML,
    "qwen3_nothink": CHATML,
    "qwen": QWEN,
    "qwen2": QWEN,
    "qwen2_5": QWEN,
}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one record, and for each whether the model is taught to predict it."""

    ids: tuple[int, ...]
    is_target: tuple[bool, ...]

    @property
    def num_targets(self) -> int:
        """Targets that can be predicted: the first token has nothing before it."""
        return sum(self.is_target[1:])


def choose_template(tokenizer: "PreTrainedTokenizerBase", name: str, model: str) -> None:
    """Give the tokenizer the template `name`; "" and "auto" keep its own. Raises BadInput when there is none."""
    own = tokenizer.chat_template
    if name in ("", "auto"):
        if not own:
            raise BadInput(f"{model} has no chat template: give --template chatml, qwen or a .jinja file")
    elif name in NAMED_TEMPLATES:
        if not (own and "<|im_start|>" in own):  # a model's own ChatML knows tools too
            tokenizer.chat_template = NAMED_TEMPLATES[name]
    elif Path(name).is_file():
        tokenizer.chat_template = Path(name).read_text(encoding="utf-8")
    elif "{" in name:  # the template itself, as args.json keeps it
        tokenizer.chat_template = name
    else:
        raise BadInput(f"--template {name!r} is not known: auto, {', '.join(NAMED_TEMPLATES)} or a .jinja file")


def render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[dict] = (),
    system: str | None = None,
    answer_next: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation; `answer_next` ends it with the assistant's header. `variables` are the template's
    own. Raises BadInput."""
    from jinja2 import TemplateError

    if system is not None and (not messages or messages[0].role != "system"):
        messages = [Message("system", system), *messages]
    try:
        text = tokenizer.apply_chat_template(
            [_as_dict(message) for message in messages],
            tools=_as_tools(tools) or None,
            tokenize=False,
            add_generation_prompt=answer_next,
            **(variables or {}),
        )
    except (TemplateError, TypeError) as error:
        raise BadInput(f"the chat template refuses these messages: {error}") from None
    if tools and (name := tools[0].get("function", tools[0]).get("name", "")) not in text:
        raise BadInput(f"the model's chat template has no place for tools (wanted one for {name!r})")
    return text


def prompt_ids(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[dict] = (),
    system: str | None = None,
) -> list[int]:
    """Ids of a conversation up to where the assistant's next answer begins."""
    return tokenizer.encode(render(messages, tokenizer, tools, system, answer_next=True), add_special_tokens=False)


def encode(
    record: Record, tokenizer: "PreTrainedTokenizerBase", system: str | None = None, loss_on: str = "all"
) -> Encoded:
    """A record as ids and targets. `loss_on`: every trained assistant turn ("all") or the last one ("last").

    Raises BadInput, naming the record's origin, when there is nothing to learn from it."""
    if isinstance(record, Text):
        ids = [*tokenizer.encode(record.text, add_special_tokens=False), tokenizer.eos_token_id]
        return Encoded(tuple(ids), (True,) * len(ids))
    if not isinstance(record, Conversation):
        raise BadInput(f"{record.origin}: a {type(record).__name__.lower()} record cannot be trained by sft")
    turns = [i for i, message in enumerate(record.messages) if message.role == "assistant" and message.trained]
    if not turns:
        raise BadInput(f"{record.origin}: no assistant turn to learn from")
    try:
        return _encode_turns(record, tokenizer, system, turns[-1:] if loss_on == "last" else turns)
    except BadInput as error:
        raise error if str(error).startswith(str(record.origin)) else BadInput(f"{record.origin}: {error}") from None


def _encode_turns(
    record: Conversation, tokenizer: "PreTrainedTokenizerBase", system: str | None, turns: list[int]
) -> Encoded:
    messages = record.messages[: turns[-1] + 1]
    text = render(messages, tokenizer, record.tools, system)
    spans = [_answer_span(text, messages, turn, tokenizer, record.tools, system) for turn in turns]
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, is_target = list(batch["input_ids"]), [False] * len(batch["input_ids"])
    place = 0
    for i, (start, end) in enumerate(batch["offset_mapping"]):
        while place < len(spans) and start >= spans[place][1]:
            place += 1
        is_target[i] = place < len(spans) and spans[place][0] <= start and end <= spans[place][1]
    return _ending_in_eos(ids, is_target, tokenizer)


def _answer_span(
    text: str,
    messages: Sequence[Message],
    turn: int,
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[dict],
    system: str | None,
) -> tuple[int, int]:
    """Where an assistant turn stands in the text, from after its header to its end-of-turn mark inclusive."""
    before = render(messages[:turn], tokenizer, tools, system, answer_next=True)
    through = text if turn == len(messages) - 1 else render(messages[: turn + 1], tokenizer, tools, system)
    through = through.rstrip()
    if not text.startswith(before) or not text.startswith(through):
        raise BadInput(
            "the model's chat template rewrites earlier turns, so they cannot all be trained at once: "
            "use --loss_on last"
        )
    return len(before), len(through)


def _ending_in_eos(ids: list[int], is_target: list[bool], tokenizer: "PreTrainedTokenizerBase") -> Encoded:
    """Cut what follows the last target; a template without an end-of-turn mark gets the end-of-text token as target."""
    last = max((i for i, target in enumerate(is_target) if target), default=-1)
    if last < 0:
        raise BadInput("no token to learn: the assistant's answer is empty")
    ids, is_target = ids[: last + 1], is_target[: last + 1]
    if ids[-1] not in tokenizer.all_special_ids and tokenizer.eos_token_id is not None:
        ids, is_target = [*ids, tokenizer.eos_token_id], [*is_target, True]
    return Encoded(tuple(ids), tuple(is_target))


def _as_dict(message: Message) -> dict[str, Any]:
    content = f"<think>\n{message.thought}\n</think>\n\n{message.content}" if message.thought else message.content
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [{"type": "function", "function": call} for call in message.tool_calls]
    return turn


def _as_tools(tools: Sequence[dict]) -> list[dict]:
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
