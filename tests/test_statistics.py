"""Intervals cover what they promise, paired tests agree with known values, and few items never prove a difference."""

import numpy as np
import pytest

from evergreen.evaluate.statistics import (
    Interval,
    _t_quantile,
    amount_interval,
    items_needed,
    mcnemar,
    mean_interval,
    overall_interval,
    paired_difference,
    percentile_intervals,
    percentile_ratios,
    percentiles,
    wilson,
)


def test_wilson_agrees_with_the_textbook():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == pytest.approx(0) and wilson(10, 10)[1] == pytest.approx(1)


def test_right_or_wrong_scores_have_wilsons_interval():
    interval = mean_interval([1.0] * 8 + [0.0] * 2)
    assert (interval.low, interval.high) == pytest.approx(wilson(8, 10)) and interval.n == 10


def test_all_right_on_few_items_is_not_certain():
    assert mean_interval([1.0] * 5).low < 0.6


def test_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    random = np.random.default_rng(1)
    for n in (15, 100):
        samples = random.beta(2, 1, (250, n))
        hits = sum(interval.low <= 2 / 3 <= interval.high for interval in map(mean_interval, samples.tolist()))
        assert 0.90 <= hits / len(samples) <= 0.99, (n, hits)


def test_paired_difference_covers_and_is_narrower_than_an_unpaired_one():
    random, hits = np.random.default_rng(2), 0
    for _ in range(150):
        ease = random.random(120)
        a, b = (random.random(120) < ease).astype(float), (random.random(120) < ease).astype(float)
        found = paired_difference([(a, b)])
        hits += found.low <= 0 <= found.high
    assert hits / 150 > 0.9
    a = random.random(100)
    paired = paired_difference([(a, np.clip(a + 0.02, 0, 1))])
    assert paired.high - paired.low < 0.02


def test_a_vs_a_is_called_different_at_most_one_time_in_twenty():
    random = np.random.default_rng(3)
    called = sum(
        paired_difference([((random.random(40) < 0.6) * 1.0, (random.random(40) < 0.6) * 1.0)]).is_real
        for _ in range(200)
    )
    assert called <= 16


def test_sign_flip_test_is_mcnemars_on_right_or_wrong_scores():
    a, b = [1.0] * 10 + [0.0] * 10, [1.0] * 8 + [0.0] * 2 + [1.0] * 9 + [0.0]
    counts = mcnemar(a, b)
    assert (counts.both, counts.only_a, counts.only_b, counts.neither) == (8, 2, 9, 1)
    assert counts.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert paired_difference([(a, b)]).p_value == pytest.approx(counts.p_value)


def test_mcnemar_known_values():
    assert mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]).p_value == pytest.approx(14 / 64)
    assert mcnemar([1] * 6, [0] * 6).p_value == pytest.approx(2 / 64)
    assert mcnemar([1, 0], [1, 0]).p_value == 1
    assert mcnemar([1] * 3, [0] * 2 + [1]).p_value == 0.5


def test_mcnemar_of_very_many_pairs_keeps_its_scale():
    a, b = [1.0] * 700 + [0.0] * 600, [0.0] * 700 + [1.0] * 600
    assert mcnemar(a, b).p_value == pytest.approx(0.00604, rel=0.02)  # scipy.stats.binomtest(600, 1300)


def test_three_items_never_prove_a_difference():
    found = paired_difference([([0.0] * 3, [1.0] * 3)])
    assert found.mean == 1 and not found.is_real


def test_equal_answers_say_how_much_so_few_items_can_exclude():
    ten, hundred = (paired_difference([([1.0] * n, [1.0] * n)]) for n in (10, 100))
    assert ten.high == pytest.approx(1 - 0.05**0.1) and hundred.high == pytest.approx(1 - 0.05**0.01)
    assert ten.low == -ten.high and items_needed(ten) is None


def test_a_clear_gain_is_real():
    found = paired_difference([([0.0] * 50 + [1.0] * 50, [0.0] * 20 + [1.0] * 80)])
    assert found.is_real and found.low > 0.15 and found.mean == pytest.approx(0.3)


def test_tasks_weigh_the_same_however_many_items_they_have():
    small, large = ([0.0] * 10, [1.0] * 10), ([1.0] * 1000, [1.0] * 1000)
    assert paired_difference([small, large]).mean == pytest.approx(0.5)
    assert overall_interval([[0.0] * 10, [1.0] * 1000]).mean == pytest.approx(0.5)


def test_items_needed_follow_the_square_of_the_difference():
    random = np.random.default_rng(4)
    found = paired_difference([(random.random(200), random.random(200))])
    assert items_needed(found, 0.01) == pytest.approx(4 * items_needed(found, 0.02), rel=0.01)
    assert items_needed(found) == pytest.approx((1 / 6) * ((1.96 + 0.8416) / 0.02) ** 2, rel=0.25)


def test_as_many_items_as_needed_do_see_the_difference_four_times_in_five():
    random, seen = np.random.default_rng(5), 0
    for _ in range(100):
        a = random.random(400)
        seen += paired_difference([(a, a + random.normal(0.0280, 0.2, 400))]).is_real  # 2.8 standard errors
    assert 65 <= seen <= 92


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(6).random(30).tolist()
    assert mean_interval(scores) == mean_interval(scores)


def test_t_quantiles_are_close_to_the_table():
    for freedom, wanted in ((4, 2.776), (10, 2.228), (30, 2.042)):
        assert _t_quantile(freedom) == pytest.approx(wanted, rel=0.01)


def test_percentiles_of_nothing_are_zero():
    assert percentiles([]) == {"p50": 0.0, "p95": 0.0} and percentiles([1.0, 3.0])["p50"] == 2.0


def test_percentile_intervals_hold_the_percentiles_and_cover_the_median():
    random, hits = np.random.default_rng(7), 0
    for _ in range(100):
        found = percentile_intervals(random.exponential(1.0, 60).tolist())
        assert found["p50_low"] <= found["p50"] <= found["p50_high"] and found["p95_low"] <= found["p95_high"]
        hits += found["p50_low"] <= np.log(2) <= found["p50_high"]
    assert hits >= 88 and set(percentile_intervals([]).values()) == {0.0}


def test_amounts_may_be_beyond_one_and_equal_ones_have_no_width():
    found = amount_interval([3.0, 5.0, 4.0, 8.0, 2.0, 6.0])
    assert found.mean == pytest.approx(14 / 3) and found.low < found.mean < 5 < found.high
    assert amount_interval([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 2)


def test_ratios_of_times_are_told_prompt_by_prompt():
    random = np.random.default_rng(3)
    before = random.exponential(10.0, 16) + 1  # prompts differ a lot, versions do not
    found = percentile_ratios(before.tolist(), (1.5 * before).tolist())
    for ratio in found.values():
        assert [ratio.low, ratio.mean, ratio.high] == pytest.approx([1.5] * 3)
    noisy = percentile_ratios(before.tolist(), (1.5 * before * random.uniform(0.8, 1.2, 16)).tolist())
    assert all(ratio.low < ratio.mean < ratio.high and ratio.low > 1 for ratio in noisy.values())
