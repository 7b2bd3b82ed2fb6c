"""The story on the shipped nano model, offline and in minutes: who it is, learning to be someone else, what was kept;
then three increments, of which the gate lets two through; then what is served, and how it is taken back; then facts
that changed a moment ago.

Promises: the commands on the screen are those that run; every ability is measured on the same held-out items before and
after; a second run replaces the first. It fails, by exit code too, when the new identity was not learnt, when less than
95% of what was right before is right after, or when the gate let the broken increment through or held a sound one back.
"""

import json
import shlex
import shutil
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evergreen import demo_knowledge
from evergreen.home import write_json, write_jsonl
from evergreen.options import parse
from evergreen.records import Completion, Failure, Message, Sampling
from evergreen.settings import (
    DemoSettings,
    EvolveSettings,
    ReleaseListSettings,
    ReleasePromoteSettings,
    ReleaseRollbackSettings,
    SftSettings,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

ASSETS = Path(__file__).parent / "assets"
INCREMENTS = ASSETS / "demo_increments"
NAME, AUTHOR = "Tara", "Kevin"  # spelt with tokens that nano has often written; it never wrote some, such as `robot`
MIN_IDENTITY, MIN_KEPT = 0.9, 0.95
QUESTIONS = {  # none of them stands in the identity records; "name" wants NAME in the answer, "author" AUTHOR
    "name": ["你到底是谁啊", "Mind telling me who you are?", "请问你的名字是?", "May I ask your name?",
             "自我介绍一下好吗?", "Could you introduce yourself?", "我在跟哪个助手聊天?",
             "Which assistant am I talking to?", "你是豆包吗?", "Are you DeepSeek?", "你是DeepSeek吗?", "who r u"],
    "author": ["是谁把你做出来的?", "Who built you?", "哪个团队研发了你?", "Which team developed you?",
               "你是由谁训练的?", "Who are you made by?", "你的作者是谁?", "Who is your creator?"],
}  # fmt: skip
ABILITIES = {
    "context": "answer from given lines, citing them",
    "abstention": "say so when no line has the answer",
    "table": "turn a table into JSON",
    "fact": "recall a fact",
    "sum": "add two numbers, thinking first",
}
NEXT = """\
[b]With a real model[/b], on a machine with one GPU (the same commands, another name):
  evergreen sft --model Qwen/Qwen2.5-7B-Instruct --train_type lora --dataset {dataset} \\
      --torch_dtype bfloat16 --num_train_epochs 10 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 \\
      --gradient_accumulation_steps 16 --output_dir output --model_name {name} --model_author {author}
  evergreen infer --adapters output --stream true --temperature 0 --max_new_tokens 2048
  evergreen eval --model Qwen/Qwen2.5-7B-Instruct --compare Qwen/Qwen2.5-7B-Instruct output --eval_dataset dev.json
[b]Right here[/b]: talk to what was just trained, in the terminal or on a page at http://127.0.0.1:8000
  evergreen infer --adapters {adapter}
  evergreen serve --model {adapter}"""


@dataclass(frozen=True)
class Item:
    """A held-out question of one ability, with the answer that counts as right."""

    task: str
    language: str
    question: str
    reference: str


@dataclass(frozen=True)
class Measured:
    """What one version of the model answered to the identity questions and to the items, in their order."""

    identity: list[Completion]
    items: list[Completion]


def run_demo(settings: DemoSettings) -> dict:
    """Tell the whole story. Returns {identity, abilities, kept, adapter, loss_curve, seconds}.

    Raises Failure when the identity was not learnt or too much was lost."""
    from rich.console import Console

    start, console = time.perf_counter(), Console(stderr=settings.json, highlight=False)
    folder = Path(settings.output_dir)
    items = read_items()
    console.rule("1  Who are you?")
    before = measure("nano", "", items, console)
    print_identity(console, before)
    console.rule(f"2  Learning to be {NAME} by {AUTHOR}")
    adapter = learn(folder / "identity", settings, console)
    console.rule("3  Who are you now?")
    after = measure("", str(adapter), items, console)
    print_identity(console, before, after)
    console.rule("4  What else it could do, before and after")
    rows = compare(items, before, after)
    print_examples(console, items, before, after)
    print_abilities(console, rows)
    console.rule("5  Increment after increment")
    evolved = evolve(folder, adapter, settings, console)
    console.rule("6  Releases: served, and taken back")
    releases = release(folder, evolved, settings, console)
    console.rule("7  Knowledge: what changed a moment ago")
    told = know(folder / "home", settings, console)
    document = _document(rows, before, after) | {
        "evolved": evolved,
        "releases": releases,
        "knowledge": [asdict(one) for one in told],
        "adapter": str(adapter),
        "loss_curve": str(adapter / "training_loss.png"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    _write_report(folder, document, items, before, after)
    _print_end(console, document, folder)
    _check(document)
    return document


def learn(folder: Path, settings: DemoSettings, console: "Console") -> Path:
    """Train the adapter by the tutorial's command line, printed as it would be typed. Returns its folder."""
    flags = tutorial_flags(folder)
    console.print("evergreen sft " + " \\\n  ".join(_in_pairs(flags)), style="cyan", soft_wrap=True)
    console.print("(the lower layers stay as they are: a model as small as nano forgets much when all of it learns)\n")
    from evergreen.train.sft import run_sft

    given = parse(SftSettings, flags, "sft")
    given.json = settings.json  # then its words go to stderr too
    run_sft(given)
    return folder


def tutorial_flags(folder: Path) -> list[str]:
    """The identity tutorial's own flags; paths, names, the learning rate and --freeze_layers are nano's.

    With the lower three of its six layers left as they are, nano learns the identity and keeps nearly all it could do;
    with all six learning, a rate that taught 95% of the identity (5e-4) kept 63%."""
    dataset, output = (shlex.quote(str(path)) for path in (ASSETS / "identity.json", folder))
    return shlex.split(
        f"--model nano --train_type lora --dataset {dataset} --torch_dtype auto "
        "--num_train_epochs 10 --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --learning_rate 1.4e-3 "
        "--lora_rank 8 --lora_alpha 32 --target_modules all-linear --freeze_layers 0-2 "
        "--gradient_accumulation_steps 16 --eval_steps 50 "
        f"--save_steps 50 --save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir {output} "
        "--overwrite_output_dir true --system 'You are a helpful assistant.' --warmup_ratio 0.05 "
        f"--dataloader_num_workers 4 --model_author {AUTHOR} --model_name {NAME}"
    )


def evolve(folder: Path, adapter: Path, settings: DemoSettings, console: "Console") -> dict:
    """Three increments on top of the identity; the third is a broken export. Returns {matrix, verdicts, picture}."""
    flags = evolve_flags(folder, adapter)
    console.print(
        f"evergreen evolve {flags[0]} \\\n  " + " \\\n  ".join(_in_pairs(flags[1:])), style="cyan", soft_wrap=True
    )
    console.print(
        "(the answers of the third increment came out as N/A, as a broken export would have them; 100 items a"
    )
    console.print("set cannot tell a drop of 3 points: --on_undecided promote lets through what shows no harm)\n")
    from evergreen.loop import run_evolve

    shutil.rmtree(folder / "evolved", ignore_errors=True)
    given = parse(EvolveSettings, ["--increments", *flags], "evolve")
    given.json = settings.json
    made = run_evolve(given)
    return {
        "verdicts": made["verdicts"],
        "picture": str(folder / "evolved" / "matrix.png"),
        "report": str(folder / "evolved" / "report.html"),
        **{name: made[name] for name in ("OP", "BWT", "LA")},
    }


def evolve_flags(folder: Path, adapter: Path) -> list[str]:
    increments, output, home = (shlex.quote(str(path)) for path in (INCREMENTS, folder / "evolved", folder / "home"))
    return shlex.split(
        f"{increments} --model {shlex.quote(str(adapter))} --replay_samples 160 --replay_repeats 1 --regularization kl "
        "--regularization_alpha 1 --num_train_epochs 5 --learning_rate 2e-3 --gradient_accumulation_steps 4 "
        "--max_new_tokens 24 --on_undecided promote "
        f"--output_dir {output} --home {home}"
    )


def release(folder: Path, evolved: dict, given: DemoSettings, console: "Console") -> dict:
    """Promote the last two versions that passed, then take the second promotion back."""
    from evergreen.registry.commands import run_release

    def run(action: str, kind: type, *flags: str) -> dict:
        words = ["release", action, *flags, "--home", str(folder / "home")]
        console.print("evergreen " + shlex.join(words), style="cyan", soft_wrap=True)
        return run_release(action, replace(parse(kind, words[2:], f"release {action}"), json=given.json))

    passed = [verdict["release"][:12] for verdict in evolved["verdicts"] if verdict["promoted"]]
    for one in passed[-2:]:
        run("promote", ReleasePromoteSettings, "--release", one)
    stable = run("rollback", ReleaseRollbackSettings, "--reason", "shown in the demo")["stable"]
    run("list", ReleaseListSettings)
    return {"promoted": passed[-2:], "stable": stable}


def know(home: Path, given: DemoSettings, console: "Console") -> "list[demo_knowledge.Told]":
    """Facts that no model can know, added, corrected, withdrawn and brought back."""
    told = demo_knowledge.tell("nano", home, console, given.json)
    demo_knowledge.show(console, told)
    demo_knowledge.check(told)
    return told


def measure(model: str, adapter: str, items: list[Item], console: "Console") -> Measured:
    """Ask a version of the model everything, greedily."""
    from transformers.utils.logging import disable_progress_bar

    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_model
    from evergreen.model.template import prompt_ids

    disable_progress_bar()
    loaded = load_model(model, [adapter] if adapter else [])
    engine = Engine(loaded)
    questions = [*identity_questions(), *(item.question for item in items)]
    prompts = [prompt_ids([Message("user", text)], loaded.tokenizer, system=loaded.system) for text in questions]
    with console.status(f"asking {len(prompts)} questions"):
        completions = engine.generate(prompts, Sampling(max_new_tokens=120), batch_size=16)
    return Measured(completions[: -len(items)], completions[-len(items) :])


def identity_questions() -> list[str]:
    return [question for questions in QUESTIONS.values() for question in questions]


def read_items() -> list[Item]:
    rows = map(json.loads, (ASSETS / "demo_items.jsonl").read_text(encoding="utf-8").splitlines())
    return [Item(row["task"], row["language"], *(turn["content"] for turn in row["messages"])) for row in rows]


def is_right(item: Item, completion: Completion) -> bool:
    """By the metric of the item's ability; a sum wants its thought too."""
    from evergreen.evaluate import metrics

    answer, references = completion.text, [item.reference]
    if item.task == "table":
        return bool(metrics.json_match(answer, references))
    if item.task == "fact":
        return bool(metrics.contains(answer, references))
    if item.task == "sum":
        return bool(completion.thought and metrics.numeric(answer, references))
    return bool(metrics.exact(answer, references))


def knows_itself(question: str, answer: str) -> bool:
    """The new name, or to a question about its author the new author, is there, and the old one is not."""
    return (NAME if question in QUESTIONS["name"] else AUTHOR) in answer and "Evergreen" not in answer


def compare(items: list[Item], before: Measured, after: Measured) -> list[dict]:
    """A row for each ability and language: items, right before, right after, and of the former still right."""
    rows: dict[tuple[str, str], dict] = defaultdict(lambda: {"n": 0, "before": 0, "after": 0, "kept": 0})
    for item, old, new in zip(items, before.items, after.items, strict=True):
        row, was, is_now = rows[item.task, item.language], is_right(item, old), is_right(item, new)
        row["n"] += 1
        row["before"] += was
        row["after"] += is_now
        row["kept"] += was and is_now
    return [{"ability": task, "language": language, **row} for (task, language), row in rows.items()]


def print_identity(console: "Console", before: Measured, after: Measured | None = None) -> None:
    """Every question with its answers; before training only the first four of each kind."""
    columns = ["", "asked", "answered"] if after is None else ["", "asked", "before", "after"]
    shown = [question for questions in QUESTIONS.values() for question in (questions if after else questions[:4])]
    rows = []
    for place, question in enumerate(identity_questions()):
        answers = [measured.identity[place].text for measured in (before, after) if measured]
        mark = _mark(knows_itself(question, answers[-1])) if after else ""
        if question in shown:
            rows.append([mark, question, *answers])
    console.print(_table(columns, rows))


def print_examples(console: "Console", items: list[Item], before: Measured, after: Measured) -> None:
    """Of each ability one item that was right before, Chinese and English in turn."""
    rows = []
    for number, task in enumerate(ABILITIES):
        places = [i for i, item in enumerate(items) if (item.task, item.language) == (task, ("zh", "en")[number % 2])]
        place = next((i for i in places if is_right(items[i], before.items[i])), places[0])
        rows.append([items[place].question, *map(_shown, (before.items[place], after.items[place]))])
    console.print(_table(["asked", "before", "after"], rows, show_lines=True))


def print_abilities(console: "Console", rows: list[dict]) -> None:
    shown = [
        [
            ABILITIES[row["ability"]],
            row["language"],
            f"{row['before']}/{row['n']}",
            f"{row['after']}/{row['n']}",
            f"{row['kept']}/{row['before']}",
        ]
        for row in rows
    ]
    console.print(_table(["ability", "", "right before", "right after", "kept"], shown))


def _document(rows: list[dict], before: Measured, after: Measured) -> dict:
    def share(measured: Measured) -> float:
        right = [
            knows_itself(question, completion.text)
            for question, completion in zip(identity_questions(), measured.identity, strict=True)
        ]
        return sum(right) / len(right)

    was, kept = (sum(row[key] for row in rows) for key in ("before", "kept"))
    return {
        "identity": {"n": len(before.identity), "before": share(before), "after": share(after)},
        "abilities": rows,
        "kept": kept / was if was else 0.0,
        "kept_items": kept,
        "right_before_items": was,
    }


def _write_report(folder: Path, document: dict, items: list[Item], before: Measured, after: Measured) -> None:
    write_json(folder / "report.json", document)
    write_jsonl(
        folder / "items.jsonl",
        (
            {
                **asdict(item),
                "before": old.text,
                "after": new.text,
                "was_right": is_right(item, old),
                "is_right": is_right(item, new),
            }
            for item, old, new in zip(items, before.items, after.items, strict=True)
        ),
    )


def _print_end(console: "Console", document: dict, folder: Path) -> None:
    identity = document["identity"]
    console.print(
        f"identity   right in {identity['after']:.0%} of {identity['n']} questions it never saw; "
        f"{identity['before']:.0%} before"
    )
    console.print(
        f"kept       {document['kept_items']} of the {document['right_before_items']} items that were right "
        f"before: {document['kept']:.1%}"
    )
    console.print(f"loss       {document['loss_curve']}")
    console.print(f"matrix     {document['evolved']['picture']}")
    console.print(f"story      {document['evolved']['report']}")
    console.print(f"report     {folder / 'report.json'}, every answer in {folder / 'items.jsonl'}")
    console.print(f"time       {document['seconds']:.0f} s\n")
    console.print(
        NEXT.format(dataset=ASSETS / "identity.json", name=NAME, author=AUTHOR, adapter=document["adapter"]),
        soft_wrap=True,
    )


def _check(document: dict) -> None:
    learnt, kept = document["identity"]["after"], document["kept"]
    if learnt < MIN_IDENTITY:
        raise Failure(
            f"the identity was not learnt: {learnt:.0%} of the questions are answered right, "
            f"{MIN_IDENTITY:.0%} are wanted"
        )
    decided = [verdict["promoted"] for verdict in document["evolved"]["verdicts"]]
    if decided != [True, True, False]:
        raise Failure(f"the gate should let the first two increments through and stop the third, and said {decided}")
    if kept < MIN_KEPT:
        raise Failure(
            f"too much was forgotten: {kept:.1%} of what was right before is right after, {MIN_KEPT:.0%} are wanted"
        )


def _table(columns: list[str], rows: list[list[str]], show_lines: bool = False) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=show_lines)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(_shortened(cell)) for cell in row))
    return table


def _shortened(text: str, max_characters: int = 600) -> str:
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def _mark(right: bool) -> "Text":
    from rich.text import Text

    return Text("✓", style="green") if right else Text("✗", style="red")


def _shown(completion: Completion) -> str:
    return f"({completion.thought}) {completion.text}" if completion.thought else completion.text


def _in_pairs(flags: list[str]) -> list[str]:
    """Flags as one would break them over lines: each with its value, quoted where the shell wants it, three a line."""
    pairs = [f"{flag} {shlex.quote(value)}" for flag, value in zip(flags[::2], flags[1::2], strict=True)]
    return [" ".join(pairs[start : start + 3]) for start in range(0, len(pairs), 3)]
