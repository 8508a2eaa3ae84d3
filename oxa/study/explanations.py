"""What might explain that worlds differ: known of each before an arm is trained, set against an arm's lead there.

Spearman's rank correlation over worlds with the p-value of their permutations, one a column and not corrected for
their number: this is looking, not testing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from oxa.comparison import predictors
from oxa.comparison.outcomes import RL, Floats
from oxa.data import world as small_world
from oxa.study.experiments import Explained
from oxa.study.results import Results

RESAMPLES = 10_000
DIGITS, COLUMNS, PLACES = small_world.STRATEGIES


class Explanation(NamedTuple):
    title: str
    value: Callable[[Results, Explained, int], float]
    digits: int


def _more_columns(results: Results, explained: Explained, world: int) -> float:
    ours, theirs = (results.strategies_taught(place, world) for place in (explained.ours, explained.theirs))
    return 100 * (ours[COLUMNS] - theirs[COLUMNS])


def _ppl_gap(results: Results, explained: Explained, world: int) -> float:
    ppl = results.ppl_by_strategy(explained.theirs, world)
    return ppl[COLUMNS] - ppl[PLACES]


def _habit(results: Results, explained: Explained, world: int) -> float:
    gates = results.gates().get(world, {}).get("gates", {})
    return 100 * gates["G2"]["rows"][f"{DIGITS}: share, left alone"]["value"] if gates else np.nan


def _base(results: Results, explained: Explained, world: int) -> float:
    return 100 * results.pass_at_1(explained.theirs, world, None)


def _entropy(results: Results, explained: Explained, world: int) -> float:
    return float(np.nanmean(results.base(explained.theirs, world).response_entropy))


EXPLANATIONS = [
    Explanation(f"more {COLUMNS} in the CE set, points", _more_columns, 0),
    Explanation(f"ppl of {COLUMNS} − of {PLACES}", _ppl_gap, 3),
    Explanation(f"base by {DIGITS}, %", _habit, 1),
    Explanation("base pass@1, %", _base, 1),
    Explanation("base entropy, nats", _entropy, 4),
]


class Worlds(NamedTuple):
    """A line a world: leads in points of pass@1, and what might explain them."""

    worlds: list[int]
    before: Floats
    """[W]"""
    after: Floats
    """[W]; NaN where the rows have no RL."""
    explanations: Floats
    """[W, explanations]"""

    def correlation(self, place: int) -> tuple[float, float]:
        """ρ of an explanation with the lead before RL, and its p; NaN where either is the same in all worlds."""
        x = self.explanations[:, place]
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(self.before) == 0 or not np.isfinite(x).all():
            return np.nan, np.nan
        found = predictors.correlation(x, self.before, resamples=RESAMPLES, confidence=0.95, seed=0)
        return found.rho, found.p_value


def worlds_of(results: Results, explained: Explained) -> Worlds:
    """Of all worlds in which both rows are done."""
    there = results.worlds(explained.ours, explained.theirs)

    def lead(world: int, ending: str) -> float:
        ours, theirs = (
            results.pass_at_1(place, world, ending) for place in (explained.ours, explained.theirs)
        )
        return 100 * (ours - theirs)

    has_rl = all(
        "evaluate_rlvr" in results.study.experiments[place.partition("/")[0]].stages
        for place in (explained.ours, explained.theirs)
    )
    return Worlds(
        there,
        np.array([lead(world, "") for world in there]),
        np.array([lead(world, RL) if has_rl else np.nan for world in there]),
        np.array([[one.value(results, explained, world) for one in EXPLANATIONS] for world in there]).reshape(
            len(there), len(EXPLANATIONS)
        ),
    )
