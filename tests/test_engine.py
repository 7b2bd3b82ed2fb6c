"""The engine against transformers' own generate, and against itself: batched = alone, streamed = whole."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evergreen.engine.answer import Answer
from evergreen.engine.engine import Engine
from evergreen.records import BadInput, Failure, Sampling

EOS = 256


class Bytes:
    """A tokenizer whose tokens are bytes, so every Chinese character is three of them; 256 and above are special."""

    eos_token_id, pad_token_id, unk_token_id = EOS, EOS, None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def convert_tokens_to_ids(self, token: str) -> None:
        return None


class Parrot:
    """A model that says `line` whatever it is asked, then ends its turn."""

    device, dtype, generation_config = torch.device("cpu"), torch.float32, SimpleNamespace(eos_token_id=[EOS])

    def __init__(self, line: str):
        self.script, self.config = [*line.encode(), EOS], tiny_config()
        self.num_said = 0

    def parameters(self) -> list:
        return []

    def _supports_logits_to_keep(self) -> bool:
        return True

    def __call__(self, input_ids: torch.Tensor, **_) -> SimpleNamespace:
        self.num_said = 0 if input_ids.shape[1] > 1 else self.num_said + 1
        logits = torch.zeros(len(input_ids), 1, 260)
        logits[:, :, self.script[self.num_said]] = 9
        return SimpleNamespace(logits=logits)


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


def tiny_engine(**changes) -> Engine:
    """A random fp32 model; its weights are spread so that answers vary with the prompt."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(tiny_config(initializer_range=0.3, **changes)).eval()
    return Engine(SimpleNamespace(model=model, tokenizer=Bytes(), system=None, name="tiny"))


def parrot(line: str) -> Engine:
    return Engine(SimpleNamespace(model=Parrot(line), tokenizer=Bytes(), system=None, name="parrot"))


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
    answer, pieces = Answer(Bytes(), **how), []
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
        Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, top_k=50, seed=3),
    ],
)
def test_a_prompt_in_a_batch_is_answered_as_alone(engine, prompts, sampling):
    together = engine.generate(prompts, sampling, batch_size=4)
    for index, prompt in enumerate(prompts):
        seed = None if sampling.seed is None else sampling.seed + index
        (alone,) = engine.generate([prompt], Sampling(**{**vars(sampling), "seed": seed}))
        assert alone.text == together[index].text


def test_rows_that_end_early_leave_the_others_untouched(engine, prompts):
    """Some rows stop at a mark after a few tokens, so that the cache is cut down to the rest."""
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
    assert (completion.text, completion.finish_reason) == ("one.二", "stop")


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
    answer, pieces = Answer(Bytes(), stop=("\n\nUser",)), []
    for token in b"a\n\nUs":
        pieces += answer.add(token)
    assert "".join(pieces) == "a"
    pieces += answer.add(ord("a")) + answer.close()
    assert "".join(pieces) == answer.text == "a\n\nUsa"


def test_a_stop_string_inside_the_thought_does_not_end_it():
    answer, _ = spell("<think>1. STOP 2.</think>done STOP more", stop=("STOP",))
    assert (answer.thought, answer.text, answer.is_stopped) == ("1. STOP 2.", "done ", True)


def test_an_empty_stop_string_stops_nothing():
    assert spell("abc", stop=("",))[0].text == "abc"


def test_long_texts_are_decoded_like_short_ones():
    text = "床前明月光,疑是地上霜。🌙 the moon — " * 40
    assert "".join(spell(text)[1]) == text


def test_bytes_that_are_no_characters_do_not_swallow_what_follows():
    answer = Answer(Bytes())
    for token in [*b"a", 0xFF, 0xE5, *"好b".encode()]:
        answer.add(token)
    assert answer.text == "a\ufffd\ufffd好b"


def test_importing_the_cli_side_of_chat_does_not_import_torch():
    code = "import sys, evergreen.chat.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
