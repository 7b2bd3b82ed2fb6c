"""PEFT adapters in and out: attach trained ones, make new ones, name them by content."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import digest_of, read_json
from evergreen.records import BadInput

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
LAYER = re.compile(r"\.layers\.(\d+)\.")


def attach(model: "PreTrainedModel", folders: Sequence[Path], trainable: bool = False) -> "PreTrainedModel":
    """Put adapters on a base, innermost first: all but the last are merged into the weights, the last stays separate.

    Raises BadInput when an adapter does not fit the base."""
    return _put_on(merge_into(model, folders[:-1]), folders[-1], trainable)


def merge_into(model: "PreTrainedModel", folders: Sequence[Path]) -> "PreTrainedModel":
    """Merge adapters into the weights, innermost first; the sums are fp32's, each rounded once to the model's dtype."""
    for folder in folders:
        model = _put_on(model, folder).merge_and_unload()
    return model


def _put_on(model: "PreTrainedModel", folder: Path, trainable: bool = False) -> "PeftModel":
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    name = model.name_or_path
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError, torch.OutOfMemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BadInput(f"the adapter {folder} does not fit the base {name}: {_why_not(error)}") from None
    _check_layers(adapted, folder)
    return adapted


def _why_not(error: Exception) -> str:
    """What PEFT says of an adapter that does not fit, which can be a line for each of its matrices."""
    text = " ".join(str(error).split())
    mismatch = re.search(r"size mismatch for (\S+?): .*? torch.Size\((.*?)\).*? torch.Size\((.*?)\)", text)
    if mismatch is None:
        return text[:200]
    module, of_adapter, of_base = mismatch.groups()
    return f"another architecture, whose {module.rpartition('.lora_')[0].rpartition('.')[2]} has the shape " \
           f"{of_adapter} where this one has {of_base}"  # fmt: skip


def _check_layers(model: "PeftModel", folder: Path) -> None:
    """PEFT leaves out weights of layers that a base does not have, and leaves those untrained that it has more."""
    has = {int(found[1]) for name, _ in model.named_parameters() if (found := LAYER.search(name)) and ".lora_" in name}
    wants = {int(found[1]) for name in weight_names(folder) if (found := LAYER.search(name)) and ".lora_" in name}
    if has != wants:
        raise BadInput(
            f"the adapter {folder} does not fit the base {model.name_or_path}: another architecture, it adapts "
            f"{_layers(wants)} where this one has {_layers(has)}"
        )


def _layers(numbers: set[int]) -> str:
    return f"{len(numbers)} layers up to number {max(numbers)}" if numbers else "no layers"


def weight_names(folder: Path) -> list[str]:
    """Names of the tensors that an adapter's folder holds."""
    path = weights_file(folder)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return list(file.keys())
    import torch

    return list(torch.load(path, map_location="meta", weights_only=True))


def weights_file(folder: Path) -> Path:
    """Raises BadInput when an adapter's folder holds no weights."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(f"{folder} has an adapter_config.json but no weights ({' or '.join(WEIGHTS)})")


def add_lora(
    model: "PreTrainedModel",
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str],
    modules_to_save: Sequence[str] = (),
    use_rslora: bool = False,
    use_dora: bool = False,
    layers: Sequence[int] | None = None,
) -> "PeftModel":
    """A new LoRA adapter (Hu et al. 2021; rsLoRA: Kalajdzievski 2023; DoRA: Liu et al. 2024), B = 0 at the start.

    `target_modules` is ["all-linear"] or module names; `layers` limits it to some decoder layers."""
    from peft import LoraConfig, get_peft_model

    targets: Any = "all-linear" if list(target_modules) == ["all-linear"] else list(target_modules)
    if targets != "all-linear":
        _check_targets(model, targets)
    elif layers is not None:  # PEFT limits layers only of modules that are named
        targets = sorted(linear_names(model))
    _check_saved(model, modules_to_save)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=list(modules_to_save) or None,
        use_rslora=use_rslora,
        use_dora=use_dora,
        layers_to_transform=list(layers) if layers is not None else None,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def linear_names(model: "PreTrainedModel") -> set[str]:
    """Names of the linear modules inside decoder layers, such as q_proj and down_proj."""
    import torch

    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def adapter_digest(folder: str | Path) -> str:
    """SHA-256 over the adapter's weights and the part of its config that changes what it computes."""
    import hashlib

    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    shape = {
        key: config.get(key)
        for key in (
            "r",
            "lora_alpha",
            "target_modules",
            "use_rslora",
            "use_dora",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "layers_to_transform",
        )
    }
    if isinstance(shape["target_modules"], list):
        shape["target_modules"] = sorted(shape["target_modules"])
    with open(weights_file(folder), "rb") as file:
        return digest_of([shape, hashlib.file_digest(file, "sha256").hexdigest()])


def _check_targets(model: "PreTrainedModel", targets: Sequence[str]) -> None:
    import torch

    kinds = (torch.nn.Linear, torch.nn.Embedding)
    known = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, kinds)}
    missing = [target for target in targets if target.rpartition(".")[2] not in known]
    if missing:
        raise BadInput(
            f"--target_modules {' '.join(missing)}: no such module that LoRA can adapt in this model; it has "
            f"{', '.join(sorted(linear_names(model)))}"
        )


def _check_saved(model: "PreTrainedModel", names: Sequence[str]) -> None:
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    missing = [name for name in names if name.rpartition(".")[2] not in known]
    if missing:
        raise BadInput(f"--modules_to_save {' '.join(missing)}: no such module in this model; it has "
                       "embed_tokens, norm, lm_head and those of its layers")  # fmt: skip
