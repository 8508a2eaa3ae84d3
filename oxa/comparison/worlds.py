"""Differences where worlds are what is random: a world is a student with its problems, and others would be others.

    mean ± t(W - 1) · s / √W        of the differences d_w of W worlds, s² their variance (Student 1908)
    s² = τ² + v                     τ between worlds, v the sampling variance within one, mean over worlds

Within one world, of differences x_sp of S seeds and P problems, of which both are drawn (a two-way layout without
replicates, Searle, Casella and McCulloch 1992, ch. 4),

    v = σ²_p / P + σ²_s / S + σ²_e / (S P)

so that τ² is estimated by max(0, s² - v), without weights (Hedges and Olkin 1985, ch. 9). Where s² comes out below v,
by luck or because all worlds agree, the interval takes v in its place: it is never narrower than problems, samples and
seeds alone would make it. Where nothing differs at all, nothing is known of what might: it is infinite, and p is 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

ROUNDING = 1e-12
"""Errors up to here, of values of about 1, are none."""


def sampling_variance(differences: ArrayLike) -> float:
    """v of one world's mean difference, from those of every seed and problem [S, P]; one seed tells of problems alone.

    Raises ValueError for fewer than two problems.
    """
    x = np.asarray(differences, np.float64)
    num_seeds, num_problems = x.shape
    if num_problems < 2:
        raise ValueError("one problem does not tell how problems differ")
    of_problems = float(x.mean(axis=0).var(ddof=1)) / num_problems
    if num_seeds == 1:
        return of_problems
    rest = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    noise = float((rest**2).sum()) / ((num_seeds - 1) * (num_problems - 1))
    of_seeds = float(x.mean(axis=1).var(ddof=1)) / num_seeds
    return of_problems + max(0.0, of_seeds - noise / (num_seeds * num_problems))


class OverWorlds(NamedTuple):
    """A mean difference over worlds, in the differences' unit."""

    mean: float
    low: float
    high: float
    p_value: float
    """Of no difference on average over worlds, two-sided."""
    spread: float
    """Standard deviation between worlds, τ."""


def over_worlds(differences: ArrayLike, variances: ArrayLike, confidence: float = 0.95) -> OverWorlds:
    """`differences` [W] of the worlds, and the sampling variance of each [W]. Raises ValueError for fewer than two."""
    d, v = np.asarray(differences, np.float64), float(np.asarray(variances, np.float64).mean())
    num = len(d)
    if num < 2:
        raise ValueError(f"{num} world tells nothing of another; an interval over worlds takes two or more")
    observed = float(d.var(ddof=1))
    mean, error = float(d.mean()), math.sqrt(max(observed, v) / num)
    if error <= ROUNDING:
        return OverWorlds(mean, -math.inf, math.inf, 1.0, 0.0)
    half = float(stats.t.ppf((1 + confidence) / 2, num - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, num - 1))
    return OverWorlds(mean, mean - half, mean + half, p_value, math.sqrt(max(0.0, observed - v)))


def power(effect: float, deviation: float, num: int, confidence: float = 0.95) -> float:
    """How often W = `num` worlds, whose differences have this standard deviation, show a mean difference of this size.

    By the noncentral t distribution; either sign counts.
    """
    bound = stats.t.ppf((1 + confidence) / 2, num - 1)
    shift = effect / deviation * math.sqrt(num)
    return float(sum(stats.nct.sf(bound, num - 1, sign * shift) for sign in (1, -1)))


def smallest_effect(deviation: float, num: int, wanted: float = 0.8, confidence: float = 0.95) -> float:
    """The mean difference that `num` worlds show with the wanted power."""

    def missing(effect: float) -> float:
        return power(effect, 1.0, num, confidence) - wanted

    enough = 0.1
    while missing(enough) < 0:
        enough *= 2
    unit: float = optimize.brentq(missing, 0.0, enough)
    return deviation * unit
