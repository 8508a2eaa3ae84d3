"""The comparison of the arms: summary.json, a Markdown table and the plots (oxa/plots.py).

Everything is read from the files of earlier stages; correctness comes from the stored verdicts of every generation.
For a benchmark with P problems, N samples a problem and S fine-tuning seeds:

    pass@k                      mean over problems and seeds of the unbiased estimate, 1 ≤ k ≤ N (oxa/metrics.py)
    interval                    bootstrap over problems, and over seeds where S > 1
    difference to the baseline  paired: the same problems drawn for both arms

`pooled` puts the problems of all benchmarks together, each weighing the same, for k up to the smallest N. A difference
whose interval holds 0 is reported as "no difference shown", whatever its sign. p-values are of single comparisons: they
are not corrected for how many there are. `guess_rate` of a benchmark: the share that one solves by always giving the
most frequent gold answer of the problem's tier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxa import metrics as statistics
from oxa import records
from oxa.config import Report
from oxa.errors import DataError

Floats = NDArray[np.float64]

POOLED = "pooled"
BASE = "base"
COLUMNS = ["benchmark", "problem_id", "tier", "num_tokens", "finish_reason", "verdict", "mean_entropy"]


class Outcomes(NamedTuple):
    """What one checkpoint did on each problem: arrays [P], in the order of (benchmark, problem_id)."""

    benchmark: NDArray[Any]
    problem_id: NDArray[Any]
    tier: NDArray[Any]
    num_samples: NDArray[np.int64]
    num_correct: NDArray[np.int64]
    mean_entropy: Floats  # nats a token, over the problem's samples that have one; NaN where none has
    mean_tokens: Floats
    truncated: Floats  # share of the samples that were cut by length


def run(
    section: Report,
    arms: list[str],
    seeds: list[int],
    *,
    metrics: Path,
    scores: Path,
    train_sets: Path,
    generations: Path,
    summary: Path,
    output: Path,
    log: records.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes `summary` (JSON) and, into the folder `output`, table.md and the plots; returns the summary.

    Reads, under `metrics`, the stages' metrics and the training journals; under `scores`, `train_sets` and
    `generations`, their tables. `scratch` stays empty: a rerun takes seconds.
    """
    from oxa import plots

    results = {BASE: [outcomes(generations / f"{BASE}.parquet")]}
    for arm in arms:
        results[arm] = [outcomes(generations / f"{arm}-{seed}.parquet") for seed in seeds]
    _require_same_problems(results, generations)
    found = summarize(section, results)
    exams = records.read_json(metrics / "ingest.json")["benchmarks"]
    found["guess_rate"] = {name: exams[name]["guess_rate"] for name in found["groups"] if name != POOLED}
    found["selection"] = {
        arm: _selection(records.read_json(metrics / "selection" / f"{arm}.json")) for arm in arms
    }
    output.mkdir(parents=True, exist_ok=True)
    with records.atomic(output / "table.md") as temporary:
        temporary.write_text(table(found), encoding="utf-8")
    plots.ppl(output / "ppl.png", arms, metrics=metrics, scores=scores, train_sets=train_sets)
    plots.pass_at_k(output / "pass_at_k.png", found)
    plots.training(output / "training.png", arms, seeds, metrics=metrics)
    plots.funnel(output / "funnel.png", arms, metrics=metrics)
    records.write_json(summary, found)
    return found


def outcomes(path: Path) -> Outcomes:
    """One checkpoint's generations, gathered by problem."""
    generated = records.read(path, records.GENERATIONS, COLUMNS)
    if not len(generated):
        raise DataError(f"{path}: no generations; check that ingest.benchmarks has problems")
    entropy = generated["mean_entropy"].cast(pa.float64())
    columns = {
        "correct": pc.equal(generated["verdict"], "correct").cast(pa.int64()),
        "cut": pc.equal(generated["finish_reason"], "length").cast(pa.float64()),
        "entropy": pc.if_else(pc.is_finite(entropy), entropy, None),
    }
    for name, column in columns.items():
        generated = generated.append_column(name, column)
    keys = ["benchmark", "problem_id", "tier"]
    # one thread: sums of floats depend on their order
    grouped = generated.group_by(keys, use_threads=False).aggregate(
        [
            ("correct", "count"),
            ("correct", "sum"),
            ("entropy", "mean"),
            ("num_tokens", "mean"),
            ("cut", "mean"),
        ]
    )
    grouped = grouped.sort_by([(key, "ascending") for key in keys])
    names = [*keys, "correct_count", "correct_sum", "entropy_mean", "num_tokens_mean", "cut_mean"]
    return Outcomes(*(grouped[name].to_numpy() for name in names))


def _require_same_problems(results: dict[str, list[Outcomes]], folder: Path) -> None:
    first = results[BASE][0]
    for name, runs in results.items():
        for one in runs:
            same = np.array_equal(one.problem_id, first.problem_id) and np.array_equal(
                one.benchmark, first.benchmark
            )
            if not same or not np.array_equal(one.num_samples, first.num_samples):
                raise DataError(
                    f"{folder}: {name} and {BASE} were evaluated on other problems or numbers of samples, so "
                    "they cannot be compared; evaluate both again with dvc repro"
                )


def summarize(section: Report, results: dict[str, list[Outcomes]]) -> dict[str, Any]:
    """Every arm's numbers on every benchmark, and its differences from the baseline; `results` is by arm, then seed."""
    first = results[BASE][0]
    names = sorted(set(first.benchmark.tolist()))
    groups = {name: first.benchmark == name for name in names}
    if len(names) > 1:
        groups[POOLED] = np.ones(len(first.benchmark), bool)
    arms: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for arm, runs in results.items():
        arms[arm] = {}
        for name, members in groups.items():
            arms[arm][name] = _numbers(section, runs, members)
            tiers = sorted({tier for tier in first.tier[members].tolist() if tier})
            if tiers and name != POOLED:
                arms[arm][name]["tiers"] = {
                    tier: _numbers(section, runs, members & (first.tier == tier)) for tier in tiers
                }
        if arm != section.baseline:
            differences[arm] = {
                name: _differences(section, runs, results[section.baseline], members)
                for name, members in groups.items()
            }
    return {
        "baseline": section.baseline,
        "confidence": section.confidence,
        "order": list(arms),  # JSON is written with its keys sorted
        "groups": list(groups),
        "arms": arms,
        "differences": differences,
    }


def _numbers(section: Report, runs: list[Outcomes], members: NDArray[np.bool_]) -> dict[str, Any]:
    num_samples = int(runs[0].num_samples[members].min())
    numbers: dict[str, Any] = {
        "num_problems": int(members.sum()),
        "num_samples": num_samples,
        "num_seeds": len(runs),
        "mean_entropy": _mean(run.mean_entropy[members] for run in runs),
        "mean_tokens": _mean(run.mean_tokens[members] for run in runs),
        "truncated": _mean(run.truncated[members] for run in runs),
    }
    for k in statistics.k_values(num_samples):
        interval = statistics.bootstrap_interval(_pass(runs, members, k), **_resampling(section))
        numbers[f"pass_at_{k}"] = interval.estimate
        numbers[f"pass_at_{k}_low"], numbers[f"pass_at_{k}_high"] = interval.low, interval.high
    return numbers


def _differences(
    section: Report, runs: list[Outcomes], baseline: list[Outcomes], members: NDArray[np.bool_]
) -> dict[str, Any]:
    num_samples = int(runs[0].num_samples[members].min())
    pairs = {
        f"pass_at_{k}": (_pass(runs, members, k), _pass(baseline, members, k))
        for k in statistics.k_values(num_samples)
    }
    entropies = [np.stack([run.mean_entropy[members] for run in group]) for group in (runs, baseline)]
    if all(np.isfinite(values).all() for values in entropies):
        pairs["mean_entropy"] = (entropies[0], entropies[1])
    counts = {
        "num_problems": int(members.sum()),
        "num_samples": num_samples,
        "num_seeds": len(runs),
        "num_seeds_baseline": len(baseline),
    }
    rows: dict[str, Any] = {}
    for name, (ours, theirs) in pairs.items():
        found = statistics.paired_difference(ours, theirs, **_resampling(section))
        rows[name] = {**found._asdict(), "shown": found.low > 0 or found.high < 0}
    return counts | rows


def _pass(runs: list[Outcomes], members: NDArray[np.bool_], k: int) -> Floats:
    """pass@k by seed and problem, [S, P]."""
    return np.stack(
        [statistics.pass_at_k(run.num_samples[members], run.num_correct[members], k) for run in runs]
    )


def _mean(values: Iterable[Floats]) -> float | None:
    everything = np.concatenate(list(values))
    finite = everything[np.isfinite(everything)]
    return float(finite.mean()) if len(finite) else None


def _resampling(section: Report) -> dict[str, Any]:
    return {"resamples": section.resamples, "confidence": section.confidence, "seed": section.seed}


def _selection(found: dict[str, Any]) -> dict[str, Any]:
    sets = {name: found[name] for name in ("ce", "ul") if name in found}
    keys = ("chosen", "eligible", "problems", "ppl_mean", "mean_tokens")
    return {name: {key: part[key] for key in keys} for name, part in sets.items()} | {
        "shortage": found["shortage"]
    }


def table(summary: dict[str, Any]) -> str:
    """The comparison as Markdown, readable in a terminal too; percentages, entropies in nats a token."""
    baseline, level = summary["baseline"], f"{summary['confidence']:.0%}"
    lines = ["# Comparison of the arms", ""]
    for group in summary["groups"]:
        counts = summary["arms"][BASE][group]
        samples = f"{counts['num_samples']} sample{'s' * (counts['num_samples'] > 1)} a problem"
        heading = f"## {group}: {counts['num_problems']} problems, {samples}"
        if group in summary["guess_rate"]:
            rate = 100 * summary["guess_rate"][group]
            heading += f"; always giving the most frequent answer solves {rate:.1f}%"
        lines += [heading, ""]
        n = counts["num_samples"]
        shown = [1] if n == 1 else [1, n]
        header = ["arm", "seeds"]
        header += [f"pass@{k}, % [{level} interval]" for k in shown]
        header += [f"Δ pass@{k} to {baseline}, points" for k in shown]
        header += ["entropy, nats", "tokens", "cut, %"]
        rows = []
        for arm in summary["order"]:
            numbers = summary["arms"][arm][group]
            row = [arm, str(numbers["num_seeds"])]
            row += [_percent(numbers, k) for k in shown]
            difference = summary["differences"].get(arm, {}).get(group)
            row += [_difference(difference[f"pass_at_{k}"]) if difference else "(baseline)" for k in shown]
            entropy = numbers["mean_entropy"]
            row += ["–" if entropy is None else f"{entropy:.3f}", f"{numbers['mean_tokens']:.0f}"]
            row += [f"{100 * numbers['truncated']:.1f}"]
            rows.append(row)
        lines += [*_aligned(header, rows), ""]
    lines += [
        f"Δ is the paired difference to {baseline} on the same problems, with its {level} bootstrap interval and "
        'two-sided p. "±" marks an interval that holds 0: no difference shown. p is not corrected for the number of '
        "comparisons.",
    ]
    if summary["arms"][baseline][summary["groups"][0]]["num_seeds"] == 1:
        lines += ["One fine-tuning seed: the intervals do not cover what another seed would change."]
    return "\n".join(lines) + "\n"


def _percent(numbers: dict[str, Any], k: int) -> str:
    mean, low, high = (100 * numbers[f"pass_at_{k}{end}"] for end in ("", "_low", "_high"))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _difference(found: dict[str, Any]) -> str:
    mean, low, high = (100 * found[name] for name in ("difference", "low", "high"))
    mark = "" if found["shown"] else "± "
    return f"{mark}{mean:+.1f} [{low:+.1f}, {high:+.1f}], p {found['p_value']:.3f}"


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    ruler = ["-" * width for width in widths]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, ruler, *rows)
    ]
