"""The summary's numbers as tables of the page.

A number's cell tells where in summary.json it stands and its value in full: data-key="arms.sft.world.pass_at_1"
data-value="0.8625". Shares of problems are shown in percent, differences of them in points, entropies in nats a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from oxa.comparison.outcomes import RL
from oxa.report.markdown import SMALL
from oxa.report.plots import k_values

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


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return _signed(f"{100 * value:+.1f}")


def nats(value: float) -> str:
    return f"{value:.3f}"


def nats_more(value: float) -> str:
    return _signed(f"{value:+.3f}")


def whole(value: float) -> str:
    return f"{value:,.0f}"


def tenths(value: float) -> str:
    return f"{value:.1f}"


def _signed(text: str) -> str:
    """With a true minus; what rounds to 0 has no sign."""
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
    cells = Markup(", ").join(number(summary, (*path, place), percent) for place in range(len(values)))
    return Markup(' <small class="seeds">seeds {}</small>').format(cells)


def difference(summary: Mapping[str, Any], path: Path, form: Form) -> Markup:
    """A difference over its interval and p, or what says that none is shown."""
    found: Any = summary
    for key in path:
        if key not in found:
            return NONE
        found = found[key]
    values = [number(summary, (*path, name), form) for name in ("difference", "low", "high")]
    p = number(summary, (*path, "p_holm"), "{:.3f}".format)
    state, note = ("shown", "") if found["shown"] else ("unshown", "not shown, ")
    cell = Markup('<div class="{}">{} <small>{} to {}</small> <small>{}p {}</small></div>')
    return cell.format(state, *values, note, p)


def metrics(summary: Mapping[str, Any], group: str) -> list[tuple[str, str, Form, Form, float, str]]:
    """(key, title, form, form of a difference, scale, unit) of what arms are compared by."""
    n = k_values(summary, group)[-1]
    shares = [
        (f"pass_at_{k}", f"pass@{k}", percent, points, 100.0, "points") for k in ([1] if n == 1 else [1, n])
    ]
    return [*shares, ("mean_entropy", "entropy", nats, nats_more, 1.0, "nats a token")]


def phases(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names by phase, in order."""
    after = [name for name in summary["order"] if name.endswith(RL)]
    before = [name for name in summary["order"] if name not in after]
    return {"Before RL": before, "After RL": after} if after else {"": before}


def arms(summary: Mapping[str, Any], group: str) -> Table:
    """Every arm's numbers on a benchmark, each beside its difference to the baseline of the same phase."""
    found, n = metrics(summary, group), k_values(summary, group)[-1]
    baseline = summary["baseline"]
    header = ["arm", "seeds"]
    for _, title, form, _, _, unit in found:
        header += [
            f"{title}, {'%' if form is percent else 'nats a token'}",
            f"{title}: Δ to {baseline}, {unit}",
        ]
    rest: list[tuple[str, str, Form]] = [
        ("pass_at_1_bayes", "pass@1, Bayes interval", percent),
        (f"maj_at_{n}", f"majority of {n}, %", percent),
        (f"pass_hat_{n}", f"all {n} right, %", percent),
        ("distinct_answers", "distinct answers", tenths),
        ("mean_tokens", "tokens", whole),
        ("truncated", "cut, %", percent),
    ]
    counts = summary["arms"][baseline][group]
    rest = [
        entry
        for entry in rest
        if (counts["num_problems"] < SMALL if "bayes" in entry[0] else entry[0] in counts)
    ]
    header += [title for _, title, _ in rest]
    lines: list[Line] = []
    for phase, names in phases(summary).items():
        after = f", Δ to {baseline}{RL}" if baseline + RL in names else ""
        lines += [Line(phase + after, [])] if phase else []
        for name in names:
            cells = [number(summary, ("arms", name, group, "num_seeds"), whole)]
            for key, _, form, change, _, _ in found:
                compared = name not in (baseline, baseline + RL)
                value = interval(summary, ("arms", name, group, key), form)
                cells += [
                    value + by_seed(summary, name, group) if key == "pass_at_1" else value,
                    difference(summary, ("differences", name, group, key), change)
                    if compared
                    else Markup('<small class="muted">baseline</small>'),
                ]
            cells += [
                (number if key == "mean_tokens" else interval)(summary, ("arms", name, group, key), form)
                for key, _, form in rest
            ]
            lines.append(Line(name, cells, name))
    return Table(f"Every arm on {group}", header, lines)


def gains(summary: Mapping[str, Any], group: str) -> Table:
    """What RL added to each arm."""
    found = metrics(summary, group)
    header = ["arm", *(f"{title}: after minus before, {unit}" for _, title, _, _, _, unit in found)]
    lines = [
        Line(
            arm,
            [difference(summary, ("gains", arm, group, key), form) for key, _, _, form, _, _ in found],
            arm,
        )
        for arm in summary["order"]
        if arm in summary["gains"]
    ]
    return Table(f"What RL changed on {group}", header, lines)


def pass_at_k(summary: Mapping[str, Any], group: str) -> Table:
    ks = k_values(summary, group)
    lines = [
        Line(name, [interval(summary, ("arms", name, group, f"pass_at_{k}"), percent) for k in ks], name)
        for name in summary["order"]
    ]
    return Table(f"pass@k on {group}, %", ["arm", *(f"k = {k}" for k in ks)], lines)


def steps(summary: Mapping[str, Any], group: str) -> Table:
    """A benchmark's numbers along RL."""
    found = metrics(summary, group)
    lines = []
    for arm in (arm for arm in summary["order"] if arm in summary["steps"]):
        for place in range(len(summary["steps"][arm][group])):
            path = ("steps", arm, group, place)
            cells = [number(summary, (*path, "step"), whole)]
            cells += [interval(summary, (*path, key), form) for key, _, form, _, _, _ in found]
            cells += [number(summary, (*path, "mean_tokens"), tenths)]
            lines.append(Line(arm, cells, arm))
    titles = [f"{title}, {'%' if form is percent else 'nats a token'}" for _, title, form, _, _, _ in found]
    return Table(f"{group} along RL", ["arm", "RL step", *titles, "tokens"], lines)


def selection(summary: Mapping[str, Any]) -> Table:
    """The sets that the arms were trained on."""
    keys: Sequence[tuple[str, str, Form]] = (
        ("chosen", "responses", whole),
        ("eligible", "eligible", whole),
        ("problems", "problems", whole),
        ("ppl_mean", "mean ppl", nats),
        ("mean_tokens", "mean tokens", tenths),
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
