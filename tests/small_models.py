"""A model of nano's tokenizer and random weights: every mechanism of a real one in a few milliseconds."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.model import find

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 3, "dtype": "float32",
}  # fmt: skip


def make_base(folder: Path, **shape) -> str:
    tokenizer = AutoTokenizer.from_pretrained(find.NANO)
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SHAPE | shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
