"""The paged forward pass gives what the model's own one gives, however the tokens are cut up and mixed."""

from dataclasses import dataclass, field

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from evergreen.engine.base import EngineSettings
from evergreen.engine.runner import Runner
from evergreen.engine.sequence import Chunk
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
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()


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
    """Greedy, after the prompts have been computed in chunks of uneven lengths beside those who are done with theirs."""
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
