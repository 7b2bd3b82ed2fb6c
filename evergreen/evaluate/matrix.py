"""What every version of a line can do on every task so far, and what that says about learning and forgetting.

R[i][j] is the score of version i on task j: version 0 is the start, version i the candidate that increment i made and
task i the one it was to learn: the R of Lopez-Paz & Ranzato (2017), with rejected candidates in it.

Promises: all scores of a task are of the items that every version scored there answered; every interval covers 95% and
comes from one joint bootstrap (a task's items are drawn once for all versions, tasks apart). A candidate that the gate
rejected has its row, marked, but no part in the line: the figures are of the versions that were accepted, up to the
last of them. A task whose increment was rejected was never learnt, so it counts in OP and FWT and not in BWT,
forgetting or LA. A figure whose scores are missing is left out or, for a mean, taken over the tasks that have them,
which are named. Retention suites stand beside the tasks and count only in the general ability delta.
Does not: score anything, or decide.

    OP         mean of the last version over all tasks tried so far
    BWT        mean over learnt tasks of R[last][j] - R[j][j]; the task that the last version learnt is left out, so the
               divisor is T-1 (some codes divide by T)
    forgetting mean over the same tasks of the best past score since the task was learnt, less R[last][j] (Chaudhry et
               al. 2018)
    FWT        mean over tasks of R[before j][j] - R[0][j]: what earlier increments brought to a task not learnt yet
    LA         mean over learnt tasks of R[j][j]
    GAD        mean over retention suites of R[last] - R[0], the general ability delta of TRACE (2023)
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evergreen.evaluate import heatmap, statistics
from evergreen.evaluate.harness import console as new_console
from evergreen.evaluate.harness import points, span
from evergreen.evaluate.heatmap import fit
from evergreen.evaluate.tasks import Task
from evergreen.home import write_atomic, write_json
from evergreen.records import BadInput, Scores

if TYPE_CHECKING:
    from rich.console import Console

MEANT = {
    "OP": "task",
    "BWT": "earlier learnt task",
    "forgetting": "earlier learnt task",
    "FWT": "later task",
    "LA": "learnt task",
    "GAD": "retention suite",
}
MAX_NAME_CELLS = 16
DIGITS = 6


@dataclass(frozen=True)
class VersionScores:
    """A version's score of every item it answered, by task and item; `drift` is against the version it started from."""

    name: str
    digest: str
    accepted: bool
    items: dict[str, dict[str, float]]
    latency_ms: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] | None = None  # {"mean", "low", "high", "n"} in nats per token


@dataclass(frozen=True)
class Measure:
    """A mean over `tasks` with its interval; `n` items in all."""

    mean: float
    low: float
    high: float
    n: int
    tasks: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        numbers = {name: round(getattr(self, name), DIGITS) for name in ("mean", "low", "high")}
        return numbers | {"n": self.n, "divisor": len(self.tasks), "tasks": list(self.tasks)}


@dataclass(frozen=True)
class Matrix:
    """`rows` are the start and then one version an increment; `tasks` are in the order of the increments, and those
    beyond the last row are still to come. The start counts as accepted. Raises BadInput when versions that are compared
    share no item of a task."""

    tasks: tuple[Task, ...]
    rows: tuple[VersionScores, ...]
    retention: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= len(self.tasks) + 1:
            raise ValueError(f"{len(self.tasks)} tasks want 1 to {len(self.tasks) + 1} versions, got {len(self.rows)}")

    @property
    def columns(self) -> tuple[Task, ...]:
        return (*self.tasks, *self.retention)

    @cached_property
    def cells(self) -> list[list[Scores | None]]:
        """[versions][columns]; None where nothing was scored."""
        return [[self._cell(row, column) for column in range(len(self.columns))] for row in range(len(self.rows))]

    # The line of accepted versions. A row is a version's number, a task its place in `tasks`.

    def is_accepted(self, row: int) -> bool:
        return row == 0 or self.rows[row].accepted

    @property
    def last(self) -> int:
        """The version that stands: the last one accepted."""
        return max(row for row in range(len(self.rows)) if self.is_accepted(row))

    @property
    def tried(self) -> list[int]:
        return list(range(len(self.rows) - 1))

    @property
    def learnt(self) -> list[int]:
        return [task for task in self.tried if self.is_accepted(task + 1)]

    def _before(self, task: int) -> int:
        return max(row for row in range(task + 1) if self.is_accepted(row))

    # The figures

    @cached_property
    def measures(self) -> dict[str, Measure | None]:
        """By name, see the module; None where there is nothing to take the mean of."""
        return {
            "OP": self._mean_of(self.last, self.tried),
            "BWT": self._change([(task, self.last, task + 1) for task in self.learnt if task + 1 < self.last]),
            "forgetting": self._forgetting(),
            "FWT": self._change([(task, self._before(task), 0) for task in self.tried if self._before(task) > 0]),
            "LA": self._own([(task, task + 1) for task in self.learnt]),
            "GAD": self._change([(suite, self.last, 0) for suite in self._suites]) if self.last > 0 else None,
        }

    def new_task(self, row: int) -> Measure | None:
        """A candidate on the task it was to learn."""
        return self._mean_of(row, [row - 1]) if row else None

    def old_tasks(self, row: int) -> Measure | None:
        """A candidate on the tasks tried before its own."""
        return self._mean_of(row, list(range(row - 1)))

    def _mean_of(self, row: int, tasks: Sequence[int]) -> Measure | None:
        return self._own([(task, row) for task in tasks])

    def _own(self, places: Sequence[tuple[int, int]]) -> Measure | None:
        """Mean over (task, version)."""
        places = [(task, row) for task, row in places if self._has(row, task)]
        tasks, rows = ([place[i] for place in places] for i in (0, 1))
        return self._measure(tasks, lambda r: r[..., rows, tasks].mean(axis=-1), lowest=0.0)

    def _change(self, places: Sequence[tuple[int, int, int]]) -> Measure | None:
        """Mean over (task, later, earlier version) of later - earlier."""
        places = [(task, later, earlier) for task, later, earlier in places if self._has(later, task)]
        places = [(task, later, earlier) for task, later, earlier in places if self._has(earlier, task)]
        tasks, later, earlier = ([place[i] for place in places] for i in (0, 1, 2))
        return self._measure(tasks, lambda r: (r[..., later, tasks] - r[..., earlier, tasks]).mean(axis=-1))

    def _forgetting(self) -> Measure | None:
        """The best of several past scores lies above the truth by luck, so its interval is reflected, and it reaches at
        least as far as that of -BWT, which no luck lifts and which forgetting cannot be below."""
        past = {
            task: [row for row in range(task + 1, self.last) if self.is_accepted(row) and self._has(row, task)]
            for task in self.learnt
        }
        tasks = [task for task in self.learnt if past[task] and self._has(self.last, task)]

        def value(r: np.ndarray) -> np.ndarray:
            drops = [r[..., past[task], task].max(axis=-1) - r[..., self.last, task] for task in tasks]
            return np.mean(drops, axis=0)

        found = self._measure(tasks, value, is_reflected=True)
        lost = self._change([(task, task + 1, self.last) for task in tasks])
        if not found or not lost:
            return found
        return Measure(found.mean, min(found.low, lost.low), max(found.high, lost.high), found.n, found.tasks)

    def _measure(
        self,
        columns: Sequence[int],
        value: Callable[[np.ndarray], np.ndarray],
        lowest: float = -1.0,
        is_reflected: bool = False,
    ) -> Measure | None:
        """A figure with its interval: `value` takes R, or many resampled ones before it, [..., versions, columns]."""
        if not columns:
            return None
        mean, sizes = float(value(self._means)), [self._items[column].shape[1] for column in columns]
        low, high = statistics.resampled_interval(mean, value(self._resampled), sizes, is_reflected)
        names = tuple(self.columns[column].name for column in columns)
        return Measure(mean, max(low, lowest), min(high, 1.0), sum(sizes), names)

    # Scores as arrays

    @property
    def _suites(self) -> range:
        return range(len(self.tasks), len(self.columns))

    def _has(self, row: int, column: int) -> bool:
        return not np.isnan(self._means[row, column])

    @cached_property
    def _items(self) -> list[np.ndarray]:
        """A column's scores of the items that all its versions answered, [versions, items]; NaN rows have none."""
        return [_common_items(column.name, self.rows) for column in self.columns]

    @cached_property
    def _means(self) -> np.ndarray:
        """R, [versions, columns]."""
        return np.stack([items.mean(axis=1) for items in self._items], axis=-1)

    @cached_property
    def _resampled(self) -> np.ndarray:
        """Many R from resampled items, [resamples, versions, columns]."""
        return statistics.resampled_matrices(self._items)

    def _cell(self, row: int, column: int) -> Scores | None:
        if not self._has(row, column):
            return None
        task, scores, mean = self.columns[column], self._items[column][row], float(self._means[row, column])
        if statistics.is_right_or_wrong(scores.tolist()):
            low, high = statistics.wilson(round(scores.sum()), len(scores))
        else:
            low, high = statistics.resampled_interval(mean, self._resampled[:, row, column], [len(scores)])
        return Scores(task.name, task.metric, mean, max(low, 0.0), min(high, 1.0), len(scores))

    # Showing

    def document(self) -> dict[str, Any]:
        """What matrix.json holds. Scores are fractions; a measure that cannot be taken is null."""
        last = self.rows[self.last]
        return {
            "tasks": [task.name for task in self.tasks],
            "retention": [task.name for task in self.retention],
            "last": last.digest,
            "rows": [self._row_document(row) for row in range(len(self.rows))],
            **{name: measure.document() if measure else None for name, measure in self.measures.items()},
            "drift": last.drift,
            "latency_ms": last.latency_ms,
        }

    def _row_document(self, row: int) -> dict[str, Any]:
        version, new, old = self.rows[row], self.new_task(row), self.old_tasks(row)
        return {
            "version": version.name,
            "digest": version.digest,
            "learnt": self.tasks[row - 1].name if row else None,
            "accepted": self.is_accepted(row),
            "scores": [_rounded(asdict(cell)) for cell in self.cells[row] if cell],
            "new_task": new.document() if new else None,
            "old_tasks": old.document() if old else None,
            "drift": version.drift,
            "latency_ms": version.latency_ms,
        }

    def table(self) -> list[list[str | float | None]]:
        """A head and a line for each version, scores in %, as a spreadsheet takes it."""
        head = ["version", "digest", "verdict", *(column.name for column in self.columns)]
        lines = []
        for version, cells, verdict in zip(self.rows, self.cells, self.verdicts, strict=True):
            means = [round(100 * cell.mean, 2) if cell else None for cell in cells]
            drift = round(version.drift["mean"], DIGITS) if version.drift else None
            latency = [version.latency_ms.get(name) for name in ("p50", "p95")]
            lines.append([version.name, version.digest, verdict, *means, drift, *latency])
        return [[*head, "drift (nats per token)", "latency p50 (ms)", "latency p95 (ms)"], *lines]

    @property
    def verdicts(self) -> list[str]:
        return ["start", *("accepted" if version.accepted else "rejected" for version in self.rows[1:])]


def write(matrix: Matrix, folder: str | Path) -> dict[str, Any]:
    """matrix.json, matrix.csv and matrix.png in `folder`, each old or new and never half; returns the document."""
    folder, document = Path(folder), matrix.document()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "matrix.json", document)
    write_atomic(folder / "matrix.csv", _csv(matrix).encode("utf-8-sig"))  # spreadsheets take plain UTF-8 for Latin-1
    write_atomic(folder / "matrix.png", heatmap.picture(matrix))
    return document


def _csv(matrix: Matrix) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows(matrix.table())
    writer.writerow([])
    writer.writerow(["measure", "points", "low", "high", "mean over"])
    for name, measure in matrix.measures.items():
        if measure:
            values = (round(100 * value, 2) for value in (measure.mean, measure.low, measure.high))
            writer.writerow([name, *values, " ".join(measure.tasks)])
    return text.getvalue()


def _common_items(task: str, rows: Sequence[VersionScores]) -> np.ndarray:
    scored = [row.items[task] for row in rows if row.items.get(task)]
    if not scored:
        return np.full((len(rows), 1), np.nan)
    items = [item for item in scored[0] if all(item in scores for scores in scored)]
    if not items:
        raise BadInput(f"the versions share no answered item of {task}: shorten its prompts")
    missing = dict.fromkeys(items, np.nan)
    return np.array([[(row.items.get(task) or missing)[item] for item in items] for row in rows], float)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in values.items()}


# Printing


def print_matrix(matrix: Matrix, console: "Console | None" = None) -> None:
    """The matrix, and the measures below; tasks are named by their numbers when the terminal is too narrow for names,
    and take several tables when it is too narrow for numbers."""
    from rich.text import Text

    console = console or new_console()
    heads = [fit(column.name, MAX_NAME_CELLS) for column in matrix.columns]
    parts = _parts(heads, console.width)
    if len(parts) > 1:
        heads = [str(number) for number in range(1, len(heads) + 1)]
        parts = _parts(heads, console.width)
    for part in parts:
        console.print(_scores_table(matrix, heads, part))
    if heads[-1] == str(len(heads)):
        console.print(Text(", ".join(f"{head} {task.name}" for head, task in zip(heads, matrix.columns, strict=True))))
    console.print("in %; [ ]: the task that the version was to learn", markup=False)
    if any(matrix.measures.values()):
        console.print(_measures_table(matrix))


def _parts(heads: Sequence[str], width: int) -> list[range]:
    """Columns that stand side by side in a terminal so wide; a column takes its head or six figures, and its frame."""
    from rich.cells import cell_len

    room, parts, start, used = width - MAX_NAME_CELLS - 24, [], 0, 0
    for place, head in enumerate(heads):
        needed = max(cell_len(head), 6) + 3
        if used and used + needed > room:
            parts, start, used = [*parts, range(start, place)], place, 0
        used += needed
    return [*parts, range(start, len(heads))]


def _scores_table(matrix: Matrix, heads: Sequence[str], part: range) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for head in ("version", "verdict", *(heads[column] for column in part), "drift"):
        justify = "left" if head in ("version", "verdict") else "right"
        table.add_column(Text(head), justify=justify, no_wrap=True)
    for row, verdict in enumerate(matrix.verdicts):
        name, drift = fit(matrix.rows[row].name, MAX_NAME_CELLS), matrix.rows[row].drift
        shown = [_shown(matrix.cells[row][column], is_own=column == row - 1) for column in part]
        cells = (name, verdict, *shown, f"{drift['mean']:.3f}" if drift else "")
        table.add_row(*map(Text, cells), style="dim" if verdict == "rejected" else "")
    return table


def _measures_table(matrix: Matrix) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("measure", "points", "95% interval", "mean over"):
        table.add_column(column, justify="left" if column in ("measure", "mean over") else "right")
    for name, measure in matrix.measures.items():
        if measure:
            over = f"{len(measure.tasks)} {MEANT[name]}{'s' * (len(measure.tasks) > 1)}"
            table.add_row(name, points(measure.mean), span(measure.low, measure.high), over)
    return table


def _shown(cell: Scores | None, is_own: bool) -> str:
    text = points(cell.mean) if cell else "–"
    return f"[{text}]" if is_own else text
