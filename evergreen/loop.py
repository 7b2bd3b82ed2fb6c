"""One increment after another: learn, measure, judge, publish.

Promises: the files are the state. A trained increment, a scored answer, a measured drift and a verdict are each written
once, when they are whole, and read back afterwards; so a killed evolve goes on at the step under way, and one that is
started again with the same flags does nothing twice. A candidate that the gate rejects stays on the disk and in the
matrix; the next increment starts from the last version that passed. Every version that passes becomes a release.
Does not: move `stable` (see `evergreen release promote`), or change a model that is being served.

    OUTPUT/plan.json                what is being learnt, with which settings, from which model
    OUTPUT/increment_1/             a run of `evergreen sft`, and increment.json: key, verdict, shift, release
    OUTPUT/increment_1/step-0.6/    a shortened step, when one was tried
    OUTPUT/scores/DIGEST/           answers and scores of a version; measures.json: drift and latency
    OUTPUT/dev_all.json  matrix.{json,csv,png}  report.{md,html}
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen import watch
from evergreen.data.increments import Increment, check_increments, read_increments, write_dev_all
from evergreen.data.sources import resolve as locate
from evergreen.data.sources import split_sources
from evergreen.evaluate import gates, harness, matrix
from evergreen.evaluate.compare import pairs_of
from evergreen.evaluate.harness import Scored, Version
from evergreen.evaluate.tasks import Task, read_tasks
from evergreen.home import digest_of, exclusive, home_dir, read_json, read_jsonl, write_json
from evergreen.model import find
from evergreen.records import BadInput, Release, Verdict
from evergreen.registry import Registry
from evergreen.settings import EvalSettings, EvolveSettings, RebaseSettings, SftSettings

if TYPE_CHECKING:
    from rich.table import Table

STATE_FILE, PLAN_FILE, VERSION_FILE, LOG_FILE = "increment.json", "plan.json", "version.json", "trainer_log.jsonl"
MAX_DRIFT_ITEMS = 100
EWC_ALPHA = EvolveSettings.regularization_alpha
SHARES = (0.8, 0.6, 0.4)
NO_PART_OF_A_KEY = ("json", "home", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "prev_model",
                    "model", "dataset", "report_to", "plot_loss", "save_steps", "save_total_limit")  # fmt: skip
NEEDS_HISTORY = {
    "replay_samples": 0.0, "replay_repeats": 1, "replay_answers": "gold", "unfreeze": "", "regularization_alpha": 0.0,
    "regularization": "l2sp", "orthogonal_lambda": 0.0, "chain": "continue", "merge_chain": "",
}  # fmt: skip
NOT_FOR_WHOLE_WEIGHTS = {  # adapters' own, and the default's Fisher, 8 bytes for each of 7 billion weights
    "chain": "continue", "merge_chain": "", "orthogonal_lambda": 0.0, "use_dora": False, "regularization": "l2sp",
    "regularization_alpha": 0.0,
}  # fmt: skip


@dataclass
class Step:
    """One increment on its way: what it is, and what has become of it."""

    increment: Increment
    task: Task
    folder: Path  # of the run
    status: str = "to come"
    key: str = ""
    version: Version | None = None  # what was judged last: the candidate, or a shortened step of it
    previous: Version | None = None
    share: float = 1.0
    verdict: Verdict | None = None
    shift: dict[str, Any] = field(default_factory=dict)
    release: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.increment.name

    def document(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "name": self.name,
            "version": asdict(self.version) if self.version else None,
            "share": self.share,
            "verdict": gates.document(self.verdict) if self.verdict else None,
            "shift": self.shift,
            "release": self.release,
            "seconds": round(self.seconds, 1),
        }


def run_evolve(given: EvolveSettings) -> dict[str, Any]:
    """`evergreen evolve`: the whole line. Returns what matrix.json holds, and the verdicts.

    Raises BadInput before anything is trained, Failure when a run broke; both leave what is finished in place."""
    evolve = _Evolve(given)
    with exclusive(evolve.folder / ".lock", "evolving into this folder"):
        return evolve.run()


class _Evolve:
    """A line of versions in one output folder; `run` is its story."""

    def __init__(self, given: EvolveSettings):
        from rich.console import Console

        self.given, self.folder = given, Path(given.output_dir).expanduser()
        self.console: Console = Console(stderr=given.json, highlight=False)
        self.gate = gates.gate_of(given)
        self.gate_digest = digest_of([  # what a verdict depends on beside the increment's own key
            asdict(self.gate) if self.gate else "off", given.metric, given.max_items, given.max_new_tokens, given.sweep,
            [_file_digest(path) for path in given.retention],
        ])  # fmt: skip
        self.registry = Registry(home_dir(given.home or None), digest=find.version_digest)
        self.parent = ""  # the release that the next one has as its parent
        self.steps: list[Step] = []
        self.scored: dict[str, Scored] = {}  # by version digest, on all tasks it has been asked so far
        self.measures: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        self.prepare()
        with watch.live(self.console, self.table):
            for step in self.steps:
                self.take(step)
                self.write()
        return self.finish()

    # -- before the first step

    def prepare(self) -> None:
        """Everything that can be refused is refused here."""
        given = self.given
        for name in ("prev_model", "dataset"):
            if getattr(given, name):
                raise BadInput(
                    f"evolve sets --{name} for each increment: give the start as --model, the data as folders"
                )
        increments = read_increments(given.increments)
        check_increments(
            increments, given.allow_leak, self.say, given.dataset_dir, given.on_bad_row, given.general_replay
        )
        self.steps = [Step(one, self.task_of(one), self.folder / one.name) for one in increments]
        self.retention = read_tasks(given.retention, given.metric, given.max_items) if given.retention else []
        taken = {step.name for step in self.steps} & {task.name for task in self.retention}
        if taken:
            raise BadInput(f"--retention {' '.join(sorted(taken))}: an increment has that name; rename the file")
        self.start = harness.version_of(given.model, given.adapters, self.eval_settings())
        for step in self.steps:
            self.settings_of(step, self.start)  # complains about an increment's own settings
        self.line = [self.start]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / PLAN_FILE, {
            "model": given.model, "start": asdict(self.start), "increments": [one.name for one in increments],
            "settings": asdict(given), "gate": asdict(self.gate) if self.gate else "off",
        })  # fmt: skip

    def task_of(self, increment: Increment) -> Task:
        metric = increment.settings.get("metric", self.given.metric)
        read = read_tasks([str(path) for path in increment.dev], metric, self.given.max_items)
        if len({task.metric for task in read}) > 1:
            raise BadInput(f"{increment.name}: its dev files want several metrics: put them into one file")
        items = tuple(replace(item, id=f"{path.name}:{item.id}") if len(read) > 1 else item
                      for path, task in zip(increment.dev, read, strict=True) for item in task.items)  # fmt: skip
        return Task(increment.name, read[0].metric, items)

    def settings_of(self, step: Step, previous: Version) -> SftSettings:
        """The increment's training settings: the command's, with its own over them, from the version before it."""
        from evergreen.options import build
        from evergreen.train.sft import check_settings

        names = {one.name for one in fields(SftSettings)}
        values = {name: value for name, value in vars(self.given).items() if name in names}
        is_default = self.given.regularization == "ewc" and self.given.regularization_alpha == EWC_ALPHA
        if self.given.train_type in ("full", "freeze") and is_default:
            values |= {"regularization": "l2sp", "regularization_alpha": 0.0}
        if step.increment.settings.get("train_type") in ("full", "freeze"):
            values |= NOT_FOR_WHOLE_WEIGHTS
        values |= {name: value for name, value in step.increment.settings.items() if name in names}
        values |= {"dataset": list(step.increment.train), "output_dir": str(step.folder), "json": False}
        values |= {"resume_from_checkpoint": "true", "adapters": [], "model": "", "prev_model": ""}
        values |= self.start_of(previous)
        if not self.has_history(previous):
            values |= NEEDS_HISTORY
        if not values["replay_samples"] and not values["general_replay"] and values["regularization"] != "l2sp":
            values |= {"regularization": "l2sp", "regularization_alpha": 0.0}  # they measure on old rows
        settings = build(SftSettings, values)
        check_settings(settings)
        return settings

    def start_of(self, previous: Version) -> dict[str, Any]:
        """How `sft` is told to begin with a version: an earlier run by --prev_model, any other model by --model."""
        place = previous.adapters[-1] if previous.adapters else previous.reference
        if (Path(place) / "args.json").is_file():
            return {"prev_model": str(place)}
        return {"model": previous.reference, "adapters": list(previous.adapters)}

    def has_history(self, previous: Version) -> bool:
        return "prev_model" in self.start_of(previous)

    # -- a step

    def take(self, step: Step) -> None:
        began = time.monotonic()
        step.previous = self.line[-1]
        settings = self.settings_of(step, step.previous)
        step.key = self.key_of(step, settings)
        if not self.recall(step):
            self.learn(step, settings)
            self.judge(step)
            if step.verdict.promoted:
                self.publish(step)
                self.registry.promote(step.release, to="candidate")
            step.seconds = time.monotonic() - began
            write_json(step.folder / STATE_FILE, step.document() | {"gate": self.gate_digest})
        elif step.verdict.promoted:
            self.publish(step)  # in this home it may be new
        if step.verdict.promoted:
            self.line.append(step.version)
        for version in (self.start, step.previous, step.version):  # the matrix wants them; nothing is asked twice
            self.scores(version, self.tasks_until(step))
        self.measure(step.version, step)
        self.set_status(step, step.verdict.decision if self.gate else "let through")

    def key_of(self, step: Step, settings: SftSettings) -> str:
        """What the trained version depends on. Equal keys: the increment need not be learnt again."""
        how = {name: value for name, value in vars(settings).items() if name not in NO_PART_OF_A_KEY}
        data = [_file_digest(path) for path in (*step.increment.train, *step.increment.dev)]
        return digest_of([step.previous.digest, how, data])

    def recall(self, step: Step) -> bool:
        """Take over what increment.json says of this increment. Raises BadInput when it was learnt otherwise."""
        path = step.folder / STATE_FILE
        state = read_json(path) if path.is_file() else {}
        if state and state["key"] != step.key and not self.given.overwrite_output_dir:
            raise BadInput(f"{step.folder} was learnt with other data, settings or from another version: choose "
                           "another --output_dir, or --overwrite_output_dir true learns it again")  # fmt: skip
        if state.get("key") != step.key or state.get("gate") != self.gate_digest:
            return False  # not finished, or judged by other limits: then only the verdict is made anew
        step.version = Version(**state["version"] | {"adapters": tuple(state["version"]["adapters"])})
        step.share, step.shift, step.release = state["share"], state["shift"], state["release"]
        step.verdict, step.seconds = gates.verdict_of(state["verdict"]), state["seconds"]
        return True

    def learn(self, step: Step, settings: SftSettings) -> None:
        from rich.console import Console

        from evergreen.continual.parts import parts_of
        from evergreen.train.sft import run_sft

        self.set_status(step, "measuring the shift")
        step.folder.mkdir(parents=True, exist_ok=True)
        before = step.folder / STATE_FILE
        if before.is_file() and read_json(before)["key"] != step.key:
            settings.overwrite_output_dir, settings.resume_from_checkpoint = True, ""
        step.shift = self.shift_of(step)
        write_json(before, {"key": step.key})
        if not (step.folder / VERSION_FILE).is_file() or settings.overwrite_output_dir:
            self.set_status(step, "training")
            with open(step.folder / "training.txt", "a", encoding="utf-8") as log:
                run_sft(settings, parts_of(settings, *self.on_policy(step, settings)), Console(file=log, width=140))

    def judge(self, step: Step) -> None:
        """Score the candidate; before it is rejected, shorter steps from the previous version are tried."""
        candidate = self.version(step.folder)
        self.set_status(step, "scoring")
        step.version, step.share, step.verdict = candidate, 1.0, self.verdict_on(candidate, step)
        tried = []
        for share in SHARES if self.given.sweep and not step.verdict.promoted else ():
            self.set_status(step, f"scoring {share:g} of the step")
            try:
                version = self.shortened(step, candidate, share)
            except BadInput as error:  # DoRA and modules_to_save have no shorter step
                tried = [f"no shorter step was tried: {error}"]
                break
            verdict = self.verdict_on(version, step)
            if verdict.promoted:
                step.version, step.share, step.verdict = version, share, verdict
                return
            tried.append(f"{share:g} of the step does not pass either: {gates.summary(verdict)}")
        step.verdict = replace(step.verdict, reasons=(*step.verdict.reasons, *tried))

    def verdict_on(self, version: Version, step: Step) -> Verdict:
        if not self.gate:
            return Verdict("promote", ("the gate is off",))
        tasks = self.tasks_until(step)
        start, candidate, previous = (self.scores(one, tasks) for one in (self.start, version, step.previous))
        old = [one.task for one in self.steps_before(step)]
        is_limited = self.gate.max_drift is not None or self.gate.max_latency_ratio is not None
        measured = self.measure(version, step) if is_limited else {}
        return gates.judge(
            self.gate,
            new={step.name: pairs_of(step.task, previous, candidate)},
            old={task.name: pairs_of(task, previous, candidate) for task in old},
            best={task.name: pairs_of(task, self.best_on(task), candidate) for task in old},
            retention={task.name: pairs_of(task, start, candidate) for task in self.retention},
            drift=measured.get("drift"),
            latency=(self.measures[step.previous.digest]["latency_ms"], measured["latency_ms"]) if measured else None,
            facts=self.facts_of(step),
        )

    def publish(self, step: Step) -> None:
        """The version that passed as a release, stored for good."""
        self.set_status(step, "publishing")
        self.parent = self.parent or self.release_of(self.start).id
        made = self.release_of(step.version, parent=self.parent, gate=gates.document(step.verdict))
        step.release = self.parent = made.id

    def release_of(self, version: Version, **lineage: Any) -> Release:
        """The same version with the same parent and verdict is the same release, however often it is made."""
        from evergreen.model.load import resolve

        found = resolve(version.reference, version.adapters)
        prompt = {name: (found.args or {}).get(name) for name in ("system", "template")}
        if not found.adapters:
            return self.registry.create(self.registry.add_base(found.base), prompt=prompt, **lineage)
        adapter = self.registry.add_version(found.adapters[-1], report=str(self.folder / "report.html"))
        return self.registry.create(adapter=adapter, prompt=prompt, **lineage)

    # -- what the judgement needs

    def version(self, folder: Path) -> Version:
        """A trained folder as something to score; its name is short enough for a table."""
        return replace(harness.version_of(str(folder), [], self.eval_settings()), name=self.short(folder))

    def short(self, folder: Path) -> str:
        return str(folder.relative_to(self.folder)) if folder.is_relative_to(self.folder) else str(folder)

    def shortened(self, step: Step, candidate: Version, share: float) -> Version:
        """W_previous + share * (W_candidate - W_previous), without training."""
        from evergreen.continual.merge import scaled_step
        from evergreen.model.load import resolve

        folder = step.folder / f"step-{share:g}"
        if not (folder / VERSION_FILE).is_file():
            scaled_step(resolve(step.previous.reference, step.previous.adapters),
                        resolve(candidate.reference, candidate.adapters), share, folder)  # fmt: skip
        return self.version(folder)

    def eval_settings(self) -> EvalSettings:
        given = self.given
        return EvalSettings(
            model=given.model, system=given.system, template=given.template, torch_dtype=given.torch_dtype,
            device=given.device, max_new_tokens=given.max_new_tokens, batch_size=given.eval_batch_size,
        )  # fmt: skip

    def steps_before(self, step: Step) -> list[Step]:
        return self.steps[: self.steps.index(step)]

    def tasks_until(self, step: Step) -> list[Task]:
        """What a version of this increment is scored on, in the order of the matrix."""
        seen = self.steps if self.given.forward else [*self.steps_before(step), step]
        return [*(one.task for one in seen), *self.retention]

    def scores(self, version: Version, tasks: Sequence[Task]) -> Scored:
        """Answers and scores on these tasks; what was answered before is read from the disk."""
        known = self.scored.get(version.digest)
        if known is None or any(task.name not in known.rows for task in tasks):
            out = self.scores_folder(version)
            known = harness.score_version(version, tasks, self.eval_settings(), out, is_quiet=self.is_live)
            self.scored[version.digest] = known
        return known

    def scores_folder(self, version: Version) -> Path:
        return self.folder / "scores" / version.digest[:16]

    def best_on(self, task: Task) -> Scored:
        """Of the versions that passed, the one that was best on this task."""
        found = [self.scored[version.digest] for version in self.line]
        return max((scored for scored in found if task.name in scored.rows), key=lambda scored: _mean(scored, task))

    def measure(self, version: Version, step: Step) -> dict[str, Any]:
        """Drift from the previous version and latency, once per version; kept in measures.json."""
        for one, before in ((step.previous, None), (version, step.previous)):
            path = self.scores_folder(one) / "measures.json"
            if one.digest not in self.measures and path.is_file():
                self.measures[one.digest] = read_json(path)
            known = self.measures.setdefault(one.digest, {})
            missing = "latency_ms" not in known or (before and "drift" not in known)
            if missing:
                self.set_status(step, "measuring drift and latency")
                known |= self.measured(one, before, step.task)
                write_json(path, known)
        return self.measures[version.digest]

    def measured(self, version: Version, before: Version | None, task: Task) -> dict[str, Any]:
        from evergreen.evaluate import drift, measures

        settings, items = self.eval_settings(), task.items[:MAX_DRIFT_ITEMS]
        moved = drift.of_versions(before, version, items, settings).document() if before else None
        found = {"latency_ms": measures.latency_ms(version, self.steps[0].task.items, settings)}
        return found | ({"drift": moved} if moved else {})

    def facts_of(self, step: Step) -> dict[str, Any]:
        """What advice is made of."""
        made = read_json(step.folder / VERSION_FILE)
        args = read_json(step.folder / "args.json")["settings"]
        rows = [row["loss"] for row in read_jsonl(step.folder / LOG_FILE) if "loss" in row]
        return {
            "num_train_rows": made["data"]["rows"],
            "train_loss_first": rows[0] if rows else None,
            "train_loss_last": rows[-1] if rows else None,
            "shift": step.shift,
            "base_scores": {score.task: score.mean for score in self.scored[self.start.digest].scores},
            **{name: args[name] for name in ("replay_samples", "regularization_alpha", "learning_rate")},
        }

    def shift_of(self, step: Step) -> dict[str, Any]:
        """How far the increment's data lies from all that came before it; {} for the first."""
        from evergreen.data import shift
        from evergreen.data.mixture import load_mixture

        if not self.steps_before(step):
            return {}
        common = {name: getattr(self.given, name)
                  for name in ("seed", "on_bad_row", "dataset_dir", "model_name", "model_author")}  # fmt: skip
        read = [load_mixture(list(one.increment.train), **common)
                for one in [*self.steps_before(step), step]]  # fmt: skip
        old = [record for mixture in read[:-1] for record in mixture]
        if len(old) < 2:
            return {}
        return shift.measure(list(read[-1]), old, self.embed_with(step.previous)).document()

    def embed_with(self, version: Version) -> Callable:
        from evergreen.engine.embedding import embedder
        from evergreen.model.load import load_for

        return embedder(load_for(self.eval_settings(), version.reference, version.adapters))

    def on_policy(self, step: Step, settings: SftSettings) -> tuple[Callable, Callable] | tuple[()]:
        from evergreen.evaluate.onpolicy import answering

        if settings.replay_answers != "onpolicy":
            return ()
        metrics = {str(path): one.task.metric for one in self.steps_before(step)
                   for source in split_sources(one.increment.train)
                   for path in locate(source, self.given.dataset_dir).files}  # fmt: skip
        return answering(step.previous, self.eval_settings(), settings.seed, metrics)

    # -- what is seen and kept

    def write(self) -> None:
        """The matrix, all dev items so far, and the report, after each increment."""
        from evergreen import report

        done = [step for step in self.steps if step.verdict]
        write_dev_all([step.increment for step in done], self.folder / "dev_all.json")
        self.matrix = matrix.Matrix(tuple(step.task for step in self.steps), self.rows(done), tuple(self.retention))
        matrix.write(self.matrix, self.folder)
        report.write(self.folder, self.matrix.document(), [step.document() for step in self.steps],
                     asdict(self.given))  # fmt: skip

    def rows(self, done: Sequence[Step]) -> tuple[matrix.VersionScores, ...]:
        after = [self.row(step.name, step.version, step.verdict.promoted) for step in done]
        return (self.row("start", self.start, True), *after)

    def row(self, name: str, version: Version, accepted: bool) -> matrix.VersionScores:
        scored, measured = self.scored[version.digest], self.measures.get(version.digest, {})
        items = {task: {row["id"]: row["score"] for row in rows.values()} for task, rows in scored.rows.items()}
        return matrix.VersionScores(name, version.digest, accepted, items,
                                    measured.get("latency_ms", {}), measured.get("drift"))  # fmt: skip

    def finish(self) -> dict[str, Any]:
        if not self.is_live:
            self.console.print(self.table())
        matrix.print_matrix(self.matrix, self.console)
        for step in self.steps:
            self.console.print(gates.describe(step.verdict, step.name))
        self.say(f"matrix, report and every version are in {self.folder}")
        rejected = [step.name for step in self.steps if not step.verdict.promoted]
        return self.matrix.document() | {
            "verdicts": [{"version": step.version.digest, "name": step.name, "promoted": step.verdict.promoted,
                          "reasons": list(step.verdict.reasons), "share": step.share, "release": step.release}
                         for step in self.steps],
            "rejected": rejected,
            "last": self.line[-1].reference,
            "output_dir": str(self.folder),
        }  # fmt: skip

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def set_status(self, step: Step, status: str) -> None:
        step.status = status
        if not self.is_live:
            self.say(f"{step.name}: {status}")

    @property
    def is_live(self) -> bool:
        return self.console.is_terminal

    def table(self) -> "Table":
        return watch.table(f"evolving {self.given.model} into {self.folder}", self.steps)


def _mean(scored: Scored, task: Task) -> float:
    return next(one.mean for one in scored.scores if one.task == task.name)


def _file_digest(path: str | Path) -> str:
    import hashlib

    if not Path(path).is_file():
        return str(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_rebase(given: RebaseSettings) -> dict[str, Any]:
    """`evergreen rebase`: the increments of an evolve on a newer base; the last versions of both lines side by side.

    Returns evolve's document and `compared`, compare.json's content (a is the old line, b the new)."""
    from evergreen.evaluate.compare import write_comparison

    old, settings = _evolved(given)
    new = _Evolve(settings)
    with exclusive(new.folder / ".lock", "evolving into this folder"):
        document = new.run()
        tasks = [step.task for step in new.steps]
        last = harness.version_of(str(old), [], new.eval_settings())
        known = harness.score_version(last, tasks, new.eval_settings(), new.folder / "scores" / last.digest[:16])
        compared = write_comparison(known, new.scores(new.line[-1], tasks), tasks, new.folder)
    return document | {"compared": compared}


def _evolved(given: RebaseSettings) -> tuple[Path, EvolveSettings]:
    """The last version that passed in an evolve's folder, and its settings with the new base. Raises BadInput."""
    from evergreen.options import build

    folder = Path(given.evolved).expanduser()
    if not given.evolved or not (folder / PLAN_FILE).is_file():
        raise BadInput(f"rebase wants the output folder of an evolve, and {given.evolved or 'none'} has no {PLAN_FILE}")
    if not given.model:
        raise BadInput("rebase wants the newer base: --model FOLDER")
    plan = read_json(folder / PLAN_FILE)
    states = [read_json(folder / name / STATE_FILE) for name in plan["increments"]
              if (folder / name / STATE_FILE).is_file()]  # fmt: skip
    passed = [state for state in states if (state.get("verdict") or {}).get("decision") == "promote"]
    if not passed:
        raise BadInput(f"no increment in {folder} has passed: there is no line to compare with")
    out = given.output_dir or f"{folder}-on-{Path(given.model).name}"
    values = plan["settings"] | {
        "model": given.model,
        "adapters": [],
        "output_dir": out,
        "json": given.json,
        "home": given.home,
    }
    return Path(passed[-1]["version"]["reference"]), build(EvolveSettings, values)
