"""A study's pictures: leads in every world with their mean, and a lead against what might explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from oxa.comparison.measures import pass_at
from oxa.comparison.outcomes import RL
from oxa.config.report import Report
from oxa.report import plots
from oxa.report.figures import figure_file
from oxa.study import explanations, over_worlds
from oxa.study.explanations import EXPLANATIONS, Worlds
from oxa.study.over_worlds import Leads, Pair
from oxa.study.results import Results

UNIT = "points of pass@1"
WITHIN = 1.96  # standard errors of a world's own lead, of its problems, samples and seeds


def draw(folder: Path, name: str, section: Report, results: Results) -> list[Path]:
    """Writes NAME-worlds.png and NAME-explained.png where there is something to show, and returns what it wrote."""
    explained = results.study.explained
    if explained is None or len(results.worlds(explained.ours, explained.theirs)) < 2:
        return []
    found = explanations.worlds_of(results, explained)
    title = " − ".join(place.partition("/")[2] for place in (explained.ours, explained.theirs))
    phases = {}
    for phase, ending in (("before RL", ""), ("after RL", RL)):
        has_phase = not ending or np.isfinite(found.after).all()
        pair = Pair("", "", (explained.ours, explained.theirs), ending)
        if has_phase and (leads := over_worlds.leads(results, pair, pass_at(1))):
            phases[phase] = leads
    worlds, against = (folder / f"{name}-{what}.png" for what in ("worlds", "explained"))
    if phases:
        order = [found.worlds[place] for place in np.argsort(-found.before, kind="stable")]
        _worlds(worlds, title, order, phases, section.confidence)
    _explained(against, title, found)
    return [worlds, against] if phases else [against]


def _worlds(
    path: Path, title: str, order: Sequence[int], phases: Mapping[str, Leads], confidence: float
) -> None:
    """A forest plot a phase: every world's lead, in this order, and below them the mean over worlds."""
    with figure_file(path, 1.2 + 4.2 * len(phases), 1.3 + 0.27 * len(order), title) as figure:
        axes = figure.subplots(1, len(phases), squeeze=False, sharex=True).ravel()
        for axis, (phase, leads) in zip(axes, phases.items(), strict=True):
            rows = []
            for world in order:
                at = leads.worlds.index(world)
                lead, half = leads.differences[at], WITHIN * np.sqrt(leads.variances[at])
                low, high = lead - half, lead + half
                bounds = {"difference": lead, "low": low, "high": high, "shown": low > 0 or high < 0}
                rows.append(plots.Row(f"world {world}", bounds, plots.COLORS[0]))
            mean = leads.row(confidence)
            mean["shown"] = mean["low"] > 0 or mean["high"] < 0
            rows.append(plots.Row("mean over worlds", mean, plots.COLORS[3]))
            plots.forest(axis, rows, 100, UNIT)
            axis.set_title(phase)


def _explained(path: Path, title: str, found: Worlds) -> None:
    """The lead before RL against each explanation, a point a world."""
    num = len(EXPLANATIONS)
    with figure_file(path, 2.9 * num, 2.9, title) as figure:
        axes = figure.subplots(1, num, squeeze=False, sharey=True).ravel()
        for place, (axis, one) in enumerate(zip(axes, EXPLANATIONS, strict=True)):
            axis.plot(found.explanations[:, place], found.before, "o", color=plots.COLORS[0], markersize=5)
            axis.axhline(0, color=plots.INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            rho, p = found.correlation(place)
            axis.set_title("" if np.isnan(rho) else f"ρ {rho:+.2f}, p {p:.2f}")
            axis.set_xlabel(one.title)
            axis.xaxis.set_major_locator(MaxNLocator(3))
            axis.grid()
        axes[0].set_ylabel(UNIT)
