"""What the summary says, in words and in a Markdown table; nothing here is computed but what is worth saying first.

`answer` holds one sentence and, for every arm and phase, a claim about pass@1, pass@N and entropy against the baseline,
on all benchmarks pooled where there are several. The sentence is about the first of these metrics in which any arm is
shown to differ, and names all arms, better, worse or neither. Where a difference is not `shown` (oxa/comparison.py),
the words are "no difference shown", whatever its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SMALL = 50  # problems of a benchmark below which the Bayesian interval is given, too
Summary = Mapping[str, Any]


class Said(NamedTuple):
    """Of one metric and phase."""

    shown: list[str]
    """Arms that are shown to differ, with their differences."""
    others: list[str]

    def __str__(self) -> str:
        if not self.shown:
            return "no difference shown"
        rest = f", no difference shown for {_listed(self.others)}" if self.others else ""
        return _listed(self.shown) + rest


def answer(summary: Summary) -> dict[str, Any]:
    """{"sentence": …, "claims": [{"claim", "phase", "arm", "text", "shown"}, …]}."""
    group = summary["groups"][-1]  # pooled comes last
    num_samples = summary["arms"][summary["baseline"]][group]["num_samples"]
    metrics = ["pass_at_1", *([f"pass_at_{num_samples}"] if num_samples > 1 else []), "mean_entropy"]
    claims, found = [], dict[str, dict[str, Said]]()
    for phase, ending in _phases(summary).items():
        for metric in metrics:
            for arm in _arms(summary):
                row = summary["differences"][arm + ending][group].get(metric)
                if row is None:
                    continue
                said = found.setdefault(metric, {}).setdefault(phase, Said([], []))
                text = _claim(arm, summary, metric, row)
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
                    said.shown.append(f"{arm} {_change(metric, row)}")
                else:
                    said.others.append(arm)
    return {"sentence": _sentence(summary["baseline"], found), "claims": claims}


def _arms(summary: Summary) -> list[str]:
    return [
        name
        for name in summary["order"]
        if name not in ("base", summary["baseline"]) and not name.endswith("-rl")
    ]


def _phases(summary: Summary) -> dict[str, str]:
    """Phase, to the ending of its arms' names."""
    after = f"{summary['baseline']}-rl" in summary["order"]
    return {"before RL": "", "after RL": "-rl"} if after else {"before RL": ""}


def _sentence(baseline: str, found: Mapping[str, Mapping[str, Said]]) -> str:
    if not found:
        return f"There is no arm to compare with {baseline}."
    titles = [_title(metric) for metric in found]
    metric = next((metric for metric, phases in found.items() if any(s.shown for s in phases.values())), None)
    if metric is None:
        phases = "before or after RL" if len(next(iter(found.values()))) > 1 else "before RL"
        what = " or ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
        return f"No arm is shown to differ from {baseline} in {what}, {phases}."
    before = titles[: titles.index(_title(metric))]
    opening = f"No difference from {baseline} is shown in {' or '.join(before)}. " if before else ""
    parts = [f"{phase} {said}" for phase, said in found[metric].items()]
    return f"{opening}{_subject(metric)}, against {baseline}: {'; '.join(parts)}."


def _listed(items: Sequence[str]) -> str:
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


def _claim(arm: str, summary: Summary, metric: str, row: Mapping[str, Any]) -> str:
    baseline, more = summary["baseline"], row["difference"] > 0
    if not row["shown"]:
        alone = row["low"] > 0 or row["high"] < 0
        why = f"; p {row['p_holm']:.3f} over {summary['num_comparisons']} comparisons" if alone else ""
        return f"{arm}: no difference shown ({_change(metric, row)}{why})"
    size, interval = _size(metric, row), _interval(metric, row)
    if metric == "mean_entropy":
        return f"{arm}: entropy {'higher' if more else 'lower'} than {baseline}'s by {size} {interval}"
    return f"{arm} solved {size} {'more' if more else 'fewer'} {_tries(metric)} than {baseline} {interval}"


def _size(metric: str, row: Mapping[str, Any]) -> str:
    size = abs(row["difference"])
    return f"{size:.3f} nats a token" if metric == "mean_entropy" else f"{100 * size:.1f} points"


def _change(metric: str, row: Mapping[str, Any]) -> str:
    """Signed, with its interval."""
    sign = "−" if row["difference"] < 0 else "+"
    return f"{sign}{_size(metric, row)} {_interval(metric, row)}"


def _interval(metric: str, row: Mapping[str, Any]) -> str:
    form = "{:+.3f}".format if metric == "mean_entropy" else "{:+.1f}".format
    scale = 1 if metric == "mean_entropy" else 100
    low, high = (form(scale * row[end]).replace("-", "−") for end in ("low", "high"))
    return f"[{low}, {high}]"


def table(summary: Summary) -> str:
    """The comparison as Markdown, readable in a terminal too; percentages, entropies in nats a token."""
    baseline, level = summary["baseline"], f"{summary['confidence']:.0%}"
    lines = ["# Comparison of the arms", ""]
    if "answer" in summary:
        lines += [summary["answer"]["sentence"], ""]
    for group in summary["groups"]:
        lines += [_heading(summary, group), "", *_numbers(summary, group), ""]
        lines += [*_differences(summary, group), ""]
    alpha = 1 - summary["confidence"]
    lines += [
        f"Intervals: {level}, bootstrap over problems and samples (and seeds, where there are several). Differences "
        "are paired by problem; p is corrected by Holm's method over the "
        f"{summary['num_comparisons']} between arms, and apart from these over the {summary['num_beside']} others (the "
        "base, and what RL added). "
        f'"±" marks an interval that holds 0 or p > {alpha:.2g}: no difference shown.',
    ]
    if any(summary["arms"][baseline][group]["num_problems"] < SMALL for group in summary["groups"]):
        lines += [
            f"Bayes: {level} credible interval of pass@1 on these very problems, each rate with a uniform prior, which "
            "pulls towards 50% where samples are few."
        ]
    if summary["arms"][baseline][summary["groups"][0]]["num_seeds"] == 1:
        lines += ["One fine-tuning seed: the intervals do not cover what another seed would change."]
    return "\n".join(lines) + "\n"


def _heading(summary: Summary, group: str) -> str:
    counts = summary["arms"]["base"][group]
    samples = f"{counts['num_samples']} sample{'s' * (counts['num_samples'] > 1)} a problem"
    heading = f"## {group}: {counts['num_problems']} problems, {samples}"
    if group in summary["guess_rate"]:
        rate = 100 * summary["guess_rate"][group]
        heading += f"; always giving the most frequent answer solves {rate:.1f}%"
    return heading


def _numbers(summary: Summary, group: str) -> list[str]:
    counts = summary["arms"]["base"][group]
    n = counts["num_samples"]
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "seeds": lambda numbers: str(numbers["num_seeds"]),
        "pass@1, %": lambda numbers: _with_interval(numbers, "pass_at_1"),
    }
    if counts["num_problems"] < SMALL:
        columns["Bayes, %"] = lambda numbers: _ends(numbers, "pass_at_1_bayes", 100, ".1f")
    if n > 1:
        columns[f"pass@{n}, %"] = lambda numbers: _with_interval(numbers, f"pass_at_{n}")
        if f"maj_at_{n}" in counts:
            columns[f"maj@{n}, %"] = lambda numbers: _with_interval(numbers, f"maj_at_{n}")
        columns[f"pass^{n}, %"] = lambda numbers: _with_interval(numbers, f"pass_hat_{n}")
        columns["distinct"] = lambda numbers: f"{numbers['distinct_answers']:.1f}"
    columns["entropy, nats"] = lambda numbers: _with_interval(numbers, "mean_entropy", 1, ".3f")
    columns["tokens"] = lambda numbers: f"{numbers['mean_tokens']:.0f}"
    columns["cut, %"] = lambda numbers: f"{100 * numbers['truncated']:.1f}"
    rows = [
        [arm, *(cell(summary["arms"][arm][group]) for cell in columns.values())] for arm in summary["order"]
    ]
    return aligned(["arm", *columns], rows)


def _differences(summary: Summary, group: str) -> list[str]:
    """Every arm against the baseline of its phase, and against itself before RL."""
    baseline, n = summary["baseline"], summary["arms"]["base"][group]["num_samples"]
    metrics = ["pass_at_1", *([f"pass_at_{n}"] if n > 1 else []), "mean_entropy"]
    compared = {
        f"{name} − {baseline}{'-rl' * name.endswith('-rl')}": found[group]
        for name, found in sorted(
            summary["differences"].items(), key=lambda item: summary["order"].index(item[0])
        )
    }
    gains = summary["gains"]
    compared |= {f"{arm}-rl − {arm}": gains[arm][group] for arm in summary["order"] if arm in gains}
    rows = [
        [name, *(_difference(found.get(metric), metric) for metric in metrics)]
        for name, found in compared.items()
    ]
    titles = [f"Δ {_title(metric)}, {'nats' if metric == 'mean_entropy' else 'points'}" for metric in metrics]
    return aligned(["difference", *titles], rows) if rows else []


def _with_interval(numbers: Mapping[str, Any], name: str, scale: float = 100, form: str = ".1f") -> str:
    if numbers[name] is None:
        return "–"
    return f"{scale * numbers[name]:{form}} {_ends(numbers, name, scale, form)}"


def _ends(numbers: Mapping[str, Any], name: str, scale: float, form: str) -> str:
    low, high = (f"{scale * numbers[f'{name}_{end}']:{form}}" for end in ("low", "high"))
    return f"[{low}, {high}]"


def _difference(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return "–"
    scale, form = (1, "+.3f") if metric == "mean_entropy" else (100, "+.1f")
    mean, low, high = (f"{scale * found[name]:{form}}" for name in ("difference", "low", "high"))
    return f"{'' if found['shown'] else '± '}{mean} [{low}, {high}], p {found['p_holm']:.3f}"


def aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, ruler, *rows)
    ]
