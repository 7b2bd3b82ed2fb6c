"""Scoring: a version answers every item of every task; what it said and what it got are kept row by row.

Promises: rows are on the disk as they come, so an evaluation that was stopped goes on where it stood: an item is asked
again only when the model, its prompt or the sampling changed (another metric only scores anew); answers are greedy;
the thought between <think> and </think> is not scored. `scores.json` and `items-TASK.jsonl` (in the order of the task
file) are what `OUT` holds. Does not: judge with another model, or run code.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.data.formats import Skipped
from evergreen.evaluate import statistics
from evergreen.evaluate.metrics import METRICS
from evergreen.evaluate.tasks import Item, Task, read_tasks
from evergreen.home import (
    append_jsonl,
    digest_of,
    disk_failure,
    exclusive,
    home_dir,
    home_place,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from evergreen.records import BadInput, Completion, Sampling, Scores

if TYPE_CHECKING:
    from rich.console import Console

    from evergreen.engine.engine import Engine
    from evergreen.settings import EvalSettings

MEASURED = ("latency_seconds", "prompt_tokens", "completion_tokens", "finish_reason")


@dataclass(frozen=True)
class Version:
    """What is scored: a model with its adapters, and a digest of both. `system` and `template` are a release's own."""

    name: str
    reference: str
    adapters: tuple[str, ...] = ()
    digest: str = ""
    system: str | None = None
    template: str = ""


@dataclass(frozen=True)
class Scored:
    """A version's rows by task and item number; an item that could not be asked has none."""

    version: Version
    rows: dict[str, dict[int, dict]]
    scores: list[Scores]
    latency_ms: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "model": self.version.name,
            "tasks": [asdict(score) for score in self.scores],
            "latency_ms": self.latency_ms,
        }


def run_eval(settings: "EvalSettings") -> dict[str, Any]:
    """`evergreen eval`: score one version, compare two, or score all checkpoints of a run. Prints, writes, and returns
    the JSON document. Raises BadInput for what cannot be evaluated, before any model is loaded."""
    from evergreen.evaluate.checkpoints import run_checkpoints
    from evergreen.evaluate.compare import run_compare

    if settings.compare and settings.checkpoints:
        raise BadInput("--compare and --checkpoints are two ways to evaluate: give one of them")
    if settings.compare and len(settings.compare) != 2:
        raise BadInput(
            f"--compare wants two models, adapters or checkpoints, got {len(settings.compare)}: "
            f"{' '.join(settings.compare)}"
        )
    if settings.adapters and (settings.compare or settings.checkpoints):
        raise BadInput("--adapters does not go with --compare or --checkpoints: name the adapters there")
    skipped = Skipped()
    tasks = read_tasks(settings.eval_dataset, settings.metric, settings.max_samples, settings.on_bad_row, skipped)
    if skipped.count:
        console().print(f"{skipped.count} rows left out, such as {skipped.examples[0]}", markup=False)
    run = run_compare if settings.compare else run_checkpoints if settings.checkpoints else run_one
    try:
        return run(settings, tasks)
    except OSError as error:
        raise disk_failure(error, "evaluating") from error


def run_one(settings: "EvalSettings", tasks: Sequence[Task]) -> dict[str, Any]:
    version = version_of(settings.model, settings.adapters, settings)
    out = output_folder(settings, tasks, Path(version.name).name, [version])
    with exclusive(out / ".lock", "evaluating into this folder"):
        scored = score_version(version, tasks, settings, out)
    print_scores(scored, tasks)
    console().print(f"answers and scores are in {out}", markup=False, soft_wrap=True)
    return {**scored.document(), "output_dir": str(out)}


def score_version(
    version: Version, tasks: Sequence[Task], settings: "EvalSettings", out: Path, is_quiet: bool = False
) -> Scored:
    """Rows and scores of one version, written under `out`; what is there already is not asked again."""
    out.mkdir(parents=True, exist_ok=True)
    _say_what_is_replaced(out, version)
    settings = _with_prompt(version, settings)
    sampling = Sampling(max_new_tokens=settings.max_new_tokens)
    asked_with = [version.digest, asdict(sampling), settings.system, settings.template, settings.torch_dtype]
    keys = {task.name: [digest_of([*asked_with, item.digest]) for item in task.items] for task in tasks}
    answers = {task.name: _known_answers(_items_file(out, task), set(keys[task.name])) for task in tasks}
    missing = {task.name: _first_places(keys[task.name], answers[task.name]) for task in tasks}
    if any(missing.values()):
        _ask(version, tasks, missing, keys, answers, settings, sampling, out, is_quiet)
    rows = {
        task.name: {
            place: _row(task, task.items[place], answers[task.name][key], key)
            for place, key in enumerate(keys[task.name])
            if key in answers[task.name]
        }
        for task in tasks
    }
    for task in tasks:
        if not rows[task.name]:
            raise BadInput(f"no prompt of {task.name} fits into the context of {version.name}")
        write_jsonl(_items_file(out, task), rows[task.name].values())
    scored = Scored(version, rows, [_scores(task, rows[task.name]) for task in tasks], _latency_ms(rows))
    write_json(out / "scores.json", scored.document() | {"digest": version.digest})
    return scored


def _ask(
    version: Version,
    tasks: Sequence[Task],
    missing: dict[str, list[int]],
    keys: dict[str, list[str]],
    answers: dict[str, dict[str, dict]],
    settings: "EvalSettings",
    sampling: Sampling,
    out: Path,
    is_quiet: bool,
) -> None:
    """Generate the answers to `missing` into `answers` and, one by one, into the items files."""
    engine, encode = open_engine(version, settings)
    prompts = {task.name: _prompts(task, missing[task.name], engine, encode, settings.on_bad_row) for task in tasks}
    with _progress(is_quiet) as progress:
        bar = progress.add_task(version.name, total=sum(map(len, prompts.values())))
        for task in tasks:
            places = list(prompts[task.name])

            def done(number: int, completion: Completion, task: Task = task, places: list[int] = places) -> None:
                place = places[number]
                key, answer = keys[task.name][place], _answer(completion)
                answers[task.name][key] = answer
                append_jsonl(_items_file(out, task), _row(task, task.items[place], answer, key))
                progress.advance(bar)

            if places:
                engine.generate(list(prompts[task.name].values()), sampling, settings.batch_size, on_done=done)
    del engine, encode
    gc.collect()  # the next version needs the memory


def open_engine(
    version: Version, settings: "EvalSettings", prefix_caching: bool = True
) -> "tuple[Engine, Callable[[Item], list[int]]]":
    """The version ready to generate, and the prompt ids of an item for it."""
    from evergreen.engine.engine import Engine, settings_for
    from evergreen.model.load import load_for
    from evergreen.model.template import prompt_ids

    loaded = load_for(settings, version.reference, version.adapters)
    engine = Engine(loaded, settings_for(settings.batch_size, prefix_caching=prefix_caching))
    return engine, lambda item: prompt_ids(item.messages, loaded.tokenizer, item.tools, loaded.system)


def _prompts(
    task: Task, places: Sequence[int], engine: "Engine", encode: Callable[[Item], list[int]], on_bad_row: str
) -> dict[int, list[int]]:
    """Prompt ids by item number. Raises BadInput, or leaves the item out, when a prompt fills the whole context."""
    prompts = {place: encode(task.items[place]) for place in places}
    limit = getattr(engine, "max_context_tokens", None) or len(max(prompts.values(), key=len, default=[])) + 1
    too_long = [place for place, ids in prompts.items() if len(ids) >= limit]
    if too_long and on_bad_row != "skip":
        raise over_limit(task.items[too_long[0]], len(prompts[too_long[0]]), limit)
    if too_long:
        console().print(
            f"{task.name}: {len(too_long)} prompts do not fit into {limit} tokens and are left out", markup=False
        )
    return {place: ids for place, ids in prompts.items() if len(ids) < limit}


def over_limit(item: Item, num_tokens: int, limit: int) -> BadInput:
    wanted = f"the prompt has {num_tokens} tokens, the model's context holds {limit}"
    return BadInput(f"{item.origin}: {wanted}: shorten it, or --on_bad_row skip leaves such items out")


def _with_prompt(version: Version, settings: "EvalSettings") -> "EvalSettings":
    """A flag goes before what the version brings."""
    system = version.system if settings.system is None else settings.system
    return replace(settings, system=system, template=settings.template or version.template)


# Versions


def version_of(reference: str, adapters: Sequence[str], settings: "EvalSettings") -> Version:
    """Raises BadInput when there is no such model or adapter."""
    from evergreen.model.load import reference_digest, resolve

    found = resolve(reference, adapters)
    name = str(adapters[-1]) if adapters else reference
    return Version(name, reference, tuple(adapters), reference_digest(found))


def compared_version(name: str, settings: "EvalSettings") -> Version:
    """One of --compare's two: a release, an alias or a version of the home with the prompt that it brings; an adapter,
    which goes on --model where that is given; anything else stands for itself."""
    from evergreen.model.load import find_model, is_adapter
    from evergreen.registry import locate, prompt_of

    home = home_place(settings.home)
    if found := locate(name, home):
        prompt = prompt_of(name, home)
        made = version_of(found[0], found[1], settings)
        return replace(made, name=name, system=prompt.get("system"), template=prompt.get("template") or "")
    on_model = bool(settings.model) and is_adapter(find_model(name))
    version = version_of(settings.model, [name], settings) if on_model else version_of(name, [], settings)
    return Version(name, version.reference, version.adapters, version.digest)


def output_folder(settings: "EvalSettings", tasks: Sequence[Task], name: str, versions: Sequence[Version]) -> Path:
    """--output_dir, else a folder under HOME/reports, the same one for the same evaluation, so that it resumes."""
    if settings.output_dir:
        return Path(settings.output_dir).expanduser()
    asked = [[task.name, [item.digest for item in task.items]] for task in tasks]
    digest = digest_of([[version.digest for version in versions], asked, settings.max_new_tokens, settings.system])
    return home_dir(settings.home or None) / "reports" / f"eval-{name[:80]}-{digest[:8]}"


# Rows


def _items_file(out: Path, task: Task) -> Path:
    return out / f"items-{task.name}.jsonl"


def _known_answers(path: Path, keys: set[str]) -> dict[str, dict]:
    """Answers that an earlier evaluation left, by key. Rewrites the file without a torn last line or others' rows."""
    if not path.is_file():
        return {}
    rows = [
        row for row in read_jsonl(path, "delete the file, or choose another --output_dir") if row.get("key") in keys
    ]
    write_jsonl(path, rows)
    return {row["key"]: row for row in rows}


def _say_what_is_replaced(out: Path, version: Version) -> None:
    earlier = read_json(out / "scores.json") if (out / "scores.json").is_file() else {}
    if earlier.get("digest", version.digest) != version.digest:
        console().print(
            f"{out} held the results of {earlier.get('model')} as it was then; those of {version.name} replace them",
            markup=False,
        )


def _first_places(keys: Sequence[str], known: dict[str, dict]) -> list[int]:
    """Where each key that is not known stands first: equal prompts are asked once."""
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key not in known:
            places.setdefault(key, place)
    return list(places.values())


def _answer(completion: Completion) -> dict[str, Any]:
    return {
        "answer": completion.text,
        "latency_seconds": round(completion.latency_seconds, 4),
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "finish_reason": completion.finish_reason,
    }


def _row(task: Task, item: Item, answer: dict, key: str) -> dict[str, Any]:
    """One line of an items file. The score is computed from the answer each time, so that it fits the metric asked."""
    references = list(item.references)
    score = METRICS[task.metric](answer["answer"], references, item)
    return {
        "id": item.id,
        "prompt": item.question,
        "reference": references[0] if len(references) == 1 else references,
        "answer": answer["answer"],
        "score": round(score, 6),
        "metric": task.metric,
        **{name: answer[name] for name in MEASURED},
        "key": key,
    }


def _scores(task: Task, rows: dict[int, dict]) -> Scores:
    interval = statistics.mean_interval([row["score"] for row in rows.values()])
    return Scores(task.name, task.metric, interval.mean, interval.low, interval.high, interval.n)


def _latency_ms(rows: dict[str, dict[int, dict]]) -> dict[str, float]:
    all_rows = [row for of_task in rows.values() for row in of_task.values()]
    return statistics.percentiles([1000 * row["latency_seconds"] for row in all_rows])


# Printing


def console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def points(fraction: float) -> str:
    """A fraction as percentage points with one decimal."""
    return f"{round(100 * fraction, 1) + 0.0:.1f}"


def span(low: float, high: float) -> str:
    return f"{points(low)} to {points(high)}"


def print_scores(scored: Scored, tasks: Sequence[Task]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(scored.version.name)}: scores in %", title_justify="left")
    for column in ("task", "metric", "score", "95% interval", "items", "cut off"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for score in scored.scores:
        num_cut = sum(row["finish_reason"] == "length" for row in scored.rows[score.task].values())
        table.add_row(
            escape(score.task),
            score.metric,
            points(score.mean),
            span(score.low, score.high),
            str(score.n),
            str(num_cut),
        )
    console().print(table)
    seconds = {name: f"{value / 1000:.2f}" for name, value in scored.latency_ms.items()}
    console().print(f"seconds per answer, in batches as asked: median {seconds['p50']}, 95% below {seconds['p95']}")


def _progress(is_quiet: bool) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=console(stderr=True),
        disable=is_quiet,
    )
