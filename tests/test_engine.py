"""The engine against transformers' own generate, and against itself: batched = alone, streamed = whole."""

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_runner import EOS, Bytes, HashRunner, Parrot, fake_engine
from transformers import Qwen2Config, Qwen2ForCausalLM

from evergreen.engine.answer import Answer
from evergreen.engine.base import EngineSettings, Request
from evergreen.engine.engine import Engine
from evergreen.engine.vocabulary import Vocabulary
from evergreen.records import BadInput, Failure, Sampling


def tiny_config(**changes) -> Qwen2Config:
    shape = dict(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return Qwen2Config(**(shape | changes))


def tiny_engine(settings: EngineSettings | None = None, **changes) -> Engine:
    """A random fp32 model; its weights are spread so that answers vary with the prompt."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(tiny_config(initializer_range=0.3, **changes)).eval()
    return Engine(SimpleNamespace(model=model, tokenizer=Bytes(), system=None, name="tiny"), settings)


def parrot(line: str) -> Engine:
    return fake_engine(Parrot(line), context=256)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(1, 255, (length,)).tolist() for length in (3, 40, 1, 17, 9, 25, 2)]


def joined(pieces: list, is_thought: bool) -> str:
    return "".join(piece for piece in pieces if piece.is_thought is is_thought)


def spell(text: str, **how) -> tuple[Answer, list]:
    """An answer built byte by byte."""
    answer, pieces = Answer(Vocabulary(Bytes()).characters(), **how), []
    for token in text.encode():
        pieces += answer.add(token)
    return answer, pieces + answer.close()


# --- generation -----------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers_generate(engine, prompts):
    ours = engine.generate(prompts, Sampling(max_new_tokens=20), batch_size=3)
    for prompt, completion in zip(prompts, ours, strict=True):
        theirs = engine.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
        assert completion.completion_tokens == len(theirs)
        assert completion.text == engine.tokenizer.decode(theirs.tolist()).rstrip("\ufffd")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=24, repetition_penalty=1.3),
        Sampling(max_new_tokens=24, presence_penalty=1.0, frequency_penalty=0.5),
        Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, top_k=50, seed=3),
        Sampling(max_new_tokens=24, temperature=1.0, seed=-4),
    ],
)
def test_a_prompt_in_a_batch_is_answered_as_alone(engine, prompts, sampling):
    together = engine.generate(prompts, sampling, batch_size=4)
    for index, prompt in enumerate(prompts):
        seed = None if sampling.seed is None else sampling.seed + index
        (alone,) = engine.generate([prompt], Sampling(**{**vars(sampling), "seed": seed}))
        assert alone.text == together[index].text


def test_rows_that_end_early_leave_the_others_untouched(engine, prompts):
    free = [completion.text for completion in engine.generate(prompts, Sampling(max_new_tokens=30))]
    mark = next(mark for mark in free[1] if mark.isprintable() and 0 < sum(mark in text for text in free) < len(free))
    stopped = [completion.text for completion in engine.generate(prompts, Sampling(max_new_tokens=30, stop=(mark,)))]
    assert stopped == [text.partition(mark)[0] for text in free]


def test_repetition_penalty_and_sampling_filters_equal_transformers(engine, prompts):
    how = dict(max_new_tokens=16, do_sample=False, repetition_penalty=1.4)
    theirs = engine.model.generate(torch.tensor([prompts[1]]), **how)
    (ours,) = engine.generate([prompts[1]], Sampling(max_new_tokens=16, repetition_penalty=1.4))
    assert ours.text == engine.tokenizer.decode(theirs[0, len(prompts[1]) :].tolist()).rstrip("\ufffd")
    (greedy,) = engine.generate([prompts[1]], Sampling(max_new_tokens=16))
    (narrow,) = engine.generate([prompts[1]], Sampling(max_new_tokens=16, temperature=5.0, top_k=1))
    assert narrow.text == greedy.text


def test_every_answer_is_reported_once_and_in_its_place(engine, prompts):
    heard = {}
    completions = engine.generate(prompts, Sampling(max_new_tokens=5), batch_size=2, on_done=heard.__setitem__)
    assert [heard[index] for index in range(len(prompts))] == completions
    assert all(completion.latency_seconds >= completion.first_token_seconds > 0 for completion in completions)
    assert [completion.prompt_tokens for completion in completions] == [len(prompt) for prompt in prompts]


def test_no_prompts_give_no_answers(engine):
    assert engine.generate([], Sampling()) == []


def test_a_seed_repeats_and_another_seed_differs(engine, prompts):
    def draw(seed):
        return [c.text for c in engine.generate(prompts[:2], Sampling(temperature=1.0, seed=seed, max_new_tokens=30))]

    assert draw(7) == draw(7) != draw(8)


def test_equal_prompts_of_one_call_are_drawn_differently(engine, prompts):
    first, second = engine.generate([prompts[1]] * 2, Sampling(temperature=1.0, seed=7, max_new_tokens=30))
    assert first.text != second.text


def test_a_prompt_beyond_the_context_is_bad_input_with_both_numbers(engine):
    with pytest.raises(BadInput, match="300.*256"):
        engine.generate([[1] * 300], Sampling())
    with pytest.raises(BadInput, match="300.*256"):
        engine.stream([1] * 300, Sampling())


def test_an_empty_prompt_is_bad_input(engine):
    with pytest.raises(BadInput, match="0 tokens"):
        engine.generate([[]], Sampling())


def test_the_answer_is_cut_to_what_the_context_leaves(engine):
    (completion,) = engine.generate([[1] * 250], Sampling(max_new_tokens=100))
    assert (completion.completion_tokens, completion.finish_reason) == (6, "length")


def test_scores_that_are_not_numbers_are_a_failure_with_advice():
    engine = tiny_engine()
    engine.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(Failure, match="torch_dtype"):
        engine.generate([[1, 2]], Sampling())
    assert not engine.has_work() and engine.stats().num_free_blocks == engine.stats().num_blocks


# --- many requests --------------------------------------------------------------------------------------------------


def finished(engine: Engine) -> dict:
    """The completion of every request, or its error."""
    done = {}
    while engine.has_work():
        done |= {output.id: output.completion or output.error for output in engine.step() if output.is_last}
    return done


MIX = [
    Sampling(max_new_tokens=20),
    Sampling(max_new_tokens=25, temperature=1.1, seed=5, top_p=0.9),
    Sampling(max_new_tokens=30, repetition_penalty=1.2),
    Sampling(max_new_tokens=15, temperature=0.7, seed=9, min_p=0.02, frequency_penalty=0.3),
]


def mixed(prompts: list[list[int]]) -> list[Request]:
    """Prompts of which some begin alike, in every kind of sampling."""
    long = prompts[1] + prompts[5] + prompts[3]
    all_prompts = [*prompts, long, long[:50] + prompts[4], long[:50] + prompts[0], long]
    return [Request(str(n), tuple(prompt), MIX[n % len(MIX)]) for n, prompt in enumerate(all_prompts)]


@pytest.mark.parametrize(
    "settings",
    [
        EngineSettings(),
        EngineSettings(prefix_caching=False),
        EngineSettings(max_num_seqs=4, max_num_batched_tokens=20),  # prompts in small chunks
        EngineSettings(block_size=4, max_num_seqs=6, max_num_batched_tokens=24),
        EngineSettings(kv_cache_bytes=36_864),  # 9 blocks: answers push each other out and are computed again
    ],
    ids=["plain", "no cache", "chunks", "small blocks", "preempted"],
)
def test_every_request_of_a_mix_is_answered_as_alone(engine, prompts, settings):
    requests, crowd = mixed(prompts), tiny_engine(settings)
    for request in requests:
        crowd.add(request)
    together = finished(crowd)
    for request in requests:
        (alone,) = engine.generate([request.prompt], [request.sampling])
        assert together[request.id].token_ids == alone.token_ids
    assert crowd.stats().num_free_blocks == crowd.stats().num_blocks
    assert (crowd.stats().num_preemptions > 0) is (settings.kv_cache_bytes > 0)


def test_a_request_that_joins_late_is_answered_as_alone(engine, prompts):
    engine.add(Request("early", tuple(prompts[1]), Sampling(max_new_tokens=30)))
    for _ in range(7):
        engine.step()
    engine.add(Request("late", tuple(prompts[3]), Sampling(max_new_tokens=10)))
    done = finished(engine)
    alone = engine.generate([prompts[1], prompts[3]], [Sampling(max_new_tokens=30), Sampling(max_new_tokens=10)])
    assert [done[id].token_ids for id in ("early", "late")] == [one.token_ids for one in alone]


def test_a_prompt_that_was_asked_before_is_found_in_the_cache(engine):
    prompt = [7] * 100
    first, second = (engine.generate([prompt], Sampling(max_new_tokens=5))[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 96) and first.token_ids == second.token_ids


def test_tenants_do_not_share_a_cache():
    engine = fake_engine(HashRunner())
    for id, tenant in (("a", "one"), ("b", "two"), ("c", "one")):
        engine.add(Request(id, tuple(range(40)), Sampling(max_new_tokens=2), tenant=tenant))
        done = finished(engine)
        assert done[id].num_cached_tokens == (36 if id == "c" else 0)


def test_an_answer_with_logprobs_tells_of_every_token(engine, prompts):
    engine.add(Request("a", tuple(prompts[1]), Sampling(max_new_tokens=6, logprobs=3)))
    outputs = [output for _ in range(10) if engine.has_work() for output in engine.step()]
    told = [logprobs for output in outputs for logprobs in output.logprobs]
    tokens = [token for output in outputs for token in output.token_ids]
    assert [one.chosen.token_id for one in told] == tokens and len(tokens) == 6
    ids = torch.tensor([prompts[1] + tokens])
    with torch.no_grad():
        wanted = engine.model(ids).logits[0, len(prompts[1]) - 1 : -1].log_softmax(-1)
    for row, one in zip(wanted, told, strict=True):
        assert one.chosen.logprob == pytest.approx(float(row[one.chosen.token_id]), abs=1e-4)
        assert [top.token_id for top in one.top] == row.topk(3).indices.tolist()
        assert one.top[0] == one.chosen  # greedy


@pytest.mark.parametrize("settings", [EngineSettings(), EngineSettings(block_size=4, max_num_batched_tokens=80)])
def test_a_prompts_logprobs_are_those_of_transformers(prompts, settings):
    """Beside others, in chunks, after its beginning has been cached, and with no answer asked for."""
    engine = tiny_engine(settings)
    prompt = [5 + place * 7 % 50 for place in range(200)]
    engine.generate([prompt], Sampling(max_new_tokens=2))
    engine.add(Request("a", tuple(prompt), Sampling(max_new_tokens=3, logprobs=0, prompt_logprobs=2)))
    engine.add(Request("b", tuple(prompt[:40]), Sampling(max_new_tokens=0, prompt_logprobs=0)))
    engine.add(Request("c", (7,), Sampling(max_new_tokens=0, prompt_logprobs=0)))
    engine.add(Request("d", tuple(prompts[1]), Sampling(max_new_tokens=6)))
    outputs = [output for _ in range(40) if engine.has_work() for output in engine.step()]
    told = {id: [one for output in outputs if output.id == id for one in output.prompt_logprobs] for id in "abcd"}
    done = {output.id: output.completion for output in outputs if output.completion}
    assert [len(told[id]) for id in "abcd"] == [200, 40, 1, 0]
    assert [done[id].completion_tokens for id in "abcd"] == [3, 0, 0, 6] and done["b"].finish_reason == "length"
    with torch.no_grad():
        wanted = engine.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert told["a"][0].chosen.token_id == prompt[0] and math.isnan(told["a"][0].chosen.logprob)
    for row, token, one in zip(wanted, prompt[1:], told["a"][1:], strict=False):
        assert one.chosen.token_id == token
        assert one.chosen.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [top.logprob for top in one.top] == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
    assert [one.chosen.logprob for one in told["b"][1:]] == pytest.approx(
        [one.chosen.logprob for one in told["a"][1:40]], abs=1e-4
    )


def test_a_prompt_that_is_computed_twice_is_told_once():
    runner = HashRunner(num_blocks=12)
    engine = fake_engine(runner, max_num_seqs=4, max_num_batched_tokens=8)
    engine.add(Request("a", tuple(range(9, 39)), Sampling(max_new_tokens=4, prompt_logprobs=0), priority=1))
    outputs = [*engine.step(), *engine.step()]
    engine.add(Request("b", tuple(range(40)), Sampling(max_new_tokens=4)))
    outputs += [output for _ in range(40) if engine.has_work() for output in engine.step()]
    told = [one.chosen.token_id for output in outputs for one in output.prompt_logprobs]
    assert told == [*range(9, 39)] and engine.stats().num_preemptions


def test_logprobs_of_half_a_character_carry_its_bytes():
    from transformers import AutoTokenizer

    from evergreen.model import find

    tokenizer = AutoTokenizer.from_pretrained(find.NANO)
    vocabulary = Vocabulary(tokenizer)
    halves = [token for token in range(len(tokenizer)) if "\ufffd" in vocabulary.text_of(token)]
    assert halves and all(vocabulary.bytes_of(token) for token in halves)


def test_one_sampling_and_one_adapter_a_prompt():
    runner = HashRunner()
    runner.adapters.slots.update(a=1, b=2)
    engine = fake_engine(runner)
    how = [Sampling(max_new_tokens=count, ignore_eos=True) for count in (3, 4, 5)]
    done = engine.generate([[1, 2]] * 3, how, adapters=["a", "", "b"])
    wanted = [runner.answer([1, 2], count, slot) for count, slot in ((3, 1), (4, 0), (5, 2))]
    assert [list(one.token_ids) for one in done] == wanted


def test_adapters_beside_each_other_over_one_cache_answer_as_peft_does_alone(tmp_path):
    """Base, A, B, base with equal prompts, mixed and again one by one, so that the second time the cache is full."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from small_models import make_base

    from evergreen.model.load import load_model

    base = make_base(tmp_path / "base", initializer_range=0.3)
    loaded = load_model(base, torch_dtype="float32")
    targets = {"": None, "a": ["q_proj", "down_proj"], "b": ["v_proj", "up_proj", "k_proj"]}
    for seed, (name, modules) in enumerate(targets.items()):
        if modules:
            torch.manual_seed(seed)
            how = LoraConfig(r=2 * seed, target_modules=modules, init_lora_weights=False)
            get_peft_model(load_model(base, torch_dtype="float32").model, how).save_pretrained(tmp_path / name)
    engine = Engine(loaded, EngineSettings(max_num_seqs=8, block_size=4))
    for name in "ab":
        engine.load_adapter(name, [tmp_path / name])
    prompt, how, wanted = list(range(100, 130)), Sampling(max_new_tokens=12, ignore_eos=True), {}
    for name in targets:
        model = load_model(base, torch_dtype="float32").model
        model = PeftModel.from_pretrained(model, str(tmp_path / name)) if name else model
        model.generation_config.eos_token_id = None
        ids = torch.tensor([prompt])
        made = model.generate(input_ids=ids, attention_mask=ids.new_ones(1, 30), max_new_tokens=12, do_sample=False)
        wanted[name] = made[0, 30:].tolist()
    order = ["", "a", "b", ""]
    mixed = engine.generate([prompt] * 4, how, batch_size=4, adapters=order)
    one_by_one = [engine.generate([prompt], how, adapters=[name])[0] for name in order]
    for made in (mixed, one_by_one):
        assert [list(one.token_ids) for one in made] == [wanted[name] for name in order]
    assert all(one.num_cached_tokens == 28 for one in one_by_one) and len(set(map(tuple, wanted.values()))) == 3


def test_streams_and_batches_of_one_engine_do_not_take_each_others_tokens(engine, prompts):
    engine.add(Request("server", tuple(prompts[3]), Sampling(max_new_tokens=12)))
    first = engine.stream(prompts[1], Sampling(max_new_tokens=12))
    second = engine.stream(prompts[4], Sampling(max_new_tokens=12))
    next(first, None)
    whole = engine.generate([prompts[1], prompts[4], prompts[3]], Sampling(max_new_tokens=12))
    for stream in (second, first):
        list(stream)
    server = finished(engine)["server"]
    assert [one.token_ids for one in (first.completion, second.completion, server)] == [x.token_ids for x in whole]


def test_a_stream_that_is_left_frees_its_place(engine, prompts):
    stream = engine.stream(prompts[1], Sampling(max_new_tokens=30))
    next(stream)
    stream.close()
    assert not engine.has_work() and engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_listener_that_fails_leaves_an_engine_that_works(engine, prompts):
    def fail(index, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, Sampling(max_new_tokens=5), on_done=fail)
    assert not engine.has_work() and engine.generate([prompts[0]], Sampling(max_new_tokens=2))


def test_an_answer_in_a_grammar_is_text_even_where_the_prompt_opens_a_thought():
    from transformers import AutoTokenizer

    from evergreen.engine.base import EngineSettings
    from evergreen.model import find
    from evergreen.model.load import load_model

    engine = Engine(load_model("nano", torch_dtype="float32"), EngineSettings(max_num_seqs=4))
    prompt = AutoTokenizer.from_pretrained(find.NANO).encode("<|im_start|>assistant\n<think>\n")
    (completion,) = engine.generate([prompt], Sampling(grammar=r"regex:\d{3}", temperature=1.0, seed=1))
    assert completion.text.isdigit() and len(completion.text) == 3
    assert (completion.thought, completion.finish_reason, completion.completion_tokens) == ("", "stop", 3)
    calls = Sampling(grammar='calls:{"type": "object"}', temperature=1.0, seed=1, max_new_tokens=3)
    assert engine.generate([prompt], calls)[0].thought  # which has room for text has room for a thought


# --- streaming ------------------------------------------------------------------------------------------------------


def test_streamed_pieces_are_the_generated_text(engine, prompts):
    sampling = Sampling(max_new_tokens=30)
    for prompt, whole in zip(prompts, engine.generate(prompts, sampling), strict=True):
        stream = engine.stream(prompt, sampling)
        assert "".join(stream) == stream.completion.text == whole.text


def test_chinese_and_emoji_stream_in_whole_characters():
    stream = parrot("常青藤🌿四季,ever green。").stream([1, 2], Sampling())
    pieces = list(stream)
    assert "\ufffd" not in "".join(pieces) and len(pieces) == len("常青藤🌿四季,ever green。")
    assert stream.completion.text == "常青藤🌿四季,ever green。" and stream.completion.finish_reason == "stop"


def test_a_character_cut_by_the_length_is_left_out():
    (completion,) = parrot("常青").generate([[1, 2]], Sampling(max_new_tokens=5))
    assert (completion.text, completion.finish_reason, completion.completion_tokens) == ("常", "length", 5)


def test_a_cancelled_stream_keeps_what_it_had():
    asked = iter([False, False, True])
    stream = parrot("evergreen").stream([1, 2], Sampling(), cancelled=lambda: next(asked))
    assert "".join(stream) == "eve" and stream.completion.finish_reason == "cancelled"


def test_a_stop_string_ends_the_answer_and_is_cut():
    (completion,) = parrot("one.二END three").generate([[1, 2]], Sampling(stop=("zzz", "END")))
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("one.二", "stop", "END")


def test_a_stop_string_may_stay_at_the_end():
    (completion,) = parrot("one END three").generate([[1, 2]], Sampling(stop=("END",), include_stop=True))
    assert (completion.text, completion.stop_reason) == ("one END", "END")


def test_a_stop_token_ends_the_answer_as_an_end_of_turn_does():
    (completion,) = parrot("one.two").generate([[1, 2]], Sampling(stop_token_ids=(ord("."),)))
    assert (completion.text, completion.finish_reason, completion.completion_tokens) == ("one", "stop", 4)


def test_the_end_of_turn_is_passed_over_where_that_is_asked_for():
    engine = parrot("one")
    engine.runner.script += [*b" more", EOS, EOS]
    (completion,) = engine.generate([[1, 2]], Sampling(ignore_eos=True, max_new_tokens=9))
    assert (completion.text, completion.finish_reason) == ("one more", "length")


def test_the_thought_is_told_apart():
    stream = parrot("<think>\n7+5=12\n</think>\n\n12。").stream([1, 2], Sampling())
    pieces = list(stream)
    assert (stream.completion.thought, stream.completion.text) == ("7+5=12", "12。")
    assert (joined(pieces, is_thought=True), joined(pieces, is_thought=False)) == ("7+5=12", "12。")


def test_a_prompt_that_opens_the_thought_is_noticed():
    prompt = Bytes().encode("t\n<think>\n")[-8:]
    (completion,) = parrot("hm\n</think>\n\nok").generate([[1, *prompt]], Sampling())
    assert (completion.thought, completion.text) == ("hm", "ok")


# --- the answer, byte by byte ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "thought", "text"),
    [
        ("plain", "", "plain"),
        ("  <think>a b</think>c", "a b", "c"),
        ("<think>\n想一想\n</think>\n\n答案", "想一想", "答案"),
        ("<think>\n\n</think>\n\nat once", "", "at once"),
        ("<think>a < b </thin not yet</think> x", "a < b </thin not yet", "x"),
        ("<think>never closed </thi", "never closed </thi", ""),
        ("<thinker> is a word", "", "<thinker> is a word"),
        ("say <think>no</think>", "", "say <think>no</think>"),
        ("<thi", "", "<thi"),
        ("", "", ""),
    ],
)
def test_thought_and_text_and_their_pieces(said, thought, text):
    answer, pieces = spell(said)
    assert (answer.thought, answer.text) == (thought, text)
    assert (joined(pieces, is_thought=True), joined(pieces, is_thought=False)) == (thought, text)


def test_part_of_a_stop_string_is_held_back_until_it_is_sure():
    answer, pieces = Answer(Vocabulary(Bytes()).characters(), stop=("\n\nUser",)), []
    for token in b"a\n\nUs":
        pieces += answer.add(token)
    assert "".join(pieces) == "a"
    pieces += answer.add(ord("a")) + answer.close()
    assert "".join(pieces) == answer.text == "a\n\nUsa"


def test_a_stop_string_inside_the_thought_does_not_end_it():
    answer, _ = spell("<think>1. STOP 2.</think>done STOP more", stop=("STOP",))
    assert (answer.thought, answer.text, answer.is_stopped) == ("1. STOP 2.", "done ", True)


def test_of_several_stop_strings_the_one_complete_first_counts_however_the_tokens_fall():
    for cut in (1, 2, 3, 6):
        answer = Answer(lambda text: text, stop=("bcde", "cd", "d"))
        for start in range(0, 6, cut):
            answer.add("abcdef"[start : start + cut])
        assert (answer.text, answer.stop_reason) == ("ab", "cd")


def test_an_empty_stop_string_stops_nothing():
    assert spell("abc", stop=("",))[0].text == "abc"


def test_long_texts_are_decoded_like_short_ones():
    text = "床前明月光,疑是地上霜。🌙 the moon — " * 40
    assert "".join(spell(text)[1]) == text


def test_bytes_that_are_no_characters_do_not_swallow_what_follows():
    answer = Answer(Vocabulary(Bytes()).characters())
    for token in [*b"a", 0xFF, 0xE5, *"好b".encode()]:
        answer.add(token)
    assert answer.text == "a\ufffd\ufffd好b"


def test_importing_the_cli_side_of_chat_does_not_import_torch():
    code = "import sys, evergreen.chat.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
