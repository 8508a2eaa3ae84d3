"""How often the intervals of oxa/comparison/estimators.py hold the truth, and how often they tell equal arms apart.

    python benchmarks/coverage.py [--worlds 2000] [--resamples 400]

Worlds of two arms whose difference is known: an arm's chance on a problem is sigmoid(mean + 1.5 · problem + seed effect
+ 0.3 · interaction), each a normal draw, and its samples are binomial. The truth is the mean over all problems and
seeds that could have been drawn (Gauss-Hermite quadrature). With several seeds two more arms are drawn, as a report has
them, and all four tell how much seeds differ. For every setting, in percent of the worlds:

    one        the 95% interval of one arm holds its truth
    difference the 95% interval of the difference of two arms, 0.4 apart in logits, holds it
    equal      two arms of the same truth have p ≤ 0.05; interval and p-value are those of the paired test

and the mean width of the difference's interval. With 2,000 worlds, chance alone moves a rate of 95% by 1 point (2 σ).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from oxa.comparison import estimators

LEVEL = 0.05
GAP = 0.4  # logits between the two arms
PROBLEM, INTERACTION = 1.5, 0.3
NUM_REDRAWN = 20


class Rates(NamedTuple):
    one: float
    difference: float
    equal: float
    width: float


def simulate(
    num_problems: int,
    num_samples: int,
    num_seeds: int = 1,
    *,
    mean: float = -0.5,
    seed_effect: float = 0.0,
    k: int = 1,
    measure: Callable[..., Any] = estimators.pass_at_k,
    only_second: bool = False,
    num_worlds: int = 2000,
    resamples: int = 400,
) -> Rates:
    """Shares of the worlds, see above; `measure` is pass_at_k or pass_hat_k. `only_second`: of the equal arms compared,
    one alone has a seed effect."""
    rng = np.random.default_rng(0)
    common = 0.0 if only_second else seed_effect
    truth, better = (_truth(at, common, k, measure) for at in (mean, mean + GAP))
    held = apart = told = width = 0.0
    for world in range(num_worlds):
        problems = rng.standard_normal(num_problems)
        arms = []
        for place, at in enumerate((mean, mean, mean + GAP, mean)[: 4 if num_seeds > 1 else 3]):
            effect = seed_effect if place == 1 or not only_second else 0.0
            logits = at + PROBLEM * problems + effect * rng.standard_normal((num_seeds, 1))
            logits = logits + INTERACTION * rng.standard_normal((num_seeds, num_problems))
            correct = rng.binomial(num_samples, _sigmoid(logits))
            again = rng.binomial(num_samples, correct[..., None] / num_samples, (*correct.shape, NUM_REDRAWN))
            arms.append([measure(num_samples, counts, k) for counts in (correct, again)])
        first, second, third = arms[:3]
        drawn: dict[str, Any] = {"resamples": resamples, "confidence": 1 - LEVEL, "seed": world}
        if num_seeds > 1:
            drawn["pool"] = [values for values, _ in arms]
        interval = estimators.bootstrap_interval(*first, **drawn)
        held += interval.low <= truth <= interval.high
        found = estimators.paired_difference(third[0], first[0], (third[1], first[1]), **drawn)
        apart += found.low <= better - truth <= found.high
        width += found.high - found.low
        told += (
            estimators.paired_difference(second[0], first[0], (second[1], first[1]), **drawn).p_value <= LEVEL
        )
    return Rates(*(float(total) / num_worlds for total in (held, apart, told, width)))


def _sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def _truth(mean: float, seed_effect: float, k: int, measure: Callable[..., Any]) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    spread = np.sqrt(PROBLEM**2 + seed_effect**2 + INTERACTION**2)
    rates = _sigmoid(mean + spread * nodes)
    values = 1 - (1 - rates) ** k if measure is estimators.pass_at_k else rates**k
    return float((weights * values).sum() / weights.sum())


SETTINGS: dict[str, dict[str, Any]] = {
    "200 problems, 8 samples": {"num_problems": 200, "num_samples": 8},
    "the same, pass@4": {"num_problems": 200, "num_samples": 8, "k": 4},
    "the same, pass@8": {"num_problems": 200, "num_samples": 8, "k": 8},
    "the same, pass^4": {"num_problems": 200, "num_samples": 8, "k": 4, "measure": estimators.pass_hat_k},
    "30 problems, 16 samples": {"num_problems": 30, "num_samples": 16},
    "30 problems, 128 samples": {"num_problems": 30, "num_samples": 128},
    "30 hard problems (3%), 16 samples": {"num_problems": 30, "num_samples": 16, "mean": -4.0},
    **{
        f"100 problems, 8 samples, {num_seeds} seeds, effect {effect:g}": {
            "num_problems": 100,
            "num_samples": 8,
            "num_seeds": num_seeds,
            "seed_effect": effect,
        }
        for num_seeds in (2, 3, 5)
        for effect in (0.0, 0.15, 0.5)
    },
    "100 problems, 8 samples, 2 seeds, effect 0.5 in one arm alone": {
        "num_problems": 100,
        "num_samples": 8,
        "num_seeds": 2,
        "seed_effect": 0.5,
        "only_second": True,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="a trial: 20 worlds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.worlds = 20
    noise = 200 * (LEVEL * (1 - LEVEL) / arguments.worlds) ** 0.5
    print(
        f"""## Intervals: `benchmarks/coverage.py`

How often the 95% intervals of `oxa/comparison/estimators.py` hold the truth (of one arm's pass@1 unless said otherwise,
of the difference of two arms) and how often two equal arms have p ≤ 0.05, in percent of {arguments.worlds:,} simulated
worlds each; chance alone moves 95% by {noise:.1f} points (2 σ). The last row is the case in which pooling the seeds'
spread over arms goes wrong. The same numbers on every machine.
"""
    )
    print("| setting | one, % | difference, % | equal, % | width, points |\n| --- | --- | --- | --- | --- |")
    for name, setting in SETTINGS.items():
        found = simulate(**setting, num_worlds=arguments.worlds, resamples=arguments.resamples)
        print(f"| {name} | " + " | ".join(f"{100 * rate:.1f}" for rate in found) + " |", flush=True)


if __name__ == "__main__":
    main()
