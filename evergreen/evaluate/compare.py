"""Two versions on identical items: is one better, by how much, and how sure is that.

Promises: only items that both answered count; differences are paired; the conclusion is one plain sentence, and it
claims a difference only when the interval and the exact test agree. Writes `compare.json`, `compare-TASK.jsonl` with
both answers side by side, and each version's own results under `a/` and `b/`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.evaluate import statistics
from evergreen.evaluate.harness import (
    Scored,
    Version,
    compared_version,
    console,
    output_folder,
    points,
    score_version,
    span,
)
from evergreen.evaluate.statistics import Difference, McNemar, Pairs
from evergreen.evaluate.tasks import Task
from evergreen.home import exclusive, write_json, write_jsonl
from evergreen.records import BadInput

if TYPE_CHECKING:
    from evergreen.settings import EvalSettings

NUM_EXAMPLES = 5
SEEN_POINTS = 0.02


@dataclass(frozen=True)
class Comparison:
    """Of b against a, on one task or, with task "overall", on the mean of all tasks."""

    task: str
    metric: str
    mean_a: float
    mean_b: float
    difference: Difference
    mcnemar: McNemar | None = None  # for right/wrong scores

    def document(self) -> dict[str, Any]:
        difference = self.difference
        return {
            "task": self.task,
            "metric": self.metric,
            "mean_a": self.mean_a,
            "mean_b": self.mean_b,
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "p_value": difference.p_value,
            "n": difference.n,
            "items_needed": statistics.items_needed(difference, SEEN_POINTS),
            "mcnemar": asdict(self.mcnemar) if self.mcnemar else None,
        }


def run_compare(settings: "EvalSettings", tasks: Sequence[Task]) -> dict[str, Any]:
    a, b = (compared_version(name, settings) for name in settings.compare)
    out = output_folder(settings, tasks, f"{Path(a.name).name}-{Path(b.name).name}", [a, b])
    with exclusive(out / ".lock", "evaluating into this folder"):
        scored_a = score_version(a, tasks, settings, out / "a")
        scored_b = score_version(b, tasks, settings, out / "b")
        document = write_comparison(scored_a, scored_b, tasks, out)
    return document


def write_comparison(a: Scored, b: Scored, tasks: Sequence[Task], out: Path) -> dict[str, Any]:
    """Compare, print and write; returns compare.json's content. `tasks` and `latency_ms` in it are b's."""
    compared = [compare_task(task, a, b) for task in tasks]
    overall = compare_overall(tasks, a, b)
    sentence = conclusion(overall, a.version, b.version)
    rows = {task.name: _side_by_side(task, a, b) for task in tasks}
    for name, paired in rows.items():
        write_jsonl(out / f"compare-{name}.jsonl", paired)
    every = [{"task": name, **row} for name, paired in rows.items() for row in paired]
    won, lost = _largest(every, +1), _largest(every, -1)
    document = {
        "a": a.document(),
        "b": b.document(),
        "tasks": [asdict(score) for score in b.scores],
        "latency_ms": b.latency_ms,
        "compared": [one.document() for one in compared],
        "overall": overall.document(),
        "won": won,
        "lost": lost,
        "conclusion": sentence,
        "output_dir": str(out),
    }
    write_json(out / "compare.json", document)
    _print(compared if len(compared) == 1 else [*compared, overall], won, lost, a.version, b.version)
    console().print(sentence, markup=False, soft_wrap=True)
    console().print(f"all items side by side are in {out}", markup=False, soft_wrap=True)
    return document


def pairs_of(task: Task, a: Scored, b: Scored) -> Pairs:
    """Scores of the items that both have, in order. Raises BadInput when they have none in common."""
    places = [place for place in a.rows[task.name] if place in b.rows[task.name]]
    if not places:
        raise BadInput(f"{a.version.name} and {b.version.name} share no answered item of {task.name}: shorten prompts")
    return tuple([scored.rows[task.name][place]["score"] for place in places] for scored in (a, b))


def compare_task(task: Task, a: Scored, b: Scored) -> Comparison:
    pairs = pairs_of(task, a, b)
    mean_a, mean_b = (sum(scores) / len(scores) for scores in pairs)
    counts = statistics.mcnemar(*pairs) if statistics.is_right_or_wrong(*pairs) else None
    return Comparison(task.name, task.metric, mean_a, mean_b, statistics.paired_difference([pairs]), counts)


def compare_overall(tasks: Sequence[Task], a: Scored, b: Scored) -> Comparison:
    """Every task weighs the same. McNemar's counts are of all items when every task is right/wrong."""
    pairs = [pairs_of(task, a, b) for task in tasks]
    means_a, means_b = ([sum(scores) / len(scores) for scores in side] for side in zip(*pairs, strict=True))
    joined = [[score for scores in side for score in scores] for side in zip(*pairs, strict=True)]
    counts = statistics.mcnemar(*joined) if statistics.is_right_or_wrong(*joined) else None
    metrics = {task.metric for task in tasks}
    return Comparison(
        "overall",
        metrics.pop() if len(metrics) == 1 else "mixed",
        sum(means_a) / len(tasks),
        sum(means_b) / len(tasks),
        statistics.paired_difference(pairs),
        counts,
    )


def conclusion(overall: Comparison, a: Version, b: Version) -> str:
    """One sentence in points of a hundred."""
    difference, (better, worse) = overall.difference, (b, a)
    low, high = difference.low, difference.high
    if difference.mean < 0:
        (better, worse), (low, high) = (a, b), (-high, -low)
    if difference.is_real:
        return (
            f"{better.name} is better than {worse.name} by {points(abs(difference.mean))} points "
            f"(95%: {span(low, high)}; {difference.n} items)."
        )
    needed = statistics.items_needed(difference, SEEN_POINTS)
    seen = f"no difference between {a.name} and {b.name} can be seen with {_items(difference.n)}"
    measured = f"{points(abs(difference.mean))} points for {better.name}, 95%: {span(low, high)}"
    if needed is None and difference.mean:
        return f"{seen} ({measured}): every item differs alike, and they are too few to tell."
    if needed is None:
        return f"{seen}: they score the same on every one (95%: {span(low, high)} points)."
    if needed <= difference.n:
        return f"{seen} ({measured}), and {points(SEEN_POINTS)} points would have been seen."
    return f"{seen} ({measured}); {needed} items would be needed to see {points(SEEN_POINTS)} points."


def _items(n: int) -> str:
    return "1 item" if n == 1 else f"{n} items"


def _side_by_side(task: Task, a: Scored, b: Scored) -> list[dict[str, Any]]:
    ours, theirs = b.rows[task.name], a.rows[task.name]
    return [
        {
            "id": row["id"],
            "prompt": row["prompt"],
            "reference": row["reference"],
            "answer_a": row["answer"],
            "answer_b": ours[place]["answer"],
            "score_a": row["score"],
            "score_b": ours[place]["score"],
        }
        for place, row in theirs.items()
        if place in ours
    ]


def _largest(rows: Sequence[dict], sign: int) -> list[dict]:
    """The items that b won (+1) or lost (-1) by most, the first of equal ones."""
    gain = {id(row): sign * (row["score_b"] - row["score_a"]) for row in rows}
    return [row for row in sorted(rows, key=lambda row: -gain[id(row)]) if gain[id(row)] > 0][:NUM_EXAMPLES]


def _print(compared: Sequence[Comparison], won: Sequence[dict], lost: Sequence[dict], a: Version, b: Version) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"A = {escape(a.name)}, B = {escape(b.name)}: scores in %", title_justify="left")
    for column in ("task", "metric", "A", "B", "B - A", "95% interval", "p", "n"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right", overflow="fold")
    counted = Table(title="right and wrong answers", title_justify="left")
    for column in ("task", "both right", "only A", "only B", "both wrong", "McNemar's p"):
        counted.add_column(column, justify="left" if column == "task" else "right", overflow="fold")
    for one in compared:
        difference = one.difference
        table.add_row(
            escape(one.task),
            one.metric,
            points(one.mean_a),
            points(one.mean_b),
            points(difference.mean),
            span(difference.low, difference.high),
            f"{difference.p_value:.3f}",
            str(difference.n),
        )
        if counts := one.mcnemar:
            counted.add_row(
                escape(one.task),
                str(counts.both),
                str(counts.only_a),
                str(counts.only_b),
                str(counts.neither),
                f"{counts.p_value:.3f}",
            )
    console().print(table)
    if counted.row_count:
        console().print(counted)
    for title, rows in (("won by B", won), ("lost by B", lost)):
        if rows:
            console().print(_examples(title, rows))


def _examples(title: str, rows: Sequence[dict]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("task", "id", "prompt (end)", "reference", "A", "B"):
        table.add_column(column, overflow="fold")
    for row in rows:
        reference = row["reference"] if isinstance(row["reference"], str) else " | ".join(row["reference"])
        texts = (
            row["task"],
            row["id"],
            short(row["prompt"], from_end=True),
            short(reference),
            short(row["answer_a"]),
            short(row["answer_b"]),
        )
        table.add_row(*map(escape, texts))
    return table


def short(text: str, max_characters: int = 60, from_end: bool = False) -> str:
    text = " ".join(text.split())
    if len(text) <= max_characters:
        return text
    return "…" + text[1 - max_characters :] if from_end else text[: max_characters - 1] + "…"
