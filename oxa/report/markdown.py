"""The comparison as Markdown, for a terminal: table.md, and the cells that `oxa study` and `oxa compare` write, too.

Every benchmark has three parts: the arms' numbers in the metrics of the question, the metrics beside these, and the
differences, each with its interval. How a metric is written is its own matter (oxa/comparison/measures.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from textwrap import fill

from oxa.comparison.measures import Metric, Row, Summary, beside, metrics, pass_at, pass_hat, question
from oxa.comparison.outcomes import BASE, RL
from oxa.report.wording import (
    ENTROPIES,
    GATE_TITLES,
    ONE_SEED,
    TOGETHER,
    change,
    families,
    gate_rows,
    gates,
    listed,
    p_value,
    predictor_rows,
    seeds,
    sizes,
    unequal_steps,
)

SMALL = 50  # problems of a benchmark below which the Bayesian interval is given, too
Columns = dict[str, Callable[[Row], str]]
"""Title, to how an arm's numbers are written there."""


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
    if summary.get("predictors", {}).get("arms") and summary["steps"]:
        header, rows = predictor_rows(summary)
        turned = [list(line) for line in zip(header[1:], *(row[1:] for row in rows), strict=True)]
        lines += ["## Predictors of pass@1 after RL", "", _wrapped(summary["predictors"]["sentence"]), ""]
        lines += [*aligned(["", *(row[0] for row in rows)], turned), ""]
    notes = [
        f"Intervals: {level}, bootstrap over problems; an arm's are of its very seeds, a difference's hold for others, "
        f"too, where an arm has several. Differences are paired by problem; {families(summary)} "
        f"n.s.: the interval holds 0 or p > {1 - summary['confidence']:.2g}, so no difference is shown. {ENTROPIES}"
    ]
    if any(summary["arms"][baseline][group]["num_problems"] < SMALL for group in summary["groups"]):
        notes += [
            f"Bayes: {level} credible interval of pass@1 on these very problems, each rate with a uniform prior, which "
            "pulls towards 50% where samples are few."
        ]
    by_size = sizes(summary) if "selection" in summary else {}
    if len(by_size) > 1:
        parts = [f"{size:,} responses for {listed(same)}" for size, same in by_size.items()]
        notes += [f"The CE sets that the arms were trained on differ in size: {'; '.join(parts)}."]
    notes += filter(None, [seeds(summary), unequal_steps(summary.get("weights", {}))])
    return "\n".join([*lines, *map(_wrapped, notes)]) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _heading(summary: Summary, group: str) -> str:
    counts = summary["arms"][BASE][group]
    samples = f"{counts['num_samples']} sample{'s' * (counts['num_samples'] > 1)} a problem"
    heading = f"## {group}: {counts['num_problems']} problems, {samples}"
    heading += f"; {what}" if (what := TOGETHER.get(group)) else ""
    if group in summary["guess_rate"]:
        rate = 100 * summary["guess_rate"][group]
        heading += f"; always giving the most frequent answer solves {rate:.1f}%"
    return heading


def _first_columns(summary: Summary, group: str) -> Columns:
    columns: Columns = {"seeds": lambda numbers: str(numbers["num_seeds"])}
    return columns | _columns(question(summary["arms"][BASE][group]["num_samples"]))


def _more_columns(summary: Summary, group: str) -> Columns:
    counts = summary["arms"][BASE][group]
    n = counts["num_samples"]
    columns: Columns = {}
    if counts["num_problems"] < SMALL:
        columns["Bayes of pass@1, %"] = lambda numbers: _ends(numbers, "pass_at_1_bayes", pass_at(1))
    return columns | _columns(
        [metric for metric in beside(n) if metric.name in counts and (n > 1 or not metric.of_several)]
    )


def _columns(metrics: Sequence[Metric]) -> Columns:
    return {metric.heading: partial(cell, metric=metric) for metric in metrics}


def _numbers(summary: Summary, group: str, columns: Columns) -> list[str]:
    rows = [
        [arm, *(cell(summary["arms"][arm][group]) for cell in columns.values())] for arm in summary["order"]
    ]
    return aligned(["arm", *columns], rows)


def _differences(summary: Summary, group: str) -> list[str]:
    """Every arm against the baseline of its phase, and against itself before RL: rates, then, for width, the others."""
    baseline, order = summary["baseline"], summary["order"]
    differences, gains = summary["differences"], summary["gains"]
    compared = {
        f"{name} − {baseline}{RL * name.endswith(RL)}": differences[name][group]
        for name in order
        if name in differences
    } | {f"{arm}{RL} − {arm}": gains[arm][group] for arm in order if arm in gains}
    metrics = question(summary["arms"][BASE][group]["num_samples"])
    lines: list[str] = []
    for part in ([one for one in metrics if one.solved], [one for one in metrics if not one.solved]):
        rows = [
            [name, *(difference(row.get(metric.name), metric) for metric in part)]
            for name, row in compared.items()
        ]
        if part and rows:
            titles = ["difference", *(metric.difference_heading for metric in part)]
            lines += [*([""] if lines else []), *aligned(titles, rows)]
    return lines


def cell(numbers: Row, metric: Metric) -> str:
    """An arm's value, with its interval where the metric has one to show."""
    value = numbers[metric.name]
    if value is None:
        return "–"
    if metric.interval != "shown":
        return metric.alone(value)
    return f"{metric.text(value)} {_ends(numbers, metric.name, metric)}"


def _ends(numbers: Row, name: str, metric: Metric) -> str:
    ends = [numbers[f"{name}_{end}"] for end in ("low", "high")]
    low, high = ("?" if end is None else metric.text(end) for end in ends)
    return f"[{low}, {high}]"


def difference(row: Row | None, metric: Metric) -> str:
    """A difference with its interval and what Holm's method says of it."""
    if row is None:
        return "–"
    return f"{change(row, metric)}, p {p_value(row['p_holm'])}{'' if row['shown'] else ' n.s.'}"


def pair(result: Row) -> str:
    """Two checkpoints side by side (comparison/pair.py), readable in a terminal too."""
    a, b, level = result["a"], result["b"], f"{result['confidence']:.0%}"
    lines = [f"# {a} against {b}", ""]
    if result["unlike"]:
        lines += [
            f"Beware: the two were not drawn alike, so what differs is not the checkpoints' alone: "
            f"{'; '.join(result['unlike'])}.",
            "",
        ]
    for group, part in result["groups"].items():
        seeds = f"seeds {part['num_seeds']} and {part['num_seeds_baseline']}"
        lines += [
            f"## {group}: {part['num_problems']} problems, {part['num_samples']} samples a problem, {seeds}"
        ]
        header = ["metric", a, b, f"difference [{level} interval]", "p", "Holm's p", ""]
        n = part["num_samples"]
        of_k = (metric(k) for metric in (pass_at, pass_hat) for k in range(1, n + 1))
        by_name = {metric.name: metric for metric in (*metrics(n), *of_k)}
        rows = [_pair_row(by_name[name], row) for name, row in part["metrics"].items()]
        lines += ["", *aligned(header, rows), ""]
    paired = "by problem and seed" if result["same_seeds"] else "by problem"
    lines += [
        f"Differences are {a} minus {b}, paired {paired}; Holm's p is corrected over all rows above. A difference is "
        f"shown where its interval excludes 0 and Holm's p is at most {1 - result['confidence']:.2g}. {ENTROPIES}"
    ]
    if any(1 in (part["num_seeds"], part["num_seeds_baseline"]) for part in result["groups"].values()):
        lines += [ONE_SEED]
    return "\n".join(lines) + "\n"


def _pair_row(metric: Metric, row: Row) -> list[str]:
    values = [metric.text(row[side]) for side in ("a", "b")]
    verdict = "shown" if row["shown"] else "no difference shown"
    return [
        metric.heading,
        *values,
        change(row, metric),
        f"{row['p_value']:.4f}",
        f"{row['p_holm']:.4f}",
        verdict,
    ]


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, ruler, *rows)
    ]
