"""What is known of arms before RL, held against what they solve after it.

A predictor is a number of an arm, the mean over its seeds. How well it predicts pass@1 after RL is the rank correlation
over the arms at hand (Spearman 1904): Pearson's correlation of ranks, ties sharing their mean rank,

    ρ = Σ (r_i - r̄)(s_i - s̄) / sqrt( Σ (r_i - r̄)² Σ (s_i - s̄)² )

with an interval from arms drawn again and a p-value from their permutations: all of them for up to 7 arms, else drawn
ones. Arms of one study share base, data and seeds, so the interval speaks of arms like these and of no other student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxa.comparison.measures import NATS, Metric, Summary, metrics
from oxa.comparison.outcomes import BASE, RL

FEWEST = 5  # with 4 arms even a perfect order has p = 2 / 24
EXACT = 7  # arms; 5,040 permutations


class Predictor(NamedTuple):
    name: str
    title: str
    digits: int
    scale: float = 1


MEASURED = [
    Predictor("held_out_nll", "held-out NLL, nats", NATS.digits),
    Predictor("kl_base_arm", "KL(base ‖ arm), nats", 4),
    Predictor("kl_arm_base", "KL(arm ‖ base), nats", 4),
]
"""Those of the stage `predictors`, nats a token (oxa/stages/predictors.py)."""


class Correlation(NamedTuple):
    rho: float
    low: float
    high: float
    p_value: float
    """Two-sided, of no association."""


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """From 1 for the smallest; ties share their mean rank."""
    array = np.asarray(values, np.float64)
    smaller, equal = (array < array[:, None]).sum(1), (array == array[:, None]).sum(1)
    return smaller + (equal + 1) / 2


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """NaN where all values of one are equal."""
    r, s = (ranks(values) - (len(np.asarray(values)) + 1) / 2 for values in (a, b))
    norm = math.sqrt((r @ r) * (s @ s))
    return float(r @ s / norm) if norm > 0 else math.nan


def correlation(a: ArrayLike, b: ArrayLike, *, resamples: int, confidence: float, seed: int) -> Correlation:
    """Of values of the same arms, at least two; resamples in which one side is all equal are left out."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rho, rng = spearman(x, y), np.random.default_rng(seed)
    places = rng.integers(len(x), size=(resamples, len(x)))
    again = np.array([spearman(x[each], y[each]) for each in places])
    again = again[np.isfinite(again)]
    low, high = np.quantile(again, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(again) else (-1, 1)
    if len(x) <= EXACT:
        orders, extra = [np.array(order) for order in permutations(range(len(x)))], 0
    else:
        orders, extra = [rng.permutation(len(x)) for _ in range(resamples)], 1
    as_far = sum(abs(spearman(x, y[order])) >= abs(rho) - 1e-12 for order in orders)
    return Correlation(rho, float(low), float(high), (as_far + extra) / (len(orders) + extra))


def summarize(
    summary: Summary, measured: Mapping[str, Mapping[str, float | None]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """{"sentence", "columns": [{"name", "title", "digits", "scale"}], "arms": {arm: {name: value}},
    "correlations": {name: {"rho", "low", "high", "p_value"}}}, on all benchmarks together.

    `measured`: what the stage `predictors` found, by arm, mean over its seeds; empty where it is off. Correlations are
    with pass@1 after RL, of predictors that every arm has, where there are FEWEST arms at least.
    """
    group = summary["groups"][-1]
    arms = [name for name in summary["order"] if name != BASE and not name.endswith(RL)]
    before = {arm: summary["arms"][arm][group] for arm in arms}
    known = [*_of_answers(before[arms[0]]["num_samples"]), *MEASURED]
    values = {arm: dict(before[arm]) | dict(measured.get(arm, {})) for arm in arms}
    columns = [one for one in known if any(values[arm].get(one.name) is not None for arm in arms)]
    after = {
        arm: summary["arms"][arm + RL][group]["pass_at_1"] for arm in arms if arm + RL in summary["arms"]
    }
    correlations = {}
    if len(after) >= FEWEST:
        for one in columns:
            of_arms = [value for arm in after if (value := values[arm].get(one.name)) is not None]
            if len(of_arms) == len(after) and len(set(of_arms)) > 1 and len(set(after.values())) > 1:
                found = correlation(
                    of_arms,
                    list(after.values()),
                    resamples=resamples,
                    confidence=summary["confidence"],
                    seed=seed,
                )
                correlations[one.name] = found._asdict()
    return {
        "sentence": _sentence(len(after)),
        "columns": [one._asdict() for one in columns],
        "arms": {
            arm: {one.name: values[arm].get(one.name) for one in columns} | {"after_rl": after.get(arm)}
            for arm in arms
        },
        "correlations": correlations,
    }


def _of_answers(num_samples: int) -> list[Predictor]:
    """Those that the evaluation before RL gives, of every arm."""
    wanted = ("pass_at_1", f"pass_at_{num_samples}", "distinct_answers", "response_entropy", "token_entropy")
    by_name: dict[str, Metric] = {metric.name: metric for metric in metrics(num_samples)}
    return [
        Predictor(name, metric.heading, metric.unit.digits, metric.unit.scale)
        for name in dict.fromkeys(wanted)
        if (metric := by_name.get(name))
    ]


def _sentence(num_arms: int) -> str:
    if not num_arms:
        return "No arm has been through RL, so there is nothing to predict yet."
    if num_arms < FEWEST:
        least = 2 / math.factorial(num_arms) if num_arms > 1 else 1.0
        return (
            f"{num_arms} arms are too few to tell what predicts pass@1 after RL: even a perfect order of them has p "
            f"{least:.2f}."
        )
    return f"ρ is the rank correlation with pass@1 after RL over {num_arms} arms, each predictor looked at alone."


def means(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What the stage found of an arm's seeds as one: the mean over them; None where one of them lacks it."""
    return {
        one.name: None
        if any(found.get(one.name) is None for found in by_seed)
        else float(np.mean([found[one.name] for found in by_seed]))
        for one in MEASURED
    }
