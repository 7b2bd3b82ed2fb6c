"""From a name to a model in memory, ready to answer or to be trained.

Promises: what cannot be had is one line that names what is there instead. Which folders a name stands for is `find`'s.
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

from evergreen.model.find import (  # noqa: F401
    NANO,
    Reference,
    find_model,
    is_adapter,
    local_models,
    model_digest,
    read_config,
    reference_digest,
    resolve,
)
from evergreen.records import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evergreen.settings import ModelSettings

DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
YARN_FACTOR = 4
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt", "*.tiktoken")


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
    rope_scaling: str = "",
    max_model_len: int = 0,
) -> LoadedModel:
    """Model and tokenizer for inference; LoRA adapters stay unmerged. `rope_scaling` "yarn" makes the context
    `max_model_len` tokens long (see `stretched`).

    Raises BadInput for what cannot be found, does not belong together, or has no chat template."""
    found = resolve(reference, adapters)
    settings = found.args or {}
    tokenizer = tokenizer_for(found, template or settings.get("template") or "")
    device = device or default_device()
    dtype = resolve_dtype(torch_dtype, device)
    model = load_base(found.base, dtype, device, config=stretched(found.base, max_model_len) if rope_scaling else None)
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


def load_for(settings: "ModelSettings", reference: str, adapters: Sequence[str] = ()) -> LoadedModel:
    """`load_model` of a reference, in the way that a command's settings say (dtype, device, system, template)."""
    loaded = load_model(
        reference,
        adapters,
        torch_dtype=settings.torch_dtype,
        device=settings.device,
        system=settings.system,
        template=settings.template,
    )
    check_model_type(settings.model_type, loaded.model.config)
    return loaded


def load_merged(found: Reference, dtype: "torch.dtype", device: str) -> "PreTrainedModel":
    """The base with all adapters merged into its weights, each rounded once to `dtype`."""
    from evergreen.model.adapters import merge_into

    return merge_into(load_base(found.base, dtype, device), found.adapters)


def load_base(
    base: str, dtype: "torch.dtype", device: str, quantization: Any = None, config: Any = None
) -> "PreTrainedModel":
    """A causal language model by transformers, of its own config or another. Raises BadInput when it cannot be had."""
    import torch
    from transformers import AutoModelForCausalLM

    _check_device(device)
    _check_files(base)
    extra = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    if config is not None:
        extra["config"] = config
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


def stretched(base: str, max_model_len: int = 0) -> Any:
    """The model's config with rotary positions scaled by YaRN (Peng et al. 2023) to `max_model_len` tokens; 0 is
    four times what it was trained for, the factor that Qwen2.5's cards document. Short texts are scaled too, at the
    cost of a little quality. Raises BadInput for a model that is scaled in another way, or long enough."""
    config = load_config(base)
    rope, trained = dict(getattr(config, "rope_parameters", None) or {}), config.max_position_embeddings
    if rope.get("rope_type") == "yarn":
        return config
    if rope.get("rope_type") != "default":
        raise BadInput(f"--rope_scaling yarn: {base} has rotary positions of the kind {rope.get('rope_type') or rope}")
    wanted = max_model_len or YARN_FACTOR * trained
    if wanted <= trained:
        raise BadInput(f"--rope_scaling yarn: {base} takes {trained} tokens as it is, and {wanted} are "
                       "wanted (--max_model_len): leave it out")  # fmt: skip
    scale = {"rope_type": "yarn", "factor": wanted / trained, "original_max_position_embeddings": trained}
    config.rope_parameters, config.max_position_embeddings = rope | scale, wanted
    return config


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
    return tokenizer_for(resolve(reference))


def tokenizer_for(found: Reference, template: str = "") -> "PreTrainedTokenizerBase":
    """The tokenizer that a resolved model brings: its outermost adapter's, else its base's."""
    return load_tokenizer(str(found.adapters[-1]) if found.adapters else found.base, found.base, template)


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
        if not (Path(found.base) / "config.json").is_file() or read_config(found.base).get("quantization_config"):
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


def _check_files(base: str) -> None:
    folder = Path(base)
    if folder.is_dir() and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise BadInput(f"{base} has a config.json but no weights (*.safetensors)")


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
