"""Which weights learn: a LoRA adapter over a frozen (perhaps 4-bit) base, all weights, or some decoder layers."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.model import adapters, load
from evergreen.records import BadInput
from evergreen.settings import SftSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_trainable(
    settings: SftSettings, reference: load.Reference, weights: Path | None, dtype: "torch.dtype", device: str
) -> "PreTrainedModel":
    """The model with exactly those parameters trainable that the settings name.

    `weights` is a checkpoint whose weights replace the reference's (a continuation without its optimizer).
    Full and partial training keep fp32 master weights and compute in `dtype` by autocast."""
    import torch

    if dtype is torch.float16 and device == "cpu":
        raise BadInput("--torch_dtype float16 needs a GPU: use float32 or bfloat16 on a CPU")
    torch.manual_seed(settings.seed)
    if settings.train_type in ("full", "freeze"):
        return _load_weights(settings, reference, weights, device)
    model = load.load_base(reference.base, dtype, device, _quantization(settings, dtype))
    if settings.train_type == "qlora":
        from peft import prepare_model_for_kbit_training

        # bitsandbytes on a CPU cannot train Qwen2's biased projections unless the base is frozen first
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    chain = [*reference.adapters[:-1], weights] if weights else list(reference.adapters)
    layers = learning_layers(settings, model.config)
    if chain:
        return _freeze_layers(adapters.attach(model, chain, trainable=True), layers)
    return adapters.add_lora(
        model,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        modules_to_save=settings.modules_to_save,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        layers=None if layers is None else sorted(layers),
    )


def count_parameters(model: "PreTrainedModel") -> tuple[int, int]:
    """Trainable and all parameters; a byte of 4-bit weights counts as the two that it holds."""
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())


def parse_layers(text: str, count: int, flag: str) -> set[int] | None:
    """ "0-7", "0,2,5-7" or "all" as layer numbers; None for "". Raises BadInput outside 0..count-1."""
    if not text:
        return None
    if text == "all":
        return set(range(count))
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise BadInput(f"{flag} wants layers such as 0-7 or 0,2,5-7, got {text!r}")
        layers |= set(range(int(first), int(last if dash else first) + 1))
    if not layers or max(layers) >= count:
        raise BadInput(f"{flag} {text}: the model has layers 0-{count - 1}")
    return layers


def learning_layers(settings: SftSettings, config: Any) -> set[int] | None:
    """Decoder layers that --trainable_layers and --freeze_layers leave to learn; None when all do."""
    count = config.get_text_config().num_hidden_layers
    frozen = parse_layers(settings.freeze_layers, count, "--freeze_layers") or set()
    wanted = parse_layers(settings.trainable_layers, count, "--trainable_layers")
    if wanted is None and settings.train_type == "freeze" and not frozen:
        wanted = set(range(max(0, count - 2), count))
    if wanted is None and not frozen:
        return None
    learning = (set(range(count)) if wanted is None else wanted) - frozen
    if not learning:
        raise BadInput("--freeze_layers and --trainable_layers leave no layer that learns")
    return learning


def _freeze_layers(model: "PreTrainedModel", layers: set[int] | None) -> "PreTrainedModel":
    """An adapter that is trained further learns in `layers` only; what it holds of the others stays."""
    if layers is not None:
        for i, block in enumerate(_decoder_layers(model)):
            if i not in layers:
                block.requires_grad_(False)
    return model


def _load_weights(
    settings: SftSettings, reference: load.Reference, weights: Path | None, device: str
) -> "PreTrainedModel":
    import torch

    model = load.load_base(str(weights or reference.base), torch.float32, device)
    if reference.adapters and not weights:
        model = adapters.attach(model, reference.adapters).merge_and_unload()
    layers = learning_layers(settings, model.config)
    model.requires_grad_(layers is None or settings.train_type == "full")
    for i, block in enumerate(_decoder_layers(model)):
        block.requires_grad_(layers is None or i in layers)
    return model


def _quantization(settings: SftSettings, dtype: "torch.dtype") -> Any:
    if settings.train_type != "qlora":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("--train_type qlora needs bitsandbytes: pip install 'evergreen-lm[qlora]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=settings.bnb_4bit_use_double_quant,
    )


def _decoder_layers(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    import torch

    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
