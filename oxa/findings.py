"""What the summary says, in words and in a Markdown table; nothing here is computed but what is worth saying first.

`answer` holds a short answer and, for every arm and phase, a claim about pass@1, pass@N and entropy against the
baseline, on all benchmarks pooled where there are several. The answer is about all three and names every arm, better,
worse or neither. Where a difference is not `shown` (oxa/comparison.py), the words are "no difference shown", whatever
its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any, NamedTuple

from oxa.outcomes import BASE, RL

SMALL = 50  # problems of a benchmark below which the Bayesian interval is given, too
Summary = Mapping[str, Any]
Row = Mapping[str, Any]
Columns = dict[str, Callable[[Row], str]]
"""Title, to how an arm's numbers are written there."""
GATES = {"G1": "competence", "G2": "habit", "G3": "headroom", "G4": "no guessing"}
GATE_TITLES = ["gate", "what", "measured", "wanted", "verdict"]
ONE_SEED = "One fine-tuning seed: the intervals do not cover what another seed would change."


class Said(NamedTuple):
    """Of one metric and phase."""

    shown: list[tuple[str, Row]]
    """Arms that are shown to differ, and by how much."""
    others: list[str]

    def in_numbers(self, metric: str) -> str:
        if not self.shown:
            return "no difference shown"
        told = listed([f"{arm} {_change(metric, row)}" for arm, row in self.shown])
        return told + (f", no difference shown for {listed(self.others)}" if self.others else "")

    def in_words(self) -> str:
        if not self.shown:
            return "no difference shown"
        sides = {
            "higher": [arm for arm, row in self.shown if row["difference"] > 0],
            "lower": [arm for arm, row in self.shown if row["difference"] < 0],
        }
        told = [f"{side} for {listed(arms)}" for side, arms in sides.items() if arms]
        return ", ".join(told + ([f"no difference shown for {listed(self.others)}"] if self.others else []))


def asked(num_samples: int) -> list[str]:
    """Metrics that the question is about, where a problem has so many samples."""
    return ["pass_at_1", *([f"pass_at_{num_samples}"] if num_samples > 1 else []), "mean_entropy"]


def answer(summary: Summary) -> dict[str, Any]:
    """{"sentence": …, "claims": [{"claim", "phase", "arm", "text", "shown"}, …]}."""
    group = summary["groups"][-1]  # pooled comes last
    num_samples = summary["arms"][summary["baseline"]][group]["num_samples"]
    metrics = asked(num_samples)
    claims, found = [], dict[str, dict[str, Said]]()
    for phase, ending in _phases(summary).items():
        for metric in metrics:
            for arm in _arms(summary):
                row = summary["differences"][arm + ending][group].get(metric)
                if row is None:
                    continue
                said = found.setdefault(metric, {}).setdefault(phase, Said([], []))
                text = _claim(arm, ending, summary, metric, row)
                claims.append(
                    {
                        "claim": _title(metric),
                        "phase": phase,
                        "arm": arm,
                        "text": text,
                        "shown": row["shown"],
                    }
                )
                if row["shown"]:
                    said.shown.append((arm, row))
                else:
                    said.others.append(arm)
    return {"sentence": _sentence(summary["baseline"], found), "claims": claims}


def _arms(summary: Summary) -> list[str]:
    return [
        name for name in summary["order"] if name not in (BASE, summary["baseline"]) and not name.endswith(RL)
    ]


def _phases(summary: Summary) -> dict[str, str]:
    """Phase, to the ending of its arms' names."""
    after = summary["baseline"] + RL in summary["order"]
    return {"before RL": "", "after RL": RL} if after else {"before RL": ""}


def _sentence(baseline: str, found: Mapping[str, Mapping[str, Said]]) -> str:
    """The first metric with its intervals, the others in words."""
    if not found:
        return f"There is no arm to compare with {baseline}."
    first, *others = found
    parts = [f"{phase} {said.in_numbers(first)}" for phase, said in found[first].items()]
    sentences = [f"{_subject(first)}, against {baseline}: {'; '.join(parts)}."]
    for metric in others:
        words = {phase: said.in_words() for phase, said in found[metric].items()}
        if len(set(words.values())) == 1:
            told = f"{next(iter(words.values()))}, {' and '.join(words).replace(' RL and', ' and')}"
        else:
            told = "; ".join(f"{phase} {text}" for phase, text in words.items())
        sentences.append(f"{_title(metric)[0].upper() + _title(metric)[1:]}: {told}.")
    return " ".join(sentences)


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def _title(metric: str) -> str:
    return "entropy" if metric == "mean_entropy" else metric.replace("pass_at_", "pass@")


def _subject(metric: str) -> str:
    if metric == "mean_entropy":
        return "Entropy"
    return f"Problems solved {_tries(metric)}"


def _tries(metric: str) -> str:
    k = metric.removeprefix("pass_at_")
    return "at the first try" if k == "1" else f"in at least one of {k} tries"


def _claim(arm: str, ending: str, summary: Summary, metric: str, row: Row) -> str:
    baseline, more = summary["baseline"], row["difference"] > 0
    group = summary["groups"][-1]
    sides = [summary["arms"][name + ending][group].get(metric) for name in (arm, baseline)]
    if metric != "mean_entropy" and sides == [1.0, 1.0]:
        return f"{arm}: no difference shown; both solve every problem {_tries(metric)}, which cannot tell them apart"
    if not row["shown"]:
        alone = row["low"] > 0 or row["high"] < 0
        why = f"; p {row['p_holm']:.3f} over {summary['num_comparisons']} comparisons" if alone else ""
        return f"{arm}: no difference shown ({_change(metric, row)}{why})"
    if metric == "mean_entropy":
        return f"{arm}: entropy {'higher' if more else 'lower'} than {baseline}'s, {_change(metric, row)}"
    return (
        f"{arm} solved {'more' if more else 'fewer'} {_tries(metric)} than {baseline}, {_change(metric, row)}"
    )


def _change(metric: str, row: Row) -> str:
    """Signed, with its interval."""
    sign, size = "−" if row["difference"] < 0 else "+", abs(row["difference"])
    text = f"{size:.3f} nats a token" if metric == "mean_entropy" else f"{100 * size:.1f} points"
    return f"{sign}{text} {_interval(metric, row)}"


def _interval(metric: str, row: Mapping[str, Any]) -> str:
    form = "{:+.3f}".format if metric == "mean_entropy" else "{:+.1f}".format
    scale = 1 if metric == "mean_entropy" else 100
    low, high = (form(scale * row[end]).replace("-", "−") for end in ("low", "high"))
    return f"[{low}, {high}]"


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
    return "entropy, nats" if metric == "mean_entropy" else f"{_title(metric)}, %"


def cell(numbers: Mapping[str, Any], metric: str) -> str:
    """A number of such a column, with its interval."""
    scale, form = (1, ".3f") if metric == "mean_entropy" else (100, ".1f")
    return _with_interval(numbers, metric, scale, form)


def delta(metric: str) -> str:
    """Title of a column of differences."""
    return f"Δ {_title(metric)}, {'nats' if metric == 'mean_entropy' else 'points'}"


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


def gates(found: Mapping[str, Any]) -> str:
    """What the gates (oxa/gates.py) say in a sentence: "" where none failed, or where they do not apply."""
    failed = [
        f"{name} ({GATES[name]})" for name, gate in found.get("gates", {}).items() if not gate["passed"]
    ]
    if not failed:
        return ""
    return (
        f"Beware: the base fails {listed(failed)} of the small world's gates, so the arms' comparison measures "
        "something else than which data to train on."
    )


def gate_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Gate, what, measured, wanted and verdict of every value."""
    return [
        [f"{name} {GATES[name]}", what, _measured(row), _bounds(row), "passed" if row["passed"] else "FAILED"]
        for name, gate in found["gates"].items()
        for what, row in gate["rows"].items()
    ]


def _measured(row: Row) -> str:
    if row["value"] is None:
        return "nothing to measure"
    if row["margin"] is None:
        return f"{row['value']:,}"
    return f"{100 * row['value']:.1f}% ± {100 * row['margin']:.1f}"


def _bounds(row: Row) -> str:
    low, high = row["low"], row["high"]
    if high is None:
        return f"{low:,} or more"
    if low == high:
        return f"{low}"
    if low == 0:
        return f"at most {100 * high:.0f}%"
    return f"at least {100 * low:.0f}%" if high == 1 else f"{100 * low:.0f} to {100 * high:.0f}%"


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, ruler, *rows)
    ]
