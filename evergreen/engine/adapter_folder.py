"""A PEFT folder of LoRA matrices, read without building a PEFT model.

Promises: what PEFT would compute otherwise than y + s B A x (or DoRA's form of it) is refused in one line, and so is
a folder that is cut off or belongs to another architecture.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evergreen.home import read_json
from evergreen.model.adapters import LAYER, weights_file
from evergreen.records import BadInput

PREFIX = "base_model.model."
WEIGHT = re.compile(rf"{re.escape(PREFIX)}(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # PiSSA, OLoRA, CorDA, LoftQ begin by changing W
UNSUPPORTED = (
    "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip


class AdapterFolder:
    """A PEFT folder that has been read: {linear: {lora_A, lora_B[, lora_magnitude_vector]}}, in fp32 as asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.config = _read_config(path / "adapter_config.json")
        self._refuse_other_kinds()
        self.is_dora = bool(self.config.get("use_dora"))
        self.parts: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in _tensors(path).items():
            match = WEIGHT.fullmatch(key)
            if match is None:
                raise self._cannot(
                    f"it holds {key.removeprefix(PREFIX)}, and only linears of decoder layers are adapted"
                )
            self.parts.setdefault(match[1], {})[match[2]] = tensor

    def _refuse_other_kinds(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise self._cannot(f"it is of the kind {kind}, not LORA")
        if there := [key for key in UNSUPPORTED if self.config.get(key)]:
            raise self._cannot(f"it has {there[0]}")
        if (bias := self.config.get("bias") or "none") != "none":
            raise self._cannot(f"it trained biases (bias={bias})")
        if (init := self.config.get("init_lora_weights")) not in KEEPS_BASE:
            raise self._cannot(f"it was begun by {init}, which changes the base's weights too")

    def _cannot(self, reason: str) -> BadInput:
        return BadInput(f"the adapter {self.path} cannot be served beside others: {reason}; merge it into its base")

    def check(self, base: str, linears: Mapping[str, nn.Module]) -> None:
        """Raises BadInput unless the file holds all that its config targets in this model, and nothing else."""
        wanted = {name for name in linears if self._is_target(name)}
        if wanted != self.parts.keys():
            raise self._does_not_fit(base, f"it adapts {_summary(self.parts)} where this one has {_summary(wanted)}")
        kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if self.is_dora else set())
        for name, part in self.parts.items():
            if part.keys() != kinds:
                lacks = ", ".join(sorted(kinds - part.keys())) or "use_dora in its config"
                raise BadInput(f"the adapter {self.path} lacks {lacks} for {name}: copy it again")
            self._check_shapes(base, name, linears[name])

    def _check_shapes(self, base: str, name: str, linear: nn.Module) -> None:
        a, b = self.parts[name]["lora_A"].shape, self.parts[name]["lora_B"].shape
        found, wanted, rank = (*b[:1], *a[1:]), (linear.out_features, linear.in_features), self.rank(name)
        if found != wanted:
            what = f"whose {name.rpartition('.')[2]} has the shape {list(found)} where this one has {list(wanted)}"
            raise self._does_not_fit(base, what)
        if a[0] != rank or b[1:] != (rank,) or (self.is_dora and len(self.magnitude(name)) != linear.out_features):
            raise BadInput(f"the adapter {self.path} says rank {rank} for {name} and holds {a[0]}: copy it again")

    def _does_not_fit(self, base: str, reason: str) -> BadInput:
        return BadInput(f"the adapter {self.path} does not fit the base {base}: another architecture, {reason}")

    def _is_target(self, name: str) -> bool:
        """Whether PEFT would adapt this linear of a decoder layer."""
        if _is_named(self.config.get("exclude_modules") or (), name):
            return False
        targets, layers = self.config.get("target_modules") or (), self.config.get("layers_to_transform")
        if isinstance(targets, str) or layers in (None, []):
            return targets == "all-linear" or _is_named(targets, name)
        number = LAYER.search(name)
        layers = [layers] if isinstance(layers, int) else layers
        return _is_named(targets, name) and number is not None and int(number[1]) in layers

    def rank(self, name: str) -> int:
        return self._by_pattern("rank_pattern", name, self.config.get("r", 8))

    def a(self, name: str) -> torch.Tensor:
        return self.parts[name]["lora_A"].float()

    def up(self, name: str) -> torch.Tensor:
        rank, alpha = self.rank(name), self._by_pattern("alpha_pattern", name, self.config.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return self.parts[name]["lora_B"].float().T * scale

    def magnitude(self, name: str) -> torch.Tensor:
        return self.parts[name]["lora_magnitude_vector"].float().flatten()

    def _by_pattern(self, field: str, name: str, default: float) -> Any:
        """The first pattern that is the name or its end, as PEFT looks it up."""
        patterns = self.config.get(field) or {}
        value = next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", name)), default)
        if not isinstance(value, int | float):
            raise BadInput(f"{self.path / 'adapter_config.json'}: {value!r} where a number belongs ({field})")
        return value


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not the config of an adapter")
    return config


def _is_named(targets: str | Sequence[str], name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _summary(names: Any) -> str:
    layers = {int(found[1]) for name in names if (found := LAYER.search(f".{name}"))}
    return f"{len(names)} linears in {len(layers)} layers" + (f" up to number {max(layers)}" if layers else "")


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file, on the CPU. Raises BadInput when it is cut off or damaged."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = weights_file(folder)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"the adapter's weights {path} are cut off or damaged ({reason}): copy it again") from None
