"""The report's drawings: each function draws one panel on a matplotlib axis and knows nothing of files.

One color, one line style and one marker an arm in all of them, before and after RL (Okabe & Ito's colors and two of
Tol's, told apart by color-blind readers and, by style, in print); the base is black. oxa/report/figures.py puts panels
together to PNGs, oxa/report/page.py puts each into the page by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten, wrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from oxa.comparison import estimators
from oxa.comparison.measures import Metric
from oxa.comparison.outcomes import BASE, RL
from oxa.report.funnel import Step
from oxa.report.training_sets import Panel

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values."""

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#882255", "#999933")
STYLES = (
    "-",
    (0, (4, 1.6)),
    (0, (6, 1.6, 1.2, 1.6)),
    (0, (2, 1)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1)),
)
MARKERS = "osD^vPX*"
GREY, INK, AXIS, GRID = "#BDBDBD", "#222222", "#767676", "#E4E4E4"


def look(arms: Sequence[str], name: str) -> dict[str, Any]:
    """Color and line of an arm, the same after RL; the base is black."""
    arm = name.removesuffix(RL)
    if arm not in arms:
        return {"color": INK, "linestyle": "-"}
    place = list(arms).index(arm)
    return {
        "color": COLORS[place % len(COLORS)],
        "linestyle": STYLES[(place + place // len(COLORS)) % len(STYLES)],
    }


def marker(arms: Sequence[str], name: str) -> str:
    arm = name.removesuffix(RL)
    return MARKERS[list(arms).index(arm) % len(MARKERS)] if arm in arms else "x"


def sample(axis: Any, arms: Sequence[str], name: str) -> None:
    """The legend's piece of line."""
    axis.plot(
        [0, 1, 2], [0, 0, 0], marker=marker(arms, name), markevery=[1], markersize=5, **look(arms, name)
    )
    axis.set_axis_off()


def distributions(axis: Any, pools: Mapping[str, NDArray[np.float64]], edges: NDArray[np.float64]) -> None:
    """Share of each origin's scored responses by ppl."""
    looks = {"teacher": ("teacher, right", "-", 0.0), "self": ("self, scored", (0, (2, 1)), 0.25)}
    for name, values in pools.items():
        label, style, alpha = looks[name]
        weights = np.full(len(values), 100 / max(1, len(values)))
        inside = np.clip(values, edges[0], edges[-1])
        axis.hist(inside, edges, weights=weights, color=AXIS, alpha=alpha, linewidth=0)
        axis.hist(
            inside,
            edges,
            weights=weights,
            histtype="step",
            color=INK,
            linestyle=style,
            label=label,
            linewidth=1.2,
        )
    axis.set_xlabel("ppl under the base")
    axis.set_ylabel("responses, %")
    axis.legend(loc="upper right")


def chosen(axis: Any, arms: Sequence[str], panel: Panel, edges: NDArray[np.float64]) -> None:
    """How many responses of each ppl there were, and how many the set took; the Gaussian's target over it."""
    color = look(arms, panel.arms[0])["color"]
    everything = np.clip(panel.pool_ppl, edges[0], edges[-1])
    axis.hist(everything, edges, color=GREY, label=f"all scored ({len(everything):,})")
    label = f"chosen ({len(panel.ppl):,})"
    _, _, bars = axis.hist(
        np.clip(panel.ppl, edges[0], edges[-1]), edges, color=color, alpha=0.85, label=label
    )
    targets = [row for row in panel.bins if row["target"]]
    if targets:  # brought from the selection's bins to the picture's
        centers = np.array([(row["low"] + row["high"]) / 2 for row in targets])
        density = np.array([row["target"] / (row["high"] - row["low"]) for row in targets])
        target = density * (edges[1] - edges[0])
        axis.plot(centers, target, color=INK, linewidth=1.3, linestyle=(0, (2, 1)), label="Gaussian target")
    axis.set_xlabel("ppl under the base")
    axis.set_ylabel("responses")
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.35)  # room for the legend: bars may stand anywhere
    legend = axis.legend(loc="upper right", ncols=1)
    keys = [entry.get_text() for entry in legend.get_texts()]
    _share(arms, panel, [*bars, legend.legend_handles[keys.index(label)]])


def lengths(axis: Any, arms: Sequence[str], panels: Sequence[Panel], edges: NDArray[np.float64]) -> None:
    """Mean tokens by ppl: all that was scored in grey, with one standard deviation; each set in its arm's color."""
    centers = (edges[:-1] + edges[1:]) / 2
    spread = np.array(
        [
            (part.mean(), part.std()) if len(part) else (np.nan, np.nan)
            for part in _by_bin(panels[0].pool_ppl, panels[0].pool_tokens, edges)
        ]
    )
    mean, deviation = spread.T
    axis.fill_between(centers, mean - deviation, mean + deviation, color=GREY, alpha=0.45, linewidth=0)
    axis.plot(centers, mean, color=AXIS, linewidth=2.2)
    for panel in panels:
        parts = _by_bin(panel.ppl, panel.num_tokens, edges)
        means = np.array([part.mean() if len(part) else np.nan for part in parts])
        style = look(arms, panel.arms[0])
        sizes = [5 if len(part) else 0 for part in parts]
        line = axis.plot(centers, means, linewidth=1.4, **style)
        dots = axis.scatter(centers, means, s=sizes, color=style["color"], zorder=3)
        _share(arms, panel, [*line, dots])
    axis.set_xlabel("ppl under the base")
    axis.set_ylabel("tokens, mean")


def _share(arms: Sequence[str], panel: Panel, artists: Iterable[Any]) -> None:
    """Names the arms by their colors, the drawn one first, so that the page can bring any of them out.

    pictures.svg turns the id arms-2-3 to data-arms="2 3", which page.js reads.
    """
    places = [list(arms).index(arm) % len(COLORS) for arm in panel.arms]
    for artist in artists if len(places) > 1 else ():
        artist.set_gid("-".join(map(str, ["arms", *places])))


def _by_bin(
    ppl: NDArray[np.float64], values: NDArray[np.int64], edges: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    place = np.clip(np.digitize(ppl, edges) - 1, 0, len(edges) - 2)
    return [values[place == i] for i in range(len(edges) - 1)]


def pass_at_k(axis: Any, summary: Mapping[str, Any], group: str, names: Sequence[str]) -> None:
    """pass@k against k with its intervals; panels of one benchmark share their scale, whichever `names` they show."""
    arms = arms_of(summary)
    ks = k_values(summary, group)
    for name in names:
        numbers, style = summary["arms"][name][group], look(arms, name)
        mean, low, high = ([100 * numbers[f"pass_at_{k}{end}"] for k in ks] for end in ("", "_low", "_high"))
        axis.fill_between(ks, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axis.plot(
            ks,
            mean,
            marker=marker(arms, name),
            markersize=4,
            clip_on=False,
            label=name.removesuffix(RL),
            **style,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.set_xlabel("k, samples a problem")
    axis.set_ylabel("problems solved, %")
    highest = max(numbers[group][f"pass_at_{k}_high"] for numbers in summary["arms"].values() for k in ks)
    axis.set_ylim(0, min(103, max(5, 108 * highest)))  # a student that solves nothing needs a scale, too


def arms_of(summary: Mapping[str, Any]) -> list[str]:
    """The arms of a summary, without the base and without their RL."""
    return [name for name in summary["order"] if name != BASE and not name.endswith(RL)]


def phases(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names by phase, in order."""
    after = [name for name in summary["order"] if name.endswith(RL)]
    before = [name for name in summary["order"] if name not in after]
    return {"Before RL": before, "After RL": after} if after else {"": before}


def k_values(summary: Mapping[str, Any], group: str) -> list[int]:
    """Those of a benchmark's pass@k."""
    return estimators.k_values(summary["arms"][BASE][group]["num_samples"])


class Row(NamedTuple):
    """A line of a forest plot: a difference, or (difference is None) a heading."""

    name: str
    difference: Mapping[str, Any] | None
    color: str = INK


def forest(axis: Any, rows: Sequence[Row], scale: float, unit: str) -> None:
    """Differences with their intervals; filled where a difference is shown, hollow where none is."""
    for place, row in enumerate(rows):
        if row.difference is None:
            continue
        middle, low, high = (scale * row.difference[key] for key in ("difference", "low", "high"))
        axis.plot([low, high], [place, place], color=row.color, linewidth=1.8, solid_capstyle="butt")
        face = row.color if row.difference["shown"] else "#FFFFFF"
        axis.plot(
            middle,
            place,
            marker="o",
            markersize=5.5,
            color=row.color,
            markerfacecolor=face,
            markeredgewidth=1.4,
        )
    axis.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    labels = [shorten(row.name, 26, placeholder="…") if " " in row.name else _cut(row.name) for row in rows]
    axis.set_yticks(range(len(rows)), labels)
    for label, row in zip(axis.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.difference is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(unit)


def _cut(name: str, width: int = 18) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def curves(axis: Any, arms: Sequence[str], by_arm: Mapping[str, Curve], unit: str) -> None:
    """A metric along training: every step faint and its running mean strong."""
    for arm, (steps, values) in by_arm.items():
        style = look(arms, arm)
        axis.plot(steps, values, color=style["color"], alpha=0.22, linewidth=0.8)
        axis.plot(steps, running_mean(values), label=arm, linewidth=1.6, **style)
    if unit.startswith("share"):
        axis.set_ylim(0, max(0.01, 1.08 * max(values.max() for _, values in by_arm.values())))
    axis.set_ylabel(unit)
    axis.set_xlabel("optimizer step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve around each step, smaller at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def along_rl(axis: Any, summary: Mapping[str, Any], group: str, metric: Metric) -> None:
    """A benchmark's metric over RL steps, every arm, with its interval."""
    arms, key, scale = arms_of(summary), metric.name, metric.unit.scale
    rows = [row for by_group in summary["steps"].values() for row in by_group[group]]
    for arm in arms:
        measured = [row for row in summary["steps"][arm][group] if row[key] is not None]
        steps = [row["step"] for row in measured]
        style = look(arms, arm)
        low, high = (
            scale
            * np.array(
                [row[f"{key}{end}"] for row in measured], np.float64
            )  # None, a bound that is unknown: NaN
            for end in ("_low", "_high")
        )
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
        values = [scale * row[key] for row in measured]
        axis.plot(steps, values, marker=marker(arms, arm), markersize=4, clip_on=False, label=arm, **style)
    if metric.unit.highest == 1:  # a share, whose scale ends at 100%
        ends = [100 * row[f"{key}{end}"] for row in rows for end in ("_low", "_high")]
        margin = max(2.5, 0.06 * (max(ends) - min(ends)))
        axis.set_ylim(max(0, min(ends) - margin), min(100.4, max(ends) + margin))
    axis.set_ylabel("problems solved, %" if metric.solved else metric.unit.value or metric.title)
    axis.set_xlabel("RL step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def pass_rates(axis: Any, histogram: Sequence[int]) -> None:
    """How many problems were solved in 0, 1, … of the answers."""
    most = len(histogram) - 1
    axis.bar([num / most for num in range(most + 1)], histogram, width=0.8 / most, color=GREY)
    axis.set_xlabel(f"share of {most} answers that are right")
    axis.set_ylabel("problems")


def funnel(axis: Any, arms: Sequence[str], steps: Sequence[Step]) -> None:
    """How many responses are left after each condition, and where the others went."""
    largest = max(1, *(step.num_responses for step in steps))
    for place, step in enumerate(steps):
        color = look(arms, step.arm)["color"] if step.arm else GREY
        axis.barh(place, step.num_responses, color=color, height=0.66)
        text = f"{step.num_responses:,}" + (f"   {step.note}" if step.note else "")
        end = step.num_responses + 0.008 * largest
        axis.text(end, place, "\n".join(wrap(text, 86)), va="center", fontsize=8, color=INK)
    axis.set_yticks(range(len(steps)), [step.name for step in steps])
    axis.set_xlim(0, 2.1 * largest)  # the right half is for the notes
    axis.set_ylim(-0.6, len(steps) - 0.4)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
