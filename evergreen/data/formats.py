"""Rows in the shapes that people keep, as records: one row in, one Conversation, Preference or Text out.

| format | columns |
|---|---|
| alpaca | instruction, input, output, optional system, history [[question, answer], ...], reasoning |
| sharegpt | conversations of {from, value}: human, gpt, system, function_call, observation; optional system, tools |
| messages | messages of {role, content}, OpenAI's, with tools, tool_calls, reasoning_content and weight |
| pairs | query/response, question/answer, prompt/answer, prompt/completion, problem/solution; optional history |
| preference | a prompt in any shape above with chosen and rejected; both whole; or output: [chosen, rejected] |
| kto | a conversation in any shape above with `label` (true or false) or `kto_tag` |
| text | text |

Promises: every row is looked at by itself, so a file that changes its columns half-way is never misread, and one that
changes its kind (conversations, then plain text) is an error; a thought (`reasoning`, or <think>...</think> at the head
of an answer) becomes `Message.thought`; turns keep their order and are never merged. Not read: images, audio, video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergreen.data.files import RowError, read_rows, scan_rows, shown
from evergreen.data.turns import (
    THOUGHTS,
    read_list,
    read_text,
    read_tools,
    read_turns,
    split_thought,
    turns_if_any,
    with_thought,
)
from evergreen.records import BadInput, Conversation, Message, Origin, Preference, Record, Text

__all__ = [
    "Layout",
    "RowError",
    "Skipped",
    "detect",
    "detect_file",
    "read_records",
    "read_rows",
    "records_of",
    "scan_rows",
    "to_record",
]

TURNS = ("messages", "conversations", "conversation")
ASKED = ("query", "question", "prompt", "problem")
ANSWERS = ("response", "answer", "completion", "output", "solution")
CHOSEN = ("chosen", "chosen_response", "chosen_messages")
REJECTED = ("rejected", "rejected_response", "rejected_messages")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
NOWHERE = Origin()
KNOWN = (
    "instruction/input/output, conversations, messages, query/response, prompt/completion, "
    "prompt/chosen/rejected or text"
)


@dataclass(frozen=True)
class Layout:
    """Where a dataset_info.json entry says that things stand. `renames` maps the file's columns to the usual names."""

    formatting: str = "alpaca"
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)


@dataclass
class Skipped:
    """Rows left out under on_bad_row="skip": all are counted, the first few kept as messages."""

    count: int = 0
    examples: list[str] = field(default_factory=list)
    max_examples: int = 20

    def add(self, error: BadInput) -> None:
        self.count += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(str(error))

    def clear(self) -> None:
        self.count = 0
        self.examples.clear()

    def __len__(self) -> int:
        return self.count


def read_records(
    path: str | Path,
    on_bad_row: str = "error",
    skipped: Skipped | None = None,
    layout: Layout | None = None,
    needs_answer: bool = True,
) -> Iterator[Record]:
    """A file's records, one at a time. With `needs_answer=False` a prompt alone is a record too (for inference).

    A row that cannot be used raises a RowError (a BadInput) "file:line: ...", or is counted in `skipped`."""
    return records_of(scan_rows(path), str(path), on_bad_row, skipped, layout, needs_answer)


def records_of(
    rows: Iterator[tuple[int, dict | RowError]],
    name: str,
    on_bad_row: str = "error",
    skipped: Skipped | None = None,
    layout: Layout | None = None,
    needs_answer: bool = True,
) -> Iterator[Record]:
    """Like `read_records` for (line, row) pairs from anywhere; `name` is what messages call the source."""
    first: Record | None = None
    for line, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            record = to_record(row, Origin(name, line), layout, needs_answer)
            first = first or record
            if _kind(record) != _kind(first):
                raise RowError(
                    f"is not what the rows before it are: they are {_kind(first)}, this is {_kind(record)}; "
                    "put them into files of their own",
                    origin=record.origin,
                )
        except RowError as error:
            if error.fatal:  # the rest of the file cannot be read: that is more than one row to leave out
                raise
            if on_bad_row != "skip":
                raise BadInput(f"{error} (--on_bad_row skip leaves such rows out)") from None
            if skipped is not None:
                skipped.add(error)
            continue
        yield record


def detect_file(path: str | Path, layout: Layout | None = None) -> str:
    """The format of a file's first row that has one; "" when no row has."""
    for _, row in scan_rows(path):
        if isinstance(row, dict):
            try:
                return detect(_renamed(row, layout))
            except RowError:
                continue
    return ""


def detect(row: dict) -> str:
    """A row's format by its columns: alpaca, sharegpt, messages, preference, kto, text, multimodal or a pair such as
    query_response. Raises RowError when it has none."""
    if any(row.get(key) for key in MEDIA):
        return "multimodal"
    if _key(row, CHOSEN) or _key(row, REJECTED) or _pair_in_output(row):
        return "preference"
    turns, asked = _key(row, TURNS), _key(row, ASKED)
    if turns or asked or _is_alpaca(row):
        if _label(row) is not None:
            return "kto"
        if turns:
            first = next(iter(read_list(row[turns], turns)), None)
            return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"
        return f"{asked}_{_key(row, ANSWERS)}".rstrip("_") if asked and not _is_alpaca(row) else "alpaca"
    if "text" in row:
        return "text"
    raise RowError(
        f"wants columns such as {KNOWN}; got {', '.join(map(str, row)) or 'none'}: "
        "rename them, or say which is which in dataset_info.json"
    )


def to_record(row: dict, origin: Origin = NOWHERE, layout: Layout | None = None, needs_answer: bool = True) -> Record:
    """One row as a record. Raises RowError with file, line, what was wanted and what came."""
    try:
        row = _renamed(row, layout)
        kind = detect(row)
        if kind == "multimodal":
            raise RowError("holds images, audio or video, which text training cannot use: leave the row out")
        if kind == "text":
            return Text(_wanted(row, "text", "empty_turn"), origin)
        if kind == "preference":
            return _preference(row, origin)
        messages = _conversation(row, needs_answer)
        _check(messages, needs_answer)
        label = _label(row)
        if label is not None and messages[-1].role != "assistant":
            raise RowError("a labelled conversation wants to end with the assistant's answer", "no_answer")
        return Conversation(messages, read_tools(row.get("tools")), label, origin)
    except RowError as error:
        raise error.at(origin) from None


# Columns


def _key(row: dict, keys: Sequence[str]) -> str:
    """The first of `keys` that the row has a value for, be it an empty text; "" for none."""
    return next((key for key in keys if row.get(key) is not None), "")


def _kind(record: Record) -> str:
    if isinstance(record, Conversation):
        return "conversations" if record.label is None else "labelled conversations"
    return "preference pairs" if isinstance(record, Preference) else "plain text"


def _is_alpaca(row: dict) -> bool:
    return row.get("instruction") is not None or {"input", "output"} <= set(row)


def _pair_in_output(row: dict) -> bool:
    """Alpaca's older way with preferences: output is [better, worse]."""
    output = row.get("output")
    return isinstance(output, list) and len(output) == 2 and all(isinstance(answer, str) for answer in output)


def _label(row: dict) -> bool | None:
    """KTO's thumb, true or false. 1 and 0 count beside turns or a completion, where KTO data keeps its label; any other
    `label` belongs to something else, any other `kto_tag` is an error."""
    for key in ("kto_tag", "label"):
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or str(value).strip().lower() in ("true", "false"):
            return str(value).strip().lower() == "true"
        if str(value).strip() in ("0", "1") and (key == "kto_tag" or _key(row, (*TURNS, "completion"))):
            return str(value).strip() == "1"
        if key == "kto_tag":
            raise RowError(f'"kto_tag" wants true or false, got {shown(value)}')
    return None


def _wanted(row: dict, key: str, kind: str = "no_answer") -> str:
    text = read_text(row[key], f'"{key}"')
    if not text.strip():
        raise RowError(f'"{key}" wants text, got none: fill it in or take the row out', kind)
    return text


def _renamed(row: dict, layout: Layout | None) -> dict:
    """The row under the usual names: only the columns that a layout names, when it names any."""
    if layout is None:
        return row
    if layout.renames:
        row = {layout.renames.get(key, key): value for key, value in row.items()}
    if layout.columns:
        lacking = [name for name in layout.columns.values() if name and name not in row]
        if lacking and not set(layout.columns.values()) & set(row):
            raise RowError(
                f"wants the columns that dataset_info.json names ({', '.join(lacking)}), got {', '.join(row)}"
            )
        usual = {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "messages": "messages" if layout.formatting == "openai" else "conversations",
        }
        if "prompt" in layout.columns and len(layout.columns) == 1 and "output" not in row:
            usual["prompt"] = "text"
        row = {usual.get(key, key): row.get(name) for key, name in layout.columns.items() if name} | {
            key: row[key] for key in ("reasoning", "weight") if key in row
        }
    if layout.tags:
        row = {
            key: _retagged(value, layout.tags) if key in (*TURNS, *CHOSEN, *REJECTED) else value
            for key, value in row.items()
        }
    return row


def _retagged(value: Any, tags: dict[str, str]) -> Any:
    """Turns under the usual keys and roles."""
    if isinstance(value, list):
        return [_retagged(turn, tags) for turn in value]
    role_tag, content_tag = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    if not isinstance(value, dict) or role_tag not in value:
        return value
    names = {
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    }
    roles = {tags[tag]: name for tag, name in names.items() if tag in tags}
    kept = {key: part for key, part in value.items() if key not in (role_tag, content_tag)}
    return kept | {"from": roles.get(str(value[role_tag]), value[role_tag]), "value": value.get(content_tag)}


# Conversations


def _conversation(row: dict, needs_answer: bool = True) -> tuple[Message, ...]:
    """Every turn of a row, prompt and answer, in order."""
    turns = _key(row, TURNS)
    if turns:
        messages = _with_system(row, read_turns(row[turns], turns))
        if not messages:
            raise RowError(f'"{turns}" wants at least a user and an assistant turn, got an empty list', "empty_turn")
    else:
        messages = [*_prompt(row), *_answer(row, needs_answer)]
    thought = next((read_text(row[key], f'"{key}"') for key in THOUGHTS if row.get(key)), "")
    answered = [number for number, message in enumerate(messages) if message.role == "assistant"]
    if thought and answered:
        messages[answered[-1]] = with_thought(messages[answered[-1]], thought)
    return tuple(messages)


def _prompt(row: dict) -> list[Message]:
    """Everything before the answer, of a row without a list of turns."""
    asked = "" if _is_alpaca(row) else _key(row, ASKED)
    if asked:
        turns = turns_if_any(row[asked], asked)
        if turns is not None:
            return _with_system(row, [*_history(row), *turns])
    keys = ("context", asked) if asked else ("instruction", "input" if "input" in row else "context")
    parts = [read_text(row.get(key), f'"{key}"') for key in keys]
    question = "\n".join(part for part in parts if part.strip())
    if not question and not asked and not _is_alpaca(row):
        raise RowError("wants a prompt beside the answers (prompt, instruction, messages or conversations), got none")
    if not question:
        raise RowError(f'"{asked or "instruction"}" wants text, got none: fill it in or take the row out', "empty_turn")
    return _with_system(row, [*_history(row), Message("user", question)])


def _answer(row: dict, needs_answer: bool) -> list[Message]:
    key = _key(row, ("output", *ANSWERS) if _is_alpaca(row) else ANSWERS)
    if not key or (row[key] == "" and not needs_answer):
        return []
    turns = turns_if_any(row[key], key) if key in ("completion", "response") else None
    return turns if turns is not None else [split_thought(_wanted(row, key))]


def _history(row: dict) -> list[Message]:
    messages = []
    for number, pair in enumerate(read_list(row.get("history") or [], "history"), 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f'"history" wants [[question, answer], ...], got {shown(pair)} at number {number}')
        question, answer = (read_text(part, f'"history" number {number}') for part in pair)
        messages += [Message("user", question), split_thought(answer)]
    return messages


def _with_system(row: dict, messages: list[Message]) -> list[Message]:
    system = read_text(row.get("system"), '"system"')
    if not system:
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content != system:
            raise RowError('has two system prompts, the column "system" and the first turn: keep one')
        return messages
    return [Message("system", system), *messages]


# Order of turns, preference pairs


def _check(messages: Sequence[Message], needs_answer: bool) -> None:
    """Roles in an order that a chat can have, no turn empty, and something to learn."""
    seen_user = seen_call = False
    for number, message in enumerate(messages, 1):
        if message.role == "system" and number > 1:
            raise RowError(f"turn {number} is a system prompt, which wants to stand first: move or remove it")
        if message.role == "assistant" and not seen_user:
            raise RowError(f"turn {number} is the assistant's and no user turn stands before it: put a question first")
        if message.role == "tool" and not seen_call:
            raise RowError(f"turn {number} is a tool's result and no call stands before it: put the call first")
        if not message.content.strip() and not message.tool_calls and message.role in ("user", "assistant"):
            raise RowError(f"turn {number} ({message.role}) is empty: fill it in or take the row out", "empty_turn")
        seen_user = seen_user or message.role == "user"
        seen_call = seen_call or bool(message.tool_calls) or "<tool_call>" in message.content
    if needs_answer and not any(message.role == "assistant" and message.trained for message in messages):
        raise RowError("wants an answer (output, response or an assistant turn) to learn from, got none", "no_answer")
    if not seen_user:
        raise RowError("wants a user turn, got none", "empty_turn")


def _preference(row: dict, origin: Origin) -> Preference:
    """The prompt is what stands before both answers: given by itself, or how both of two conversations begin."""
    if _pair_in_output(row):
        row = {**row, "chosen": row["output"][0], "rejected": row["output"][1]}
    chosen, rejected = _side(row, CHOSEN), _side(row, REJECTED)
    if chosen and chosen[0].role != "assistant":
        prompt = _with_system(row, [])
    elif _key(row, TURNS):
        prompt = list(_conversation(row))
    else:
        prompt = _prompt(row)
    if not chosen and prompt and prompt[-1].role == "assistant":  # messages that end with the better answer
        prompt, chosen = prompt[:-1], [prompt[-1]]
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[-1].role != "assistant" or not (side[-1].content.strip() or side[-1].tool_calls):
            raise RowError(f'"{name}" wants an answer, got none: fill it in or take the row out', "no_answer")
    if rejected[0].role != "assistant" and chosen[0].role == "assistant":
        rejected = rejected[len(prompt) :] if tuple(rejected[: len(prompt)]) == tuple(prompt) else rejected
    if chosen[:-1] != rejected[:-1]:
        raise RowError(
            '"chosen" and "rejected" want to differ in their last turn only: cut both after the first difference'
        )
    whole = (*prompt, *chosen[:-1])
    if whole and whole[-1].role not in ("user", "tool"):
        raise RowError(
            f"the prompt wants to end with the user's turn, got {whole[-1].role}'s: "
            "move the answer to chosen and rejected"
        )
    _check((*whole, chosen[-1]), needs_answer=False)
    return Preference(whole, chosen[-1], rejected[-1], read_tools(row.get("tools")), origin)


def _side(row: dict, keys: Sequence[str]) -> list[Message]:
    key = _key(row, keys)
    if not key:
        return []
    turns = turns_if_any(row[key], key)
    return turns if turns is not None else [split_thought(read_text(row[key], f'"{key}"'))]
