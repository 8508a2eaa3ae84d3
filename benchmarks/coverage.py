"""How often the intervals of oxa/comparison/estimators.py hold the truth, and how often they tell equal arms apart.

    python benchmarks/coverage.py [--worlds 2000] [--resamples 400]

Worlds of two arms whose difference is known: an arm's chance on a problem is sigmoid(mean + 1.5 · problem + seed effect
+ 0.3 · interaction), each a normal draw, and its samples are binomial. The truth is the mean over all problems and
seeds that could have been drawn (Gauss-Hermite quadrature). For every setting, in percent of the worlds:

    one        the 95% interval of one arm holds its truth
    difference the 95% interval of the difference of two arms, 0.4 apart in logits, holds it
    equal      two arms of the same truth have p ≤ 0.05; interval and p-value are those of the paired test

and the mean width of the difference's interval. With 2,000 worlds, chance alone moves a rate of 95% by 1 point (2 σ).

Then few or constant values: arms that solve every problem at one rate with 1, 4 or 8 samples, and arms that solve this
share of the problems always and the others never. Last, problems of three tiers that differ much, as strata and not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from results import row

from oxa.comparison import estimators

LEVEL = 0.05
GAP = 0.4  # logits between the two arms
PROBLEM, INTERACTION = 1.5, 0.3


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
        for place, at in enumerate((mean, mean, mean + GAP)):
            effect = seed_effect if place == 1 or not only_second else 0.0
            logits = at + PROBLEM * problems + effect * rng.standard_normal((num_seeds, 1))
            logits = logits + INTERACTION * rng.standard_normal((num_seeds, num_problems))
            correct = rng.binomial(num_samples, _sigmoid(logits))
            arms.append(measure(num_samples, correct, k))
        first, second, third = arms
        drawn: dict[str, Any] = {"resamples": resamples, "confidence": 1 - LEVEL, "seed": world}
        interval = estimators.bootstrap_interval(first, **drawn)
        held += interval.low <= truth <= interval.high
        found = estimators.paired_difference(third, first, **drawn)
        apart += found.low <= better - truth <= found.high
        width += found.high - found.low
        told += estimators.paired_difference(second, first, **drawn).p_value <= LEVEL
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
    **{
        f"100 problems, 8 samples, {num_seeds} seeds, effect 0.5 in one arm alone": {
            "num_problems": 100,
            "num_samples": 8,
            "num_seeds": num_seeds,
            "seed_effect": 0.5,
            "only_second": True,
            "mean": 0.0,  # where an effect leaves the truth as it is
        }
        for num_seeds in (1, 2, 3, 5)
    },
}


def constant(
    num_problems: int, num_samples: int, rate: float, *, alike: bool, num_worlds: int, resamples: int
) -> Rates:
    """Of arms that solve every problem at this rate, or (not `alike`) this share of them always. The truth of a
    difference is that of two such arms, 0, so `difference` is what `equal` leaves by the interval."""
    rng = np.random.default_rng(0)
    held = apart = told = width = 0.0
    for world in range(num_worlds):
        rates = [np.full(num_problems, rate) if alike else rng.random(num_problems) < rate for _ in "ab"]
        first, second = (rng.binomial(num_samples, of_arm) / num_samples for of_arm in rates)
        drawn: dict[str, Any] = {"resamples": resamples, "confidence": 1 - LEVEL, "seed": world}
        interval = estimators.bootstrap_interval(first, **drawn)
        held += interval.low <= rate <= interval.high
        found = estimators.paired_difference(first, second, **drawn)
        apart += found.low <= 0 <= found.high
        width += found.high - found.low
        told += found.p_value <= LEVEL
    return Rates(*(float(total) / num_worlds for total in (held, apart, told, width)))


def tiers(num_of_tier: int, *, as_strata: bool, num_worlds: int, resamples: int) -> tuple[float, float]:
    """Three tiers whose problems are solved at about 10, 50 and 90%, as many of each in every world: how often one
    arm's interval holds the truth, and its mean width."""
    rng = np.random.default_rng(0)
    tier = np.repeat(np.arange(3), num_of_tier)
    centers = np.array([0.1, 0.5, 0.9])
    held = width = 0.0
    for world in range(num_worlds):
        rates = rng.beta(8 * centers[tier], 8 * (1 - centers[tier]))
        interval = estimators.bootstrap_interval(
            rng.binomial(8, rates) / 8, strata=tier if as_strata else None, resamples=resamples, seed=world
        )
        held += interval.low <= centers.mean() <= interval.high
        width += interval.high - interval.low
    return held / num_worlds, width / num_worlds


NUM_PROBLEMS = (1, 3, 10, 50, 200)
RATES = (0.0, 0.02, 0.5, 0.98, 1.0)
KINDS = {**{f"alike, {n} samples": (n, True) for n in (1, 4, 8)}, "all or nothing": (1, False)}


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
worlds each; chance alone moves 95% by {noise:.1f} points (2 σ). With one seed whose effect is real, equal arms are told
apart however long one looks, since it cannot be seen. The same numbers on every machine.
"""
    )
    print("| setting | one, % | difference, % | equal, % | width, points |\n| --- | --- | --- | --- | --- |")
    for name, setting in SETTINGS.items():
        found = simulate(**setting, num_worlds=arguments.worlds, resamples=arguments.resamples)
        print(f"| {name} | " + " | ".join(f"{100 * rate:.1f}" for rate in found) + " |", flush=True)
    _constants(arguments.worlds // 2, arguments.resamples)
    _tiers(arguments.worlds, arguments.resamples)


def _constants(num_worlds: int, resamples: int) -> None:
    print(
        f"""
Few or constant values, {num_worlds:,} worlds each: how often one arm's interval holds its rate / how often two equal
arms have p ≤ 0.05, in percent.

| problems | values | {" | ".join(f"rate {rate:g}" for rate in RATES)} |
| --- | --- |{" --- |" * len(RATES)}"""
    )
    lowest, highest = 1.0, 0.0
    for num_problems in NUM_PROBLEMS:
        for kind, (num_samples, alike) in KINDS.items():
            cells = []
            for rate in RATES:
                found = constant(
                    num_problems, num_samples, rate, alike=alike, num_worlds=num_worlds, resamples=resamples
                )
                cells.append(f"{100 * found.one:.1f} / {100 * found.equal:.1f}")
                lowest, highest = min(lowest, found.one), max(highest, found.equal)
            print(f"| {num_problems} | {kind} | {' | '.join(cells)} |", flush=True)
    print()
    row(
        "95% interval of few or constant values holds the truth, the worst case",
        "95%",
        100 * lowest,
        unit="%",
    )
    row("equal arms of these told apart, the worst case", "5%", 100 * highest, better="lower", unit="%")


def _tiers(num_worlds: int, resamples: int) -> None:
    print(
        """
Three tiers of 20 problems each that are solved at 10, 50 and 90%:

| tiers | one arm's interval holds the truth, % | width, points |
| --- | --- | --- |"""
    )
    for as_strata in (False, True):
        held, width = tiers(20, as_strata=as_strata, num_worlds=num_worlds, resamples=resamples)
        name = "are strata" if as_strata else "are not looked at"
        print(f"| {name} | {100 * held:.1f} | {100 * width:.1f} |", flush=True)


if __name__ == "__main__":
    main()
