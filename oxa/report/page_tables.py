"""The summary's numbers as tables of the page.

A number's cell tells where in summary.json it stands and its value in full: data-key="arms.sft.world.pass_at_1"
data-value="0.8625". How a metric is written is its own matter (oxa/comparison/measures.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from oxa.comparison.measures import TOKENS, Metric, Row, beside, pass_at, question
from oxa.comparison.outcomes import BASE, RL
from oxa.report import plots
from oxa.report.markdown import SMALL
from oxa.report.wording import p_value, predictor_rows

Path = tuple[str | int, ...]
"""Keys that lead to a number of the summary."""
Form = Callable[[float], str]
NONE = Markup("–")


class Line(NamedTuple):
    name: str
    cells: list[Markup]
    """Empty: a heading over the lines that follow."""
    arm: str = ""
    """Whose color it bears."""


class Table(NamedTuple):
    caption: str
    header: list[str]
    lines: list[Line]


def whole(value: float) -> str:
    return f"{value:,.0f}"


def signed(text: str) -> str:
    """A difference with a true minus; what rounds to 0 has no sign."""
    return text.replace("-", "−") if text.strip("+-0.") else text[1:]


def number(summary: Mapping[str, Any], path: Path, form: Form) -> Markup:
    """One value, or a dash where the summary has none."""
    value: Any = summary
    for key in path:
        if isinstance(value, Mapping) and key not in value:
            return NONE
        value = value[key]
    if value is None:
        return NONE
    cell = Markup('<span data-key="{}" data-value="{}">{}</span>')
    return cell.format(".".join(map(str, path)), json.dumps(value), form(value))


def interval(summary: Mapping[str, Any], path: Path, form: Form) -> Markup:
    """A value over its interval, whose ends' keys end in _low and _high."""
    *parents, name = path
    low, high = (number(summary, (*parents, f"{name}{end}"), form) for end in ("_low", "_high"))
    value = number(summary, path, form)
    if NONE in (low, high):
        return value
    if value == NONE:
        return Markup("<small>{} to {}</small>").format(low, high)
    return Markup("{} <small>{} to {}</small>").format(value, low, high)


def by_seed(summary: Mapping[str, Any], name: str, group: str) -> Markup:
    """pass@1 of every fine-tuning seed, where there are several."""
    values = summary["arms"][name][group].get("pass_at_1_by_seed", ())
    if len(values) < 2:
        return Markup("")
    path = ("arms", name, group, "pass_at_1_by_seed")
    form = pass_at(1).text
    cells = Markup(", ").join(number(summary, (*path, place), form) for place in range(len(values)))
    return Markup(' <small class="seeds">seeds {}</small>').format(cells)


def difference(summary: Mapping[str, Any], path: Path, metric: Metric) -> Markup:
    """A difference over its interval and p, or what says that none is shown."""
    row: Any = summary
    for key in (*path, metric.name):
        if key not in row:
            return NONE
        row = row[key]
    of_row = (*path, metric.name)
    values = [
        number(summary, (*of_row, name), lambda value: signed(metric.signed(value)))
        for name in ("difference", "low", "high")
    ]
    p = number(summary, (*of_row, "p_holm"), p_value)
    state, note = ("shown", "") if row["shown"] else ("unshown", "not shown, ")
    cell = Markup('<div class="{}">{} <small>{} to {}</small> <small>{}p {}</small></div>')
    return cell.format(state, *values, note, p)


def cell(summary: Mapping[str, Any], path: Path, metric: Metric) -> Markup:
    """A metric among the numbers at `path`, over its interval where it has one to show."""
    if metric.interval == "shown":
        return interval(summary, (*path, metric.name), metric.text)
    return number(summary, (*path, metric.name), partial(metric.alone, separator=","))


def counts_of(summary: Mapping[str, Any], group: str) -> Row:
    """What holds for every arm on a benchmark: its numbers of problems and samples."""
    counts: Row = summary["arms"][BASE][group]
    return counts


def arms(summary: Mapping[str, Any], group: str) -> Table:
    """Every arm's numbers on a benchmark, each beside its difference to the baseline of the same phase."""
    baseline, counts = summary["baseline"], counts_of(summary, group)
    compared = question(counts["num_samples"])
    others = [metric for metric in beside(counts["num_samples"]) if metric.name in counts]
    has_bayes = counts["num_problems"] < SMALL
    header = ["arm", "seeds"]
    for metric in compared:
        header += [metric.long_heading, f"{metric.title}: Δ to {baseline}, {metric.unit.difference}"]
    header += ["pass@1, Bayes interval"] * has_bayes + [metric.long_heading for metric in others]
    lines: list[Line] = []
    for phase, names in plots.phases(summary).items():
        after = f", Δ to {baseline}{RL}" if baseline + RL in names else ""
        lines += [Line(phase + after, [])] if phase else []
        for name in names:
            path = ("arms", name, group)
            cells = [number(summary, (*path, "num_seeds"), whole)]
            for metric in compared:
                value = cell(summary, path, metric)
                cells += [
                    value + by_seed(summary, name, group) if metric.name == "pass_at_1" else value,
                    Markup('<small class="muted">baseline</small>')
                    if name in (baseline, baseline + RL)
                    else difference(summary, ("differences", name, group), metric),
                ]
            if has_bayes:
                cells.append(interval(summary, (*path, "pass_at_1_bayes"), pass_at(1).text))
            lines.append(Line(name, [*cells, *(cell(summary, path, metric) for metric in others)], name))
    return Table(f"Every arm on {group}", header, lines)


def gains(summary: Mapping[str, Any], group: str) -> Table:
    """What RL added to each arm."""
    compared = question(counts_of(summary, group)["num_samples"])
    titles = [f"{metric.title}: after minus before, {metric.unit.difference}" for metric in compared]
    lines = [
        Line(arm, [difference(summary, ("gains", arm, group), metric) for metric in compared], arm)
        for arm in summary["order"]
        if arm in summary["gains"]
    ]
    return Table(f"What RL changed on {group}", ["arm", *titles], lines)


def pass_at_k(summary: Mapping[str, Any], group: str) -> Table:
    ks = plots.k_values(summary, group)
    lines = [
        Line(name, [cell(summary, ("arms", name, group), pass_at(k)) for k in ks], name)
        for name in summary["order"]
    ]
    return Table(f"pass@k on {group}, %", ["arm", *(f"k = {k}" for k in ks)], lines)


def steps(summary: Mapping[str, Any], group: str) -> Table:
    """A benchmark's numbers along RL."""
    compared = question(counts_of(summary, group)["num_samples"])
    lines = []
    for arm in (arm for arm in summary["order"] if arm in summary["steps"]):
        for place in range(len(summary["steps"][arm][group])):
            path = ("steps", arm, group, place)
            cells = [number(summary, (*path, "step"), whole)]
            cells += [cell(summary, path, metric) for metric in compared]
            cells += [number(summary, (*path, TOKENS.name), TOKENS.text)]
            lines.append(Line(arm, cells, arm))
    titles = [metric.long_heading for metric in (*compared, TOKENS)]
    return Table(f"{group} along RL", ["arm", "RL step", *titles], lines)


def predictors(summary: Mapping[str, Any]) -> Table:
    """What was known of the arms before RL, and how it goes with what they solve after it."""
    header, rows = predictor_rows(summary)
    lines = [Line(name, [Markup.escape(cell) for cell in cells], name) for name, *cells in rows]
    return Table("Predictors of pass@1 after RL", header, lines)


def selection(summary: Mapping[str, Any]) -> Table:
    """The sets that the arms were trained on."""
    keys: Sequence[tuple[str, str, Form]] = (
        ("chosen", "responses", whole),
        ("eligible", "eligible", whole),
        ("problems", "problems", whole),
        ("ppl_mean", "mean ppl", "{:.3f}".format),
        ("mean_tokens", "mean tokens", "{:.1f}".format),
    )
    lines = [
        Line(
            f"{arm}: {objective.upper()}",
            [number(summary, ("selection", arm, objective, key), form) for key, _, form in keys],
            arm,
        )
        for arm in summary["order"]
        for objective in ("ce", "ul")
        if objective in summary["selection"].get(arm, {})
    ]
    return Table("The arms' training sets", ["set", *(title for _, title, _ in keys)], lines)
