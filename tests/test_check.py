import json
import random
import time
from pathlib import Path

import jinja2
import pytest

from evergreen.data.check import KINDS, Finding, Report, check, normalised, print_report, run_check, split_of
from evergreen.data.formats import read_records
from evergreen.model.load import tokenizer_of
from evergreen.records import BadInput
from evergreen.settings import DataCheckSettings


class Tokenizer:
    """One token a character, and a template of angle brackets."""

    chat_template = "yes"

    def apply_chat_template(self, messages, tools=None, tokenize=False):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def __call__(self, texts, **_):
        return {"input_ids": [list(text) for text in texts]}


def write(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def row(question: str, answer: str = "答", **more) -> dict:
    return {"query": question, "response": answer, **more}


def found(report: Report, kind: str) -> list[int]:
    return [finding.line for finding in report.findings if finding.kind == kind]


def test_a_clean_file_has_no_findings(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(f"问题{word}", f"答{word}") for word in "一二三四五"])
    assert check([path], Tokenizer()) == Report(5, [])


def test_bad_rows_are_found_by_kind_and_line_and_reading_goes_on(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(
        tmp_path / "a.jsonl",
        [
            row("first"),
            '{"query": "broken',
            {"query": "none"},
            row("empty", ""),
            {"messages": turns[:1]},
            {"messages": [{"role": "alien", "content": "x"}, *turns]},
            {"messages": [{"role": "user", "content": ""}, turns[1]]},
            {"messages": turns[1:]},
            "[1]",
            {"what": "is this"},
            row("images", images=["a.png"]),
            row("last"),
            {"messages": [*turns, turns[0]]},
        ],
    )
    report = check([path])
    assert report.rows == 13
    assert [(finding.line, finding.kind) for finding in report.findings] == [
        (2, "unreadable"),
        (3, "no_answer"),
        (4, "no_answer"),
        (5, "no_answer"),
        (6, "unknown_role"),
        (7, "empty_turn"),
        (8, "unreadable"),
        (9, "unreadable"),
        (10, "unreadable"),
        (11, "unreadable"),
        (13, "no_answer"),
    ]
    assert all(finding.file == path and finding.detail for finding in report.findings)


def test_a_json_list_that_breaks_off_says_that_the_rest_was_not_read(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"query": "a", "response": "b"},\n{"query": "c", "resp')
    (finding,) = check([str(tmp_path / "a.json")]).findings
    assert (finding.line, finding.kind) == (3, "unreadable") and "rest of the file was not read" in finding.detail


def test_an_empty_file_is_a_finding_and_a_missing_one_an_error(tmp_path):
    assert [finding.detail for finding in check([write(tmp_path / "a.jsonl", [])]).findings] == ["holds no row"]
    with pytest.raises(BadInput, match="no such file"):
        check([str(tmp_path / "none.jsonl")])


@pytest.mark.parametrize(
    "rows,lines",
    [
        # one instruction field with different inputs
        (
            [
                {"instruction": "抽取实体", "input": f"句子{word}", "output": out}
                for word, out in zip("甲乙丙丁", ['{"a": 1}', '{"a": 2}', "没有实体", '["x"]'], strict=True)
            ],
            [3],
        ),
        # a template with numbers
        (
            [
                row(f"Convert order {i} to JSON", out)
                for i, out in enumerate(['{"n": 0}', '```json\n{"n": 1}\n```', "order 2"])
            ],
            [3],
        ),
        # a first line, then the matter
        (
            [
                row(f"把表格转成JSON\n{word}", out)
                for word, out in zip("甲乙丙", ['{"a": 1}', "甲是一", '{"a": 3}'], strict=True)
            ],
            [2],
        ),
        # what stands before a colon; the rarer answers are the JSON ones
        ([row(f"请总结下文：{word}", out) for word, out in zip("甲乙丙", ["一", '{"s": 1}', "三"], strict=True)], [2]),
        # names change inside: only the ends are alike
        (
            [
                row(f"请把{word}的个人信息转换成JSON格式", out)
                for word, out in zip(
                    ("张三", "李四", "王五", "赵六"), ['{"a": 1}', '{"a": 2}', '{"a": 3}', "赵六,三岁"], strict=True
                )
            ],
            [4],
        ),
        (
            [
                row(f"Please extract the fields of the invoice that {name} sent", out)
                for name, out in zip(
                    ("Ann", "Bob", "Cy", "Dee"), ['{"a": 1}', "none", '{"a": 3}', '{"a": 4}'], strict=True
                )
            ],
            [2],
        ),
        # a broken JSON answer counts as prose
        ([row(f"Order {i} as JSON", out) for i, out in enumerate(['{"n": 0}', '{"n": 1', '{"n": 2}'])], [2]),
        # different instructions may have different forms
        (
            [
                row("给我一个JSON例子", '{"a": 1}'),
                row("你好", "您好"),
                row("Tell me a story", "Once"),
                row("数组?", "[1]"),
            ],
            [],
        ),
        ([row(f"写一首关于{word}的诗", "诗") for word in "春夏秋冬"], []),
    ],
)
def test_json_answers_mixed_with_prose_under_one_instruction(tmp_path, rows, lines):
    report = check([write(tmp_path / "a.jsonl", rows)])
    assert found(report, "mixed_answers") == lines
    if lines:
        counts = [word for word in report.findings[0].detail.split() if word.isdigit()]
        assert counts == [str(len(rows) - 1), "1"]


def test_long_rows_are_counted_with_the_tokenizers_own_template(tmp_path):
    path = write(tmp_path / "a.jsonl", [row("短", "短"), row("长" * 500, "b"), row("x", "y" * 5000)])
    report = check([path], Tokenizer(), max_length=600)
    assert found(report, "too_long") == [3]
    assert f"{len('<user>x<assistant>') + 5000} tokens" in report.findings[0].detail
    assert found(check([path], Tokenizer(), max_length=400), "too_long") == [2, 3]
    assert found(check([path], count_tokens=lambda record: 9999), "too_long") == [1, 2, 3]
    assert found(check([path]), "too_long") == []


def test_of_an_absurdly_long_row_only_the_head_is_tokenised(tmp_path):
    class Counting(Tokenizer):
        most = 0

        def __call__(self, texts, **more):
            self.most = max(self.most, *map(len, texts))
            return super().__call__(texts, **more)

    tokenizer = Counting()
    report = check([write(tmp_path / "a.jsonl", [row("q", "x" * 5_000_000)])], tokenizer, max_length=400)
    assert found(report, "too_long") == [1] and "in its head alone" in report.findings[0].detail
    assert tokenizer.most <= 32 * 400


def test_a_long_row_whose_head_has_few_tokens_is_counted_whole(tmp_path):
    class ByWords(Tokenizer):
        def __call__(self, texts, **_):
            return {"input_ids": [text.split() for text in texts]}

    blank, full = row("q", "x" + " " * 90_000 + "y"), row("q", "x" + " " * 90_000 + "y " * 500)
    report = check([write(tmp_path / "a.jsonl", [blank, full])], ByWords(), max_length=400)
    assert found(report, "too_long") == [2] and "501 tokens, more" in report.findings[0].detail


def test_a_preference_row_is_too_long_once_though_both_answers_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c" * 900, "rejected": "r" * 1000}])
    (finding,) = check([path], Tokenizer(), max_length=500).findings
    assert "1018 tokens" in finding.detail


def test_skipping_the_tokenizer_for_short_rows_changes_nothing(tmp_path, shared_data):
    transformers = pytest.importorskip("transformers")
    folder = Path(__file__).parents[1] / "evergreen" / "model" / "nano"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("no tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    path = shared_data / "instruct" / "glaive_toolcall_zh_demo.json"

    def slow(record) -> int:
        chat = [
            {"role": message.role, "content": message.content}
            | (
                {"tool_calls": [{"type": "function", "function": call} for call in message.tool_calls]}
                if message.tool_calls
                else {}
            )
            for message in record.messages
        ]
        text = tokenizer.apply_chat_template(chat, tools=list(record.tools) or None, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    wanted = [record.origin.line for record in read_records(path) if slow(record) > 700]
    assert 0 < len(wanted) < 100
    assert found(check([str(path)], tokenizer, max_length=700), "too_long") == wanted


def test_duplicates_and_conflicts_name_the_earlier_row(tmp_path):
    a = write(
        tmp_path / "a.jsonl", [row("你好 吗", "好"), row("你好  吗", "好 "), row("你好吗？", "不好"), row("别的", "好")]
    )
    b = write(tmp_path / "b.jsonl", [row("别的", "好"), row("别的", "坏")])
    report = check([a, b])
    assert [(Path(finding.file).name, finding.line, finding.kind) for finding in report.findings] == [
        ("a.jsonl", 2, "duplicate"),
        ("a.jsonl", 3, "conflict"),
        ("b.jsonl", 1, "duplicate"),
        ("b.jsonl", 2, "conflict"),
    ]
    assert f"{a}:1" in report.findings[0].detail and f"{a}:4" in report.findings[3].detail


def test_other_system_prompts_and_tools_are_other_questions(tmp_path):
    rows = [row("你好", "好"), row("你好", "坏", system="粗鲁"), row("你好", "妙", tools=[{"name": "x"}])]
    assert check([write(tmp_path / "a.jsonl", rows)]).findings == []


def test_labelled_and_paired_rows_conflict_only_when_they_contradict(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [turns[0], {"role": "assistant", "content": "b"}]
    kto = write(
        tmp_path / "kto.jsonl",
        [{"messages": turns, "label": True}, {"messages": other, "label": False}, {"messages": other, "label": True}],
    )
    assert found(check([kto]), "conflict") == [3]
    pairs = write(
        tmp_path / "dpo.jsonl",
        [
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            {"prompt": "q", "chosen": "a", "rejected": "c"},
            {"prompt": "q", "chosen": "b", "rejected": "a"},
            {"prompt": "r", "chosen": "a", "rejected": "a"},
        ],
    )
    assert found(check([pairs]), "conflict") == [3, 4]


@pytest.mark.parametrize(
    "train,held_out",
    [
        ("train.jsonl", "dev.jsonl"),
        ("my_train.jsonl", "my-test.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("all.jsonl", "eval.jsonl"),
        ("train-00000.jsonl", "validation-00000.jsonl"),
    ],
)
def test_training_rows_that_stand_in_held_out_files_are_leaks(tmp_path, train, held_out):
    train = write(tmp_path / "set" / train, [row("安全的问题"), row("今天 天气如何?", "晴"), row("What is  RAM?", "x")])
    held_out = write(tmp_path / "set" / held_out, [row("what is RAM", "memory"), row("今天天气如何？", "雨")])
    report = check([train, held_out])
    assert [(finding.file, finding.line) for finding in report.findings if finding.kind == "leakage"] == [
        (train, 2),
        (train, 3),
    ]
    assert f"{held_out}:2" in report.findings[0].detail
    assert {finding.kind for finding in report.findings} == {"leakage"}
    assert check([str(tmp_path / "set")]).findings[0].kind == "leakage"  # the folder means all of them


def test_signs_inside_a_prompt_are_not_white_space():
    assert normalised("3-2=") != normalised("32=")
    assert normalised("ＡＢＣ　是什么？") == normalised("abc是什么?")
    assert normalised("？") != normalised("!")


def test_the_split_is_told_by_file_then_folder():
    assert [
        split_of(Path(path))
        for path in (
            "a/train.json",
            "a/dev_all.json",
            "a/test/x.json",
            "test/train.json",
            "a/latest.json",
            "a/valid.jsonl.gz",
        )
    ] == ["train", "validation", "validation", "train", "train", "validation"]


def test_placeholders_are_for_information(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [row("who", "I am {{name}} by {{AUTHOR}}"), row("x", "{{ name }}")])
    report = check([path])
    assert [(finding.line, finding.kind) for finding in report.findings] == [(1, "placeholder")]
    assert "{{AUTHOR}}, {{name}}" in report.findings[0].detail
    print_report(report)
    assert "2 rows, 0 findings" in capsys.readouterr().out


def test_dataset_info_names_and_their_columns_are_understood(tmp_path):
    write(tmp_path / "a.jsonl", [{"q": "a", "a": "b"}, {"q": "a", "a": "b"}])
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"mine": {"file_name": "a.jsonl", "columns": {"prompt": "q", "response": "a"}}})
    )
    assert [finding.kind for finding in check(["mine"], dataset_dir=str(tmp_path)).findings] == ["duplicate"]


def test_the_report_prints_every_kind_and_cuts_long_lists(tmp_path, capsys):
    findings = [Finding(f"数据/{kind}.json", line, kind, "说明 [x]") for kind in KINDS for line in range(1, 5)]
    print_report(Report(100, findings), max_findings=2)
    out = capsys.readouterr().out
    assert all(f"数据/{kind}.json:2" in out and f"数据/{kind}.json:3 " not in out for kind in KINDS)
    assert "说明 [x]" in out and "2 more" in out
    assert Report(1, findings[:1]).as_json() == {
        "rows": 1,
        "findings": [{"file": "数据/unreadable.json", "line": 1, "kind": "unreadable", "detail": "说明 [x]"}],
    }


def test_the_command_prints_and_returns_the_report(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [row("q", "长" * 900), "{"])
    document = run_check(DataCheckSettings(files=[path], model="nano", max_length=100), tokenizer_of)
    assert document["rows"] == 2 and [found["kind"] for found in document["findings"]] == ["too_long", "unreadable"]
    assert f"{path}:2" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(BadInput, match="got none"):
        run_check(DataCheckSettings(), tokenizer_of)


def test_turns_that_a_template_refuses_are_found(tmp_path):
    class Strict(Tokenizer):
        def apply_chat_template(self, *_, **__):
            raise jinja2.TemplateError("roles must alternate")

    (finding,) = check([write(tmp_path / "a.jsonl", [row("q", "a" * 999)])], Strict(), max_length=100).findings
    assert "roles must alternate" in finding.detail


def test_twenty_thousand_rows_take_seconds(tmp_path):
    rng = random.Random(0)
    path = write(tmp_path / "a.jsonl", [row(f"请解释{rng.random()}", "答" * rng.randrange(50)) for _ in range(20_000)])
    started = time.process_time()
    check([path], Tokenizer())
    assert time.process_time() - started < 10


def test_public_sets_have_the_findings_a_person_sees(shared_data):
    report = check([str(shared_data / "instruct")])
    assert report.rows == 1291
    assert len(found(report, "placeholder")) == 85
    assert not found(report, "unreadable") and not found(report, "mixed_answers")
    stance = check([str(shared_data / "trace" / "C-STANCE")])
    assert (stance.rows, stance.findings) == (700, [])
