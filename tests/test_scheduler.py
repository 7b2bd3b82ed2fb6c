"""The scheduler and its blocks: under any order of events no block is lost and none serves the wrong tokens."""

import ctypes
import random
import threading
from types import SimpleNamespace

import pytest
from fake_runner import EOS, HashRunner, fake_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from evergreen.engine.base import Request
from evergreen.engine.block_manager import BlockManager, root_key
from evergreen.engine.scheduler import Scheduler
from evergreen.engine.sequence import Sequence
from evergreen.records import BadInput, Sampling

BLOCK = 4


def sequence(ids: list[int], root: str = "", priority: int = 0, id: str = "") -> Sequence:
    request = SimpleNamespace(id=id, priority=priority, sampling=Sampling())
    return Sequence(request, list(ids), 99, None, random.Random(0), 0.0, root=root_key("model", root))


def scheduler(num_blocks: int = 32, max_num_seqs: int = 8, max_num_batched_tokens: int = 16) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, BLOCK), max_num_seqs, max_num_batched_tokens)


def step(one: Scheduler) -> list[tuple[str, int, int]]:
    """Schedule, and let each whose tokens are all computed say 7."""
    chunks = one.schedule()
    told = [(chunk.sequence.request.id, chunk.start, chunk.num_tokens) for chunk in chunks]
    for chunk in chunks:
        if chunk.is_last:
            chunk.sequence.ids.append(7)
    return told


def request(id: str, prompt: list[int], priority: int = 0, tenant: str = "", adapter: str = "", **how) -> Request:
    sampling = Sampling(**{"max_new_tokens": 8, "ignore_eos": True} | how)
    return Request(id, tuple(prompt), sampling, adapter, tenant, priority)


def run(engine) -> dict[str, list[int]]:
    """Everything to its end: the tokens of each request."""
    tokens: dict[str, list[int]] = {}
    for _ in range(10_000):
        if not engine.has_work():
            return tokens
        for output in engine.step():
            tokens.setdefault(output.id, []).extend(output.token_ids)
    raise AssertionError("it does not come to an end")


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_a_prompt_finds_the_full_blocks_of_an_equal_beginning_and_computes_its_last_token():
    blocks = BlockManager(16, BLOCK)
    first, second = sequence(range(12)), sequence(range(12))
    blocks.start(first)
    first.num_computed_tokens = 12
    blocks.publish(first)
    blocks.start(second)
    assert second.num_computed_tokens == 8 and second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]


def test_freed_blocks_are_found_again_and_go_in_the_order_of_their_last_use_ends_first():
    blocks = BlockManager(6, BLOCK)
    old, new = sequence(range(8)), sequence(range(100, 108))
    for one in (old, new):
        blocks.start(one)
        one.num_computed_tokens = 8
        blocks.publish(one)
    tables = old.block_table + new.block_table
    blocks.free(old)
    blocks.free(new)
    other = sequence(range(200, 212))  # takes the two empty blocks and one more: the end of the old one
    blocks.start(other)
    assert tables[1] in other.block_table and not {tables[0], *tables[2:]} & set(other.block_table)
    again = sequence([*range(100, 108), 1])
    blocks.start(again)
    assert again.num_computed_tokens == 8


def test_another_root_or_another_token_before_finds_nothing():
    blocks = BlockManager(16, BLOCK)
    first = sequence(range(12))
    blocks.start(first)
    first.num_computed_tokens = 12
    blocks.publish(first)
    for other in (sequence(range(12), root="adapter"), sequence([99, *range(1, 12)])):
        blocks.start(other)
        assert other.num_computed_tokens == 0


def test_roots_differ_when_names_only_joined_are_equal():
    assert root_key("a", "bc") != root_key("ab", "c") != root_key("abc", "")


def test_equal_keys_with_other_tokens_are_no_hit(monkeypatch):
    monkeypatch.setattr("evergreen.engine.block_manager.blake2b", lambda *_, **__: SimpleNamespace(digest=lambda: b"k"))
    blocks = BlockManager(16, BLOCK)
    first, second = sequence(range(6)), sequence(range(10, 16))
    blocks.start(first)
    first.num_computed_tokens = 6
    blocks.publish(first)
    blocks.start(second)
    assert second.num_computed_tokens == 0


def check_blocks(blocks: BlockManager, sequences: list[Sequence]) -> None:
    users: dict[int, list[Sequence]] = {}
    for one in sequences:
        assert len(set(one.block_table)) == len(one.block_table)
        for block in one.block_table:
            users.setdefault(block, []).append(one)
    assert len(users) + blocks.num_free_blocks == blocks.num_blocks and not set(users) & set(blocks._free)
    assert all(blocks._num_users[block] == len(users.get(block, [])) for block in range(blocks.num_blocks))
    assert sorted(blocks._by_key.values()) == sorted(blocks._contents)
    for block, sharers in users.items():
        ends = {(one.root, tuple(one.ids[: (one.block_table.index(block) + 1) * BLOCK])) for one in sharers}
        assert len(sharers) == 1 or len(ends) == 1, "shared by sequences of different beginnings"


EVENT = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 30), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("preempt"), st.integers(0, 30)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=60), st.integers(8, 20))
def test_no_block_is_lost_or_shared_wrongly_whatever_happens(events, num_blocks):
    one = scheduler(num_blocks)
    alive: list[Sequence] = []
    for what, *how in events:
        if what == "add":
            start, length, root, priority = how
            alive.append(sequence([*range(start, start + length)], str(root), priority))
            one.add(alive[-1])
        elif what == "step":
            chunks = one.schedule()
            assert sum(chunk.num_tokens for chunk in chunks) <= one.max_num_batched_tokens
            assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
            for chunk in chunks:
                assert chunk.sequence in one.running
                assert len(chunk.sequence.block_table) * BLOCK >= chunk.start + chunk.num_tokens
                if chunk.is_last and len(chunk.sequence.ids) < num_blocks * BLOCK:
                    chunk.sequence.ids.append(7)
                elif chunk.is_last:
                    one.remove(chunk.sequence)
                    alive.remove(chunk.sequence)
        elif what == "end" and alive:
            one.remove(alive.pop(how[0] % len(alive)))
        elif what == "preempt" and one.running:
            one.preempt(one.running[how[0] % len(one.running)])
        assert sorted(map(id, one.running + one.waiting)) == sorted(map(id, alive))
        assert [x.order for x in one.running] == sorted(x.order for x in one.running)
        assert [x.order for x in one.waiting] == sorted(x.order for x in one.waiting)
        check_blocks(one.blocks, alive)
    for rest in alive:
        one.remove(rest)
    assert one.blocks.num_free_blocks == num_blocks


REQUEST = st.tuples(
    st.integers(0, 2),  # which text
    st.integers(1, 40),  # how much of it
    st.integers(1, 12),  # tokens of the answer
    st.integers(0, 2),  # priority
    st.sampled_from(["", "t"]),
    st.sampled_from(["", "a"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(REQUEST, st.none(), st.integers(0, 9)), min_size=1, max_size=25), st.booleans())
def test_every_request_is_answered_as_alone_whatever_else_runs(events, is_caching):
    """Requests come (tuples), steps go (None) and some are cancelled (numbers) over few blocks and few seats."""
    runner = HashRunner(14, BLOCK)
    runner.adapters.slots["a"] = 1
    engine = fake_engine(runner, max_num_seqs=4, max_num_batched_tokens=12, prefix_caching=is_caching)
    wanted, tokens, cancelled = {}, {}, set()
    for number, event in enumerate([*events, *[None] * 10_000]):
        if isinstance(event, tuple):
            text, length, count, priority, tenant, adapter = event
            prompt, id = [(text * 50 + place) % 250 for place in range(length)], str(number)
            engine.add(request(id, prompt, priority, tenant, adapter, max_new_tokens=count))
            wanted[id] = runner.answer(prompt, count, slot=int(bool(adapter)))
        elif event is not None and wanted:
            id = list(wanted)[event % len(wanted)]
            cancelled.add(id)
            engine.cancel(id)
        elif engine.has_work():
            for output in engine.step():
                assert not output.error
                tokens.setdefault(output.id, []).extend(output.token_ids)
        elif number >= len(events):
            break
    assert not engine.has_work() and engine.stats().num_free_blocks == runner.num_blocks
    for id, answer in wanted.items():
        made = tokens.get(id, [])
        assert made == answer[: len(made)] and (len(made) == len(answer) or id in cancelled)


# --- who runs when --------------------------------------------------------------------------------------------------


def test_answers_go_on_in_every_step_while_a_long_prompt_is_computed_in_chunks():
    one = scheduler(num_blocks=64)
    one.add(sequence([1] * 3, id="short"))
    step(one)
    one.add(sequence(range(60), id="long"))
    steps = [step(one) for _ in range(5)]
    assert all(("short", 3 + place, 1) in told for place, told in enumerate(steps))
    assert [told[1] for told in steps] == [
        ("long", 0, 15), ("long", 15, 15), ("long", 30, 15), ("long", 45, 15), ("long", 60, 1)
    ]  # fmt: skip


def test_prompts_go_on_beside_as_many_answers_as_there_are_seats():
    one = scheduler(num_blocks=200, max_num_seqs=8, max_num_batched_tokens=12)
    for number in range(7):
        one.add(sequence([number], id=f"answer {number}"))
    step(one)
    one.add(sequence(range(100, 120), id="prompt"))
    told = step(one)
    assert len(told) == 8 and told[-1] == ("prompt", 0, 5)


def test_settings_that_leave_no_block_for_prompts_are_refused_with_the_numbers():
    with pytest.raises(BadInput, match="16.*14.*18"):
        scheduler(max_num_seqs=14, max_num_batched_tokens=16)


def test_lower_priority_numbers_start_first_then_who_came_first():
    one = scheduler(max_num_seqs=2, max_num_batched_tokens=6)
    for id, priority in (("a", 1), ("b", 1), ("c", 0)):
        one.add(sequence([1, 2], priority=priority, id=id))
    assert [id for id, *_ in step(one)] == ["c", "a"]


def test_the_newest_of_the_worst_priority_gives_its_blocks_back():
    one = scheduler(num_blocks=6)
    for id, priority in (("old", 1), ("new", 1), ("best", 0)):
        one.add(sequence(range(10 * len(id), 10 * len(id) + 8), priority=priority, id=id))
    step(one)  # 16 tokens: best and old, both blocks each full
    step(one)  # each wants a third block
    assert [x.request.id for x in one.running] == ["best", "old"] and one.num_preemptions == 0
    for _ in range(4):
        step(one)
    assert [x.request.id for x in one.running] == ["best"] and one.num_preemptions == 1
    assert [x.request.id for x in one.waiting] == ["old", "new"]


def test_a_better_request_takes_the_seat_of_a_worse_one_and_an_equal_one_waits():
    one = scheduler(max_num_seqs=1, max_num_batched_tokens=8)
    one.add(sequence([1, 2, 3], priority=5, id="worse"))
    step(one)
    one.add(sequence([4, 5], priority=5, id="equal"))
    assert [id for id, *_ in step(one)] == ["worse"]
    one.add(sequence([6, 7], priority=0, id="better"))
    assert [id for id, *_ in step(one)] == ["better"]
    assert [x.request.id for x in one.waiting] == ["worse", "equal"]


def test_nobody_overtakes_one_that_waits_for_memory():
    one = scheduler(num_blocks=6)
    one.add(sequence(range(8), id="runs"))
    step(one)
    one.add(sequence(range(100, 117), id="big"))
    one.add(sequence([5], id="small"))
    assert [id for id, *_ in step(one)] == ["runs"]
    one.remove(one.running[0])
    assert [id for id, *_ in step(one)][0] == "big"


def test_equal_prompts_that_come_together_are_computed_once():
    runner = HashRunner()
    engine = fake_engine(runner, max_num_batched_tokens=128)
    prompt = list(range(41))
    for number in range(3):
        engine.add(request(str(number), prompt, max_new_tokens=1))
    tokens = run(engine)
    assert len(runner.batches) == 1 and runner.num_tokens == 41 + 1 + 1
    assert set(map(tuple, tokens.values())) == {tuple(runner.answer(prompt, 1))}


def test_equal_prompts_longer_than_a_pass_are_computed_once_too():
    runner = HashRunner()
    engine = fake_engine(runner, max_num_seqs=4, max_num_batched_tokens=10)
    prompt = list(range(41))
    for number in range(3):
        engine.add(request(str(number), prompt, max_new_tokens=1))
    run(engine)
    assert runner.num_tokens == 41 + 1 + 1


def test_a_request_that_can_never_fit_is_refused_with_both_numbers():
    engine = fake_engine(HashRunner(5, BLOCK))
    with pytest.raises(BadInput, match="20.*holds 20"):
        engine.add(request("a", [1] * 20))


# --- errors of one --------------------------------------------------------------------------------------------------


def test_a_request_that_cannot_be_computed_gets_the_error_and_the_others_go_on():
    runner = HashRunner()
    runner.broken = lambda chunk: 66 in chunk.sequence.ids[chunk.start : chunk.start + chunk.num_tokens]
    engine = fake_engine(runner)
    prompts = {"a": [1, 2, 3], "b": [4, 66, 5], "c": [1, 2, 9], "d": [6]}
    for id, prompt in prompts.items():
        engine.add(request(id, prompt, logit_bias=((66, -100.0),)))
    outputs = [output for _ in range(20) if engine.has_work() for output in engine.step()]
    assert [(output.id, "cannot be computed" in output.error) for output in outputs if output.error] == [("b", True)]
    for id in "acd":
        made = [token for output in outputs if output.id == id for token in output.token_ids]
        assert len(made) == 8
    assert engine.stats().num_free_blocks == runner.num_blocks


def test_whoever_shared_blocks_of_a_failed_request_is_computed_again():
    runner = HashRunner(block_size=4)
    runner.broken = lambda chunk: chunk.sequence.request.id == "bad"
    engine = fake_engine(runner)
    prompt = list(range(30))
    engine.add(request("bad", prompt))
    engine.add(request("good", prompt))
    tokens = run(engine)
    assert tokens == {"bad": [], "good": runner.answer(prompt, 8)}


def test_a_cancelled_request_says_so_and_frees_its_blocks():
    runner = HashRunner()
    engine = fake_engine(runner)
    engine.add(request("a", [1, 2, 3]))
    engine.step()
    engine.cancel("a")
    engine.cancel("never heard of")
    [last] = engine.step()
    assert last.completion.finish_reason == "cancelled" and not engine.has_work()
    assert engine.stats().num_free_blocks == runner.num_blocks


def test_an_adapter_is_unloaded_when_its_last_request_has_ended():
    runner = HashRunner()
    engine = fake_engine(runner)
    engine.load_adapter("x", [])
    engine.add(request("a", [1, 2, 3], adapter="x", max_new_tokens=3))
    engine.step()
    engine.unload_adapter("x")
    with pytest.raises(BadInput, match="unloaded"):
        engine.add(request("b", [1], adapter="x"))
    assert engine.stats().adapters == ("x",)
    assert run(engine)["a"] == runner.answer([1, 2, 3], 3, slot=1)[1:]
    assert engine.stats().adapters == ()
    with pytest.raises(BadInput, match="not loaded"):
        engine.unload_adapter("x")


def test_an_adapter_that_comes_back_before_it_has_left_stays_and_its_unloading_is_answered():
    engine, told = fake_engine(HashRunner()), []
    engine.load_adapter("x", [])
    engine.add(request("a", [1, 2, 3], adapter="x", max_new_tokens=3))
    engine.step()
    engine.unload_adapter("x", lambda: told.append("x"))
    with pytest.raises(BadInput, match="being unloaded"):
        engine.unload_adapter("x")
    assert not told
    engine.load_adapter("x", [])
    assert told == ["x"]
    run(engine)
    assert engine.stats().adapters == ("x",)
    engine.unload_adapter("x", lambda: told.append("again"))
    assert told == ["x", "again"] and engine.stats().adapters == ()


class AnyText:
    """A compiled grammar that allows everything."""

    def deep_copy(self):
        return self

    def unsafe_compute_mask_ptr(self, address: int, num_bytes: int) -> None:
        ctypes.memset(address, 0xFF, num_bytes)

    def consume_token(self, token: int) -> None:
        pass

    def is_error(self) -> bool:
        return False

    is_stopped = is_error


def test_a_grammar_that_takes_long_to_compile_holds_up_nobody_else():
    engine, may_go_on = fake_engine(HashRunner()), threading.Event()

    def compile_slowly(grammar):
        assert may_go_on.wait(30)
        if grammar == "regex:wrong":
            raise BadInput("no such form")
        return AnyText()

    engine.grammars._compile = compile_slowly
    engine.add(request("slow", [1, 2], max_new_tokens=2, grammar="regex:a"))
    engine.add(request("cancelled", [1, 2], max_new_tokens=2, grammar="regex:a"))
    engine.add(request("wrong", [1, 2], max_new_tokens=2, grammar="regex:wrong"))
    engine.add(request("plain", [5, 6], max_new_tokens=3))
    ended = {}
    while "plain" not in ended:
        ended |= {output.id: output for output in engine.step() if output.is_last}
    engine.cancel("cancelled")
    [output] = engine.step()
    assert output.completion.finish_reason == "cancelled" and [*ended] == ["plain"]
    assert engine.stats().num_waiting == 2
    may_go_on.set()
    while engine.has_work():
        ended |= {output.id: output for output in engine.step() if output.is_last}
    assert ended["slow"].completion.completion_tokens == 2
    assert ended["wrong"].is_refused and ended["wrong"].error == "no such form"
    assert engine.stats().num_free_blocks == engine.runner.num_blocks


def test_what_no_request_can_ask_is_refused():
    engine = fake_engine(HashRunner())
    engine.add(request("a", [1]))
    for wrong, words in (
        (request("a", [1]), "unique"),
        (request("b", [1, 260]), "260"),
        (request("b", [-1]), "-1"),
        (request("b", [1], adapter="none"), "not loaded"),
        (request("b", [1], temperature=float("nan")), "temperature"),
        (request("b", [1], top_p=0.0), "top_p"),
        (request("b", [1], logit_bias=((999, 1.0),)), "999"),
        (request("b", [1], stop_token_ids=(-5,)), "-5"),
        (request("b", [1], max_new_tokens=0), "max_new_tokens"),
    ):
        with pytest.raises(BadInput, match=words):
            engine.add(wrong)


def test_counts_tell_of_prompts_answers_and_what_the_cache_saved():
    engine = fake_engine(HashRunner())
    for id in "ab":
        engine.add(request(id, list(range(9)), max_new_tokens=2))
    run(engine)
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_cached_tokens, stats.num_generated_tokens) == (18, 8, 4)
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, 64)


def test_end_tokens_end_an_answer_and_ignore_eos_does_not():
    runner = HashRunner()
    runner.scores = lambda cell: torch_row(EOS)
    for ignore, length in ((False, 1), (True, 8)):
        engine = fake_engine(runner)
        engine.add(request("a", [1, 2], ignore_eos=ignore))
        assert len(run(engine)["a"]) == length


def torch_row(token: int):
    import torch

    return torch.nn.functional.one_hot(torch.tensor(token), 260) * 9.0
