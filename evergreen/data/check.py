"""One report on data files before a run pays for them: `evergreen data check FILES`.

| kind | a row is listed when |
|---|---|
| unreadable | it is not JSON, has no known columns, wrong types, roles out of order, images |
| empty_turn, unknown_role, no_answer | a turn, a role or the answer is not there |
| mixed_answers | its instruction is answered with JSON in most rows and with prose in this one, or the reverse |
| too_long | it has more than max_length tokens |
| duplicate | it stands in an earlier row, white space aside |
| conflict | an earlier row answers, prefers or labels otherwise under the same system prompt, tools and prompt |
| leakage | it is a training row whose prompt stands in a dev or test file of the same call |
| placeholder | {{name}} or {{author}} is to be filled (for information: --model_name and --model_author fill them) |

Everything is one pass over hashes; nothing compares rows pairwise. A bad row is one finding, for its first fault, and
reading goes on after it; a JSON list that breaks off is read up to there.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.data.files import RowError, is_data_file, scan_rows
from evergreen.data.formats import Layout, to_record
from evergreen.data.lengths import Lengths, TooLong
from evergreen.data.mixture import PLACEHOLDER
from evergreen.data.sources import SPLITS, named_folder, resolve, split_sources
from evergreen.data.wording import (
    WORD,
    Fingerprint,
    digest,
    fingerprint,
    messages_of,
    normalised,
    prompt_and_answer,
)
from evergreen.records import BadInput, Conversation, Message, Origin, Preference, Record
from evergreen.settings import DataCheckSettings

KINDS = (
    "unreadable",
    "unknown_role",
    "empty_turn",
    "no_answer",
    "mixed_answers",
    "too_long",
    "leakage",
    "conflict",
    "duplicate",
    "placeholder",
)
FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
VARIABLE = re.compile(r"\d+(?:[.,]\d+)*|\"[^\"]*\"|“[^”]*”|「[^」]*」|《[^》]*》")


@dataclass(frozen=True)
class Finding:
    file: str
    line: int
    kind: str
    detail: str


@dataclass(frozen=True)
class Report:
    """`rows` counts every row, good and bad; `findings` are in the order of files and lines."""

    rows: int
    findings: list[Finding]

    def as_json(self) -> dict:
        return {"rows": self.rows, "findings": [vars(finding) for finding in self.findings]}


def run_check(given: DataCheckSettings, load_tokenizer: Callable[[str], Any]) -> dict:
    """`evergreen data check`: print the report and return it as JSON values. The tokenizer counts the tokens."""
    if not given.files:
        raise BadInput("data check wants files, folders or names in dataset_info.json, got none")
    report = check(given.files, load_tokenizer(given.model), given.max_length, given.dataset_dir)
    print_report(report, given.max_findings)
    return report.as_json()


def check(
    files: Sequence[str],
    tokenizer: Any = None,
    max_length: int = 2048,
    dataset_dir: str = "",
    count_tokens: Callable[[Record], int] | None = None,
) -> Report:
    """Look at every row of `files` (paths, folders with everything below them, or names in dataset_info.json).

    Lengths are counted with `count_tokens`, else with the tokenizer's own chat template, else not. Raises BadInput only
    for a file that is not there or is no data file."""
    findings: list[Finding] = []
    rows: list[Fingerprint] = []
    forms = _AnswerForms()
    lengths = Lengths(tokenizer, max_length, count_tokens)
    num_rows = 0
    located = _located(files, dataset_dir)
    order = {str(path): number for number, (path, _) in enumerate(located)}
    for path, layout in located:
        before, is_train = num_rows, split_of(path) == "train"
        for line, row in scan_rows(path):
            num_rows += 1
            origin = Origin(str(path), line)
            try:
                record = _record(row, origin, layout)
            except RowError as error:
                findings.append(Finding(origin.file, line, error.kind, error.problem + _rest(error)))
                continue
            rows.append(fingerprint(record, is_train))
            findings += _placeholders(record)
            findings += _dangling(record)
            findings += _too_long(lengths, record)
            forms.add(row, record)
        if num_rows == before:
            findings.append(Finding(str(path), 1, "unreadable", "holds no row"))
    findings += [*map(_as_finding, lengths.rest()), *forms.findings(), *_repeats(rows), *_leaks(rows)]
    findings.sort(key=lambda found: (order[found.file], found.line, KINDS.index(found.kind)))
    return Report(num_rows, findings)


def print_report(report: Report, max_findings: int = 50, console: Any = None) -> None:
    """A table of kinds with counts and where they begin, then up to `max_findings` rows of each kind."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    kinds: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in report.findings:
        kinds[finding.kind].append(finding)
    num_serious = len(report.findings) - len(kinds["placeholder"])
    table = Table(title=f"{report.rows} rows, {num_serious} findings")
    table.add_column("kind", no_wrap=True)
    table.add_column("rows", justify="right")
    table.add_column("for example", overflow="fold")
    for kind, found in kinds.items():
        if found:
            places = "; ".join(f"{Path(finding.file).name}:{finding.line}" for finding in found[:3])
            table.add_row(kind, str(len(found)), escape(places))
    console.print(table if report.findings else f"{report.rows} rows, nothing found")
    for kind, found in kinds.items():
        shown = min(max_findings, 3) if kind == "placeholder" else max_findings  # information, not a fault
        for finding in found[:shown]:
            console.print(f"[bold]{kind}[/] {escape(_where(finding))}  {escape(finding.detail)}", soft_wrap=True)
        if len(found) > shown:
            console.print(f"[bold]{kind}[/] {len(found) - shown} more (--json lists all)")


def split_of(path: Path) -> str:
    """train or validation, by the file's name (my_dev.json, test-00000.parquet), else by its folder's, else train."""
    known = {word: split for split, words in SPLITS.items() for word in words}
    words = [word for word in re.split(r"[^a-z]+", path.name.lower()) if word in known]
    words = words or [path.resolve().parent.name.lower()]
    return known.get(words[0], "train")


# Reading


def _located(files: Sequence[str], dataset_dir: str) -> list[tuple[Path, Layout | None]]:
    """Every file meant, once. A folder means all data files at any depth below it, dev and test files too."""
    found: dict[Path, Layout | None] = {}
    for source in split_sources(files):
        folder = named_folder(source.name) or Path(source.name)
        if folder.is_dir():
            paths = [path for path in sorted(folder.rglob("*")) if is_data_file(path)]
            paths = [path for path in paths if path.name != "dataset_info.json"]
            if not paths:
                raise BadInput(f"{folder} holds no data file")
            found |= {path: None for path in paths}
            continue
        place = resolve(source, dataset_dir)
        if place.hub:
            raise BadInput(f"{source.name} is on a hub: data check reads files")
        found |= {path: place.layout for path in place.files}
    return list(found.items())


def _record(row: dict | RowError, origin: Origin, layout: Layout | None) -> Record:
    if isinstance(row, RowError):
        raise row
    return to_record(row, origin, layout)


def _rest(error: RowError) -> str:
    return "; the rest of the file was not read" if error.fatal else ""


def _where(finding: Finding) -> str:
    return f"{finding.file}:{finding.line}"


def _finding(record: Record, kind: str, detail: str) -> Finding:
    return Finding(record.origin.file, record.origin.line, kind, detail)


# One row


def _placeholders(record: Record) -> Iterator[Finding]:
    names = {match[0] for message in messages_of(record) for match in PLACEHOLDER.finditer(message.content)}
    if names:
        yield _finding(record, "placeholder", f"holds {', '.join(sorted(names))}")


def _dangling(record: Record) -> Iterator[Finding]:
    if isinstance(record, Conversation) and record.messages[-1].role == "user":
        yield _finding(record, "no_answer", "the last user turn has no answer: it is never trained")
    if isinstance(record, Preference) and record.chosen == record.rejected:
        yield _finding(record, "conflict", "chosen and rejected are the same: there is nothing to prefer")


def _too_long(lengths: Lengths, record: Record) -> list[Finding]:
    try:
        return [_as_finding(found) for found in lengths.add(record)]
    except RowError as error:
        return [_finding(record, error.kind, error.problem)]


def _as_finding(found: TooLong) -> Finding:
    count = f"{found.num_tokens} tokens" if found.is_whole else f"{found.num_tokens} tokens in its head alone"
    return _finding(found.record, "too_long", f"{count}, more than max_length {found.max_length}")


# Rows against each other


def _repeats(rows: Sequence[Fingerprint]) -> Iterator[Finding]:
    """Later rows that say the same again, or something else to the same prompt; held-out rows are apart."""
    seen: dict[tuple, Origin] = {}
    asked: dict[tuple, tuple[bytes, Origin]] = {}
    for row in rows:
        whole = (row.is_train, row.whole)
        if whole in seen:
            yield Finding(row.origin.file, row.origin.line, "duplicate", f"the same as {seen[whole]}")
            continue
        seen[whole] = row.origin
        answer, origin = asked.setdefault((row.is_train, row.question), (row.answer, row.origin))
        if answer != row.answer:
            yield Finding(row.origin.file, row.origin.line, "conflict", f"the prompt of {origin} with another answer")


def _leaks(rows: Sequence[Fingerprint]) -> Iterator[Finding]:
    held_out: dict[bytes, Origin] = {}
    for row in rows:
        if not row.is_train:
            held_out.setdefault(row.prompt, row.origin)
    for row in rows:
        if row.is_train and row.prompt in held_out:
            where = held_out[row.prompt]
            yield Finding(row.origin.file, row.origin.line, "leakage", f"the prompt stands in {where} too")


class _AnswerForms:
    """JSON and prose answers counted by kind of instruction.

    Strong keys (the instruction of rows with an input, the first of several lines, what stands before a colon, the
    prompt with numbers and quoted words masked) mean one instruction: whichever form is rarer is listed. Weak keys (the
    system prompt, the first and last words) only speak when most answers are JSON, at least three."""

    def __init__(self) -> None:
        self.counts: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
        self.rows: list[tuple[Origin, bool, list[tuple]]] = []

    def add(self, row: Any, record: Record) -> None:
        if not isinstance(record, Conversation):
            return
        prompt, answer = prompt_and_answer(record)
        if answer[0].tool_calls or prompt[-1].role != "user":
            return
        keys = [(strong, digest(kind, text)) for strong, kind, text in _instruction_keys(row, prompt)]
        is_json = _is_json(answer[0].content)
        for key in keys:
            self.counts[key][is_json] += 1
        self.rows.append((record.origin, is_json, keys))

    def findings(self) -> Iterator[Finding]:
        for origin, is_json, keys in self.rows:
            for key in keys:
                num_prose, num_json = self.counts[key]
                if not num_prose or not num_json:
                    continue
                mine, others = (num_json, num_prose) if is_json else (num_prose, num_json)
                is_rarer = mine < others or (mine == others and not is_json)
                if is_rarer and (key[0] or (not is_json and num_json >= 3)):
                    form, other = ("JSON", "prose") if is_json else ("prose", "JSON")
                    yield Finding(
                        origin.file,
                        origin.line,
                        "mixed_answers",
                        f"answered with {form}; of the rows with "
                        f"this instruction {others} are answered with {other}, {mine} with {form}",
                    )
                    break


def _instruction_keys(row: Any, prompt: Sequence[Message]) -> Iterator[tuple[bool, str, str]]:
    """(strong, kind of key, text) for what may be the instruction that rows share."""
    text = prompt[-1].content.strip()
    if isinstance(row, dict) and isinstance(row.get("instruction"), str) and str(row.get("input") or "").strip():
        yield True, "instruction", normalised(row["instruction"])
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        yield True, "line", normalised(VARIABLE.sub("#", lines[0]))
    before, colon, _ = unicodedata.normalize("NFKC", lines[0]).partition(":")
    if colon and len(before) >= 4:
        yield True, "colon", normalised(VARIABLE.sub("#", before))
    yield True, "whole", normalised(VARIABLE.sub("#", text))
    words = WORD.findall(VARIABLE.sub("#", text.casefold()))
    if len(words) >= 8:
        yield False, "first", " ".join(words[:6])
        yield False, "last", " ".join(words[-6:])
    elif len(words) >= 4:
        yield False, "first", " ".join(words[:3])
        yield False, "last", " ".join(words[-3:])
    if prompt[0].role == "system":
        yield False, "system", normalised(prompt[0].content)


def _is_json(answer: str) -> bool:
    """An object or a list, alone or in a code fence."""
    answer = answer.strip()
    fenced = FENCE.fullmatch(answer)
    answer = fenced[1] if fenced else answer
    if not answer.startswith(("{", "[")):
        return False
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return True
