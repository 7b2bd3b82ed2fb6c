"""Staying close: penalties, the pull and the teacher against the slow, obvious way."""

from dataclasses import dataclass

import pytest
import torch
from test_packing import assert_same, loss_and_gradients, records, tiny_model

from evergreen.continual.distill import teach
from evergreen.continual.orthogonal import orthogonal
from evergreen.continual.regularize import ewc, fisher_diagonal, l2sp, pull_back
from evergreen.data.packing import Teacher, pack, pad
from evergreen.model.adapters import add_lora
from evergreen.records import BadInput
from evergreen.train.loss import divergence, row_loss, summed_cross_entropy, top_tokens


def lora_model(scale=0.1, **changes):
    how = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["all-linear"]} | changes
    model = add_lora(tiny_model(), **how)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=scale)
    return model


def pairs_of(model):
    return [(m.lora_A["default"].weight, m.lora_B["default"].weight, m.scaling["default"])
            for m in model.modules() if hasattr(m, "lora_A") and len(m.lora_A)]  # fmt: skip


# L2-SP


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_lora_penalty_and_its_gradients_are_those_of_the_dense_weight_change(use_rslora):
    model = lora_model(use_rslora=use_rslora)
    penalty = l2sp(model, alpha=0.3)
    start = [scale * (b @ a).detach() for a, b, scale in pairs_of(model)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    dense = sum(((scale * (b @ a) - before) ** 2).sum() for (a, b, scale), before in
                zip(pairs_of(model), start, strict=True)) * 0.15  # fmt: skip
    short = penalty(model)
    assert torch.allclose(short, dense, rtol=1e-5)
    for ours, plain in zip(torch.autograd.grad(short, trained), torch.autograd.grad(dense, trained), strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


def test_the_lora_penalty_is_nothing_at_the_start_and_leaves_the_base_alone():
    model = lora_model()
    assert abs(float(l2sp(model, alpha=1.0)(model).detach())) < 1e-5
    assert float(l2sp(tiny_model(), alpha=1.0)(None)) == 0


def test_dora_is_refused_for_its_normalised_weight():
    with pytest.raises(BadInput, match="DoRA"):
        l2sp(lora_model(use_dora=True), alpha=1.0)


def test_the_pull_is_adamw_decay_of_the_distance_from_the_start():
    """Shifted so that the start is 0, L2-SP is weight decay, which AdamW knows how to decouple."""
    torch.manual_seed(3)
    start, wanted, size = torch.randn(5, 4), torch.randn(5, 4), torch.rand(5, 4) * 100
    ours = torch.nn.Linear(4, 5, bias=False)
    ours.weight.data = start.clone()
    shifted = torch.nn.Parameter(torch.zeros(5, 4))
    adam = torch.optim.AdamW(ours.parameters(), lr=0.05, weight_decay=0.0)
    twin = torch.optim.AdamW([shifted], lr=0.05, weight_decay=2.0)
    pull = pull_back(ours, alpha=2.0)
    adam.register_step_pre_hook(lambda optimizer, *_: pull(optimizer.param_groups[0]["lr"]))
    for _ in range(30):
        for optimizer, weight in ((adam, ours.weight), (twin, start + shifted)):
            optimizer.zero_grad()
            (size * (weight - wanted) ** 2).sum().backward()
            optimizer.step()
    assert torch.allclose(ours.weight, start + shifted, atol=1e-5)
    assert not torch.allclose(ours.weight, start, atol=0.1)


def test_the_pull_leaves_lora_to_its_penalty_and_never_passes_the_start():
    model = lora_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    pull_back(model, alpha=1.0)(0.5)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    plain = tiny_model()
    pull, start = pull_back(plain, alpha=1e6), plain.lm_head.weight.detach().clone()
    plain.lm_head.weight.data += 1
    pull(0.1)
    assert torch.equal(plain.lm_head.weight, start)


# EWC


@dataclass
class Point:
    x: torch.Tensor
    y: int


def point_loss(model, point):
    return torch.nn.functional.cross_entropy(model(point.x)[None], torch.tensor([point.y]), reduction="sum")


def test_the_ewc_penalty_is_that_of_a_fisher_made_by_hand():
    """The gradient of a softmax regression is (q - e_y) x^T, and its square averaged over records is the Fisher."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3, bias=False)
    points = [Point(torch.randn(4), y) for y in (0, 1, 2, 1, 0)]
    by_hand = torch.zeros(3, 4)
    with torch.no_grad():
        for point in points:
            error = model(point.x).softmax(-1) - torch.nn.functional.one_hot(torch.tensor(point.y), 3)
            by_hand += torch.outer(error, point.x) ** 2 / len(points)
    penalty = ewc(model, 0.7, points, point_loss)
    assert float(penalty(model).detach()) == 0
    step = torch.randn(3, 4)
    model.weight.data += step
    assert torch.allclose(penalty(model), 0.35 * (by_hand * step**2).sum(), rtol=1e-5)


def test_the_fisher_of_a_language_model_is_that_of_records_taken_one_by_one():
    model, items = lora_model(), records(num=6)
    rows = [row for item in items for row in pack([item], 10_000)]
    fisher = fisher_diagonal(model, rows, row_loss)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = [torch.zeros_like(parameter) for parameter in parameters]
    for item in items:
        logits = model(input_ids=torch.tensor([item.ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(item.ids[1:]), reduction="none")
        total = losses[torch.tensor(item.is_target[1:])].sum()
        for square, gradient in zip(plain, torch.autograd.grad(total, parameters), strict=True):
            square += gradient**2 / len(items)
    for ours, theirs in zip(fisher, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6 * float(theirs.max()))


def test_ewc_without_old_records_is_refused():
    with pytest.raises(BadInput, match="ewc"):
        ewc(lora_model(), 1.0, [], row_loss)


# a teacher


@dataclass(frozen=True)
class Taught:
    ids: tuple[int, ...]
    is_target: tuple[bool, ...]
    teacher: Teacher | None = None


def answers_of(model):
    """`top_tokens` as a run gives it to `teach`, the slow way: a record at a time."""
    return lambda items, k: [top_tokens(model, pack([item], 10_000)[0], k) for item in items]


def taught_records(model, num=9, k=8, weight=0.7, every=2):
    """Records of which every second is taught by `model`; they share a prefix, taught or not."""
    items = [Taught(item.ids, item.is_target) for item in records(num=num)]
    old = teach(items[::every], answers_of(model), weight)
    taught = iter([Taught(o.ids, o.is_target, Teacher(o.teacher.ids[:, :k], o.teacher.log_probs[:, :k], weight))
                   for o in old])  # fmt: skip
    return [next(taught) if i % every == 0 else item for i, item in enumerate(items)]


def plain_taught_loss(model, items):
    """Full logits, a record at a time, and the divergence over k tokens and the rest by its definition."""
    model.zero_grad()
    total = torch.zeros(())
    for item in items:
        at = torch.tensor(item.is_target[1:])
        log_q = model(input_ids=torch.tensor([item.ids])).logits[0, :-1][at].log_softmax(-1)
        total = total - log_q.gather(1, torch.tensor(item.ids[1:])[at][:, None]).sum()
        if item.teacher is None:
            continue
        p, ids = item.teacher.log_probs.exp(), item.teacher.ids.long()
        q = log_q.exp().gather(1, ids)
        own = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
        given = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
        total = total + item.teacher.weight * (given * (given.log() - own.log())).sum()
    total.backward()
    return total.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def other_model():
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return model


@pytest.mark.parametrize("rows_of", [lambda x: pack(x, 10_000), lambda x: pack(x, 45), lambda x: pad(x, 4, 0)],
                         ids=["one row", "many rows", "padded"])  # fmt: skip
def test_taught_rows_give_the_loss_and_gradients_of_records_computed_alone(rows_of):
    items, model = taught_records(tiny_model()), other_model()
    assert_same(loss_and_gradients(model, rows_of(items)), plain_taught_loss(model, items))


def test_an_adapted_head_learns_from_its_teacher_alike():
    from peft import LoraConfig, get_peft_model

    items = taught_records(tiny_model())
    model = get_peft_model(other_model(), LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    assert_same(loss_and_gradients(model, pack(items, 10_000)), plain_taught_loss(model, items))


@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_chunks_in_place_equal_full_logits_with_gradients_of_head_and_states(chunk_rows):
    torch.manual_seed(1)
    head = torch.nn.Linear(16, 33)
    hidden, targets = torch.randn(41, 16, requires_grad=True), torch.randint(0, 33, (41,))
    taught = torch.tensor([0, 2, 3, 4, 17, 40])
    best = torch.randn(6, 33).mul(3).log_softmax(-1).topk(5)
    teacher = Teacher(best.indices.int(), best.values, 0.6)
    inputs = [hidden, head.weight, head.bias]
    chunked = summed_cross_entropy(hidden, head, targets, chunk_rows * 33 * 4, teacher, taught) * 0.25
    logits = head(hidden)
    full = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") + 0.6 * divergence(
        logits[taught], teacher
    )
    assert torch.allclose(chunked, full * 0.25, rtol=1e-6)
    for ours, plain in zip(torch.autograd.grad(chunked, inputs), torch.autograd.grad(full * 0.25, inputs), strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


def test_a_model_does_not_differ_from_itself_and_the_cached_part_never_exceeds_the_whole():
    model = tiny_model()
    [row] = pack([item for item in taught_records(model, every=1)], 10_000)
    plain, row.teacher = row.teacher, None
    without = row_loss(model, row)
    row.teacher = plain
    assert abs(row_loss(model, row) - without) < 1e-4
    logits = torch.randn(7, 50)
    other = torch.randn(7, 50).log_softmax(-1)
    best = other.topk(10)
    whole = (other.exp() * (other - logits.log_softmax(-1))).sum()
    assert 0 < divergence(logits, Teacher(best.indices, best.values)) < whole


def test_a_teacher_that_is_certain_gives_finite_gradients():
    logits = torch.full((1, 20), -200.0).index_fill_(1, torch.tensor([3]), 200.0).requires_grad_()
    head = torch.nn.Linear(20, 20, bias=False)
    head.weight.data = torch.eye(20)
    teacher = Teacher(torch.tensor([[5, 6]]), torch.tensor([[0.0, -300.0]]))
    loss = summed_cross_entropy(logits, head, torch.tensor([5]), teacher=teacher, taught=torch.tensor([0]))
    [gradient] = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and gradient.isfinite().all() and float(gradient[0, 5]) == pytest.approx(-2, abs=1e-4)


def test_teaching_without_old_records_is_refused():
    with pytest.raises(BadInput, match="kl"):
        teach([], answers_of(tiny_model()), 1.0)


# O-LoRA


def test_the_orthogonal_penalty_is_the_sum_over_the_adapters_below(tmp_path):
    below = [lora_model(target_modules=["q_proj", "v_proj"]), lora_model(rank=2)]
    for i, earlier in enumerate(below):
        for parameter in earlier.parameters():
            parameter.data += i  # two different ones
        earlier.save_pretrained(tmp_path / str(i))
    model = lora_model()
    names = [{name: a for name, module in m.named_modules() if len(getattr(module, "lora_A", ())) for a in
              [module.lora_A["default"].weight]} for m in (model, *below)]  # fmt: skip
    by_hand = sum((earlier[name] @ a.t()).abs().sum() for name, a in names[0].items()
                  for earlier in names[1:] if name in earlier)  # fmt: skip
    penalty = orthogonal(model, [tmp_path / "0", tmp_path / "1"], 0.5)
    assert torch.allclose(penalty(model), 0.5 * by_hand, rtol=1e-5)
    assert float(orthogonal(model, [], 0.5)(model)) == 0


def test_adapters_that_read_in_orthogonal_directions_cost_nothing(tmp_path):
    below, model = lora_model(), lora_model()
    for earlier, later in zip(pairs_of(below), pairs_of(model), strict=True):
        basis = torch.linalg.qr(torch.randn(earlier[0].shape[1], 8))[0].t()
        earlier[0].data, later[0].data = basis[:4].clone(), basis[4:].clone()
    below.save_pretrained(tmp_path)
    assert float(orthogonal(model, [tmp_path], 1.0)(model).detach()) < 1e-3
