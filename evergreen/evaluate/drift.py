"""How far a candidate has moved from the version before it, where it was taught: a cheap forecast of forgetting.

D = E_x mean_t sum_v p(v | x, y<t) log(p(v | x, y<t) / q(v | x, y<t)), in nats per token: the forward KL divergence of
the previous version p against the candidate q on prompts x of the NEW task, which predicts forgetting better than how
much the weights moved does (Shenfeld et al. 2025, "RL's Razor").

Promises: two forward passes per item; exact over the whole vocabulary, at the positions of an answer only; each version
may be alone in memory, because what is kept of the first is its head and the states before it, not its logits (7 KB a
token for a 7B model, where logits take 300 KB). Items weigh the same however long their answers; the interval is of the
mean over items. A family whose logits are not made of head and states in a way known here is refused.
Does not: draw answers. The expectation over y ~ p is taken at one y an item: the answer that is handed in (greedy
answers of the previous version are nearest to the definition), else the reference.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from evergreen.evaluate import statistics
from evergreen.evaluate.harness import Version
from evergreen.evaluate.tasks import Item
from evergreen.records import BadInput, Conversation, Failure, Message

if TYPE_CHECKING:
    import torch

    from evergreen.model.load import LoadedModel
    from evergreen.model.template import Encoded
    from evergreen.settings import EvalSettings

CHUNK_BYTES = 64 << 20  # of fp32 logits of one version at a time


@dataclass(frozen=True)
class Drift:
    """Nats per token, with the 95% interval over `n` items."""

    mean: float
    low: float
    high: float
    n: int

    def document(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Reading:
    """What a version makes of some answers: the states [tokens, width] of each before its head, and that head as
    logits of states. The head may keep a tensor of the model, and nothing else of it, in memory."""

    states: "list[torch.Tensor]"
    logits: "Callable[[torch.Tensor], torch.Tensor]"
    vocabulary: int


def measure(
    previous: "LoadedModel",
    candidate: "LoadedModel",
    items: Sequence[Item],
    answers: Sequence[str] = (),
    batch_size: int = 8,
) -> Drift:
    """Of two versions in memory; `answers`, one an item, stand in for the references."""
    encoded = encode_answers(previous, items, answers)
    return between(read(previous, encoded, batch_size), read(candidate, encoded, batch_size))


def of_versions(
    previous: Version, candidate: Version, items: Sequence[Item], settings: "EvalSettings", answers: Sequence[str] = ()
) -> Drift:
    """Loads one version after the other, so that there is never more than one in memory besides a head."""
    from evergreen.model.load import load_for

    loaded = load_for(settings, previous.reference, previous.adapters)
    encoded = encode_answers(loaded, items, answers)
    before = read(loaded, encoded, settings.batch_size)
    del loaded
    gc.collect()
    return between(
        before, read(load_for(settings, candidate.reference, candidate.adapters), encoded, settings.batch_size)
    )


def encode_answers(loaded: "LoadedModel", items: Sequence[Item], answers: Sequence[str] = ()) -> "list[Encoded]":
    """Prompt and answer as this version's ids, the answer and its end as targets. Items that its context does not hold
    are left out. Raises BadInput when none is left."""
    from evergreen.model.template import encode

    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
    encoded = []
    for place, item in enumerate(items):
        text = (answers[place] if answers else "") or item.references[0]
        record = Conversation((*item.messages, Message("assistant", text)), item.tools, origin=item.origin)
        encoded.append(encode(record, loaded.tokenizer, loaded.system, loss_on="last"))
    fitting = [one for one in encoded if len(one.ids) <= limit]
    if not fitting:
        raise BadInput(f"drift wants items that fit into the {limit} tokens of {loaded.name}, and none of the "
                       f"{len(items)} does")  # fmt: skip
    return fitting


def read(loaded: "LoadedModel", encoded: "Sequence[Encoded]", batch_size: int = 8) -> Reading:
    """One forward pass over every answer. Raises Failure when the states are not numbers, BadInput for a family whose
    logits cannot be made from them."""
    import torch

    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    by_length = sorted(range(len(encoded)), key=lambda place: len(encoded[place].ids))
    states: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
    with torch.no_grad():
        for start in range(0, len(by_length), batch_size):
            places = by_length[start : start + batch_size]
            for place, found in zip(places, _answer_states(base, [encoded[i] for i in places]), strict=True):
                states[place] = found.cpu()
    if not all(one.isfinite().all() for one in states):
        raise Failure(f"the states of {loaded.name} are not numbers in {base.dtype}: try --torch_dtype float32")
    logits = _head(base)
    first = by_length[0]
    _check_logits(base, encoded[first], logits(states[first]), loaded.name)
    return Reading(states, logits, base.config.get_text_config().vocab_size)


def between(previous: Reading, candidate: Reading) -> Drift:
    """Raises BadInput when the two do not share a vocabulary."""
    if previous.vocabulary != candidate.vocabulary:
        raise BadInput(f"drift wants two versions of one vocabulary, got {previous.vocabulary} and "
                       f"{candidate.vocabulary} tokens")  # fmt: skip
    pairs = zip(previous.states, candidate.states, strict=True)
    return Drift(**asdict(statistics.amount_interval([_item_drift(previous, candidate, *pair) for pair in pairs])))


def _item_drift(previous: Reading, candidate: Reading, ours: "torch.Tensor", theirs: "torch.Tensor") -> float:
    """Mean over an answer's tokens."""
    import torch

    num_tokens = max(1, CHUNK_BYTES // (4 * previous.vocabulary))
    total = 0.0
    with torch.no_grad():
        for p_states, q_states in zip(ours.split(num_tokens), theirs.split(num_tokens), strict=True):
            p, q = (one.logits(part).log_softmax(-1) for one, part in ((previous, p_states), (candidate, q_states)))
            total += float((p.exp() * (p - q.to(p.device))).sum())
    return max(total / len(ours), 0.0)


def _answer_states(base: "torch.nn.Module", encoded: "Sequence[Encoded]") -> "Iterator[torch.Tensor]":
    """The states from which each answer token is predicted, [tokens, width] an item; padded on the right."""
    import torch

    device, width = base.device, max(len(one.ids) for one in encoded)
    ids = torch.tensor([[*one.ids, *[0] * (width - len(one.ids))] for one in encoded], device=device)
    mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in encoded], device=device)
    states = getattr(base, base.base_model_prefix)(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    for row, one in zip(states, encoded, strict=True):
        yield row[[place - 1 for place, is_target in enumerate(one.is_target) if is_target and place]]


def _check_logits(base: "torch.nn.Module", encoded: "Encoded", made: "torch.Tensor", name: str) -> None:
    """The shortest item's own logits tell whether ours are right: wrong ones would pass for a measurement."""
    import torch

    with torch.no_grad():
        own = base(input_ids=torch.tensor([encoded.ids], device=base.device), use_cache=False).logits[0]
    own = own[[place - 1 for place, is_target in enumerate(encoded.is_target) if is_target and place]].float()
    if (own - made.to(own.device)).norm() > 0.05 * own.norm():
        raise BadInput(f"drift cannot be measured on {name}: a {base.config.model_type} shapes its logits its own way")


def _head(base: "torch.nn.Module") -> "Callable[[torch.Tensor], torch.Tensor]":
    """States -> logits in fp32, with what Gemma, Cohere and Granite do to them after the head."""
    import torch

    head, config = base.get_output_embeddings(), base.config.get_text_config()
    cap, scale = (getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale"))
    divisor = getattr(config, "logits_scaling", None) or 1.0

    def logits(states: torch.Tensor) -> torch.Tensor:
        found = head(states.to(head.weight.device)).float() * (scale or 1.0) / divisor
        return cap * torch.tanh(found / cap) if cap else found

    return logits
