"""Packed rows, shared prefixes and chunked losses against the slow, obvious way."""

import random
from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evergreen.data.packing import pack, pad
from evergreen.train.attention import can_pack
from evergreen.train.loss import install, row_loss, summed_cross_entropy


@dataclass
class Ids:
    ids: tuple[int, ...]
    is_target: tuple[bool, ...]


def tiny_model(**changes):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **changes,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():  # a trained model's scale, so that attention is far from uniform
        torch.nn.init.normal_(parameter, std=0.2)
    install(model)
    return model


def records(num=9, prefix=11, seed=0):
    rng = random.Random(seed)
    shared = tuple(rng.randrange(97) for _ in range(prefix))
    made = []
    for _ in range(num):
        own = tuple(rng.randrange(97) for _ in range(rng.randrange(2, 30)))
        made.append(Ids(shared + own, (False,) * prefix + tuple(rng.random() < 0.6 for _ in own[:-1]) + (True,)))
    return made


def loss_and_gradients(model, rows):
    model.zero_grad()
    total = sum(row_loss(model, row) for row in rows)
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def plain_loss_and_gradients(model, items):
    """One record at a time, full logits, transformers' own forward."""
    model.zero_grad()
    total = 0.0
    for item in items:
        logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1]
        wanted = torch.tensor(item.ids[1:])
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        total = total + losses[torch.tensor(item.is_target[1:])].sum()
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(left, right, tolerance=1e-5):
    assert abs(left[0] - right[0]) <= tolerance * abs(right[0])
    assert (left[1] - right[1]).norm() <= tolerance * right[1].norm()


@pytest.mark.parametrize("prefix", [0, 11])
@pytest.mark.parametrize("max_row_tokens", [40, 10_000])
def test_packed_rows_give_the_loss_and_gradients_of_records_computed_alone(prefix, max_row_tokens):
    model, items = tiny_model(), records(prefix=prefix)
    assert_same(loss_and_gradients(model, pack(items, max_row_tokens)), plain_loss_and_gradients(model, items))


def test_padded_rows_give_the_loss_and_gradients_of_records_computed_alone():
    model, items = tiny_model(), records()
    assert_same(loss_and_gradients(model, pad(items, 4, pad_id=0)), plain_loss_and_gradients(model, items))


def test_attention_record_by_record_equals_the_dense_mask(monkeypatch):
    model, items = tiny_model(), records()
    by_record = loss_and_gradients(model, pack(items, 10_000))
    rows = pack(items, 10_000)
    for row in rows:  # so many padded queries that the dense mask is the cheaper way
        row.layout.queries = row.layout.queries.repeat(1, 400)  # never read: the choice looks at shapes
    assert_same(by_record, loss_and_gradients(model, rows))


def test_a_sliding_window_reaches_as_far_back_in_a_packed_row_as_alone():
    model = tiny_model(use_sliding_window=True, sliding_window=5, max_window_layers=0)
    items = records()
    expected = plain_loss_and_gradients(model, items)
    rows = pack(items, 10_000)
    assert_same(loss_and_gradients(model, rows), expected)
    for row in rows:
        row.layout.queries = row.layout.queries.repeat(1, 400)  # never read: the choice looks at shapes
    assert_same(loss_and_gradients(model, rows), expected)


def test_a_common_prefix_stands_once_in_a_row():
    items = records(num=6, prefix=20)
    [row] = pack(items, 10_000)
    assert row.input_ids.shape[1] <= 20 + sum(len(item.ids) - 20 for item in items)
    assert row.num_tokens == sum(len(item.ids) for item in items)


def test_one_record_given_twice_counts_twice():
    model, [item] = tiny_model(), records(num=1)
    once, twice = loss_and_gradients(model, pack([item], 999)), loss_and_gradients(model, pack([item, item], 999))
    assert_same(twice, (2 * once[0], 2 * once[1]))


def test_a_token_sees_its_own_record_up_to_itself_and_nothing_else():
    items = records(num=5, prefix=3)
    [row] = pack(items, 10_000)
    mask, ids = row.layout.dense_mask()[0, 0], row.input_ids[0]
    seen = {tuple(ids[mask[q]].tolist()) for q in range(len(ids))}
    assert seen == {item.ids[: i + 1] for item in items for i in range(len(item.ids))}


def test_no_row_holds_more_than_the_limit_unless_one_record_does():
    for limit in (12, 50, 80):
        for row in pack(records(num=12), limit):
            longest = row.layout.keys.shape[1]
            assert row.input_ids.shape[1] <= max(limit, longest)


def test_records_longer_than_the_limit_get_rows_of_their_own():
    items = [Ids(tuple(range(50)), (True,) * 50), Ids(tuple(range(60, 90)), (True,) * 30)]
    assert [row.input_ids.shape[1] for row in pack(items, 10)] == [50, 30]


@pytest.mark.parametrize("bias", [True, False])
def test_chunked_cross_entropy_equals_full_logits_with_gradients_of_head_and_states(bias):
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 33, bias=bias)
    hidden, targets = torch.randn(41, 16, requires_grad=True), torch.randint(0, 33, (41,))
    chunked = summed_cross_entropy(hidden, head, targets, chunk_bytes=7 * 33 * 4) * 0.25
    chunked.backward()
    got = [hidden.grad, *(p.grad for p in head.parameters())]
    hidden.grad, head.weight.grad = None, None
    if bias:
        head.bias.grad = None
    full = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum") * 0.25
    full.backward()
    assert torch.allclose(chunked, full, rtol=1e-6)
    for left, right in zip(got, [hidden.grad, *(p.grad for p in head.parameters())], strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    model, items = tiny_model(), records()
    plain = loss_and_gradients(model, pack(items, 10_000))
    model.gradient_checkpointing_enable()
    model.train()
    assert_same(loss_and_gradients(model, pack(items, 10_000)), plain)


@pytest.mark.parametrize("use_dora", [False, True])
def test_packing_is_exact_under_lora_and_dora(use_dora):
    from evergreen.model.adapters import add_lora

    model = add_lora(tiny_model(), rank=4, alpha=8, dropout=0.0, target_modules=["all-linear"], use_dora=use_dora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    install(model)
    items = records()
    assert_same(loss_and_gradients(model, pack(items, 10_000)), plain_loss_and_gradients(model, items))


def test_an_adapted_head_gives_the_same_loss_as_full_logits():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    items = records()
    assert_same(loss_and_gradients(model, pack(items, 10_000)), plain_loss_and_gradients(model, items))


def test_flex_attention_follows_the_same_mask(monkeypatch):
    """Only its forward, and uncompiled: on a CPU it has no backward."""
    from torch.nn.attention.flex_attention import flex_attention

    from evergreen.train import attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    [row] = pack(records(), 10_000)
    length = row.input_ids.shape[1]
    query, key, value = torch.randn(1, 4, length, 16), torch.randn(1, 2, length, 16), torch.randn(1, 2, length, 16)
    by_record = attention._by_record(query, key, value, row.layout, None, 0.0, None)
    flexed = attention._flex(query, key, value, row.layout, None).transpose(1, 2)
    assert torch.allclose(by_record, flexed, atol=1e-5)


def test_rotary_kinds_that_depend_on_the_batch_are_not_packed():
    plain = Qwen2Config()
    assert can_pack(plain) == ""
    scaled = Qwen2Config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert "dynamic" in can_pack(scaled)


@pytest.mark.parametrize("scale_up", [1.0, 3.0])
def test_fused_modules_give_the_loss_and_gradients_of_the_plain_ones(scale_up):
    from evergreen.model.adapters import add_lora
    from evergreen.train.fused import fuse

    model = add_lora(tiny_model(), rank=4, alpha=8 * scale_up, dropout=0.0, target_modules=["all-linear"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    install(model)
    rows = pack(records(), 10_000)
    plain = loss_and_gradients(model, rows)
    assert fuse(model) == 3 * (7 + 1 + 2) + 1  # a layer's projections, MLP and norms, and the last norm
    assert_same(loss_and_gradients(model, rows), plain)


def test_fused_modules_train_norms_too_when_all_weights_learn():
    from evergreen.train.fused import fuse

    model, rows = tiny_model(), pack(records(), 10_000)
    plain = loss_and_gradients(model, rows)
    fuse(model)
    assert_same(loss_and_gradients(model, rows), plain)
