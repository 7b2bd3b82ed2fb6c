"""The sampler against transformers' own processors, row by row and in any company; grammars against what they mean."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer
from transformers import generation as hf

from evergreen.engine import sampler
from evergreen.engine.grammar import Grammars
from evergreen.engine.vocabulary import Vocabulary
from evergreen.model import find
from evergreen.records import BadInput, Sampling


class Given:
    """A generator that gives the numbers it was made of."""

    def __init__(self, *numbers: float):
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


def row(sampling: Sampling, prompt=(), answer=(), uniform: float = 0.5, matcher=None, stop_ids=frozenset()):
    """What the sampler reads of a sequence."""
    seen = sampler.Seen(prompt) if sampler.needs_seen(sampling) else None
    for token in answer if seen else ():
        seen.add(token)
    return SimpleNamespace(
        request=SimpleNamespace(sampling=sampling),
        seen=seen,
        matcher=matcher,
        generator=Given(uniform),
        num_new_tokens=len(answer),
        stop_ids=stop_ids,
    )


def theirs(scores: torch.Tensor, how: Sampling, seen: list[int]) -> torch.Tensor:
    """Probabilities by transformers, [vocabulary]."""
    processors = [hf.RepetitionPenaltyLogitsProcessor(float(how.repetition_penalty))]
    processors.append(hf.TemperatureLogitsWarper(float(how.temperature)))
    processors += [hf.TopKLogitsWarper(how.top_k)] if how.top_k else []
    processors += [hf.TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []
    processors += [hf.MinPLogitsWarper(how.min_p)] if how.min_p else []
    made = hf.LogitsProcessorList(processors)(torch.tensor([seen]), scores[None].clone())
    return made.softmax(-1)[0]


@pytest.fixture
def scores() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(3000) * 3


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_p=0.9),
        Sampling(temperature=3.0, top_p=0.99),  # reaches beyond the first candidates
        Sampling(temperature=1.5, top_k=7),
        Sampling(temperature=1.5, top_k=200, top_p=0.7),
        Sampling(temperature=1.0, min_p=0.05),
        Sampling(temperature=9.0, min_p=0.01),
        Sampling(temperature=0.9, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.3),
    ],
)
def test_draws_have_the_distribution_of_transformers_filters(how, scores):
    """An even grid of numbers instead of random ones: shares of the grid are probabilities, to 1 / grid a token."""
    grid, seen = 4000, [5, 9, 9, int(scores.argmax())]
    rows = [row(how, prompt=seen, uniform=(place + 0.5) / grid) for place in range(grid)]
    shares = torch.zeros(len(scores))
    for start in range(0, grid, 500):
        drawn = sampler.sample(scores.expand(500, -1).contiguous(), rows[start : start + 500])
        shares += torch.bincount(torch.tensor(drawn.tokens), minlength=len(scores)) / grid
    wanted = theirs(scores, how, seen)
    assert not shares[wanted == 0].any()
    assert (shares - wanted).abs().max() < 1.5 / grid + 1e-6


def test_a_row_draws_the_same_token_in_any_company():
    torch.manual_seed(0)
    scores = torch.randn(40, 5000) * 2
    kinds = [
        Sampling(temperature=1.0),
        Sampling(),
        Sampling(temperature=0.7, top_p=0.8),
        Sampling(temperature=1.2, top_k=3),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=5.0, top_p=0.95, presence_penalty=0.5),
        Sampling(temperature=0.8, min_p=0.1, logprobs=3),
    ]

    def rows(places):
        return [row(kinds[place % len(kinds)], [place, 7], [8], uniform=place / 40) for place in places]

    together = sampler.sample(scores, rows(range(40))).tokens
    backwards = sampler.sample(scores.flip(0), rows(reversed(range(40)))).tokens
    alone = [sampler.sample(scores[[place]], rows([place])).tokens[0] for place in range(40)]
    assert together == backwards[::-1] == alone


def test_scores_are_left_as_they_are(scores):
    before = scores.clone()
    sampler.sample(scores[None], [row(Sampling(temperature=1.0, repetition_penalty=2.0, logit_bias=((3, 5.0),)), [1])])
    assert torch.equal(before, scores)


def test_penalties_of_openai_count_the_answer_only():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    how = Sampling(frequency_penalty=1.0, presence_penalty=0.6)
    assert sampler.sample(scores, [row(how, prompt=[0, 0])]).tokens == [0]
    assert sampler.sample(scores, [row(how, prompt=[0], answer=[0])]).tokens == [1]
    assert sampler.sample(scores, [row(how, prompt=[0], answer=[0, 0, 1])]).tokens == [2]


def test_many_tokens_are_counted_as_few_are():
    seen = sampler.Seen([1, 2, 1])
    for token in [*range(1000), 3, 3]:
        seen.add(token)
    counts = dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True))
    assert counts[3] == 3 and counts[1] == 1 and counts[999] == 1 and len(counts) == 1000


def test_a_bias_moves_the_choice_and_the_end_is_kept_off_until_min_new_tokens():
    scores = torch.tensor([[0.0, 5.0, 4.0]])
    assert sampler.sample(scores, [row(Sampling(logit_bias=((0, 9.0), (1, -100.0))))]).tokens == [0]
    how, end = Sampling(min_new_tokens=2), frozenset([1])
    assert sampler.sample(scores, [row(how, answer=[2], stop_ids=end)]).tokens == [2]
    assert sampler.sample(scores, [row(how, answer=[2, 2], stop_ids=end)]).tokens == [1]


def test_logprobs_are_of_the_scores_before_all_filters(scores):
    how = Sampling(temperature=0.5, top_k=1, logit_bias=((17, 99.0),), logprobs=4)
    drawn = sampler.sample(torch.stack([scores, scores]), [row(how), row(Sampling(logprobs=0))])
    wanted = scores.log_softmax(-1)
    assert drawn.tokens[0] == 17 and drawn.ranked[0].chosen == pytest.approx(float(wanted[17]), abs=1e-5)
    values, tokens = wanted.topk(4)
    assert [token for token, _ in drawn.ranked[0].top] == tokens.tolist()
    assert [value for _, value in drawn.ranked[0].top] == pytest.approx(values.tolist(), abs=1e-5)
    assert drawn.ranked[1].top == [] and drawn.ranked[1].chosen == pytest.approx(float(wanted.max()), abs=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_p=0.5, logprobs=2)])
def test_scores_that_are_not_numbers_are_the_error_of_their_row(bad, how):
    scores = torch.randn(3, 500)
    scores[1] = bad
    drawn = sampler.sample(scores, [row(how)] * 1 + [row(how), row(how)])
    assert drawn.errors.keys() == {1} and "torch_dtype" in drawn.errors[1]


@pytest.mark.parametrize("width", [5, 64, 1000, 4096, 6162])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_highest_by_groups_are_those_of_a_full_sort(width, count):
    torch.manual_seed(width)
    scores, count = torch.randn(7, width), min(count, width)
    values, places = sampler.top(scores, count)
    assert torch.equal(values, scores.sort(descending=True).values[:, :count])
    assert torch.equal(values, scores.gather(1, places))
    tied = torch.zeros(2, width)
    assert sampler.top(tied, 1)[1].tolist() == [[0], [0]]


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_probability():
    scores = torch.full((2, 300), -math.inf)
    scores[:, 100], scores[:, 299] = 1.0, 0.0
    for how in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.99)):
        assert sampler.sample(scores, [row(how, uniform=0.0), row(how, uniform=1 - 2**-53)]).tokens == [100, 299]


# --- grammars -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(find.NANO)


@pytest.fixture(scope="module")
def grammars(tokenizer) -> Grammars:
    return Grammars(tokenizer, len(tokenizer) + 100, frozenset([tokenizer.eos_token_id]))


def written(grammars: Grammars, grammar: str, tokenizer, seed: int, limit: int = 400) -> str:
    """An answer of random scores, held to the grammar."""
    torch.manual_seed(seed)
    matcher, ids, size = grammars.matcher(grammar), [], len(tokenizer) + 100
    prefer = torch.zeros(size)
    prefer[[token for text in '"}],:{' for token in tokenizer.encode(text)]] = 4  # ends come sooner
    while not matcher.is_complete and len(ids) < limit:
        drawn = sampler.sample((torch.randn(size) + prefer)[None], [row(Sampling(), matcher=matcher)])
        assert not drawn.errors
        if drawn.tokens[0] == tokenizer.eos_token_id:
            break
        ids.append(drawn.tokens[0])
        matcher.add(ids[-1])
    assert len(ids) < limit
    return tokenizer.decode(ids)


SCHEMA = {
    "type": "object",
    "properties": {"名称": {"enum": ["青石", "moon"]}, "n": {"type": "integer", "minimum": 3, "maximum": 12}},
    "required": ["名称", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_scores_an_answer_keeps_to_its_schema(grammars, tokenizer, seed):
    made = json.loads(written(grammars, "schema:" + json.dumps(SCHEMA), tokenizer, seed))
    assert made["名称"] in ("青石", "moon") and 3 <= made["n"] <= 12 and len(made) == 2


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_scores_an_answer_keeps_to_its_expression(grammars, tokenizer, seed):
    text = written(grammars, r"regex:(\d{3}-[a-f]{2,4}|第[一二三]章)", tokenizer, seed)
    assert re.fullmatch(r"\d{3}-[a-f]{2,4}|第[一二三]章", text)


def test_json_is_an_object(grammars, tokenizer):
    assert isinstance(json.loads(written(grammars, "json", tokenizer, 1, limit=5000)), dict)


CALLED = '<tool_call>\n{"name": "f", "arguments": {"n": 3}}\n</tool_call>'
CALL = {"type": "object", "properties": {"name": {"const": "f"}, "arguments": {"type": "object", "required": ["n"]}},
        "required": ["name", "arguments"]}  # fmt: skip


def taken(grammars: Grammars, grammar: str, ids: list[int]) -> bool:
    """Whether the answer of these tokens keeps to the grammar and may end."""
    matcher = grammars.matcher(grammar)._matcher
    return all(matcher.consume_token(token) for token in ids) and matcher.is_accepting()


@pytest.mark.parametrize("is_spelled", [False, True])
def test_a_call_keeps_to_its_schema_whether_its_mark_is_a_token_or_spelled(grammars, tokenizer, is_spelled):
    def encoded(text: str) -> list[int]:
        parts = text if is_spelled else [text]
        return [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]

    free = "calls:" + json.dumps(CALL)
    either = "form-or-calls:" + json.dumps({"form": SCHEMA, "call": CALL})
    formed, wrong = '{"名称": "moon", "n": 5}', CALLED.replace('"n"', '"m"')
    assert [taken(grammars, free, encoded(text)) for text in ("", "Hm.", f"Hm. {CALLED} so", formed, wrong)] == [
        True, True, True, True, False,
    ]  # fmt: skip
    twice = f"{CALLED}\n{CALLED}"
    assert [taken(grammars, either, encoded(text)) for text in ("Hm.", CALLED, twice, formed, wrong)] == [
        False, True, True, True, False,
    ]  # fmt: skip
    anything = "form-or-calls:" + json.dumps({"form": {}, "call": CALL})
    assert [taken(grammars, anything, encoded(text)) for text in ("[1]", CALLED, "Hm.")] == [True, True, False]
    assert taken(grammars, free, encoded(f"<think>\nhm\n</think>\n\n{CALLED}"))


def test_an_equal_grammar_is_compiled_once_and_starts_afresh(grammars, tokenizer):
    grammar = "regex:ab"
    for _ in range(2):
        assert written(grammars, grammar, tokenizer, 0) == "ab"
    assert list(grammars._compiled).count(grammar) == 1


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("schema:{", "not JSON"),
        ('schema:{"type": "thing"}', "JSON schema cannot"),
        ('schema:{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ('schema:{"$ref": "#/nowhere"}', "nowhere"),
        ("regex:(a", "unclosed"),
        ("regex:(?=a)b", "look-around"),
        ("lark:start", '"json", "schema:"'),
        ("schema:" + "[" * 100_000, "JSON"),
    ],
)
def test_what_is_no_grammar_is_bad_input_in_one_line(grammars, grammar, words):
    with pytest.raises(BadInput, match=words) as caught:
        grammars.matcher(grammar)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_tokenizer_that_does_not_go_with_grammars_is_bad_input():
    with pytest.raises(BadInput, match="tokenizer"):
        Grammars(object(), 10, frozenset([1])).matcher("json")


# --- tokens and characters ------------------------------------------------------------------------------------------


def test_characters_of_bytes_are_those_of_the_tokenizers_own_decode(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.is_bytes
    text = "床前明月光 — the moon 🌙🌿, naïve\n\tx = 'é' <think>hm</think>  <|im_end|>"
    ids = tokenizer.encode(text) + [tokenizer.eos_token_id]
    characters = vocabulary.characters()
    made = "".join(map(characters, ids))
    assert made == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_bytes_of_tokens_joined_are_those_of_the_text(tokenizer):
    vocabulary, text = Vocabulary(tokenizer), "常青藤 evergreen 🌿"
    assert b"".join(map(vocabulary.bytes_of, tokenizer.encode(text))) == text.encode()
    assert vocabulary.text_of(tokenizer.convert_tokens_to_ids("<|im_end|>")) == "<|im_end|>"


def test_every_token_has_the_bytes_that_decode_gives_it(tokenizer):
    vocabulary = Vocabulary(tokenizer)
    for token in range(len(tokenizer)):
        assert vocabulary.text_of(token) == tokenizer.decode([token], clean_up_tokenization_spaces=False)
