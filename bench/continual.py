"""Which ways of continual learning pay: the same increments, the same rows, the same epochs, one method after another.

    python bench/continual.py [--sequence nano|trace] [--methods sequential replay_5 ...] [--seeds 0 1 2] [--json]

Promises: the first increment is trained once a seed and shared, so that all methods start from the same model; every
(method, seed, increment) is kept in --work_dir and never trained or scored twice; compute is counted, not timed: the
floating point operations of the matrices, with teachers, probes and generation (attention scores, below 5% here, are
left out).
A method named NAME= has its epochs scaled so that it costs what sequential fine-tuning does.
Does not: choose a method by the items it reports (choose with --seeds 100, report with others).

nano: five invented skills (skills.py) on the shipped 6 M parameter model; half a minute an increment on an idle core.
trace: a model of bench/train.py's small shape, pre-trained here on the prompts of TRACE and on instructions (about 40
minutes on one core, once), then C-STANCE, 20Minuten, Py150, ScienceQA (about ten minutes an increment).
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import skills
import tracedata
from operations import Counter, Work, size_of
from rich.console import Console
from rich.table import Table

from evergreen.home import read_json, write_json, write_jsonl
from evergreen.records import Record
from evergreen.settings import EvalSettings, EvolveSettings, SftSettings

# What a method changes from the second increment on, by the name of a field of SftSettings.
REPLAY_5 = {"replay_samples": 0.05}
OF_EVOLVE = ("replay_samples", "replay_repeats", "regularization", "regularization_alpha")
METHODS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "replay_1": {"replay_samples": 0.01},
    "replay_5": REPLAY_5,
    "replay_10": {"replay_samples": 0.10},
    "replay_5_thrice": {**REPLAY_5, "replay_repeats": 3},
    "l2sp": {"regularization": "l2sp", "regularization_alpha": 0.003},
    "ewc": {**REPLAY_5, "regularization": "ewc", "regularization_alpha": 3.0},
    "ewc_twice": {**REPLAY_5, "replay_repeats": 2, "regularization": "ewc", "regularization_alpha": 6.0},
    "kl": {**REPLAY_5, "regularization": "kl", "regularization_alpha": 1.0},
    "o_lora": {"chain": "stack", "orthogonal_lambda": 0.5},
    "freeze": {"freeze_layers": "LOWER"},
    "unfreeze": {**REPLAY_5, "unfreeze": "auto"},
    "onpolicy": {**REPLAY_5, "replay_answers": "onpolicy"},
    "default": {name: getattr(EvolveSettings(), name) for name in OF_EVOLVE},
}


@dataclass(frozen=True)
class Stream:
    """Tasks in their order, the model that learns them, and how every increment is trained and scored."""

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    model: Callable[["Bench"], str]
    write: Callable[["Bench", Path, int], None]
    training: dict[str, Any]
    max_new_tokens: int
    lower: str  # the lower third of the layers


class Bench:
    """One sequence in one work folder."""

    def __init__(self, sequence: Stream, work_dir: Path, console: Console):
        self.sequence, self.console = sequence, console
        self.work_dir = work_dir / sequence.name
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.model = sequence.model(self)

    # -- one line: a method, a seed

    def line(self, method: str, seed: int) -> dict[str, Any]:
        """Scores R[j][j] and R[last][j], and the work, of every increment. Trains and scores what is missing."""
        tasks = self.sequence.tasks
        folders = [self.folder(method, seed, number) for number in range(len(tasks))]
        own: list[float] = []
        for number, folder in enumerate(folders):
            self.train(method, seed, number, folder, folders[number - 1] if number else None)
            own.append(self.score(folder, seed, number)["mean"])
            self.say(f"{method} seed {seed}: {tasks[number]} {100 * own[-1]:.1f}")
        last = [self.score(folders[-1], seed, number)["mean"] for number in range(len(tasks))]
        works = [read_json(folder / "work.json") for folder in folders]
        document = {"method": method, "seed": seed, "own": own, "last": last, **figures(own, last)}
        document["flop"] = sum(sum(work["flop"].values()) for work in works[1:])
        document["seconds"] = sum(work["seconds"] for work in works[1:])
        self.say(f"{method} seed {seed}: OP {document['OP']:.1f} BWT {document['BWT']:.1f} LA {document['LA']:.1f}")
        return document

    def folder(self, method: str, seed: int, number: int) -> Path:
        return self.work_dir / f"seed{seed}" / (method if number else "first") / str(number)

    def data(self, seed: int, number: int) -> tuple[Path, Path]:
        """Train rows and dev items of a task, written at the first call."""
        place = self.work_dir / f"seed{seed}" / "data" / self.sequence.tasks[number]
        files = place / "train.jsonl", place / f"{self.sequence.tasks[number]}.jsonl"
        if not files[1].is_file():
            self.sequence.write(self, place, seed)
        return files

    def say(self, text: str) -> None:
        self.console.print(f"{time.strftime('%H:%M:%S')}  {text}", style="dim", highlight=False)

    # -- training

    def train(self, method: str, seed: int, number: int, folder: Path, previous: Path | None) -> None:
        if (folder / "work.json").is_file():
            return
        from evergreen.train.sft import run_sft

        folder.mkdir(parents=True, exist_ok=True)
        given = self.settings(method, seed, number, folder, previous)
        work = Work(lowest_layer(given, self.config))
        with _quietly(folder / "log.txt"):
            done = run_sft(given, self.parts(given, work))
        training = partial(self.counter(given).training, lowest=work.lowest)
        work.add("new", given.num_train_epochs * training(*self.count(_records(self.data(seed, number)[0]))))
        work.add("replay", given.num_train_epochs * training(*self.count(self.replayed)))
        write_json(folder / "work.json", {"flop": work.parts, "seconds": done["loop_seconds"], "steps": done["steps"]})
        gc.collect()

    def settings(self, method: str, seed: int, number: int, folder: Path, previous: Path | None) -> SftSettings:
        overrides = dict(self.sequence.training)
        if previous:
            overrides |= dict(METHODS[method.rstrip("=")], prev_model=str(previous / "out"))
            if overrides.get("freeze_layers") == "LOWER":
                overrides["freeze_layers"] = self.sequence.lower
            if method.endswith("="):
                overrides["num_train_epochs"] *= self.equal_share(method.rstrip("="), seed, number)
        else:
            overrides["model"] = self.model
        return SftSettings(
            **overrides,
            dataset=[str(self.data(seed, number)[0])],
            output_dir=str(folder / "out"),
            overwrite_output_dir=True,
            seed=seed,
            json=True,
            plot_loss=False,
            report_to="none",
            save_only_model=True,
        )

    def equal_share(self, method: str, seed: int, number: int) -> float:
        """The share of its epochs with which a method costs what sequential fine-tuning does."""
        place = self.folder(method, seed, number) / "work.json"
        anchor = self.folder("sequential", seed, number) / "work.json"
        if not (place.is_file() and anchor.is_file()):
            sys.exit(f"{method}= needs the lines of sequential and of {method}: run them first")
        own, wanted = read_json(place)["flop"], sum(read_json(anchor)["flop"].values())
        steps = own["new"] + own["replay"]
        return (wanted - (sum(own.values()) - steps)) / steps

    def parts(self, given: SftSettings, work: Work) -> Any:
        """The product's parts for these settings, with what they cost counted into `work`."""
        from evergreen.continual.parts import parts_of

        self.replayed: list[Record] = []
        counter = self.counter(given)
        parts = parts_of(given, **self.answering(given, work))

        def replay(num_new: int) -> list[Record]:
            self.replayed = list(parts.replay(num_new))
            return self.replayed

        def teach(records: Sequence, top_tokens: Any) -> Any:
            work.add("teacher", counter.forward(*size_of(records)))
            return parts.teach(records, top_tokens)

        def choose_layers(model: Any, new_rows: Sequence, old_rows: Sequence, row_loss: Any) -> set[int]:
            work.add("probe", counter.training(*size_of([*new_rows, *old_rows])))
            chosen = parts.choose_layers(model, new_rows, old_rows, row_loss)
            work.lowest = min(chosen)
            return chosen

        def penalty(model: Any, old_rows: Sequence, row_loss: Any) -> Any:
            if given.regularization == "ewc":
                work.add("fisher", counter.training(*size_of(old_rows)))
            return parts.penalty(model, old_rows, row_loss)

        counted = {"replay": replay, "teach": teach, "choose_layers": choose_layers, "penalty": penalty}
        return replace(parts, **{name: wrap for name, wrap in counted.items() if getattr(parts, name)})

    def answering(self, given: SftSettings, work: Work) -> dict[str, Any]:
        """What --replay_answers onpolicy needs; every token of a prompt and of its answer costs a forward pass."""
        if given.replay_answers != "onpolicy":
            return {}
        from evergreen.evaluate.harness import version_of
        from evergreen.evaluate.onpolicy import answering
        from evergreen.records import Conversation, Message

        asking = EvalSettings(batch_size=32, max_new_tokens=self.sequence.max_new_tokens)
        generate, score = answering(version_of(given.prev_model, [], asking), asking, given.seed)

        def counted(prompts: Sequence) -> list[str]:
            answers = generate(prompts)
            asked = [
                Conversation((*turns, Message("assistant", text or "-")))
                for turns, text in zip(prompts, answers, strict=True)
            ]
            work.add("generation", self.counter(given).forward(*self.count(asked)))
            return answers

        return {"generate": counted, "score": score}

    # -- counting and scoring

    @cached_property
    def config(self) -> Any:
        from evergreen.model.load import load_config

        return load_config(self.model_base)

    @cached_property
    def tokenizer(self) -> Any:
        from evergreen.model.load import load_tokenizer

        return load_tokenizer(self.model_base, self.model_base, "")

    @cached_property
    def model_base(self) -> str:
        from evergreen.model.load import resolve

        return resolve(self.model).base

    def counter(self, given: SftSettings) -> Counter:
        return Counter(self.config, given.lora_rank)

    def count(self, records: Iterable[Record]) -> tuple[int, int]:
        """Tokens and targets of records."""
        from evergreen.model.template import encode

        encoded = [encode(record, self.tokenizer, None, "all") for record in records]
        return sum(len(one.ids) for one in encoded), sum(sum(one.is_target) for one in encoded)

    def score(self, folder: Path, seed: int, number: int) -> dict[str, float]:
        """Mean score of the increment's model on a task, kept beside it."""
        from evergreen.evaluate.harness import score_version, version_of
        from evergreen.evaluate.tasks import read_tasks

        kept = folder / f"score-{number}.json"
        if not kept.is_file():
            given = EvalSettings(batch_size=32, max_new_tokens=self.sequence.max_new_tokens, on_bad_row="skip")
            with _quietly(folder / "log.txt"):
                task = read_tasks([str(self.data(seed, number)[1])], self.sequence.metrics[number])
                scored = score_version(version_of(str(folder / "out"), [], given), task, given, folder / "scores")
            write_json(kept, {"mean": scored.scores[0].mean, "n": scored.scores[0].n})
            gc.collect()
        return read_json(kept)


def lowest_layer(given: SftSettings, config: Any) -> int:
    from evergreen.train.tune import learning_layers

    layers = learning_layers(given, config)
    return 0 if layers is None else min(layers)


def figures(own: Sequence[float], last: Sequence[float]) -> dict[str, float]:
    """OP, BWT (divisor T-1), forgetting max(0, -BWT) and LA in points, from R[j][j] and R[T][j]."""
    changes = [b - a for a, b in zip(own[:-1], last[:-1], strict=True)]
    bwt = 100 * statistics.fmean(changes) if changes else 0.0
    op, la = 100 * statistics.fmean(last), 100 * statistics.fmean(own)
    return {"OP": op, "BWT": bwt, "forgetting": max(0.0, -bwt), "LA": la}


def majority(bench: Bench, seed: int, number: int) -> float:
    """What the most frequent answer of the train rows would score on a task's dev items."""
    from evergreen.evaluate.metrics import METRICS
    from evergreen.evaluate.tasks import read_tasks

    train, dev = bench.data(seed, number)
    answers = Counts(record.messages[-1].content for record in _records(train))
    task = read_tasks([str(dev)], bench.sequence.metrics[number])[0]
    score = METRICS[task.metric]
    return statistics.fmean(score(answers.most_common(1)[0][0], list(item.references), item) for item in task.items)


def counted_tasks(bench: Bench, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every task with its majority answer's score and what sequential fine-tuning learnt, in points; a task counts when
    it was learnt at least 10 points above."""
    anchors = [line for line in lines if line["method"] == "sequential"] or lines[:1]
    rows = []
    for number, name in enumerate(bench.sequence.tasks):
        base = 100 * statistics.fmean(majority(bench, line["seed"], number) for line in anchors)
        learnt = 100 * statistics.fmean(line["own"][number] for line in anchors)
        rows.append({"task": name, "majority": base, "learnt": learnt, "counts": learnt >= base + 10})
    return rows


def _records(file: Path) -> list[Record]:
    from evergreen.data.mixture import load_mixture

    return list(load_mixture([str(file)]))


@contextlib.contextmanager
def _quietly(log: Path) -> Any:
    """What training and scoring say goes to a file."""
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        yield


# -- the two sequences


def write_skills(bench: Bench, place: Path, seed: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    train, dev = skills.rows(place.name, seed)
    write_jsonl(place / "train.jsonl", train)
    write_jsonl(place / f"{place.name}.jsonl", dev)


NANO = Stream(
    name="nano",
    tasks=tuple(skills.SKILLS),
    metrics=("exact",) * len(skills.SKILLS),
    model=lambda bench: "nano",
    write=write_skills,
    training={"learning_rate": 2e-3, "num_train_epochs": 2.0, "gradient_accumulation_steps": 8},
    max_new_tokens=40,
    lower="0-1",
)
TRACE = Stream(
    name="trace",
    tasks=tuple(tracedata.TASKS),
    metrics=tuple(tracedata.TASKS.values()),
    model=lambda bench: tracedata.pretrained(bench.work_dir / "pretrained"),
    write=lambda bench, place, seed: tracedata.write_tasks(place, bench.model),
    training={
        "learning_rate": 5e-4,
        "num_train_epochs": 3.0,
        "gradient_accumulation_steps": 8,
        "max_length": tracedata.MAX_TOKENS,
    },
    max_new_tokens=128,
    lower="0-2",
)
SEQUENCES = {"nano": NANO, "trace": TRACE}


# -- words


def summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds with their spread, and compute as a share of sequential fine-tuning's."""
    anchor = {line["seed"]: line["flop"] for line in lines if line["method"] == "sequential"}
    rows = []
    for method in dict.fromkeys(line["method"] for line in lines):
        mine = [line for line in lines if line["method"] == method]
        row: dict[str, Any] = {"method": method, "seeds": len(mine)}
        for name in ("OP", "BWT", "forgetting", "LA", "seconds", "flop"):
            row[name] = statistics.fmean(line[name] for line in mine)
            row[f"{name}_spread"] = statistics.stdev(line[name] for line in mine) if len(mine) > 1 else 0.0
        shares = [line["flop"] / anchor[line["seed"]] for line in mine if line["seed"] in anchor]
        row["compute"] = statistics.fmean(shares) if shares else None
        rows.append(row)
    return rows


def show(sequence: Stream, tasks: list[dict[str, Any]], rows: list[dict[str, Any]], console: Console) -> None:
    for task in tasks:
        verdict = "" if task["counts"] else ", which does not count"
        text = f"{task['task']}: majority answer {task['majority']:.1f}, learnt {task['learnt']:.1f}{verdict}"
        console.print(text, highlight=False)
    table = Table("method", title=f"{sequence.name}: points, mean of seeds ± spread; compute beside sequential")
    for name in ("OP", "BWT", "forgetting", "LA", "compute", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row[name]:.1f} ± {row[name + '_spread']:.1f}" for name in ("OP", "BWT", "forgetting", "LA")]
        share = f"{row['compute']:.2f}" if row["compute"] else "-"
        table.add_row(row["method"], *cells, share, f"{row['seconds']:.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequence", choices=list(SEQUENCES), default="nano")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="names; NAME= for equal compute")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work_dir", default="bench-continual")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON to stdout")
    options = parser.parse_args()
    work_dir = Path(options.work_dir).resolve()
    os.environ.setdefault("EVERGREEN_HOME", str(work_dir / "home"))
    console = Console(stderr=options.json, width=150 if not sys.stdout.isatty() else None)
    sequence = SEQUENCES[options.sequence]
    bench = Bench(sequence, work_dir, console)
    lines = [bench.line(method, seed) for seed in options.seeds for method in options.methods]
    tasks = counted_tasks(bench, lines)
    counting = [number for number, task in enumerate(tasks) if task["counts"]]
    if not counting:
        sys.exit("no task was learnt 10 points above its majority answer: there is nothing to forget")
    for line in lines:
        line |= figures(*([line[name][number] for number in counting] for name in ("own", "last")))
    rows = summary(lines)
    show(sequence, tasks, rows, console)
    document = {"bench": "continual", "sequence": sequence.name, "tasks": tasks, "methods": rows, "lines": lines}
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
