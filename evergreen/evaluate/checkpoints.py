"""All checkpoints of a run on the same items: which one to keep, and where overfitting begins.

Promises: differences are paired; a later checkpoint is called best only when it beats the earlier ones by more than
chance; overfitting is claimed on evidence (a drop whose interval lies below 0, or an evaluation loss that keeps rising
while the training loss falls), and with too few items the answer is that it cannot be told. Writes `checkpoints.json`,
`checkpoints.png` and each checkpoint's results under its own name.
"""

import filecmp
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.evaluate import statistics
from evergreen.evaluate.harness import (
    Scored,
    compared_version,
    console,
    output_folder,
    points,
    score_version,
    span,
)
from evergreen.evaluate.statistics import Difference, Interval, Pairs
from evergreen.evaluate.tasks import Task
from evergreen.home import exclusive, read_jsonl, write_json
from evergreen.pictures import drawing
from evergreen.records import BadInput

if TYPE_CHECKING:
    from evergreen.settings import EvalSettings

CAN_SEE = 0.05  # an interval of a difference up to 5 points either way is narrow enough to deny a drop
WEIGHTS = (".safetensors", ".bin", ".pt")
RISE = 1.02  # evaluation losses within 2% of the least count as equal to it


@dataclass(frozen=True)
class Losses:
    """A run's log as (step, loss), in order of steps."""

    train: tuple[tuple[int, float], ...] = ()
    evaluated: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A point of a run with its scores, task by task in the same order of items for all checkpoints."""

    name: str
    step: int
    scores: tuple[tuple[float, ...], ...]

    @property
    def overall(self) -> Interval:
        return statistics.overall_interval(self.scores)


@dataclass(frozen=True)
class Judgement:
    """`best` is the earliest checkpoint that the highest one does not beat for sure; `overfits_from` is "" where no
    overfitting can be seen; `is_sure` is False when the items are too few to tell."""

    best: str
    highest: str
    overfits_from: str
    is_sure: bool
    conclusion: str


def run_checkpoints(settings: "EvalSettings", tasks: Sequence[Task]) -> dict[str, Any]:
    folder = Path(settings.checkpoints).expanduser()
    places = checkpoint_folders(folder)
    versions = {name: compared_version(str(place), settings) for name, (_, place) in places.items()}
    out = output_folder(settings, tasks, f"checkpoints-{folder.resolve().name}", list(versions.values()))
    with exclusive(out / ".lock", "evaluating into this folder"):
        scored = {name: score_version(version, tasks, settings, out / name) for name, version in versions.items()}
        points_of_run = _on_common_items(scored, tasks, {name: step for name, (step, _) in places.items()})
        return _write(folder, points_of_run, scored, tasks, out)


def _write(
    folder: Path, run: Sequence[Checkpoint], scored: dict[str, Scored], tasks: Sequence[Task], out: Path
) -> dict[str, Any]:
    losses = read_losses(folder)
    judgement = judge(run, losses)
    best = scored[judgement.best]
    picture = draw(run, [task.name for task in tasks], losses, judgement, out / "checkpoints.png")
    document = {
        "model": best.version.name,
        "tasks": [asdict(score) for score in best.scores],
        "latency_ms": best.latency_ms,
        "checkpoints": [
            {
                "name": point.name,
                "step": point.step,
                **asdict(point.overall),
                "tasks": [asdict(score) for score in scored[point.name].scores],
                "train_loss": _loss_at(losses.train, point.step, num_logged=3),
                "eval_loss": _loss_at(losses.evaluated, point.step),
            }
            for point in run
        ],
        **asdict(judgement),
        "picture": str(picture),
        "output_dir": str(out),
    }
    write_json(out / "checkpoints.json", document)
    _print(document, run, judgement)
    return document


def checkpoint_folders(folder: Path) -> dict[str, tuple[int, Path]]:
    """Name -> (step, folder), by step; the run's own folder comes last as "final" when its weights are not those of the
    last checkpoint. Raises BadInput, saying what is there, when there is no checkpoint."""
    if not folder.is_dir():
        raise BadInput(f"--checkpoints {folder}: no such folder")
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdecimal() and _weights(path)
    }
    if not steps:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:12])
        raise BadInput(
            f"{folder} holds no checkpoint-N folder with weights; it holds {inside or 'nothing'}: "
            "--checkpoints wants a run's output_dir"
        )
    found = {steps[step].name: (step, steps[step]) for step in sorted(steps)}
    last = max(steps)
    if _weights(folder) and not _same_weights(folder, steps[last]):
        found["final"] = (max([last, *(step for step, _ in read_losses(folder).train)]), folder)
    return found


def _weights(folder: Path) -> list[Path]:
    names = ("adapter_model", "model", "pytorch_model")  # optimizer.pt and training_args.bin are no weights
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and path.name.startswith(names))


def _same_weights(left: Path, right: Path) -> bool:
    ours, theirs = _weights(left), _weights(right)
    return [path.name for path in ours] == [path.name for path in theirs] and all(
        filecmp.cmp(a, b, shallow=False) for a, b in zip(ours, theirs, strict=True)
    )


def read_losses(folder: Path) -> Losses:
    """From trainer_log.jsonl, empty where there is none. Raises BadInput when it cannot be read."""
    path = folder / "trainer_log.jsonl"
    rows = list(read_jsonl(path)) if path.is_file() else []
    train, evaluated = (
        {row["current_steps"]: row[key] for row in rows if key in row and "current_steps" in row}
        for key in ("loss", "eval_loss")
    )
    return Losses(tuple(sorted(train.items())), tuple(sorted(evaluated.items())))


def _on_common_items(scored: dict[str, Scored], tasks: Sequence[Task], steps: dict[str, int]) -> list[Checkpoint]:
    def scores(one: Scored, task: Task) -> tuple[float, ...]:
        places = set.intersection(*(set(other.rows[task.name]) for other in scored.values()))
        return tuple(one.rows[task.name][place]["score"] for place in sorted(places))

    return [Checkpoint(name, steps[name], tuple(scores(one, task) for task in tasks)) for name, one in scored.items()]


# Judging


def difference(earlier: Checkpoint, later: Checkpoint) -> Difference:
    """later - earlier, paired."""
    pairs: list[Pairs] = list(zip(earlier.scores, later.scores, strict=True))
    return statistics.paired_difference(pairs)


def judge(run: Sequence[Checkpoint], losses: Losses = Losses()) -> Judgement:  # noqa: B008
    """Which checkpoint is best and where overfitting begins; see the module's promises."""
    highest = max(run, key=lambda point: point.overall.mean)
    best = next(point for point in run if point is highest or not difference(point, highest).is_real)
    after = list(run[run.index(best) + 1 :])
    against_best = {point.name: difference(best, point) for point in run if point is not best}
    dropped = next(
        (point for point in after if against_best[point.name].high < 0 and against_best[point.name].is_real), None
    )
    risen = loss_rises_from(losses)
    by_loss = next((point for point in after if risen is not None and point.step >= risen), None)
    overfits_from = min((point for point in (dropped, by_loss) if point), key=lambda point: point.step, default=None)
    widths = [against_best[point.name].high - against_best[point.name].low for point in after]
    half_width = max(widths, default=0.0) / 2
    is_sure = half_width <= CAN_SEE or (dropped is not None and best is highest)
    sentences = [
        _best_sentence(best, highest, run),
        _overfitting_sentence(best, after, dropped, risen, by_loss, half_width),
    ]
    if not is_sure:
        sentences.append(
            f"With {best.overall.n} items a difference below {points(half_width)} points cannot be told "
            "from chance: give more items."
        )
    return Judgement(best.name, highest.name, overfits_from.name if overfits_from else "", is_sure, " ".join(sentences))


def loss_rises_from(losses: Losses) -> int | None:
    """The first step after the evaluation loss's minimum from which it stays over 2% above it, while the training loss
    ends lower than it was there; None when it does not."""
    if len(losses.evaluated) < 2 or len(losses.train) < 2:
        return None
    step_of_least, least = min(losses.evaluated, key=lambda point: point[1])
    later = [(step, loss) for step, loss in losses.evaluated if step > step_of_least]
    above = [step for place, (step, _) in enumerate(later) if all(loss > RISE * least for _, loss in later[place:])]
    then, now = (_loss_at(losses.train, step, num_logged=3) for step in (step_of_least, losses.train[-1][0]))
    return above[0] if above and then is not None and now is not None and now < then else None


def _loss_at(losses: Sequence[tuple[int, float]], step: int, num_logged: int = 1) -> float | None:
    """The mean of the last losses logged up to a step; three of them smooth a training loss."""
    before = [loss for at, loss in losses if at <= step][-num_logged:]
    return sum(before) / len(before) if before else None


def _best_sentence(best: Checkpoint, highest: Checkpoint, run: Sequence[Checkpoint]) -> str:
    score = f"{points(best.overall.mean)}% (95%: {span(best.overall.low, best.overall.high)})"
    if len(run) == 1:
        return f"{best.name} is the only checkpoint, with {score}."
    if not any(difference(best, point).is_real for point in run if point is not best):
        return f"No checkpoint can be told from {best.name}, the earliest, with {score}."
    if best is highest:
        return f"{best.name} is best with {score}."
    ahead = difference(best, highest)
    return (
        f"{best.name} with {score} is as good as any later one: {highest.name} is ahead by {points(ahead.mean)} "
        f"points, which chance can explain (95%: {span(ahead.low, ahead.high)})."
    )


def _overfitting_sentence(
    best: Checkpoint,
    after: Sequence[Checkpoint],
    dropped: Checkpoint | None,
    risen: int | None,
    by_loss: Checkpoint | None,
    half_width: float,
) -> str:
    if dropped:
        drop = difference(best, dropped)
        text = (
            f"Overfitting begins at {dropped.name}: {points(-drop.mean)} points below {best.name} "
            f"(95%: {span(-drop.high, -drop.low)})."
        )
    elif by_loss:
        text = f"By the losses overfitting begins at {by_loss.name}, although no score has dropped for sure."
    elif risen is not None or not after:
        text = "" if risen is not None else "Nothing was scored after it, so overfitting cannot be seen."
    elif half_width > CAN_SEE:
        text = "Whether later checkpoints overfit cannot be told."
    else:
        text = "No later checkpoint is worse: overfitting is not seen."
    if risen is not None:
        text += f" From step {risen} on the evaluation loss rises while the training loss still falls."
    return text.strip()


# Showing


def _print(document: dict[str, Any], run: Sequence[Checkpoint], judgement: Judgement) -> None:
    from rich.markup import escape
    from rich.table import Table

    names = [score["task"] for score in document["tasks"]]
    table = Table(title="checkpoints: scores in %", title_justify="left")
    by_task = names if len(names) > 1 else []
    top = next(point for point in run if point.name == judgement.best)
    is_ahead = any(difference(top, point).is_real for point in run if point is not top)
    best = "best" if is_ahead or len(run) == 1 else "first of equals"
    for column in ("checkpoint", *by_task, "score", "95% interval", "loss (last 3 logs)", "evaluation loss", ""):
        table.add_column(escape(column), justify="left" if column in ("checkpoint", "") else "right")
    for row, point in zip(document["checkpoints"], run, strict=True):
        mark = best if point.name == judgement.best else "overfits" if point.name == judgement.overfits_from else ""
        means = [points(score["mean"]) for score in row["tasks"] if by_task]
        losses = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("train_loss", "eval_loss")]
        table.add_row(point.name, *means, points(row["mean"]), span(row["low"], row["high"]), *losses, mark)
    console().print(table)
    console().print(judgement.conclusion, markup=False, soft_wrap=True)
    console().print(f"picture: {document['picture']}", markup=False, soft_wrap=True)


def draw(run: Sequence[Checkpoint], names: Sequence[str], losses: Losses, judgement: Judgement, path: Path) -> Path:
    """Score with its interval at each checkpoint, and the losses on an axis of their own."""
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        _draw_scores(axes, run, names, judgement)
        if losses.train or losses.evaluated:
            _draw_losses(axes.twinx(), losses)
        figure.legend(loc="outside lower center", ncols=3, fontsize="small")
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
    return path


def _draw_scores(axes: Any, run: Sequence[Checkpoint], names: Sequence[str], judgement: Judgement) -> None:
    steps, overall = [point.step for point in run], [point.overall for point in run]
    reach = [[100 * (one.mean - one.low) for one in overall], [100 * (one.high - one.mean) for one in overall]]
    axes.errorbar(
        steps,
        [100 * one.mean for one in overall],
        yerr=reach,
        marker="o",
        capsize=4,
        zorder=3,
        label="score, 95% interval",
    )
    for place, name in enumerate(names if len(names) > 1 else []):
        means = [100 * sum(point.scores[place]) / len(point.scores[place]) for point in run]
        axes.plot(steps, means, lw=0.9, alpha=0.7, marker=".", label=name)
    marked = {judgement.best: ("tab:green", "best"), judgement.overfits_from: ("tab:red", "overfitting")}
    for point in run:
        if point.name in marked:
            colour, word = marked[point.name]
            axes.axvline(point.step, color=colour, ls=":", label=f"{word}: {point.name}")
    axes.set(xlabel="optimizer step", ylabel="score in %", ylim=(-2, 102), xticks=steps)
    axes.grid(alpha=0.3)


def _draw_losses(axes: Any, losses: Losses) -> None:
    for curve, style, word in ((losses.train, "-", "training loss"), (losses.evaluated, "--", "evaluation loss")):
        if curve:
            axes.plot(*zip(*curve, strict=True), style, color="0.55", lw=1, label=word)
    axes.set_ylabel("loss per token")
