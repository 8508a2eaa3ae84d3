"""Differences where worlds are what is random: a world is a student with its problems, and others would be others.

    mean ± t(W - 1) · s / √W        of the differences d_w of W worlds, s² their variance (Student 1908)
    s² = τ² + v                     τ between worlds, v the sampling variance within one, mean over worlds

so that τ² is estimated by max(0, s² - v), without weights (Hedges and Olkin 1985, ch. 9). Where s² comes out below v,
by luck or because all worlds agree, the interval takes v in its place: it is never narrower than problems, samples and
seeds alone would make it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats


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
    half = float(stats.t.ppf((1 + confidence) / 2, num - 1)) * error
    p_value = float(2 * stats.t.sf(abs(mean) / error, num - 1)) if error else float(mean == 0)
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
