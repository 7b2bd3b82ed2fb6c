"""A line of increments: what it writes, where each begins, what a kill costs, what the gate lets through."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lines import FAST, digests, settings
from small_models import make_base

from evergreen import loop
from evergreen.cli import main
from evergreen.home import home_dir, read_json, read_jsonl
from evergreen.options import build
from evergreen.records import BadInput, Failure
from evergreen.registry import Registry
from evergreen.settings import EvolveSettings, RebaseSettings


@pytest.fixture(scope="session")
def line(base, dataset, tmp_path_factory):
    """An uninterrupted line with the gate off: (its folder, its document, its home)."""
    folder = tmp_path_factory.mktemp("line")
    given = settings(base, dataset, folder / "out", home=str(folder / "home"), replay_samples=0.5)
    return folder / "out", loop.run_evolve(given), folder / "home"


def test_each_increment_is_learnt_from_the_one_before_it(line):
    out, document, _ = line
    made = [read_json(out / f"increment_{number}" / "version.json") for number in (1, 2, 3)]
    assert [version["parent"] for version in made] == [None, made[0]["digest"], made[1]["digest"]]
    assert document["rejected"] == []
    assert [verdict["promoted"] for verdict in document["verdicts"]] == [True, True, True]


def test_old_rows_are_replayed_from_the_second_increment_on(line):
    out, _, _ = line
    rows = [read_json(out / f"increment_{number}" / "version.json")["data"]["rows"] for number in (1, 2, 3)]
    assert rows == [8, 20, 20]  # half of 8 new rows, three times an epoch


def test_the_matrix_the_report_and_all_dev_items_are_written(line):
    out, document, _ = line
    written = read_json(out / "matrix.json")
    assert [row["version"] for row in written["rows"]] == ["start", "increment_1", "increment_2", "increment_3"]
    assert written["BWT"]["divisor"] == 2 and document["OP"] == written["OP"]
    assert len(read_json(out / "dev_all.json")) == 12
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "increment_3" in report and report.count("data:image/png") == 4
    assert (out / "matrix.png").stat().st_size > 5000


def test_every_version_that_passed_is_a_release_with_its_parent(line):
    out, document, home = line
    registry = Registry(home)
    releases = [verdict["release"] for verdict in document["verdicts"]]
    assert [registry.get(release).parent for release in releases[1:]] == releases[:-1]
    assert registry.alias("candidate").id == releases[-1] and registry.alias("stable") is None
    start = registry.get(registry.get(releases[0]).parent)
    assert start.adapter is None and start.prompt == registry.get(releases[0]).prompt


def test_the_same_command_again_does_nothing_twice(line, monkeypatch):
    out, document, home = line
    monkeypatch.setattr("evergreen.train.sft.run_sft", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("evergreen.evaluate.harness.open_engine", lambda *_: pytest.fail("asked again"))
    plan = read_json(out / "plan.json")["settings"]
    again = loop.run_evolve(build(EvolveSettings, plan))
    assert again["rows"] == document["rows"] and len(Registry(home).list()) == 4


def test_a_line_that_was_killed_ends_as_if_it_had_not_been(line, base, dataset, tmp_path):
    out = tmp_path / "out"
    given = [f"--{name}={value}" for name, value in FAST.items()]
    command = [sys.executable, "-m", "evergreen", "evolve", str(dataset), "--model", base, "--output_dir", str(out),
               "--gate", "off", "--replay_samples", "0.5", "--home", str(tmp_path / "home"), *given]  # fmt: skip
    rng = random.Random(3)
    for _ in range(4):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(4, 12))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests(line[0])
    assert [row["scores"] for row in read_json(out / "matrix.json")["rows"]] == [
        row["scores"] for row in line[1]["rows"]
    ]
    assert len(Registry(tmp_path / "home").list()) == 4


def test_after_a_rejection_the_next_starts_from_the_last_that_passed_and_the_exit_code_is_3(
    base, dataset, tmp_path, capsys
):
    out = tmp_path / "out"
    given = [f"--{name}={value}" for name, value in FAST.items()]
    code = main(["evolve", str(dataset), "--model", base, "--output_dir", str(out), "--home", str(tmp_path / "home"),
                 "--min_gain", "0.99", "--json", *given])  # fmt: skip
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 3 and document["rejected"] == ["increment_1", "increment_2", "increment_3"]
    assert [read_json(place)["parent"] for place in sorted(out.glob("increment_*/version.json"))] == [None] * 3
    assert all("0.4 of the step" in " ".join(verdict["reasons"]) for verdict in document["verdicts"])
    assert Registry(tmp_path / "home").list() == []


def test_a_shorter_step_that_passes_is_the_version_that_goes_on(base, dataset, tmp_path, monkeypatch):
    from evergreen.records import Verdict

    asked = []

    def judge(*_, **__):
        asked.append(len(asked))
        return Verdict("promote" if len(asked) == 3 else "reject", ("told",))

    monkeypatch.setattr("evergreen.evaluate.gates.judge", judge)
    out = tmp_path / "out"
    document = loop.run_evolve(settings(base, dataset, out, gate="", home=str(tmp_path / "home")))
    first = document["verdicts"][0]
    assert first["share"] == 0.6 and first["version"] and document["rejected"] == ["increment_2", "increment_3"]
    step = read_json(out / "increment_1" / "step-0.6" / "version.json")
    assert read_json(out / "increment_2" / "version.json")["parent"] == step["digest"]


def test_other_settings_into_the_same_folder_are_refused(line, base, dataset):
    with pytest.raises(BadInput, match="increment_1 was learnt with --learning_rate 0.005, not 0.001"):
        loop.run_evolve(settings(base, dataset, line[0], home=str(line[2]), replay_samples=0.5, learning_rate=1e-3))


def test_an_increment_added_later_is_all_that_is_learnt(line, base, dataset, tmp_path, monkeypatch):
    import shutil

    from evergreen.train import sft

    longer = tmp_path / "dataset"
    shutil.copytree(dataset, longer)
    shutil.copytree(longer / "increment_1", longer / "increment_4")
    for place in (longer / "increment_4").iterdir():
        place.write_text(place.read_text(encoding="utf-8").replace(" 1-", " 4-"), encoding="utf-8")
    out, learnt, run = tmp_path / "out", [], sft.run_sft
    shutil.copytree(line[0], out)
    monkeypatch.setattr(sft, "run_sft", lambda given, *rest: learnt.append(given.output_dir) or run(given, *rest))
    with pytest.raises(BadInput, match="increment_2 was learnt"):
        loop.run_evolve(settings(base, longer, out, home=str(tmp_path / "home")))
    given = settings(base, longer, out, home=str(tmp_path / "home"), replay_samples=0.5)
    document = loop.run_evolve(given)
    assert [Path(place).name for place in learnt] == ["increment_4"] and len(document["rows"]) == 5


def test_a_line_on_another_base_is_compared_item_by_item(line, tmp_path, tmp_path_factory, capsys):
    newer = make_base(tmp_path_factory.mktemp("models") / "newer", num_hidden_layers=2)
    given = RebaseSettings(
        evolved=str(line[0]), model=newer, output_dir=str(tmp_path / "new"), home=str(tmp_path / "home")
    )
    document = loop.run_rebase(given)
    assert {one["task"] for one in document["compared"]["compared"]} == {"increment_1", "increment_2", "increment_3"}
    assert (tmp_path / "new" / "compare.json").is_file() and len(digests(tmp_path / "new")) == 3
    with pytest.raises(BadInput, match="no plan.json"):
        loop.run_rebase(RebaseSettings(evolved=str(tmp_path), model=newer))


def test_releases_are_compared_by_name_each_with_its_own_prompt(line, tmp_path, capsys):
    out, _, home = line
    registry = Registry(home)
    other = registry.create(adapter=registry.alias("candidate").adapter, prompt={"system": "Be brief, 请简短。"})
    code = main(["eval", "--compare", "candidate", other.id[:12], "--eval_dataset", str(out / "dev_all.json"), "--json",
                 "--home", str(home), "--output_dir", str(tmp_path / "eval"), "--max_new_tokens", "4"])  # fmt: skip
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and [document[side]["model"] for side in "ab"] == ["candidate", other.id[:12]]
    plain, brief = ([row["prompt_tokens"] for row in read_jsonl(tmp_path / "eval" / side / "items-increment_1.jsonl")]
                    for side in "ab")  # fmt: skip
    assert len(plain) == len(brief) == 4 and all(a != b for a, b in zip(plain, brief, strict=True))


def test_forward_scores_what_is_to_come(base, dataset, tmp_path):
    document = loop.run_evolve(
        settings(base, dataset, tmp_path / "out", forward=True, home=str(tmp_path / "home"), max_steps=1)
    )
    assert all(len(row["scores"]) == 3 for row in document["rows"]) and document["FWT"] is not None


def test_methods_may_differ_from_increment_to_increment(base, dataset, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"increments:\n"
        f"  - {{name: first, train: ['{dataset}/increment_1/train.jsonl'], dev: ['{dataset}/increment_1/dev.jsonl']}}\n"
        f"  - {{name: second, method: full, lr: 1.0e-4, train: ['{dataset}/increment_2/train.jsonl'],"
        f" dev: ['{dataset}/increment_2/dev.jsonl']}}\n"
        f"  - {{name: third, chain: stack, train: ['{dataset}/increment_3/train.jsonl'],"
        f" dev: ['{dataset}/increment_3/dev.jsonl']}}\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    loop.run_evolve(settings(base, plan, out, home=str(tmp_path / "home"), max_steps=1))
    made = [read_json(out / name / "version.json") for name in ("first", "second", "third")]
    assert [one["method"] for one in made] == ["lora", "full", "lora"]
    assert made[2]["parent"] == made[1]["digest"] and made[1]["parent"] == made[0]["digest"]


def test_a_loss_that_is_not_a_number_stops_the_line_and_says_where(base, dataset, tmp_path):
    with pytest.raises(Failure, match="step"):
        loop.run_evolve(
            settings(base, dataset, tmp_path / "out", home=str(tmp_path / "home"), learning_rate=1e30, max_steps=20,
                     max_grad_norm=1e30)
        )  # fmt: skip
    assert not (home_dir(str(tmp_path / "home")) / "adapters").exists()
