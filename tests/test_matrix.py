"""The matrix's figures agree with a calculation by hand, its intervals with simulation, its files with a reader."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from evergreen import pictures
from evergreen.evaluate import heatmap
from evergreen.evaluate.heatmap import fit
from evergreen.evaluate.matrix import Matrix, VersionScores, print_matrix, write
from evergreen.evaluate.statistics import paired_difference, resampled_interval, resampled_matrices
from evergreen.evaluate.tasks import Task
from evergreen.records import BadInput

NONE = None


def scores_of(tenths: int) -> dict[str, float]:
    return {str(item): float(item < tenths) for item in range(10)}


def matrix_of(r: list[list[int | None]], rejected: tuple[int, ...] = (), num_retention: int = 0, names=()) -> Matrix:
    """R in tenths; the last `num_retention` columns are suites."""
    columns = [Task(name, "exact_match", ()) for name in names or [f"task{j + 1}" for j in range(len(r[0]))]]
    num_tasks = len(columns) - num_retention
    rows = tuple(
        VersionScores(
            f"v{i}",
            f"digest{i}",
            i not in rejected,
            {column.name: scores_of(tenths) for column, tenths in zip(columns, row, strict=True) if tenths is not None},
            {"p50": 10.0 * i, "p95": 20.0 * i},
            {"mean": 0.01 * i, "low": 0.0, "high": 0.02 * i, "n": 10} if i else None,
        )
        for i, row in enumerate(r)
    )
    return Matrix(tuple(columns[:num_tasks]), rows, tuple(columns[num_tasks:]))


def means_of(matrix: Matrix) -> dict[str, float | None]:
    return {name: measure and pytest.approx(measure.mean) for name, measure in matrix.measures.items()}


FULL = [[2, 1, 3], [9, 2, 3], [6, 8, 4], [7, 5, 9]]


def test_the_figures_of_three_tasks_are_those_by_hand():
    found = means_of(matrix_of(FULL))
    assert found == {
        "OP": (0.7 + 0.5 + 0.9) / 3,
        "BWT": ((0.7 - 0.9) + (0.5 - 0.8)) / 2,
        "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
        "FWT": ((0.2 - 0.1) + (0.4 - 0.3)) / 2,
        "LA": (0.9 + 0.8 + 0.9) / 3,
        "GAD": None,
    }


def test_forgetting_is_from_the_best_past_score_not_from_the_first():
    matrix = matrix_of([[2, 1, 3], [6, 2, 3], [9, 8, 4], [7, 5, 9]])
    assert means_of(matrix)["BWT"] == ((0.7 - 0.6) + (0.5 - 0.8)) / 2
    assert means_of(matrix)["forgetting"] == ((0.9 - 0.7) + (0.8 - 0.5)) / 2


def test_the_divisors_are_stated_and_bwt_leaves_out_the_last_task():
    document = matrix_of(FULL).document()
    assert [document[name]["divisor"] for name in ("OP", "BWT", "forgetting", "FWT", "LA")] == [3, 2, 2, 2, 3]
    assert document["BWT"]["tasks"] == ["task1", "task2"] and document["FWT"]["tasks"] == ["task2", "task3"]


def test_a_rejected_candidate_is_shown_but_is_no_part_of_the_line():
    matrix = matrix_of(FULL, rejected=(2,))
    assert means_of(matrix) == {
        "OP": (0.7 + 0.5 + 0.9) / 3,  # task 2 was tried: it counts though it was never learnt
        "BWT": 0.7 - 0.9,
        "forgetting": 0.9 - 0.7,
        "FWT": ((0.2 - 0.1) + (0.3 - 0.3)) / 2,  # version 1 stood before task 3 too
        "LA": (0.9 + 0.9) / 2,
        "GAD": None,
    }
    assert matrix.verdicts == ["start", "accepted", "rejected", "accepted"]
    assert matrix.document()["rows"][2]["scores"][1]["mean"] == 0.8


def test_after_a_rejection_the_version_before_it_stands():
    matrix = matrix_of(FULL, rejected=(3,))
    assert matrix.last == 2 and matrix.document()["latency_ms"] == {"p50": 20.0, "p95": 40.0}
    assert means_of(matrix)["OP"] == (0.6 + 0.8 + 0.4) / 3
    assert means_of(matrix)["BWT"] == 0.6 - 0.9 and means_of(matrix)["LA"] == (0.9 + 0.8) / 2


def test_where_every_candidate_was_rejected_the_start_stands():
    found = means_of(matrix_of(FULL[:3], rejected=(1, 2), num_retention=1))
    assert found.pop("OP") == (0.2 + 0.1) / 2 and set(found.values()) == {None}


def test_cells_that_nobody_scored_are_left_out_and_the_rest_is_named():
    matrix = matrix_of([[2, NONE, NONE], [9, NONE, NONE], [6, 8, NONE], [7, NONE, 9]])
    document = matrix.document()
    assert means_of(matrix)["OP"] == (0.7 + 0.9) / 2 and document["OP"]["tasks"] == ["task1", "task3"]
    assert means_of(matrix)["BWT"] == 0.7 - 0.9 and document["FWT"] is None
    assert means_of(matrix)["LA"] == (0.9 + 0.8 + 0.9) / 3
    assert [score["task"] for score in document["rows"][1]["scores"]] == ["task1"]


def test_tasks_still_to_come_count_in_nothing():
    now, later = matrix_of([row[:2] for row in FULL[:3]]), matrix_of(FULL[:3])
    assert means_of(later) == means_of(now) and len(later.cells[0]) == 3


def test_retention_suites_count_in_their_own_delta_only():
    suites = [[5, 5], [6, 4], [4, 1], [6, 2]]
    matrix = matrix_of([[*row, *more] for row, more in zip(FULL, suites, strict=True)], num_retention=2)
    alone = means_of(matrix_of(FULL))
    assert means_of(matrix) == alone | {"GAD": ((0.6 - 0.5) + (0.2 - 0.5)) / 2}
    assert matrix.document()["retention"] == ["task4", "task5"]


def test_each_version_has_its_new_and_its_old_tasks():
    row = matrix_of(FULL).document()["rows"][3]
    assert row["learnt"] == "task3" and row["new_task"]["mean"] == 0.9
    assert row["old_tasks"]["mean"] == pytest.approx(0.6) and row["old_tasks"]["tasks"] == ["task1", "task2"]
    assert matrix_of(FULL).document()["rows"][1]["old_tasks"] is None


def test_scores_are_of_the_items_that_all_versions_answered():
    matrix = matrix_of([[5], [9]])
    del matrix.rows[1].items["task1"]["0"]  # answered right by both
    assert [cells[0].mean for cells in matrix.cells] == [pytest.approx(4 / 9), pytest.approx(8 / 9)]
    matrix = matrix_of([[5], [9]])
    matrix.rows[1].items["task1"] = {"other": 1.0}
    with pytest.raises(BadInput, match="share no answered item of task1"):
        matrix.document()


def test_the_joint_bootstrap_is_a_plain_loop_over_resamples():
    random = np.random.default_rng(0)
    tasks = [random.random((3, 7)), random.random((3, 5))]
    tasks[1][2] = np.nan
    found, again = resampled_matrices(tasks, seed=4, num_resamples=50), np.random.default_rng(4)
    for column, scores in enumerate(tasks):
        for resample in range(50):
            drawn = again.integers(0, scores.shape[1], scores.shape[1])
            for version in range(3):
                wanted = sum(scores[version][item] for item in drawn) / len(drawn)
                assert found[resample, version, column] == pytest.approx(wanted, nan_ok=True)


def test_what_versions_share_does_not_widen_the_interval_of_their_difference():
    ease = np.random.default_rng(1).random(200)
    versions = np.stack([ease, ease - 0.1])
    resampled = resampled_matrices([versions])[..., 0]
    low, high = resampled_interval(-0.1, resampled[:, 1] - resampled[:, 0], [200])
    assert low == pytest.approx(-0.1 - (1 - 0.05 ** (1 / 200))) and high - low < 0.04  # nothing varied
    alone = resampled_interval(ease.mean(), resampled[:, 0], [200])
    assert alone[1] - alone[0] > 0.06


def test_a_change_has_the_interval_of_a_paired_difference():
    random = np.random.default_rng(2)
    before, after = (random.random(150) < 0.8) * 1.0, (random.random(150) < 0.6) * 1.0
    items = [{"task1": dict(zip(map(str, range(150)), scores.tolist(), strict=True))} for scores in (before, after)]
    rows = [VersionScores("a", "a", True, {}), VersionScores("b", "b", True, items[0])]
    last = VersionScores("c", "c", True, items[1] | {"task2": scores_of(5)})
    found = Matrix((Task("task1", "m", ()), Task("task2", "m", ())), (*rows, last)).measures["BWT"]
    wanted = paired_difference([(before, after)])
    assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), abs=0.01)


def simulated(random: np.random.Generator, num_tasks: int, n: int, drop: float) -> Matrix:
    """A line whose last version truly lost `drop` of what each earlier one could do: 0.7, a tenth of items random."""
    rows = []
    ease = [random.random(n) < 0.7 for _ in range(num_tasks)]
    for version in range(num_tasks + 1):
        items = {}
        for task in range(min(version, num_tasks)):
            right = np.where(random.random(n) < 0.1, random.random(n) < 0.7, ease[task])
            if version == num_tasks and task < num_tasks - 1:
                right = right & (random.random(n) >= drop / 0.7)
            items[f"t{task}"] = {str(item): float(score) for item, score in enumerate(right)}
        rows.append(VersionScores(f"v{version}", str(version), True, items))
    return Matrix(tuple(Task(f"t{task}", "m", ()) for task in range(num_tasks)), tuple(rows))


def test_forgetting_is_reflected_and_reaches_as_far_as_bwt():
    matrix = simulated(np.random.default_rng(5), num_tasks=6, n=80, drop=0.03)
    r = matrix._resampled
    drops = np.mean([r[:, task + 1 : 6, task].max(axis=1) - r[:, 6, task] for task in range(5)], axis=0)
    found, lost = matrix.measures["forgetting"], matrix.measures["BWT"]
    low, high = 2 * found.mean - np.quantile(drops, 0.975), 2 * found.mean - np.quantile(drops, 0.025)
    assert found.low == pytest.approx(min(low, -lost.high), abs=0.002)
    assert found.high == pytest.approx(max(high, -lost.low), abs=0.002)


@pytest.mark.parametrize("drop", [0.0, 0.06])
def test_intervals_cover_the_truth_about_95_times_in_100(drop, monkeypatch):
    monkeypatch.setattr("evergreen.evaluate.statistics.NUM_RESAMPLES", 500)
    monkeypatch.setattr(resampled_matrices, "__defaults__", (0, 500))
    random, hits, num = np.random.default_rng(3), {"OP": 0, "BWT": 0, "forgetting": 0, "LA": 0}, 120
    truth = {"OP": 0.7 - drop * 5 / 6, "BWT": -drop, "forgetting": drop, "LA": 0.7}
    for _ in range(num):
        measures = simulated(random, num_tasks=6, n=80, drop=drop).measures
        for name, value in truth.items():
            hits[name] += measures[name].low <= value <= measures[name].high
    assert all(0.89 <= hit / num <= 1 for hit in hits.values()), hits


def test_a_single_item_is_never_certain():
    matrix = Matrix((Task("t", "m", ()),), (VersionScores("a", "a", True, {"t": {"1": 0.5}}),
                                            VersionScores("b", "b", True, {"t": {"1": 0.7}})))  # fmt: skip
    cell = matrix.cells[1][0]
    assert cell.mean == 0.7 and cell.low == 0 and cell.high == 1


def test_too_many_versions_for_the_tasks_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="1 tasks want 1 to 2 versions, got 3"):
        matrix_of([[1], [2], [3]])


# Files and screens


def test_the_files_are_written_and_read_back(tmp_path):
    matrix = matrix_of(
        [[2, 1, 5], [9, 2, 6], [6, 8, 4]], rejected=(2,), num_retention=1, names=["基础", "增量,一", "通用"]
    )
    document = write(matrix, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8")) == document
    assert document["rows"][1]["scores"][0] | {"low": 0, "high": 1} == {
        "task": "基础", "metric": "exact_match", "mean": 0.9, "low": 0, "high": 1, "n": 10,
    }  # fmt: skip
    assert (tmp_path / "out" / "matrix.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    lines = list(csv.reader(io.StringIO((tmp_path / "out" / "matrix.csv").read_text(encoding="utf-8-sig"))))
    assert lines[0][:6] == ["version", "digest", "verdict", "基础", "增量,一", "通用"]
    assert lines[3][:6] == ["v2", "digest2", "rejected", "60.0", "80.0", "40.0"]
    assert [line[0] for line in lines[5:]] == ["measure", "OP", "FWT", "LA", "GAD"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["matrix.csv", "matrix.json", "matrix.png"]


def pixels_of(matrix: Matrix) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(heatmap.picture(matrix))).convert("L"))


@pytest.mark.parametrize("num_tasks", [2, 12])
def test_the_picture_is_large_and_full_of_shades(num_tasks):
    r = [[max(1, 9 - (i - j)) if j < i else NONE for j in range(num_tasks)] for i in range(num_tasks + 1)]
    pixels = pixels_of(matrix_of(r, rejected=(2,)))
    assert pixels.shape[0] > 300 and pixels.shape[1] > 500 and len(np.unique(pixels)) > 20
    assert 0.3 < (pixels > 250).mean() < 0.95


def test_a_higher_score_is_darker_without_colours_and_its_number_flips_to_white():
    light, dark = (pixels_of(matrix_of([[tenths, 10 - tenths]])) for tenths in (0, 10))
    top, height, width = light.shape[0] // 2, 20, light.shape[1]
    number = slice(top - height, top + height), slice(int(0.25 * width), int(0.4 * width))  # well inside the first cell
    assert np.median(light[number]) > 220 and light[number].min() < 60
    assert np.median(dark[number]) < 120 and dark[number].max() > 220


def test_names_without_a_font_are_numbered(monkeypatch):
    monkeypatch.setattr(pictures, "FONTS", ())
    assert heatmap._name("increment_1") == "increment_1" and heatmap._name("增量一") == ""


def test_long_names_keep_both_ends_and_chinese_counts_double():
    assert fit("increment_1", 16) == "increment_1"
    assert fit("customer_questions_2026", 11) == "custo…_2026"
    assert fit("客户服务问答集合", 9) == "客户…集合"


def printed(matrix: Matrix, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_matrix(matrix, console)
    return console.export_text()


def test_the_table_names_tasks_where_they_fit_and_numbers_them_where_not():
    matrix = matrix_of(FULL, rejected=(2,))
    wide, narrow = printed(matrix, 120), printed(matrix, 60)
    assert "task3" in wide and "[80.0]" in wide and "rejected" in wide and "2 learnt tasks" in wide
    assert "1 task1, 2 task2, 3 task3" in narrow and max(map(len, narrow.splitlines())) <= 60
