"""Sums of adapters as one adapter, and shorter steps from one version towards the next, without training.

A LoRA adapter changes a weight by dW = s B A, with A [r, in], B [out, r] and s = alpha/r (alpha/sqrt(r) for rsLoRA).
A sum of such changes is again one: stack the A's, set the f s B's side by side, and the ranks add up. That is exact.
Cut back to a rank by the singular value decomposition it is the nearest adapter of that rank (Eckart & Young 1936), and
the error is known: the singular values left out.

Promises: what is written is plain PEFT, read by peft, vLLM and others without this package; its scale is 1.
Does not: add up what is no such product. DoRA normalises the changed weight, `modules_to_save` replaces whole modules,
and other kinds of adapters change weights in other ways: they are refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evergreen
from evergreen.home import read_json, write_json
from evergreen.model import find
from evergreen.model.adapters import WEIGHTS, adapter_digest, weights_file
from evergreen.model.find import Reference, absolute_name, beside, link_to, record_of, seen_from
from evergreen.model.write import copy_tokenizer, whole_folder, write_model, write_records
from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch

    from evergreen.settings import SftSettings

CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
UNDERSTOOD = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("qalora_group_size", "runtime_config", "loftq_config", "eva_config", "bias", "init_lora_weights"),
}  # keys of adapter_config.json that a sum can take into account; any other must have its default
DORA = "DoRA normalises the changed weight, so that its change is no product of two matrices"
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # init_lora_weights that leave the base as it is


@dataclass(frozen=True)
class MergeReport:
    """`error` is ||written - exact||_F / ||exact||_F over all weight changes, 0 for concatenation; `rank` the largest
    that a module has."""

    error: float
    rank: int

    def __str__(self) -> str:
        return f"rank {self.rank}, " + (f"relative error {self.error:.2%}" if self.error else "exact")


@dataclass
class _Change:
    """The change of one weight as a product: dW = b @ a, with a [rank, in] and b [out, rank]."""

    a: "torch.Tensor"
    b: "torch.Tensor"


@dataclass
class _Adapter:
    """A LoRA adapter read from its files, scales multiplied in."""

    folder: Path
    config: dict[str, Any]
    changes: dict[str, _Change] = field(default_factory=dict)  # by the module's name in the model

    @property
    def rank(self) -> int:
        return max(change.a.shape[0] for change in self.changes.values())


def combine(
    adapters: Sequence[tuple[Path, float]], output: Path, method: str = "concat", rank: int | None = None
) -> MergeReport:
    """Write one plain PEFT adapter equal to the sum of factor * dW over `adapters`, all of the same base.

    `concat` is exact and adds the ranks up; `svd` cuts every change back to `rank`, by default the largest of the
    adapters'. Raises BadInput for DoRA, `modules_to_save`, other kinds of adapters, and different bases."""
    _check_bases([folder for folder, _ in adapters])
    return _combine(adapters, output, method, rank)


def _combine(
    adapters: Sequence[tuple[Path, float]], output: Path, method: str = "concat", rank: int | None = None
) -> MergeReport:
    if method not in ("concat", "svd"):
        raise BadInput(f"adapters are combined by concat or svd, not by {method!r}")
    if method == "concat" and rank is not None:
        raise BadInput(f"concatenated ranks add up: a rank of {rank} is for svd")
    if not adapters:
        raise BadInput("no adapter to combine")
    read = [_read(Path(folder)) for folder, _ in adapters]
    changes, error = _sum(read, [factor for _, factor in adapters]), 0.0
    if method == "svd":
        changes, error = _cut_back(changes, rank or max(one.rank for one in read))
    return MergeReport(error, _write(changes, _config_of(read, changes), output))


def merge_chain(folder: Path, method: str, rank: int | None = None) -> MergeReport:
    """Write `folder`/merged: the adapter in `folder` and all below it as one adapter on the base that the line began
    with. A base that `--chain merge` wrote counts as the adapters merged into it, up to that merge's rounding."""
    folder = Path(folder)
    found = find.resolve(str(folder))
    if not found.adapters:
        raise BadInput(f"{folder} is a whole model: there is no chain of adapters to merge into one")
    origin = _unmerged(found)
    where = {"base": absolute_name(origin.base), "base_digest": find.model_digest(origin.base), "chain": []}
    with whole_folder(folder / "merged") as staged:
        report = _combine([(adapter, 1.0) for adapter in origin.adapters], staged, method, rank)
        _name_base(staged, where["base"])
        copy_tokenizer(folder, staged)
        facts = {"digest": adapter_digest(staged), "parent": adapter_digest(folder), "method": method,
                 "merged": [link_to(adapter, folder / "merged") for adapter in origin.adapters],
                 "error": report.error, "evergreen": evergreen.__version__}  # fmt: skip
        args = {**seen_from(found.args or {}, folder, folder / "merged"), **where}
        args["beside"] = {**args["beside"], "base": beside(origin.base, folder / "merged")}
        write_records(staged, args, {**record_of(folder), **where, **facts})
    return report


def check_merge_chain(settings: "SftSettings") -> None:
    """Raises BadInput, before anything is trained, when what `--merge_chain` is to add up is no plain LoRA."""
    if settings.use_dora or settings.modules_to_save:
        why = DORA if settings.use_dora else _whole_modules(settings.modules_to_save)
        raise BadInput(f"--merge_chain cannot add this run's adapter to others: {why}")
    if settings.prev_model or settings.adapters or settings.model:
        for folder in _unmerged(find.resolve(settings.prev_model or settings.model, settings.adapters)).adapters:
            _check_plain(folder, read_json(folder / CONFIG_FILE))


def scaled_step(previous: Reference, candidate: Reference, share: float, output: Path) -> Path:
    """Write the version whose effective weights are W_previous + share * (W_candidate - W_previous); its folder.

    Adapters on one base give an adapter over those that both have in common, by concatenating ranks: exact. Otherwise
    both are merged into full weights, in memory and in fp32 (8 bytes a parameter), and interpolated; the result is a
    model in the candidate's dtype. Raises BadInput when the two are of different architecture."""
    output = Path(output)
    step = {"share": share, "previous": find.reference_digest(previous), "candidate": find.reference_digest(candidate)}
    if record_of(output).get("step") == step:
        return output
    if _stands_for(candidate.base, previous):
        previous = Reference(candidate.base)
    is_same_base = find.model_digest(previous.base) == find.model_digest(candidate.base)
    write = _scaled_adapter if is_same_base and candidate.adapters else _scaled_weights
    with whole_folder(output) as staged:
        facts = write(previous, candidate, share, staged, output)
        newest = candidate.adapters[-1] if candidate.adapters else Path(candidate.base)
        args = None if candidate.args is None else {**seen_from(candidate.args, newest, output), **facts}
        write_records(staged, args, {**record_of(newest), **facts, "digest": find.version_digest(staged), "step": step})
    return output


def _scaled_adapter(previous: Reference, candidate: Reference, share: float, staged: Path, output: Path) -> dict:
    """(1 - share) of the previous version's own adapters and share of the candidate's, over those they share."""
    ours, theirs = ([adapter_digest(one) for one in found.adapters] for found in (previous, candidate))
    common = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    if common == len(candidate.adapters):  # nothing of the candidate's own: one of the shared ones gives the shape
        common -= 1
    parts = [(one, 1 - share) for one in previous.adapters[common:]]
    parts += [(one, share) for one in candidate.adapters[common:]]
    combine([part for part in parts if part[1]] or parts[-1:], staged)
    copy_tokenizer(candidate.adapters[-1], staged)
    return {
        "base": absolute_name(candidate.base),
        "base_digest": find.model_digest(candidate.base),
        "chain": [link_to(one, output) for one in candidate.adapters[:common]],
    }


def _scaled_weights(previous: Reference, candidate: Reference, share: float, staged: Path, output: Path) -> dict:
    import torch

    from evergreen.model import load

    dtype = getattr(load.load_config(candidate.base), "dtype", None) or torch.float32
    start, model = (load.load_merged(found, torch.float32, "cpu") for found in (previous, candidate))
    before, after = dict(start.named_parameters()), dict(model.named_parameters())
    if {name: tensor.shape for name, tensor in before.items()} != {
        name: tensor.shape for name, tensor in after.items()
    }:
        raise BadInput(f"{candidate.base} is of another architecture than {previous.base}: their shapes differ")
    with torch.no_grad():
        for name, tensor in after.items():
            tensor.copy_(torch.lerp(before[name], tensor, share))
    write_model(model, load.tokenizer_for(candidate), dtype, staged)
    return {"chain": [], "method": "full"}


def _stands_for(base: str, version: Reference) -> bool:
    """Whether `base` is what `--chain merge` made of this version."""
    merged = record_of(base).get("merged")
    return bool(merged) and [link["digest"] for link in merged] == [adapter_digest(one) for one in version.adapters] \
        and record_of(base)["base_digest"] == find.model_digest(version.base)  # fmt: skip


def _unmerged(found: Reference) -> Reference:
    """The same version over the base that its line began with: bases that `--chain merge` wrote taken apart again."""
    record = record_of(found.base)
    if record.get("method") != "merge":
        return found
    base = find.find_model(record["base"])
    if find.model_digest(base) != record["base_digest"]:
        raise BadInput(f"{found.base} was merged from {base}, which has changed since: bring the old one back")
    return _unmerged(Reference(base, (*find.follow(record["merged"], Path(found.base)), *found.adapters)))


# Reading


def _read(folder: Path) -> _Adapter:
    config = read_json(folder / CONFIG_FILE)
    _check_plain(folder, config)
    adapter = _Adapter(folder, config)
    halves: dict[str, dict[str, Any]] = {}
    for name, tensor in _tensors(folder).items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B") or not module.startswith(PREFIX):
            raise BadInput(f"{folder} holds {name} beside its LoRA matrices, which no sum of LoRA matrices stands for")
        halves.setdefault(module.removeprefix(PREFIX), {})[half] = tensor.float()
    for module, pair in halves.items():
        scale = _scale(config, module, pair["lora_A"].shape[0])
        adapter.changes[module] = _Change(pair["lora_A"], scale * pair["lora_B"])
    return adapter


def _tensors(folder: Path) -> "dict[str, torch.Tensor]":
    path = weights_file(folder)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    """Raises BadInput, with the reason, for an adapter whose change is not a sum of s B A."""
    beyond = [name for name, value in config.items() if value and name not in UNDERSTOOD]
    reason = ""
    if config.get("peft_type") != "LORA":
        reason = f"it is a {config.get('peft_type')} adapter"
    elif config.get("use_dora"):
        reason = DORA
    elif saved := config.get("modules_to_save"):
        reason = _whole_modules(saved)
    elif config.get("init_lora_weights", True) not in KEEPS_BASE:
        reason = f"its start ({config['init_lora_weights']}) changed the base's own weights"
    elif beyond or config.get("bias", "none") != "none":
        reason = f"its {CONFIG_FILE} has {(beyond or ['bias'])[0]}, which is more than plain LoRA"
    if reason:
        raise BadInput(f"{folder} cannot be combined with others: {reason}")


def _whole_modules(names: Sequence[str]) -> str:
    return f"it replaces whole modules ({', '.join(names)}), which no sum of LoRA matrices stands for"


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """PEFT's s, with the alpha that a pattern may give this module."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_bases(folders: Sequence[Path]) -> None:
    known = {}
    for folder in folders:
        args = read_json(folder / find.ARGS_FILE) if (folder / find.ARGS_FILE).is_file() else {}
        known.setdefault(args.get("base_digest"), folder)
    known.pop(None, None)
    if len(known) > 1:
        raise BadInput(f"adapters of different bases cannot be combined: {' and '.join(map(str, known.values()))}")


# Sums


def _sum(adapters: Sequence[_Adapter], factors: Sequence[float]) -> dict[str, _Change]:
    """By module: the A's one below the other, the factor * B's side by side."""
    import torch

    parts: dict[str, list[tuple[_Change, float]]] = {}
    for adapter, factor in zip(adapters, factors, strict=True):
        for module, change in adapter.changes.items():
            parts.setdefault(module, []).append((change, factor))
    for module, ours in parts.items():
        if len({(change.a.shape[1], change.b.shape[0]) for change, _ in ours}) > 1:
            raise BadInput(f"{' and '.join(str(one.folder) for one in adapters)} belong to models of different "
                           f"architecture: the shapes of {module} differ")  # fmt: skip
    return {
        module: _Change(
            torch.cat([change.a for change, _ in ours]),
            torch.cat([factor * change.b for change, factor in ours], dim=1),
        )
        for module, ours in parts.items()
    }


def _cut_back(changes: dict[str, _Change], rank: int) -> tuple[dict[str, _Change], float]:
    """Each change at `rank` at most, and the relative error of them all.

    QR of both factors leaves an R x R core to decompose, R the summed rank: no [out, in] matrix is ever formed."""
    import torch

    cut, kept, left_out = {}, 0.0, 0.0
    for module, change in changes.items():
        q_b, r_b = torch.linalg.qr(change.b.double())
        q_a, r_a = torch.linalg.qr(change.a.double().t())
        left, values, right = torch.linalg.svd(r_b @ r_a.t())
        k = min(rank, len(values))
        root = values[:k].sqrt()
        cut[module] = _Change((root[:, None] * right[:k] @ q_a.t()).float(), (q_b @ left[:, :k] * root).float())
        kept, left_out = kept + float(values[:k].square().sum()), left_out + float(values[k:].square().sum())
    return cut, math.sqrt(left_out / (kept + left_out)) if kept + left_out else 0.0


# Writing


def _config_of(adapters: Sequence[_Adapter], changes: dict[str, _Change]) -> dict[str, Any]:
    """One of the adapters' configs with the sum's ranks and modules; alpha is the rank, so that every scale is 1."""
    ranks = {module: change.a.shape[0] for module, change in changes.items()}
    rank = max(ranks.values())
    odd = {module: own for module, own in ranks.items() if own != rank}
    return {
        **{name: value for name, value in adapters[-1].config.items() if name in UNDERSTOOD},
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "target_modules": _targets(adapters, changes),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "bias": "none",
        "inference_mode": True,
    }


def _targets(adapters: Sequence[_Adapter], changes: dict[str, _Change]) -> list[str]:
    """Short names, such as q_proj, where every adapter has them in all layers; else every module by its full name."""
    limits = ("layers_to_transform", "exclude_modules")
    is_everywhere = all(
        isinstance(one.config["target_modules"], list)
        and not any("." in name for name in one.config["target_modules"])
        and not any(one.config.get(limit) for limit in limits)
        for one in adapters
    )
    return sorted({module.rpartition(".")[2] for module in changes} if is_everywhere else changes)


def _write(changes: dict[str, _Change], config: dict[str, Any], output: Path) -> int:
    from safetensors.torch import save_file

    output.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{module}.lora_A.weight": change.a.contiguous() for module, change in changes.items()}
    tensors |= {f"{PREFIX}{module}.lora_B.weight": change.b.contiguous() for module, change in changes.items()}
    save_file(tensors, output / WEIGHTS[0], metadata={"format": "pt"})
    write_json(output / CONFIG_FILE, config)
    return config["r"]


def _name_base(folder: Path, base: str) -> None:
    config = read_json(folder / CONFIG_FILE)
    write_json(folder / CONFIG_FILE, {**config, "base_model_name_or_path": base})
