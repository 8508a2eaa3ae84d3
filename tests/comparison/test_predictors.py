"""Rank correlations over arms, on values of which they are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from oxa.comparison import predictors

SETTINGS = {"resamples": 500, "confidence": 0.95, "seed": 0}


def test_it_is_spearmans_with_ties_sharing_their_mean_rank() -> None:
    draws = np.random.default_rng(1)
    for num in (5, 9):
        a, b = draws.integers(4, size=num), draws.normal(size=num)
        assert predictors.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert predictors.ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1, 3.5, 2]
    assert math.isnan(predictors.spearman([1, 1, 1], [1, 2, 3]))


def test_a_perfect_order_of_five_arms_has_the_p_of_its_permutations() -> None:
    found = predictors.correlation([1, 2, 3, 4, 5], [10, 8, 6, 4, 2], **SETTINGS)
    assert found.rho == pytest.approx(-1)
    assert found.p_value == pytest.approx(2 / 120)
    assert found.low == pytest.approx(-1)
    assert found.high == pytest.approx(-1)
    found = predictors.correlation([1, 2, 3, 4, 5], [2, 1, 4, 5, 3], **SETTINGS)
    assert found.low < found.rho < found.high
    assert found.p_value == pytest.approx(
        stats.permutation_test(
            ([1, 2, 3, 4, 5],),
            lambda x: stats.spearmanr(x, [2, 1, 4, 5, 3]).statistic,
            permutation_type="pairings",
        ).pvalue
    )


def summary(num_arms: int) -> dict[str, Any]:
    arms = [f"arm{place}" for place in range(num_arms)]
    before = {"num_samples": 4, "distinct_answers": 2.0, "response_entropy": 0.3, "token_entropy": None}
    numbers = {
        arm: {"world": before | {"pass_at_1": 0.1 * place, "pass_at_4": 0.5}}
        for place, arm in enumerate(arms)
    }
    after = {f"{arm}-rl": {"world": {"pass_at_1": 0.9 - 0.1 * place}} for place, arm in enumerate(arms)}
    order = ["base", *arms, *after]
    return {"groups": ["world"], "order": order, "arms": numbers | after, "confidence": 0.95}


def test_every_predictor_that_varies_is_held_against_pass_at_1_after_rl() -> None:
    measured = {f"arm{place}": {"kl_base_arm": place**2, "held_out_nll": None} for place in range(5)}
    found = predictors.summarize(summary(5), measured, resamples=100, seed=0)
    names = ["pass_at_1", "pass_at_4", "distinct_answers", "response_entropy", "kl_base_arm"]
    assert [column["name"] for column in found["columns"]] == names, "what no arm has is left out"
    assert found["arms"]["arm2"]["kl_base_arm"] == 4
    assert found["arms"]["arm2"]["after_rl"] == pytest.approx(0.7)
    assert set(found["correlations"]) == {"pass_at_1", "kl_base_arm"}, "a constant predicts nothing"
    assert found["correlations"]["kl_base_arm"]["rho"] == pytest.approx(-1)
    assert "over 5 arms" in found["sentence"]


def test_too_few_arms_are_said_to_be_too_few() -> None:
    found = predictors.summarize(summary(4), {}, resamples=100, seed=0)
    assert found["correlations"] == {}
    assert found["sentence"].startswith("4 arms are too few to tell")
    assert "p 0.08" in found["sentence"]


def test_an_arm_has_the_mean_of_its_seeds_where_all_have_one() -> None:
    seeds = [{"kl_base_arm": 0.1, "kl_arm_base": 0.5}, {"kl_base_arm": 0.3}]
    assert predictors.means(seeds) == {"held_out_nll": None, "kl_base_arm": 0.2, "kl_arm_base": None}
