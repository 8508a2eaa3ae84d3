"""The report's pictures: ppl and selections, pass@k, training, and the funnel from raw rows to training sets.

One color and one line style an arm in all of them (Okabe & Ito's colors, told apart by color-blind readers and, by
style, in print). The same input gives the same bytes: no date and no version is written into a PNG.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from oxa import funnel as funnels
from oxa import journal, records
from oxa.errors import DataError

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (2, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = "osD^vP"
GREY, INK = "#BDBDBD", "#222222"


def look(arms: Sequence[str], arm: str) -> dict[str, Any]:
    """The arm's color and line; the base is black."""
    if arm not in arms:
        return {"color": INK, "linestyle": "-"}
    place = list(arms).index(arm)
    return {
        "color": COLORS[place % len(COLORS)],
        "linestyle": STYLES[(place + place // len(COLORS)) % len(STYLES)],
    }


@contextmanager
def _figure(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure that is written to `path`, whole, when the block ends."""
    style = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "figure.dpi": 120,
        "legend.frameon": False,
        "svg.hashsalt": "oxa",
    }
    with mpl.rc_context({**mpl.rcParamsDefault, **style, "backend": "agg"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        yield figure
        with records.atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def ppl(path: Path, arms: Sequence[str], *, metrics: Path, scores: Path, train_sets: Path) -> None:
    """Histograms of teacher and self ppl, and over them what each arm took; arms with equal sets share a panel."""
    panels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    taken: dict[tuple[str, tuple[str, ...]], NDArray[np.float64]] = {}
    for arm in arms:
        chosen = records.read(
            train_sets / f"{arm}.parquet", records.TRAIN, ["response_id", "objective", "ppl"]
        )
        objective = np.array(chosen["objective"].to_pylist())
        for name in ("ce", "ul"):
            rows = chosen.filter(objective == name)
            if len(rows):
                panel = (name, tuple(sorted(rows["response_id"].to_pylist())))
                panels.setdefault(panel, []).append(arm)
                taken[panel] = rows["ppl"].to_numpy()
    everything = {"ce": _ppl_of(scores / "teacher.parquet")}
    if any(name == "ul" for name, _ in panels):
        everything["ul"] = _ppl_of(scores / "self.parquet")
    order = sorted(panels, key=lambda key: (key[0], arms.index(panels[key][0])))
    edges = _ppl_edges([*everything.values()], [*taken.values()])
    title = "What each arm chose by perplexity under the base, out of all that was scored"
    with _figure(path, 11, 0.9 + 1.9 * len(order), title) as figure:
        axes = figure.subplots(len(order), 1, sharex=True, squeeze=False)[:, 0]
        for axis, key in zip(axes, order, strict=True):
            names, color = panels[key], look(arms, panels[key][0])["color"]
            scored = "correct teacher responses" if key[0] == "ce" else "self-samples"
            inside = np.clip(everything[key[0]], edges[0], edges[-1])
            axis.hist(inside, edges, color=GREY, label=f"all scored {scored} ({len(inside):,})")
            label = f"chosen ({len(taken[key]):,})"
            axis.hist(np.clip(taken[key], edges[0], edges[-1]), edges, color=color, alpha=0.85, label=label)
            bins = records.read_json(metrics / "selection" / f"{names[0]}.json").get("bins")
            if key[0] == "ce" and bins:
                _draw_target(axis, bins, edges)
            kind = "CE set" if key[0] == "ce" else "UL set"
            axis.set_title(f"{kind} of {' and '.join(names)}", color=INK)
            axis.set_ylabel("responses")
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside it: bars may stand anywhere
        axes[-1].set_xlabel(
            "perplexity under the base (exp of mean nats a token); the last bars hold what lies beyond"
        )


def _ppl_of(path: Path) -> NDArray[np.float64]:
    values = records.read(path, records.SCORES, ["ppl"])["ppl"].to_numpy()
    return values[np.isfinite(values)]


def _ppl_edges(
    everything: list[NDArray[np.float64]], taken: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """About 80 bins from 1 to where most of all and nearly all of the chosen end: a wild tail must not flatten them."""
    ends = [np.quantile(values, 0.95) for values in everything if len(values)]
    ends += [np.quantile(values, 0.99) for values in taken]
    high = max(1.1, *ends)
    step = 10.0 ** np.floor(np.log10((high - 1) / 40))
    width = next(step * factor for factor in (1, 2, 2.5, 5, 10) if (high - 1) / (step * factor) <= 80)
    return 1 + width * np.arange(int(np.ceil((high - 1) / width - 1e-9)) + 1)


def _draw_target(axis: Any, bins: list[dict[str, Any]], edges: NDArray[np.float64]) -> None:
    """The Gaussian's target, brought from the selection's bins to the picture's."""
    asked = [row for row in bins if row["target"]]
    centers = np.array([(row["low"] + row["high"]) / 2 for row in asked])
    density = np.array([row["target"] / (row["high"] - row["low"]) for row in asked]) * (edges[1] - edges[0])
    axis.plot(centers, density, color=INK, linewidth=1.4, linestyle="--", label="Gaussian target")


def pass_at_k(path: Path, summary: dict[str, Any]) -> None:
    """pass@k against k with its intervals, one panel a benchmark, and the pooled one."""
    arms = [arm for arm in summary["order"] if arm != "base"]
    groups = summary["groups"]
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    title = f"pass@k by arm, with {summary['confidence']:.0%} bootstrap intervals"
    with _figure(path, max(6.5, 4.0 * columns), 1.0 + 3.1 * lines, title) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis, group in zip(axes, groups, strict=False):
            counts = summary["arms"]["base"][group]
            ks = sorted(
                int(name[8:]) for name in counts if name[8:].isdigit() and name.startswith("pass_at_")
            )
            for arm in summary["order"]:
                numbers, style = summary["arms"][arm][group], look(arms, arm)
                mean, low, high = (
                    [100 * numbers[f"pass_at_{k}{end}"] for k in ks] for end in ("", "_low", "_high")
                )
                marker = MARKERS[arms.index(arm) % len(MARKERS)] if arm in arms else "x"
                axis.fill_between(ks, low, high, color=style["color"], alpha=0.10, linewidth=0)
                axis.plot(ks, mean, marker=marker, markersize=4, clip_on=False, label=arm, **style)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, [str(k) for k in ks])
            axis.set_xlabel("k, samples a problem")
            axis.set_ylabel("problems solved, %")
            highest = max(found[group][f"pass_at_{k}_high"] for found in summary["arms"].values() for k in ks)
            # a student that solves nothing needs a scale, too
            axis.set_ylim(0, min(103, max(5, 108 * highest)))
            axis.set_title(f"{group} ({counts['num_problems']} problems, n = {counts['num_samples']})")
        for axis in axes[len(groups) :]:
            axis.remove()
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")


def training(path: Path, arms: Sequence[str], seeds: Sequence[int], *, metrics: Path) -> None:
    """What was logged while the arms trained: each step faint, its running mean over seeds strong."""
    panels = {
        "ce_loss": ("Cross-entropy of CE responses", "nats a token"),
        "ce_entropy": ("Entropy on CE responses", "nats a token"),
        "grad_norm": ("Gradient norm before clipping", "norm"),
        "ul_loss": ("Unlikelihood of UL responses", "nats a token"),
        "ul_entropy": ("Entropy on UL responses", "nats a token"),
        "ul_probability": ("Probability of UL tokens", "mean p"),
    }
    curves = {arm: _curves(metrics, arm, seeds, list(panels)) for arm in arms}
    shown = [name for name in panels if any(name in curves[arm] for arm in arms)]
    lines = max(1, -(-len(shown) // 3))
    title = "Training: every step (faint) and its running mean (strong), mean over seeds"
    with _figure(path, 11.5, 1.0 + 2.8 * lines, title) as figure:
        axes = figure.subplots(lines, 3, squeeze=False).ravel()
        for axis, name in zip(axes, shown, strict=False):
            for arm in arms:
                if name in curves[arm]:
                    steps, values = curves[arm][name]
                    style = look(arms, arm)
                    axis.plot(steps, values, color=style["color"], alpha=0.22, linewidth=0.8)
                    axis.plot(steps, _running_mean(values), label=arm, linewidth=1.6, **style)
            axis.set_title(panels[name][0])
            axis.set_ylabel(panels[name][1])
            axis.set_xlabel("optimizer step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in axes[len(shown) :]:
            axis.remove()
        labeled = {
            label: line
            for axis in figure.axes
            for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            [labeled[a] for a in arms if a in labeled],
            [a for a in arms if a in labeled],
            loc="outside right upper",
        )


def _curves(
    metrics: Path, arm: str, seeds: Sequence[int], names: list[str]
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(steps, mean over seeds) of each metric that this arm logged."""
    values: dict[str, dict[int, list[float]]] = {}
    for seed in seeds:
        path = metrics / "train" / f"{arm}-{seed}.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: no such file; `dvc repro` makes it")
        for row in journal.read(path):
            if row["name"] in names:
                values.setdefault(row["name"], {}).setdefault(row["step"], []).append(row["value"])
    return {
        name: (np.array(sorted(steps)), np.array([np.mean(steps[step]) for step in sorted(steps)]))
        for name, steps in values.items()
    }


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve around each step, smaller at the ends."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def funnel(path: Path, arms: Sequence[str], *, metrics: Path) -> None:
    """How many responses are left after each condition, and where the others went."""
    sides = [
        (title, steps)
        for title, steps in (
            ("Teacher responses → CE sets", funnels.teacher(metrics, arms)),
            ("The student's own responses → UL sets", funnels.own(metrics, arms)),
        )
        if steps
    ]
    heights = [len(steps) for _, steps in sides]
    with _figure(
        path, 11.5, 0.6 + 0.35 * len(sides) + 0.4 * sum(heights), "From raw rows to training sets"
    ) as figure:
        axes = figure.subplots(len(sides), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (title, steps) in zip(axes, sides, strict=True):
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
            axis.set_title(title)
