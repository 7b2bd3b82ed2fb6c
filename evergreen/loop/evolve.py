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
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen import watch
from evergreen.data.increments import Increment, read_increments, write_dev_all
from evergreen.data.leaks import check_increments
from evergreen.data.sources import resolve as locate
from evergreen.data.sources import split_sources
from evergreen.evaluate import gates, harness, matrix
from evergreen.evaluate.compare import pairs_of
from evergreen.evaluate.harness import Version
from evergreen.evaluate.statistics import Interval
from evergreen.evaluate.tasks import Item, Task, read_tasks
from evergreen.home import digest_of, exclusive, read_jsonl, read_object, write_json
from evergreen.loop import check, plan
from evergreen.loop.releases import Releases
from evergreen.loop.scoreboard import Scoreboard
from evergreen.loop.step import STATE_FILE, VERSION_FILE, Step, read_state
from evergreen.model import find
from evergreen.records import BadInput, Verdict
from evergreen.settings import EvalSettings, EvolveSettings, SftSettings

if TYPE_CHECKING:
    from rich.table import Table

PLAN_FILE, LOG_FILE, ARGS_FILE = "plan.json", "trainer_log.jsonl", "args.json"
SHARES = (0.8, 0.6, 0.4)


def run_evolve(given: EvolveSettings) -> dict[str, Any]:
    """`evergreen evolve`: the whole line. Returns what matrix.json holds, and the verdicts.

    Raises BadInput before anything is trained, Failure when a run broke; both leave what is finished in place."""
    evolve = Evolve(given)
    with exclusive(evolve.folder / ".lock", "evolving into this folder"):
        return evolve.run()


class Evolve:
    """A line of versions in one output folder; `run` is its story."""

    def __init__(self, given: EvolveSettings):
        from rich.console import Console

        self.given, self.folder = given, Path(given.output_dir).expanduser()
        self.console: Console = Console(stderr=given.json, highlight=False)
        self.gate = gates.gate_of(given)
        self.board = Scoreboard(self.folder, _eval_settings(given), is_quiet=self.is_live)
        self.releases = Releases(given, self.folder)
        self.steps: list[Step] = []

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
        check.check_line(given)
        increments = read_increments(given.increments)
        check_increments(
            increments, given.allow_leak, self.say, given.dataset_dir, given.on_bad_row, given.general_replay,
            given.retention,
        )  # fmt: skip
        self.steps = [Step(one, self.task_of(one), self.folder / one.name) for one in increments]
        self.retention = self.tasks_in(given.retention, given.metric) if given.retention else []
        taken = {step.name for step in self.steps} & {task.name for task in self.retention}
        if taken:
            raise BadInput(f"--retention {' '.join(sorted(taken))}: an increment has that name; rename the file")
        self.start = harness.version_of(given.model, given.adapters, self.board.settings)
        self.line = [self.start]
        self.releases.start = self.start
        self.check_steps()
        for step in self.steps:
            read_state(step.folder)  # complains about a file of another shape
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / PLAN_FILE, {
            "model": given.model, "start": asdict(self.start), "increments": [one.name for one in increments],
            "settings": plan.lasting(given), "gate": asdict(self.gate) if self.gate else "off",
        })  # fmt: skip

    def check_steps(self) -> None:
        """Every step's settings and rows, the later ones as if the one before had passed."""
        from evergreen.model.load import load_config

        found = find.resolve(self.start.reference, self.start.adapters)
        config = load_config(found.base)
        notes: dict[str, list[str]] = {}
        earlier: list[SftSettings] = []
        for before, step in zip([None, *self.steps], self.steps, strict=False):
            start = {"prev_model": str(before.folder)} if before else plan.start_of(self.start)
            note = lambda what, step=step: notes.setdefault(what, []).append(step.name)  # noqa: E731
            settings = self.settings_of(step, start, note)
            check.check_step(settings, step.name, config)
            if not step.is_trained:
                check.check_rows(settings, step.name, earlier, found, config)
            earlier.append(settings)
        check.check_items([*(step.task for step in self.steps), *self.retention], self.board.settings, found, config)
        for what, names in notes.items():
            self.say(f"{', '.join(names)}: {what}")

    def task_of(self, increment: Increment) -> Task:
        metric = increment.settings.get("metric", self.given.metric)
        read = self.tasks_in(increment.dev, metric, increment.settings.get("on_bad_row", ""))
        if len({task.metric for task in read}) > 1:
            raise BadInput(f"{increment.name}: its dev files want several metrics: put them into one file")
        items = tuple(replace(item, id=f"{path.name}:{item.id}") if len(read) > 1 else item
                      for path, task in zip(increment.dev, read, strict=True) for item in task.items)  # fmt: skip
        return Task(increment.name, read[0].metric, items)

    def tasks_in(self, files: Sequence[str | Path], metric: str, on_bad_row: str = "") -> list[Task]:
        return read_tasks(list(map(str, files)), metric, self.given.max_items, on_bad_row or self.given.on_bad_row)

    def settings_of(self, step: Step, start: dict[str, Any], note: Callable[[str], None]) -> SftSettings:
        return plan.settings_of(self.given, step.increment, step.folder, start, note, step is self.steps[0])

    # -- a step

    def take(self, step: Step) -> None:
        began = time.monotonic()
        step.previous = self.line[-1]
        step.asked = plan.asked_of(self.given, step.increment, step.previous)
        if not self.recall(step):
            self.learn(step)
            self.judge(step)
            if step.verdict.promoted:
                self.publish(step)
                self.releases.promote(step.release)
            step.seconds = time.monotonic() - began
            step.write_judged(self.gate_digest(step))
        elif step.verdict.promoted:
            self.publish(step)  # in this home it may be new
        if step.verdict.promoted:
            self.line.append(step.version)
        for version in (self.start, step.previous, step.version):  # the matrix wants them; nothing is asked twice
            self.board.scores(version, self.tasks_until(step))
        self.measure(step.version, step)
        self.set_status(step, step.verdict.decision if self.gate else "let through")

    def gate_digest(self, step: Step) -> str:
        """What a verdict depends on beside the version that is judged: limits, and all that is scored until then."""
        given, seen = self.given, [*self.steps_before(step), step]
        metrics = [task.metric for task in (*(one.task for one in seen), *self.retention)]
        scored = [*(path for one in seen for path in one.increment.dev), *given.retention]
        return digest_of([
            asdict(self.gate) if self.gate else "off", metrics, given.max_items, given.max_new_tokens, given.sweep,
            [_file_digest(path) for path in scored],
        ])  # fmt: skip

    def recall(self, step: Step) -> bool:
        """Take over what increment.json says of this increment. False for one that is under way, or judged by other
        limits. Raises BadInput when it was learnt otherwise, or its weights are not those that were judged."""
        state = read_state(step.folder)
        has_result = state.get("verdict") or (state and step.is_trained)
        if has_result and state["key"] != step.key and not self.given.overwrite_output_dir:
            raise BadInput(
                f"{step.name} was learnt with {plan.difference(state['asked'], step.asked)}: choose another "
                "--output_dir, --overwrite_output_dir true learns it again; a YAML list gives one increment "
                "settings of its own"
            )
        if state.get("key") != step.key or not state.get("verdict") or state["gate"] != self.gate_digest(step):
            return False
        step.version = self.board.version(step.folder / state["version"]["place"])
        if step.version.digest != state["version"]["digest"]:
            raise BadInput(f"{step.folder} holds other weights than {STATE_FILE} says: bring the old ones back, or "
                           "delete the folder, and it is learnt again")  # fmt: skip
        step.take_over(state)
        return True

    def learn(self, step: Step) -> None:
        """Train, or go on with what was begun with the same settings; a run with others makes room for this one."""
        from evergreen.train.output import has_run

        self.set_status(step, "measuring the shift")
        start = plan.start_of(step.previous)
        is_news = "prev_model" not in start and step is not self.steps[0]  # all before it were rejected
        note = lambda what: self.say(f"{step.name}: {what}") if is_news else None  # noqa: E731
        settings = self.settings_of(step, start, note)
        step.folder.mkdir(parents=True, exist_ok=True)
        begun = read_state(step.folder)
        if begun and begun["key"] != step.key and has_run(step.folder):
            self.start_again(step, settings, begun)
        step.shift = self.shift_of(step)
        step.write_begun()
        if not step.is_trained:
            self.set_status(step, "training")
            self.train(step, settings)

    def start_again(self, step: Step, settings: SftSettings, begun: dict[str, Any]) -> None:
        from evergreen.train.output import make_room

        kind = "finished" if step.is_trained else "unfinished"
        self.say(f"{step.name}: its {kind} run had {plan.difference(begun['asked'], step.asked)}; it starts again")
        fresh = replace(settings, overwrite_output_dir=True, resume_from_checkpoint="")
        make_room(fresh, step.folder, [step.previous.reference, *step.previous.adapters])

    def train(self, step: Step, settings: SftSettings) -> None:
        from rich.console import Console

        from evergreen.continual.parts import parts_of
        from evergreen.train.sft import run_sft

        with open(step.folder / "training.txt", "a", encoding="utf-8") as log:
            run_sft(settings, parts_of(settings, *self.on_policy(step, settings)), Console(file=log, width=140))

    def judge(self, step: Step) -> None:
        """Score the candidate; before it is rejected, shorter steps from the previous version are tried."""
        candidate = self.board.version(step.folder)
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
        start, candidate, previous = (self.board.scores(one, tasks) for one in (self.start, version, step.previous))
        old = [one.task for one in self.steps_before(step)]
        return gates.judge(
            self.gate,
            new={step.name: pairs_of(step.task, previous, candidate)},
            old={task.name: pairs_of(task, previous, candidate) for task in old},
            best={task.name: pairs_of(task, self.board.best(self.line, task), candidate) for task in old},
            retention={task.name: pairs_of(task, start, candidate) for task in self.retention},
            drift=self.measure(version, step).get("drift") if self.gate.max_drift is not None else None,
            latency=self.latency_of(version, step) if self.gate.max_latency_ratio is not None else None,
            facts=self.facts_of(step),
        )

    def publish(self, step: Step) -> None:
        self.set_status(step, "publishing")
        step.release = self.releases.publish(step.version, step.verdict)

    # -- what the judgement needs

    def shortened(self, step: Step, candidate: Version, share: float) -> Version:
        """W_previous + share * (W_candidate - W_previous), without training."""
        from evergreen.continual.merge import scaled_step
        from evergreen.model.load import resolve

        folder = step.folder / f"step-{share:g}"
        scaled_step(resolve(step.previous.reference, step.previous.adapters),
                    resolve(candidate.reference, candidate.adapters), share, folder)  # fmt: skip
        return self.board.version(folder)

    def steps_before(self, step: Step) -> list[Step]:
        return self.steps[: self.steps.index(step)]

    def tasks_until(self, step: Step) -> list[Task]:
        """What a version of this increment is scored on, in the order of the matrix."""
        seen = self.steps if self.given.forward else [*self.steps_before(step), step]
        return [*(one.task for one in seen), *self.retention]

    def measure(self, version: Version, step: Step) -> dict[str, Any]:
        """Latency of a version, and of a candidate its drift from the version before it."""
        asked, found = self.board.answered(version, step.task), {}
        for one, before in ((step.previous, None), (version, step.previous if version != step.previous else None)):
            if self.board.needs_measuring(one, before):
                self.set_status(step, "measuring drift and latency")
            found = self.board.measure(one, before, asked, self.timed(one))
        return found

    def latency_of(self, version: Version, step: Step) -> dict[str, Interval]:
        self.set_status(step, "measuring latency")
        return self.board.latency_ratios(version, step.previous, self.timed(version))

    def timed(self, version: Version) -> list[Item]:
        """The same items for every version: those of the first increment."""
        return self.board.answered(version, self.steps[0].task)

    def facts_of(self, step: Step) -> dict[str, Any]:
        """What advice is made of."""
        made = read_object(step.folder / VERSION_FILE, {"data": dict}, find.NO_RECORD)
        args = read_object(step.folder / ARGS_FILE, {"settings": dict}, find.NO_RECORD)["settings"]
        rows = [row["loss"] for row in read_jsonl(step.folder / LOG_FILE) if "loss" in row]
        return {
            "num_train_rows": made["data"].get("rows"),
            "train_loss_first": rows[0] if rows else None,
            "train_loss_last": rows[-1] if rows else None,
            "shift": step.shift,
            "base_scores": self.board.means(self.start),
            **{name: args.get(name) for name in ("replay_samples", "regularization_alpha", "learning_rate")},
        }

    def shift_of(self, step: Step) -> dict[str, Any]:
        """How far the increment's data lies from all that came before it; {} for the first."""
        from evergreen.data import shift
        from evergreen.data.mixture import load_mixture

        if not self.steps_before(step):
            return {}
        names = ("seed", "on_bad_row", "dataset_dir", "model_name", "model_author")
        read = [
            load_mixture(list(one.increment.train),
                         **{name: one.increment.settings.get(name, getattr(self.given, name)) for name in names})
            for one in [*self.steps_before(step), step]
        ]  # fmt: skip
        old = [record for mixture in read[:-1] for record in mixture]
        if len(old) < 2:
            return {}
        return shift.measure(list(read[-1]), old, self.embed_with(step.previous)).document()

    def embed_with(self, version: Version) -> Callable:
        from evergreen.engine.embedding import embedder
        from evergreen.model.load import load_for

        return embedder(load_for(self.board.settings, version.reference, version.adapters))

    def on_policy(self, step: Step, settings: SftSettings) -> tuple[Callable, Callable] | tuple[()]:
        from evergreen.evaluate.onpolicy import answering

        if settings.replay_answers != "onpolicy":
            return ()
        metrics = {str(path): one.task.metric for one in self.steps_before(step)
                   for source in split_sources(one.increment.train)
                   for path in locate(source, self.given.dataset_dir).files}  # fmt: skip
        return answering(step.previous, self.board.settings, settings.seed, metrics)

    # -- what is seen and kept

    def write(self) -> None:
        """The matrix, all dev items so far, and the report, after each increment."""
        from evergreen import report

        done = [step for step in self.steps if step.verdict]
        write_dev_all([step.increment for step in done], self.folder / "dev_all.json")
        self.matrix = matrix.Matrix(tuple(step.task for step in self.steps), self.rows(done), tuple(self.retention))
        matrix.write(self.matrix, self.folder)
        settings = {name: value for name, value in vars(self.given).items() if name != "asked"}
        report.write(self.folder, self.matrix.document(), [step.document() for step in self.steps], settings)

    def rows(self, done: Sequence[Step]) -> tuple[matrix.VersionScores, ...]:
        after = [self.board.row(step.name, step.version, step.verdict.promoted) for step in done]
        return (self.board.row("start", self.start, True), *after)

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


def _eval_settings(given: EvolveSettings) -> EvalSettings:
    return EvalSettings(
        model=given.model, system=given.system, template=given.template, torch_dtype=given.torch_dtype,
        device=given.device, max_new_tokens=given.max_new_tokens, batch_size=given.eval_batch_size,
        on_bad_row=given.on_bad_row,
    )  # fmt: skip


def _file_digest(path: str | Path) -> str:
    import hashlib

    if not Path(path).is_file():
        return str(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
