"""Where to learn: the measure equals dense gradients, the rule does what it says, frozen layers stay as they are."""

import io
import json

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evergreen.continual.unfreeze import LayerGradient, choose, decide
from evergreen.data.packing import pack
from evergreen.model.adapters import add_lora
from evergreen.model.load import NANO
from evergreen.model.template import Encoded
from evergreen.records import BadInput, Failure
from evergreen.train.loss import install, row_loss

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny_model(vocab_size=64):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **SHAPE)).eval()


def random_records(seed, num=5):
    rng = torch.Generator().manual_seed(seed)
    records = []
    for i in range(num):
        ids = torch.randint(0, 64, (8 + i,), generator=rng).tolist()
        records.append(Encoded(tuple(ids), tuple(place > 3 for place in range(len(ids)))))
    return records


def dense_gradients(model, records):
    """The slow twin's gradients: one record after the other, all logits, every weight of the model's own."""
    total = sum(record.num_targets for record in records)
    summed = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for record in records:
        logits = model(torch.tensor([record.ids])).logits[0, :-1]
        keep = torch.tensor(record.is_target[1:])
        loss = F.cross_entropy(logits[keep], torch.tensor(record.ids[1:])[keep], reduction="sum")
        for (name, _), gradient in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            summed[name] += gradient / total
    return summed


def in_layer(gradients, layer):
    return torch.cat([part.flatten() for name, part in gradients.items() if f".layers.{layer}." in name])


def assert_measured(choice, new, old):
    assert [row.layer for row in choice.rows] == [0, 1, 2, 3]
    for row in choice.rows:
        a, b = in_layer(new, row.layer), in_layer(old, row.layer)
        wanted = (float(a.norm()), float(b.norm()), float(F.cosine_similarity(a, b, dim=0)))
        assert (row.new, row.old, row.cosine) == pytest.approx(wanted, rel=2e-4, abs=1e-6)


def measured(model, new, old):
    install(model)
    return choose(model, pack(new, 1000), pack(old, 1000), row_loss)


def test_of_full_weights_it_measures_what_dense_gradients_record_by_record_say():
    new, old = random_records(1), random_records(2)
    wanted = [dense_gradients(tiny_model(), records) for records in (new, old)]
    assert_measured(measured(tiny_model(), new, old), *wanted)


@pytest.mark.parametrize("is_new", [True, False])
def test_of_lora_it_measures_what_the_dense_gradient_of_the_effective_weight_says(is_new):
    """dL/dA = s B^T G and dL/dB = s G A^T; a new adapter has B = 0."""
    new, old = random_records(1), random_records(2)
    lora = add_lora(tiny_model(), rank=3, alpha=6, dropout=0.0, target_modules=["q_proj", "down_proj"])
    pairs = {}
    for name, module in lora.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            if not is_new:
                torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)
            pairs[name.removeprefix("base_model.model.") + ".weight"] = (
                module.lora_A["default"].weight.detach(),
                module.lora_B["default"].weight.detach(),
            )
    effective = tiny_model()
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            effective.get_parameter(name).add_(2.0 * b @ a)
    wanted = []
    for records in (new, old):
        dense, factors = dense_gradients(effective, records), {}
        for name, (a, b) in pairs.items():
            factors |= {f"{name}.A": 2.0 * b.t() @ dense[name], f"{name}.B": 2.0 * dense[name] @ a.t()}
        wanted.append(factors)
    assert_measured(measured(lora.eval(), new, old), *wanted)


def test_measuring_changes_no_weight_and_leaves_no_gradient():
    model = tiny_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    choice = measured(model, random_records(1), random_records(2))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert choice == measured(model, random_records(1), random_records(2))


def layer(number, new, cosine):
    return LayerGradient(number, new, 1.0, cosine)


def test_layers_with_a_large_gradient_and_no_conflict_learn():
    choice = decide([layer(0, 1.0, 0.5), layer(1, 1.0, -0.1), layer(2, 0.2, 0.9), layer(3, 1.0, 0.0)])
    assert choice.layers == {0, 3}


def test_at_least_a_third_learn_and_those_that_conflict_least_join_first():
    choice = decide([layer(number, 1.0, cosine) for number, cosine in enumerate([-0.5, -0.1, -0.9, -0.2, -0.8, -0.7])])
    assert choice.layers == {1, 3}
    assert decide([layer(0, 1.0, -1.0)]).layers == {0}
    assert decide([layer(number, 0.0, 0.0) for number in range(3)]).layers == {0, 1, 2}


def test_the_same_data_new_and_old_conflicts_nowhere():
    choice = measured(tiny_model(), random_records(1), random_records(1))
    assert all(row.cosine == pytest.approx(1) for row in choice.rows)


def test_layers_that_are_frozen_already_are_not_chosen():
    model = tiny_model()
    model.model.layers[1].requires_grad_(False)
    assert [row.layer for row in measured(model, random_records(1), random_records(2)).rows] == [0, 2, 3]


def test_the_table_shows_every_layer_in_eighty_columns():
    out = io.StringIO()
    Console(file=out, width=80).print(
        decide([layer(0, 1.0, 0.5), layer(1, 0.00012, -0.1), layer(2, 3e-7, 0.2)]).table()
    )
    text = out.getvalue()
    assert "1 of 3 learn" in text and "+0.50" in text and "0.00012" in text and "3e-07" in text


def test_without_old_data_or_with_broken_numbers_it_says_one_line():
    with pytest.raises(BadInput, match="--replay_samples"):
        measured(tiny_model(), random_records(1), [])
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight.fill_(float("nan"))
    with pytest.raises(Failure, match="not finite"):
        measured(model, random_records(1), random_records(2))


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_a_run_touches_no_weight_of_a_layer_that_was_not_chosen(tmp_path, train_type):
    """A real run through the command's own parts; with `full`, weight decay and the pull would show too."""
    from safetensors.torch import load_file

    from evergreen.continual.parts import parts_of
    from evergreen.options import parse
    from evergreen.settings import SftSettings
    from evergreen.train.sft import run_sft

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")

    def sft(name, *more):
        data = [{"instruction": f"{name} 问题 {i}", "output": f"答案 {i * 7} {name}"} for i in range(12)]
        (tmp_path / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
        line = ["--dataset", str(tmp_path / f"{name}.json"), "--output_dir", str(tmp_path / name), "--json", "true"]
        line += (
            "--learning_rate 3e-3 --torch_dtype float32 --report_to none --plot_loss false --weight_decay 0.1".split()
        )
        settings = parse(SftSettings, [*line, "--train_type", train_type, *map(str, more)], "sft")
        run_sft(settings, parts_of(settings))
        file = "adapter_model" if train_type == "lora" else "model"
        return load_file(tmp_path / name / f"{file}.safetensors")

    before = sft("first", "--model", tmp_path / "tiny")
    more = ["--replay_samples", 6, "--unfreeze", "auto", "--regularization_alpha", 0.1]
    after = sft("next", "--prev_model", tmp_path / "first", *more)
    chosen = set(json.loads((tmp_path / "next" / "args.json").read_text())["layers"])
    changed = {int(key.split(".layers.")[1].split(".")[0]) for key in before
               if ".layers." in key and not torch.equal(before[key], after[key])}  # fmt: skip
    assert 0 < len(chosen) < 4 and changed == chosen
