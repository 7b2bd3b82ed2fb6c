"""From a name to a model in memory: local folders, then the hub; adapters bring their base with them.

Promises: a reference is `nano`, a folder, a name under $EVERGREEN_MODELS, or a hub name; an adapter's output folder
stands for its base with the adapter on it. What cannot be had is one line that names what is there instead.
Does not: convert formats, or download anything that transformers would not.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import digest_of, read_json
from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NANO = Path(__file__).parent / "nano"
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SAMPLED_BYTES = 1 << 20
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt", "*.tiktoken")


@dataclass
class Reference:
    """A resolved model: the base's folder or hub name, and the adapter folders over it, innermost first."""

    base: str
    adapters: tuple[Path, ...] = ()
    args: dict | None = None  # the args.json of the outermost adapter or run, when it left one


@dataclass
class LoadedModel:
    """A model ready to run, in eval mode on its device, with what prompts for it need."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    system: str | None  # the system prompt to use when a conversation brings none; None: the template's own
    name: str


def load_model(
    reference: str,
    adapters: Sequence[str] = (),
    *,
    torch_dtype: str = "auto",
    device: str = "",
    system: str | None = None,
    template: str = "",
) -> LoadedModel:
    """Model and tokenizer for inference; LoRA adapters stay unmerged.

    Raises BadInput for what cannot be found, does not belong together, or has no chat template."""
    found = resolve(reference, adapters)
    settings = found.args or {}
    tokenizer = load_tokenizer(
        str(found.adapters[-1]) if found.adapters else found.base,
        found.base,
        template or settings.get("template") or "",
    )
    device = device or default_device()
    dtype = resolve_dtype(torch_dtype, device)
    model = load_base(found.base, dtype, device)
    if found.adapters:
        from evergreen.model.adapters import attach

        model = attach(model, found.adapters)
    model.eval()
    return LoadedModel(
        model,
        tokenizer,
        settings.get("system") if system is None else system,
        str(adapters[-1]) if adapters else reference,
    )


def resolve(reference: str, adapters: Sequence[str] = ()) -> Reference:
    """Follow `reference` and `adapters` down to a base model. Adapters know their own base."""
    folders = [adapter_folder(adapter) for adapter in adapters]
    if reference:
        place = find_model(reference)
        if is_adapter(place):
            folders = [Path(place), *folders]
            reference = base_of(folders[0])
        else:
            reference = place
    elif folders:
        reference = base_of(folders[0])
    else:
        raise BadInput("no model given: --model nano, a folder, a hub name, or --adapters with a trained adapter")
    base = find_model(reference)
    chain = tuple(folders)
    for folder in chain:
        _check_base(folder, base)
    return Reference(base, chain, _args_of(chain[-1] if chain else Path(base)))


def find_model(name: str) -> str:
    """A folder that holds a model or adapter, or the name unchanged when only the hub can know it.

    Raises BadInput for a path that does not exist, listing what stands beside it."""
    if name == "nano":
        return str(NANO)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise BadInput(f"{name} holds neither a model nor an adapter{_checkpoints_in(path)}")
        return str(path)
    if path.is_file():
        raise BadInput(f"{name} is a file: a model is a folder with config.json and weights, or a hub name")
    for folder in _model_folders():
        for candidate in (folder / name, folder / name.split("/")[-1]):
            if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
                return str(candidate)
    if _looks_like_path(name):
        raise BadInput(f"no model or checkpoint at {name}{_checkpoints_in(path.parent)}")
    return name


def adapter_folder(name: str) -> Path:
    """The folder of a PEFT adapter. Raises BadInput when it does not exist or holds no adapter."""
    place = find_model(name)
    path = Path(place)
    if not path.is_dir():
        raise BadInput(f"no adapter at {name}{_checkpoints_in(path.parent)}")
    if not is_adapter(place):
        raise BadInput(f"{name} is a whole model, not an adapter: give it as --model")
    if not any((path / f"adapter_model.{suffix}").is_file() for suffix in ("safetensors", "bin")):
        raise BadInput(f"{name} has an adapter_config.json but no weights (adapter_model.safetensors)")
    return path


def is_adapter(place: str | Path) -> bool:
    return (Path(place) / "adapter_config.json").is_file()


def base_of(adapter: Path) -> str:
    """The base that an adapter was trained on: its args.json first, then adapter_config.json.

    Raises BadInput when that base is gone."""
    recorded = [
        (_args_of(adapter) or {}).get("base"),
        read_json(adapter / "adapter_config.json").get("base_model_name_or_path"),
    ]
    names = [name for name in recorded if name]
    if not names:
        raise BadInput(f"{adapter} does not say which base it belongs to: give --model")
    for name in names:
        try:
            place = find_model(name)
        except BadInput:
            continue
        if Path(place).is_dir() or not _looks_like_path(name):
            return place
    raise BadInput(f"the base of {adapter} is gone: {names[0]} does not exist; give its new place as --model")


def load_base(base: str, dtype: "torch.dtype", device: str, quantization: Any = None) -> "PreTrainedModel":
    """A causal language model by transformers. Raises BadInput when it cannot be had."""
    import torch
    from transformers import AutoModelForCausalLM

    _check_device(device)
    _check_files(base)
    extra = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    with _loading(base):
        model, report = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **extra
        )
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random ones
        raise BadInput(f"{base} lacks {len(missing)} of its weights, such as {missing[0]}: copy it again")
    if not quantization:
        return model.to(torch.device(device))
    for module in model.modules():  # on CPUs with avx512_bf16 an evaluation would repack 4-bit weights, for good, into
        module.support_avx512bf16_for_cpu = False  # a form that has no gradient
    return model


def load_config(base: str) -> Any:
    """The model's config by transformers. Raises BadInput when it cannot be had."""
    from transformers import AutoConfig

    with _loading(base):
        return AutoConfig.from_pretrained(base)


def load_tokenizer(place: str, base: str, template: str = "") -> "PreTrainedTokenizerBase":
    """The tokenizer of an adapter's folder (else its base's), with a chat template and a padding token set."""
    from transformers import AutoTokenizer

    from evergreen.model.template import choose_template

    source = place if (Path(place) / "tokenizer_config.json").is_file() else base
    if Path(source).is_dir() and not any(any(Path(source).glob(name)) for name in TOKENIZER_FILES):
        raise BadInput(f"{source} holds no tokenizer (tokenizer.json): copy it from where the model comes from")
    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    choose_template(tokenizer, template, base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of(reference: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model or adapter, without its weights."""
    found = resolve(reference)
    return load_tokenizer(str(found.adapters[-1]) if found.adapters else found.base, found.base)


def check_model_type(wanted: str, config: Any) -> None:
    """`--model_type` is accepted for habit's sake, in the spelling of any framework; a wrong one is an error."""
    given, own = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (wanted, config.model_type))
    family = own.rstrip("0123456789")
    if given and not given.startswith(family):
        raise BadInput(f"--model_type {wanted}: this model is a {config.model_type}")


def leave_out_bitsandbytes(*references: str) -> None:
    """Spare this process the import of bitsandbytes, 1.5 s of CPU that PEFT spends whenever it is installed.

    Only for a process whose models are all unquantised: PEFT will not know 4-bit layers afterwards."""
    for reference in filter(None, references):
        try:
            found = resolve(reference)
        except BadInput:
            return
        if not (Path(found.base) / "config.json").is_file() or _read_config(found.base).get("quantization_config"):
            return
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise BadInput(f"--device {device}: not on this machine, which has {', '.join(there)}") from None


def resolve_dtype(name: str, device: str) -> "torch.dtype":
    """A dtype by name; `auto` is what the device multiplies matrices fastest in."""
    import torch

    return fast_dtype(device) if name == "auto" else getattr(torch, DTYPE_NAMES.get(name, name))


def fast_dtype(device: str) -> "torch.dtype":
    """bf16 where its matrix products are at least 1.3x as fast as fp32's, else fp32 (fp16 on a GPU without bf16).

    Measured, because CPUs with the same instruction flags differ ninefold: bf16 was 0.5x fp32 on a Xeon with
    avx512_bf16 but no AMX, and 4.5x on an EPYC with the same flag. Takes about 50 ms."""
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _product_seconds(torch.float32) > 1.3 * _product_seconds(torch.bfloat16) else torch.float32


def _product_seconds(dtype: "torch.dtype", repeats: int = 5) -> float:
    import torch

    left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return best


def model_digest(place: str | Path) -> str:
    """Identity of a model folder: its config and every weight file's name, size, first and last MiB.

    Sampled, because hashing 15 GB of weights would take longer than loading them; a hub name is its own digest."""
    folder = Path(place)
    if not folder.is_dir():
        return digest_of(str(place))
    config = {key: value for key, value in _read_config(folder).items() if key != "transformers_version"}
    weights = [_sample(path) for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))]
    return digest_of([config, weights])


def reference_digest(found: Reference) -> str:
    """Identity of what answers: base, adapters, and the system prompt and template that they bring."""
    from evergreen.model.adapters import adapter_digest

    brings = [(found.args or {}).get(name) for name in ("system", "template")]
    return digest_of([model_digest(found.base), [adapter_digest(folder) for folder in found.adapters], brings])


def _read_config(folder: str | Path) -> dict[str, Any]:
    config = read_json(Path(folder) / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{folder}/config.json wants an object of settings, got a {type(config).__name__}")
    return config


def _sample(path: Path) -> list:
    import hashlib

    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(SAMPLED_BYTES)
        file.seek(max(0, size - SAMPLED_BYTES))
        tail = file.read()
    return [path.name, size, hashlib.sha256(head + tail).hexdigest()]


def _args_of(folder: Path) -> dict | None:
    """The args.json of a run; a checkpoint without one uses its parent's."""
    for place in (folder, folder.parent):
        if (place / "args.json").is_file():
            return read_json(place / "args.json")
    return None


def _check_base(adapter: Path, base: str) -> None:
    """Refuse an adapter of another base: by digest where both are known, else by the config's shape when it loads."""
    args = _args_of(adapter) or {}
    if not Path(base).is_dir() or args.get("base_digest") in (None, model_digest(base)):
        return
    if Path(args.get("base", "")).resolve() == Path(base).resolve():
        raise BadInput(f"{adapter} was trained on {base}, which has changed since: train a new adapter")
    raise BadInput(
        f"{adapter} was trained on {args.get('base')}, which is not the model at {base}: "
        "leave --model away to use its own base, or train a new adapter"
    )


def _check_files(base: str) -> None:
    folder = Path(base)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise BadInput(f"{base} has a config.json but no weights (*.safetensors)")


def _looks_like_path(name: str) -> bool:
    """A hub name is `name` or `owner/name`; anything deeper, or with a path's marks, is a path."""
    return (
        name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or "checkpoint-" in name
        or Path(name).parts[:1] in (("output",), ("outputs",))
        or (name.count("/") == 1 and Path(name).parent.is_dir())
    )


def _checkpoints_in(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    found = sorted(
        str(path)
        for path in folder.iterdir()
        if path.is_dir() and ((path / "config.json").is_file() or is_adapter(path))
    )
    return f"; there are: {', '.join(found[:8])}" if found else ""


def _model_folders() -> list[Path]:
    return [Path(folder).expanduser() for folder in os.environ.get("EVERGREEN_MODELS", "").split(os.pathsep) if folder]


def local_models() -> list[str]:
    """Models that need no network: nano and what lies under $EVERGREEN_MODELS."""
    found = [
        str(path)
        for folder in _model_folders()
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if (path / "config.json").is_file()
    ]
    return ["nano", *found]


class _loading:
    """Turns whatever transformers raises over a folder or a hub name into one line. A context manager."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        _quiet_libraries()
        if not Path(self.name).is_dir():
            _stay_offline_without_network()

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        if not isinstance(error, Exception) or is_out_of_memory(error):
            return
        if not Path(self.name).is_dir():
            raise BadInput(
                f"{self.name} is neither a local folder nor reachable on the hub; local models are: "
                f"{', '.join(local_models())} (EVERGREEN_MODELS lists folders to look in)"
            ) from error
        reason = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that its config.json says"
        elif type(error).__name__ == "SafetensorError":
            reason = f"a weight file is cut off or damaged ({reason}): copy it again"
        raise BadInput(f"{self.name} cannot be loaded: {reason[:300]}") from error


def _quiet_libraries() -> None:
    """No advice, tables or bars of transformers between our own lines; what matters in them is an error here."""
    import warnings

    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by whichever name torch says so."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _stay_offline_without_network() -> None:
    """The hub's library tries for 50 seconds before it gives up; a connection that does not open in three will not.

    What it has cached still serves. Behind a proxy only a request can tell."""
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
