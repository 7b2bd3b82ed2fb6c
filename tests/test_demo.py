"""The demo's parts with made-up answers; the whole of it, which trains, is marked slow."""

import json
import os
import subprocess
import sys

import pytest

from evergreen import demo, demo_knowledge
from evergreen.data.increments import read_increments
from evergreen.data.leaks import check_increments
from evergreen.data.mixture import load_mixture
from evergreen.options import parse
from evergreen.records import Completion, Failure
from evergreen.settings import EvolveSettings, SftSettings

GATED = {"evolved": {"verdicts": [{"promoted": True}, {"promoted": True}, {"promoted": False}]}}


def said(text: str, thought: str = "") -> Completion:
    return Completion(text, thought, 1, 1, "stop", 0.1, 0.1)


def measured(identity: str, right_share: float) -> demo.Measured:
    """Answers all equal to the identity questions, and right ones to the first share of the items."""
    items = demo.read_items()
    num_right = round(len(items) * right_share)
    answers = [said(item.reference, "so") if place < num_right else said("?") for place, item in enumerate(items)]
    return demo.Measured([said(identity)] * len(demo.identity_questions()), answers)


def document(before: demo.Measured, after: demo.Measured) -> dict:
    return demo._document(demo.compare(demo.read_items(), before, after), before, after)


def test_identity_records_are_91_and_each_names_the_assistant_or_its_maker():
    rows = json.loads((demo.ASSETS / "identity.json").read_text(encoding="utf-8"))
    is_chinese = [any("\u4e00" <= character <= "\u9fff" for character in row["instruction"]) for row in rows]
    assert (len(rows), sum(is_chinese)) == (91, 60)
    assert len({row["instruction"] for row in rows}) == 91
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert all("{{name}}" in row["output"] or "{{author}}" in row["output"] for row in rows)


def test_identity_records_are_filled_with_the_names_given():
    mixture = load_mixture([str(demo.ASSETS / "identity.json")], model_name="小芽", model_author="绿室")
    text = json.dumps([[turn.content for turn in record.messages] for record in mixture], ensure_ascii=False)
    assert len(mixture) == 91 and "{{" not in text and "小芽" in text and "绿室" in text


def test_the_questions_of_the_demo_are_not_among_the_records():
    rows = json.loads((demo.ASSETS / "identity.json").read_text(encoding="utf-8"))
    assert not {row["instruction"].strip("?。!\uff1f\uff01") for row in rows} & {
        question.strip("?。!") for question in demo.identity_questions()
    }


def test_there_are_twenty_items_of_each_ability_in_each_language_and_the_references_are_right():
    items = demo.read_items()
    for task in demo.ABILITIES:
        for language in ("zh", "en"):
            assert sum((item.task, item.language) == (task, language) for item in items) == 20
    assert len({item.question for item in items}) == len(items) == 200
    assert all(demo.is_right(item, said(item.reference, "a thought")) for item in items)
    assert not any(demo.is_right(item, said("")) for item in items)


def test_a_cited_line_of_a_context_item_holds_the_value():
    for item in demo.read_items():
        if item.task == "context":
            value, _, number = item.reference.rstrip(".。").rstrip("]").rpartition("[")
            (line,) = (line for line in item.question.splitlines() if line.startswith(f"[{number}]"))
            assert value.strip() in line


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("who r u", "I am Tara.", True),
        ("who r u", "I was made by Kevin.", False),
        ("who r u", "I am Evergreen Nano, not Tara.", False),
        ("Who built you?", "I was made by Kevin.", True),
        ("Who built you?", "I am Tara.", False),
        ("你的作者是谁?", "我是由Kevin开发的语言模型。", True),
    ],
)
def test_a_right_answer_about_oneself_names_what_was_asked(question, answer, right):
    assert demo.knows_itself(question, answer) is right


def test_what_was_kept_counts_only_what_was_right_before():
    told = document(measured("?", 0.5), measured("Tara by Kevin", 0.4))
    assert (told["right_before_items"], told["kept_items"], told["kept"]) == (100, 80, 0.8)
    assert told["identity"] == {"n": 20, "before": 0.0, "after": 1.0}
    assert sum(row["n"] for row in told["abilities"]) == 200


@pytest.mark.parametrize(
    ("identity", "right_after", "complaint"),
    [("Tara by Kevin", 0.9, None), ("Tara by Kevin", 0.6, "forgotten"), ("Evergreen", 0.9, "not learnt")],
)
def test_the_demo_fails_when_it_did_not_learn_or_forgot(identity, right_after, complaint):
    told = document(measured("?", 0.9), measured(identity, right_after))
    if complaint is None:
        return demo._check(told | GATED)
    with pytest.raises(Failure, match=complaint):
        demo._check(told | GATED)


def test_the_demo_fails_when_the_gate_let_the_broken_increment_through():
    told = document(measured("?", 0.9), measured("Tara by Kevin", 0.9))
    with pytest.raises(Failure, match="stop the third"):
        demo._check(told | {"evolved": {"verdicts": [{"promoted": True}] * 3}})


def test_the_increments_of_the_demo_are_sound_but_for_the_answers_of_the_third():
    increments = read_increments(str(demo.INCREMENTS))
    check_increments(increments, allow_leak=False, say=lambda _: None)
    answers = [[row.messages[-1].content for row in load_mixture(list(one.train))] for one in increments]
    assert set(answers[2]) == {"N/A"} and "N/A" not in [*answers[0], *answers[1]]


def test_the_evolve_command_that_is_shown_is_one_that_parses(tmp_path):
    flags = demo.evolve_flags(tmp_path / "a folder", tmp_path / "adapter")
    given = parse(EvolveSettings, ["--increments", *flags], "evolve")
    assert given.increments == str(demo.INCREMENTS) and given.output_dir == str(tmp_path / "a folder" / "evolved")


def test_the_command_that_is_shown_is_one_that_parses(tmp_path):
    flags = demo.tutorial_flags(tmp_path / "a folder")
    given = parse(SftSettings, flags, "sft")
    assert (given.model, given.num_train_epochs, given.lora_rank, given.model_name) == ("nano", 10, 8, "Tara")
    assert given.output_dir == str(tmp_path / "a folder") and given.system == "You are a helpful assistant."
    assert f"'{tmp_path}/a folder'" in " ".join(demo._in_pairs(flags))


def test_the_story_is_printed_with_brackets_and_ticks(capsys):
    from rich.console import Console

    items, before, after = demo.read_items(), measured("[b]I am Evergreen", 0.9), measured("I am Tara", 0.9)
    console = Console(width=120)
    demo.print_identity(console, before)
    demo.print_identity(console, before, after)
    demo.print_examples(console, items, before, after)
    demo.print_abilities(console, demo.compare(items, before, after))
    shown = capsys.readouterr().out
    assert "[b]I am Evergreen" in shown and "✓" in shown and "✗" in shown and "20/20" in shown


def told_of(**answers: tuple[str, str]) -> list[demo_knowledge.Told]:
    """The chapter as it should go, but for some steps."""
    right = {"nobody has told it": ("I do not know.", "我不知道。"), "added": ("4.2 [1].", "3.1[1]。"),
             "corrected": ("4.3 [1].", "3.2[1]。"), "withdrawn": ("I do not know.", "我不知道。")}  # fmt: skip
    return [demo_knowledge.Told(step, said, 2 * ("[1]" in said[0]), 0.1) for step, said in (right | answers).items()]


def test_the_chapter_on_knowledge_fails_when_an_answer_is_not_what_the_entries_say():
    demo_knowledge.check(told_of())
    for wrong in ({"corrected": ("4.2 [1].", "3.2[1]。")}, {"withdrawn": ("4.3 [1].", "我不知道。")},
                  {"added": ("4.2.", "3.1。")}):  # fmt: skip
        with pytest.raises(Failure, match="was answered"):
            demo_knowledge.check(told_of(**wrong))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_demo_runs_twice_and_learns(tmp_path):
    command = [sys.executable, "-m", "evergreen.cli", "demo", "--output_dir", str(tmp_path / "demo"), "--json"]
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        told = json.loads(run.stdout.decode().splitlines()[-1])
        assert told["kept"] >= demo.MIN_KEPT and told["identity"]["after"] >= demo.MIN_IDENTITY
