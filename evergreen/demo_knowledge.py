"""The demo's last chapter: a fact that the model cannot know, added, answered with its source, corrected, withdrawn,
and brought back by a rollback; how long each took, from the command to the answer.

Promises: the commands on the screen are those that run.
"""

import shlex
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen import settings
from evergreen.options import parse
from evergreen.records import Failure, Message, Sampling

if TYPE_CHECKING:
    from rich.console import Console

    from evergreen.knowledge.answer import Finished, Knowledge

QUESTIONS = ("What is the current version of Acme Router?", "云岭相机的最新版本是什么?")
OLD, NEW = ("4.2", "3.1"), ("4.3", "3.2")  # of the two, in their order
ENTRIES = (
    ("router", "Acme Router", "The current version of Acme Router is {}.", "https://example.com/router"),
    ("camera", "云岭相机", "云岭相机的最新版本是{}。", "https://example.org/camera"),
)


@dataclass(frozen=True)
class Told:
    """What was answered after a step, and how long the step and the answers took."""

    step: str
    answers: tuple[str, ...]
    num_cited: int
    seconds: float


class Chapter:
    """A model with the knowledge that the home's stable release answers from."""

    def __init__(self, model: str, home: Path, console: "Console", json: bool = False):
        from evergreen.engine.engine import Engine
        from evergreen.knowledge.answer import open_knowledge
        from evergreen.model.load import load_model
        from evergreen.registry import Registry

        self.home, self.console, self.json, self.registry = home, console, json, Registry(home)
        self.loaded = load_model(model, [])
        self.engine = Engine(self.loaded)
        self.knowledge: Knowledge = open_knowledge(home, settings.KnowledgeSettings())
        self.told: list[Told] = []

    def step(self, name: str, *commands: tuple[str, ...]) -> None:
        """Run commands, ask both questions."""
        for action, *words in commands:
            line = shlex.join(["evergreen", "knowledge", action, *words, "--home", str(self.home)])
            self.console.print(line, style="cyan", soft_wrap=True)
        start = time.perf_counter()
        for action, *words in commands:
            self._run(action, words)
        finished = [self.ask(question) for question in QUESTIONS]
        seconds = time.perf_counter() - start
        self.told.append(
            Told(name, tuple(one.text for one in finished), sum(bool(one.cited) for one in finished), seconds)
        )

    def ask(self, question: str) -> "Finished":
        from evergreen.knowledge.answer import Ask

        ask = Ask(knowledge=self.registry.alias("stable").knowledge)
        prepared = self.knowledge.prepare(self.knowledge.look(question, ask), self._count)
        return self.knowledge.finish(prepared, self._answer(prepared.text), lambda second: self._answer(second.text),
                                     self._count)  # fmt: skip

    def _run(self, action: str, words: list[str]) -> dict[str, Any]:
        from evergreen.knowledge.commands import run_knowledge
        from evergreen.registry.knowledge import serve_knowledge

        kind = getattr(settings, f"Knowledge{action.title()}Settings")
        given = replace(parse(kind, words, f"knowledge {action}"), home=str(self.home), json=self.json)
        return run_knowledge(
            action, given, lambda _, *which: serve_knowledge(self.registry, *which), lambda _: self._count
        )

    def _answer(self, turn: str) -> str:
        from evergreen.model.template import prompt_ids

        prompt = prompt_ids([Message("user", turn)], self.loaded.tokenizer, system=self.loaded.system)
        return self.engine.generate([prompt], Sampling(max_new_tokens=48))[0].text

    def _count(self, text: str) -> int:
        return len(self.loaded.tokenizer.encode(text, add_special_tokens=False))


def tell(model: str, home: Path, console: "Console", json: bool = False) -> list[Told]:
    """The whole chapter on the demo's home, which has a stable release; what an earlier run left is gone first."""
    from evergreen.registry.knowledge import serve_knowledge

    shutil.rmtree(home / "knowledge", ignore_errors=True)
    chapter = Chapter(model, home, console, json)
    serve_knowledge(chapter.registry, "live")
    chapter.knowledge.warm()
    chapter.step("nobody has told it")
    chapter.step("added", *(("add", "--content", text.format(old), "--id", id, "--title", title, "--source_url", url)
                            for (id, title, text, url), old in zip(ENTRIES, OLD, strict=True)))  # fmt: skip
    chapter.step("published", ("publish", "--reason", "reviewed"))
    chapter.step("corrected", *(("update", "--id", id, "--content", text.format(new))
                                for (id, _, text, _), new in zip(ENTRIES, NEW, strict=True)))  # fmt: skip
    chapter.step(
        "withdrawn", ("withdraw", "--ids", *(id for id, *_ in ENTRIES), "--reason", "the announcement was wrong")
    )
    chapter.step("rolled back", ("rollback", "--snapshot", "1", "--reason", "shown in the demo"))
    chapter.knowledge.close()
    return chapter.told


def show(console: "Console", told: list[Told]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("", *QUESTIONS, "seconds"):
        table.add_column(column, overflow="fold")
    for one in told:
        table.add_row(*map(Text, (one.step, *one.answers, f"{one.seconds:.2f}")))
    console.print(table)


def check(told: list[Told]) -> None:
    """Raises Failure when an answer is not what the entries say."""
    wanted = {"nobody has told it": None, "added": OLD, "published": OLD, "corrected": NEW, "withdrawn": None,
              "rolled back": OLD}  # fmt: skip
    for one in told:
        values = wanted[one.step]
        if values is None:
            is_right = not one.num_cited and not any(value in text for value in (*OLD, *NEW) for text in one.answers)
        else:
            pairs = zip(values, one.answers, strict=True)
            is_right = one.num_cited == len(QUESTIONS) and all(value in text for value, text in pairs)
        if not is_right:
            raise Failure(f"knowledge, {one.step}: {' / '.join(one.answers)} was answered, "
                          f"{' / '.join(values) if values else 'no version'} was wanted")  # fmt: skip
