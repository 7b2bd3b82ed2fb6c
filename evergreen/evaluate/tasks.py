"""Task files: any file that training reads, as items with a prompt and the answers that count as right.

Promises: an item is a conversation without its last assistant turn, and that turn is the reference; a row may also
bring `references` (or `answers`, or `answer` as a list: several right answers), `choices` (or `options`, or columns A,
B, C, ...), `metric` and `id`; choices that the prompt does not show are added to it; tasks of the same file name get
their folder's name too; a file whose rows all name a `task` and an `id`, as dev_all.json's
do, is those tasks. Does not: read preference pairs, plain text, or answers that are tool calls.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evergreen.data.files import RowError, is_data_file, scan_rows
from evergreen.data.formats import ANSWERS, Skipped, to_record
from evergreen.evaluate import metrics
from evergreen.home import digest_of
from evergreen.records import BadInput, Conversation, Message, Origin

REFERENCES = ("references", "reference", "answers", "answerKey", "expected", "ground_truth", "target", "targets")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Item:
    """One question. `references` are alternatives: the answer's score is the best over them."""

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...]
    tools: tuple[dict, ...] = ()
    choices: tuple[str, ...] = ()
    metric: str = ""
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def question(self) -> str:
        """The last user turn."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    @cached_property
    def digest(self) -> str:
        """Of what the model is shown; the references are no part of it."""
        return digest_of([[asdict(message) for message in self.messages], self.tools])


@dataclass(frozen=True)
class Task:
    name: str
    metric: str
    items: tuple[Item, ...]


def read_tasks(
    files: Sequence[str],
    metric: str = "auto",
    max_samples: int | None = None,
    on_bad_row: str = "error",
    skipped: Skipped | None = None,
) -> list[Task]:
    """One task a file, or those that its rows name. `metric` is a name, auto, or one for each task as
    `task=name,task=name`.

    Raises BadInput for a missing or empty file, a row without an answer, a metric that is unknown or does not fit."""
    if not files:
        raise BadInput("no tasks given: --eval_dataset wants JSON or JSONL files with a prompt and an answer")
    paths = list(dict.fromkeys(_task_file(file) for file in files))
    names = _names(paths)
    labels = [_tasks_named_in(path) or [name] for path, name in zip(paths, names, strict=True)]
    wanted = _wanted_metrics(metric, [label for found in labels for label in found])
    skipped = skipped if skipped is not None else Skipped()
    return [
        _read_task(
            path, label, wanted.get(label, wanted.get("", "auto")), max_samples, on_bad_row, skipped, len(found) > 1
        )
        for path, found in zip(paths, labels, strict=True)
        for label in found
    ]


def _tasks_named_in(path: Path) -> list[str]:
    """The tasks of dev_all.json, in order; none of a file some of whose rows do not name both `task` and `id`."""
    found: dict[str, None] = {}
    for _, row in scan_rows(path):
        if isinstance(row, RowError):
            continue
        if not (isinstance(row.get("task"), str) and "id" in row):
            return []
        found[row["task"]] = None
    return list(found)


def _task_file(file: str) -> Path:
    path = Path(file).expanduser()
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir() if is_data_file(child))
        raise BadInput(f"{file} is a folder, --eval_dataset wants files; it holds {', '.join(inside[:8]) or 'none'}")
    if not path.exists():
        beside = sorted(str(child) for child in path.parent.glob("*") if is_data_file(child))
        raise BadInput(f"no task file {file}" + (f"; there are: {', '.join(beside[:8])}" if beside else ""))
    return path.resolve()


def _names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, with as many folders before them as it takes to tell them apart."""
    parts = [(*path.parts[1:-1], path.name.partition(".")[0] or path.name) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}-{number}" for number, name in enumerate(names, 1)]


def _wanted_metrics(text: str, names: Sequence[str]) -> dict[str, str]:
    """Task name -> metric; "" for the tasks that are not named."""
    wanted = {}
    for part in text.split(","):
        task, _, metric = part.strip().rpartition("=")
        metrics.check_name(metric)
        if task and task not in names:
            raise BadInput(f"--metric names the task {task!r}; the tasks are {', '.join(names)}")
        wanted[task] = metric
    return wanted


def _read_task(
    path: Path,
    name: str,
    metric: str,
    max_samples: int | None,
    on_bad_row: str,
    skipped: Skipped,
    is_one_of_several: bool = False,
) -> Task:
    items: list[Item] = []
    before = skipped.count
    for line, row in scan_rows(path):
        if is_one_of_several and isinstance(row, dict) and row["task"] != name:
            continue
        if max_samples is not None and len(items) == max_samples:
            break
        try:
            items.append(_item(row, Origin(str(path), line)))
        except RowError as error:
            if on_bad_row != "skip":
                raise BadInput(f"{error} (--on_bad_row skip leaves such rows out)") from None
            skipped.add(error)
    if not items:
        left_out = skipped.count - before
        raise BadInput(
            f"{path} holds no item to score"
            + (f": all {left_out} rows were left out, such as {skipped.examples[-1]}" if left_out else ": it is empty")
        )
    metric = _one_metric(items, name) if metric == "auto" else metric
    metrics.check_fit(metric, items)
    return Task(name, metric, tuple(items))


def _one_metric(items: Sequence[Item], name: str) -> str:
    """What the rows ask for, else what fits their references."""
    asked = {item.metric for item in items if item.metric not in ("", "auto")}
    if len(asked) > 1:
        raise BadInput(
            f"{items[0].origin.file} asks for several metrics ({', '.join(sorted(asked))}): a task has one, "
            "put the rows into a file for each"
        )
    return asked.pop() if asked else metrics.choose(items)


# Rows


def _item(row: dict | RowError, origin: Origin) -> Item:
    """A row as an item. Raises RowError naming file and line."""
    if isinstance(row, RowError):
        raise row
    choices, key = _choices(row), _reference_key(row)
    record = to_record(_without_answer(row) if key else row, origin, needs_answer=not key)
    if not isinstance(record, Conversation) or record.label is False:
        raise RowError(
            "is plain text, a preference pair or a bad example; a task wants a prompt and a right answer", origin=origin
        )
    messages, answer = _split(record)
    references = _texts(row[key], row.get("metric") == "json") if key else answer
    if choices:
        messages, references = _with_choices(messages, choices), [_as_letter(text, choices) for text in references]
    if not references or not all(text.strip() for text in references):
        raise RowError(
            "wants an answer to compare with (answer, output, references or an assistant turn), got none",
            "no_answer",
            origin,
        )
    metrics.check_name(str(row.get("metric") or "auto"), f"{origin}: metric")
    return Item(
        str(row.get("id", origin.line)),
        messages,
        tuple(references),
        record.tools,
        tuple(choices),
        str(row.get("metric") or ""),
        origin,
    )


def _reference_key(row: dict) -> str:
    """The column that holds references and no turns; "" when the conversation's own last answer is the reference."""
    columns = [*REFERENCES, *(key for key in ANSWERS if not isinstance(row.get(key), str))]
    return next((key for key in columns if row.get(key) not in (None, "", []) and not _is_turns(row[key])), "")


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and {"role", "from"} & set(turn) for turn in value)


def _without_answer(row: dict) -> dict:
    bare = {key: value for key, value in row.items() if key not in (*ANSWERS, *REFERENCES)}
    if "input" in bare and "instruction" not in bare:
        bare["question"] = bare.pop("input")
    return bare


def _split(record: Conversation) -> tuple[tuple[Message, ...], list[str]]:
    """What stands before the last assistant turn, and that turn's text; the whole when there is none."""
    last = max((i for i, message in enumerate(record.messages) if message.role == "assistant"), default=-1)
    if last < 0:
        return record.messages, []
    if last < len(record.messages) - 1 and record.messages[-1].role == "user":
        return record.messages, []
    answer = record.messages[last]
    if not answer.content.strip():
        raise RowError(
            "its last answer is a tool call, which no metric here compares: leave it out", "no_answer", record.origin
        )
    return record.messages[:last], [answer.content]


def _texts(value: Any, is_json: bool = False) -> list[str]:
    """An answer as text: a list of texts is several right answers, so is SQuAD's {"text": [...]}; the rest is JSON."""
    if isinstance(value, str):
        return [value]
    if is_json:
        return [json.dumps(value, ensure_ascii=False)]
    if isinstance(value, dict) and "text" in value and set(value) <= {"text", "answer_start"}:
        return _texts(value["text"])
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return list(value)
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return [text for part in value for text in _texts(part)]
    return [json.dumps(value, ensure_ascii=False)]


def _choices(row: dict) -> list[str]:
    """The texts of a row's options, in the order of their letters."""
    given = row.get("choices", row.get("options"))
    if isinstance(given, dict):
        given = given.get("text", [given[letter] for letter in LETTERS if letter in given])
    if given is None and "A" in row and "B" in row:
        given = [row[letter] for letter in LETTERS if row.get(letter) not in (None, "")]
    return [str(text) for text in given] if isinstance(given, list) else []


def _with_choices(messages: Sequence[Message], choices: Sequence[str]) -> tuple[Message, ...]:
    """The last user turn with lettered options below it, unless it shows every option already."""
    place = max(i for i, message in enumerate(messages) if message.role == "user")
    question = messages[place].content
    if all(text in question for text in choices):
        return tuple(messages)
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    return (*messages[:place], replace(messages[place], content=f"{question}\n{listed}"), *messages[place + 1 :])


def _as_letter(text: str, choices: Sequence[str]) -> str:
    """The letter of an answer given as a 0-based number, as MMLU does; other texts stay."""
    is_place = text.strip().isdecimal() and text.strip() not in choices and int(text) < min(len(choices), len(LETTERS))
    return LETTERS[int(text)] if is_place else text
