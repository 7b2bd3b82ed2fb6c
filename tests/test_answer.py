"""A question's way through the knowledge base, with real entries, rules, frames, checks and cache, and a generator that
is told what to say."""

import threading
import time
from dataclasses import replace

import pytest
from knowledge_parts import ASKED, LAMP, TEA, TOLD, count, knowledge_of, prepared_for, said

from evergreen.knowledge.answer import Ask
from evergreen.knowledge.cache import Cache
from evergreen.knowledge.store import utc_now
from evergreen.records import BadInput, Failure, Sampling

GREEDY = Sampling()
NEVER = "no second try was wanted"


def never(_):
    raise AssertionError(NEVER)


def finished(knowledge, answer, again=never, question=ASKED, /, **ask):
    return knowledge.finish(prepared_for(knowledge, question, **ask), answer, again, count)


# -- before the answer


def test_the_turn_is_the_block_and_the_question_and_names_the_change_it_saw(tmp_path):
    knowledge = knowledge_of(tmp_path, LAMP, TEA)
    prepared = prepared_for(knowledge)
    assert prepared.is_injected and prepared.n == 2 and [one.id for one in prepared.sources] == ["lamp"]
    assert prepared.text.startswith("[Latest knowledge]\n[1] (2026-10-02 example.com) Nordlys Q7: ")
    assert prepared.text.endswith(ASKED) and prepared.reasons and 0 < prepared.seconds < 60


def test_a_chinese_question_gets_the_chinese_frame(tmp_path):
    prepared = prepared_for(knowledge_of(tmp_path, LAMP, TEA), "云岭茶的产地在哪里?")
    assert prepared.language == "zh" and prepared.text.startswith("[最新知识]\n[1] (2026-11-07 example.org) 云岭茶:")


@pytest.mark.parametrize(("question", "mode"), [("Write a poem about rain", "auto"), (ASKED, "off")])
def test_what_knowledge_is_not_for_stays_as_it_was_with_the_reason(tmp_path, question, mode):
    prepared = prepared_for(knowledge_of(tmp_path, LAMP), question, mode=mode)
    assert (prepared.decision, prepared.text, prepared.sources) == ("skip", question, ()) and prepared.reasons


def test_a_search_that_is_late_costs_the_sources_and_not_the_answer(tmp_path):
    knowledge, hold = knowledge_of(tmp_path, LAMP, retrieval_timeout=0.05), threading.Event()
    assert prepared_for(knowledge).is_injected
    knowledge.retriever.trouble = hold.wait
    prepared = prepared_for(knowledge)
    assert (prepared.decision, prepared.text, prepared.n) == ("late", ASKED, None) and "0.05 s" in prepared.reasons[0]
    hold.set()
    knowledge.retriever.trouble = None
    assert prepared_for(knowledge).is_injected


def test_the_search_runs_while_the_caller_does_something_else(tmp_path):
    knowledge, searched = knowledge_of(tmp_path, LAMP, retrieval_timeout=30.0), threading.Event()
    prepared_for(knowledge)
    knowledge.retriever.trouble = searched.set
    looking = knowledge.look(ASKED, Ask())
    assert searched.wait(30), "it waits for `prepare`"
    assert knowledge.prepare(looking, count).is_injected


def test_a_search_that_fails_is_said_once_and_costs_no_answer(tmp_path):
    def fail():
        raise Failure("Milvus cannot be reached")

    said.clear()
    knowledge = knowledge_of(tmp_path, LAMP)
    knowledge.retriever.trouble = fail
    for _ in range(3):
        assert "Milvus cannot be reached" in prepared_for(knowledge).reasons[0]
    assert len(said) == 1
    knowledge.retriever.trouble = None
    assert prepared_for(knowledge).is_injected


def test_a_date_that_is_none_is_the_callers_mistake(tmp_path):
    with pytest.raises(BadInput, match="as_of"):
        prepared_for(knowledge_of(tmp_path, LAMP), as_of="next week")


def test_a_release_whose_snapshot_is_gone_answers_without_and_says_so(tmp_path):
    prepared = prepared_for(knowledge_of(tmp_path, LAMP), knowledge="7")
    assert prepared.decision == "late" and "no snapshot 7" in prepared.reasons[0]


# -- which state


def test_a_date_brings_back_what_held_then_and_a_pinned_release_bounds_it(tmp_path):
    knowledge = knowledge_of(tmp_path, LAMP)
    time.sleep(0.002)
    before = utc_now()
    time.sleep(0.002)
    knowledge.store.publish()
    knowledge.store.update("lamp", content="The Nordlys Q7 lamp costs 50 dollars.")
    now = utc_now()
    assert "50 dollars" in prepared_for(knowledge).text and "42 dollars" in prepared_for(knowledge, as_of=before).text
    assert "42 dollars" in prepared_for(knowledge, knowledge="1").text
    assert "42 dollars" in prepared_for(knowledge, knowledge="1", as_of=now).text


def test_tags_narrow_the_search(tmp_path):
    knowledge = knowledge_of(tmp_path, replace(LAMP, tags=("light", "new")), TEA)
    assert prepared_for(knowledge, tags=("light",)).is_injected
    assert not prepared_for(knowledge, tags=("tea",)).is_injected


def test_the_change_that_was_seen_finds_the_same_entries_again(tmp_path):
    knowledge = knowledge_of(tmp_path, LAMP, TEA)
    prepared = prepared_for(knowledge)
    knowledge.store.update("lamp", content="The Nordlys Q7 lamp costs 50 dollars.")
    again = knowledge.retriever.search(ASKED, 5, prepared.n, prepared.when)
    assert [(hit.row.entry.id, hit.row.entry.version) for hit in again][:1] == [("lamp", "1.0.0")]


# -- after the answer


def test_a_good_answer_is_given_out_with_what_it_cites(tmp_path):
    done = finished(knowledge_of(tmp_path, LAMP), TOLD)
    assert (done.text, done.outcome) == (TOLD, "checked") and [one.id for one in done.cited] == ["lamp"]


def test_a_wrong_answer_is_tried_once_more_and_the_second_is_given_out(tmp_path):
    tries = []

    def again(second):
        tries.append(second)
        return TOLD

    done = finished(knowledge_of(tmp_path, LAMP), "The Nordlys Q7 lamp costs 99 dollars [1].", again)
    assert (done.text, done.outcome, len(tries)) == (TOLD, "second", 1)
    assert "99" in done.problems[0].reason and tries[0].is_same_prompt


def test_two_wrong_answers_become_an_abstention_that_still_lists_the_sources(tmp_path):
    done = finished(knowledge_of(tmp_path, LAMP), "It costs 99 dollars [1].", lambda _: "It costs 98 dollars [1].")
    assert (done.text, done.outcome) == ("I cannot answer from the information given.", "abstained")
    assert [one.id for one in done.prepared.sources] == ["lamp"] and not done.cited


def test_the_abstention_is_in_the_questions_language(tmp_path):
    done = finished(
        knowledge_of(tmp_path, TEA), "产地是北京市[1]。", lambda _: "产地是上海市[1]。", "云岭茶的产地在哪里?"
    )
    assert done.text == "根据现有信息无法回答。"


def test_a_second_try_sees_only_the_sources_that_the_first_one_named(tmp_path):
    lamps = [replace(LAMP, id=f"lamp{i}", content=f"The Nordlys Q{i} lamp costs {40 + i} dollars.") for i in range(3)]
    knowledge = knowledge_of(tmp_path, *lamps)
    prepared = prepared_for(knowledge, "How much does the Nordlys Q1 lamp cost?")
    number = next(one.number for one in prepared.sources if one.id == "lamp1")
    shown = []

    def again(second):
        shown.extend(second.sources)
        return "The Nordlys Q1 lamp costs 41 dollars [1]."

    done = knowledge.finish(prepared, f"The Nordlys Q1 lamp costs 99 dollars [{number}].", again, count)
    assert [one.id for one in shown] == ["lamp1"] and done.outcome == "second"


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.withdraw(["lamp"]),
        lambda store: store.redact(["lamp"]),
        lambda store: store.update("lamp", content="The Nordlys Q7 lamp costs 50 dollars."),
        lambda store: store.update("lamp", valid_until="2026-01-01", valid_from="2025-01-01"),
    ],
)
def test_what_changes_while_the_answer_is_made_is_not_given_out(tmp_path, change):
    knowledge = knowledge_of(tmp_path, LAMP)
    prepared = prepared_for(knowledge)
    change(knowledge.store)
    done = knowledge.finish(prepared, TOLD, lambda second: "I cannot say.", count)
    assert done.outcome != "checked" and "withdrawn" in done.problems[0].reason and "42" not in done.text


def test_an_answer_without_sources_is_not_touched(tmp_path):
    done = finished(knowledge_of(tmp_path, LAMP), "Rain, rain [7].", never, "Write a poem about rain")
    assert (done.text, done.outcome) == ("Rain, rain [7].", "unchecked")


# -- the cache


def cached(knowledge, /, sampling=GREEDY, release="r", history=(), question=ASKED, **ask):
    """What the cache has for the question as it stands now."""
    prepared = prepared_for(knowledge, question, **ask)
    key = knowledge.key(prepared, history, release, [], sampling)
    return key, knowledge.cached(key)


def test_an_answer_is_found_again_until_an_entry_under_it_changes(tmp_path):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"))
    key, value = cached(knowledge)
    assert value is None and knowledge.keep(key, TOLD, [], {"a": 1})
    assert cached(knowledge)[1].text == TOLD
    knowledge.write(lambda store: store.add([TEA]), lambda rows: [row.entry.id for row in rows])
    assert cached(knowledge)[1].text == TOLD, "an entry that the question does not find changes nothing"
    knowledge.write(
        lambda store: store.update("lamp", content="The Nordlys Q7 lamp costs 50 dollars."), lambda _: ["lamp"]
    )
    assert cached(knowledge)[1] is None


def test_a_withdrawn_entrys_answer_is_gone_and_a_late_answer_does_not_bring_it_back(tmp_path):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"))
    key, _ = cached(knowledge)
    knowledge.write(lambda store: store.withdraw(["lamp"]), lambda _: ["lamp"])
    assert not knowledge.keep(key, TOLD, [], {}) and knowledge.cached(key) is None


@pytest.mark.parametrize("other", [
    {"release": "another"}, {"history": ["before"]}, {"sampling": Sampling(max_new_tokens=3)}, {"mode": "off"},
    {"question": "How much does the Nordlys Q8 lamp cost?"},
])  # fmt: skip
def test_what_may_change_the_answer_is_another_key(tmp_path, other):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"))
    key, _ = cached(knowledge)
    assert knowledge.keep(key, TOLD, [], {}) and cached(knowledge, **other)[1] is None


def test_an_answer_that_passed_another_check_is_not_given_again(tmp_path, monkeypatch):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"))
    key, _ = cached(knowledge)
    assert knowledge.keep(key, TOLD, [], {}) and cached(knowledge)[1]
    monkeypatch.setattr("evergreen.knowledge.cite.VERSION", "another")
    assert cached(knowledge)[1] is None


def test_a_value_of_another_thing_than_was_asked_about_is_withheld(tmp_path):
    asked = "How much does the Nordlys Q8 lamp cost?"
    done = finished(knowledge_of(tmp_path, LAMP), "42 dollars [1].", lambda second: "42 dollars [1].", asked)
    assert done.outcome == "abstained" and "Q8" in done.problems[0].reason


def test_a_drawn_answer_is_kept_only_with_a_seed(tmp_path):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"))
    for seed, is_kept in ((None, False), (7, True)):
        key, _ = cached(knowledge, Sampling(temperature=1.0, seed=seed))
        assert knowledge.keep(key, TOLD, [], {}) is is_kept


def test_without_a_time_to_live_nothing_is_remembered(tmp_path):
    knowledge = knowledge_of(tmp_path / "k", LAMP, cache=Cache(tmp_path / "c"), cache_seconds=0)
    assert knowledge.key(prepared_for(knowledge), (), "r", [], Sampling()) is None
