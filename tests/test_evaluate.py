"""Metrics give hand-computed values, tasks are read from any file, and an evaluation resumes, compares and judges."""

import json
from pathlib import Path
from random import Random

import pytest

from evergreen.evaluate import harness, metrics
from evergreen.evaluate.checkpoints import Checkpoint, Losses, checkpoint_folders, judge, loss_rises_from
from evergreen.evaluate.compare import Comparison, conclusion
from evergreen.evaluate.harness import Version, run_eval
from evergreen.evaluate.metrics import METRICS, lcs_length, letter_of, number_in, sari
from evergreen.evaluate.statistics import paired_difference
from evergreen.evaluate.tasks import Item, read_tasks
from evergreen.records import BadInput, Completion, Message
from evergreen.settings import EvalSettings


class FakeEngine:
    """Answers from a table of question -> answer; remembers what it was asked, and can stop half-way."""

    max_context_tokens = 1000

    def __init__(self, answers: dict[str, str], stop_after: int | None = None):
        self.answers, self.stop_after, self.asked, self.questions = answers, stop_after, [], []

    def encode(self, item: Item) -> list[int]:
        self.questions.append(item.question)
        return [len(self.questions) - 1] * max(len(item.question), 1)

    def generate(self, prompts, sampling, batch_size=8, on_done=None):
        done = {}
        for number in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):  # any order but the given one
            if self.stop_after is not None and len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            question = self.questions[prompts[number][0]]
            self.asked.append(question)
            done[number] = Completion(self.answers.get(question, "?"), "", len(prompts[number]), 2, "stop", 0.25, 0.1)
            on_done(number, done[number])
        return [done[number] for number in range(len(prompts))]


@pytest.fixture
def engines(monkeypatch) -> dict[str, FakeEngine]:
    """Version name -> engine; versions are known by their names."""
    known: dict[str, FakeEngine] = {}
    monkeypatch.setattr(harness, "version_of", lambda name, adapters, settings: Version(name, name, (), f"is {name}"))
    for module in ("compare", "checkpoints"):
        monkeypatch.setattr(
            f"evergreen.evaluate.{module}.compared_version",
            lambda name, settings: Version(Path(name).name, name, (), f"is {name}"),
        )
    monkeypatch.setattr(
        harness, "open_engine", lambda version, settings: (known[version.name], known[version.name].encode)
    )
    return known


def write_rows(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def item(question: str = "", choices: tuple[str, ...] = ()) -> Item:
    return Item("1", (Message("user", question),), ("B",), choices=choices)


# Metrics


@pytest.mark.parametrize("answer", ["Paris", "paris.", " **Paris** ", "Ｐａｒｉｓ。", "“Paris”", "PARIS!\n"])
def test_exact_forgives_spelling_but_not_words(answer):
    assert metrics.exact(answer, ["Paris"]) == 1 and metrics.exact("Paris, France", ["Paris"]) == 0


def test_exact_in_chinese_ignores_spaces_and_closing_marks():
    assert metrics.exact(" 根据现有信息 无法回答。", ["根据现有信息无法回答"]) == 1
    assert metrics.exact("云岭茶（绿茶）", ["云岭茶(绿茶)"]) == 1
    assert metrics.exact("云岭", ["云岭茶", "云岭"]) == 1


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("It is in Paris, I think", "paris", 1),
        ("I know", "no", 0),
        ("共有70个议席", "70", 1),
        ("共有170个议席", "70", 0),
        ("costs 70.5", "70", 0),
        ("about 70.", "70", 1),
        ("青石相机的价格是42元", "42元", 1),
        ("the U.S. team", "U.S.", 1),
    ],
)
def test_contains_wants_whole_words_and_numbers(answer, reference, score):
    assert metrics.contains(answer, [reference]) == score


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "**B**",
        "B. text",
        "B) text",
        "答案是B",
        "答案：B",
        "正确答案为 B。",
        "The answer is B.",
        "Answer: (B)",
        "The answer is **B** because A is wrong.",
        "故选B。",
        "选择B",
        "B、反对",
        "B反对",
        "态度：B",
        "B\nThere are four kinds, A to D.",
        "\\boxed{B}",
        "The correct option is B",
        "Ｂ",
        "I think it's B.",
        "【答案】B",
        "A is wrong, so the answer is B",
        "B选项正确",
        "答案是B。选项A是错误的。",
        "The answer is (b).",
        "<b>B</b>",
    ],
)
def test_choice_finds_the_letter(answer):
    assert letter_of(answer) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "A cat",
        "The answer is A cat",
        "I do not know",
        "",
        "A dog and a cat",
        "Apples",
        "AB",
        "我不知道",
        "A or B",
        "A和B",
        "Grade A's",
    ],
)
def test_choice_takes_no_article_for_a_letter(answer):
    assert letter_of(answer) is None


def test_choice_knows_an_option_by_its_text():
    listed = item("Which?\nA. exclamatory\nB. declarative\nC. interrogative")
    assert metrics.choice("declarative", ["B"], listed) == 1 and metrics.choice("A exclamatory", ["A"], listed) == 1
    assert metrics.choice("反对", ["B"], item("选择一项：A.支持，B.反对，C.中立。输出A，B或者C。")) == 1
    assert metrics.choice("Sydney", ["Canberra"], item(choices=("Sydney", "Canberra"))) == 0
    assert metrics.choice("B", ["Canberra"], item(choices=("Sydney", "Canberra"))) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("The answer is 1,234.", 1234),
        ("so 3 + 4 = 7 apples", 7),
        ("1.2万", 12000),
        ("3亿元", 3e8),
        ("１２３", 123),
        ("3/4", 0.75),
        ("1 1/2", 1.5),
        ("-5", -5),
        ("10-3", 3),
        ("#### 72", 72),
        ("$3.50.", 3.5),
        ("the answer is 42, not 41", 42),
        ("\\boxed{\\frac{3}{4}}", 0.75),
        ("1e-3", 0.001),
        ("2 million", 2e6),
        ("9 万亿", 9e12),
        ("两百", 200),
        ("三千零五", 3005),
        ("一百二十万", 1.2e6),
        ("二〇二六", 2026),
        (".5", 0.5),
        ("答案是12个，另外3个坏了", 12),
        ("1,234,567.5", 1234567.5),
        ("5千", 5000),
        ("共5千米", 5),
        ("答案：3+4=7", 7),
        ("温度是-5度", -5),
        ("三分之一", 1 / 3),
        ("占百分之五十", 0.5),
        ("百分之3.5", 0.035),
        ("−8", -8),
        ("**18**", 18),
        ("0", 0),
    ],
)
def test_numbers_are_read(text, value):
    assert number_in(text)[0] == pytest.approx(value)


def test_numeric_takes_percentages_either_way_and_nothing_near():
    assert metrics.numeric("50%", ["0.5"]) == metrics.numeric("50％", ["50"]) == metrics.numeric("0.5", ["50%"]) == 1
    assert metrics.numeric("百分之50", ["50%"]) == 1 and metrics.numeric("41", ["42"]) == 0
    assert metrics.numeric("12345678", ["12345679"]) == 0 and metrics.numeric("3.3333333", ["10/3"]) == 1
    assert metrics.numeric("none", ["42"]) == 0 and metrics.numeric("5", ["0.05"]) == 0
    assert metrics.numeric("12,000", ["1.2万"]) == 1


def test_rouge_l_by_hand_and_against_the_reference_implementation():
    assert metrics.rouge_l("the cat sat", ["the cat lay down"]) == pytest.approx(2 * 2 / 7)
    assert metrics.rouge_l("今天天气很好", ["今天天气不好"]) == pytest.approx(10 / 12)
    assert metrics.rouge_l("我爱Python语言", ["我爱 python"]) == pytest.approx(2 * 3 / 8)
    from rouge_score.rouge_scorer import RougeScorer

    random, scorer = Random(0), RougeScorer(["rougeL"])
    for _ in range(50):
        left, right = (" ".join(random.choices("a bb ccc dog Cat".split(), k=random.randint(1, 12))) for _ in "ab")
        assert metrics.rouge_l(left, [right]) == pytest.approx(scorer.score(right, left)["rougeL"].fmeasure)


def test_edit_is_fuzz_ratio():
    assert metrics.edit("kitten", ["sitting"]) == pytest.approx(8 / 13)  # fuzz.ratio gives 62
    assert metrics.edit("abcd", ["abce", "abcd"]) == 1 and metrics.edit("", ["x"]) == 0
    assert metrics.edit("x = 'a'", ["x = '<STR_LIT:a>'"]) == 1


def test_the_fast_common_subsequence_equals_the_table():
    def table(left: str, right: str) -> int:
        row = [0] * (len(right) + 1)
        for x in left:
            corner = 0
            for j, y in enumerate(right, 1):
                corner, row[j] = row[j], corner + 1 if x == y else max(row[j], row[j - 1])
        return row[-1]

    random = Random(1)
    for _ in range(100):
        left, right = ("".join(random.choices("abcd中", k=random.randint(0, 90))) for _ in "ab")
        assert lcs_length(left, right) == table(left, right)


def test_long_texts_are_compared_in_a_blink():
    import time

    start = time.perf_counter()
    metrics.edit("abc def " * 2500, ["fed cba " * 2500])
    assert time.perf_counter() - start < 1


def test_sari_gives_the_published_example():
    source = item("About 95 species are currently accepted.")
    references = [
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    ]
    assert sari("About 95 you now get in.", references, source) == pytest.approx(0.26953601953601954)
    assert sari(references[0], references[:1], source) == 1


def test_sari_by_hand():
    """Source `a b`, answer `a c`, reference `a d`: of words a is kept rightly, c added wrongly, b deleted rightly; of
    pairs none is kept (0/0 = 1), one is added wrongly, one deleted rightly; longer ones are 0/0 throughout."""
    assert sari("a c", ["a d"], item("a b")) == pytest.approx(((1 + 0 + 1) / 3 + (1 + 0 + 1) / 3 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ('{"b": 1, "a": [1, 2.0]}', '{"a":[1.0,2],"b":1}', 1),
        ('```json\n{"a": "中"}\n```', '{"a": "中"}', 1),
        ("{'a': 1}", '{"a": 1}', 0),
        ('Here: {"a": 1}', '{"a": 1}', 0),
        ('{"a": true}', '{"a": 1}', 0),
        ("[1, 2]", "[2, 1]", 0),
        ('{"a": NaN}', '{"a": 1}', 0),
        ('{"x": 1}', "some JSON", 1),
        ("{", "some JSON", 0),
        ('"a"', '"a"', 1),
        ("", "{}", 0),
    ],
)
def test_json_is_valid_and_has_the_value(answer, reference, score):
    assert metrics.json_match(answer, [reference]) == score


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"sari"}))  # which rewards deleting
def test_an_empty_answer_scores_nothing(metric):
    assert METRICS[metric]("", ["B 12 words of a reference"], item("a source of words")) < 0.5


@pytest.mark.parametrize(
    ("references", "metric"),
    [
        (["A", "C"], "choice"),
        (["B\nBecause it is.", "A\nReasons."], "choice"),
        (["12", "3.5%", "1,200"], "numeric"),
        (["5+6\n#### 11"], "numeric"),
        (['{"a": 1}', "[]"], "json"),
        (["yes", "no"], "exact"),
        (["北京", "上海市"], "exact"),
        (["word " * 30], "rouge_l"),
        (["A cat", "B"], "exact"),
        (["这是一个很长的回答，" * 5], "rouge_l"),
    ],
)
def test_auto_chooses_by_the_references(references, metric):
    items = [Item(str(i), (Message("user", "q"),), (reference,)) for i, reference in enumerate(references)]
    assert metrics.choose(items) == metric


# Tasks


def test_rows_bring_references_choices_metric_and_id(tmp_path):
    path = write_rows(
        tmp_path / "t.jsonl",
        [
            {"id": "x7", "question": "capital?", "references": ["Paris", "Paname"], "metric": "contains"},
            {"query": "多少?", "answer": ["70", "七十"]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {"instruction": "sum", "input": "1 2", "output": "3"},
            {"input": "big", "target": "bench"},
            {"question": "n?", "answer": 5},
        ],
    )
    (task,) = read_tasks([path])
    assert task.metric == "contains" and task.items[0].id == "x7"
    assert [one.references for one in task.items] == [
        ("Paris", "Paname"),
        ("70", "七十"),
        ("a",),
        ("3",),
        ("bench",),
        ("5",),
    ]
    assert [one.question for one in task.items] == ["capital?", "多少?", "q", "sum\n1 2", "big", "n?"]


def test_choices_are_shown_and_a_numbered_answer_becomes_a_letter(tmp_path):
    path = write_rows(
        tmp_path / "t.jsonl",
        [
            {"question": "capital?", "choices": ["Rome", "Paris"], "answer": 1},
            {"question": "首都?", "A": "北京", "B": "上海", "answer": "A"},
        ],
    )
    (task,) = read_tasks([path])
    assert task.metric == "choice" and task.items[0].references == ("B",)
    assert task.items[0].question == "capital?\nA. Rome\nB. Paris" and task.items[1].question.endswith("B. 上海")


def test_the_last_answer_of_a_conversation_is_the_reference(tmp_path):
    turns = [
        {"role": role, "content": text}
        for role, text in (("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"))
    ]
    (task,) = read_tasks([write_rows(tmp_path / "t.jsonl", [{"messages": turns}])])
    assert [message.content for message in task.items[0].messages] == ["s", "1", "2", "3"]
    assert task.items[0].references == ("4",)


def test_equal_file_names_stay_distinct(tmp_path):
    paths = [write_rows(tmp_path / folder / "eval.json", [{"prompt": "p", "answer": "a"}]) for folder in ("x", "y")]
    assert [task.name for task in read_tasks([*paths, paths[0]])] == ["x-eval", "y-eval"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ('{"prompt": "p"}\n', r"t.jsonl:1: .*answer"),
        ('{"prompt": "p", "answer": ""}\n', "t.jsonl:1"),
        ('{"text": "plain"}\n', "plain text"),
        ('{"prompt": "p", "answer": "a"}\n{broken\n', "t.jsonl:2"),
        ('{"prompt": "p", "answer": "a", "metric": "bleu"}\n', "bleu.*exact, contains"),
        ('{"prompt": "p", "references": []}\n', "t.jsonl:1"),
    ],
)
def test_bad_task_files_are_named(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=message):
        read_tasks([str(path)])


def test_bad_rows_can_be_left_out(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": "p"}, {"prompt": "q", "answer": "a"}])
    (task,) = read_tasks([path], on_bad_row="skip")
    assert [one.question for one in task.items] == ["q"]


def test_missing_files_unknown_metrics_and_unfit_ones_are_errors(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": "p", "answer": "A long story about a cat."}])
    with pytest.raises(BadInput, match=r"no task file .*there are: .*t\.jsonl"):
        read_tasks([str(tmp_path / "none.json")])
    with pytest.raises(BadInput, match="rouge is not known|'rouge' is not known: exact, contains"):
        read_tasks([path], "rouge")
    for metric in ("choice", "numeric"):
        with pytest.raises(BadInput, match=f"t.jsonl:1: metric {metric} wants"):
            read_tasks([path], metric)
    with pytest.raises(BadInput, match="no tasks given"):
        read_tasks([])


def test_each_task_may_have_its_own_metric(tmp_path):
    paths = [write_rows(tmp_path / name, [{"prompt": "p", "answer": "a b"}]) for name in ("one.json", "two.json")]
    assert [task.metric for task in read_tasks(paths, "edit,two=contains")] == ["edit", "contains"]
    with pytest.raises(BadInput, match="three.*the tasks are one, two"):
        read_tasks(paths, "three=edit")


@pytest.mark.parametrize(
    ("name", "metric"), [("C-STANCE", "choice"), ("ScienceQA", "choice"), ("Py150", "edit"), ("20Minuten", "sari")]
)
def test_trace_references_score_one(shared_data, name, metric):
    wanted = "auto" if metric == "choice" else metric
    (task,) = read_tasks([str(shared_data / "trace" / name / "eval.json")], wanted)
    assert task.metric == metric and len(task.items) == 100
    assert all(METRICS[metric](one.references[0], one.references, one) == pytest.approx(1) for one in task.items)


# Harness


ROWS = [{"prompt": f"question {i:03d}"[: 9 + i % 4] + f" {i}", "answer": f"answer {i}"} for i in range(20)]
RIGHT = {row["prompt"]: row["answer"] for row in ROWS}


def settings(tmp_path: Path, rows=ROWS, **given) -> EvalSettings:
    path = write_rows(tmp_path / "dev.jsonl", rows)
    return EvalSettings(**{"model": "m", "eval_dataset": [path], "output_dir": str(tmp_path / "out"), **given})


def items_file(tmp_path: Path, name: str = "items-dev.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()]


def test_scores_and_items_are_written_in_the_order_of_the_file(tmp_path, engines, capsys):
    engines["m"] = FakeEngine(RIGHT | {ROWS[3]["prompt"]: "wrong"})
    document = run_eval(settings(tmp_path))
    rows = items_file(tmp_path)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row["score"] for row in rows] == [float(i != 3) for i in range(20)]
    assert {
        "id",
        "prompt",
        "reference",
        "answer",
        "score",
        "metric",
        "latency_seconds",
        "prompt_tokens",
        "completion_tokens",
    } <= set(rows[0])
    (score,) = document["tasks"]
    assert (score["task"], score["metric"], score["mean"], score["n"]) == ("dev", "exact", 0.95, 20)
    assert score["low"] < 0.95 < score["high"] and document["latency_ms"] == {"p50": 250.0, "p95": 250.0}
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["tasks"] == document["tasks"]
    assert "95.0" in capsys.readouterr().out


def test_a_stopped_evaluation_asks_only_what_is_missing(tmp_path, engines):
    engines["m"] = FakeEngine(RIGHT, stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        run_eval(settings(tmp_path))
    assert len(items_file(tmp_path)) == 7
    with open(tmp_path / "out" / "items-dev.jsonl", "a") as file:
        file.write('{"id": "torn')
    first, engines["m"] = engines["m"], FakeEngine(RIGHT)
    assert run_eval(settings(tmp_path))["tasks"][0]["mean"] == 1
    assert len(engines["m"].asked) == 13 and not set(engines["m"].asked) & set(first.asked)
    assert [row["prompt"] for row in items_file(tmp_path)] == [row["prompt"] for row in ROWS]


def test_another_metric_only_scores_anew_and_other_sampling_asks_again(tmp_path, engines):
    engines["m"] = FakeEngine(RIGHT)
    run_eval(settings(tmp_path))
    run_eval(settings(tmp_path, metric="edit"))
    assert len(engines["m"].asked) == 20 and items_file(tmp_path)[0]["metric"] == "edit"
    run_eval(settings(tmp_path, max_new_tokens=99))
    assert len(engines["m"].asked) == 40


def test_equal_prompts_are_asked_once_and_both_scored(tmp_path, engines):
    engines["m"] = FakeEngine({"p": "a"})
    document = run_eval(settings(tmp_path, [{"prompt": "p", "answer": "a"}, {"prompt": "p", "answer": "b"}]))
    assert engines["m"].asked == ["p"] and [row["score"] for row in items_file(tmp_path)] == [1, 0]
    assert document["tasks"][0]["n"] == 2


def test_max_samples_takes_the_first_rows(tmp_path, engines):
    engines["m"] = FakeEngine(RIGHT)
    assert run_eval(settings(tmp_path, max_samples=4))["tasks"][0]["n"] == 4


def test_without_output_dir_results_go_to_the_home_and_resume(tmp_path, engines):
    engines["m"] = FakeEngine(RIGHT)
    folders = {run_eval(settings(tmp_path, output_dir=""))["output_dir"] for _ in range(2)}
    assert len(folders) == 1 and "reports/eval-m-" in folders.pop() and len(engines["m"].asked) == 20


def test_a_prompt_over_the_context_is_named_or_left_out(tmp_path, engines):
    rows = [{"prompt": "x" * 1200, "answer": "a"}, {"prompt": "p", "answer": "a"}]
    engines["m"] = FakeEngine({"p": "a"})
    with pytest.raises(BadInput, match=r"dev.jsonl:1: the prompt has 1200 tokens, .* holds 1000"):
        run_eval(settings(tmp_path, rows))
    assert run_eval(settings(tmp_path, rows, on_bad_row="skip"))["tasks"][0]["n"] == 1


def test_results_of_another_model_are_replaced_and_that_is_said(tmp_path, engines, capsys):
    engines["m"], engines["other"] = FakeEngine(RIGHT), FakeEngine({})
    run_eval(settings(tmp_path))
    assert run_eval(settings(tmp_path, model="other"))["tasks"][0]["mean"] == 0
    assert "held the results of m" in " ".join(capsys.readouterr().out.split())


def test_a_real_model_is_scored(tmp_path):
    rows = [
        {"prompt": "你好", "answer": "你好!"},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "A model."},
            ]
        },
    ]
    document = run_eval(settings(tmp_path, rows, model="nano", max_new_tokens=3, torch_dtype="float32", metric="edit"))
    assert document["tasks"][0]["n"] == 2 and document["latency_ms"]["p95"] > 0
    assert all(0 < row["completion_tokens"] <= 3 < row["prompt_tokens"] for row in items_file(tmp_path))


# Compare


def test_compare_pairs_items_counts_and_concludes(tmp_path, engines, capsys):
    wrong = {row["prompt"]: "no" for row in ROWS}
    engines["a"] = FakeEngine(RIGHT | dict(list(wrong.items())[:12]))
    engines["b"] = FakeEngine(RIGHT | dict(list(wrong.items())[11:13]))
    document = run_eval(settings(tmp_path, compare=["a", "b"]))
    (compared,) = document["compared"]
    assert compared["mcnemar"] == {
        "both": 7,
        "only_a": 1,
        "only_b": 11,
        "neither": 1,
        "p_value": pytest.approx(26 / 4096),
    }
    assert (compared["mean_a"], compared["mean_b"]) == (0.4, 0.9) and compared["difference"] == pytest.approx(0.5)
    assert document["conclusion"].startswith("b is better than a by 50.0 points (95%: ")
    assert len(document["won"]) == 5 and [row["prompt"] for row in document["lost"]] == [ROWS[12]["prompt"]]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["conclusion"] == document["conclusion"]
    assert len(items_file(tmp_path, "compare-dev.jsonl")) == 20
    assert document["conclusion"] in capsys.readouterr().out


def told(a: list[float], b: list[float]) -> str:
    overall = Comparison("overall", "exact", 0, 0, paired_difference([(a, b)]))
    return conclusion(overall, Version("A", "A"), Version("B", "B"))


def test_the_conclusion_is_one_plain_sentence():
    text = told([1.0] * 40 + [0.0] * 60, [0.0] * 20 + [1.0] * 20 + [0.0] * 60)
    assert text.startswith("A is better than B by 20.0 points (95%: ") and text.endswith("; 100 items).")
    text = told([1.0, 0.0] * 10, [1.0, 0.0] * 9 + [1.0, 1.0])
    assert text.startswith("no difference between A and B can be seen with 20 items (5.0 points for B")
    assert text.endswith("items would be needed to see 2.0 points.")
    assert told([1.0] * 20, [1.0] * 20) == (
        "no difference between A and B can be seen with 20 items: they score the "
        "same on every one (95%: -13.9 to 13.9 points)."
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"compare": ["a"]}, "--compare wants two .* got 1: a"),
        ({"compare": ["a", "b"], "checkpoints": "x"}, "two ways"),
        ({"checkpoints": "nowhere"}, "no such folder"),
        ({"compare": ["a", "b"], "adapters": ["c"]}, "--adapters does not go"),
    ],
)
def test_wrong_combinations_are_errors(tmp_path, engines, given, message):
    with pytest.raises(BadInput, match=message):
        run_eval(settings(tmp_path, **given))


# Checkpoints


def make_run(folder: Path, steps: list[int], final: bytes | None = None) -> Path:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "adapter_model.safetensors").write_bytes(f"w{step}".encode())
    if final is not None:
        (folder / "adapter_model.safetensors").write_bytes(final)
    return folder


def run_of(*means: float, n: int = 400, seed: int = 0) -> list[Checkpoint]:
    """Checkpoints whose scores are one another's but for as many items as the means ask."""
    ease = [Random(seed + i).random() for i in range(n)]
    return [
        Checkpoint(f"checkpoint-{100 * i}", 100 * i, (tuple(float(easy < mean) for easy in ease),))
        for i, mean in enumerate(means, 1)
    ]


def test_checkpoints_are_found_in_order_and_final_only_where_it_differs(tmp_path):
    same, other = make_run(tmp_path / "x", [100, 20], b"w100"), make_run(tmp_path / "y", [100, 20], b"other")
    assert list(checkpoint_folders(same)) == ["checkpoint-20", "checkpoint-100"]
    assert list(checkpoint_folders(other)) == ["checkpoint-20", "checkpoint-100", "final"]


def test_a_folder_without_checkpoints_says_what_is_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    with pytest.raises(BadInput, match=r"no checkpoint-N .* it holds args\.json"):
        checkpoint_folders(tmp_path / "run")


def test_the_best_is_found_and_overfitting_begins_where_scores_drop():
    found = judge(run_of(0.5, 0.8, 0.79, 0.6, 0.5))
    assert (found.best, found.overfits_from) == ("checkpoint-200", "checkpoint-400")
    assert "Overfitting begins at checkpoint-400" in found.conclusion


def test_ties_go_to_the_earlier_checkpoint():
    found = judge(run_of(0.5, 0.8, 0.802, 0.801))
    assert found.best == "checkpoint-200" and not found.overfits_from and found.is_sure


def test_with_few_items_it_cannot_be_told():
    found = judge(run_of(0.5, 0.7, 0.6, n=10))
    assert not found.is_sure and not found.overfits_from
    assert "With 10 items" in found.conclusion and "cannot be told" in found.conclusion


def test_a_rising_evaluation_loss_beside_a_falling_training_loss_is_overfitting():
    train = tuple((step, 2 - step / 500) for step in range(10, 501, 10))
    rising = Losses(train, ((100, 1.5), (200, 1.2), (300, 1.21), (400, 1.3), (500, 1.5)))
    assert loss_rises_from(rising) == 400
    assert loss_rises_from(Losses(train, ((100, 1.5), (200, 1.2), (300, 1.3), (400, 1.19)))) is None
    assert loss_rises_from(Losses(train[::-1], ())) is None
    found = judge(run_of(0.5, 0.8, 0.8, 0.8, 0.8), rising)
    assert (found.best, found.overfits_from) == ("checkpoint-200", "checkpoint-400") and "step 400" in found.conclusion


def test_checkpoints_are_scored_drawn_and_judged(tmp_path, engines):
    run = make_run(tmp_path / "run", [10, 20, 30], b"w30")
    write_rows(
        run / "trainer_log.jsonl",
        [{"current_steps": step, "loss": 3 - step / 20} for step in (5, 10, 20, 30)]
        + [{"current_steps": 20, "eval_loss": 1.5}],
    )
    for step, num_right in ((10, 4), (20, 20), (30, 8)):
        engines[f"checkpoint-{step}"] = FakeEngine({row["prompt"]: row["answer"] for row in ROWS[:num_right]})
    document = run_eval(settings(tmp_path, checkpoints=str(run), model=""))
    assert (document["best"], document["overfits_from"]) == ("checkpoint-20", "checkpoint-30")
    assert [round(point["mean"], 2) for point in document["checkpoints"]] == [0.2, 1.0, 0.4]
    assert document["checkpoints"][1]["eval_loss"] == 1.5 and document["tasks"][0]["mean"] == 1
    assert (tmp_path / "out" / "checkpoints.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "checkpoints.json").read_text())["best"] == "checkpoint-20"
