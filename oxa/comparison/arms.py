"""The comparison of the arms, before and after RL: numbers with intervals, and differences paired by problem.

For a benchmark with P problems, N samples a problem and S fine-tuning seeds (formulas in oxa/comparison/estimators.py):

    numbers      of every arm: pass@k and pass^k for 1 ≤ k ≤ N, maj@N, distinct answers, entropy, tokens, means over its
                 seeds; intervals over problems, of these very seeds (each has its own pass@1 beside it)
    differences  to the baseline of the same phase, paired by problem: an arm's to the baseline's, an arm's after RL to
                 the baseline's after RL, the base's to the baseline's
    gains        what RL added: an arm after RL minus the same arm before it, paired by problem and by seed
    steps        numbers along RL, step 0 being the arm before it

Of several benchmarks `macro` is the mean over benchmarks, each weighing the same, as the paper averages, and `pooled`
the mean over all their problems, each weighing the same; k goes up to the smallest N. How many problems a benchmark has
of a tier, and a group of a benchmark, is no chance: intervals draw problems within these strata.

Differences and gains ask what other seeds would tell, too. How much an arm's seeds differ is estimated from these
alone; the base has none. With one seed the comparison is one of these checkpoints: whether another seed would tell the
same of the arms cannot be known.

A difference is `shown` where its interval excludes 0 and its p-value, corrected by Holm's method, is at most
1 - confidence; anything else is no gain, whatever its sign. All differences and gains of a group in the metrics of the
question (measures.py: pass@1, pass@N and entropy) are one family, of `num_comparisons`: all that is shown on a group is
true together with a chance of `confidence`. Another group asks the same question again and is a family of its own; the
answer (wording.py) reads the last one alone. What is shown must not hang on the draws of the bootstrap, so a difference
that may be is drawn at least RESAMPLES · family / (1 - confidence) times. Other metrics have intervals and p-values of
single comparisons; they are never `shown`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from oxa.comparison import estimators
from oxa.comparison.measures import MACRO, POOLED, Members, Metric, metrics, question
from oxa.comparison.outcomes import BASE, RL, Floats, Outcomes, unlike
from oxa.config.report import Report
from oxa.errors import DataError

RESAMPLES = 100  # expected beyond the p-value at which Holm's method begins, so that it is known to about 10%
NEAR = 2  # times the level: a p-value above it, of RESAMPLES / level draws or more, is not below it with more of them


def summarize(
    section: Report,
    results: Mapping[str, Sequence[Outcomes]],
    along: Mapping[str, Sequence[Mapping[int, Outcomes]]] | None = None,
) -> dict[str, Any]:
    """All numbers of the comparison, by arm, kind of difference and step of RL.

    `results`: by arm (and base, and arms after RL, whose names end in RL), then seed. `along`: by arm without that
    ending, then seed, the outcomes by RL step.
    """
    first = results[BASE][0]
    for name, runs in results.items():
        for run in runs:
            if why := unlike(run, first):
                raise DataError(
                    f"{name} and {BASE} cannot be compared: {why}; evaluate both again with dvc repro"
                )
    groups, benchmarks = groups_of(first), set(first.benchmark.tolist())
    pairs = list(_pairs(section.baseline, list(results)))
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in results}
    kinds: dict[str, dict[str, Any]] = {"differences": {}, "gains": {}}
    for pair in pairs:
        kinds[pair.kind][pair.name] = {}
    steps: dict[str, dict[str, Any]] = {arm: {} for arm in along or {}}
    sizes = {}
    for group, members in groups.items():
        of_group = {arm: _only(runs, members) for arm, runs in results.items()}
        is_macro = group == MACRO
        for arm, numbers in _numbers(section, of_group, is_macro, with_tiers=group in benchmarks).items():
            arms[arm][group] = numbers
        for pair, row in zip(pairs, _differences(section, of_group, pairs, is_macro), strict=True):
            kinds[pair.kind][pair.name][group] = row
        sizes[group] = len(pairs) * len(question(of_group[BASE][0].num_samples))
        for arm, rows in _steps(section, of_group, along or {}, members, is_macro).items():
            steps[arm][group] = rows
    return {
        "baseline": section.baseline,
        "confidence": section.confidence,
        "num_comparisons": sizes,
        "order": list(arms),  # JSON is written with its keys sorted
        "groups": list(groups),
        "arms": arms,
        **kinds,
        "steps": steps,
    }


def groups_of(outcomes: Outcomes) -> dict[str, Members]:
    """Which problems belong to each benchmark, and, where there are several, to MACRO and POOLED: all."""
    names = sorted(set(outcomes.benchmark.tolist()))
    groups = {name: outcomes.benchmark == name for name in names}
    together = dict.fromkeys((MACRO, POOLED), np.ones(len(outcomes.benchmark), bool))
    return groups | (together if len(names) > 1 else {})


def _only(runs: Sequence[Outcomes], members: Members) -> list[Outcomes]:
    return [run.only(members) for run in runs]


def _numbers(
    section: Report, results: Mapping[str, Sequence[Outcomes]], is_macro: bool, *, with_tiers: bool
) -> dict[str, dict[str, Any]]:
    """Of every arm on one group, and on the problems of each tier."""
    numbers = {arm: numbers_of(section, runs, is_macro=is_macro) for arm, runs in results.items()}
    tier = results[BASE][0].tier
    tiers = sorted({name for name in tier.tolist() if name}) if with_tiers else []
    for name in tiers:
        of_tier = {arm: _only(runs, tier == name) for arm, runs in results.items()}
        for arm, part in _numbers(section, of_tier, False, with_tiers=False).items():
            numbers[arm].setdefault("tiers", {})[name] = part
    return numbers


class Pair(NamedTuple):
    kind: str  # differences or gains
    name: str  # its name there
    ours: str
    theirs: str


def _pairs(baseline: str, names: list[str]) -> Iterator[Pair]:
    for name in names:
        other = baseline + RL if name.endswith(RL) else baseline
        if name != other and other in names:
            yield Pair("differences", name, name, other)
    for name in names:
        if name + RL in names:
            yield Pair("gains", name, name + RL, name)


def _differences(
    section: Report, results: Mapping[str, Sequence[Outcomes]], family: Sequence[Pair], is_macro: bool
) -> list[dict[str, Any]]:
    """Of every pair on one group; those in the metrics of the question are corrected together."""
    covered = question(results[BASE][0].num_samples)
    compared = [
        differences(
            section,
            results[pair.ours],
            results[pair.theirs],
            same_seeds=pair.kind == "gains",
            is_macro=is_macro,
            num_comparisons=len(family) * len(covered),
        )
        for pair in family
    ]
    correct(section, [row[metric.name] for row in compared for metric in covered if metric.name in row])
    return compared


def _steps(
    section: Report,
    results: Mapping[str, Sequence[Outcomes]],
    along: Mapping[str, Sequence[Mapping[int, Outcomes]]],
    members: Members,
    is_macro: bool,
) -> dict[str, list[dict[str, Any]]]:
    """Of every arm on one group, numbers by RL step; step 0 is before RL. All are evaluated at the same steps."""
    by_step = {0: {arm: results[arm] for arm in along}} | {
        step: {arm: _only([run[step] for run in runs], members) for arm, runs in along.items()}
        for step in sorted({step for runs in along.values() for run in runs for step in run})
    }
    covered = question(results[BASE][0].num_samples)
    return {
        arm: [
            {"step": step, **numbers_of(section, at[arm], covered, is_macro=is_macro)}
            for step, at in by_step.items()
        ]
        for arm in along
    }


def numbers_of(
    section: Report,
    runs: Sequence[Outcomes],
    only: Sequence[Metric] | None = None,
    *,
    is_macro: bool = False,
) -> dict[str, Any]:
    """Means over an arm's seeds; intervals of these metrics only, by default of all. None: unknown, or no bound.

    Intervals are over problems, of these very seeds: two or three tell nothing of others by themselves.

    `is_macro`: means over benchmarks, each weighing the same, in place of problems.
    """
    first = runs[0]
    known = metrics(first.num_samples)
    numbers: dict[str, Any] = {
        "num_problems": len(first.num_samples),
        "num_samples": int(first.num_samples.min()),
        "num_seeds": len(runs),
        "pass_at_1_by_seed": [mean([run], known[0], is_macro=is_macro) for run in runs],
    }
    for metric in known:
        if metric.interval != "shown":
            numbers[metric.name] = mean(runs, metric, is_macro=is_macro)
    for metric in only or [metric for metric in known if metric.interval]:
        values = observed(runs, metric, is_macro=is_macro)
        finite: Members = np.asarray(np.isfinite(values).all(axis=0))
        if not finite.any():
            numbers[metric.name] = None
            continue
        interval = estimators.bootstrap_interval(
            values[:, finite].mean(axis=0),
            highest=metric.unit.highest,
            **_drawn_in(first.only(finite), is_macro),
            **_resampling(section),
        )
        numbers[metric.name] = interval.estimate
        for end in ("low", "high"):
            bound = getattr(interval, end)
            numbers[f"{metric.name}_{end}"] = bound if math.isfinite(bound) else None
    if only is None:
        # seeds' samples together
        counts = [(run.num_samples, run.num_correct) for run in runs]
        weights = _drawn_in(first, is_macro)["weights"]
        bayes = estimators.bayes_interval(*np.sum(counts, axis=0), weights=weights, **_resampling(section))
        numbers["pass_at_1_bayes_low"], numbers["pass_at_1_bayes_high"] = bayes.low, bayes.high
    return numbers


def observed(runs: Sequence[Outcomes], metric: Metric, *, is_macro: bool = False) -> Floats:
    """A metric of every seed and problem, [S, P]; `is_macro`: of each benchmark by itself, as means of tokens need."""
    benchmark = runs[0].benchmark
    values = np.empty((len(runs), len(benchmark)))
    everything: Members = np.ones(len(benchmark), bool)
    for members in [benchmark == name for name in set(benchmark.tolist())] if is_macro else [everything]:
        for place, run in enumerate(_only(runs, members)):
            values[place, members] = metric.values(run.num_samples, run)
    return values


def mean(runs: Sequence[Outcomes], metric: Metric, *, is_macro: bool = False) -> float:
    """Over seeds and problems, or benchmarks."""
    weights = _drawn_in(runs[0], is_macro)["weights"]
    return float(np.average(observed(runs, metric, is_macro=is_macro).mean(axis=0), weights=weights))


def _drawn_in(outcomes: Outcomes, is_macro: bool) -> dict[str, Any]:
    """Strata of these problems, and what they weigh in the mean."""
    benchmark, tier = outcomes.benchmark.tolist(), outcomes.tier.tolist()
    sizes = Counter(benchmark)
    return {
        "strata": [f"{name}\n{of}" for name, of in zip(benchmark, tier, strict=True)],
        "weights": [1 / sizes[name] for name in benchmark] if is_macro else None,
    }


def differences(
    section: Report,
    ours: Sequence[Outcomes],
    theirs: Sequence[Outcomes],
    *,
    only: Sequence[Metric] | None = None,
    same_seeds: bool = False,
    is_macro: bool = False,
    num_comparisons: int = 1,
) -> dict[str, Any]:
    """Ours minus theirs by metric, of all metrics or only of these; `correct` then says which are shown.

    Compared are the problems on which both have a value (an empty answer has no entropy); left out is a metric in which
    these tell nothing (an entropy on one problem). Metrics given as `only` are all of the family of `num_comparisons`.
    `is_macro`: as in numbers_of.
    """
    first = ours[0]
    rows: dict[str, Any] = {
        "num_problems": len(first.num_samples),
        "num_samples": int(first.num_samples.min()),
        "num_seeds": len(ours),
        "num_seeds_baseline": len(theirs),
    }
    level = 1 - section.confidence
    needed = math.ceil(RESAMPLES * num_comparisons / level)
    for metric in only or [metric for metric in metrics(first.num_samples) if metric.interval]:
        a, b = (observed(runs, metric, is_macro=is_macro) for runs in (ours, theirs))
        finite: Members = np.isfinite(np.concatenate([a, b])).all(axis=0)
        if not finite.any():
            continue
        compare = partial(
            estimators.paired_difference,
            a[:, finite],
            b[:, finite],
            same_seeds=same_seeds,
            highest=metric.unit.highest,
            **_drawn_in(first.only(finite), is_macro),
        )
        resampling = _resampling(section)
        in_family = only or metric.role == "question"
        if in_family:
            resampling["resamples"] = max(section.resamples, math.ceil(RESAMPLES / level))
        difference = compare(**resampling)
        if in_family and resampling["resamples"] < needed and difference.p_value <= NEAR * level:
            difference = compare(**resampling | {"resamples": needed})
        if math.isfinite(difference.low) and math.isfinite(difference.high):
            rows[metric.name] = difference._asdict() | {"p_holm": None, "shown": False}
    return rows


def correct(section: Report, rows: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all of these rows, in place, and which of them are shown."""
    for row, p_holm in zip(rows, estimators.holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = float(p_holm)
        excludes_0 = row["low"] > 0 or row["high"] < 0
        row["shown"] = bool(excludes_0 and p_holm <= 1 - section.confidence)


def _resampling(section: Report) -> dict[str, Any]:
    return {"resamples": section.resamples, "confidence": section.confidence, "seed": section.seed}
