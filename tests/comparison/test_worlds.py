"""Intervals over worlds: coverage by simulation, scipy's t test, statsmodels' power."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.power import TTestPower

from oxa.comparison.worlds import over_worlds, power, sampling_variance, smallest_effect


@pytest.mark.parametrize("num", [3, 10])
@pytest.mark.parametrize("spread", [0.0, 3.0, 10.0])
def test_the_interval_holds_the_mean_as_often_as_it_says(num: int, spread: float) -> None:
    draws, sampling, rounds = np.random.default_rng(num), 3.0, 4000
    values = 1.5 + draws.normal(0, np.hypot(spread, sampling), (rounds, num))
    found = [over_worlds(row, np.full(num, sampling**2)) for row in values]
    covered = np.mean([one.low <= 1.5 <= one.high for one in found])
    error = 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert covered > 0.95 - error
    if (spread, num) == (10.0, 10):  # where worlds differ the interval is no wider than it must be
        assert covered < 0.95 + error
    spreads = np.mean([one.spread**2 for one in found])
    assert spreads == pytest.approx(spread**2, rel=0.1, abs=9.0)


@pytest.mark.parametrize(("num_seeds", "seed_effect"), [(1, 0.0), (2, 0.0), (2, 0.5), (5, 0.5)])
def test_a_worlds_own_variance_is_that_of_its_mean(num_seeds: int, seed_effect: float) -> None:
    draws, num_problems = np.random.default_rng(0), 40
    worlds = [
        draws.normal(0, 1, num_problems)
        + seed_effect * draws.normal(0, 1, (num_seeds, 1))
        + draws.normal(0, 0.7, (num_seeds, num_problems))
        for _ in range(3000)
    ]
    truth = (1 + 0.49 / num_seeds) / num_problems + seed_effect**2 / num_seeds
    found = [sampling_variance(values) for values in worlds]
    assert np.var([values.mean() for values in worlds]) == pytest.approx(truth, rel=0.1)
    # without an effect of seeds it is a little too large: what is estimated below 0 counts as 0
    assert np.mean(found) == pytest.approx(truth, rel=0.1 if seed_effect or num_seeds == 1 else 0.25)
    assert np.mean(found) > 0.97 * truth


def test_it_is_scipys_t_test_where_worlds_differ() -> None:
    values = [4.0, -1.0, 7.0, 2.5, 0.5]
    found, theirs = over_worlds(values, [0.1] * 5), scipy.stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.p_value == pytest.approx(theirs.pvalue)


def test_worlds_that_agree_get_the_width_of_what_each_could_have_been() -> None:
    found = over_worlds([1.0, 1.0, 1.0, 1.0], [4.0] * 4)
    assert found.high - found.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, 3) * 2 / 2)
    assert found.p_value > 0.3
    assert found.spread == 0


def test_where_nothing_differs_nothing_is_known() -> None:
    found = over_worlds([0.1 + 0.2] * 3, [0.0] * 3)
    assert (found.low, found.high, found.p_value) == (-np.inf, np.inf, 1.0)


def test_one_world_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 world tells nothing of another"):
        over_worlds([1.0], [1.0])


@pytest.mark.parametrize("num", [5, 10, 20])
def test_power_is_statsmodels_and_the_smallest_effect_has_it(num: int) -> None:
    theirs = TTestPower().power(effect_size=0.8, nobs=num, alpha=0.05)
    assert power(4.0, 5.0, num) == pytest.approx(theirs, abs=1e-6)
    assert power(smallest_effect(5.0, num), 5.0, num) == pytest.approx(0.8)
