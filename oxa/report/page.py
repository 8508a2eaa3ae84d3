"""The report's page: one self-contained HTML file for people who would rather look than read.

Everything that comes from data passes Jinja's autoescape or `json_block`; a content security policy lets nothing in
from elsewhere and runs no script but the page's own, known by their hashes. Drawings are SVGs (oxa/report/figures.py),
numbers bear the key of summary.json that they show (oxa/report/page_tables.py), and nothing depends on the day or the
machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from oxa.comparison.measures import MACRO, POOLED, question
from oxa.comparison.outcomes import BASE, RL
from oxa.report import curves, page_tables, plots, training_sets, wording
from oxa.report.curves import Curves
from oxa.report.figures import Draw, curve_panels, svg
from oxa.report.funnel import Loss, Step
from oxa.report.training_sets import Panel
from oxa.report.wording import listed

HERE = Path(__file__).parent
EXPLAINED = {
    "reward": "Share of rollouts whose answer verifies: what RL maximises.",
    "token_entropy": "How open the policy still is. Where it falls to 0, RL has nothing left to explore.",
    "kl": "How far the policy has moved from the checkpoint it started at.",
    "mean_tokens": "Whether RL buys its reward with longer or shorter chains.",
    "truncated": "Rollouts cut before their answer earn nothing; a high share means that the limit is too low.",
    "all_right": "A group that is all right has no advantage and teaches nothing: the problems are too easy.",
    "all_wrong": "A group that is all wrong teaches nothing either: the problems are too hard.",
    "replaced": "With dynamic sampling: how many groups of equal rewards gave way before the step was full.",
    "weight": "1 where rollouts are drawn with the probabilities that training computes; steps differ as it does.",
    "weight_size": "How many equally weighed rollouts, or tokens, the weighed ones are worth.",
    "weight_cut": "Shares of tokens or rollouts whose weight was cut to the bound, or to 0.",
    "grad_norm": "Spikes show steps that clipping had to tame.",
    "ce_loss": "How well the arm fits its own CE set; sets differ, so the levels do, too.",
    "ce_entropy": "Openness of the student on right responses while it learns them.",
    "ul_loss": "Falls as confident wrong tokens lose their probability.",
    "ul_entropy": "Openness of the student on its own wrong responses.",
    "ul_probability": "What unlikelihood pushes down: 1 is certain of a wrong token, 0 has forgotten it.",
}


class Figure(NamedTuple):
    title: str
    note: str
    """What to see in it."""
    picture: Markup


class Group(NamedTuple):
    """A benchmark, or all of them together."""

    name: str
    num_problems: int
    num_samples: int
    what: str
    """How its problems weigh, of a pool."""
    guess_rate: float | None
    tables: dict[str, page_tables.Table]
    figures: dict[str, list[Figure]]


class _Drawer:
    """Draws figures, each with ids of its own."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, title: str, note: str, draw: Draw, height: float = 2.6) -> Figure:
        return Figure(title, note, self.picture(draw, f"{title}. {note}", height=height))

    def picture(self, draw: Draw, label: str, width: float = 3.9, height: float = 2.6) -> Markup:
        self._count += 1
        return svg(draw, label, f"f{self._count}", width, height)


def render(
    summary: Mapping[str, Any],
    made: Mapping[str, str],
    *,
    sides: Mapping[str, list[Step]],
    losses: Sequence[Loss],
    panels: Sequence[Panel],
    origins: Mapping[str, np.ndarray[Any, Any]],
    training: Curves,
    rlvr: Curves,
    traces: Mapping[str, Any] | None,
    pass_rates: Mapping[str, Any],
) -> str:
    """The whole page; `made` says how it was made, `traces` is the viewer's data, None where nothing was traced,
    `pass_rates` what the stage of that name measured, by split."""
    draw = _Drawer()
    arms = plots.arms_of(summary)
    groups = sorted(summary["groups"], key=lambda name: (name != POOLED, name != MACRO))
    legend = [
        (name, draw.picture(partial(plots.sample, arms=arms, name=name), name, 0.5, 0.15))
        for name in (BASE, *arms)
    ]
    scripts = {name: _asset(name) for name in ("page.js", *(("viewer.js",) if traces else ()))}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        policy=policy(scripts.values()),
        styles=[_asset("page.css"), *([_asset("viewer.css")] if traces else [])],
        scripts=list(scripts.values()),
        summary=summary,
        has_rl=bool(summary["steps"]),
        arms=arms,
        sizes=_sizes(summary),
        listed=listed,
        entropies=wording.ENTROPIES,
        families=wording.families(summary),
        seeds=wording.seeds(summary),
        warning=wording.gates(summary["gates"]),
        gates=_gates(summary["gates"]),
        legend=legend,
        phases=_phases(summary["answer"]["claims"]),
        sides=sides,
        losses=losses,
        pass_rates=[
            draw(
                f"Pass rates of the problems of split {split}",
                f"{measured['num_problems']:,} problems, {100 * measured['pass_rate']:.0f}% of the answers right.",
                partial(plots.pass_rates, histogram=measured["histogram"]),
            )
            for split, measured in pass_rates.items()
        ],
        chosen=_ppl(draw, arms, panels, origins),
        lengths=training_sets.lengths(panels),
        longest_first=[arm for panel in panels if panel.within_bin == "longest" for arm in panel.arms],
        selection=page_tables.selection(summary),
        predictors=page_tables.predictors(summary),
        groups=[_group(draw, summary, name) for name in groups],
        training=_curves(draw, arms, training, curves.TRAINING),
        unequal=wording.unequal_steps(summary["weights"]),
        rlvr=_curves(draw, arms, rlvr, curves.RLVR),
        viewer=_asset("viewer.html") if traces else None,
        traces=json_block("traces", traces) if traces else None,
        made=made,
    )


def json_block(name: str, value: Any) -> Markup:
    """Data for a script of the page; no text in it can end the block or begin a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup('<script type="application/json" id="{}">{}</script>').format(name, Markup(text))


def policy(scripts: Iterable[str]) -> str:
    """A content security policy that knows these scripts and nothing from outside."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _phases(claims: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Claims by phase, then by what they are about."""
    by_phase: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for claim in claims:
        by_phase.setdefault(claim["phase"], {}).setdefault(claim["claim"], []).append(claim)
    return by_phase


def _gates(measured: Mapping[str, Any]) -> page_tables.Table | None:
    """What the base of the small world was measured to be able to do; None for any other."""
    if not measured["applies"]:
        return None
    lines = [
        page_tables.Line(f"{gate}: {what}", [Markup("{}").format(text) for text in rest])
        for gate, what, *rest in wording.gate_rows(measured)
    ]
    size = f"{measured['num_problems']:,} held-out problems, {measured['num_samples']} samples each"
    header = ["gate", *wording.GATE_TITLES[2:]]
    return page_tables.Table(f"Gates of the small world: {size}", header, lines)


def _sizes(summary: Mapping[str, Any]) -> list[tuple[Markup, list[str]]]:
    """Responses in a CE set, with the arms whose sets have as many; one entry where all sets are of one size."""
    return [
        (page_tables.number(summary, ("selection", same[0], "ce", "chosen"), page_tables.whole), same)
        for same in wording.sizes(summary).values()
    ]


def _ppl(
    draw: _Drawer,
    arms: Sequence[str],
    panels: Sequence[Panel],
    origins: Mapping[str, np.ndarray[Any, Any]],
) -> list[Figure]:
    edges = training_sets.edges(panels, num_bins=40)
    scored = "Teacher: right ones alone."
    if "self" in origins:
        scored += (
            " Self: those of the verdicts in score.self_verdicts, the wrong ones unless others are asked for."
        )
    figures = [
        draw(
            "Scored responses",
            f"{scored} Further right, the base finds a response less likely. The last bar holds what lies beyond.",
            partial(plots.distributions, pools=origins, edges=edges),
        )
    ]
    for panel in panels:
        note = (
            "What the arm took, over all that it could take."
            if panel.objective == "ce"
            else "Wrong responses that the base itself finds likely, over all that were scored."
        )
        figures.append(
            draw(
                f"{panel.objective.upper()} set of {', '.join(panel.arms)}",
                note,
                partial(plots.chosen, arms=arms, panel=panel, edges=edges),
            )
        )
    coarse = training_sets.edges(panels, num_bins=20)
    for objective in sorted({panel.objective for panel in panels}):
        same = [panel for panel in panels if panel.objective == objective]
        note = (
            "Grey: mean and standard deviation of all that was scored. A colored line above it took longer "
            "responses than others of the same ppl."
        )
        for first, *others in (panel.arms for panel in same if len(panel.arms) > 1):
            note += f" The line of {first} is that of {listed(others)}, too: one set."
        title = f"Length against ppl, {objective.upper()} sets"
        figures.append(draw(title, note, partial(plots.lengths, arms=arms, panels=same, edges=coarse)))
    return figures


def _group(draw: _Drawer, summary: Mapping[str, Any], name: str) -> Group:
    counts = summary["arms"][BASE][name]
    tables = {"arms": page_tables.arms(summary, name), "pass_at_k": page_tables.pass_at_k(summary, name)}
    figures = {"pass_at_k": _pass_figures(draw, summary, name), "forest": _forests(draw, summary, name)}
    if summary["steps"]:
        tables |= {"gains": page_tables.gains(summary, name), "steps": page_tables.steps(summary, name)}
        figures["steps"] = [
            draw(
                f"{metric.title} on {name}",
                "Step 0 is before RL; bands are intervals. Whether arms differ is said by the paired differences.",
                partial(plots.along_rl, summary=summary, group=name, metric=metric),
            )
            for metric in question(counts["num_samples"])
        ]
    return Group(
        name,
        counts["num_problems"],
        counts["num_samples"],
        wording.TOGETHER.get(name, ""),
        summary["guess_rate"].get(name),
        tables,
        figures,
    )


def _pass_figures(draw: _Drawer, summary: Mapping[str, Any], group: str) -> list[Figure]:
    return [
        draw(
            f"pass@k on {group}{_when(phase)}",
            "Left: right at the first try. Right: right at least once. Bands are intervals.",
            partial(plots.pass_at_k, summary=summary, group=group, names=names),
            min(_forest_height(2 * len(summary["order"])), 3.4) if summary["gains"] else 2.6,
        )
        for phase, names in plots.phases(summary).items()
    ]


def _when(phase: str) -> str:
    return f", {phase[0].lower()}{phase[1:]}" if phase else ""


def _forest_height(num_rows: int) -> float:
    return 0.75 + 0.19 * num_rows


def _forests(draw: _Drawer, summary: Mapping[str, Any], group: str) -> list[Figure]:
    """Paired differences of the arms: to the baseline before and after RL, and of each over RL.

    The base is left out: it is so far off that the arms could not be told apart.
    """
    arms, baseline = plots.arms_of(summary), summary["baseline"]
    figures = []
    for metric in question(summary["arms"][BASE][group]["num_samples"]):
        rows: list[plots.Row] = []
        parts = [
            (
                f"to {baseline}{_when(phase)}",
                {name: summary["differences"].get(name) for name in names if name != BASE},
            )
            for phase, names in plots.phases(summary).items()
        ]
        parts.append(("over RL", {arm: summary["gains"].get(arm) for arm in arms}))
        for heading, differences in parts:
            lines = [
                plots.Row(
                    name.removesuffix(RL), by_group[group][metric.name], plots.look(arms, name)["color"]
                )
                for name, by_group in differences.items()
                if by_group and metric.name in by_group[group]
            ]
            rows += [plots.Row(heading, None), *lines] if lines else []
        if rows:
            note = "Filled: a difference is shown. Hollow: none is, whatever its side of 0."
            figures.append(
                draw(
                    f"Difference in {metric.title} on {group}",
                    note,
                    partial(plots.forest, rows=rows, scale=metric.unit.scale, unit=metric.unit.difference),
                    _forest_height(len(rows)),
                )
            )
    return figures


def _curves(
    draw: _Drawer, arms: Sequence[str], by_metric: Curves, titles: Mapping[str, tuple[str, str]]
) -> list[Figure]:
    panels = curve_panels(arms, by_metric, titles)
    return [draw(title, EXPLAINED[name], draw_curves) for name, (title, draw_curves) in panels.items()]
