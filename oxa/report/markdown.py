"""What the summary says, in words and in a Markdown table; nothing here is computed but what is worth saying first.

`answer` holds a short answer and, for every arm and phase, a claim about pass@1, pass@N and entropy against the
baseline, on all benchmarks pooled where there are several. The answer is about all three and names every arm, better,
worse or neither. Where a difference is not `shown` (oxa/comparison/arms.py), the words are "no difference shown",
whatever its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from textwrap import fill
from typing import Any

from oxa.comparison.measures import Row, Summary, asked
from oxa.comparison.outcomes import BASE, RL
from oxa.report.gates import GATE_TITLES, gate_rows, gates
from oxa.report.wording import title_of

SMALL = 50  # problems of a benchmark below which the Bayesian interval is given, too
Columns = dict[str, Callable[[Row], str]]
"""Title, to how an arm's numbers are written there."""
ONE_SEED = "One fine-tuning seed: the intervals do not cover what another seed would change."


def table(summary: Summary) -> str:
    """The comparison as Markdown, readable in a terminal too; percentages, entropies in nats a token."""
    baseline, level = summary["baseline"], f"{summary['confidence']:.0%}"
    lines = ["# Comparison of the arms", ""]
    if warning := gates(summary.get("gates", {})):
        lines += [_wrapped(warning), "", *aligned(GATE_TITLES, gate_rows(summary["gates"])), ""]
    if "answer" in summary:
        lines += [_wrapped(summary["answer"]["sentence"]), ""]
    for group in summary["groups"]:
        lines += [_heading(summary, group), ""]
        for columns in (_first_columns(summary, group), _more_columns(summary, group)):
            lines += [*_numbers(summary, group, columns), ""]
        lines += [*_differences(summary, group), ""]
    notes = [
        f"Intervals: {level}, bootstrap over problems and samples (and seeds, where there are several). Differences "
        "are paired by problem; p is corrected by Holm's method over the "
        f"{summary['num_comparisons']} between arms, and apart from these over the {summary['num_beside']} others "
        "(the base, and what RL added). "
        f"n.s.: the interval holds 0 or p > {1 - summary['confidence']:.2g}, so no difference is shown."
    ]
    if any(summary["arms"][baseline][group]["num_problems"] < SMALL for group in summary["groups"]):
        notes += [
            f"Bayes: {level} credible interval of pass@1 on these very problems, each rate with a uniform prior, which "
            "pulls towards 50% where samples are few."
        ]
    if summary["arms"][baseline][summary["groups"][0]]["num_seeds"] == 1:
        notes += [ONE_SEED]
    return "\n".join([*lines, *map(_wrapped, notes)]) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _heading(summary: Summary, group: str) -> str:
    counts = summary["arms"][BASE][group]
    samples = f"{counts['num_samples']} sample{'s' * (counts['num_samples'] > 1)} a problem"
    heading = f"## {group}: {counts['num_problems']} problems, {samples}"
    if group in summary["guess_rate"]:
        rate = 100 * summary["guess_rate"][group]
        heading += f"; always giving the most frequent answer solves {rate:.1f}%"
    return heading


def _first_columns(summary: Summary, group: str) -> Columns:
    n = summary["arms"][BASE][group]["num_samples"]
    columns: Columns = {
        "seeds": lambda numbers: str(numbers["num_seeds"]),
    }
    return columns | {column(metric): partial(cell, metric=metric) for metric in asked(n)}


def _more_columns(summary: Summary, group: str) -> Columns:
    counts = summary["arms"][BASE][group]
    n = counts["num_samples"]
    columns: Columns = {}
    if counts["num_problems"] < SMALL:
        columns["Bayes of pass@1, %"] = lambda numbers: _ends(numbers, "pass_at_1_bayes", 100, ".1f")
    if n > 1:
        if f"maj_at_{n}" in counts:
            columns[f"maj@{n}, %"] = lambda numbers: _with_interval(numbers, f"maj_at_{n}")
        columns[f"pass^{n}, %"] = lambda numbers: _with_interval(numbers, f"pass_hat_{n}")
        columns["distinct answers"] = lambda numbers: f"{numbers['distinct_answers']:.1f}"
    columns["tokens"] = lambda numbers: f"{numbers['mean_tokens']:.0f}"
    columns["cut, %"] = lambda numbers: f"{100 * numbers['truncated']:.1f}"
    return columns


def _numbers(summary: Summary, group: str, columns: Columns) -> list[str]:
    rows = [
        [arm, *(cell(summary["arms"][arm][group]) for cell in columns.values())] for arm in summary["order"]
    ]
    return aligned(["arm", *columns], rows)


def _differences(summary: Summary, group: str) -> list[str]:
    """Every arm against the baseline of its phase, and against itself before RL."""
    baseline, n = summary["baseline"], summary["arms"][BASE][group]["num_samples"]
    metrics = asked(n)
    compared = {
        f"{name} − {baseline}{RL * name.endswith(RL)}": found[group]
        for name, found in sorted(
            summary["differences"].items(), key=lambda item: summary["order"].index(item[0])
        )
    }
    gains = summary["gains"]
    compared |= {f"{arm}{RL} − {arm}": gains[arm][group] for arm in summary["order"] if arm in gains}
    rows = [
        [name, *(difference(found.get(metric), metric) for metric in metrics)]
        for name, found in compared.items()
    ]
    return aligned(["difference", *map(delta, metrics)], rows) if rows else []


def column(metric: str) -> str:
    """Title of a column of numbers."""
    return "entropy, nats" if metric == "mean_entropy" else f"{title_of(metric)}, %"


def cell(numbers: Mapping[str, Any], metric: str) -> str:
    """A number of such a column, with its interval."""
    scale, form = (1, ".3f") if metric == "mean_entropy" else (100, ".1f")
    return _with_interval(numbers, metric, scale, form)


def delta(metric: str) -> str:
    """Title of a column of differences."""
    return f"Δ {title_of(metric)}, {'nats' if metric == 'mean_entropy' else 'points'}"


def _with_interval(numbers: Mapping[str, Any], name: str, scale: float = 100, form: str = ".1f") -> str:
    if numbers[name] is None:
        return "–"
    return f"{scale * numbers[name]:{form}} {_ends(numbers, name, scale, form)}"


def _ends(numbers: Mapping[str, Any], name: str, scale: float, form: str) -> str:
    low, high = (f"{scale * numbers[f'{name}_{end}']:{form}}" for end in ("low", "high"))
    return f"[{low}, {high}]"


def difference(found: Mapping[str, Any] | None, metric: str) -> str:
    """Such a difference, with its interval and what Holm's method says of it."""
    if found is None:
        return "–"
    return f"{change(found, metric)}, p {found['p_holm']:.3f}{'' if found['shown'] else ' n.s.'}"


def change(found: Mapping[str, Any] | None, metric: str) -> str:
    """Such a difference with its interval alone."""
    if found is None:
        return "–"
    scale, form = (1, "+.3f") if metric == "mean_entropy" else (100, "+.1f")
    mean, low, high = (f"{scale * found[name]:{form}}" for name in ("difference", "low", "high"))
    return f"{mean} [{low}, {high}]"


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, ruler, *rows)
    ]
