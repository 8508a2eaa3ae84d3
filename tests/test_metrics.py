"""Formulas against brute force and scipy; intervals against what they promise."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from oxa import metrics


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_of_k_samples_that_hold_a_right_one(
    marks: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(marks)))
    subsets = list(itertools.combinations(marks, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert metrics.pass_at_k(len(marks), sum(marks), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7, 64, 128])
def test_pass_at_k_equals_scipys_binomials_and_hypergeometric_law(k: int) -> None:
    correct = np.arange(129)
    found = metrics.pass_at_k(128, correct, k)
    binomials = 1 - scipy.special.comb(128 - correct, k) / scipy.special.comb(128, k)
    np.testing.assert_allclose(found, binomials, atol=1e-10)
    np.testing.assert_allclose(found, 1 - scipy.stats.hypergeom.pmf(0, 128, correct, k), atol=1e-10)


def test_pass_at_k_takes_problems_with_different_numbers_of_samples() -> None:
    np.testing.assert_allclose(metrics.pass_at_k([4, 2, 8], [1, 0, 8], 2), [0.5, 0, 1])


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_counts_that_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        metrics.pass_at_k(n, c, k)


def test_k_values_are_powers_of_two_and_n() -> None:
    assert [metrics.k_values(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    with pytest.raises(ValueError, match="at least 1"):
        metrics.k_values(0)


def test_the_one_level_interval_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).beta(0.5, 0.8, 150)
    ours = metrics.bootstrap_interval(values, resamples=20_000, confidence=0.9, seed=3)
    theirs = scipy.stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean(), abs=1e-15)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_paired_interval_equals_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(80), rng.random(80)
    ours = metrics.paired_difference(a, b, resamples=20_000, seed=0)
    theirs = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: np.mean(x - y, axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    assert ours.difference == pytest.approx((a - b).mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def _world(rng: np.random.Generator, num_seeds: int, num_problems: int, n: int) -> np.ndarray:
    p = rng.beta(0.6, 0.9, num_problems)
    return (rng.random((num_seeds, num_problems, n)) < p[:, None]).astype(int)


def test_intervals_cover_the_truth_at_about_their_stated_rate() -> None:
    rng = np.random.default_rng(7)
    truth = scipy.stats.beta(0.6, 0.9).mean()
    one_level = two_levels = 0
    for i in range(300):
        marks = _world(rng, 1, 60, 8)
        interval = metrics.bootstrap_interval(marks.mean(-1), resamples=400, confidence=0.9, seed=i)
        one_level += interval.low <= truth <= interval.high
        interval = metrics.pass_at_k_interval(marks, 1, resamples=400, confidence=0.9, seed=i)
        two_levels += interval.low <= truth <= interval.high
    assert 0.86 <= one_level / 300 <= 0.94
    assert one_level <= two_levels  # the second level only adds width


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_two_level_replicates_are_centred_on_the_estimate_for_every_k(k: int) -> None:
    marks = _world(np.random.default_rng(3), 1, 200, 8)
    interval = metrics.pass_at_k_interval(marks, k, resamples=4000, seed=1)
    assert interval.estimate == pytest.approx(metrics.pass_at_k(8, marks.sum(-1), k).mean())
    assert (interval.low + interval.high) / 2 == pytest.approx(interval.estimate, abs=0.005)


def test_the_two_level_interval_equals_a_plain_loop_over_problems_and_samples() -> None:
    marks = _world(np.random.default_rng(5), 1, 25, 4)[0]
    rng = np.random.default_rng(6)
    replicates = []
    for _ in range(4000):
        values = []
        for problem in rng.integers(25, size=25):
            again = rng.choice(marks[problem], size=4)
            bias = metrics.pass_at_k(4, marks[problem].sum(), 2) - (1 - (1 - marks[problem].mean()) ** 2)
            values.append(float(metrics.pass_at_k(4, again.sum(), 2) + bias))
        replicates.append(np.mean(values))
    low, high = np.quantile(replicates, [0.025, 0.975])
    interval = metrics.pass_at_k_interval(marks, 2, resamples=4000, seed=0)
    assert interval.low == pytest.approx(low, abs=0.015)
    assert interval.high == pytest.approx(high, abs=0.015)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(8)
    values = np.clip(rng.random(100) * 0.5 + np.array([0.0, 0.2, 0.5])[:, None], 0, 1)
    together = metrics.bootstrap_interval(values.mean(0), seed=0)
    apart = metrics.bootstrap_interval(values, seed=0)
    assert apart.estimate == pytest.approx(together.estimate)
    assert apart.high - apart.low > 2 * (together.high - together.low)
    marks = (rng.random((3, 100, 8)) < values[..., None]).astype(int)
    wide, narrow = (metrics.pass_at_k_interval(m, 1, seed=0) for m in (marks, marks[1:2]))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    marks = _world(np.random.default_rng(0), 2, 30, 4)
    first, again, other = (metrics.pass_at_k_interval(marks, 2, resamples=100, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_blocks_bound_memory_without_losing_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 70)  # 7 resamples a block, the last one shorter
    sizes = []

    def replicate(rng: np.random.Generator, size: int) -> np.ndarray:
        sizes.append(size)
        return rng.random(size)

    assert len(metrics._in_blocks(replicate, 30, 10, 0)) == 30
    assert sizes == [7, 7, 7, 7, 2]


def test_pairing_finds_a_difference_that_problems_would_hide() -> None:
    rng = np.random.default_rng(9)
    difficulty = rng.random(100)
    a, b = difficulty + 0.03 + 0.02 * rng.standard_normal(100), difficulty
    paired = metrics.paired_difference(a, b, seed=0)
    assert paired.low > 0
    assert paired.p_value < 0.01
    interval = metrics.bootstrap_interval(b)
    assert interval.low < a.mean() < interval.high
    back = metrics.paired_difference(b, a, seed=0)
    assert back.difference == pytest.approx(-paired.difference)
    assert back.high < 0


def test_equal_arms_differ_by_nothing_with_p_value_one() -> None:
    values = np.random.default_rng(0).random(40)
    assert metrics.paired_difference(values, values) == (0, 0, 0, 1)


def test_the_paired_test_rejects_equal_arms_at_about_its_level() -> None:
    rng = np.random.default_rng(10)
    rejected = 0
    for i in range(300):
        marks = _world(rng, 2, 60, 8)
        values = marks.mean(-1)
        rejected += metrics.paired_difference(values[0], values[1], resamples=400, seed=i).p_value < 0.1
    assert 0.05 <= rejected / 300 <= 0.15


def test_arms_with_different_problems_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="same problems, found 3 and 4"):
        metrics.paired_difference([0, 1, 0], [0, 1, 0, 1])


@pytest.mark.parametrize("values", [[], [[]], [float("nan")], [[[1.0]]]])
def test_intervals_refuse_what_is_not_a_table_of_numbers(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        metrics.bootstrap_interval(values)


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_two_level_intervals_lie_in_order_and_between_0_and_1(s: int, p: int, n: int, seed: int) -> None:
    marks = np.random.default_rng(seed).integers(0, 2, (s, p, n))
    interval = metrics.pass_at_k_interval(marks, n, resamples=50, seed=seed)
    assert 0 <= interval.low <= interval.high <= 1


def test_correctness_other_than_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match="0 and 1"):
        metrics.pass_at_k_interval([[0.5, 1]], 1)


def test_two_thousand_resamples_of_four_hundred_problems_take_under_two_seconds() -> None:
    marks = _world(np.random.default_rng(0), 1, 400, 8)
    start = time.process_time()
    metrics.pass_at_k_interval(marks, 4, resamples=2000)
    metrics.paired_difference(marks[0].mean(-1), marks[0, ::-1].mean(-1), resamples=2000)
    assert time.process_time() - start < 2
