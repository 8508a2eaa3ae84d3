"""Formulas against brute force, scipy, statsmodels and scorio; intervals against what they promise."""

from __future__ import annotations

import itertools
import runpy
import sys
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


def test_the_interval_of_many_problems_equals_scipys_percentile_bootstrap() -> None:
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


def _values(marks: np.ndarray, k: int = 1) -> np.ndarray:
    """pass@k of marks [S, P, N]."""
    return estimators.pass_at_k(marks.shape[-1], marks.sum(-1), k)


sys.path.insert(0, str(ROOT / "benchmarks"))  # whose scripts import each other
coverage: Any = runpy.run_path(str(ROOT / "benchmarks" / "coverage.py"))
simulate = coverage["simulate"]


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
    rates = simulate(**world, num_worlds=2000, resamples=300)
    assert rates.one == pytest.approx(0.95, abs=0.02)
    assert rates.difference == pytest.approx(0.95, abs=0.02)
    assert rates.equal == pytest.approx(0.05, abs=0.015)


def test_eight_normal_values_get_students_interval_and_not_a_normal_one() -> None:
    draws, held, widths = np.random.default_rng(0), 0, []
    for world in range(2000):
        values = 10 + draws.standard_normal(8)
        interval = estimators.bootstrap_interval(values, highest=np.inf, resamples=400, seed=world)
        held += interval.low <= 10 <= interval.high
        widths.append((interval.high - interval.low) / (2 * values.std(ddof=1) / np.sqrt(8)))
    assert 0.94 <= held / 2000 <= 0.98
    assert np.mean(widths) == pytest.approx(scipy.stats.t(7).ppf(0.975), rel=0.15)


def test_intervals_over_three_seeds_hold_the_truth_where_seeds_differ() -> None:
    rates = simulate(60, 8, 3, seed_effect=0.15, num_worlds=600)
    assert 0.93 <= rates.one <= 0.99
    assert 0.93 <= rates.difference <= 0.99
    assert rates.equal <= 0.065


def test_intervals_that_ignored_seeds_would_fail_where_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    held = {"seeds as a level": 0, "seeds averaged": 0}
    for _ in range(300):
        values = 0.5 + 0.1 * rng.standard_normal((3, 1)) + 0.2 * rng.standard_normal((3, 50))
        for name, given_values in (("seeds as a level", values), ("seeds averaged", values.mean(0))):
            interval = estimators.bootstrap_interval(given_values, highest=np.inf, resamples=300)
            held[name] += interval.low <= 0.5 <= interval.high
    assert held["seeds as a level"] >= 0.9 * 300
    assert held["seeds averaged"] < 0.8 * 300


def test_what_samples_explain_is_not_taken_for_a_difference_between_seeds() -> None:
    widths = []
    for world in range(60):
        values = _values(_world(np.random.default_rng(world), 8, 60, 1))
        several, averaged = (
            estimators.bootstrap_interval(table, resamples=400) for table in (values, values.mean(0))
        )
        widths.append((several.high - several.low) / (averaged.high - averaged.low))
    assert np.median(widths) < 1.07


def test_where_problems_do_not_differ_all_width_comes_from_their_samples() -> None:
    rng = np.random.default_rng(2)
    marks = (rng.random((1, 400, 4)) < 0.5).astype(int)
    interval = estimators.bootstrap_interval(_values(marks), resamples=4000)
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
    first, again, other = (estimators.bootstrap_interval(values, resamples=100, seed=s) for s in (0, 0, 1))
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
    paired = estimators.paired_difference(a, b, highest=np.inf, seed=0)
    assert paired.low > 0
    assert paired.p_value < 0.01
    interval = estimators.bootstrap_interval(b, highest=np.inf)
    assert interval.low < a.mean() < interval.high
    back = estimators.paired_difference(b, a, highest=np.inf, seed=0)
    assert back.difference == pytest.approx(-paired.difference)
    assert back.high < 0


def test_equal_arms_differ_by_nothing_with_p_value_one_and_an_interval_for_problems_not_seen() -> None:
    values = np.random.default_rng(0).random(40)
    found = estimators.paired_difference(values, values, resamples=20_000)
    assert (found.difference, found.p_value) == (0, 1)
    room = 1 - 0.025 ** (1 / 40)
    assert (found.low, found.high) == pytest.approx((-room, room), abs=0.005)


def test_one_problem_shows_nothing() -> None:
    found = estimators.paired_difference([1.0], [0.0])
    assert found.low < -0.8
    assert (found.high, found.p_value) == (1, pytest.approx(1, abs=0.1))
    found = estimators.paired_difference([1.0], [0.0], highest=np.inf)
    assert found == (1, -np.inf, np.inf, 1), "values without an end have no bound"


def test_three_problems_of_the_same_rate_do_not_tell_it_exactly() -> None:
    interval = estimators.bootstrap_interval([0.5, 0.5, 0.5], resamples=20_000)
    assert interval.low < 0.2
    assert interval.high > 0.8
    assert estimators.bootstrap_interval([0.1] * 3).high > 0.7, "0.1 summed up is not exactly 3 of them"


@pytest.mark.parametrize("num_problems", [3, 10, 50])
def test_where_all_is_solved_the_bound_is_clopper_and_pearsons_and_p_the_sign_tests(
    num_problems: int,
) -> None:
    ones = np.ones(num_problems)
    interval = estimators.bootstrap_interval(ones, resamples=40_000)
    exact = scipy.stats.binomtest(num_problems, num_problems).proportion_ci(0.95).low
    assert (interval.low, interval.high) == (pytest.approx(exact, abs=0.01), 1)
    found = estimators.paired_difference(ones, 0 * ones, resamples=40_000)
    sign = scipy.stats.binomtest(num_problems, num_problems).pvalue
    assert found.p_value == pytest.approx(sign, rel=0.2, abs=1e-4)


def test_one_failure_does_not_make_the_interval_narrower_than_none() -> None:
    """170 problems with 4 samples: 100% had [97.9, 100], one wrong sample [99.1, 100]."""
    values = np.ones(170)
    all_solved = estimators.bootstrap_interval(values, resamples=20_000)
    values[0] = 0.75
    one_wrong = estimators.bootstrap_interval(values, resamples=20_000)
    assert 1 - one_wrong.low == pytest.approx(1 - all_solved.low, rel=0.2)
    assert one_wrong.high == 1


@pytest.mark.parametrize(("num_right", "num_problems"), [(1, 200), (4, 200), (2, 50), (30, 200)])
def test_the_interval_of_a_share_lies_between_jeffreys_and_clopper_and_pearsons(
    num_right: int, num_problems: int
) -> None:
    interval = estimators.bootstrap_interval(np.arange(num_problems) < num_right, resamples=100_000)
    exact = scipy.stats.binomtest(num_right, num_problems).proportion_ci(0.95)
    jeffreys = scipy.stats.beta(num_right + 0.5, num_problems - num_right + 0.5).ppf([0.025, 0.975])
    slack = 0.06 * (exact.high - exact.low)
    assert exact.low - slack <= interval.low <= jeffreys[0] + slack
    assert jeffreys[1] - slack <= interval.high <= exact.high + slack


def test_few_and_rare_values_get_honest_intervals() -> None:
    for num_problems, rate, alike in ((1, 0.5, True), (3, 0.5, True), (10, 0.02, False), (50, 0.02, False)):
        found = coverage["constant"](num_problems, 4, rate, alike=alike, num_worlds=300, resamples=200)
        assert found.one >= 0.94, (num_problems, rate)
        assert found.equal <= 0.07, (num_problems, rate)


def test_a_p_value_below_the_level_means_an_interval_without_0() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        a, b = rng.random(30) + rng.uniform(0, 0.3), rng.random(30)
        estimate = estimators.paired_difference(a, b, highest=np.inf, resamples=999)
        if not 0.045 < estimate.p_value < 0.055:
            assert (estimate.p_value < 0.05) == (estimate.low > 0 or estimate.high < 0)


def test_arms_with_different_problems_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="same problems, found 3 and 4"):
        estimators.paired_difference([0, 1, 0], [0, 1, 0, 1])


@pytest.mark.parametrize("values", [[], [[]], [float("nan")], [[[1.0]]]])
def test_intervals_refuse_what_is_not_a_table_of_numbers(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        estimators.bootstrap_interval(values)


def test_a_share_beyond_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, found 0.5 to 1.5"):
        estimators.bootstrap_interval([0.5, 1.5])


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_intervals_of_any_shape_are_finite_and_in_order(s: int, p: int, n: int, seed: int) -> None:
    marks = np.random.default_rng(seed).integers(0, 2, (s, p, n))
    interval = estimators.bootstrap_interval(_values(marks, n), resamples=50, seed=seed)
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


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_an_arm_whose_seeds_alone_differ_is_not_told_apart_more_often_than_others(num_seeds: int) -> None:
    rates = simulate(
        40, 8, num_seeds, seed_effect=0.7, mean=0.0, only_second=True, num_worlds=500, resamples=200
    )
    assert rates.equal <= 0.07


def test_seeds_that_vary_in_one_arm_alone_have_its_few_degrees_of_freedom() -> None:
    """Normal arms of two seeds without noise of their problems: Student's with one degree of freedom."""
    steady = np.full((2, 50), 0.5)
    varied = steady + np.array([-0.01, 0.01])[:, None] + 0.005 * np.random.default_rng(0).standard_normal(50)
    found = estimators.paired_difference(varied, steady, resamples=100_000)
    width = scipy.stats.t(1).ppf(0.975) * 0.01  # the standard error of the mean of -0.01 and 0.01
    assert (found.high - found.low) / 2 == pytest.approx(width, rel=0.05)


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
    found = estimators.bootstrap_interval(values, highest=np.inf, resamples=4000)
    again = draws.integers(300, size=(4000, 300))
    ratios = sums[again].sum(1) / tokens[again].sum(1)
    assert found.estimate == pytest.approx(sums.sum() / tokens.sum())
    assert found.high - found.low == pytest.approx(
        np.quantile(ratios, 0.975) - np.quantile(ratios, 0.025),
        rel=0.2,  # few long ones hold most of it
    )
    plain = estimators.bootstrap_interval(sums / tokens.mean(), highest=np.inf, resamples=4000)
    assert plain.high - plain.low > 1.5 * (found.high - found.low), "fixed lengths would say too much"
