"""Models to try an engine on: a tiny random Qwen2, and adapters that nobody could overlook."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SHAPE = {
    "hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "max_position_embeddings": 1024, "tie_word_embeddings": True, "dtype": "float32",
}  # fmt: skip
INITIALIZER_RANGE = 0.15  # transformers' 0.02 gives scores so flat that every other token is a near tie
UPDATE_SIZE = 0.5  # of an adapter's change of a matrix against that matrix (Frobenius norms)
ADAPTERS = (  # label, rank, targets: different ones, since engines pad and stack them
    ("A", 8, ("all-linear",)),
    ("B", 4, ("q_proj", "v_proj", "down_proj")),
)


def make_model(folder: Path) -> str:
    """A random Qwen2 with the shipped model's tokenizer, 1.2 M parameters, in a new folder. Its heads have 32
    dimensions, the least that vLLM takes on CPUs."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from evergreen.model.find import NANO

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer), initializer_range=INITIALIZER_RANGE, **SHAPE)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_adapters(model: str, folder: Path) -> dict[str, Path]:
    """{label: PEFT folder} of random adapters of a model that change its answers visibly."""
    import torch

    from evergreen.model.adapters import add_lora
    from evergreen.model.load import load_base

    made, base = {}, load_base(model, torch.float32, "cpu")
    for seed, (label, rank, targets) in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        adapted = add_lora(base, rank=rank, alpha=2 * rank, dropout=0.0, target_modules=targets)
        for module in adapted.modules():
            if hasattr(module, "lora_B"):
                _randomize(module)
        made[label] = folder / label
        adapted.save_pretrained(made[label])
        base = adapted.unload()
    return made


def _randomize(linear: "nn.Module") -> None:
    """Random B of such a size that the update is UPDATE_SIZE of the weight."""
    import torch

    b, size = linear.lora_B["default"].weight, linear.get_base_layer().weight.norm()
    with torch.no_grad():
        torch.nn.init.normal_(b)
        b *= UPDATE_SIZE * size / linear.get_delta_weight("default").norm()
