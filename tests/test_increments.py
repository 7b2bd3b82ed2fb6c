import gzip
import json
from pathlib import Path

import pytest

from evergreen.data.increments import read_increments, write_dev_all
from evergreen.data.leaks import check_increments
from evergreen.data.mixture import load_mixture
from evergreen.evaluate.tasks import read_tasks
from evergreen.records import BadInput


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def rows(word: str, count: int = 4) -> list[dict]:
    return [{"query": f"{word} {number}?", "response": f"{number}"} for number in range(count)]


def increment(folder: Path, word: str = "", train: str = "train.jsonl", dev: str = "dev.jsonl", count: int = 4) -> Path:
    word = word or folder.name
    write(folder / train, rows(f"{word} learns", count))
    write(folder / dev, rows(f"{word} asks", count))
    return folder


def dataset(place: Path, *names: str) -> Path:
    for name in names:
        increment(place / name)
    return place


def heard(increments, allow_leak: bool = False, **more) -> list[str]:
    said: list[str] = []
    check_increments(increments, allow_leak, said.append, **more)
    return said


def yaml(place: Path, text: str) -> str:
    place.mkdir(parents=True, exist_ok=True)
    (place / "line.yaml").write_text(text)
    return str(place / "line.yaml")


def complaint(path: str | Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_increments(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    names = [f"increment_{number}" for number in range(1, 12)]
    read = read_increments(str(dataset(tmp_path, "base", *names)))
    assert [one.name for one in read] == ["base", *names] and [one.number for one in read] == list(range(12))
    assert read[0].train == (str(tmp_path / "base/train.jsonl"),) and read[0].dev == (tmp_path / "base/dev.jsonl",)


def test_names_may_go_on_and_have_zeros_and_chinese(tmp_path):
    read = read_increments(str(dataset(tmp_path, "increment_01", "Increment-2_cities", "increment_3_城市")))
    assert [one.number for one in read] == [1, 2, 3] and read[2].name == "increment_3_城市"


@pytest.mark.parametrize("train", ["train.json", "training.csv", "train/a.jsonl", "train-00000.jsonl.gz"])
@pytest.mark.parametrize("dev", ["dev.json", "eval.json", "valid.jsonl", "validation/a.json", "test.json"])
def test_files_and_folders_may_be_called_as_people_call_them(tmp_path, train, dev):
    folder = increment(tmp_path / "increment_1", train="x.jsonl", dev=dev)
    (folder / train).parent.mkdir(exist_ok=True)
    if train.endswith("csv"):
        (folder / train).write_text("query,response\na?,b\n")
    elif train.endswith("gz"):
        (folder / train).write_bytes(gzip.compress((folder / "x.jsonl").read_bytes()))
    else:
        (folder / train).write_bytes((folder / "x.jsonl").read_bytes())
    (folder / "x.jsonl").unlink()
    (read,) = read_increments(str(tmp_path))
    assert read.train == (str(folder / train),) and read.dev == (folder / dev,)
    heard([read])
    assert len(load_mixture(read.train)) == (1 if train.endswith("csv") else 4)


def test_a_test_set_beside_a_dev_set_is_neither_trained_nor_scored(tmp_path):
    folder = increment(tmp_path / "increment_1")
    write(folder / "test.json", rows("test"))
    (read,) = read_increments(str(tmp_path))
    assert read.dev == (folder / "dev.jsonl",) and read.test == (folder / "test.json",)
    assert read.train == (str(folder / "train.jsonl"),)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["increment_1", "increment_3"], "has no increment_2"),
        (["increment_2"], "has no increment_1"),
        (["base", "increment_2"], "has no increment_1"),
        (["increment_1", "increment_01"], "both are number 1"),
        (["base", "increment_0"], "both are number 0"),
        (["increment_1", "incremnt_2"], "neither base nor increment_N; the nearest is increment_2"),
        (["stance", "science"], "holds no base/ or increment_1/ but science/, stance/"),
        ([], "holds no base/ or increment_1/ but no data"),
    ],
)
def test_a_gap_a_double_and_a_stray_folder_are_named(tmp_path, names, problem):
    assert problem in complaint(dataset(tmp_path, *names))


def test_one_increment_alone_is_told_from_a_folder_of_them(tmp_path):
    assert "that is one increment" in complaint(increment(tmp_path / "increment_1"))
    assert "no such folder or file as" in complaint(tmp_path / "nowhere")
    assert "nor a YAML list" in complaint(write(tmp_path / "a.jsonl", []))
    assert "no increments given" in complaint("")


def test_a_missing_dev_set_and_a_dev_set_that_would_be_trained_are_refused(tmp_path):
    folder = dataset(tmp_path, "increment_1") / "increment_1"
    write(folder / "dev.jsonl", rows("dev")).rename(folder / "cities_dev.jsonl")
    assert "wants dev.*" in complaint(tmp_path) and "cities_dev.jsonl" in complaint(tmp_path)
    write(folder / "dev.jsonl", rows("dev"))
    (folder / "train.jsonl").rename(folder / "cities.jsonl")
    assert "cities_dev.jsonl is named as a dev or test set but would be trained" in complaint(tmp_path)


@pytest.mark.parametrize("name", ["scores", "plan.json", "report.html"])
def test_a_name_that_evolve_writes_itself_is_refused(tmp_path, name):
    dataset(tmp_path, "increment_1").joinpath("increment_1").rename(tmp_path / name)
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"increments: [{name}]\n", encoding="utf-8")
    assert f"evolve itself writes {name}" in complaint(plan)


def test_some_increments_can_be_picked_by_name(tmp_path):
    dataset(tmp_path, "base", "increment_1", "increment_2")
    assert [one.number for one in read_increments(str(tmp_path), ["base", "increment_2"])] == [0, 2]
    with pytest.raises(BadInput, match="no increment incremnt_1; the nearest is increment_1"):
        read_increments(str(tmp_path), ["incremnt_1"])


def test_what_evolve_leaves_beside_the_increments_is_no_increment(tmp_path):
    dataset(tmp_path, "increment_1")
    write(tmp_path / "dev_all.json", rows("all"))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("hello")
    assert len(read_increments(str(tmp_path))) == 1


# YAML lists


LIST = """
increments:
  - {name: base, train: base/train.jsonl, dev: base/dev.jsonl}
  - name: cities
    train: [cities/train.jsonl, 'base/train.jsonl#2']
    dev: [cities/dev.jsonl]
    method: full
    epochs: 3
    lr: 1e-5
    replay: 0.05
    metric: exact
    target-modules: [q_proj, v_proj]
    eval_strategy: no
"""


def test_a_list_has_settings_of_its_own_under_the_flags_names(tmp_path, monkeypatch):
    dataset(tmp_path / "data", "base", "cities")
    monkeypatch.chdir(tmp_path)  # paths are relative to the list
    base, cities = read_increments(yaml(tmp_path / "data", LIST))
    assert (base.number, cities.number, base.settings) == (0, 1, {})
    assert cities.settings == {
        "train_type": "full",
        "num_train_epochs": 3.0,
        "learning_rate": 1e-5,
        "replay_samples": 0.05,
        "metric": "exact",
        "target_modules": ["q_proj", "v_proj"],
        "eval_strategy": "no",
    }
    assert cities.dev == (tmp_path / "data/cities/dev.jsonl",)
    assert len(load_mixture(cities.train)) == 4 + 2


def test_an_entry_may_be_the_name_of_a_folder_beside_the_list(tmp_path):
    dataset(tmp_path, "stance", "science")
    write(tmp_path / "stance/test.jsonl", rows("test"))
    read = read_increments(yaml(tmp_path, "[stance, {name: science, epochs: 2}, {name: more, train: science}]"))
    assert [(one.name, one.number) for one in read] == [("stance", 1), ("science", 2), ("more", 3)]
    assert read[0].train == (str(tmp_path / "stance/train.jsonl"),)
    assert read[0].test == (tmp_path / "stance/test.jsonl",)
    assert read[2].train == (str(tmp_path / "science"),) and read[2].dev == (tmp_path / "science/dev.jsonl",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("increments: [{name: a, train: a/train.jsonl, dev: a/dev.jsonl, epoch: 2}]", "the nearest is epochs"),
        ("increments: [{name: a, train: a/train.jsonl, dev: a/dev.jsonl, lr: fast}]", "--learning_rate wants a number"),
        ("increments: [{name: a, train: a/train.jsonl, dev: a/dev.jsonl, method: lroa}]", "got 'lroa'"),
        ("increments: [{name: a, train: a/train.jsonl, dev: a/dev.jsonl, output_dir: b}]", "leave it out here"),
        ("increments: [{name: c, train: a/train.jsonl}]", "c has no dev set"),
        ("increments: [{name: b, dev: a/dev.jsonl}]", "b has no train set"),
        ("increments: [{name: a, train: a/train.jsonl, dev: a/deb.jsonl}]", "no file"),
        ("increments: [{name: a, train: 7, dev: a/dev.jsonl}]", "`train:` wants a file"),
        ("increments: [a, a]", "two increments a"),
        ("increments: [increment_2, increment_1]", "increment_1 after increment_2"),
        ("increments: [3]", "got 3"),
        ("increments: []", "wants `increments:`"),
        ("increments: [a]\nmodel: nano", "and nothing beside it"),
        ("increments: [", "cannot be read"),
        ("hello", "wants `increments:`"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, problem):
    dataset(tmp_path, "a", "increment_1", "increment_2")
    assert problem in complaint(yaml(tmp_path, text))


# Rows


def test_a_clean_line_is_only_told_what_is_small_and_what_it_starts_from(tmp_path):
    said = heard(read_increments(str(dataset(tmp_path, "increment_1", "increment_2"))))
    assert len(said) == 2 and "increment_1 (4), increment_2 (4)" in said[0]
    assert "version 0 is the model as given" in said[1]
    many = increment(tmp_path / "many/base", count=1000).parent
    assert heard(read_increments(str(many))) == []


@pytest.mark.parametrize("owner", ["base", "increment_1", "increment_2"])
@pytest.mark.parametrize("held", ["dev.jsonl", "test.jsonl"])
def test_a_training_row_that_any_dev_or_test_set_asks_is_a_leak_with_both_places(tmp_path, owner, held):
    dataset(tmp_path, "base", "increment_1", "increment_2")
    write(tmp_path / owner / held, [*rows(f"{owner} asks"), {"question": "城市 在哪里?", "references": ["这里"]}])
    row = {"query": "城市在哪里？", "response": "那里"}
    train = write(tmp_path / "increment_1/train.jsonl", [*rows("learns"), row])
    increments = read_increments(str(tmp_path))
    with pytest.raises(BadInput) as caught:
        heard(increments)
    whose = "its own dev or test set" if owner == "increment_1" else f"the dev or test set of {owner}"
    assert f"increment_1 trains 1 row that {whose} asks" in str(caught.value)
    assert f"({train}:5 = {tmp_path / owner / held}:5)" in str(caught.value)
    assert "--allow_leak" in heard(increments, allow_leak=True)[0]


def test_leaks_are_those_of_the_slow_way(tmp_path):
    dataset(tmp_path, "base", "increment_1", "increment_2")
    for number, name in enumerate(("base", "increment_1", "increment_2")):
        write(tmp_path / name / "train.jsonl", [{"query": f"q{row}", "response": "a"} for row in range(number, 40, 3)])
        write(tmp_path / name / "dev.jsonl", [{"query": f"Q{row}.", "response": "a"} for row in range(number, 60, 7)])
    trained = [set(range(number, 40, 3)) for number in range(3)]
    asked = set.union(*(set(range(number, 60, 7)) for number in range(3)))
    said = heard(read_increments(str(tmp_path)), allow_leak=True)
    counts = [int(word) for word, after in zip(said[0].split(), said[0].split()[1:], strict=False) if "row" in after]
    assert sum(counts) == sum(len(rows & asked) for rows in trained)


def test_general_data_that_a_dev_set_asks_is_a_leak_too(tmp_path):
    increments = read_increments(str(dataset(tmp_path, "base", "increment_1")))
    general = write(tmp_path / "general.jsonl", rows("increment_1 asks"))
    with pytest.raises(BadInput, match="base trains 4 rows .* increment_1"):
        heard(increments, general=[str(general)])


def test_dev_items_that_count_twice_are_a_warning(tmp_path):
    dataset(tmp_path, "base", "increment_1")
    write(tmp_path / "increment_1/dev.jsonl", [*rows("base asks", 2), *rows("more")])
    assert heard(read_increments(str(tmp_path)))[0].startswith(
        "2 dev items of increment_1 stand in the dev set of base"
    )


def test_empty_sets_and_bad_rows_are_refused_before_anything_is_trained(tmp_path):
    increments = read_increments(str(dataset(tmp_path, "base", "increment_1")))
    dev = write(tmp_path / "increment_1/dev.jsonl", [])
    with pytest.raises(BadInput, match="increment_1: .*dev.jsonl holds no item"):
        heard(increments)
    write(dev, [*rows("asks"), {"nothing": 1}])
    with pytest.raises(BadInput, match="dev.jsonl:5"):
        heard(increments)
    heard(increments, on_bad_row="skip")
    write(dev, rows("asks"))
    train = write(tmp_path / "increment_1/train.jsonl", [{"query": "no answer"}])
    with pytest.raises(BadInput, match="train.jsonl:1"):
        heard(increments)
    with pytest.raises(BadInput, match="increment_1 has no training row"):
        heard(increments, on_bad_row="skip")
    train.unlink()
    with pytest.raises(BadInput, match="increment_1: --dataset .*no such file"):
        heard(increments, on_bad_row="skip")


def test_the_rows_counted_are_those_that_are_taken(tmp_path):
    dataset(tmp_path, "a")
    read = read_increments(yaml(tmp_path, "[{name: a, train: ['a/train.jsonl#2', a/train.jsonl], dev: a/dev.jsonl}]"))
    assert "a (6)" in heard(read)[0]


# All dev items


def test_all_dev_items_in_one_file_are_the_items_of_every_increment(tmp_path):
    dataset(tmp_path, "base", "increment_1")
    choice = {"id": "x", "question": "哪个?", "choices": ["东", "西"], "answer": "B"}
    write(tmp_path / "increment_1/dev.jsonl", [*rows("more"), choice])
    increments = read_increments(str(tmp_path))
    assert write_dev_all(increments, tmp_path / "dev_all.json") == 9
    apart = [task for one in increments for task in read_tasks([str(path) for path in one.dev], "contains")]
    together = read_tasks([str(tmp_path / "dev_all.json")], "contains")
    assert [(item.id, item.digest, item.references) for task in together for item in task.items] == [
        (item.id, item.digest, item.references) for task in apart for item in task.items
    ]


def test_every_row_of_the_file_names_its_task_and_the_metric_asked_for(tmp_path):
    dataset(tmp_path, "a", "b")
    write(tmp_path / "b/dev2.jsonl", rows("b asks more"))
    read = read_increments(yaml(tmp_path, "[a, {name: b, dev: [b/dev.jsonl, b/dev2.jsonl], metric: exact}]"))
    write_dev_all(read, tmp_path / "dev_all.json")
    written = json.loads((tmp_path / "dev_all.json").read_text())
    assert [row["task"] for row in written] == ["a"] * 4 + ["b"] * 8
    assert [row.get("metric") for row in written] == [None] * 4 + ["exact"] * 8
    assert len({(row["task"], row["id"]) for row in written}) == 12
