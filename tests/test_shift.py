import io
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from evergreen.data import shift
from evergreen.data.shift import Figure, measure, print_shift
from evergreen.records import BadInput, Conversation, Message, Preference, Text


def record(prompt: str, answer: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)))


def rows_of(words: str, count: int, seed: int = 0, prompt_words: int = 12, answer_words: int = 4) -> list[Conversation]:
    chance, known = random.Random(seed), words.split()
    return [
        record(" ".join(chance.choices(known, k=prompt_words)), " ".join(chance.choices(known, k=answer_words)))
        for _ in range(count)
    ]


SEA = "ship wave harbour captain anchor tide sail crew storm island reef net"
ROCK = "granite fault basalt crystal layer quarry lava magma slate marble quartz ore"


def by_first_word(texts: list[str]) -> np.ndarray:
    """A model that knows two fields, and puts a little of the text's length into its states."""
    sea = set(SEA.split())
    return np.array([[sum(word in sea for word in text.split()), len(text) % 7] for text in texts], dtype=float)


def test_more_of_the_same_data_is_no_shift():
    found = measure(rows_of(SEA, 200, 1), rows_of(SEA, 400, 2), by_first_word)
    assert max(figure.shift for figure in found.figures.values()) < 0.03
    assert "nothing sets it apart" in found.advice[0]


def test_other_words_are_a_shift_in_vocabulary_and_meaning_and_not_in_length():
    found = measure(rows_of(ROCK, 200, 1), rows_of(SEA, 400, 2), by_first_word)
    assert found.vocabulary.shift == pytest.approx(1) and found.new_words.distance == 1
    assert found.embedding.shift > 0.5 and found.total == found.embedding.shift
    assert found.prompt_length.shift < 0.03 and found.answer_kind.shift < 0.03
    assert any("far from the earlier data" in line for line in found.advice)


def test_chinese_is_compared_by_characters():
    old = [record("今天天气怎么样?", "晴天"), record("明天天气怎么样?", "雨天")] * 50
    found = measure([record("今天明天天气怎么样", "雨")] * 50, old)
    assert found.new_words.distance == 0 and found.prompt_words == (7, 9)
    assert measure([record("股票价格多少?", "四元")] * 50, old).vocabulary.shift > 0.9


def test_longer_answers_of_the_same_kind_are_named_with_both_lengths():
    old, new = rows_of(SEA, 300, 1, answer_words=15), rows_of(SEA, 300, 2, answer_words=90)
    found = measure(new, old)
    assert found.answer_words == (15, 90) and found.answer_length.shift == 1 and found.prompt_length.shift < 0.03
    assert "answers of 90 words, before 15" in found.advice[0]


def test_another_kind_of_answer_is_named():
    old = rows_of(SEA, 100, 1, answer_words=20)
    found = measure([record(one.messages[0].content, "B.") for one in old], old)
    assert found.kinds == {"one letter": (0, 1), "sentences": (1, 0)} and found.answer_kind.shift == 1
    assert "100% one letter, before 100% sentences" in found.advice[0]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("A", "one letter"),
        ("(B)", "one letter"),
        ("C。", "one letter"),
        ("42", "number"),
        ("-1,024.5%", "number"),
        ("￥3.50", "number"),
        ('{"a": 1}', "JSON"),
        ("<think>\nwell\n</think>\n\n4", "thought first"),
        ("yes, in spring", "short"),
        ("春天来了。", "short"),
        ("word " * 9, "sentences"),
        ("词" * 101, "long text"),
    ],
)
def test_kinds_of_answers(answer, kind):
    assert shift._sample(record("q", answer)).kind == kind


def test_pairs_texts_and_tool_calls_are_measured_too():
    pair = Preference((Message("user", "a b c"),), Message("assistant", "d e"), Message("assistant", "f"))
    call = Conversation((Message("user", "a"), Message("assistant", "", tool_calls=({"name": "t", "arguments": {}},))))
    samples = [shift._sample(one) for one in (pair, call, Text("x y"))]
    assert [(one.prompt_words, one.answer_words) for one in samples] == [(3, 2), (1, 0), (0, 2)]
    assert samples[1].kind == "tool call" and samples[2].kind == "plain text"


def test_a_shift_is_the_same_each_time_and_is_json():
    new, old = rows_of(ROCK, 40, 1), rows_of(SEA, 90, 2)
    found = measure(new, old, by_first_word)
    assert found == measure(new, old, by_first_word)
    document = json.loads(json.dumps(found.document()))
    assert document["rows"] == [90, 40] and document["total"] == document["embedding"]["shift"]
    assert set(document["vocabulary"]) == {"shift", "distance", "usual"} and document["advice"]
    assert "embedding" not in measure(new, old).document()


def test_few_rows_are_no_shift_by_themselves_and_it_says_that_they_are_few():
    found = measure(rows_of(SEA, 12, 1), rows_of(SEA, 400, 2), by_first_word)
    assert found.vocabulary.distance > 0.02 and max(one.shift for one in found.figures.values()) < 0.15
    assert "12 rows are few" in found.advice[0]


def test_one_new_row_and_two_old_ones_can_be_compared_and_fewer_cannot():
    assert 0 <= measure(rows_of(ROCK, 1), rows_of(SEA, 2), by_first_word).total <= 1
    with pytest.raises(BadInput, match="got 0 and 5"):
        measure([], rows_of(SEA, 5))
    with pytest.raises(BadInput, match="got 5 and 1"):
        measure(rows_of(SEA, 5), rows_of(SEA, 1))


def test_jensen_shannon_is_the_entropy_of_the_middle_less_the_mean_entropy():
    left, right = [[0, 0, 1], [2]], [[1, 1], [3]]

    def entropy(shares: dict) -> float:
        return -sum(share * math.log2(share) for share in shares.values() if share)

    p, q = ({w: n / 4 for w, n in Counter(left[0] + left[1]).items()}, {1: 0.5, 3: 0.25})
    q = {word: n / 3 for word, n in Counter(right[0] + right[1]).items()}
    middle = {word: (p.get(word, 0) + q.get(word, 0)) / 2 for word in range(4)}
    wanted = entropy(middle) - (entropy(p) + entropy(q)) / 2
    found = shift._divergence([np.array(row) for row in left], [np.array(row) for row in right], 4)
    assert found == pytest.approx(wanted)


def test_the_largest_gap_is_that_of_the_slow_way():
    chance = random.Random(3)
    left, right = [chance.randrange(20) for _ in range(30)], [chance.randrange(5, 30) for _ in range(40)]

    def below(part: list[int], place: int) -> float:
        return sum(value <= place for value in part) / len(part)

    slow = max(abs(below(left, place) - below(right, place)) for place in range(31))
    assert shift._largest_gap(left, right) == pytest.approx(slow)


def test_the_energy_coefficient_is_that_of_the_slow_way():
    points = np.random.default_rng(0).normal(size=(7, 3))
    left, right = [0, 2, 5], [1, 3, 4, 6]

    def apart(i: int, j: int) -> float:
        return math.dist(points[i], points[j])

    across = np.mean([apart(i, j) for i in left for j in right])
    inside = [np.mean([apart(i, j) for i in part for j in part if i != j]) for part in (left, right)]
    found = shift._energy(shift._distances(points), left, right)
    assert found == pytest.approx((2 * across - sum(inside)) / (2 * across))


def test_a_figure_below_the_usual_distance_is_no_shift():
    assert Figure(0.1, 0.2).shift == 0 and Figure(0.6, 0.2).shift == pytest.approx(0.5) and Figure(1, 1).shift == 0


def test_the_table_shows_every_figure_and_the_advice():
    screen = io.StringIO()
    print_shift(measure(rows_of(ROCK, 40), rows_of(SEA, 90), by_first_word), "增量_2", Console(file=screen, width=100))
    text = screen.getvalue()
    assert "增量_2 against what came before (90 rows)" not in text and "(40 rows)" in text
    assert "meaning" in text and "words never seen before" in text and "- far from the earlier data" in text
