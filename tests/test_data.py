import bz2
import csv
import gzip
import json
import random
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from evergreen.data.files import read_rows, scan_rows
from evergreen.data.formats import RowError, Skipped, detect, detect_file, read_records, to_record
from evergreen.data.mixture import fill_identity, load_mixture, parse_source, record_digest, sample_indices
from evergreen.data.sources import resolve, split_sources
from evergreen.records import BadInput, Conversation, Message, Origin, Preference, Text

U, A = Message("user", "你好"), Message("assistant", "您好！")
TURNS = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}]
SHAREGPT = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好！"}]
WORSE = {"role": "assistant", "content": "嗯"}
PAIR = Preference((U,), A, Message("assistant", "嗯"))
CALL = {"name": "weather", "arguments": {"city": "北京"}}
TOOL = {"name": "weather", "description": "", "parameters": {"type": "object"}}

ROWS = {  # name -> (format, row, record)
    "alpaca": ("alpaca", {"instruction": "你好", "input": "", "output": "您好！"}, Conversation((U, A))),
    "alpaca with input": (
        "alpaca",
        {"instruction": "翻译", "input": "你好", "output": "Hi"},
        Conversation((Message("user", "翻译\n你好"), Message("assistant", "Hi"))),
    ),
    "alpaca in full": (
        "alpaca",
        {
            "instruction": "你好",
            "input": "",
            "output": "您好！",
            "system": "礼貌",
            "reasoning": "问好",
            "history": [["在吗", "在"]],
        },
        Conversation(
            (
                Message("system", "礼貌"),
                Message("user", "在吗"),
                Message("assistant", "在"),
                U,
                Message("assistant", "您好！", "问好"),
            )
        ),
    ),
    "sharegpt": (
        "sharegpt",
        {"conversations": SHAREGPT, "system": "礼貌"},
        Conversation((Message("system", "礼貌"), U, A)),
    ),
    "sharegpt tools": (
        "sharegpt",
        {
            "conversations": [
                SHAREGPT[0],
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "晴"},
                SHAREGPT[1],
            ],
            "tools": json.dumps([TOOL]),
        },
        Conversation(
            (U, Message("assistant", tool_calls=(CALL,)), Message("tool", "晴"), A),
            ({"type": "function", "function": TOOL},),
        ),
    ),
    "messages": (
        "messages",
        {"messages": [{"role": "developer", "content": "礼貌"}, *TURNS]},
        Conversation((Message("system", "礼貌"), U, A)),
    ),
    "messages tools": (
        "messages",
        {
            "messages": [
                TURNS[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "北京"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "晴"},
                {"role": "assistant", "content": "您好！", "reasoning_content": "晴天"},
            ],
            "tools": [{"type": "function", "function": TOOL}],
        },
        Conversation(
            (
                U,
                Message("assistant", tool_calls=(CALL,)),
                Message("tool", "晴"),
                Message("assistant", "您好！", "晴天"),
            ),
            ({"type": "function", "function": TOOL},),
        ),
    ),
    "query response": ("query_response", {"query": "你好", "response": "您好！", "history": []}, Conversation((U, A))),
    "prompt answer": ("prompt_answer", {"prompt": "你好", "answer": "您好！"}, Conversation((U, A))),
    "question answer": ("question_answer", {"question": "你好", "answer": "您好！"}, Conversation((U, A))),
    "prompt completion": ("prompt_completion", {"prompt": "你好", "completion": "您好！"}, Conversation((U, A))),
    "prompt completion lists": (
        "prompt_completion",
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        Conversation((U, A)),
    ),
    "preference": ("preference", {"prompt": "你好", "chosen": "您好！", "rejected": "嗯"}, PAIR),
    "preference lists": ("preference", {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [WORSE]}, PAIR),
    "preference whole": ("preference", {"chosen": TURNS, "rejected": [TURNS[0], WORSE]}, PAIR),
    "preference whole with prompt": (
        "preference",
        {"prompt": "你好", "chosen": TURNS, "rejected": [TURNS[0], WORSE]},
        PAIR,
    ),
    "preference sharegpt": (
        "preference",
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "嗯"}},
        PAIR,
    ),
    "preference role turns": ("preference", {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": WORSE}, PAIR),
    "preference alpaca": (
        "preference",
        {"instruction": "你好", "input": "", "chosen": "您好！", "rejected": "嗯"},
        PAIR,
    ),
    "preference swift": ("preference", {"messages": TURNS, "rejected_response": "嗯"}, PAIR),
    "kto messages": ("kto", {"messages": TURNS, "label": False}, Conversation((U, A), label=False)),
    "kto sharegpt": ("kto", {"conversations": SHAREGPT, "kto_tag": True}, Conversation((U, A), label=True)),
    "kto completion": (
        "kto",
        {"prompt": "你好", "completion": "您好！", "label": True},
        Conversation((U, A), label=True),
    ),
    "text": ("text", {"text": "从前有座山。"}, Text("从前有座山。")),
}
ONLY_IN_JSON = {
    "preference pair in output": ("preference", {"instruction": "你好", "input": "", "output": ["您好！", "嗯"]}, PAIR)
}


def write(path: Path, rows: list[dict]) -> Path:
    name = path.name.removesuffix(".gz").removesuffix(".bz2")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith((".csv", ".tsv")):
        with open(path, "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            table.writeheader()
            table.writerows(
                {
                    key: part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
                    for key, part in row.items()
                }
                for row in rows
            )
        return path
    text = (
        json.dumps(rows, ensure_ascii=False, indent=1)
        if name.endswith(".json")
        else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def alpaca(n: int, start: int = 0) -> list[dict]:
    return [{"instruction": f"问题{i}", "input": "", "output": f"答案{i}"} for i in range(start, start + n)]


# Formats


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "json.bz2", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_every_format_reads_the_same_from_every_file_type(tmp_path, name, suffix):
    kind, row, record = ROWS[name]
    path = write(tmp_path / f"a.{suffix}", [row, row])
    assert list(read_records(path)) == [record, record]
    assert detect_file(path) == kind


@pytest.mark.parametrize("name", ONLY_IN_JSON)
def test_formats_that_tables_cannot_hold(name):
    kind, row, record = ONLY_IN_JSON[name]
    assert (detect(row), to_record(row)) == (kind, record)


def test_a_think_block_at_the_head_of_an_answer_becomes_the_thought():
    record = to_record({"query": "1+1?", "response": "<think>\n一加一\n</think>\n\n2"})
    assert record.messages[-1] == Message("assistant", "2", "一加一")


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "你"}, {"type": "text", "value": "好"}]
    assert to_record({"messages": [{"role": "user", "content": parts}, TURNS[1]]}).messages == (U, A)


def test_labels_of_one_and_zero_count_where_kto_data_keeps_them():
    assert [to_record({"prompt": "q", "completion": "a", "label": label}).label for label in (1, 0, "1")] == [
        True,
        False,
        True,
    ]
    assert to_record({"query": "q", "response": "a", "label": 1}).label is None
    assert to_record({"messages": TURNS, "label": "positive"}).label is None


def test_several_calls_in_one_turn_and_arguments_as_text():
    value = json.dumps([{"name": "a", "arguments": '{"x": 1}'}, {"name": "b", "arguments": {}}])
    record = to_record({"conversations": [SHAREGPT[0], {"from": "function_call", "value": value}]})
    assert record.messages[1].tool_calls == ({"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}})


def test_a_turn_of_weight_zero_is_context():
    turns = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[0], {**TURNS[1], "weight": 1}]
    assert [m.trained for m in to_record({"messages": turns}).messages if m.role == "assistant"] == [False, True]


def test_two_user_turns_in_a_row_are_kept_as_they_are():
    record = to_record({"messages": [TURNS[0], TURNS[0], TURNS[1]]})
    assert [message.role for message in record.messages] == ["user", "user", "assistant"]


def test_an_answer_that_is_json_stays_text():
    answer = '[{"name": "张三", "age": 3}]'
    assert to_record({"prompt": "转成JSON", "completion": answer}).messages[-1].content == answer


def test_a_prompt_alone_is_a_record_only_where_no_answer_is_needed():
    assert to_record({"prompt": "你好"}, needs_answer=False).messages == (U,)
    assert to_record({"instruction": "你好", "input": "", "output": ""}, needs_answer=False).messages == (U,)
    with pytest.raises(RowError, match="answer"):
        to_record({"prompt": "你好"})


@pytest.mark.parametrize(
    "row,kind,words",
    [
        ({"instruction": "q", "input": "", "output": ""}, "no_answer", "output"),
        ({"instruction": "q", "input": ""}, "no_answer", "answer"),
        ({"instruction": "", "input": "", "output": "a"}, "empty_turn", "instruction"),
        ({"instruction": "q", "output": 5}, "unreadable", "the number 5"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "unreadable", "history"),
        ({"messages": []}, "empty_turn", "empty list"),
        ({"messages": "no list"}, "unreadable", "wants a list"),
        ({"messages": ["x"]}, "unreadable", "role and content"),
        ({"messages": TURNS[:1]}, "no_answer", "none"),
        ({"messages": TURNS[1:]}, "unreadable", "no user turn"),
        ({"messages": [TURNS[0], {"role": "tool", "content": "x"}, TURNS[1]]}, "unreadable", "no call"),
        ({"messages": [TURNS[0], {"role": "system", "content": "x"}, TURNS[1]]}, "unreadable", "system prompt"),
        ({"messages": [TURNS[0], {"role": "moderator", "content": "x"}]}, "unknown_role", "moderator"),
        ({"messages": [TURNS[0], {"content": "x"}]}, "unknown_role", "nothing"),
        ({"messages": [{"role": "user", "content": " "}, TURNS[1]]}, "empty_turn", "turn 1"),
        ({"conversations": [SHAREGPT[0], {"from": "function_call", "value": "not json"}]}, "unreadable", "JSON"),
        ({"prompt": "q", "chosen": "a"}, "no_answer", "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "no_answer", "rejected"),
        ({"chosen": TURNS, "rejected": [{"role": "user", "content": "x"}, WORSE]}, "unreadable", "differ"),
        ({"messages": TURNS, "kto_tag": "good"}, "unreadable", "true or false"),
        ({"messages": TURNS, "images": ["a.png"]}, "unreadable", "images"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, TURNS[1]]},
            "unreadable",
            "images",
        ),
        ({"text": ""}, "empty_turn", "text"),
        ({"query": "q", "response": "half \ud83d"}, "unreadable", "half of a character"),
        ({"foo": 1}, "unreadable", "foo"),
        ({}, "unreadable", "none"),
    ],
)
def test_a_bad_row_names_file_line_and_fault(row, kind, words):
    with pytest.raises(RowError) as caught:
        to_record(row, Origin("a.jsonl", 7))
    assert str(caught.value).startswith("a.jsonl:7: ")
    assert words in str(caught.value)
    assert caught.value.kind == kind
    assert caught.value.exit_code == 2


def test_a_file_that_changes_its_columns_is_read_row_by_row_and_one_that_changes_its_kind_is_refused(tmp_path):
    mixed = write(tmp_path / "a.jsonl", [ROWS["alpaca"][1], ROWS["messages"][1], ROWS["query response"][1]])
    assert len(list(read_records(mixed))) == 3
    broken = write(tmp_path / "b.jsonl", [ROWS["alpaca"][1], ROWS["text"][1]])
    with pytest.raises(BadInput, match=r"b\.jsonl:2 is not what the rows before it are.*plain text"):
        list(read_records(broken))


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "response": "b"}\n{broken\n{"query": "a"}\n[1]\n{"query": "c", "response": "d"}\n')
    skipped = Skipped()
    assert len(list(read_records(path, "skip", skipped))) == 2
    assert skipped.count == 3
    assert [f"a.jsonl:{line}" in text for line, text in zip((2, 3, 4), skipped.examples, strict=True)] == [True] * 3


# Files


def test_lines_are_those_that_an_editor_shows(tmp_path):
    rows = [{"text": "a\nb"}, {"text": "ü \u2028 世界"}, {"text": "c"}]
    assert [line for line, _ in read_rows(write(tmp_path / "a.json", rows))] == [2, 5, 8]
    assert [line for line, _ in read_rows(write(tmp_path / "a.jsonl", rows))] == [1, 2, 3]
    assert [line for line, _ in read_rows(write(tmp_path / "a.csv", rows))] == [2, 4, 5]
    assert [line for line, _ in read_rows(write(tmp_path / "a.parquet", rows))] == [1, 2, 3]


def test_broken_json_is_named_by_line(tmp_path):
    lines = [json.dumps(row) for row in alpaca(1000)]
    lines[730] = lines[730][:-3]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=r"a\.jsonl:731 is not JSON: "):
        list(read_rows(tmp_path / "a.jsonl"))
    (tmp_path / "a.json").write_text("[\n" + ",\n".join(lines) + "\n]")
    with pytest.raises(BadInput, match=r"a\.json:73[23] is not JSON: "):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"},]',
        '[{"text": "a"}] x',
        '{"text": "a"',
        '{"text": "a"}}',
        '[{"text": NaN',
    ],
)
def test_json_that_breaks_off_is_an_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=r"a\.json:1 is not JSON"):
        list(read_rows(tmp_path / "a.json"))


def test_skipping_never_leaves_out_the_rest_of_a_broken_file(tmp_path):
    (tmp_path / "a.json").write_text('[{"query": "a", "response": "b"},\n {"query": "a", "resp')
    with pytest.raises(BadInput, match=r"a\.json:2 is not JSON"):
        list(read_records(tmp_path / "a.json", on_bad_row="skip"))


@pytest.mark.parametrize(
    "name,text",
    [
        ("a.jsonl", '[{"text": "一"}, {"text": "二"}]'),
        ("a.json", '{"text": "一"}\n{"text": "二"}\n'),
        ("a.json", '\ufeff[{"text": "一"},\r\n{"text": "二"}]'),
        ("a.jsonl", '\ufeff{"text": "一"}\r\n\r\n{"text": "二"}'),
        ("a.json", '{"version": "1", "list": [], "data": [{"text": "一"}, {"text": "二"}]}'),
        ("a.csv", '\ufefftext;n\r\n"一";1\r\n二;2\r\n'),
        ("a.txt", "一\n二\n"),
        ("a.txt", "\n一\n\n\n二\n"),
    ],
)
def test_what_a_file_holds_counts_more_than_what_it_is_called(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert [row["text"] for _, row in read_rows(tmp_path / name)] == ["一", "二"]


def test_one_object_in_a_file_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"messages": TURNS}, indent=2))
    assert [record.messages for record in read_records(tmp_path / "a.json")] == [(U, A)]


def test_a_list_in_an_object_keeps_its_real_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"about": {"data": ["["]}, "data": alpaca(3)}, indent=1))
    text = (tmp_path / "a.json").read_text().splitlines()
    lines = [line for line, _ in read_rows(tmp_path / "a.json")]
    assert [text[line - 1].strip() for line in lines] == ["{"] * 3
    assert [f"问题{i}".encode("unicode_escape").decode() in text[line] for i, line in enumerate(lines)] == [True] * 3


def test_a_json_list_longer_than_the_buffer_equals_json_loads(tmp_path):
    rows = [{"text": "长" * random.Random(i).randrange(3000), "n": i} for i in range(400)]
    path = write(tmp_path / "a.json", rows)
    assert [row for _, row in read_rows(path)] == json.loads(path.read_text())


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "txt"])
def test_another_encoding_is_named_with_its_line(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", alpaca(3))
    path.write_bytes(path.read_text().encode("gb18030"))
    with pytest.raises(BadInput, match=rf"a\.{suffix}:[1-3] is not UTF-8"):
        list(read_rows(path))
    path.write_bytes("[{}]".encode("utf-16"))
    with pytest.raises(BadInput, match=r"UTF-16"):
        list(read_rows(path))


def test_a_csv_row_with_too_many_cells_and_one_that_never_ends(tmp_path):
    (tmp_path / "a.csv").write_text('query,response\n"two\nlines",b\na,b,c\nx,y\n"open,z\n')
    scanned = list(scan_rows(tmp_path / "a.csv"))
    assert [line for line, _ in scanned] == [2, 4, 5, 6]
    assert [isinstance(row, RowError) for _, row in scanned] == [False, True, False, True]


def test_broken_packed_and_binary_files_are_bad_input(tmp_path):
    for name in ("a.jsonl.gz", "a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"nonsense" * 20)
        with pytest.raises(BadInput, match=name):
            list(read_rows(tmp_path / name))
    for name in ("none.json", "a.xlsx"):
        (tmp_path / "a.xlsx").touch()
        with pytest.raises(BadInput, match=name):
            list(read_rows(tmp_path / name))


def test_arrow_files_of_the_datasets_library_are_read(tmp_path):
    import pyarrow

    table = pyarrow.Table.from_pylist(alpaca(5))
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    for name in ("stream.arrow", "file.arrow"):
        assert [row for _, row in read_rows(tmp_path / name)] == alpaca(5)


# Real data


@pytest.mark.parametrize(
    "name,rows,kind",
    [
        ("instruct/identity.json", 91, Conversation),
        ("instruct/alpaca_zh_demo.json", 500, Conversation),
        ("instruct/alpaca_en_demo.json", 500, Conversation),
        ("instruct/glaive_toolcall_zh_demo.json", 100, Conversation),
        ("instruct/glaive_toolcall_en_demo.json", 100, Conversation),
        ("preference/dpo_zh_demo.json", 150, Preference),
        ("preference/dpo_en_demo.json", 150, Preference),
        ("preference/kto_en_demo.json", 100, Conversation),
        *(
            (f"trace/{task}/{part}.json", rows, Conversation)
            for task in ("C-STANCE", "ScienceQA", "20Minuten", "Py150")
            for part, rows in (("train", 500), ("eval", 100), ("test", 100))
        ),
    ],
)
def test_public_sets_are_read_whole(shared_data, name, rows, kind):
    records = list(read_records(shared_data / name))
    assert len(records) == rows and all(type(record) is kind for record in records)
    if "toolcall" in name:
        assert all(
            isinstance(call["arguments"], dict)
            for record in records
            for message in record.messages
            for call in message.tool_calls
        )
        assert all(record.tools for record in records if any(message.tool_calls for message in record.messages))
    if "kto" in name:
        assert {record.label for record in records} == {True, False}


def test_pictures_are_refused_by_name(shared_data):
    with pytest.raises(BadInput, match=r"mllm_demo\.json:2: holds images.*text training cannot use"):
        list(read_records(shared_data / "multimodal" / "mllm_demo.json"))


# Sources


def test_a_source_is_a_name_and_perhaps_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (parse_source("hub/name#200").name, parse_source("hub/name#200").num_samples) == ("hub/name", 200)
    assert parse_source("a.json").num_samples is None
    write(Path("odd#5.json"), alpaca(1))
    assert parse_source("odd#5.json").name == "odd#5.json"
    for bad in ("a.json#0", "a.json#-3", "a.json#x", "a.json#1.5", "#5", "", "a.json#99999999999"):
        with pytest.raises(BadInput):
            parse_source(bad)


def test_commas_part_sources_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("a,b.json"), alpaca(1))
    assert [source.name for source in split_sources(["x,y#3", "a,b.json#2"])] == ["x", "y", "a,b.json"]


def test_a_name_in_dataset_info_goes_before_a_folder_before_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "dataset/zh", "zh"):
        Path(folder).mkdir(parents=True)
        write(Path(folder) / "train.json", alpaca(3))
    write(Path("dataset/zh/dev.json"), alpaca(2))
    assert resolve(parse_source("zh")).path == "dataset/zh/train.json"
    assert resolve(parse_source("zh"), split="validation").path == "dataset/zh/dev.json"
    assert resolve(parse_source("./zh")).path == "dataset/zh/train.json"
    Path("data/dataset_info.json").write_text('{"zh": {"file_name": "train.json"}}')
    assert resolve(parse_source("zh")).path == "data/train.json"
    assert resolve(parse_source("train.json")).path == "data/train.json"


def test_a_folder_gives_its_train_files_or_all_but_held_out_ones(tmp_path):
    for name in ("b.json", "a.jsonl", "dev.json", "test-00.parquet", "README.md", "train_notes.md"):
        write(tmp_path / name, alpaca(1))
    assert [path.name for path in resolve(parse_source(str(tmp_path))).files] == ["a.jsonl", "b.json"]
    for part in range(2):
        write(tmp_path / f"train-0000{part}-of-00002.parquet", alpaca(2))
    assert len(load_mixture([str(tmp_path)])) == 4


def test_dots_are_paths_and_not_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dataset/base").mkdir(parents=True)
    write(Path("a.json"), alpaca(1))
    assert resolve(parse_source(".")).path == "a.json"
    with pytest.raises(BadInput, match="the folder dataset wants train.*, holds base/"):
        resolve(parse_source("dataset"))


def test_train_and_dev_may_be_folders(tmp_path):
    for word in ("train", "dev"):
        (tmp_path / word).mkdir()
        write(tmp_path / word / "part.jsonl", alpaca(2))
    assert [path.parent.name for path in resolve(parse_source(str(tmp_path))).files] == ["train"]
    assert [path.parent.name for path in resolve(parse_source(str(tmp_path)), split="validation").files] == ["dev"]


def test_what_is_nowhere_is_named_with_what_is_near(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("identity.json"), alpaca(1))
    with pytest.raises(BadInput, match=r"no such file; near it: identity\.json"):
        load_mixture(["identitty.json"])
    with pytest.raises(BadInput, match=r"someone/set: .*cannot be reached.*identity\.json"):
        load_mixture(["someone/set"])
    with pytest.raises(BadInput, match="no such folder"):
        load_mixture(["identity.json"], dataset_dir="nowhere")


def test_llama_factory_dataset_info_is_honoured(tmp_path):
    write(tmp_path / "odd.json", [{"q": "你好", "extra": "x", "a": "您好！", "messages": "not looked at"}] * 4)
    write(
        tmp_path / "turns.jsonl",
        [{"chat": [{"who": "u", "says": "你好"}, {"who": "b", "says": "您好！"}], "sys": "礼貌"}],
    )
    write(tmp_path / "pairs.json", [{"instruction": "你好", "good": "您好！", "bad": "嗯"}])
    write(
        tmp_path / "share.json",
        [{"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "嗯"}}],
    )
    write(tmp_path / "book.jsonl", [{"body": "从前"}])
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.json", alpaca(2))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps(
            {
                "odd": {"file_name": "odd.json", "columns": {"prompt": "q", "response": "a"}, "num_samples": 3},
                "turns": {
                    "file_name": "turns.jsonl",
                    "formatting": "sharegpt",
                    "columns": {"messages": "chat", "system": "sys"},
                    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "u", "assistant_tag": "b"},
                },
                "pairs": {
                    "file_name": "pairs.json",
                    "ranking": True,
                    "columns": {"prompt": "instruction", "chosen": "good", "rejected": "bad"},
                },
                "share": {
                    "file_name": "share.json",
                    "formatting": "sharegpt",
                    "ranking": True,
                    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
                },
                "book": {"file_name": "book.jsonl", "columns": {"prompt": "body"}},
                "folder": {"file_name": "folder"},
                "scope": {"ms_hub_url": "someone/set"},
                "hub": {"hf_hub_url": "someone/set", "ms_hub_url": "someone/set"},
                "empty": {},
            }
        )
    )

    def read(name: str) -> list:
        return list(load_mixture([name], dataset_dir=str(tmp_path)))

    assert read("odd") == [Conversation((U, A))] * 3
    assert len(read("odd#2")) == 2
    assert read("turns") == [Conversation((Message("system", "礼貌"), U, A))]
    assert read("pairs") == [PAIR] and read("share") == [PAIR]
    assert read("book") == [Text("从前")]
    assert list(load_mixture([str(tmp_path / "odd.json")])) == [Conversation((U, A))] * 4  # a path reads as its name
    assert len(read("folder")) == 2 and len(read("odd,turns")) == 4
    with pytest.raises(BadInput, match=r"pip install 'evergreen-lm\[modelscope\]'"):
        read("scope")
    with pytest.raises(BadInput, match="cannot be reached"):
        read("hub")
    with pytest.raises(BadInput, match="wants file_name"):
        read("empty")


def test_the_datasets_librarys_own_dataset_info_is_left_alone(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"citation": "", "features": {"query": {}}}')
    assert len(load_mixture([str(write(tmp_path / "a.jsonl", alpaca(2)))])) == len(load_mixture([str(tmp_path)])) == 2


def test_swifts_list_of_sets_is_honoured(tmp_path):
    write(tmp_path / "a.jsonl", [{"problem_text": "你好", "result": "您好！"}])
    (tmp_path / "dataset_info.json").write_text(
        json.dumps(
            [
                {
                    "dataset_name": "mine",
                    "dataset_path": "a.jsonl",
                    "columns": {"problem_text": "query", "result": "response"},
                }
            ]
        )
    )
    assert list(load_mixture(["mine"], dataset_dir=str(tmp_path))) == [Conversation((U, A))]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_sets_are_sampled_like_files(monkeypatch, streaming):
    import datasets

    asked = []

    def load(name, subset, data_dir, split, streaming):
        asked.append((name, subset, split, streaming))
        rows = datasets.Dataset.from_list(alpaca(20))
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    mixture = load_mixture(["someone/set:zh#5"], streaming=streaming)
    assert asked == [("someone/set", "zh", "train", streaming)]
    assert len(set(answers(mixture))) == 5 and mixture.sources[0]["format"] == "alpaca"
    assert next(iter(mixture)).origin.file == "someone/set"


def test_modelscope_is_asked_when_it_is_there_and_hugging_face_has_no_such_set(monkeypatch):
    class MsDataset:
        @staticmethod
        def load(name, subset_name, split, use_streaming):
            return alpaca(4) if (name, subset_name, split) == ("someone/set", "default", "train") else []

    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.msdatasets", types.SimpleNamespace(MsDataset=MsDataset))
    monkeypatch.setattr("evergreen.data.sources._has_modelscope", lambda: True)
    assert len(load_mixture(["someone/set"])) == len(load_mixture(["ms::someone/set"])) == 4


# Mixtures


def answers(mixture) -> list[str]:
    return [record.messages[-1].content for record in mixture]


def test_sampling_below_the_length_is_without_repeats_in_order_and_nested(tmp_path):
    path = write(tmp_path / "a.json", alpaca(100))
    small, large = (answers(load_mixture([f"{path}#{n}"])) for n in (20, 50))
    assert len(set(small)) == 20 and set(small) < set(large)
    assert [int(answer[2:]) for answer in small] == sorted(int(answer[2:]) for answer in small)
    assert small != answers(load_mixture([f"{path}#20"], seed=1))
    assert small == answers(load_mixture([str(write(tmp_path / "b.json", alpaca(7))), f"{path}#20"]))[7:]


def test_sampling_above_the_length_repeats_whole_and_samples_the_rest(tmp_path):
    path = write(tmp_path / "a.json", alpaca(10))
    counts = Counter(answers(load_mixture([f"{path}#25"])))
    assert len(counts) == 10 and Counter(counts.values()) == {2: 5, 3: 5}
    assert list(sample_indices(3, 6, 0)) == [0, 1, 2, 0, 1, 2]


def test_max_samples_caps_every_source(tmp_path):
    a, b = write(tmp_path / "a.json", alpaca(10)), write(tmp_path / "b.json", alpaca(3, 50))
    mixture = load_mixture([f"{a}#8", str(b)], max_samples=5)
    assert [source["used"] for source in mixture.sources] == [5, 3]


def test_probabilities_choose_sources_in_their_share_until_the_first_runs_out(tmp_path):
    a, b = write(tmp_path / "a.json", alpaca(3000)), write(tmp_path / "b.json", alpaca(3000, 10000))
    mixture = load_mixture([str(a), str(b)], probabilities=[0.8, 0.2])
    share = sum(len(answer) < 7 for answer in answers(mixture)) / len(mixture)
    assert 0.77 < share < 0.83 and mixture.sources[0]["used"] == 3000
    assert mixture.hash == load_mixture([str(a), str(b)], probabilities=[0.8, 0.2]).hash
    assert mixture.hash != load_mixture([str(a), str(b)], probabilities=[0.8, 0.2], seed=3).hash


def test_all_exhausted_uses_every_row_of_every_source(tmp_path):
    a, b = write(tmp_path / "a.json", alpaca(200)), write(tmp_path / "b.json", alpaca(5, 10000))
    mixture = load_mixture([str(a), str(b)], probabilities=[0.5, 0.5], stopping_strategy="all_exhausted")
    assert set(answers(mixture)) == {row["output"] for row in alpaca(200) + alpaca(5, 10000)}
    assert Counter(answers(mixture))["答案10000"] > 10


@pytest.mark.parametrize("probabilities", [[1.0], [0.5, 0.6], [0.5, 0.2, 0.3], [1.5, -0.5]])
def test_probabilities_that_do_not_fit_are_refused(tmp_path, probabilities):
    path = str(write(tmp_path / "a.json", alpaca(3)))
    with pytest.raises(BadInput, match="interleave_prob"):
        load_mixture([path, path], probabilities=probabilities)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"probabilities": [0.3, 0.7]},
        {"probabilities": [0.3, 0.7], "stopping_strategy": "all_exhausted"},
        {"max_samples": 9},
    ],
)
@pytest.mark.parametrize("counts", [("", ""), ("#7", "#250"), ("#130", "")])
def test_a_stream_holds_what_the_list_holds(tmp_path, options, counts):
    sources = [f"{write(tmp_path / f'{i}.jsonl', alpaca(60, 100 * i))}{count}" for i, count in enumerate(counts)]
    listed, streamed = (load_mixture(sources, streaming=streaming, **options) for streaming in (False, True))
    assert Counter(answers(streamed)) == Counter(answers(listed))
    assert streamed.streaming and not listed.streaming


def test_a_stream_is_shuffled_repeatable_and_new_in_every_epoch(tmp_path):
    sources = [str(write(tmp_path / f"{i}.jsonl", alpaca(500, 1000 * i))) for i in range(2)]
    mixture = load_mixture(sources, streaming=True)
    first, again = answers(mixture), answers(mixture)
    mixture.set_epoch(1)
    other = answers(mixture)
    assert first == again != other and sorted(first) == sorted(other)
    assert {int(answer[2:]) >= 1000 for answer in first[:50]} == {False, True}  # both sources from the start
    assert load_mixture(sources, streaming=True).hash == mixture.hash
    assert load_mixture(sources, streaming=True, seed=1).hash != mixture.hash
    with pytest.raises(TypeError):
        len(mixture)


def test_a_stream_counts_skipped_rows_once_an_iteration(tmp_path):
    path = write(tmp_path / "a.jsonl", [*alpaca(5), {"query": "x"}, *alpaca(5, 10)])
    mixture = load_mixture([str(path)], streaming=True, on_bad_row="skip")
    assert [(len(answers(mixture)), mixture.skipped.count) for _ in range(2)] == [(10, 1), (10, 1)]
    listed = load_mixture([str(path)], on_bad_row="skip")
    assert (len(listed), listed.skipped.count) == (10, 1) and "a.jsonl:6" in listed.skipped.examples[0]
    with pytest.raises(BadInput, match=r"a\.jsonl:6: .*on_bad_row skip"):
        load_mixture([str(path)])


def test_the_hash_is_of_the_content_and_of_nothing_else(tmp_path):
    hashes = {
        load_mixture([str(write(tmp_path / name, alpaca(20)))]).hash
        for name in ("a.json", "b.jsonl", "c.csv", "d.parquet", "e.jsonl.gz")
    }
    assert len(hashes) == 1
    changed = alpaca(20)
    changed[7]["output"] += " "
    assert load_mixture([str(write(tmp_path / "f.json", changed))]).hash not in hashes
    assert load_mixture([str(write(tmp_path / "g.json", alpaca(20)[::-1]))]).hash not in hashes
    records = [record for _, _, record in ROWS.values()]
    assert len(set(map(record_digest, records))) == len(set(map(repr, records)))


def test_the_summary_says_what_was_read_and_used(tmp_path):
    path = write(tmp_path / "a.jsonl", alpaca(10))
    (summary,) = load_mixture([f"{path}#4"]).sources
    assert (summary["name"], summary["path"], summary["rows"], summary["used"], summary["format"]) == (
        str(path),
        str(path),
        10,
        4,
        "alpaca",
    )
    assert summary["sha256"] == subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]
    records = load_mixture([str(path)])
    assert records[3].origin == Origin(str(path), 4) and len(records[2:5]) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_source_is_refused(tmp_path, streaming):
    full = str(write(tmp_path / "full.json", alpaca(2)))
    for name, text in (("a.jsonl", ""), ("b.json", "[]"), ("c.csv", "query,response\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=f"{name} holds no row"):
            load_mixture([full, str(tmp_path / name)], streaming=streaming)
    bad = str(write(tmp_path / "bad.json", [{"query": "x"}]))
    with pytest.raises(BadInput, match=r"1 skipped, the first being .*bad\.json:2"):
        load_mixture([bad], on_bad_row="skip", streaming=streaming)
    with pytest.raises(BadInput, match="at least one source"):
        load_mixture([])


def test_identity_placeholders_are_filled_everywhere_or_asked_for(tmp_path):
    row = {
        "messages": [
            {"role": "system", "content": "{{NAME}}"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "{{name}}、{{author}}、{{AUTHOR}}、{{ name }}"},
        ]
    }
    path = str(write(tmp_path / "a.json", [row]))
    (record,) = load_mixture([path], model_name="小绿", model_author="林氏")
    assert [message.content for message in record.messages] == ["小绿", "hi", "小绿、林氏、林氏、{{ name }}"]
    for given, flag in (({"model_author": "x"}, "--model_name"), ({"model_name": "x"}, "--model_author")):
        with pytest.raises(BadInput, match=rf"a\.json:2 holds .*{flag}"):
            load_mixture([path], **given)
    pair = to_record({"prompt": "{{name}}?", "chosen": "{{name}}!", "rejected": "no"})
    assert fill_identity(pair, "小绿", "").chosen.content == "小绿!"
    assert fill_identity(PAIR, "", "") is PAIR


MEASURE = """
import re, sys
from pathlib import Path
from evergreen.data.mixture import load_mixture
from evergreen.data.files import read_rows
def peak_kilobytes():  # ru_maxrss would begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak_kilobytes()
if sys.argv[2] == "stream":
    n = sum(1 for _ in load_mixture([sys.argv[1]], streaming=True))
else:
    n = sum(1 for _ in read_rows(sys.argv[1]))
print(n, (peak_kilobytes() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name,how", [("a.jsonl", "stream"), ("a.json", "rows"), ("a.csv", "rows")])
def test_sixty_megabytes_are_read_in_less_than_forty(tmp_path, name, how):
    path, text = tmp_path / name, "x" * 2000
    with open(path, "w") as file:
        file.write({"a.jsonl": "", "a.json": "[\n", "a.csv": "query,response\n"}[name])
        for i in range(30_000):
            row = f"{i},{text}" if name == "a.csv" else f'{{"query": "{i}", "response": "{text}"}}'
            file.write(row + (",\n" if name == "a.json" and i < 29_999 else "\n"))
        file.write("]" if name == "a.json" else "")
    assert path.stat().st_size > 60_000_000
    done = subprocess.run([sys.executable, "-c", MEASURE, path, how], capture_output=True, text=True, check=True)
    rows, growth_mb = done.stdout.split()
    path.unlink()
    assert int(rows) == 30_000 and float(growth_mb) < 40


def test_parquet_is_read_batch_by_batch(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist(alpaca(5000))
    pyarrow.parquet.write_table(table, path, row_group_size=1000)
    rows = read_rows(path)
    assert next(rows) == (1, alpaca(1)[0])
    assert sum(1 for _ in rows) == 4999
