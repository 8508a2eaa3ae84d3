"""The comparison of the arms, before and after RL: numbers with intervals, and differences paired by problem.

For a benchmark with P problems, N samples a problem and S fine-tuning seeds (formulas in oxa/comparison/estimators.py):

    numbers      of every arm: pass@k and pass^k for 1 ≤ k ≤ N, maj@N, distinct answers, entropy, tokens; two-level
                 bootstrap intervals over problems and samples, over seeds where S > 1
    differences  to the baseline of the same phase, paired by problem: an arm's to the baseline's, an arm's after RL to
                 the baseline's after RL, the base's to the baseline's
    gains        what RL added: an arm after RL minus the same arm before it, paired by problem and by seed
    steps        numbers along RL, step 0 being the arm before it

`pooled` puts the problems of all benchmarks together, each weighing the same, for k up to the smallest N.

How much seeds differ is estimated from all arms of a phase together; the base has none.

A difference is `shown` where its interval excludes 0 and its p-value, corrected by Holm's method, is at most
1 - confidence; anything else is no gain, whatever its sign. Every benchmark, and `pooled`, has two families of
comparisons, in the metrics of the question (measures.py: pass@1, pass@N and entropy): the arms' differences to the
baseline before and after RL (`num_comparisons`), and what stands beside these, the gains and the base (`num_beside`).
What is shown must not hang on the draws of the bootstrap, so these take at least RESAMPLES · family / (1 - confidence)
of them. Other metrics have intervals and p-values of single comparisons; they are never `shown`.

Where every problem is solved, or none is, a bootstrap sees no spread. P such problems leave room for a rate that is off
by up to 1 - (α/2)^(1/P) (Clopper & Pearson 1934), and that far the intervals reach there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from oxa.comparison import estimators
from oxa.comparison.measures import POOLED, Members, Metric, metrics, question
from oxa.comparison.outcomes import BASE, RL, Floats, Outcomes, unlike
from oxa.config.report import Report
from oxa.errors import DataError

RESAMPLES = 100  # expected beyond the p-value at which Holm's method begins, so that it is known to about 10%


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
    groups = groups_of(first)
    pairs = list(_pairs(section.baseline, list(results)))
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in results}
    kinds: dict[str, dict[str, Any]] = {"differences": {}, "gains": {}}
    for pair in pairs:
        kinds[pair.kind][pair.name] = {}
    steps: dict[str, dict[str, Any]] = {arm: {} for arm in along or {}}
    sizes = {}
    for group, members in groups.items():
        of_group = {arm: _only(runs, members) for arm, runs in results.items()}
        for arm, numbers in _numbers(section, of_group, with_tiers=group != POOLED).items():
            arms[arm][group] = numbers
        for is_beside in (False, True):
            family = [pair for pair in pairs if (pair.kind == "gains" or pair.name == BASE) == is_beside]
            compared = _differences(section, of_group, family)
            sizes[is_beside] = len(family) * len(question(of_group[BASE][0].num_samples))
            for pair, row in zip(family, compared, strict=True):
                kinds[pair.kind][pair.name][group] = row
        for arm, rows in _steps(section, of_group, along or {}, members).items():
            steps[arm][group] = rows
    return {
        "baseline": section.baseline,
        "confidence": section.confidence,
        "num_comparisons": sizes[False],
        "num_beside": sizes[True],
        "order": list(arms),  # JSON is written with its keys sorted
        "groups": list(groups),
        "arms": arms,
        **kinds,
        "steps": steps,
    }


def groups_of(outcomes: Outcomes) -> dict[str, Members]:
    """Which problems belong to each benchmark, and to all where there are several."""
    names = sorted(set(outcomes.benchmark.tolist()))
    groups = {name: outcomes.benchmark == name for name in names}
    return groups | ({POOLED: np.ones(len(outcomes.benchmark), bool)} if len(names) > 1 else {})


def _only(runs: Sequence[Outcomes], members: Members) -> list[Outcomes]:
    return [run.only(members) for run in runs]


def _numbers(
    section: Report, results: Mapping[str, Sequence[Outcomes]], *, with_tiers: bool
) -> dict[str, dict[str, Any]]:
    """Of every arm on one group, and on the problems of each tier."""
    numbers = {arm: numbers_of(section, runs, _phase(results, arm)) for arm, runs in results.items()}
    tier = results[BASE][0].tier
    tiers = sorted({name for name in tier.tolist() if name}) if with_tiers else []
    for name in tiers:
        of_tier = {arm: _only(runs, tier == name) for arm, runs in results.items()}
        for arm, part in _numbers(section, of_tier, with_tiers=False).items():
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
    section: Report, results: Mapping[str, Sequence[Outcomes]], family: Sequence[Pair]
) -> list[dict[str, Any]]:
    """Of every pair on one group; those in the metrics of the question are corrected together."""
    covered = question(results[BASE][0].num_samples)
    compared = [
        differences(
            section,
            results[pair.ours],
            results[pair.theirs],
            same_seeds=pair.kind == "gains",
            pool=partial(_pool, results, pair),
            num_comparisons=len(family) * len(covered),
        )
        for pair in family
    ]
    correct(section, [row[metric.name] for row in compared for metric in covered if metric.name in row])
    return compared


def _pool(results: Mapping[str, Sequence[Outcomes]], pair: Pair, metric: Metric) -> list[Floats]:
    """A metric of all arms of the pair's phase, or, for a gain, of all gains: arrays [S, P]."""
    if pair.kind == "differences":
        return [observed(runs, metric) for runs in _phase(results, pair.name)]
    return [
        observed(results[name + RL], metric) - observed(runs, metric)
        for name, runs in results.items()
        if name + RL in results
    ]


def _steps(
    section: Report,
    results: Mapping[str, Sequence[Outcomes]],
    along: Mapping[str, Sequence[Mapping[int, Outcomes]]],
    members: Members,
) -> dict[str, list[dict[str, Any]]]:
    """Of every arm on one group, numbers by RL step; step 0 is before RL. All are evaluated at the same steps."""
    by_step = {0: {arm: results[arm] for arm in along}} | {
        step: {arm: _only([run[step] for run in runs], members) for arm, runs in along.items()}
        for step in sorted({step for runs in along.values() for run in runs for step in run})
    }
    covered = question(results[BASE][0].num_samples)
    return {
        arm: [
            {"step": step, **numbers_of(section, at[arm], at.values(), covered)}
            for step, at in by_step.items()
        ]
        for arm in along
    }


def _phase(results: Mapping[str, Sequence[Outcomes]], name: str) -> list[Sequence[Outcomes]]:
    """The arms of the same phase, before or after RL."""
    return [
        runs for other, runs in results.items() if other != BASE and other.endswith(RL) == name.endswith(RL)
    ]


def numbers_of(
    section: Report,
    runs: Sequence[Outcomes],
    peers: Iterable[Sequence[Outcomes]],
    only: Sequence[Metric] | None = None,
) -> dict[str, Any]:
    """Numbers of an arm's seeds; intervals of these metrics only, by default of all.

    `peers`: the arms whose seeds tell how much seeds differ.
    """
    first, peers = runs[0], list(peers)
    known = metrics(first.num_samples)
    numbers: dict[str, Any] = {
        "num_problems": len(first.num_samples),
        "num_samples": int(first.num_samples.min()),
        "num_seeds": len(runs),
        "pass_at_1_by_seed": [float(values.mean()) for values in observed(runs, known[0])],
    }
    for metric in known:
        if metric.interval != "shown":
            numbers[metric.name] = float(observed(runs, metric).mean())
    for metric in only or [metric for metric in known if metric.interval]:
        values, again = observed(runs, metric), redrawn(runs, metric)
        finite = np.isfinite(values).all(axis=0)
        if not finite.any():
            numbers[metric.name] = None
            continue
        pool = _finite([observed(peer, metric)[:, finite] for peer in peers])
        interval = estimators.bootstrap_interval(
            values[:, finite], again[:, finite], pool=pool or None, **_resampling(section)
        )
        room = _room(section, metric, values)
        numbers[metric.name] = interval.estimate
        numbers[f"{metric.name}_low"] = max(0.0, interval.low - room)
        numbers[f"{metric.name}_high"] = min(metric.unit.highest, interval.high + room)
    if only is None:
        # seeds' samples together
        counts = [(run.num_samples, run.num_correct) for run in runs]
        bayes = estimators.bayes_interval(*np.sum(counts, axis=0), **_resampling(section))
        numbers["pass_at_1_bayes_low"], numbers["pass_at_1_bayes_high"] = bayes.low, bayes.high
    return numbers


def _finite(arrays: Iterable[Floats]) -> list[Floats]:
    return [array for array in arrays if np.isfinite(array).all()]


def observed(runs: Sequence[Outcomes], metric: Metric) -> Floats:
    """A metric of every seed and problem, [S, P]."""
    return np.stack([metric.values(run.num_samples, run) for run in runs])


def redrawn(runs: Sequence[Outcomes], metric: Metric) -> Floats:
    """The same with the samples drawn again, [S, P, M]."""
    return np.stack([metric.values(run.num_samples[:, None], run.redrawn) for run in runs])


def differences(
    section: Report,
    ours: Sequence[Outcomes],
    theirs: Sequence[Outcomes],
    *,
    only: Sequence[Metric] | None = None,
    same_seeds: bool = False,
    pool: Callable[[Metric], list[Floats]] | None = None,
    num_comparisons: int = 1,
) -> dict[str, Any]:
    """Ours minus theirs by metric, of all metrics or only of these; `correct` then says which are shown.

    Compared are the problems on which both have a value (an empty answer has no entropy). Metrics given as `only` are
    all of the family of `num_comparisons`. `pool`: of a metric, the values of all arms whose seeds tell how much seeds
    differ; without it ours and theirs.
    """
    first = ours[0]
    rows: dict[str, Any] = {
        "num_problems": len(first.num_samples),
        "num_samples": int(first.num_samples.min()),
        "num_seeds": len(ours),
        "num_seeds_baseline": len(theirs),
    }
    needed = math.ceil(RESAMPLES * num_comparisons / (1 - section.confidence))
    for metric in only or [metric for metric in metrics(first.num_samples) if metric.interval]:
        a, b = observed(ours, metric), observed(theirs, metric)
        finite = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
        if not finite.any():
            continue
        resampling = _resampling(section)
        if only or metric.role == "question":
            resampling["resamples"] = max(section.resamples, needed)
        peers = _finite(values[:, finite] for values in pool(metric)) if pool else []
        difference = estimators.paired_difference(
            a[:, finite],
            b[:, finite],
            (redrawn(ours, metric)[:, finite], redrawn(theirs, metric)[:, finite]),
            same_seeds=same_seeds,
            pool=peers or None,
            **resampling,
        )
        room = _room(section, metric, np.concatenate([a, b]))
        rows[metric.name] = difference._asdict() | {
            "low": difference.low - room,
            "high": difference.high + room,
            "p_holm": None,
            "shown": False,
        }
    return rows


def _room(section: Report, metric: Metric, values: Floats) -> float:
    """How far a rate may be off where all values [S, P] are 1, or all 0; else 0, since they have a spread."""
    if metric.unit.highest != 1 or not (values == values[0, 0]).all() or values[0, 0] not in (0.0, 1.0):
        return 0.0
    return float(1 - ((1 - section.confidence) / 2) ** (1 / values.shape[1]))


def correct(section: Report, rows: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all of these rows, in place, and which of them are shown."""
    for row, p_holm in zip(rows, estimators.holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = float(p_holm)
        excludes_0 = row["low"] > 0 or row["high"] < 0
        row["shown"] = bool(excludes_0 and p_holm <= 1 - section.confidence)


def _resampling(section: Report) -> dict[str, Any]:
    return {"resamples": section.resamples, "confidence": section.confidence, "seed": section.seed}
