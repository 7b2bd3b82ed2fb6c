"""Which weights learn: a LoRA adapter over a frozen (perhaps 4-bit) base, all weights, or some decoder layers; and what
becomes of the adapters of earlier runs: trained further, left as they are below a new one, or merged into the base."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evergreen
from evergreen.model import adapters, load
from evergreen.model.find import absolute_name, link_to, parent_of, record_of, seen_from
from evergreen.model.write import whole_folder, write_model, write_records
from evergreen.records import BadInput, Failure
from evergreen.settings import SftSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WITHOUT_ADAPTER = ("full", "freeze")


def starting_point(
    settings: SftSettings, source: load.Reference, folder: Path, say: Callable[[str], None] = lambda _: None
) -> load.Reference:
    """What a run's weights are loaded from, given the version that it goes on from.

    That version itself, but with `--chain merge` its adapters are merged into its base first, which is written as
    `folder`/base: a model folder like any other. The sums are fp32's and rounded once, to the dtype that the run
    computes in; version.json there says how much of the adapters' change the rounding lost. A base that lies there
    already and is the same is taken as it is."""
    if settings.chain != "merge" or not source.adapters or settings.train_type in WITHOUT_ADAPTER:
        if fixed := below(settings, source):
            say(f"{source.base} with {', '.join(map(str, fixed))} merged in; they stay as they are")
        return source
    device = settings.device or load.default_device()
    dtype = load.resolve_dtype(settings.torch_dtype, device)
    place = folder / "base"
    facts = {
        "base_digest": load.model_digest(source.base),
        "merged": [link_to(adapter, place) for adapter in source.adapters],
        "dtype": str(dtype).removeprefix("torch."),
    }
    if not _is_merged(place, facts):
        if int(os.environ.get("RANK", "0")):
            _wait_until(lambda: _is_merged(place, facts), settings.ddp_timeout, f"{place} was not written")
        else:
            _write_merged(source, place, facts, dtype, device)
    lost = record_of(place)["rounding"]
    say(f"{len(source.adapters)} merged into {place}; rounding to {facts['dtype']} lost {lost:.2%} of their change")
    return load.Reference(str(place), (), source.args)


def below(settings: SftSettings, reference: load.Reference) -> tuple[Path, ...]:
    """The adapters that stay as they are beneath the one that a run trains, innermost first."""
    if settings.train_type in WITHOUT_ADAPTER:
        return ()
    return reference.adapters if settings.chain == "stack" else reference.adapters[:-1]


def chain_of(settings: SftSettings, reference: load.Reference, folder: Path) -> list[dict[str, Any]]:
    """`chain` of args.json and version.json in `folder`: the adapters below this one, innermost first."""
    return [link_to(adapter, folder) for adapter in below(settings, reference)]


def load_trainable(
    settings: SftSettings, reference: load.Reference, weights: Path | None, dtype: "torch.dtype", device: str
) -> "PreTrainedModel":
    """The model with exactly those parameters trainable that the settings name.

    `reference` is a `starting_point`. Its last adapter is trained further, or with `--chain stack` a new one over all
    of them; those below are merged into the weights in memory. `weights` is a checkpoint whose weights replace those
    that would learn (a continuation without its optimizer). Full and partial training keep fp32 master weights and
    compute in `dtype` by autocast."""
    import torch

    torch.manual_seed(settings.seed)
    if settings.train_type in WITHOUT_ADAPTER:
        return _load_weights(settings, reference, weights, device)
    fixed = below(settings, reference)
    if fixed and settings.train_type == "qlora":
        raise BadInput("qlora holds 4-bit weights, which the adapters below a stacked one cannot be merged into: "
                       "--chain merge writes them into the base first")  # fmt: skip
    model = load.load_base(reference.base, dtype, device, _quantization(settings, dtype))
    if settings.train_type == "qlora":
        from peft import prepare_model_for_kbit_training

        # bitsandbytes on a CPU cannot train Qwen2's biased projections unless the base is frozen first
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    layers = learning_layers(settings, model.config)
    start = weights or next(iter(reference.adapters[len(fixed) :]), None)
    if start:
        return freeze_layers(adapters.attach(model, [*fixed, start], trainable=True), layers)
    model = adapters.merge_into(model, fixed)
    torch.manual_seed(settings.seed)  # PEFT draws numbers for every adapter that it loads
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


def _write_merged(
    source: load.Reference, place: Path, facts: dict[str, Any], dtype: "torch.dtype", device: str
) -> None:
    """Holds the model in fp32 and a copy as it is stored: 6 bytes a parameter for a bf16 base."""
    import torch

    model = load.load_base(source.base, torch.float32, device)
    stored = getattr(load.load_config(source.base), "dtype", None) or torch.float32
    before = {name: parameter.detach().to(stored, copy=True) for name, parameter in model.named_parameters()}
    model = adapters.merge_into(model, source.adapters)
    changed = [(parameter, before[name]) for name, parameter in model.named_parameters()]
    size = sum(float((after - start).square().sum()) for after, start in changed)
    lost = sum(float((after - after.to(dtype)).square().sum()) for after, start in changed if not after.equal(start))
    with whole_folder(place) as staged:
        write_model(model, load.tokenizer_for(source), dtype, staged)
        digest = load.model_digest(staged)
        rounding = math.sqrt(lost / size) if size else 0.0
        version = {**facts, "digest": digest, "base": absolute_name(source.base), "parent": parent_of(source),
                   "method": "merge", "chain": [], "rounding": rounding,
                   "evergreen": evergreen.__version__}  # fmt: skip
        origin = source.adapters[-1]
        args = source.args and {**seen_from(source.args, origin, place), "chain": []}
        write_records(staged, args, version)


def _is_merged(place: Path, facts: dict[str, Any]) -> bool:
    known = record_of(place)
    same = all(known.get(name) == facts[name] for name in ("base_digest", "dtype"))
    digests = [[link["digest"] for link in record.get("merged", ())] for record in (known, facts)]
    return same and digests[0] == digests[1] and known["digest"] == load.model_digest(place)


def _wait_until(is_done: Callable[[], bool], timeout_seconds: float, else_say: str) -> None:
    """For the processes of a run that the main one writes for."""
    deadline = time.monotonic() + timeout_seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise Failure(f"{else_say} by the main process within {timeout_seconds:.0f} seconds (--ddp_timeout)")
        time.sleep(1)


def freeze_layers(model: "PreTrainedModel", layers: set[int] | None) -> "PreTrainedModel":
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
        model = adapters.merge_into(model, reference.adapters)
    layers = learning_layers(settings, model.config)
    model.requires_grad_(layers is None or settings.train_type == "full")
    for i, block in enumerate(_decoder_layers(model)):
        block.requires_grad_(layers is None or i in layers)
    return model


def _quantization(settings: SftSettings, dtype: "torch.dtype") -> Any:
    if settings.train_type != "qlora":
        return None
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
