"""What an evolve refuses before it trains, what it leaves out in a line, and what it finds again."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from lines import digests, make_dataset, settings, write_plan

from evergreen import loop
from evergreen.data.increments import Increment, read_increments
from evergreen.evaluate.harness import Version
from evergreen.home import read_json
from evergreen.loop.evolve import Evolve
from evergreen.loop.plan import asked_of
from evergreen.options import option, parse
from evergreen.records import BadInput, Failure
from evergreen.settings import EvolveSettings, RebaseSettings, SftSettings


@pytest.fixture(scope="session")
def finished(base, tmp_path_factory) -> tuple[Path, Path]:
    """(data, output folder) of a line of two increments, one step each."""
    folder = tmp_path_factory.mktemp("finished")
    data = make_dataset(folder / "dataset", ("red", "蓝"))
    loop.run_evolve(settings(base, data, folder / "out", max_steps=1))
    return data, folder / "out"


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, Path]:
    """The finished line in a folder of the test's own."""
    shutil.copytree(finished[1], tmp_path / "out")
    return finished[0], tmp_path / "out"


@pytest.fixture
def nothing_learnt(monkeypatch):
    monkeypatch.setattr("evergreen.train.sft.run_sft", lambda *_, **__: pytest.fail("trained again"))


# -- before anything is trained


@pytest.mark.parametrize("own, wanted", [
    ("unfreeze: auto, trainable_layers: 0-1", "third: --unfreeze auto chooses the layers"),
    ("replay: 0, regularization: kl", "third: --regularization kl measures on old data"),
    ("trainable_layers: 0-99", "third: .*the model has layers 0-2"),
    ("optim: adamw_nonsense", "third: --optim adamw_nonsense: no such optimizer"),
    ("val_dataset: [nowhere.json]", "third: .*nowhere.json"),
    ("use_dora: true, merge_chain: concat", "third: --merge_chain does not hold for DoRA"),
])  # fmt: skip
def test_a_later_increments_settings_are_refused_before_the_first_is_trained(
    own, wanted, base, dataset, tmp_path, nothing_learnt
):
    plan = write_plan(tmp_path / "plan.yaml", dataset, first="", second="", third=own)
    with pytest.raises(BadInput, match=wanted):
        loop.run_evolve(settings(base, plan, tmp_path / "out"))


@pytest.mark.parametrize("row, own, wanted", [
    ({"prompt": "长" * 3000, "answer": "x"}, "", r"third: .*added.jsonl:1: \d+ tokens, at most 2048"),
    ({"prompt": "a?", "answer": "x"}, "max_length: 8", r"third: .*added.jsonl:1: \d+ tokens, at most 8"),
    ({"prompt": "a?", "answer": "x"}, "max_length: 33", r"third: it may replay .*increment_1.*train.jsonl:1: "),
    ({"prompt": "长" * 3000, "answer": "x"}, "truncation_strategy: delete", "third: none of the 1 records can be"),
])  # fmt: skip
def test_rows_that_a_later_increment_cannot_learn_are_refused_before_the_first_is_trained(
    row, own, wanted, base, dataset, tmp_path, nothing_learnt
):
    (tmp_path / "added.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    plan = write_plan(tmp_path / "plan.yaml", dataset, first="", second="")
    with open(plan, "a", encoding="utf-8") as file:
        dev = dataset / "increment_3" / "dev.jsonl"
        file.write(f"  - {{name: third, train: '{tmp_path}/added.jsonl', dev: '{dev}'{', ' * bool(own)}{own}}}\n")
    with pytest.raises(BadInput, match=wanted):
        loop.run_evolve(settings(base, plan, tmp_path / "out"))


def test_an_item_that_no_version_could_answer_is_refused_before_the_first_is_trained(
    base, dataset, tmp_path, nothing_learnt
):
    shutil.copytree(dataset, tmp_path / "dataset")
    long = json.dumps({"prompt": "长" * 40000, "answer": "x"}, ensure_ascii=False) + "\n"
    with open(tmp_path / "dataset" / "increment_3" / "dev.jsonl", "a", encoding="utf-8") as file:
        file.write(long)
    with pytest.raises(BadInput, match=r"increment_3/dev.jsonl:5: the prompt has \d+ tokens"):
        loop.run_evolve(settings(base, tmp_path / "dataset", tmp_path / "out"))
    suite = tmp_path / "general.jsonl"
    suite.write_text(long, encoding="utf-8")
    with pytest.raises(BadInput, match=r"general.jsonl:1: the prompt has \d+ tokens"):
        loop.run_evolve(settings(base, dataset, tmp_path / "out", retention=[str(suite)]))


def test_items_that_share_an_id_all_count(base, dataset, tmp_path):
    shutil.copytree(dataset / "increment_1", tmp_path / "dataset" / "increment_1")
    dev = tmp_path / "dataset" / "increment_1" / "dev.jsonl"
    dev.write_text(dev.read_text(encoding="utf-8").replace('{"prompt"', '{"id": "same", "prompt"'), encoding="utf-8")
    document = loop.run_evolve(settings(base, tmp_path / "dataset", tmp_path / "out", max_steps=1))
    assert [score["n"] for row in document["rows"] for score in row["scores"]] == [4, 4]


def test_items_that_cannot_be_used_are_left_out_when_told_so(base, dataset, tmp_path):
    shutil.copytree(dataset / "increment_1", tmp_path / "dataset" / "increment_1")
    with open(tmp_path / "dataset" / "increment_1" / "dev.jsonl", "a", encoding="utf-8") as file:
        file.write('{"prompt": "no answer"}\n{"prompt": "' + "长" * 40000 + '", "answer": "x"}\n')
    given = settings(base, tmp_path / "dataset", tmp_path / "out", on_bad_row="skip", max_steps=1)
    document = loop.run_evolve(given)
    assert [score["n"] for row in document["rows"] for score in row["scores"]] == [4, 4]


@pytest.mark.parametrize("given, wanted", [
    ({"replay_samples": 0.0, "regularization": "kl"}, "increment_2: --regularization kl measures on old data"),
    ({"replay_samples": 0.0, "regularization_alpha": 5.0}, "increment_2: --regularization ewc measures on old data"),
    ({"replay_samples": 0.0, "regularization": "ewc"}, "increment_2: --regularization ewc measures on old data"),
    ({"replay_samples": 0.0, "unfreeze": "auto"}, "increment_2: --unfreeze auto compares"),
    ({"train_type": "full", "chain": "stack"}, "--chain and --merge_chain are for lora"),
    ({"train_type": "full", "use_dora": True}, "--use_dora is for lora"),
    ({"resume_from_checkpoint": "somewhere/checkpoint-3"}, "--resume_from_checkpoint .*the same command"),
    ({"resume_only_model": True}, "--resume_only_model .*the same command"),
])  # fmt: skip
def test_what_was_asked_for_and_cannot_be_had_is_an_error(given, wanted, base, dataset, tmp_path, nothing_learnt):
    with pytest.raises(BadInput, match=wanted):
        loop.run_evolve(settings(base, dataset, tmp_path / "out", **given))


def test_a_first_increment_that_asks_for_replay_of_its_own_is_refused(base, dataset, tmp_path, nothing_learnt):
    plan = write_plan(tmp_path / "plan.yaml", dataset, first="replay: 0.5", second="")
    with pytest.raises(BadInput, match="first: --replay_samples needs the earlier run"):
        loop.run_evolve(settings(base, plan, tmp_path / "out"))


def test_a_training_row_that_repeats_an_item_of_a_retention_suite_is_refused(base, dataset, tmp_path, nothing_learnt):
    suite = tmp_path / "general.jsonl"
    suite.write_text(json.dumps({"prompt": "train 2-3: 颜色 colour?", "answer": "蓝"}) + "\n", encoding="utf-8")
    with pytest.raises(BadInput, match="increment_2 trains 1 row that the retention suite general.jsonl asks"):
        loop.run_evolve(settings(base, dataset, tmp_path / "out", retention=[str(suite)]))


# -- what is left out, in a line


def prepared(given: EvolveSettings) -> dict[str, SftSettings]:
    """What each increment would be trained with, were the one before it to pass."""
    evolve = Evolve(given)
    evolve.prepare()
    starts = [{"model": given.model}, *({"prev_model": str(step.folder)} for step in evolve.steps)]
    return {step.name: evolve.settings_of(step, start, lambda _: None)
            for step, start in zip(evolve.steps, starts, strict=False)}  # fmt: skip


def said_of_ewc(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "ewc" in line]


def test_a_default_that_cannot_hold_is_left_out_and_said_in_a_line(base, dataset, tmp_path, capsys):
    made = prepared(settings(base, dataset, tmp_path / "out", replay_samples=0.0))
    assert said_of_ewc(capsys) == [
        "increment_2, increment_3: ewc, the default, is measured on old rows, and no old rows are mixed in: off"
    ]
    assert [one.regularization_alpha for one in made.values()] == [0, 0, 0]


def test_whole_weights_leave_the_default_out_and_keep_what_was_asked_for(base, dataset, tmp_path, capsys):
    plan = write_plan(tmp_path / "plan.yaml", dataset, first="", second="method: full",
                      third="method: full, regularization: kl, regularization_alpha: 1")  # fmt: skip
    made = prepared(settings(base, plan, tmp_path / "out"))
    assert made["second"].regularization_alpha == 0
    assert (made["third"].regularization, made["third"].regularization_alpha) == ("kl", 1)
    assert said_of_ewc(capsys) == [
        "first: nothing was learnt before it, so ewc and --replay_samples begin with the next",
        "second: ewc, the default, would hold 8 more bytes for each weight: off with full",
    ]


def test_a_default_that_is_typed_is_asked_for(base, dataset, tmp_path):
    typed = parse(EvolveSettings, ["--regularization", "ewc", "--train_type", "full"], "evolve")
    silent = parse(EvolveSettings, ["--train_type", "full"], "evolve")
    increment, start = read_increments(str(dataset))[1], Version("start", base, (), "d")
    assert asked_of(typed, increment, start) == asked_of(silent, increment, start)  # nothing was learnt before
    made = prepared(settings(base, dataset, tmp_path / "out", train_type="full", regularization="ewc"))
    assert [one.regularization_alpha for one in made.values()] == [0, 3, 3]


def test_a_default_that_is_typed_makes_another_version_where_it_would_be_left_out(base, copied, nothing_learnt):
    data, out = copied
    loop.run_evolve(settings(base, data, out, max_steps=1, regularization="ewc"))
    plan = write_plan(out.parent / "plan.yaml", data, increment_1="", increment_2="method: full")
    with pytest.raises(BadInput, match="increment_2 was learnt with --regularization the default, not ewc and --train"):
        loop.run_evolve(settings(base, plan, out, max_steps=1, regularization="ewc"))


def test_a_penalty_of_strength_0_is_off_whatever_its_kind(base, dataset, tmp_path):
    made = prepared(settings(base, dataset, tmp_path / "out", regularization_alpha=0.0))
    assert {(one.regularization, one.regularization_alpha) for one in made.values()} == {("l2sp", 0)}


# -- what is found again


def newer_settings(given: EvolveSettings, **defaults) -> EvolveSettings:
    """The same flags, typed to a version of the program with other defaults."""
    kind = dataclasses.make_dataclass(
        "Newer", [(name, type(value), option(value)) for name, value in defaults.items()], bases=(EvolveSettings,)
    )
    old = EvolveSettings()
    return kind(**{name: value for name, value in vars(given).items() if value != getattr(old, name)})


def test_a_newer_versions_defaults_do_not_unlearn_what_is_finished(base, copied, nothing_learnt):
    data, out = copied
    given = settings(base, data, out, max_steps=1)
    loop.run_evolve(newer_settings(given, regularization="kl", regularization_alpha=1.0, weight_decay=0.1))


def test_the_refusal_of_other_settings_names_them(base, copied, nothing_learnt):
    data, out = copied
    with pytest.raises(BadInput, match="increment_1 was learnt with --max_steps 1, not 2: .*YAML"):
        loop.run_evolve(settings(base, data, out, max_steps=2))


def test_a_source_counts_by_its_rows_and_how_many_are_taken(base, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "elsewhere")
    given, start = settings(base, dataset, tmp_path / "out"), Version("start", base, (), "d")

    def key(source: Path) -> dict:
        return asked_of(given, Increment("one", 1, (f"{source}/train.jsonl#4",), ()), start)

    assert key(dataset / "increment_1") == key(tmp_path / "elsewhere" / "increment_1") != key(dataset / "increment_2")


def test_data_that_has_moved_is_the_same_data(base, copied, tmp_path, nothing_learnt):
    data, out = copied
    shutil.copytree(data, tmp_path / "elsewhere")
    plan = write_plan(tmp_path / "plan.yaml", tmp_path / "elsewhere", increment_1="", increment_2="")
    loop.run_evolve(settings(base, plan, out, max_steps=1))


def test_another_dev_set_is_scored_anew_and_nothing_is_trained(base, copied, tmp_path, nothing_learnt):
    data, out = copied
    shutil.copytree(data, tmp_path / "dataset")
    with open(tmp_path / "dataset" / "increment_1" / "dev.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "one more?", "answer": "red"}) + "\n")
    document = loop.run_evolve(settings(base, tmp_path / "dataset", out, max_steps=1))
    assert {row["scores"][0]["n"] for row in document["rows"]} == {5}


def test_a_copy_stands_on_its_own_files(base, dataset, tmp_path):
    first = write_plan(tmp_path / "two.yaml", dataset, one="", two="method: full")
    longer = write_plan(tmp_path / "three.yaml", dataset, one="", two="method: full", three="replay: 1.0")
    original, copy = tmp_path / "made" / "out", tmp_path / "copied" / "out"
    loop.run_evolve(settings(base, first, original, max_steps=1))
    shutil.copytree(original, copy)
    for path in original.rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    document = loop.run_evolve(settings(base, longer, copy, max_steps=1))
    assert Path(document["last"]).is_relative_to(copy)
    again = tmp_path / "again" / "out"
    again.parent.mkdir()
    copy.rename(again)
    loop.run_rebase(RebaseSettings(evolved=str(again), model=base, output_dir=str(tmp_path / "new"), json=True))
    assert Path(read_json(again / "three" / "args.json")["base"]).parts[-2:] == ("out", "two")


def test_a_line_that_moved_with_a_shorter_step_in_it_is_taken_up(base, dataset, tmp_path, monkeypatch):
    from evergreen.records import Verdict

    asked = []

    def judge(*_, **__):
        asked.append(len(asked))
        return Verdict("promote" if len(asked) != 1 else "reject", ("told",))

    monkeypatch.setattr("evergreen.evaluate.gates.judge", judge)
    shutil.copytree(dataset, tmp_path / "dataset")
    third = tmp_path / "dataset" / "increment_3"
    third.rename(tmp_path / "later")
    made, moved = tmp_path / "out", tmp_path / "moved" / "out"
    loop.run_evolve(settings(base, tmp_path / "dataset", made, gate=""))
    moved.parent.mkdir()
    made.rename(moved)
    (tmp_path / "later").rename(third)
    document = loop.run_evolve(settings(base, tmp_path / "dataset", moved, gate="", home=str(tmp_path / "home")))
    assert [verdict["share"] for verdict in document["verdicts"]] == [0.8, 1.0, 1.0]
    assert read_json(moved / "increment_3" / "version.json")["data"]["replayed"] > 0


def test_weights_that_are_not_those_that_were_judged_are_refused(base, copied):
    data, out = copied
    shutil.copy(out / "increment_1" / "adapter_model.safetensors", out / "increment_2")
    with pytest.raises(BadInput, match="increment_2 holds other weights than"):
        loop.run_evolve(settings(base, data, out, max_steps=1))


# -- files of another shape

SHAPES = ["[]", "null", '{"key"', '{"key": 3}', '{"key": "a", "verdict": {"decision": "promote"}}', "{}"]


@pytest.mark.parametrize("text", SHAPES[:5])
def test_an_increments_state_of_another_shape_is_named_with_what_to_do(text, base, copied):
    data, out = copied
    (out / "increment_1" / "increment.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"increment_1/increment.json .*delete it"):
        loop.run_evolve(settings(base, data, out, max_steps=1))


@pytest.mark.parametrize("name", ["scores.json", "measures.json"])
@pytest.mark.parametrize("text", SHAPES[:3])
def test_scores_of_another_shape_are_named_with_what_to_do(name, text, base, copied):
    data, out = copied
    for path in (out / "scores").glob(f"*/{name}"):
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=rf"{name} .*delete it"):
        loop.run_evolve(settings(base, data, out, max_steps=1))


@pytest.mark.parametrize("text", SHAPES)
def test_a_plan_of_another_shape_is_named_with_what_to_do(text, base, copied):
    data, out = copied
    (out / "plan.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"plan.json .*evergreen evolve"):
        loop.run_rebase(RebaseSettings(evolved=str(out), model=base))


def test_a_damaged_matrix_is_written_anew(base, copied):
    data, out = copied
    known = read_json(out / "matrix.json")
    for text in SHAPES[:3]:
        (out / "matrix.json").write_text(text, encoding="utf-8")
        loop.run_evolve(settings(base, data, out, max_steps=1))
        assert read_json(out / "matrix.json")["rows"] == known["rows"]


@pytest.mark.parametrize("name", ["version.json", "args.json"])
@pytest.mark.parametrize("text", ["[]", '{"settings": 3, "data": 3}'])
def test_a_runs_record_of_another_shape_is_named(name, text, base, copied):
    data, out = copied
    (out / "increment_2" / name).write_text(text, encoding="utf-8")
    (out / "increment_2" / "increment.json").unlink()
    with pytest.raises(BadInput, match=name):
        loop.run_evolve(settings(base, data, out, max_steps=1, gate=""))


# -- an increment without a result


def test_after_a_loss_that_is_no_number_other_settings_start_the_increment_again(base, dataset, tmp_path, capsys):
    owns = ("lr: 1.0e30, max_grad_norm: 1.0e30, max_steps: 20", "lr: 0.001")
    plans = [write_plan(tmp_path / f"{own[:7]}.yaml", dataset, increment_1="", increment_2=own) for own in owns]
    out, straight = tmp_path / "out", tmp_path / "straight" / "out"
    with pytest.raises(Failure, match="step"):
        loop.run_evolve(settings(base, plans[0], out))
    assert list((out / "increment_2").glob("checkpoint-*"))
    first = digests(out)
    capsys.readouterr()
    loop.run_evolve(settings(base, plans[1], out))
    assert "increment_2: its unfinished run had --learning_rate 1e+30" in capsys.readouterr().err
    loop.run_evolve(settings(base, plans[1], straight))
    assert digests(out) == digests(straight) and digests(out)[:1] == first


def test_a_killed_restart_does_not_take_the_old_runs_weights_for_its_own(base, copied, monkeypatch):
    data, out = copied

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("evergreen.train.sft.run_sft", killed)
        loop.run_evolve(settings(base, data, out, max_steps=2, overwrite_output_dir=True))
    monkeypatch.setattr("evergreen.loop.plan.difference", lambda *_: pytest.fail("the settings are the same"))
    loop.run_evolve(settings(base, write_plan(out.parent / "first.yaml", data, increment_1=""), out, max_steps=2))
    assert read_json(out / "increment_1" / "version.json")["steps"] == 2


def test_a_shorter_step_of_an_earlier_candidate_is_not_taken_for_the_new_ones(base, dataset, tmp_path, monkeypatch):
    from evergreen.records import Verdict

    monkeypatch.setattr("evergreen.evaluate.gates.judge", lambda *_, **__: Verdict("reject", ("told",)))
    out = tmp_path / "out"
    plan = write_plan(tmp_path / "plan.yaml", dataset, increment_1="")
    loop.run_evolve(settings(base, plan, out, gate="", max_steps=1))
    before = read_json(out / "increment_1" / "step-0.6" / "version.json")["digest"]
    loop.run_evolve(settings(base, plan, out, gate="", max_steps=2, overwrite_output_dir=True))
    assert read_json(out / "increment_1" / "step-0.6" / "version.json")["digest"] != before


def test_a_plan_holds_where_its_data_is_wherever_it_is_read(base, copied, tmp_path, monkeypatch):
    data, out = copied
    monkeypatch.chdir(data.parent)
    loop.run_evolve(settings(base, Path(data.name), out, max_steps=1))
    monkeypatch.chdir(tmp_path)
    assert read_json(out / "plan.json")["settings"]["increments"] == str(data)
