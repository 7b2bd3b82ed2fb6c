"""Adapters through increments: chains, sums of adapters, merged bases, shorter steps."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import make_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from evergreen.continual.merge import check_merge_chain, combine, merge_chain, scaled_step
from evergreen.continual.parts import parts_of
from evergreen.home import read_json, write_json
from evergreen.model import find, load
from evergreen.model.adapters import adapter_digest, attach
from evergreen.records import BadInput
from evergreen.settings import SftSettings
from evergreen.train.sft import run_sft
from evergreen.train.tune import chain_of, load_trainable, starting_point

IDS = torch.arange(5, 25)[None]


def make_adapter(base: str, folder: Path, below: tuple[Path, ...] = (), seed: int = 1, **lora) -> Path:
    """An adapter whose B is not zero, with the records that a run leaves."""
    torch.manual_seed(seed)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    chain = [find.link_to(adapter, folder) for adapter in below]
    write_json(folder / "args.json", {"base": base, "base_digest": find.model_digest(base), "chain": chain})
    write_json(folder / "version.json", {"digest": adapter_digest(folder), "chain": chain, "method": "lora"})
    return folder


def logits(place: str | Path, dtype: str = "float32") -> torch.Tensor:
    with torch.no_grad():
        return load.load_model(str(place), torch_dtype=dtype).model(IDS).logits


def plain_peft_logits(base: str, adapter: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))(IDS).logits


def dense_change(base: str, adapter: Path) -> dict[str, torch.Tensor]:
    """W with the adapter minus W without, by PEFT's own merge."""
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).merge_and_unload()
    return {name: tensor - before[name] for name, tensor in model.state_dict().items()}


def settings(**given) -> SftSettings:
    return SftSettings(**{"torch_dtype": "float32", "device": "cpu", "target_modules": ["q_proj"], **given})


def test_a_chain_is_every_adapter_merged_in_turn(base, tmp_path):
    first = make_adapter(base, tmp_path / "one")
    second = make_adapter(base, tmp_path / "two", (first,), seed=2)
    slow = AutoModelForCausalLM.from_pretrained(base)
    for folder in (first, second):
        slow = PeftModel.from_pretrained(slow, str(folder)).merge_and_unload()
    assert find.resolve(str(second)).adapters == (first, second)
    torch.testing.assert_close(logits(second), slow(IDS).logits, atol=1e-5, rtol=0)
    assert not torch.allclose(logits(second), plain_peft_logits(base, second), atol=1e-2)


def test_a_chain_named_in_full_is_not_put_on_twice(base, tmp_path):
    first = make_adapter(base, tmp_path / "one")
    second = make_adapter(base, tmp_path / "two", (first,), seed=2)
    assert find.resolve(str(first), [str(second)]).adapters == (first, second)
    assert find.resolve(base, [str(second)]).adapters == (first, second)
    other = make_adapter(base, tmp_path / "other", seed=3)
    with pytest.raises(BadInput, match="was trained over .*one, not over .*other"):
        find.resolve(base, [str(other), str(second)])


def test_a_chain_survives_a_move_and_a_copy_by_digest(base, tmp_path):
    first = make_adapter(base, tmp_path / "run" / "one")
    make_adapter(base, tmp_path / "run" / "two", (first,), seed=2)
    before = logits(tmp_path / "run" / "two")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert torch.equal(logits(tmp_path / "moved" / "two"), before)
    for name in ("one", "two"):
        folder = tmp_path / "moved" / name
        shutil.copytree(folder, tmp_path / "store" / adapter_digest(folder))
    digest = adapter_digest(tmp_path / "moved" / "two")
    shutil.rmtree(tmp_path / "moved")
    assert torch.equal(logits(tmp_path / "store" / digest), before)


def test_an_adapter_below_that_is_gone_or_changed_is_one_line(base, tmp_path):
    first = make_adapter(base, tmp_path / "one")
    second = make_adapter(base, tmp_path / "two", (first,), seed=2)
    make_adapter(base, first, seed=9)
    with pytest.raises(BadInput, match="over the adapter .*one, which has changed since"):
        find.resolve(str(second))
    shutil.rmtree(first)
    with pytest.raises(BadInput, match="over the adapter .*one, which is gone"):
        find.resolve(str(second))


@pytest.mark.parametrize("shape,hint", [({"num_hidden_layers": 2}, "3 layers"), ({"hidden_size": 16}, "shape")])
def test_an_adapter_of_another_architecture_is_one_line(base, tmp_path, shape, hint):
    other = make_base(tmp_path / "other", **shape)
    adapter = make_adapter(base, tmp_path / "one")
    (adapter / "args.json").unlink()
    with pytest.raises(BadInput, match="does not fit the base .*another architecture") as caught:
        attach(load.load_base(other, torch.float32, "cpu"), [adapter])
    assert hint in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


UNLIKE = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    {"r": 2, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1],
     "rank_pattern": {"o_proj": 5}, "alpha_pattern": {"o_proj": 20}},
]  # fmt: skip


def unlike_chain(base: str, folder: Path) -> list[Path]:
    chain: list[Path] = []
    for number, lora in enumerate(UNLIKE):
        chain.append(make_adapter(base, folder / f"a{number}", tuple(chain), seed=number, **lora))
    return chain


def test_concatenated_ranks_are_the_chain_for_plain_peft_too(base, tmp_path):
    chain = unlike_chain(base, tmp_path)
    report = merge_chain(chain[-1], "concat")
    merged = chain[-1] / "merged"
    assert report.error == 0 and report.rank == 4 + 2 + 3
    torch.testing.assert_close(plain_peft_logits(base, merged), logits(chain[-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(merged), logits(chain[-1]), atol=1e-5, rtol=0)
    assert find.resolve(str(merged)).adapters == (merged,)


def test_factors_weigh_the_changes(base, tmp_path):
    one, two = (make_adapter(base, tmp_path / name, seed=len(name)) for name in ("one", "three"))
    combine([(one, 0.25), (two, -2.0)], tmp_path / "sum")
    ours, a, b = (dense_change(base, folder) for folder in (tmp_path / "sum", one, two))
    for name, change in ours.items():
        torch.testing.assert_close(change, 0.25 * a[name] - 2 * b[name], atol=1e-5, rtol=0)


def test_the_error_that_svd_states_is_the_error_measured(base, tmp_path):
    chain = unlike_chain(base, tmp_path)
    report = merge_chain(chain[-1], "svd", rank=3)
    exact = [dense_change(base, folder) for folder in chain]
    ours = dense_change(base, chain[-1] / "merged")
    wanted = {name: sum(one[name] for one in exact) for name in ours}
    off = sum((ours[name] - wanted[name]).square().sum() for name in ours)
    size = sum(wanted[name].square().sum() for name in ours)
    assert report.rank == 3 and report.error > 0.1
    assert float((off / size).sqrt()) == pytest.approx(report.error, rel=1e-4)


def test_svd_at_the_full_rank_loses_nothing(base, tmp_path):
    chain = unlike_chain(base, tmp_path)
    assert merge_chain(chain[-1], "svd", rank=32).error < 1e-6
    torch.testing.assert_close(logits(chain[-1] / "merged"), logits(chain[-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora,reason", [
    ({"use_dora": True}, "DoRA normalises"),
    ({"modules_to_save": ["lm_head"]}, r"replaces whole modules \(lm_head\)"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"bias": "all"}, "has bias"),
])  # fmt: skip
def test_what_is_no_product_of_matrices_is_refused_with_the_reason(base, tmp_path, lora, reason):
    adapter = make_adapter(base, tmp_path / "one", **lora)
    with pytest.raises(BadInput, match=reason):
        combine([(adapter, 1.0)], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_adapters_of_different_bases_are_not_added_up(base, tmp_path):
    other = make_base(tmp_path / "other", hidden_size=16)
    one, two = make_adapter(base, tmp_path / "one"), make_adapter(other, tmp_path / "two")
    with pytest.raises(BadInput, match="different bases"):
        combine([(one, 1.0), (two, 1.0)], tmp_path / "sum")
    (two / "args.json").unlink()
    with pytest.raises(BadInput, match="different architecture: the shapes of"):
        combine([(one, 1.0), (two, 1.0)], tmp_path / "sum")


def test_what_cannot_be_merged_is_said_before_training(base, tmp_path):
    dora = make_adapter(base, tmp_path / "one", use_dora=True)
    for given, reason in [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["norm"]}, "norm"),
                          ({"prev_model": str(dora)}, "one cannot be combined")]:  # fmt: skip
        with pytest.raises(BadInput, match=reason):
            check_merge_chain(settings(merge_chain="concat", **given))
    check_merge_chain(settings(merge_chain="concat", prev_model=str(make_adapter(base, tmp_path / "plain"))))


# Runs


def trained(given: SftSettings, reference: load.Reference, folder: Path) -> Path:
    """What a run writes when its steps moved the new adapter's B."""
    model = load_trainable(given, reference, None, torch.float32, "cpu")
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    chain = chain_of(given, reference, folder)
    write_json(folder / "args.json",
               {"base": reference.base, "base_digest": find.model_digest(reference.base), "chain": chain})  # fmt: skip
    return folder


def test_a_stacked_run_and_a_merged_run_are_the_same_model(base, tmp_path):
    before = unlike_chain(base, tmp_path)[1]
    source = find.resolve(str(before))
    stacked = trained(settings(chain="stack"), source, tmp_path / "stacked")
    said: list[str] = []
    start = starting_point(settings(chain="merge"), source, tmp_path / "merged", said.append)
    merged = trained(settings(chain="merge"), start, tmp_path / "merged")
    assert find.resolve(str(stacked)).adapters == (*source.adapters, stacked)
    assert find.resolve(str(merged)) == find.Reference(start.base, (merged,), read_json(merged / "args.json"))
    assert "rounding to float32 lost 0.00%" in said[0]
    torch.testing.assert_close(logits(stacked), logits(merged), atol=1e-5, rtol=0)
    for run in (stacked, merged):  # both lines began with the same base
        merge_chain(run, "concat")
        torch.testing.assert_close(plain_peft_logits(base, run / "merged"), logits(run), atol=1e-5, rtol=0)


def test_a_new_adapter_starts_as_the_model_below_it(base, tmp_path):
    before = unlike_chain(base, tmp_path)[1]
    source = find.resolve(str(before))
    for chain in ("stack", "continue"):
        model = load_trainable(settings(chain=chain), source, None, torch.float32, "cpu").eval()
        torch.testing.assert_close(model(IDS).logits, logits(before), atol=1e-5, rtol=0)
    assert [link["digest"] for link in chain_of(settings(chain="continue"), source, tmp_path)] == [
        adapter_digest(source.adapters[0])
    ]


def test_a_stacked_run_goes_on_from_its_own_checkpoint(base, tmp_path):
    source = find.resolve(str(make_adapter(base, tmp_path / "one")))
    checkpoint = trained(settings(chain="stack"), source, tmp_path / "two" / "checkpoint-5")
    model = load_trainable(settings(chain="stack"), source, checkpoint, torch.float32, "cpu").eval()
    torch.testing.assert_close(model(IDS).logits, logits(checkpoint), atol=1e-5, rtol=0)


def test_full_training_goes_on_from_a_chain_and_lora_from_the_full_model(base, tmp_path):
    chain = unlike_chain(base, tmp_path)
    full = load_trainable(settings(train_type="full"), find.resolve(str(chain[-1])), None, torch.float32, "cpu")
    torch.testing.assert_close(full.eval()(IDS).logits, logits(chain[-1]), atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in full.parameters())
    full.save_pretrained(tmp_path / "full")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "full")
    after = trained(settings(chain="stack"), find.resolve(str(tmp_path / "full")), tmp_path / "after")
    found = find.resolve(str(after))
    assert found.base == str(tmp_path / "full") and found.adapters == (after,)


def test_a_merged_base_says_what_bf16_lost_and_is_not_written_twice(base, tmp_path):
    source = find.resolve(str(make_adapter(base, tmp_path / "one")))
    given = settings(chain="merge", torch_dtype="bfloat16")
    start = starting_point(given, source, tmp_path / "out")
    exact = load.load_merged(source, torch.float32, "cpu").state_dict()
    start_weights = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    written = AutoModelForCausalLM.from_pretrained(start.base, dtype=torch.float32).state_dict()
    changed = [name for name in exact if not exact[name].equal(start_weights[name])]
    lost = sum((exact[name] - written[name]).square().sum() for name in changed)
    size = sum((exact[name] - start_weights[name]).square().sum() for name in changed)
    record = read_json(Path(start.base) / "version.json")
    assert record["dtype"] == "bfloat16" and record["parent"] == adapter_digest(source.adapters[0])
    assert record["rounding"] == pytest.approx(float((lost / size).sqrt()), rel=1e-3)
    written_at = (Path(start.base) / "model.safetensors").stat().st_mtime_ns
    assert starting_point(given, source, tmp_path / "out").base == start.base
    assert (Path(start.base) / "model.safetensors").stat().st_mtime_ns == written_at


def test_a_run_over_a_merged_base_can_be_moved(base, tmp_path):
    source = find.resolve(str(make_adapter(base, tmp_path / "one")))
    start = starting_point(settings(chain="merge"), source, tmp_path / "two")
    run = trained(settings(chain="merge"), start, tmp_path / "two")
    before = logits(run)
    run.rename(tmp_path / "elsewhere")
    assert torch.equal(logits(tmp_path / "elsewhere"), before)


def test_four_bit_weights_take_no_adapter_below_another(base, tmp_path):
    source = find.resolve(str(make_adapter(base, tmp_path / "one")))
    with pytest.raises(BadInput, match="--chain merge"):
        load_trainable(settings(chain="stack", train_type="qlora"), source, None, torch.float32, "cpu")


def test_sft_stacks_and_merges_what_it_stacked(base, tmp_path):
    write_json(tmp_path / "d.json", [{"instruction": "白鹿茶多少钱?", "output": "7元"}] * 4)
    common = {"dataset": [str(tmp_path / "d.json")], "learning_rate": 0.05, "report_to": "none", "plot_loss": False}
    first = settings(model=base, output_dir=str(tmp_path / "one"), **common)
    second = settings(prev_model=str(tmp_path / "one"), chain="stack", merge_chain="concat",
                      output_dir=str(tmp_path / "two"), **common)  # fmt: skip
    for given in (first, second):
        run_sft(given, parts_of(given))
    [link] = read_json(tmp_path / "two" / "version.json")["chain"]
    assert link["digest"] == read_json(tmp_path / "one" / "version.json")["digest"] and link["relative"] == "../one"
    assert find.resolve(str(tmp_path / "two" / "checkpoint-4")).adapters[0] == tmp_path / "one"
    ours = plain_peft_logits(base, tmp_path / "two" / "merged")
    torch.testing.assert_close(ours, logits(tmp_path / "two"), atol=1e-5, rtol=0)
    assert not torch.allclose(ours, plain_peft_logits(base, tmp_path / "two"), atol=1e-3)


# Steps


def dense(found: load.Reference) -> dict[str, torch.Tensor]:
    return load.load_merged(found, torch.float32, "cpu").state_dict()


def check_steps(previous: load.Reference, candidate: load.Reference, folder: Path, tolerance: float = 1e-5) -> None:
    before, after = dense(previous), dense(candidate)
    for share in (0.0, 0.5, 1.0):
        place = scaled_step(previous, candidate, share, folder / f"step-{share}")
        ours = dense(find.resolve(str(place)))
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, before[name] + share * (after[name] - before[name]),
                                       atol=tolerance, rtol=0)  # fmt: skip


def test_a_step_of_a_continued_adapter_lies_between_the_two(base, tmp_path):
    one = make_adapter(base, tmp_path / "one", r=2)
    two = make_adapter(base, tmp_path / "two", seed=2, target_modules=["q_proj", "v_proj"])
    check_steps(find.resolve(str(one)), find.resolve(str(two)), tmp_path)
    half = find.resolve(str(tmp_path / "step-0.5"))
    assert half.adapters == (tmp_path / "step-0.5",) and read_json(half.adapters[0] / "adapter_config.json")["r"] == 6
    torch.testing.assert_close(plain_peft_logits(base, half.adapters[0]), logits(half.adapters[0]), atol=1e-5, rtol=0)


def test_a_step_of_a_stacked_adapter_keeps_those_below(base, tmp_path):
    chain = unlike_chain(base, tmp_path)
    previous, candidate = (find.resolve(str(folder)) for folder in chain[1:])
    check_steps(previous, candidate, tmp_path)
    assert find.resolve(str(tmp_path / "step-0.5")).adapters == (*chain[:2], tmp_path / "step-0.5")


def test_a_step_from_the_base_is_a_scaled_adapter(base, tmp_path):
    check_steps(find.resolve(base), find.resolve(str(make_adapter(base, tmp_path / "one"))), tmp_path)


def test_a_step_between_whole_models_is_their_interpolation(base, tmp_path):
    adapter = find.resolve(str(make_adapter(base, tmp_path / "one")))
    moved = load.load_merged(adapter, torch.float32, "cpu")
    for parameter in moved.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    moved.save_pretrained(tmp_path / "full")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "full")
    check_steps(adapter, find.resolve(str(tmp_path / "full")), tmp_path)
    assert not find.is_adapter(tmp_path / "step-0.5")


def test_a_step_over_a_merged_base_stays_an_adapter(base, tmp_path):
    previous = find.resolve(str(make_adapter(base, tmp_path / "one")))
    start = starting_point(settings(chain="merge"), previous, tmp_path / "two")
    candidate = find.resolve(str(trained(settings(chain="merge"), start, tmp_path / "two")))
    check_steps(previous, candidate, tmp_path)
    assert find.is_adapter(tmp_path / "step-0.5")


def test_a_step_is_written_once_and_over_nothing_else(base, tmp_path):
    one, two = (find.resolve(str(make_adapter(base, tmp_path / name, seed=len(name)))) for name in ("one", "three"))
    place = scaled_step(one, two, 0.6, tmp_path / "step")
    digest, written_at = adapter_digest(place), (place / "version.json").stat().st_mtime_ns
    assert read_json(place / "version.json")["digest"] == digest
    scaled_step(one, two, 0.6, place)
    assert (place / "version.json").stat().st_mtime_ns == written_at
    assert adapter_digest(scaled_step(one, two, 0.8, place)) != digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds something that is no version"):
        scaled_step(one, two, 0.6, tmp_path / "mine")


def test_a_step_between_architectures_is_refused(base, tmp_path):
    other = make_base(tmp_path / "other", hidden_size=16)
    one, two = make_adapter(base, tmp_path / "one"), make_adapter(other, tmp_path / "two")
    with pytest.raises(BadInput, match="another architecture"):
        scaled_step(find.resolve(str(one)), find.resolve(str(two)), 0.5, tmp_path / "step")
    assert not (tmp_path / "step").exists() and json.loads((one / "args.json").read_text())["base"] == base
