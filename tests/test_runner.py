"""The paged forward pass gives what the model's own one gives, however the tokens are cut up and mixed."""

from dataclasses import dataclass, field

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import make_base
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from evergreen.engine import packed
from evergreen.engine.base import EngineSettings
from evergreen.engine.runner import Runner
from evergreen.engine.sequence import Chunk
from evergreen.model.load import load_model, stretched
from evergreen.records import BadInput

SHAPE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "max_position_embeddings": 256, "initializer_range": 0.3, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 with windows": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen2 tied, one key head": Qwen2Config(**SHAPE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3": Qwen3Config(**SHAPE | {"head_dim": 16}),
    "llama": LlamaConfig(**SHAPE),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=9),
    "gemma2, capped": Gemma2Config(
        **SHAPE, query_pre_attn_scalar=8, sliding_window=6, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "phi3": Phi3Config(**SHAPE),
}
SETTINGS = EngineSettings(kv_cache_bytes=1 << 20, block_size=4)


@dataclass(eq=False)
class Row:
    """What the runner reads of a sequence."""

    ids: list[int]
    block_table: list[int] = field(default_factory=list)
    adapter_slot: int = 0


def make_model(config, seed=0):
    torch.manual_seed(seed)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # made as zeros
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def qwen():
    return make_model(CONFIGS["qwen2"])


def rows_of(runner, lengths, seed=1, room=40):
    """Random prompts whose blocks lie scattered."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randperm(runner.num_blocks, generator=generator).tolist()
    rows = []
    for length in lengths:
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        rows.append(Row(ids, [free.pop() for _ in range(-(-(length + room) // runner.block_size))]))
    return rows


def whole(rows):
    return [Chunk(row, 0, len(row.ids)) for row in rows]


@torch.inference_mode()
def alone(model, ids, num_tokens):
    prompt = torch.tensor([ids])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=num_tokens, eos_token_id=None
    )
    return made[0, len(ids) :].tolist()


@torch.inference_mode()
def last_scores(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def decode(runner, rows, num_tokens):
    """Greedy; prompts are computed in chunks of uneven lengths beside those who are done with theirs."""
    made = {id(row): [] for row in rows}
    computed = {id(row): 0 for row in rows}
    while any(len(made[id(row)]) < num_tokens for row in rows):
        chunks = []
        for place, row in enumerate(rows):
            num_open = len(row.ids) - computed[id(row)]
            if num_open and len(made[id(row)]) < num_tokens:
                chunks.append(Chunk(row, computed[id(row)], min(num_open, 5 + place)))
                computed[id(row)] += chunks[-1].num_tokens
        ending = [chunk.sequence for chunk in chunks if chunk.is_last]
        for row, scores in zip(ending, runner.run(chunks), strict=True):
            row.ids.append(int(scores.argmax()))
            made[id(row)].append(row.ids[-1])
    return [made[id(row)] for row in rows]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate_alone(name):
    model = make_model(CONFIGS[name])
    runner = Runner(model, SETTINGS)
    rows = rows_of(runner, [3, 21, 1, 12, 4, 33])
    wanted = [alone(model, row.ids, 12) for row in rows]
    assert decode(runner, rows, 12) == wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_chunks_are_those_of_the_whole(name):
    model = make_model(CONFIGS[name])
    runner = Runner(model, SETTINGS)
    [row] = rows_of(runner, [37])
    wanted = last_scores(model, row.ids)
    torch.testing.assert_close(runner.run(whole([row]))[0], wanted, atol=1e-4, rtol=1e-4)
    for start, num_tokens in ((0, 9), (9, 1), (10, 8)):
        assert runner.run([Chunk(row, start, num_tokens)]).shape == (0, 97)
    torch.testing.assert_close(runner.run([Chunk(row, 18, 19)])[0], wanted, atol=1e-4, rtol=1e-4)


def test_short_and_long_rows_decode_beside_each_other(qwen):
    runner = Runner(qwen, SETTINGS)
    rows = rows_of(runner, [3, 190, 5, 7, 120, 1, 118, 64], room=4)
    for row in rows:
        runner.run([Chunk(row, 0, len(row.ids) - 1)] if len(row.ids) > 1 else whole([row]))
    scores = runner.run([Chunk(row, len(row.ids) - 1, 1) for row in rows])
    wanted = torch.stack([last_scores(qwen, row.ids) for row in rows])
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


def test_rows_may_read_what_another_one_computes_in_the_same_pass(qwen):
    runner = Runner(qwen, SETTINGS)
    [first] = rows_of(runner, [13])
    second = Row(first.ids[:8] + [50, 51, 52], first.block_table[:2] + [free_block(runner, first)])
    scores = runner.run([Chunk(second, 8, 3), Chunk(first, 0, 13)])
    wanted = torch.stack([last_scores(qwen, second.ids), last_scores(qwen, first.ids)])
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


def free_block(runner, *rows):
    return next(block for block in range(runner.num_blocks) if all(block not in row.block_table for row in rows))


def test_rows_of_an_adapter_lie_together_and_scores_come_in_the_order_asked_for(qwen):
    runner = Runner(qwen, SETTINGS)
    rows = rows_of(runner, [9, 4, 6, 1, 12])
    for row, slot in zip(rows, [2, 0, 1, 2, 0], strict=True):
        row.adapter_slot = slot
    seen = []
    runner.adapters.use = seen.append
    scores = runner.run(whole(rows))
    [batch] = seen
    assert batch.segments == [(0, 0, 16), (1, 16, 22), (2, 22, 32)]
    assert batch.slots.tolist() == [0] * 16 + [1] * 6 + [2] * 10
    wanted = torch.stack([last_scores(qwen, row.ids) for row in rows])
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


def test_a_window_that_is_asked_for_is_that_of_a_model_made_with_it(qwen):
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=0)
    windowed = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    windowed.load_state_dict(qwen.state_dict())
    runner = Runner(qwen, EngineSettings(kv_cache_bytes=1 << 20, block_size=4, sliding_window=6))
    rows = rows_of(runner, [23, 5, 17])
    wanted = [alone(windowed, row.ids, 8) for row in rows]
    assert decode(runner, rows, 8) == wanted
    assert wanted != [alone(qwen, row.ids, 8) for row in rows_of(runner, [23, 5, 17])]


def test_between_passes_the_model_is_what_it_was(qwen):
    runner = Runner(qwen, SETTINGS)
    [row] = rows_of(runner, [11])
    before = alone(qwen, row.ids, 6)
    runner.run(whole([row]))
    assert qwen.config._attn_implementation == "sdpa"
    assert alone(qwen, row.ids, 6) == before


def test_a_model_in_bf16_stays_close():
    model = make_model(CONFIGS["qwen2"]).bfloat16()
    runner = Runner(model, SETTINGS)
    rows = rows_of(runner, [30, 3, 9])
    runner.run([Chunk(row, 0, len(row.ids) - 1) for row in rows])
    scores = runner.run([Chunk(row, len(row.ids) - 1, 1) for row in rows])
    wanted = torch.stack([last_scores(model, row.ids).float() for row in rows])
    assert scores.dtype == torch.float32
    assert (scores - wanted).norm() < 0.03 * wanted.norm()


def test_numbers_that_are_not_finite_fail_the_pass_and_leave_nothing_behind():
    model = make_model(CONFIGS["qwen2"])
    runner = Runner(model, SETTINGS)
    [bad, good] = rows_of(runner, [6, 5])
    bad.ids[2] = 90
    good.ids = [id if id != 90 else 3 for id in good.ids]
    model.get_input_embeddings().weight.data[90] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite numbers in float32"):
        runner.run(whole([bad, good]))
    good.block_table = bad.block_table
    runner.run([Chunk(good, 0, 4)])
    scores = runner.run([Chunk(good, 4, 1)])
    torch.testing.assert_close(scores[0], last_scores(model, good.ids), atol=1e-4, rtol=1e-4)


def test_packed_linears_are_those_that_they_replace(monkeypatch):
    monkeypatch.setattr(packed, "MIN_WEIGHTS", 0)
    plain, model = make_model(CONFIGS["qwen2 tied, one key head"]), make_model(CONFIGS["qwen2 tied, one key head"])
    runner = Runner(model, SETTINGS)
    linear = model.model.layers[0].mlp.down_proj
    assert isinstance(linear, packed.PackedLinear) and isinstance(model.lm_head, packed.PackedLinear)
    assert torch.equal(linear.dequantize(), plain.model.layers[0].mlp.down_proj.weight)
    rows = rows_of(runner, [3, 21, 40])
    wanted = [alone(plain, row.ids, 10) for row in rows]
    assert decode(runner, rows, 10) == wanted


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_over_packed_linears_give_what_peft_gives(tmp_path, monkeypatch, use_dora):
    monkeypatch.setattr(packed, "MIN_WEIGHTS", 0)
    base = make_base(tmp_path / "base", initializer_range=0.3)
    how = LoraConfig(r=3, target_modules="all-linear", use_dora=use_dora, init_lora_weights=False)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), how).eval()
    peft.save_pretrained(tmp_path / "adapter")
    model = load_model(base, torch_dtype="float32").model
    runner = Runner(model, SETTINGS)
    rows = rows_of(runner, [7, 5])
    rows[0].adapter_slot = runner.adapters.load("digest", [tmp_path / "adapter"])
    scores = runner.run(whole(rows))
    torch.testing.assert_close(scores[0], last_scores(peft, rows[0].ids), atol=1e-4, rtol=1e-4)
    with peft.disable_adapter():
        torch.testing.assert_close(scores[1], last_scores(peft, rows[1].ids), atol=1e-4, rtol=1e-4)


def test_the_cache_takes_the_bytes_it_is_given(qwen):
    bytes_per_block = 2 * 3 * 2 * 8 * 4 * 16  # keys and values, layers, heads, dim, fp32, tokens
    runner = Runner(qwen, EngineSettings(kv_cache_bytes=10 * bytes_per_block + 5))
    assert (runner.num_blocks, runner.bytes_per_block) == (10, bytes_per_block)
    assert runner.cache.pages.nbytes == 10 * bytes_per_block
    with pytest.raises(BadInput, match="holds not one block of 16 tokens, which takes 6,144"):
        Runner(qwen, EngineSettings(kv_cache_bytes=6143))


def test_without_a_size_the_cache_holds_all_sequences_or_a_quarter_of_what_is_free(qwen, monkeypatch):
    settings = EngineSettings(max_num_seqs=3, max_model_len=100)
    assert Runner(qwen, settings).num_blocks == 3 * 7
    monkeypatch.setattr("evergreen.engine.runner._free_bytes", lambda device: 40 * 6144)
    assert Runner(qwen, settings).num_blocks == 10


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LINEAR = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention"], "num_experts": 2,
    "num_experts_per_tok": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
REFUSED = {
    "Phi3.*rotary frequencies .longrope. depend": Phi3Config(
        **SHAPE, original_max_position_embeddings=64, rope_parameters=LONG_ROPE
    ),
    "Llama.*rotary frequencies .dynamic. depend": LlamaConfig(**SHAPE, rope_parameters=DYNAMIC_ROPE),
    "GptOss.*sinks": GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1),
    "Bloom.*do not take another attention": BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=2),
    "Qwen3Next.*layers of the kind linear_attention": Qwen3NextConfig(**SHAPE, **LINEAR),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_models_that_it_would_compute_wrongly_are_refused_by_name(reason):
    model = AutoModelForCausalLM.from_config(REFUSED[reason]).eval()
    with pytest.raises(BadInput, match=reason):
        Runner(model, SETTINGS)


def test_a_model_whose_attention_does_more_than_it_says_is_refused(qwen):
    model = make_model(CONFIGS["qwen2"])
    forward = model.model.layers[1].forward

    def remember(hidden, **kwargs):
        return forward(hidden + hidden.mean(1, keepdim=True), **kwargs)  # rows that see each other outside attention

    model.model.layers[1].forward = remember
    with pytest.raises(BadInput, match="not those of its own forward pass"):
        Runner(model, SETTINGS)


def test_yarn_is_what_transformers_makes_of_the_documented_config(tmp_path):
    base = make_base(tmp_path / "base", max_position_embeddings=64)
    loaded = load_model(base, rope_scaling="yarn", torch_dtype="float32")
    config = AutoConfig.from_pretrained(base)
    config.rope_parameters |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config.max_position_embeddings = 256
    twin = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32).eval()
    runner = Runner(loaded.model, EngineSettings(kv_cache_bytes=1 << 22, rope_scaling="yarn", max_model_len=256))
    [row] = rows_of(runner, [200])
    torch.testing.assert_close(runner.run(whole([row]))[0], last_scores(twin, row.ids), atol=1e-4, rtol=1e-4)
    assert stretched(base, 96).rope_parameters["factor"] == 1.5


def test_contexts_that_do_not_fit_the_model_are_refused(tmp_path, qwen):
    base = make_base(tmp_path / "base", max_position_embeddings=64)
    with pytest.raises(BadInput, match="takes 64 tokens as it is, and 32 are wanted"):
        load_model(base, rope_scaling="yarn", max_model_len=32)
    with pytest.raises(BadInput, match="max_model_len is 300; the model takes 256 tokens: add --rope_scaling yarn"):
        Runner(qwen, EngineSettings(max_model_len=300))
    with pytest.raises(BadInput, match="rope_scaling yarn is set when the model is loaded"):
        Runner(qwen, EngineSettings(rope_scaling="yarn"))
