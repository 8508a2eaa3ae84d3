"""Drawings as pictures: PNGs of several panels for MLflow and `dvc plots`, and one panel as an SVG for the page.

The same input gives the same bytes: no date and no version is written. In an SVG text stays text, and colors are CSS
variables, so that the page's light and dark scheme hold in it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from oxa.comparison.outcomes import BASE
from oxa.report import curves, plots, training_sets
from oxa.report.curves import Curves
from oxa.report.funnel import Step
from oxa.report.training_sets import Panel
from oxa.runtime import files

STYLE = {
    **mpl.rcParamsDefault,
    "backend": "agg",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.edgecolor": plots.AXIS,
    "axes.labelcolor": plots.INK,
    "grid.color": plots.GRID,
    "text.color": plots.INK,
    "text.parse_math": False,
    "xtick.color": plots.AXIS,
    "xtick.labelcolor": plots.INK,
    "ytick.color": plots.AXIS,
    "ytick.labelcolor": plots.INK,
    "figure.dpi": 120,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "oxa",
}
VARIABLES = {
    **{color: f"var(--arm-{place})" for place, color in enumerate(plots.COLORS)},
    plots.INK: "var(--fg)",
    plots.AXIS: "var(--muted)",
    plots.GREY: "var(--bar)",
    plots.GRID: "var(--line)",
    "#FFFFFF": "var(--card)",
}
Draw = Callable[[Any], None]
"""Draws on an axis."""


def svg(draw: Draw, label: str, key: str, width: float = 3.9, height: float = 2.6) -> Markup:
    """One panel, inches; `key` tells its ids from those of the page's other drawings."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        draw(figure.subplots())
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    return _for_page(file.getvalue(), label, key)


def _for_page(text: str, label: str, key: str) -> Markup:
    """Without what belongs to a file of its own: header, style sheet, size, fonts and ids that nothing refers to."""
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = text[text.index(">", text.index("<svg")) + 1 :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<g/>|<defs>\s*</defs>", "", text)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))

    def clean(tag: re.Match[str]) -> str:
        cleaned = re.sub(
            r' id="arms-([\d-]+)"', lambda id_: f' data-arms="{id_[1].replace("-", " ")}"', tag[0]
        )
        cleaned = re.sub(
            r' id="([^"]+)"', lambda id_: f' id="{key}-{id_[1]}"' if id_[1] in used else "", cleaned
        )
        cleaned = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", cleaned)
        cleaned = re.sub(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"", "", cleaned)
        cleaned = re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0].upper(), color[0]), cleaned)
        return re.sub(r"(\.\d\d)\d+", r"\1", cleaned)  # hundredths of a point are enough

    text = re.sub(r"<[^>]*>", clean, text)
    head = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" aria-label="{}">')
    return head.format(Markup(box[0]), label) + Markup(re.sub(r"\n\s*", "\n", text))


@contextmanager
def figure_file(path: Path, width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure that is written to `path`, whole, when the block ends."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        yield figure
        with files.atomic(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _grid(path: Path, panels: Sequence[tuple[str, Draw]], title: str, columns: int = 3) -> None:
    """Panels, each with its title, and one legend of all their labels."""
    columns = min(columns, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    with figure_file(path, max(6.5, 3.9 * columns), 1.0 + 2.9 * lines, title) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis, (name, draw) in zip(axes, panels, strict=False):
            draw(axis)
            axis.set_title(name)
        for axis in axes[len(panels) :]:
            axis.remove()
        pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
        handles = {label: handle for pair in pairs for handle, label in pair}
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside right upper")


def ppl(path: Path, arms: Sequence[str], panels: Sequence[Panel]) -> None:
    """Histograms of teacher and self ppl, and over them what each arm took; arms with equal sets share a panel."""
    edges = training_sets.edges(panels)
    title = "What each arm chose by perplexity under the base, out of all that was scored"
    with figure_file(path, 11, 0.9 + 1.9 * len(panels), title) as figure:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            plots.chosen(axis, arms, panel, edges)
            axis.set_title(f"{panel.objective.upper()} set of {' and '.join(panel.arms)}")
            axis.set_xlabel("")
        axes[-1].set_xlabel(
            "perplexity under the base (exp of mean nats a token); the last bars hold what lies beyond"
        )


def pass_at_k(path: Path, summary: dict[str, Any]) -> None:
    """pass@k against k with its intervals, one panel a benchmark, and the pooled one; before RL, then after it."""
    panels: list[tuple[str, Draw]] = []
    phases = plots.phases(summary)
    for group in summary["groups"]:
        counts = summary["arms"][BASE][group]
        note = f"{group} ({counts['num_problems']} problems, n = {counts['num_samples']})"
        for names, when in zip(phases.values(), ("", ", after RL"), strict=False):
            panels.append((note + when, partial(plots.pass_at_k, summary=summary, group=group, names=names)))
    title = f"pass@k by arm, with {summary['confidence']:.0%} intervals"
    _grid(path, panels, title, columns=2 if len(phases) == 2 else 3)


def curve_panels(
    arms: Sequence[str], by_metric: Curves, titles: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, Draw]]:
    """Title and drawing of every metric that some arm logged."""
    return {
        name: (title, partial(plots.curves, arms=arms, by_arm=by_metric[name], unit=unit))
        for name, (title, unit) in titles.items()
        if name in by_metric
    }


def training(path: Path, arms: Sequence[str], by_metric: Curves) -> None:
    """What was logged while the arms trained: each step faint, its running mean over seeds strong."""
    title = "Training: every step (faint) and its running mean (strong), mean over seeds"
    _grid(path, list(curve_panels(arms, by_metric, curves.TRAINING).values()), title)


def rlvr(path: Path, arms: Sequence[str], by_metric: Curves) -> None:
    """What was logged along RL."""
    title = "RL from every arm: every step (faint) and its running mean (strong), mean over seeds"
    _grid(path, list(curve_panels(arms, by_metric, curves.RLVR).values()), title)


def funnel(path: Path, arms: Sequence[str], sides: dict[str, list[Step]]) -> None:
    """How many responses are left after each condition, and where the others went."""
    heights = [len(steps) for steps in sides.values()]
    with figure_file(
        path, 11.5, 0.6 + 0.35 * len(sides) + 0.4 * sum(heights), "From raw rows to training sets"
    ) as figure:
        axes = figure.subplots(len(sides), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (title, steps) in zip(axes, sides.items(), strict=True):
            plots.funnel(axis, arms, steps)
            axis.set_title(title)
