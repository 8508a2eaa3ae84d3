"""Formulas against brute force, scipy, statsmodels and scorio; intervals against what they promise."""

from __future__ import annotations

import itertools
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scorio import eval as scorio
from statsmodels.stats.multitest import multipletests

from oxa.comparison import estimators

ROOT = Path(__file__).resolve().parents[2]


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_of_k_samples_that_hold_a_right_one(
    marks: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(marks)))
    subsets = list(itertools.combinations(marks, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert estimators.pass_at_k(len(marks), sum(marks), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7, 64, 128])
def test_pass_at_k_equals_scipys_binomials_and_hypergeometric_law(k: int) -> None:
    correct = np.arange(129)
    estimate = estimators.pass_at_k(128, correct, k)
    binomials = 1 - scipy.special.comb(128 - correct, k) / scipy.special.comb(128, k)
    np.testing.assert_allclose(estimate, binomials, atol=1e-10)
    np.testing.assert_allclose(estimate, 1 - scipy.stats.hypergeom.pmf(0, 128, correct, k), atol=1e-10)


def test_pass_at_k_takes_problems_with_different_numbers_of_samples() -> None:
    np.testing.assert_allclose(estimators.pass_at_k([4, 2, 8], [1, 0, 8], 2), [0.5, 0, 1])


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_counts_that_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        estimators.pass_at_k(n, c, k)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_hat_k_is_the_share_of_subsets_of_k_samples_that_are_all_right(
    marks: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(marks)))
    subsets = list(itertools.combinations(marks, k))
    expected = sum(all(subset) for subset in subsets) / len(subsets)
    assert estimators.pass_hat_k(len(marks), sum(marks), k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7, 64, 128])
def test_pass_hat_k_equals_scipys_hypergeometric_law(k: int) -> None:
    correct = np.arange(129)
    expected = scipy.stats.hypergeom.pmf(k, 128, correct, k)
    np.testing.assert_allclose(estimators.pass_hat_k(128, correct, k), expected, atol=1e-10)


def test_a_single_sample_makes_pass_at_k_and_pass_hat_k_the_same() -> None:
    counts = np.arange(9)
    np.testing.assert_allclose(estimators.pass_at_k(8, counts, 1), counts / 8)
    np.testing.assert_allclose(estimators.pass_hat_k(8, counts, 1), counts / 8)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_and_pass_hat_k_equal_scorios(k: int) -> None:
    marks = np.random.default_rng(0).integers(0, 2, (40, 5))
    estimate = estimators.pass_at_k(5, marks.sum(1), k), estimators.pass_hat_k(5, marks.sum(1), k)
    assert estimate[0].mean() == pytest.approx(scorio.pass_at_k(marks, k), abs=1e-12)
    assert estimate[1].mean() == pytest.approx(scorio.pass_hat_k(marks, k), abs=1e-12)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=9))
def test_majority_is_the_mean_over_all_ways_to_break_ties(answers: list[int]) -> None:
    votes = Counter(answer for answer in answers if answer >= 0)
    leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
    expected = np.mean([answer == 0 for answer in leaders]) if leaders else 0.0
    assert estimators.majority(answers) == pytest.approx(expected)
    assert estimators.distinct_answers(answers) == len(votes)


def test_majorities_of_many_rows_are_those_of_each() -> None:
    answers = np.random.default_rng(0).integers(-1, 6, (7, 5, 8))
    estimate, distinct = estimators.majority(answers), estimators.distinct_answers(answers)
    for place in np.ndindex(7, 5):
        assert estimate[place] == estimators.majority(answers[place])
        assert distinct[place] == estimators.distinct_answers(answers[place])


def test_who_gave_no_answer_has_no_vote_and_silence_is_not_right() -> None:
    assert estimators.majority([[0, -1, -1], [-1, -1, -1], [0, 1, -1], [0, 1, 1]]).tolist() == [1, 0, 0.5, 0]
    assert estimators.distinct_answers([[0, -1, -1], [-1, -1, -1]]).tolist() == [1, 0]


def test_k_values_are_powers_of_two_and_n() -> None:
    assert [estimators.k_values(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    with pytest.raises(ValueError, match="at least 1"):
        estimators.k_values(0)


def test_the_one_level_interval_equals_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).beta(0.5, 0.8, 150)
    ours = estimators.bootstrap_interval(values, resamples=20_000, confidence=0.9, seed=3)
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
    ours = estimators.paired_difference(a, b, resamples=20_000, seed=0)
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


def _values(marks: np.ndarray, k: int = 1, num_redrawn: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """pass@k of marks [S, P, N], and with the samples drawn again."""
    n, correct = marks.shape[-1], marks.sum(-1)
    again = np.random.default_rng(0).binomial(n, correct[..., None] / n, (*correct.shape, num_redrawn))
    return estimators.pass_at_k(n, correct, k), estimators.pass_at_k(n, again, k)


simulate: Any = runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"))["simulate"]


@pytest.mark.parametrize(
    "world",
    [
        {"num_problems": 30, "num_samples": 16},
        pytest.param({"num_problems": 200, "num_samples": 8}, marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_intervals_hold_the_truth_at_their_rate_and_equal_arms_are_told_apart_at_the_tests_level(
    world: dict[str, int],
) -> None:
    coverage = simulate(**world, num_worlds=2000, resamples=300)
    assert coverage.one == pytest.approx(0.95, abs=0.02)
    assert coverage.difference == pytest.approx(0.95, abs=0.02)
    assert coverage.equal == pytest.approx(0.05, abs=0.015)


def test_eight_normal_values_get_students_interval_and_not_a_normal_one() -> None:
    draws, held, widths = np.random.default_rng(0), 0, []
    for world in range(2000):
        values = draws.standard_normal(8)
        interval = estimators.bootstrap_interval(values, resamples=400, seed=world)
        held += interval.low <= 0 <= interval.high
        widths.append((interval.high - interval.low) / (2 * values.std(ddof=1) / np.sqrt(8)))
    assert held / 2000 == pytest.approx(0.95, abs=0.02)
    assert np.mean(widths) == pytest.approx(scipy.stats.t(7).ppf(0.975), rel=0.04)


def test_intervals_over_three_seeds_hold_the_truth_where_seeds_differ() -> None:
    coverage = simulate(60, 8, 3, seed_effect=0.15, num_worlds=600)
    assert 0.93 <= coverage.one <= 0.985
    assert 0.93 <= coverage.difference <= 0.985
    assert coverage.equal <= 0.065


def test_intervals_that_ignored_seeds_would_fail_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    held = {"seeds as a level": 0, "seeds averaged": 0}
    for _ in range(300):
        values = 0.5 + 0.1 * rng.standard_normal((3, 1)) + 0.2 * rng.standard_normal((3, 50))
        for name, given_values in (("seeds as a level", values), ("seeds averaged", values.mean(0))):
            interval = estimators.bootstrap_interval(given_values, resamples=300)
            held[name] += interval.low <= 0.5 <= interval.high
    assert held["seeds as a level"] >= 0.92 * 300
    assert held["seeds averaged"] < 0.8 * 300


def test_what_samples_explain_is_not_taken_for_a_difference_between_seeds() -> None:
    widths = []
    for world in range(60):
        values, _ = _values(_world(np.random.default_rng(world), 8, 60, 1))
        several, averaged = (
            estimators.bootstrap_interval(table, resamples=400) for table in (values, values.mean(0))
        )
        widths.append((several.high - several.low) / (averaged.high - averaged.low))
    assert np.median(widths) < 1.07


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_the_second_level_keeps_estimate_and_width_for_every_k(k: int) -> None:
    values, redrawn = _values(_world(np.random.default_rng(3), 1, 200, 8), k)
    two_levels = estimators.bootstrap_interval(values, redrawn, resamples=8000, seed=1)
    one_level = estimators.bootstrap_interval(values, resamples=8000, seed=2)
    assert two_levels.estimate == one_level.estimate == pytest.approx(values.mean())
    width = one_level.high - one_level.low
    assert two_levels.high - two_levels.low == pytest.approx(width, rel=0.06)
    assert (two_levels.low + two_levels.high) / 2 == pytest.approx(values.mean(), abs=0.05 * width)


def test_drawing_samples_again_without_taking_their_noise_out_first_would_be_too_wide() -> None:
    marks = np.random.default_rng(5).integers(0, 2, (1, 150, 2))
    values, redrawn = _values(marks)
    interval = estimators.bootstrap_interval(values, redrawn, resamples=4000)
    rng = np.random.default_rng(6)
    naive = [rng.binomial(2, values[0, rng.integers(150, size=150)]).mean() / 2 for _ in range(4000)]
    low, high = np.quantile(naive, [0.025, 0.975])
    assert high - low > 1.15 * (interval.high - interval.low)


def test_where_problems_do_not_differ_all_width_comes_from_their_samples() -> None:
    rng = np.random.default_rng(2)
    marks = (rng.random((1, 400, 4)) < 0.5).astype(int)
    interval = estimators.bootstrap_interval(*_values(marks), resamples=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 1600), rel=0.08)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(8)
    values = np.clip(rng.random(100) * 0.5 + np.array([0.0, 0.2, 0.5])[:, None], 0, 1)
    together = estimators.bootstrap_interval(values.mean(0), seed=0)
    apart = estimators.bootstrap_interval(values, seed=0)
    assert apart.estimate == pytest.approx(together.estimate)
    assert apart.high - apart.low > 2 * (together.high - together.low)


def test_paired_seeds_cancel_what_they_share() -> None:
    rng = np.random.default_rng(3)
    before = rng.random((3, 80)) * 0.2 + np.array([0.0, 0.2, 0.5])[:, None]
    after = before + 0.05 + 0.02 * rng.standard_normal((3, 80))
    paired = estimators.paired_difference(after, before, same_seeds=True)
    assert paired.low > 0
    apart = estimators.paired_difference(after, before)
    assert apart.low < 0 < apart.high
    with pytest.raises(ValueError, match="as many of each, found 3 and 2"):
        estimators.paired_difference(after, before[:2], same_seeds=True)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = _values(_world(np.random.default_rng(0), 2, 30, 4), 2)
    first, again, other = (estimators.bootstrap_interval(*values, resamples=100, seed=s) for s in (0, 0, 1))
    assert first == again != other


def test_blocks_bound_memory_without_losing_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "BLOCK", 70)  # 7 resamples a block, the last one shorter
    sizes = []

    def replicate(rng: np.random.Generator, size: int) -> np.ndarray:
        sizes.append(size)
        return rng.random(size)

    assert len(estimators._in_blocks(replicate, 30, 10, np.random.default_rng(0))) == 30
    assert sizes == [7, 7, 7, 7, 2]


def test_pairing_finds_a_difference_that_problems_would_hide() -> None:
    rng = np.random.default_rng(9)
    difficulty = rng.random(100)
    a, b = difficulty + 0.03 + 0.02 * rng.standard_normal(100), difficulty
    paired = estimators.paired_difference(a, b, seed=0)
    assert paired.low > 0
    assert paired.p_value < 0.01
    interval = estimators.bootstrap_interval(b)
    assert interval.low < a.mean() < interval.high
    back = estimators.paired_difference(b, a, seed=0)
    assert back.difference == pytest.approx(-paired.difference)
    assert back.high < 0


def test_equal_arms_differ_by_nothing_with_p_value_one() -> None:
    values = np.random.default_rng(0).random(40)
    assert estimators.paired_difference(values, values) == (0, 0, 0, 1)
    redrawn = [values[:, None] + np.random.default_rng(seed).standard_normal((40, 20)) for seed in (1, 2)]
    assert estimators.paired_difference(values, values, (redrawn[0], redrawn[1])) == (0, 0, 0, 1)


def test_a_p_value_below_the_level_means_an_interval_without_0() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        a, b = rng.random(30) + rng.uniform(0, 0.3), rng.random(30)
        estimate = estimators.paired_difference(a, b, resamples=999)
        if not 0.045 < estimate.p_value < 0.055:
            assert (estimate.p_value < 0.05) == (estimate.low > 0 or estimate.high < 0)


def test_arms_with_different_problems_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="same problems, found 3 and 4"):
        estimators.paired_difference([0, 1, 0], [0, 1, 0, 1])


@pytest.mark.parametrize("values", [[], [[]], [float("nan")], [[[1.0]]]])
def test_intervals_refuse_what_is_not_a_table_of_numbers(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        estimators.bootstrap_interval(values)


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_intervals_of_any_shape_are_finite_and_in_order(s: int, p: int, n: int, seed: int) -> None:
    marks = np.random.default_rng(seed).integers(0, 2, (s, p, n))
    interval = estimators.bootstrap_interval(*_values(marks, n), resamples=50, seed=seed)
    assert np.isfinite(interval).all()
    assert interval.low <= interval.high


def test_the_bayesian_interval_of_one_problem_is_scipys_beta_posterior() -> None:
    estimate = estimators.bayes_interval([8], [3], resamples=200_000)
    posterior = scipy.stats.beta(1 + 3, 1 + 5)
    assert estimate.estimate == pytest.approx(posterior.mean())
    np.testing.assert_allclose(estimate[1:], posterior.ppf([0.025, 0.975]), atol=0.005)


def test_the_bayesian_mean_and_spread_of_many_problems_are_those_of_bayes_at_n() -> None:
    rng = np.random.default_rng(0)
    correct = rng.binomial(16, rng.beta(0.6, 0.9, 30))
    estimate = estimators.bayes_interval(np.full(30, 16), correct, resamples=100_000)
    posterior = scipy.stats.beta(1 + correct, 1 + 16 - correct)
    spread = np.sqrt(posterior.var().sum()) / 30
    assert estimate.estimate == pytest.approx(posterior.mean().mean())
    np.testing.assert_allclose(
        estimate[1:], estimate.estimate + np.array([-1.96, 1.96]) * spread, atol=0.03 * spread
    )
    mean, deviation = scorio.bayes((np.arange(16) < correct[:, None]).astype(int))
    assert (estimate.estimate, spread) == pytest.approx((mean, deviation))


def test_the_bayesian_interval_covers_these_very_problems_at_its_rate() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for i in range(1000):
        rates = rng.random(30)
        estimate = estimators.bayes_interval(np.full(30, 8), rng.binomial(8, rates), resamples=400, seed=i)
        held += estimate.low <= rates.mean() <= estimate.high
    assert held / 1000 == pytest.approx(0.95, abs=0.02)


def test_holms_p_values_are_those_of_the_textbook_example() -> None:
    # four tests, α 0.05: 0.005 and 0.01 are rejected, 0.03 and 0.04 are not
    np.testing.assert_allclose(estimators.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert estimators.holm([]).tolist() == []
    assert estimators.holm([0.6, 0.7]).tolist() == [1, 1]


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holms_p_values_equal_statsmodels(p_values: list[float]) -> None:
    np.testing.assert_allclose(estimators.holm(p_values), multipletests(p_values, method="holm")[1])


def test_seeds_of_other_arms_tell_how_much_seeds_differ() -> None:
    """Four arms of two seeds with an effect of their own: as many intervals hold the truth, and they are narrower."""
    rng = np.random.default_rng(0)
    num_worlds, num_problems, spread = 400, 60, 0.05
    held, widths = {"pair": 0, "pool": 0}, {"pair": 0.0, "pool": 0.0}
    for _ in range(num_worlds):
        problems = rng.normal(0.5, 0.2, num_problems)
        arms = [
            problems + rng.normal(0, spread, (2, 1)) + rng.normal(0, 0.1, (2, num_problems)) for _ in range(4)
        ]
        for name, pool in (("pair", None), ("pool", arms)):
            estimate = estimators.paired_difference(arms[0], arms[1], pool=pool, resamples=400)
            held[name] += estimate.low <= 0 <= estimate.high
            widths[name] += estimate.high - estimate.low
    assert 0.93 <= held["pool"] / num_worlds <= 0.98
    assert widths["pool"] < 0.8 * widths["pair"]


def test_two_responses_have_two_mean_entropies() -> None:
    """10 tokens at 0.5 nats and 1,000 at 0.05."""
    sums, tokens = np.array([5.0, 50.0]), np.array([10, 1000])
    assert estimators.response_entropy(sums, tokens) == pytest.approx(0.275)
    assert estimators.token_entropy(sums, tokens).mean() == pytest.approx(55 / 1010)
    assert np.isnan(estimators.response_entropy([0.0], [0]))
    assert np.isnan(estimators.token_entropy([0.0, 0.0], [0, 0])).all()


def test_the_linearised_ratio_spreads_as_the_ratio_does() -> None:
    """The bootstrap of its values against one of Σ s / Σ t itself, where long responses have a low entropy."""
    draws = np.random.default_rng(3)
    tokens = draws.lognormal(5, 0.8, 300)
    sums = tokens * (0.3 + 0.5 * draws.gamma(2, 0.1, 300) + 5 / tokens)
    values = estimators.token_entropy(sums, tokens)
    found = estimators.bootstrap_interval(values, resamples=4000)
    again = draws.integers(300, size=(4000, 300))
    ratios = sums[again].sum(1) / tokens[again].sum(1)
    assert found.estimate == pytest.approx(sums.sum() / tokens.sum())
    assert found.high - found.low == pytest.approx(
        np.quantile(ratios, 0.975) - np.quantile(ratios, 0.025), rel=0.1
    )
    plain = estimators.bootstrap_interval(sums / tokens.mean(), resamples=4000)
    assert plain.high - plain.low > 1.5 * (found.high - found.low), "fixed lengths would say too much"
