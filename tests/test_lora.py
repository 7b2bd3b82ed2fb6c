"""Adapters side by side in one batch: each row gets what PEFT computes for its adapter alone."""

import json
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import make_base
from transformers import AutoModelForCausalLM

from evergreen.engine import lora
from evergreen.engine.lora import Adapters, LoraLinear
from evergreen.model.adapters import merge_into
from evergreen.records import BadInput

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"r": 3, "lora_alpha": 6, "target_modules": ALL, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 4,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
        "alpha_pattern": {"down_proj": 16},
    },
    "some_layers": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    "regex": {"r": 2, "lora_alpha": 4, "target_modules": r".*\.(0|2)\.mlp\..*_proj"},
}
LENGTHS = {"": 5, "plain": 3, "rslora": 1, "dora": 4, "patterns": 2, "some_layers": 2, "regex": 40}


@dataclass
class Batch:
    segments: list


def load_model(base: str, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()


def make_adapter(base: str, folder: Path, seed: int = 0, **config) -> Path:
    """A PEFT folder of random A, B and magnitudes."""
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_magnitude" in name:
            weight.data *= 1 + torch.rand_like(weight)
        elif "lora_" in name:
            weight.data = torch.randn_like(weight) * 0.2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = make_base(tmp_path_factory.mktemp("models") / "tiny")
    model = load_model(folder)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data = torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {kind: make_adapter(base, root / kind, seed, **config) for seed, (kind, config) in enumerate(KINDS.items())}


def linear_outputs(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What each linear of the decoder layers gives for its inputs, whatever stands in its place."""
    with torch.inference_mode():
        return {name: model.get_submodule(name)(x) for name, x in inputs.items()}


def make_inputs(model, rows: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {
        name: torch.randn(1, rows, module.in_features, dtype=module.weight.dtype)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }


def segments_of(adapters: Adapters, lengths: dict[str, int]) -> dict[str, tuple[int, int, int]]:
    segments, start = {}, 0
    for digest, length in sorted(lengths.items(), key=lambda pair: adapters.slot_of(pair[0])):
        segments[digest] = (adapters.slot_of(digest), start, start + length)
        start += length
    return segments


def check_against_peft(base: str, folders: dict[str, Path], dtype: torch.dtype, tolerance: float) -> None:
    model = load_model(base, dtype)
    inputs = make_inputs(model, sum(LENGTHS.values()))
    alone = {"": linear_outputs(model, inputs)}
    for kind, folder in folders.items():
        peft = PeftModel.from_pretrained(load_model(base, dtype), folder, autocast_adapter_dtype=False)
        alone[kind] = linear_outputs(peft.to(dtype).base_model.model, inputs)
    adapters = Adapters(model, max_adapters=8)
    for kind, folder in folders.items():
        adapters.load(kind, [folder])
    segments = segments_of(adapters, LENGTHS)
    adapters.use(Batch(list(segments.values())))
    mixed = linear_outputs(model, inputs)
    for kind, (_, start, end) in segments.items():
        for name, output in mixed.items():
            wanted = alone[kind][name][:, start:end]
            error = (output[:, start:end] - wanted).abs().max() / wanted.abs().max()
            assert error <= (tolerance if kind else 0), (kind, name, float(error))


def test_a_mixed_batch_gives_each_row_what_peft_computes_for_its_adapter_alone(base, folders):
    check_against_peft(base, folders, torch.float32, 1e-6)


def test_a_mixed_batch_of_a_16_bit_model_is_as_near_to_peft_as_bf16_rounds(base, folders):
    check_against_peft(base, folders, torch.bfloat16, 0.02)


def test_a_whole_model_gives_peft_s_logits_for_every_adapter(base, folders):
    model, ids = load_model(base), torch.arange(10, 22)[None]
    adapters = Adapters(model, max_adapters=8)
    for kind, folder in folders.items():
        slot = adapters.load(kind, [folder])
        adapters.use(Batch([(slot, 0, 12)]))
        with torch.inference_mode():
            wanted = PeftModel.from_pretrained(load_model(base), folder)(ids).logits
            assert (model(ids).logits - wanted).abs().max() < 1e-5, kind


def test_only_linears_that_an_adapter_targets_are_replaced(base, folders):
    model = load_model(base)
    Adapters(model, 4).load("s", [folders["some_layers"]])
    replaced = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert replaced == ["model.layers.1.self_attn.v_proj"]


def test_a_chain_of_folders_is_the_sum_of_its_adapters(base, folders):
    chain = [folders["plain"], folders["rslora"], folders["patterns"]]
    model, ids = load_model(base), torch.arange(10, 22)[None]
    adapters = Adapters(model, 1)
    adapters.use(Batch([(adapters.load("chain", chain), 0, 12)]))
    with torch.inference_mode():
        wanted = merge_into(load_model(base), chain)(ids).logits
        assert (model(ids).logits - wanted).abs().max() < 1e-5


def test_dora_is_refused_in_a_chain_with_the_reason(base, folders):
    adapters = Adapters(load_model(base), 4)
    with pytest.raises(BadInput, match="DoRA adapter, whose scale is of the whole sum"):
        adapters.load("x", [folders["plain"], folders["dora"]])


def test_a_slot_is_free_again_after_unloading_and_the_base_is_as_before(base, folders):
    model = load_model(base)
    inputs = make_inputs(model, 6)
    before = linear_outputs(model, inputs)
    adapters = Adapters(model, 2)
    assert adapters.load("a", [folders["plain"]]) == 1
    assert adapters.load("b", [folders["dora"]]) == 2
    assert adapters.load("a", [folders["plain"]]) == 1
    with pytest.raises(BadInput, match="2 are loaded"):
        adapters.load("c", [folders["rslora"]])
    adapters.unload("a")
    with pytest.raises(BadInput, match="not loaded; loaded are: b"):
        adapters.slot_of("a")
    assert adapters.load("c", [folders["rslora"]]) == 1
    assert adapters.digests() == ("b", "c")
    adapters.use(Batch([(0, 0, 6)]))
    after = linear_outputs(model, inputs)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_slot_used_again_holds_nothing_of_its_former_adapter(base, folders):
    model = load_model(base)
    inputs = make_inputs(model, 4)
    adapters = Adapters(model, 1)
    adapters.load("all linears", [folders["dora"]])
    adapters.unload("all linears")
    adapters.use(Batch([(adapters.load("two linears", [folders["rslora"]]), 0, 4)]))
    k_proj = "model.layers.0.self_attn.k_proj"
    assert torch.equal(linear_outputs(model, inputs)[k_proj], linear_outputs(load_model(base), inputs)[k_proj])


def test_steps_run_on_and_are_right_while_another_thread_loads_and_unloads(base, folders):
    model = load_model(base)
    inputs = make_inputs(model, 8)
    adapters = Adapters(model, 4)
    slot = adapters.load("stays", [folders["plain"]])
    adapters.use(Batch([(0, 0, 3), (slot, 3, 8)]))
    wanted, stop = linear_outputs(model, inputs), threading.Event()

    def churn():
        while not stop.is_set():
            for kind in ("dora", "patterns", "rslora"):
                adapters.load(kind, [folders[kind]])
            for kind in ("dora", "patterns", "rslora"):
                adapters.unload(kind)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(40):
            found = linear_outputs(model, inputs)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    finally:
        stop.set()
        thread.join()


def test_an_adapter_saved_as_bin_gives_the_same_as_its_safetensors(base, folders, tmp_path):
    from safetensors.torch import load_file

    folder = shutil.copytree(folders["dora"], tmp_path / "bin")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    model = load_model(base)
    inputs = make_inputs(model, 8)
    adapters = Adapters(model, 2)
    for digest, place in (("bin", folder), ("safetensors", folders["dora"])):
        adapters.load(digest, [place])
    adapters.use(Batch([(1, 0, 8)]))
    of_bin = linear_outputs(model, inputs)
    adapters.use(Batch([(2, 0, 8)]))
    assert all(torch.equal(output, of_bin[name]) for name, output in linear_outputs(model, inputs).items())


def spoil(folder: Path, **config) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "LOHA"}, "it is of the kind LOHA"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"bias": "all"}, "it trained biases"),
        ({"init_lora_weights": "pissa"}, "it was begun by pissa, which changes the base"),
        ({"lora_bias": True}, "it has lora_bias"),
        ({"r": 5}, "says rank 5 for .*_proj and holds 4"),
        ({"lora_alpha": "much"}, "'much' where a number belongs"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
        ({"target_modules": ["q_proj"]}, "21 linears in 3 layers up to number 2 where this one has 3 linears"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(base, folders, tmp_path, config, reason):
    folder = spoil(shutil.copytree(folders["plain"], tmp_path / "adapter"), **config)
    model = load_model(base)
    with pytest.raises(BadInput, match=reason) as error:
        Adapters(model, 4).load("x", [folder])
    assert "\n" not in str(error.value)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_an_adapter_of_embeddings_is_refused(base, tmp_path):
    folder = make_adapter(base, tmp_path / "a", r=2, lora_alpha=2, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(BadInput, match="it holds model.embed_tokens.*, and only linears of decoder layers"):
        Adapters(load_model(base), 4).load("x", [folder])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"num_hidden_layers": 5}, "it adapts 21 linears in 3 layers up to number 2 where this one has 35 linears"),
        ({"hidden_size": 64}, "whose .*_proj has the shape"),
    ],
)
def test_an_adapter_of_another_architecture_is_refused(folders, tmp_path, shape, reason):
    other = make_base(tmp_path / "other", **shape)
    with pytest.raises(BadInput, match=f"does not fit the base .* another architecture, {reason}"):
        Adapters(load_model(other), 4).load("x", [folders["plain"]])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_truncated_file_is_one_line(base, folders, tmp_path, name):
    folder = shutil.copytree(folders["plain"], tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    if name.endswith(".bin"):
        from safetensors.torch import load_file

        torch.save(load_file(path), folder / name)
        path.unlink()
    (folder / name).write_bytes((folder / name).read_bytes()[:-1000])
    with pytest.raises(BadInput, match="cut off or damaged") as error:
        Adapters(load_model(base), 4).load("x", [folder])
    assert "\n" not in str(error.value)


def test_weights_that_are_not_numbers_are_refused(base, folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["plain"], tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="are not finite numbers"):
        Adapters(load_model(base), 4).load("x", [folder])


def test_short_segments_of_nearly_one_length_are_one_product():
    step = lora.Step(torch.bfloat16, torch.device("cpu"))
    step.set([(0, 0, 2), (1, 2, 4), (3, 4, 5), (4, 5, 30)])
    few, many = step.parts((1, 3, 4))
    assert few.rows.tolist() == [2, 3, 4, 4] and few.places == slice(0, 2)
    assert (few.num_places, few.dtype) == (2, torch.float32)
    assert (many.rows, many.places, many.num_places, many.dtype) == (slice(5, 30), slice(2, 3), 1, torch.bfloat16)


def test_adapters_of_one_kind_share_a_product_and_linears_of_one_input_its_first_half(base, folders, tmp_path):
    model = load_model(base)
    adapters = Adapters(model, 8)
    adapters.load("a", [folders["plain"]])
    adapters.load("b", [make_adapter(base, tmp_path / "b", 9, **KINDS["plain"])])
    adapters.load("c", [folders["rslora"]])
    attention = model.model.layers[0].self_attn
    assert [stack.slots for stack in attention.k_proj.shared.stacks] == [(1, 2), (3,)]
    assert attention.q_proj.shared is attention.v_proj.shared is not attention.o_proj.shared
    adapters.unload("a")
    assert sorted(stack.slots for stack in attention.k_proj.shared.stacks) == [(2,), (3,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segments_of_any_lengths_and_a_choice_of_adapters_give_what_each_gives_alone(base, tmp_path, dtype):
    model = load_model(base, dtype)
    adapters = Adapters(model, 8)
    for seed in range(6):
        adapters.load(
            f"{seed}", [make_adapter(base, tmp_path / f"{seed}", seed, **KINDS["dora" if seed > 3 else "plain"])]
        )
    lengths = {"": 2, "0": 1, "2": 3, "3": 2, "4": 9, "5": 40}
    inputs = make_inputs(model, sum(lengths.values()))
    segments = segments_of(adapters, lengths)
    adapters.use(Batch(list(segments.values())))
    mixed = linear_outputs(model, inputs)
    for digest, (slot, start, end) in segments.items():
        adapters.use(Batch([(slot, 0, end - start)]))
        alone = linear_outputs(model, {name: x[:, start:end].clone() for name, x in inputs.items()})
        for name, output in mixed.items():
            error = (output[:, start:end] - alone[name]).abs().max() / alone[name].abs().max()
            assert error < (1e-6 if dtype == torch.float32 else 0.02), (digest, name)
