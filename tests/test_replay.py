"""Replay: which old records come back, how many of each run, and when the model's own answers stand for them."""

import json
import random
from collections import Counter

import pytest

from evergreen.continual.replay import PASSES, balanced, general_records, history, on_policy, replay_records
from evergreen.data.mixture import load_mixture
from evergreen.evaluate.metrics import METRICS
from evergreen.model.find import link_to
from evergreen.records import BadInput, Conversation, Message, Origin, Text


@pytest.fixture
def run(tmp_path):
    """Leaves what a training run leaves for replay: an adapter's config, args.json with sources, version.json."""

    def make(name, *dataset, prev_model="", parent=None, adapters=(), chain=(), base="nano", **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        how = {"seed": 42, "prev_model": str(prev_model), "dataset": list(dataset), "adapters": list(adapters)}
        how |= settings
        reading = {"interleave_prob": "probabilities"}
        known = {"seed", "dataset_dir", "max_samples", "streaming", "interleave_prob", "model_name", "model_author"}
        mixture = load_mixture(dataset, **{reading.get(key, key): how[key] for key in known & set(how)})
        args = {"base": str(base), "sources": mixture.sources, "settings": how, "chain": list(chain)}
        (folder / "args.json").write_text(json.dumps(args, ensure_ascii=False))
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.bin").write_bytes(b"weights")
        (folder / "version.json").write_text(json.dumps({"digest": name, "parent": parent}))
        return folder

    return make


@pytest.fixture
def rows(tmp_path):
    def write(name, num=20):
        path = tmp_path / f"{name}.jsonl"
        data = [{"instruction": f"{name} 的第{i}题", "output": f"答{i}"} for i in range(num)]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data), encoding="utf-8")
        return str(path)

    return write


def names_of(records):
    return Counter(record.messages[0].content.split(" ")[0] for record in records)


def refused(*given):
    with pytest.raises(BadInput) as caught:
        replay_records(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def balanced_one_by_one(wanted, available):
    """The slow twin: each next row goes to the run that has given fewest, the oldest of equals."""
    counts = [0] * len(available)
    for _ in range(min(wanted, sum(available))):
        can_give = [place for place in range(len(counts)) if counts[place] < available[place]]
        counts[min(can_give, key=lambda place: (counts[place], -place))] += 1
    return counts


def test_runs_give_equal_numbers_as_dealing_one_by_one_does():
    rng = random.Random(0)
    for _ in range(300):
        available = [rng.randrange(30) for _ in range(rng.randrange(1, 7))]
        wanted = rng.randrange(120)
        assert balanced(wanted, available) == balanced_one_by_one(wanted, available), (wanted, available)


def test_replay_is_balanced_over_all_past_runs_and_a_small_one_gives_all(run, rows):
    first = run("first", rows("a", 50))
    second = run("second", rows("b", 3), prev_model=first)
    third = run("third", rows("c", 50), prev_model=second)
    assert names_of(replay_records(str(third), 24, 42, 100)) == {"a": 11, "b": 3, "c": 10}
    assert len(replay_records(str(third), 1000, 42, 100)) == 103


def test_below_one_it_is_a_share_of_the_new_data_and_from_one_a_count(run, rows):
    first = str(run("first", rows("a", 50)))
    assert [len(replay_records(first, samples, 42, 200)) for samples in (0.1, 7, 0.001, 0)] == [20, 7, 1, 0]
    assert "whole number" in refused(first, 2.5, 42, 200)


def test_the_same_seed_gives_the_same_records_and_another_gives_others(run, rows):
    first = str(run("first", rows("a", 50)))
    once, again, other = (replay_records(first, 10, seed, 100) for seed in (42, 42, 43))
    assert once == again != other
    assert len(set(map(str, [record.origin for record in once]))) == 10


def test_a_later_increment_draws_other_rows_of_the_first(run, rows):
    second = run("second", rows("b", 200), prev_model=run("first", rows("a", 200)))
    third = run("third", rows("c", 200), prev_model=second)
    early, late = (
        {record.origin for record in replay_records(str(last), 60, 42, 100) if "a.jsonl" in record.origin.file}
        for last in (second, third)
    )
    assert (len(early), len(late)) == (30, 20) and not late <= early


@pytest.mark.parametrize("settings", [{}, {"max_samples": 6}, {"interleave_prob": [0.5, 0.5], "max_samples": 9}])
def test_only_rows_that_the_run_was_trained_on_come_back_each_once(run, rows, settings):
    sources = [rows("a", 40) + "#12", rows("b", 5) + "#15"]
    first = run("first", *sources, **settings)
    reading = {"probabilities" if key == "interleave_prob" else key: value for key, value in settings.items()}
    trained = Counter(record.messages for record in load_mixture(sources, **reading))
    back = Counter(record.messages for record in replay_records(str(first), 1000, 1, 100))
    assert set(back) == set(trained) and max(back.values()) == 1


def test_a_streamed_run_is_replayed_too(run, rows):
    first = run("first", rows("a", 40), rows("b", 40), streaming=True)
    back = replay_records(str(first), 20, 42, 100)
    assert len(set(record.messages for record in back)) == 20 and back == replay_records(str(first), 20, 42, 100)


def test_a_layout_described_in_another_folder_holds_again(run, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "odd.json").write_text(json.dumps([{"frage": f"odd {i}", "antwort": "ja"} for i in range(4)]))
    entry = {"odd": {"file_name": "sub/odd.json", "columns": {"prompt": "frage", "response": "antwort"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    first = run("first", "odd", dataset_dir=str(tmp_path))
    assert names_of(replay_records(str(first), 10, 42, 100)) == {"odd": 4}


def test_names_are_filled_in_as_they_were(run, tmp_path):
    (tmp_path / "me.json").write_text(json.dumps([{"instruction": "who?", "output": "I am {{name}}"}]))
    first = run("first", str(tmp_path / "me.json"), model_name="小青", model_author="us")
    assert replay_records(str(first), 1, 42, 100)[0].messages[-1].content == "I am 小青"


def test_sources_are_found_from_another_folder(run, rows, tmp_path, monkeypatch):
    rows("a")
    monkeypatch.chdir(tmp_path)
    first = run("first", "a.jsonl")
    assert replay_records(str(first), 3, 42, 100)[0].origin.file == "a.jsonl"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(replay_records(str(first), 30, 42, 100)) == 20


def test_a_file_that_changed_or_vanished_is_named(run, rows, tmp_path):
    path = rows("a")
    first = str(run("first", path))
    with open(path, "a") as file:
        file.write("not even JSON\n")
    assert path in (said := refused(first, 5, 42, 100)) and "changed" in said
    (tmp_path / "a.jsonl").unlink()
    assert path in (said := refused(first, 5, 42, 100)) and "gone" in said


def test_without_history_it_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    assert "args.json" in refused(str(tmp_path / "other"), 5, 42, 100)
    assert "args.json" in refused("nano", 5, 42, 100)


def test_a_previous_model_that_is_gone_is_named(run, rows, tmp_path):
    first = run("first", rows("a"))
    second = str(run("second", rows("b"), prev_model=first))
    first.rename(tmp_path / "moved")
    assert "first" in (said := refused(second, 5, 42, 100)) and "gone" in said


def test_a_line_that_was_moved_as_a_whole_is_followed(run, rows, tmp_path):
    first = run("line/first", rows("a"))
    second = run("line/second", rows("b"), prev_model=first, parent="line/first")
    run("line/second/step-0.6", rows("b"), prev_model=first, parent="line/first")
    second.parent.rename(tmp_path / "there")
    for last in ("second", "second/step-0.6"):
        assert names_of(replay_records(str(tmp_path / "there" / last), 10, 42, 100)) == {"a": 5, "b": 5}


def test_history_follows_checkpoints_adapters_below_and_whole_models(run, rows, tmp_path):
    base = run("base", rows("a"))
    below = run("below", rows("b"), base=base)
    last = run("last", rows("c"), adapters=[str(below)])
    (last / "checkpoint-5").mkdir()
    (last / "checkpoint-5" / "adapter_config.json").write_text("{}")
    assert [one.folder.name for one in history(str(last / "checkpoint-5"))] == ["last", "below", "base"]


def test_history_follows_the_adapters_below_a_stacked_one(run, rows):
    below = run("below", rows("a"))
    stacked = run("stacked", rows("b"), chain=[link_to(below, below.parent / "stacked")])
    assert [one.folder.name for one in history(str(stacked))] == ["stacked", "below"]


def test_data_that_was_trained_on_twice_is_one_increment_and_older_runs_still_count(run, rows):
    first = run("first", rows("a"))
    second = run("second", rows("b"), prev_model=first)
    again = run("again", rows("b"), prev_model=second)
    assert names_of(replay_records(str(again), 10, 42, 100)) == {"a": 5, "b": 5}


def test_disliked_answers_are_not_replayed(run, tmp_path):
    turns = [{"role": "user", "content": "label q"}, {"role": "assistant", "content": "a"}]
    data = [{"messages": turns, "label": i % 2 == 0} for i in range(6)]
    (tmp_path / "kto.json").write_text(json.dumps(data))
    back = replay_records(str(run("first", str(tmp_path / "kto.json"))), 6, 42, 100)
    assert len(back) == 3 and all(record.label for record in back)


def test_general_replay_takes_so_many_of_a_file_and_names_its_own_flag(rows):
    assert len(general_records([rows("general") + "#7"])) == 7
    with pytest.raises(BadInput, match=r"^--general_replay .*nowhere\.json"):
        general_records(["nowhere.json#5"])


# Answers of the model's own


def chat(question, answer, *before, thought="", **more):
    turns = (*before, Message("user", question), Message("assistant", answer, thought))
    return Conversation(turns, origin=Origin("old.json", 1), **more)


def contains(answer, reference, record):
    return METRICS["contains"](answer, [reference])


def test_right_answers_of_its_own_take_the_place_of_the_recorded_ones_and_wrong_ones_do_not():
    said, records = [], [chat("2+2?", "4"), chat("首都?", "北京"), chat("3+3?", "6")]
    new = on_policy(records, lambda prompts: ["It is 4", "上海", ""], contains, say=said.append)
    assert [record.messages[-1].content for record in new] == ["It is 4", "北京", "6"]
    assert [record.origin for record in new] == [Origin("old.json", 1)] * 3
    assert said == ["1 of 3 replayed answers are the model's own, 2 as recorded"]


def test_an_answer_that_a_metric_forgives_is_spelt_as_recorded():
    new = on_policy([chat("q", "V12"), chat("q", "对")], lambda _: ["v１２。", "对。"], contains)
    assert [record.messages[-1].content for record in new] == ["V12", "对"]


def test_a_graded_metric_passes_from_the_stated_score_on():
    for score, is_own in ((PASSES - 0.01, False), (PASSES, True)):
        new = on_policy([chat("q", "gold")], lambda _: ["own"], lambda *_, score=score: score)
        assert (new[0].messages[-1].content == "own") is is_own


def test_only_the_last_turn_of_a_conversation_is_answered_anew():
    asked, earlier = [], (Message("user", "hi"), Message("assistant", "hello"))
    record = chat("2+2?", "4", *earlier)
    new = on_policy([record], lambda prompts: asked.extend(prompts) or ["4 it is"], contains)[0]
    assert asked == [record.messages[:-1]]
    assert new.messages[:-1] == record.messages[:-1] and new.messages[-1].content == "4 it is"


def test_a_thought_stays_a_thought_and_an_answer_without_one_does_not_unteach_it():
    thinking = chat("2+2?", "4", thought="two and two")
    new = on_policy([thinking, thinking], lambda _: ["<think>\nown thought\n</think>\n\n4", "4"], contains)
    assert new[0].messages[-1] == Message("assistant", "4", "own thought")
    assert new[1] is thinking


def test_the_best_of_several_tries_is_taken():
    records = [chat("a", "gold"), chat("b", "gold")]
    tries = ["bad", "ok", "good", "bad", "best", "bad"]  # try by try
    scores = {"bad": 0.0, "ok": 0.75, "good": 0.9, "best": 1.0}
    new = on_policy(records, lambda _: tries, lambda answer, *_: scores[answer], num_tries=3)
    assert [record.messages[-1].content for record in new] == ["best", "ok"]


def test_what_cannot_be_asked_keeps_what_was_recorded():
    call = Message("assistant", tool_calls=({"name": "f", "arguments": {}},))
    records = [
        Text("plain"),
        Conversation((Message("user", "q"), call)),
        chat("q", "a", tools=({"name": "f"},)),
        Conversation((Message("user", "q"), Message("assistant", "a", trained=False))),
    ]
    assert on_policy(records, lambda prompts: pytest.fail("asked"), contains) == records
