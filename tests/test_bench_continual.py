"""The benchmark of continual learning: its data is clean, its figures follow the definitions, its lines resume."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import continual  # noqa: E402
import skills  # noqa: E402

SHAPE = dict(
    hidden_size=4, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8, vocab_size=10
)


def prompts(rows):
    return [row["messages"][0]["content"] for row in rows]


def test_no_dev_item_of_a_skill_has_the_prompt_of_any_train_row():
    made = {name: skills.rows(name, seed=3, num_train=120, num_dev=60) for name in skills.SKILLS}
    trained = {text for train, _ in made.values() for text in prompts(train)}
    asked = [text for _, dev in made.values() for text in prompts(dev)]
    assert len(asked) == 60 * len(skills.SKILLS) == len(set(asked))
    assert not trained & set(asked)


def test_a_skill_of_few_prompts_keeps_its_dev_items_out_of_training(monkeypatch):
    monkeypatch.setitem(skills.SKILLS, "few", lambda r, language, is_dev: (str(r.randint(1, 30)), "x"))
    train, dev = skills.rows("few", seed=0, num_train=100, num_dev=10)
    assert len(train) == 100 and len(dev) == 10
    assert not set(prompts(train)) & set(prompts(dev))


def test_a_prompt_of_the_skills_has_one_answer():
    answers = {}
    for name in skills.SKILLS:
        for row in sum(skills.rows(name, seed=1, num_train=200, num_dev=50), []):
            question, answer = (turn["content"] for turn in row["messages"])
            assert answers.setdefault(question, answer) == answer


def test_the_same_seed_makes_the_same_rows_and_another_seed_others():
    assert skills.rows("desk", 5) == skills.rows("desk", 5) != skills.rows("desk", 6)


def test_figures_are_those_of_the_definitions():
    found = continual.figures(own=[0.9, 0.8, 0.7], last=[0.5, 0.9, 0.7])
    expected = {"OP": 70.0, "BWT": 100 * (-0.4 + 0.1) / 2, "forgetting": 15.0, "LA": 80.0}
    assert found == pytest.approx(expected)


def test_no_forgetting_is_below_zero():
    assert continual.figures(own=[0.5, 0.5], last=[0.8, 0.5])["forgetting"] == 0.0


def test_operations_are_counted_matrix_by_matrix():
    counter = continual.Counter(SimpleNamespace(**SHAPE), rank=2)
    layer = 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8  # q and o, k and v, the three of the MLP
    adapter = 2 * (2 * 8 + 2 * 6 + 3 * 12)
    assert counter.forward(tokens=5, targets=2) == 2 * (5 * 3 * (layer + adapter) + 2 * 4 * 10)
    passed_back = 2 * (5 * 1 * (layer + 2 * adapter) + 2 * 4 * 10)  # the last layer only
    assert counter.training(5, 2, lowest=2) == counter.forward(5, 2) + passed_back


def tiny(tmp_path):
    stream = continual.replace(
        continual.NANO,
        tasks=("ticket", "desk"),
        metrics=("exact", "exact"),
        write=few_rows,
        training={"max_steps": 1, "max_length": 128, "save_strategy": "steps"},
        max_new_tokens=4,
    )
    return continual.Bench(stream, tmp_path, Console(quiet=True))


def few_rows(bench, place, seed):
    train, dev = skills.rows(place.name, seed, num_train=6, num_dev=3)
    place.mkdir(parents=True)
    continual.write_jsonl(place / "train.jsonl", train)
    continual.write_jsonl(place / f"{place.name}.jsonl", dev)


def test_a_line_is_trained_once_and_shares_its_first_increment(tmp_path, monkeypatch):
    line = tiny(tmp_path).line("replay_5", seed=0)
    assert set(line) > {"OP", "BWT", "LA", "flop"} and line["flop"] > 0
    monkeypatch.setattr("evergreen.train.sft.run_sft", lambda *_: pytest.fail("trained again"))
    assert tiny(tmp_path).line("replay_5", seed=0) == line
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        tiny(tmp_path).line("sequential", seed=0)
    assert not (tmp_path / "nano" / "seed0" / "sequential" / "0").exists()
