"""GGUF files for llama.cpp from Hugging Face folders and PEFT adapters: the Llama, Mistral, Qwen2 and Qwen3 families.

Promises: f32 answers with transformers' tokens; matrices of f16 and q8_0 are rounded once, norms and biases stay f32.
An adapter's file holds plain factors (its scale is in B, so ranks, rsLoRA and patterns need no field), and a chain is
one file with the ranks side by side. What llama.cpp would get wrong is refused: other families, tokenizers that are not
byte-level BPE, rotary scalings that it does not know, DoRA.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import read_json
from evergreen.records import BadInput, Failure

if TYPE_CHECKING:
    import numpy
    import torch
    from gguf import GGUFWriter

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
PRE_TOKENIZERS = {"llama": "llama-bpe", "mistral": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, UNKNOWN, CONTROL, UNUSED = 1, 2, 3, 5  # llama.cpp's kinds of tokens


def write_model(folder: Path, path: Path, kind: str = "f16") -> None:
    """The model of a Hugging Face folder as one file; `kind` is f32, f16, q8_0 or another that the gguf package can
    quantise to (q4_0, bf16). Raises BadInput for what does not fit the format, before a byte is written."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    _check(config, folder)
    writer = _writer(path, ARCHITECTURES[config.model_type])
    writer.add_file_type(_file_type(kind))
    _add_config(writer, config)
    _add_tokenizer(writer, config, folder)
    for name, tensor in _weights(folder, config):
        _add_tensor(writer, name, tensor, kind)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        _add_tensor(writer, "rope_freqs.weight", _rope_factors(config), "f32")
    _finish(writer)


def write_adapter(folders: Sequence[Path], model: Path, path: Path) -> None:
    """A chain of PEFT folders over a model, innermost first, as one adapter. Raises BadInput for DoRA and for whatever
    is more than linears of decoder layers."""
    import torch
    from transformers import AutoConfig

    from evergreen.engine.adapter_folder import AdapterFolder

    config = AutoConfig.from_pretrained(model)
    _check(config, model)
    chain, linears = [AdapterFolder(Path(folder)) for folder in folders], _linears(config)
    for one in chain:
        one.check(str(model), linears)
        if one.is_dora:
            raise BadInput(f"{one.path} is a DoRA adapter, which llama.cpp cannot apply: merge it into the base")
    writer = _writer(path, ARCHITECTURES[config.model_type])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)  # 0: B is taken as it is
    for name in dict.fromkeys(name for one in chain for name in one.parts):
        holders = [one for one in chain if name in one.parts]
        a, b = torch.cat([one.a(name) for one in holders]), torch.cat([one.up(name) for one in holders]).T
        target = f"{gguf_name(name)}.weight"
        writer.add_tensor(f"{target}.lora_a", _array(a))
        writer.add_tensor(f"{target}.lora_b", _array(_arranged(b, name, config)))
    _finish(writer)


def _linears(config: Any) -> "dict[str, torch.nn.Module]":
    """The linears of a model's decoder layers by name, without their weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: one for name, one in model.named_modules() if ".layers." in name and isinstance(one, torch.nn.Linear)}


def gguf_name(module: str) -> str:
    """llama.cpp's name of a module: model.layers.3.mlp.up_proj is blk.3.ffn_up. Raises BadInput for one it lacks."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    parts = module.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[3] in NAMES:
        return f"blk.{parts[2]}.{NAMES[parts[3]]}"
    raise BadInput(f"llama.cpp has no place for {module} in a model of this family")


def _check(config: Any, folder: Path) -> None:
    if config.model_type not in ARCHITECTURES:
        raise BadInput(f"{folder} is of the family {config.model_type}; llamacpp runs {', '.join(ARCHITECTURES)} here: "
                       "use --engine embedded")  # fmt: skip
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise BadInput(f"{folder} has rotary positions of the kind {kind}, which cannot be told to llama.cpp")
    if getattr(config, "quantization_config", None):
        raise BadInput(f"{folder} is quantised already: llamacpp wants the model before quantisation")
    windows = getattr(config, "layer_types", None) or []
    if "sliding_attention" in windows or (config.model_type == "mistral" and config.sliding_window):
        raise BadInput(f"{folder} has a sliding window, which llama.cpp ignores in this family: use --engine embedded")


def _writer(path: Path, architecture: str) -> "GGUFWriter":
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise BadInput("llamacpp wants the package gguf: pip install 'evergreen-lm[gguf]'") from None
    return GGUFWriter(path, architecture)


def _file_type(kind: str) -> int:
    """llama.cpp's number of the format that most matrices have; OpenVINO reads no file without it."""
    from gguf import LlamaFileType

    return LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"]


def _finish(writer: "GGUFWriter") -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise Failure(f"the GGUF file could not be written: {error.strerror or error}") from None


def _add_config(writer: "GGUFWriter", config: Any) -> None:
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope.get("rope_type") in ("linear", "yarn"):
        _add_rope_scaling(writer, rope)


def _add_rope_scaling(writer: "GGUFWriter", rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _rope_factors(config: Any) -> "torch.Tensor":
    """Llama 3's divisors of the rotary frequencies, which llama.cpp keeps as a tensor."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    size = 2 * len(scaled)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2).float() / size)
    return plain / scaled


def _add_tokenizer(writer: "GGUFWriter", config: Any, folder: Path) -> None:
    tokenizer = read_json(folder / "tokenizer.json")
    model = tokenizer["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in str(tokenizer.get("decoder")):
        raise BadInput(f"{folder} has a tokenizer of another kind than byte-level BPE: use --engine embedded")
    texts, kinds = [f"[PAD{id}]" for id in range(config.vocab_size)], [UNUSED] * config.vocab_size
    for text, id in model["vocab"].items():
        texts[id], kinds[id] = text, NORMAL
    for token in tokenizer.get("added_tokens", []):
        texts[token["id"]], kinds[token["id"]] = token["content"], CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZERS[config.model_type])
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in model["merges"]])
    writer.add_add_bos_token(False)
    if (end := _end_of_text(config, folder)) is not None:
        writer.add_eos_token_id(end)


def _end_of_text(config: Any, folder: Path) -> int | None:
    path = folder / "generation_config.json"
    end = read_json(path).get("eos_token_id") if path.is_file() else None
    end = config.eos_token_id if end is None else end
    return end[0] if isinstance(end, list) else end


def _weights(folder: Path, config: Any) -> Iterator[tuple[str, "torch.Tensor"]]:
    """(llama.cpp's name, tensor as it wants it) of every weight, a shard at a time."""
    from safetensors import safe_open

    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise BadInput(f"{folder} has no *.safetensors, which llamacpp's files are made from")
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is not a dict
                module, _, part = name.rpartition(".")
                if module.endswith("rotary_emb") or (module == "lm_head" and config.tie_word_embeddings):
                    continue
                yield f"{gguf_name(module)}.{part}", _arranged(file.get_tensor(name), module, config)


def _arranged(tensor: "torch.Tensor", module: str, config: Any) -> "torch.Tensor":
    """Rows of queries and keys as the rotary embedding of the family wants them: llama's pairs stand side by side."""
    if ARCHITECTURES[config.model_type] != "llama" or not module.endswith(("q_proj", "k_proj")):
        return tensor
    heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
    rows, *rest = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _add_tensor(writer: "GGUFWriter", name: str, tensor: "torch.Tensor", kind: str) -> None:
    import gguf

    array = _array(tensor)
    if array.ndim == 1 or kind == "f32":
        writer.add_tensor(name, array)
    elif kind != "f16" and array.shape[-1] % 32 == 0:
        how = gguf.GGMLQuantizationType[kind.upper()]
        writer.add_tensor(name, gguf.quantize(array, how), raw_dtype=how)
    else:
        writer.add_tensor(name, array.astype("float16"))


def _array(tensor: "torch.Tensor") -> "numpy.ndarray":
    return tensor.float().contiguous().numpy()
