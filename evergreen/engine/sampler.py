"""From scores to tokens: every row by its own sampling, all rows together where that can be.

Promises: transformers' order of things (penalties, biases, grammar, temperature, top-k, top-p, min-p);
log-probabilities are of the scores as the model gave them; a drawn token depends on the row's scores and its request's
generator, one number of it a token, and on nothing else in the batch. Of equal scores greedy takes the lower token. A
row whose scores are not numbers is an error of that row.
Does not sort vocabularies: what is looked for is among the few groups of tokens with the highest maxima, and maxima are
read at memory's speed (16 rows of 151,936 scores: amax 0.13 ms, argmax 5, topk 10, sort 500).
"""

import math
from collections import defaultdict
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from evergreen.engine.sequence import Sequence
from evergreen.records import BadInput, Sampling

GROUP = 64  # tokens
NUM_CANDIDATES = 32, 256, 4096  # of a row without top_k; few distributions reach further, and theirs are sorted whole
GREEDY = 1e-5  # temperatures below it: scores divided by less leave fp32
NOT_NUMBERS = "the model's scores are not numbers: try --torch_dtype float32"
NO_TOKEN = "no token is left to choose from: the grammar, logit_bias and stop tokens exclude them all"


@dataclass
class Ranked:
    """Log-probabilities of a chosen token, and of the likeliest (token, log-probability), best first."""

    chosen: float
    top: list[tuple[int, float]]


@dataclass
class Drawn:
    """A token a row; `errors` names the rows that have none, `ranked` is for those that asked."""

    tokens: list[int]
    errors: dict[int, str] = field(default_factory=dict)
    ranked: dict[int, Ranked] = field(default_factory=dict)


class Seen:
    """The distinct tokens of a sequence, and how often each is in its answer."""

    def __init__(self, prompt: Rows[int]):
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._ids = np.zeros(len(self._places) + 256, dtype=np.int64)
        self._ids[: len(self._places)] = list(self._places)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids, self._counts = (np.concatenate([one, np.zeros_like(one)]) for one in (self._ids, self._counts))
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> np.ndarray:
        return self._counts[: len(self._places)]


def check(sampling: Sampling, vocab_size: int) -> None:
    """Raises BadInput for a value that no distribution can have."""
    wrong = [
        (not (0 <= sampling.temperature < math.inf), "temperature", "a number from 0 up"),
        (not (0 < sampling.top_p <= 1), "top_p", "above 0 and at most 1"),
        (sampling.top_k < 0, "top_k", "0 (no limit) or more"),
        (not (0 <= sampling.min_p <= 1), "min_p", "from 0 to 1"),
        (not (0 < sampling.repetition_penalty < math.inf), "repetition_penalty", "above 0"),
        (not math.isfinite(sampling.presence_penalty), "presence_penalty", "a number"),
        (not math.isfinite(sampling.frequency_penalty), "frequency_penalty", "a number"),
        (sampling.max_new_tokens < (sampling.prompt_logprobs is None), "max_new_tokens", "1 or more"),
        (sampling.min_new_tokens < 0, "min_new_tokens", "0 or more"),
        (sampling.logprobs is not None and not 0 <= sampling.logprobs <= vocab_size, "logprobs", f"0 to {vocab_size}"),
    ]
    for is_wrong, name, wanted in wrong:
        if is_wrong:
            raise BadInput(f"{name} is {getattr(sampling, name)}: it has to be {wanted}")
    for token, bias in sampling.logit_bias:
        if not 0 <= token < vocab_size or not math.isfinite(bias):
            raise BadInput(f"logit_bias {token}: {bias} is not a bias of one of the {vocab_size} tokens")
    if outside := [token for token in sampling.stop_token_ids if not 0 <= token < vocab_size]:
        raise BadInput(f"stop_token_ids: {outside[0]} is not one of the {vocab_size} tokens")


def needs_seen(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


def is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature < GREEDY


def sample(scores: Tensor, sequences: Rows[Sequence]) -> Drawn:
    """The next token of each sequence. `scores` [sequences, vocabulary] in fp32 are left as they are."""
    best, tokens = top(scores, 1)
    drawn = Drawn(tokens[:, 0].tolist())
    drawn.errors = dict.fromkeys((~best[:, 0].isfinite()).nonzero().flatten().tolist(), NOT_NUMBERS)
    rows = [row for row in range(len(sequences)) if row not in drawn.errors]
    shaped = [row for row in rows if _is_shaped(sequences[row])]
    random = [row for row in rows if _is_random(sequences[row]) and not _is_shaped(sequences[row])]
    if shaped:
        _sample_shaped(scores[shaped], [sequences[row] for row in shaped], shaped, drawn)
    _put(drawn.tokens, random, _draw(_rows(scores, random), [sequences[row] for row in random]))
    _rank(scores, sequences, drawn)
    return drawn


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row and their places, both [rows, count], best first. NaN is the highest of all."""
    body, tail = _groups(scores)
    num_groups = body.shape[1]
    if count * 4 > num_groups:
        return _highest(scores, count)
    groups = _highest(body.amax(dim=2), count)[1].sort(dim=1).values
    places = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
    rest = torch.arange(num_groups * GROUP, scores.shape[1], device=scores.device).expand(len(scores), -1)
    values, found = _highest(torch.cat([scores.gather(1, places), tail], dim=1), count)
    return values, torch.cat([places, rest], dim=1).gather(1, found)


def _highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return scores.max(dim=1, keepdim=True) if count == 1 else scores.topk(count)


def _is_random(sequence: Sequence) -> bool:
    return not is_greedy(sequence.request.sampling)


def _is_shaped(sequence: Sequence) -> bool:
    """Whether its scores are changed before a token is chosen."""
    sampling = sequence.request.sampling
    return bool(
        sequence.seen is not None
        or sequence.matcher is not None
        or sampling.logit_bias
        or sequence.num_new_tokens < sampling.min_new_tokens
    )


def _sample_shaped(scores: Tensor, sequences: Rows[Sequence], rows: Rows[int], drawn: Drawn) -> None:
    """`scores` is a copy, [rows, vocabulary]; `rows` are the places in the batch."""
    _penalize(scores, sequences)
    _add_biases(scores, sequences)
    errors = _keep_to_grammars(scores, sequences)
    best, tokens = top(scores, 1)
    errors |= dict.fromkeys((best[:, 0] == -math.inf).nonzero().flatten().tolist(), NO_TOKEN)
    tokens = tokens[:, 0].tolist()
    random = [place for place, one in enumerate(sequences) if _is_random(one) and place not in errors]
    _put(tokens, random, _draw(_rows(scores, random), [sequences[place] for place in random]))
    _put(drawn.tokens, rows, tokens)
    drawn.errors |= {rows[place]: error for place, error in errors.items()}


def _penalize(scores: Tensor, sequences: Rows[Sequence]) -> None:
    """Repetition penalty (Keskar et al. 2019) on tokens of prompt and answer; OpenAI's two on those of the answer."""
    rows = [row for row, one in enumerate(sequences) if one.seen is not None]
    if not rows:
        return
    seen = [sequences[row].seen for row in rows]
    samplings = [sequences[row].request.sampling for row in rows]
    sizes = [len(one.ids) for one in seen]

    def each(values: Rows[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), sizes)).to(scores.device)

    places = np.concatenate([one.ids + row * scores.shape[1] for one, row in zip(seen, rows, strict=True)])
    counts = torch.from_numpy(np.concatenate([one.counts for one in seen])).to(scores.device)
    flat, places = scores.view(-1), torch.from_numpy(places).to(scores.device)
    repetition = each([one.repetition_penalty for one in samplings])
    values = flat[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= each([one.frequency_penalty for one in samplings]) * counts
    values -= each([one.presence_penalty for one in samplings]) * (counts > 0)
    flat[places] = values


def _add_biases(scores: Tensor, sequences: Rows[Sequence]) -> None:
    """logit_bias, and -inf for whatever would end an answer before min_new_tokens."""
    width, places, values = scores.shape[1], [], []
    for row, sequence in enumerate(sequences):
        sampling = sequence.request.sampling
        biases = list(sampling.logit_bias)
        if sequence.num_new_tokens < sampling.min_new_tokens:
            biases += [(token, -math.inf) for token in sequence.stop_ids if token < width]
        places += [row * width + token for token, _ in biases]
        values += [bias for _, bias in biases]
    if places:
        biases = torch.tensor(values, dtype=scores.dtype, device=scores.device)
        scores.view(-1).index_add_(0, torch.tensor(places, device=scores.device), biases)


def _keep_to_grammars(scores: Tensor, sequences: Rows[Sequence]) -> dict[int, str]:
    """-inf for the tokens that a row's grammar forbids. Returns the errors of grammars that got too much to do."""
    rows = [row for row, one in enumerate(sequences) if one.matcher is not None]
    if not rows:
        return {}
    width = scores.shape[1]
    bits = np.zeros((len(rows), -(-width // 32)), dtype=np.int32)
    errors = {row: error for place, row in enumerate(rows) if (error := sequences[row].matcher.fill(bits[place]))}
    is_allowed = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, :width].astype(bool)
    scores[rows] = scores[rows].masked_fill(~torch.from_numpy(is_allowed).to(scores.device), -math.inf)
    return errors


def _draw(scores: Tensor, sequences: Rows[Sequence]) -> list[int]:
    """A token of each row by its temperature and filters."""
    if not sequences:
        return []
    samplings = [one.request.sampling for one in sequences]
    coldness = _column([1 / one.temperature for one in samplings], scores)
    uniform = _column([one.generator.random() for one in sequences], scores, torch.float64)
    tokens, groups = [0] * len(sequences), defaultdict(list)
    for row, sampling in enumerate(samplings):
        groups[_num_candidates(sampling, scores.shape[1])].append(row)
    for count, rows in groups.items():
        mine = _rows(scores, rows), _rows(coldness, rows), _rows(uniform, rows)
        found = _draw_filtered(*mine, [samplings[row] for row in rows], count) if count else pick(*mine)
        _put(tokens, rows, found.tolist())
    return tokens


def _num_candidates(sampling: Sampling, vocab_size: int) -> int:
    """How many of the highest scores to look at first; 0 stands for all of them, in no order."""
    if sampling.top_k:
        return min(sampling.top_k, vocab_size)
    return min(NUM_CANDIDATES[0], vocab_size) if sampling.top_p < 1 or sampling.min_p else 0


def _draw_filtered(scores: Tensor, coldness: Tensor, uniform: Tensor, samplings: Rows[Sampling], count: int) -> Tensor:
    """Draw from the `count` highest scores by top-p and min-p; where these reach further and no top-k ends them, from
    more."""
    values, tokens = top(scores, count)
    top_p, min_p = (_column([getattr(one, name) for one in samplings], scores) for name in ("top_p", "min_p"))
    is_limited = _column([one.top_k > 0 for one in samplings], scores, torch.bool)
    weights = _weights(values, values[:, :1], coldness)
    total = weights.sum(1, keepdim=True)
    if unlimited := [row for row, one in enumerate(samplings) if not one.top_k and one.top_p < 1]:
        mine = (_rows(one, unlimited) for one in (scores, values[:, :1], coldness))
        total[unlimited] = _weights(*mine).sum(1, keepdim=True)
    before = weights.cumsum(1) - weights
    is_kept = (before < top_p * total) & (weights >= min_p)
    is_kept[:, 0] = True
    found = tokens.gather(1, _place(weights * is_kept, uniform)[:, None])[:, 0]
    reaches_on = (is_kept[:, -1:] & ~is_limited)[:, 0].nonzero().flatten().tolist()
    if reaches_on and count < scores.shape[1]:
        more = next((one for one in NUM_CANDIDATES if count < one < scores.shape[1]), scores.shape[1])
        some = [samplings[row] for row in reaches_on]
        mine = (one[reaches_on] for one in (scores, coldness, uniform))
        found[reaches_on] = _draw_filtered(*mine, some, more)
    return found


def _weights(scores: Tensor, highest: Tensor, coldness: Tensor) -> Tensor:
    """exp((scores - highest) * coldness), with one new tensor; `coldness` is 1 / temperature."""
    return (scores - highest).mul_(coldness).exp_()


def pick(scores: Tensor, coldness: Tensor, uniform: Tensor) -> Tensor:
    """A place of each row with the probability that softmax(scores * coldness) gives it; `coldness` and `uniform` (from
    [0, 1)) are [rows, 1].

    First a group by the sums of groups, then a place in it: a cumulative sum over the vocabulary costs ten times as
    much as the rest."""
    weights = _weights(scores, scores.amax(dim=1, keepdim=True), coldness)
    body, tail = _groups(weights)
    sums = torch.cat([body.sum(dim=2), tail.sum(dim=1, keepdim=True)], dim=1).double()
    ends = sums.cumsum(dim=1)
    wanted = uniform * ends[:, -1:]
    group = torch.searchsorted(ends, wanted, right=True).clamp_(max=sums.shape[1] - 1)
    places = group * GROUP + torch.arange(GROUP, device=scores.device)
    inside = weights.gather(1, places.clamp(max=weights.shape[1] - 1)) * (places < weights.shape[1])
    share = (wanted - ends.gather(1, group)) / sums.gather(1, group) + 1
    return group[:, 0] * GROUP + _place(inside, share.clamp_(0, 1))


def _groups(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same as [rows, groups, tokens of a group], and the few tokens that are left, [rows, tokens]."""
    num_groups = scores.shape[1] // GROUP
    return scores[:, : num_groups * GROUP].unflatten(1, (num_groups, GROUP)), scores[:, num_groups * GROUP :]


def _place(weights: Tensor, uniform: Tensor) -> Tensor:
    """A place of each row in proportion to its weight, [rows]; never one without weight."""
    ends = weights.cumsum(dim=1, dtype=torch.float64)
    wanted = torch.minimum(uniform * ends[:, -1:], ends[:, -1:] * (1 - 1e-12))
    return torch.searchsorted(ends, wanted, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)


def _rank(scores: Tensor, sequences: Rows[Sequence], drawn: Drawn) -> None:
    """Log-probabilities for the rows that ask for them."""
    rows = [
        row
        for row, one in enumerate(sequences)
        if one.request.sampling.logprobs is not None and row not in drawn.errors
    ]
    if not rows:
        return
    counts = [sequences[row].request.sampling.logprobs for row in rows]
    drawn.ranked = dict(zip(rows, rank(scores[rows], [drawn.tokens[row] for row in rows], counts), strict=True))


def rank(scores: Tensor, tokens: Rows[int], counts: Rows[int]) -> list[Ranked]:
    """A token's log-probability in each row of scores, and those of as many of the likeliest."""
    logprobs = scores.log_softmax(dim=1)
    chosen = logprobs.gather(1, _column(tokens, scores, torch.int64))[:, 0].tolist()
    values, places = (one.tolist() for one in top(logprobs, max(1, *counts)))
    return [
        Ranked(chosen[row], list(zip(places[row][:count], values[row][:count], strict=True)))
        for row, count in enumerate(counts)
    ]


def _put(values: list, places: Rows[int], new: Rows) -> None:
    for place, value in zip(places, new, strict=True):
        values[place] = value


def _rows(scores: Tensor, rows: Rows[int]) -> Tensor:
    """Some of the rows; no copy where it is all of them."""
    return scores if len(rows) == len(scores) else scores[rows]


def _column(values: Rows[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device)[:, None]
