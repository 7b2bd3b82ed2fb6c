"""Drift is the forward KL at the answer's tokens, exact, however it is batched, and 0 of a version against itself."""

import copy
import gc
import weakref

import pytest
import torch

from evergreen.evaluate import drift
from evergreen.evaluate.harness import Version
from evergreen.evaluate.tasks import Item
from evergreen.model.load import LoadedModel, load_model
from evergreen.model.template import encode
from evergreen.records import BadInput, Conversation, Message
from evergreen.settings import EvalSettings

ITEMS = [
    Item("1", (Message("user", "Who are you?"),), ("I am a small model.",)),
    Item("2", (Message("system", "Answer briefly."), Message("user", "青石相机多少钱?")), ("42元。",)),
    Item("3", (Message("user", "1 + 1 = ?"),), ("It is 2, as everybody knows who can count to three.",)),
]


@pytest.fixture(scope="module")
def previous() -> LoadedModel:
    return load_model("nano", torch_dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def candidate(previous) -> LoadedModel:
    """The same model with every weight a little off."""
    model, random = copy.deepcopy(previous.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=random) if weight.numel() > 1 else 0
    return LoadedModel(model, previous.tokenizer, previous.system, "moved")


def directly(previous: LoadedModel, candidate: LoadedModel, items: list[Item]) -> list[float]:
    """The definition, an item at a time, from whole logits."""
    found = []
    for item in items:
        record = Conversation((*item.messages, Message("assistant", item.references[0])))
        encoded = encode(record, previous.tokenizer, previous.system)
        places = [place - 1 for place, is_target in enumerate(encoded.is_target) if is_target]
        with torch.no_grad():
            p, q = (one.model(torch.tensor([encoded.ids])).logits[0, places].softmax(-1).double()
                    for one in (previous, candidate))  # fmt: skip
        found.append(float((p * (p / q).log()).sum(-1).mean()))
    return found


def test_drift_is_the_kl_that_whole_logits_give(previous, candidate):
    wanted = directly(previous, candidate, ITEMS)
    found = drift.measure(previous, candidate, ITEMS, batch_size=2)
    assert found.mean == pytest.approx(sum(wanted) / 3, rel=1e-3) and found.n == 3
    assert min(wanted) > 1e-5 and found.low <= found.mean <= found.high


def test_batches_and_chunks_change_nothing(previous, candidate, monkeypatch):
    one_by_one = drift.measure(previous, candidate, ITEMS, batch_size=1)
    monkeypatch.setattr(drift, "CHUNK_BYTES", 1)
    assert drift.measure(previous, candidate, ITEMS, batch_size=3).mean == pytest.approx(one_by_one.mean, rel=1e-3)


def test_a_version_has_not_drifted_from_itself(previous):
    found = drift.measure(previous, previous, ITEMS)
    assert found.mean == pytest.approx(0, abs=1e-6) and found.high < 1e-6


def test_an_adapter_drifts_with_its_size(previous):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(previous.model), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    adapted = LoadedModel(model, previous.tokenizer, previous.system, "adapted")
    assert drift.measure(previous, adapted, ITEMS).mean < 1e-6  # B is 0
    means = []
    for size in (0.05, 0.1):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.fill_(size)
        means.append(drift.measure(previous, adapted, ITEMS).mean)
    assert 0 < means[0] < means[1]
    wanted = directly(previous, adapted, ITEMS)
    assert means[1] == pytest.approx(sum(wanted) / 3, rel=1e-3)


def test_answers_stand_in_for_the_references(previous, candidate):
    given = [item.references[0] for item in ITEMS]
    other = ["no", "", "maybe"]  # an empty answer leaves the reference
    same, moved = (drift.measure(previous, candidate, ITEMS, answers).mean for answers in (given, other))
    assert same == drift.measure(previous, candidate, ITEMS).mean != moved


def test_the_first_version_need_not_stay_in_memory(previous, candidate):
    first = LoadedModel(copy.deepcopy(previous.model), previous.tokenizer, previous.system, "first")
    encoded = drift.encode_answers(first, ITEMS)
    layer, reading = weakref.ref(first.model.model.layers[0]), drift.read(first, encoded)
    del first
    gc.collect()
    assert layer() is None
    found = drift.between(reading, drift.read(candidate, encoded))
    assert found.mean == pytest.approx(drift.measure(previous, candidate, ITEMS).mean, rel=1e-5)


def test_versions_are_loaded_one_after_the_other_and_measured_the_same(previous, candidate, tmp_path):
    candidate.model.save_pretrained(tmp_path / "moved")
    candidate.tokenizer.save_pretrained(tmp_path / "moved")
    settings = EvalSettings(torch_dtype="float32", device="cpu", batch_size=2)
    versions = Version("a", "nano"), Version("b", str(tmp_path / "moved"))
    found = drift.of_versions(*versions, ITEMS, settings)
    assert found.mean == pytest.approx(drift.measure(previous, candidate, ITEMS).mean, rel=1e-3)


def test_items_beyond_the_context_are_left_out_and_none_left_is_an_error(previous, candidate):
    long = Item("4", (Message("user", "word " * 9000),), ("yes",))
    assert drift.measure(previous, candidate, [*ITEMS, long]).n == 3
    with pytest.raises(BadInput, match="none of the 1"):
        drift.encode_answers(previous, [long])


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ("Gemma2Config", {"final_logit_softcapping": 0.5, "head_dim": 8}),
        ("GraniteConfig", {"logits_scaling": 3.0}),
        ("CohereConfig", {"logit_scale": 0.3}),
    ],
)
def test_families_that_shape_their_logits_are_measured_as_they_are(previous, config, extra):
    import transformers

    shape = {"vocab_size": len(previous.tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
    versions = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**shape, **extra)).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(50)
        versions.append(LoadedModel(model, previous.tokenizer, None, config))
    wanted = directly(*versions, ITEMS)
    assert drift.measure(*versions, ITEMS).mean == pytest.approx(sum(wanted) / 3, rel=1e-3)


def test_logits_made_in_an_unknown_way_are_refused(previous):
    model = copy.deepcopy(previous.model)
    model.register_forward_hook(lambda module, given, output: setattr(output, "logits", 2 * output.logits))
    odd = LoadedModel(model, previous.tokenizer, previous.system, "odd")
    with pytest.raises(BadInput, match="its own way"):
        drift.measure(previous, odd, ITEMS)


def test_versions_of_two_vocabularies_are_refused(previous):
    reading = drift.read(previous, drift.encode_answers(previous, ITEMS))
    with pytest.raises(BadInput, match="one vocabulary"):
        drift.between(reading, drift.Reading(reading.states, reading.logits, 7))
