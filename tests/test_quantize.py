"""Quantised models: near the original by a measured bound, with LoRA above them, and never the same name."""

import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import make_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from evergreen.engine import quantize as room
from evergreen.engine.lora import Adapters
from evergreen.engine.quantize import Int4Linear, Int8Linear, Quantized, quantize, relative_error, weight_of
from evergreen.model.load import LoadedModel
from evergreen.records import BadInput

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return make_base(tmp_path_factory.mktemp("models") / "tiny", **SHAPE)


def load(base: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    return LoadedModel(model, AutoTokenizer.from_pretrained(base), None, "tiny")


def kl(model, other, ids: torch.Tensor) -> float:
    with torch.inference_mode():
        wanted, found = (one(input_ids=ids).logits.float().log_softmax(-1) for one in (model, other))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def make_linear(in_features: int = 128, out_features: int = 64, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(in_features, out_features, bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("quantization", "most"), [("int8", 1e-3), ("int4", 1e-2), ("nf4", 1e-2)])
def test_a_quantised_model_answers_nearly_as_before_in_its_own_dtype(base, quantization, most, dtype):
    loaded, ids = load(base, dtype), torch.arange(20, 60)[None]
    done = quantize(loaded, quantization)
    assert done == Quantized(quantization)
    assert not [name for name, module in loaded.model.named_modules() if type(module) is torch.nn.Linear]
    assert isinstance(loaded.model.get_output_embeddings(), Int8Linear)
    assert loaded.model(input_ids=ids).logits.dtype == loaded.model.dtype == dtype
    assert 0 < kl(load(base).model, loaded.model, ids) < most


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_product_of_its_codes_and_scales(monkeypatch, is_packed, bias):
    here = room.packs_bytes()
    monkeypatch.setattr(room, "packs_bytes", lambda: is_packed and here)
    linear = make_linear(bias=bias)
    small, x = Int8Linear(linear), torch.randn(2, 5, 128)
    scale = x.abs().amax(-1, keepdim=True) / 127
    slow = torch.round(x / scale) * scale @ small.dequantize().T + (linear.bias if bias else 0)
    assert relative_error(small(x), slow) < 1e-6
    assert (small.dequantize() - linear.weight).abs().max() <= linear.weight.abs().max() / 254 * 1.001
    assert relative_error(small(x), linear(x)) < 0.02


def test_an_int8_row_does_not_depend_on_the_rows_beside_it():
    small, x = Int8Linear(make_linear()), torch.randn(9, 128)
    x[3] *= 1000
    together = small(x)
    assert all(torch.equal(together[i], small(x[i : i + 1])[0]) for i in range(9))


def test_an_int8_row_of_zeros_gives_the_bias_and_one_of_nan_stays_nan():
    linear = make_linear()
    rows = torch.stack([torch.zeros(128), torch.full((128,), float("nan"))])
    zeros, nans = Int8Linear(linear)(rows)
    assert torch.equal(zeros, linear.bias)
    assert nans.isnan().all()


def test_int4_levels_lie_between_the_ends_of_each_group_of_32():
    linear = make_linear()
    small = Int4Linear(linear)
    error = (weight_of(small) - linear.weight).view(64, -1, 32).abs().amax(-1)
    spread = linear.weight.view(64, -1, 32).amax(-1) - linear.weight.view(64, -1, 32).amin(-1)
    assert (error <= spread * 0.13).all()  # the widest range's levels are a fifteenth apart, the narrowest cuts a tenth
    assert error.mean() < spread.mean() / 25


def test_int4_errs_least_where_its_inputs_are_great():
    linear, greatness = make_linear(), torch.rand(128) ** 4
    x = torch.randn(500, 128) * greatness
    y = torch.nn.functional.linear(x, linear.weight, linear.bias)
    told, untold = Int4Linear(linear, greatness**2), Int4Linear(linear)
    assert relative_error(told(x), y) < 0.9 * relative_error(untold(x), y)


@pytest.mark.parametrize("make", [Int8Linear, Int4Linear, room._nf4])
def test_weight_of_is_the_weight_that_a_quantised_linear_multiplies_by(make):
    small, x = make(make_linear()), torch.randn(4, 128).bfloat16()
    wanted = x.float() @ weight_of(small).T + small.bias.float()
    assert relative_error(small(x), wanted) < 0.02


def test_a_layer_that_quantising_would_hurt_stays_and_changes_the_suffix(base):
    loaded = load(base)
    plain = quantize(load(base), "int8")
    norm = loaded.model.model.layers[1].post_attention_layernorm
    norm.weight.data[5] = 3000.0  # an outlier feature, as in the first layers of Qwen2.5
    for linear in (loaded.model.model.layers[1].mlp.gate_proj, loaded.model.model.layers[1].mlp.up_proj):
        linear.weight.data[:, 5] = 1e-5
    done = quantize(loaded, "int8")
    assert done.kept == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    assert done.suffix.startswith("+int8-") and plain.suffix == "+int8"


def test_a_model_that_comes_quantised_or_is_to_stay_is_left_alone(base):
    loaded = load(base)
    assert quantize(loaded, "").suffix == ""
    assert quantize(loaded, "nf4").suffix == "+nf4"
    assert quantize(loaded, "int8").suffix == ""


def test_a_format_that_cannot_be_had_is_one_line(base, monkeypatch):
    with pytest.raises(BadInput, match="--quantization int2: one of int8, int4, nf4"):
        quantize(load(base), "int2")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadInput, match=r"pip install 'evergreen-lm\[qlora\]'"):
        quantize(load(base), "nf4")


@pytest.mark.parametrize("quantization", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_above_quantised_linears_are_peft_s_above_the_weights_that_these_stand_for(
    base, tmp_path, quantization, use_dora
):
    loaded, rounded, ids = load(base), load(base).model, torch.arange(20, 40)[None]
    quantize(loaded, quantization)
    for name, module in loaded.model.named_modules():
        if name.endswith("_proj"):
            rounded.get_submodule(name).weight.data = weight_of(module)
    adapted = get_peft_model(rounded, LoraConfig(r=4, lora_alpha=8, target_modules=r".*_proj", use_dora=use_dora))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
        if "magnitude" in name:
            weight.data *= 1 + torch.rand_like(weight)
    adapted.save_pretrained(tmp_path)
    adapters = Adapters(loaded.model, 1)
    adapters.step.set([(adapters.load("a", [tmp_path]), 0, 20)])
    assert kl(adapted, loaded.model, ids) < kl(load(base).model, adapted, ids) / 200


def test_suffixes_tell_formats_and_kept_layers_apart():
    made = [Quantized("int8"), Quantized("int4"), Quantized("int8", ("a",)), Quantized("int8", ("b",)), Quantized("")]
    assert len({one.suffix for one in made}) == 5
