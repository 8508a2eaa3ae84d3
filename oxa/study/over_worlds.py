"""Rows of a study compared over its worlds: of every pair the difference in each world, and what they say of others.

A world's difference is the mean over its problems and fine-tuning seeds, paired by both; worlds are what is random
(oxa/comparison/worlds.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from oxa.comparison import arms, worlds
from oxa.comparison.measures import Metric
from oxa.comparison.outcomes import RL, Floats
from oxa.config.report import Report
from oxa.study.experiments import Comparison
from oxa.study.results import Results


class Pair(NamedTuple):
    """Two rows of a table in the same phase."""

    name: str
    """Of the first row, ending in RL after it."""
    other: str
    places: tuple[str, str]
    ending: str
    """RL or empty."""

    @property
    def title(self) -> str:
        return f"{self.name} − {self.other}"


class Leads(NamedTuple):
    """One pair in one metric: the first row's lead in every world."""

    worlds: list[int]
    differences: Floats
    """[W]"""
    variances: Floats
    """[W], of problems, samples and seeds within the world."""

    @property
    def deviation(self) -> float:
        """Of one world's difference, as over_worlds takes it."""
        return math.sqrt(max(float(self.differences.var(ddof=1)), float(self.variances.mean())))

    def row(self, confidence: float) -> dict[str, Any]:
        """The mean over worlds as the report's tables take it, with the spread between worlds."""
        found = worlds.over_worlds(self.differences, self.variances, confidence)
        return {
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "spread": found.spread,
            "p_holm": None,
            "shown": False,
        }


def endings(comparison: Comparison) -> list[str]:
    return ["", RL] if comparison.after_rl else [""]


def pairs(comparison: Comparison) -> list[Pair]:
    """All of a table, before RL and then after it."""
    return [
        Pair(name + ending, other + ending, (comparison.rows[name], comparison.rows[other]), ending)
        for ending in endings(comparison)
        for name, other in comparison.pairs.items()
    ]


def leads(results: Results, pair: Pair, metric: Metric) -> Leads | None:
    """Of all worlds in which both rows are done; None where these are fewer than two, or nothing differs in them.

    Compared are the problems on which both have a value.
    """
    there = results.worlds(*pair.places)
    differences, variances = [], []
    for world in there:
        ours, theirs = (results.values(place, world, pair.ending, metric) for place in pair.places)
        known = np.isfinite(np.concatenate([ours, theirs])).all(axis=0)
        if known.sum() < 2:
            return None
        apart = (ours - theirs)[:, known]
        differences.append(float(apart.mean()))
        variances.append(worlds.sampling_variance(apart))
    if len(there) < 2:
        return None
    found = Leads(there, np.array(differences), np.array(variances))
    return found if found.deviation > worlds.ROUNDING else None


def numbers(
    results: Results, place: str, ending: str | None, metrics: Sequence[Metric], confidence: float
) -> dict[str, float | None]:
    """Means over all worlds in which a row is done, with their intervals over worlds; of its base, where `ending` is
    None. Bounds stay within what the metric can be."""
    found: dict[str, float | None] = {}
    for metric in metrics:
        means, variances = [], []
        for world in results.worlds(place):
            values = results.values(place, world, ending, metric)
            values = values[:, np.isfinite(values).all(axis=0)]
            means.append(float(values.mean()))
            variances.append(worlds.sampling_variance(values))
        over = worlds.over_worlds(means, variances, confidence)
        found[metric.name] = over.mean
        bounds = {"low": max(0.0, over.low), "high": min(metric.unit.highest, over.high)}
        found |= {f"{metric.name}_{end}": at if math.isfinite(at) else None for end, at in bounds.items()}
    return found


class Tested(NamedTuple):
    """A pair in one metric, corrected for its family."""

    pair: Pair
    metric: Metric
    leads: Leads | None
    """None where it is still to be run."""
    row: dict[str, Any] | None

    @property
    def ahead(self) -> str:
        """In how many worlds the first row is: `7 of 12`."""
        return f"{(self.leads.differences > 0).sum()} of {len(self.leads.worlds)}" if self.leads else "–"


def tested(section: Report, results: Results, family: Sequence[tuple[Pair, Metric]]) -> list[Tested]:
    """All of one family, corrected by Holm's method; what is still to be run counts as well."""
    found = [leads(results, pair, metric) for pair, metric in family]
    rows = [of.row(section.confidence) if of else {"p_value": 1.0, "low": 0.0, "high": 0.0} for of in found]
    arms.correct(section, rows)
    return [
        Tested(pair, metric, of, row if of else None)
        for (pair, metric), of, row in zip(family, found, rows, strict=True)
    ]
