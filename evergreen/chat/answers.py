"""Every record of a file answered: `evergreen infer --infer_dataset in.jsonl --result_path out.jsonl`.

Promises: answers are appended as they come, so an interrupted run goes on where it stopped and answers nothing twice;
in the end they stand in the order of the questions. Answers of another model, adapter or sampling are never mixed in.
Does not promise that drawn answers (temperature above 0) of an interrupted run are those of an uninterrupted one.
"""

import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.chat import opening
from evergreen.home import append_jsonl, digest_of, disk_failure, exclusive, read_jsonl, write_jsonl
from evergreen.records import BadInput, Completion, Message, Origin, Preference, Record, Text
from evergreen.settings import InferSettings

if TYPE_CHECKING:
    from evergreen.engine.engine import Engine

DATA_SUFFIXES = re.compile(r"(\.(json|jsonl|ndjson|csv|tsv|parquet|arrow|txt|gz|bz2|xz))+$", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """What is asked of the model, and the answer that the file gives for comparison."""

    id: Any
    messages: tuple[Message, ...]
    tools: tuple[dict, ...]
    reference: str | None
    origin: Origin

    def asked(self) -> dict:
        """How the result file shows it: a single user turn as `prompt`, anything else as `messages`."""
        if len(self.messages) == 1:
            return {"prompt": self.messages[0].content}
        calls = [{"tool_calls": list(turn.tool_calls)} if turn.tool_calls else {} for turn in self.messages]
        return {
            "messages": [
                {"role": turn.role, "content": turn.content, **call}
                for turn, call in zip(self.messages, calls, strict=True)
            ]
        }

    def key(self, run: str) -> str:
        """Equal for equal questions under equal circumstances."""
        return f"{run}-{digest_of([self.asked(), self.tools])[:12]}"


def answer_file(settings: InferSettings) -> dict:
    """Answer what is not answered yet. Returns {result_path, rows, kept, generated, tokens and seconds}."""
    source = Path(settings.infer_dataset)
    target = Path(settings.result_path or source.with_name(DATA_SUFFIXES.sub("", source.name) + ".answers.jsonl"))
    questions = list(read_questions(source))
    _check(settings, source, target, questions)
    run, start = run_digest(settings), time.perf_counter()
    with _held(target):
        open_questions = _unanswered(questions, _answers_there(target, questions, run), run)
        completions = _answer(open_questions, settings, target, run) if open_questions else []
        _put_in_order(target, questions, run)
    num_tokens, seconds = sum(completion.completion_tokens for completion in completions), time.perf_counter() - start
    _say(f"{len(questions)} answers in {target}, {len(completions)} of them new")
    return {
        "result_path": str(target),
        "rows": len(questions),
        "kept": len(questions) - len(completions),
        "generated": len(completions),
        "prompt_tokens": sum(completion.prompt_tokens for completion in completions),
        "completion_tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
    }


def read_questions(path: Path) -> Iterator[Question]:
    """The file's records without the answer at their end. Raises BadInput naming file and line."""
    from evergreen.data.formats import read_rows, to_record

    for line, row in read_rows(path):
        given = {key: value for key, value in row.items() if value != ""}  # an empty answer column is no answer
        record = to_record(given, Origin(str(path), line), needs_answer=False)
        yield Question(row.get("id", line), *_parts(record), record.origin)


def run_digest(settings: InferSettings) -> str:
    """What an answer depends on besides its question: weights, template, system prompt, sampling."""
    from evergreen.model.load import reference_digest, resolve

    model = reference_digest(resolve(settings.model, settings.adapters))
    return digest_of([model, settings.template, settings.system, asdict(opening.sampling_of(settings))])[:12]


def _check(settings: InferSettings, source: Path, target: Path, questions: Sequence[Question]) -> None:
    if settings.prompt is not None:
        raise BadInput("--prompt and --infer_dataset were both given: choose one")
    if not questions:
        raise BadInput(f"{source} holds no record to answer")
    if target.is_dir() or (target.exists() and target.samefile(source)):
        kind = "a folder" if target.is_dir() else "the input itself"
        raise BadInput(f"--result_path {target} is {kind}: name another file")


def _parts(record: Record) -> tuple[tuple[Message, ...], tuple[dict, ...], str | None]:
    """Prompt, tools and reference; a last turn that is not the assistant's is still to be answered."""
    if isinstance(record, Text):
        return (Message("user", record.text),), (), None
    if isinstance(record, Preference):
        return record.prompt, record.tools, record.chosen.content
    last = record.messages[-1]
    if last.role != "assistant":
        return record.messages, record.tools, None
    return record.messages[:-1], record.tools, last.content or json.dumps(last.tool_calls, ensure_ascii=False)


def _answers_there(target: Path, questions: Sequence[Question], run: str) -> Counter:
    """How often each key is answered already. Raises BadInput when the file holds anything but answers of this run."""
    _cut_torn_line(target)
    try:
        keys = Counter(row["key"] for row in read_jsonl(target))
    except (BadInput, KeyError):
        raise BadInput(
            f"{target} holds something else than answers of evergreen infer: choose another --result_path"
        ) from None
    if any(not str(key).startswith(f"{run}-") for key in keys):
        raise BadInput(
            f"{target} holds answers of another model or other settings: choose another --result_path, "
            "or delete it to answer afresh"
        )
    wanted = Counter(question.key(run) for question in questions)
    if stale := (keys - wanted).total():
        _say(f"{stale} answer(s) in {target} belong to no question any more and are dropped at the end")
    return keys


def _cut_torn_line(target: Path) -> None:
    """Drop a last line without its end, as a crash leaves it, so that the next row does not grow onto it."""
    whole = target.read_bytes().rfind(b"\n") + 1
    if whole < target.stat().st_size:
        os.truncate(target, whole)


def _unanswered(questions: Sequence[Question], answered: Counter, run: str) -> list[Question]:
    """Questions without an answer; two equal ones want two answers."""
    left, unanswered = Counter(answered), []
    for question in questions:
        key = question.key(run)
        if left[key] > 0:
            left[key] -= 1
        else:
            unanswered.append(question)
    return unanswered


def _answer(questions: Sequence[Question], settings: InferSettings, target: Path, run: str) -> list[Completion]:
    """Generate, and append each answer to `target` as it ends."""

    loaded, engine = opening.load_engine(settings)
    prompts = [_prompt(question, engine, loaded.system) for question in questions]
    with _progress(len(questions)) as advance:

        def keep(index: int, completion: Completion) -> None:
            append_jsonl(target, _result(questions[index], completion, run))
            advance()

        try:
            return engine.generate(prompts, opening.sampling_of(settings), settings.batch_size, on_done=keep)
        except KeyboardInterrupt:
            _say(f"interrupted; what is answered is in {target}, and the same command goes on from there")
            raise


def _prompt(question: Question, engine: "Engine", system: str | None) -> list[int]:
    from evergreen.engine.base import check_fits
    from evergreen.model.template import prompt_ids

    try:
        ids = prompt_ids(question.messages, engine.tokenizer, question.tools, system)
        check_fits(ids, engine.max_context_tokens)
    except BadInput as error:
        raise BadInput(f"{question.origin}: {error}") from None
    return ids


def _result(question: Question, completion: Completion, run: str) -> dict:
    reference = {} if question.reference is None else {"reference": question.reference}
    usage = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
    return {
        "id": question.id,
        **question.asked(),
        "response": completion.text,
        "thought": completion.thought,
        **reference,
        "usage": usage,
        "finish_reason": completion.finish_reason,
        "key": question.key(run),
    }


def _put_in_order(target: Path, questions: Sequence[Question], run: str) -> None:
    """One row a question, in the questions' order and under their ids."""
    rows = defaultdict(list)
    for row in read_jsonl(target):
        rows[row["key"]].append(row)
    write_jsonl(target, ({**rows[question.key(run)].pop(0), "id": question.id} for question in questions))


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """The result file, locked; one that stayed empty is taken away again."""
    try:
        with exclusive(target, "writing answers"):
            try:
                yield
            finally:
                if not target.stat().st_size:
                    target.unlink()
    except OSError as error:
        raise disk_failure(error, f"writing {target}") from None


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar with the time left, on stderr."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("answering", total=total)
        yield lambda: progress.advance(task)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
