"""The comparison of the arms, before and after RL: numbers with intervals, paired differences.

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
comparisons, in pass@1, pass@N and entropy: the question, which is the arms' differences to the baseline before and
after RL (`num_comparisons`), and what stands beside it, the gains and the base (`num_beside`). What is shown must not
hang on the draws of the bootstrap, so these take at least RESAMPLES · family / (1 - confidence) of them. Other metrics
have intervals and p-values of single comparisons; they are never `shown`.

Where every problem is solved, or none is, a bootstrap sees no spread. P such problems leave room for a rate that is off
by up to 1 - (α/2)^(1/P) (Clopper & Pearson 1934), and that far the intervals reach there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from oxa.comparison import estimators as statistics
from oxa.comparison.measures import OF_COUNTS, POOLED, Floats, Members, family, kind_of, measures
from oxa.comparison.outcomes import BASE, RL, Outcomes, unlike
from oxa.config.report import Report
from oxa.errors import DataError

RESAMPLES = 100  # expected beyond the p-value at which Holm's method begins, so that it is known to about 10%


def summarize(
    section: Report,
    results: Mapping[str, Sequence[Outcomes]],
    along: Mapping[str, Sequence[Mapping[int, Outcomes]]] | None = None,
) -> dict[str, Any]:
    """Everything that is said of the arms.

    `results`: by arm (and base, and arms after RL, whose names end in RL), then seed. `along`: by arm without that
    ending, then seed, the outcomes by RL step.
    """
    first = results[BASE][0]
    for name, runs in results.items():
        for one in runs:
            if why := unlike(one, first):
                raise DataError(
                    f"{name} and {BASE} cannot be compared: {why}; evaluate both again with dvc repro"
                )
    groups = groups_of(first)
    arms: dict[str, Any] = {arm: {} for arm in results}
    for arm, runs in results.items():
        for name, members in groups.items():
            arms[arm][name] = numbers_of(section, runs, members, _phase(results, arm))
            tiers = sorted({tier for tier in first.tier[members].tolist() if tier})
            if tiers and name != POOLED:
                arms[arm][name]["tiers"] = {
                    tier: numbers_of(section, runs, members & (first.tier == tier), _phase(results, arm))
                    for tier in tiers
                }
    pairs = list(_pairs(section.baseline, list(results)))
    compared: dict[str, dict[str, Any]] = {"differences": {}, "gains": {}}
    for pair in pairs:
        compared[pair.kind][pair.name] = {}
    sizes = {}
    for group, members in groups.items():
        for beside in (False, True):
            of_family = [pair for pair in pairs if (pair.kind == "gains" or pair.name == BASE) == beside]
            sizes[beside] = len(of_family) * len(family(first, members))
            rows = []
            for pair in of_family:
                found = compared[pair.kind][pair.name][group] = differences(
                    section,
                    results[pair.ours],
                    results[pair.theirs],
                    members,
                    same_seeds=pair.kind == "gains",
                    pool=partial(_pool, results, pair, members),
                    num_comparisons=sizes[beside],
                )
                rows += [found[metric] for metric in family(first, members) if metric in found]
            correct(section, rows)
    return {
        "baseline": section.baseline,
        "confidence": section.confidence,
        "num_comparisons": sizes[False],
        "num_beside": sizes[True],
        "order": list(arms),  # JSON is written with its keys sorted
        "groups": list(groups),
        "arms": arms,
        **compared,
        "steps": {
            arm: {
                group: [
                    {
                        "step": step,
                        **numbers_of(section, at[arm], members, at.values(), family(first, members)),
                    }
                    for step, at in _by_step(results, along or {}).items()
                ]
                for group, members in groups.items()
            }
            for arm in along or {}
        },
    }


def groups_of(found: Outcomes) -> dict[str, Members]:
    """Which problems belong to each benchmark, and to all where there are several."""
    names = sorted(set(found.benchmark.tolist()))
    groups = {name: found.benchmark == name for name in names}
    return groups | ({POOLED: np.ones(len(found.benchmark), bool)} if len(names) > 1 else {})


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


def _pool(
    results: Mapping[str, Sequence[Outcomes]], pair: Pair, members: Members, metric: str
) -> list[Floats]:
    """A metric of all arms of the pair's phase, or, for a gain, of all gains: tables [S, P]."""
    if pair.kind == "differences":
        return [observed(runs, members, metric) for runs in _phase(results, pair.name)]
    return [
        observed(results[name + RL], members, metric) - observed(runs, members, metric)
        for name, runs in results.items()
        if name + RL in results
    ]


def _by_step(
    results: Mapping[str, Sequence[Outcomes]], along: Mapping[str, Sequence[Mapping[int, Outcomes]]]
) -> dict[int, dict[str, Sequence[Outcomes]]]:
    """Step, to the seeds' outcomes by arm; step 0 is before RL. All arms are evaluated at the same steps."""
    steps = sorted({step for runs in along.values() for run in runs for step in run})
    found: dict[int, dict[str, Sequence[Outcomes]]] = {
        step: {arm: [run[step] for run in runs] for arm, runs in along.items()} for step in steps
    }
    return {0: {arm: results[arm] for arm in along}} | found


def _phase(results: Mapping[str, Sequence[Outcomes]], name: str) -> list[Sequence[Outcomes]]:
    """The arms of the same phase, before or after RL."""
    return [
        runs for other, runs in results.items() if other != BASE and other.endswith(RL) == name.endswith(RL)
    ]


def numbers_of(
    section: Report,
    runs: Sequence[Outcomes],
    members: Members,
    peers: Iterable[Sequence[Outcomes]],
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Numbers of one group; of the metrics that have an interval, those in `only`. `peers`: arms whose seeds differ."""
    num_samples = int(runs[0].num_samples[members].min())
    numbers: dict[str, Any] = {
        "num_problems": int(members.sum()),
        "num_samples": num_samples,
        "num_seeds": len(runs),
        "pass_at_1_by_seed": [float(values.mean()) for values in observed(runs, members, "pass_at_1")],
        "distinct_answers": float(np.mean([run.distinct_answers[members] for run in runs])),
        "mean_tokens": float(np.mean([run.mean_tokens[members] for run in runs])),
        "truncated": float(np.mean([run.truncated[members] for run in runs])),
    }
    others = list(peers)
    for name in only or measures(runs[0], members):
        values, redrawn = measured(runs, members, name)
        known = np.isfinite(values).all(axis=0)
        if not known.any():
            numbers[name] = None
            continue
        pool = _finite([observed(other, members, name)[:, known] for other in others])
        found = statistics.bootstrap_interval(
            values[:, known], redrawn[:, known], pool=pool or None, **_resampling(section)
        )
        numbers[name] = found.estimate
        highest = math.inf if name.startswith("mean_") else 1.0
        room = _room(section, name, values)
        numbers[f"{name}_low"] = max(0.0, found.low - room)
        numbers[f"{name}_high"] = min(highest, found.high + room)
    if only is None:
        # seeds' samples together
        counts = [(run.num_samples[members], run.num_correct[members]) for run in runs]
        bayes = statistics.bayes_interval(*np.sum(counts, axis=0), **_resampling(section))
        numbers["pass_at_1_bayes_low"], numbers["pass_at_1_bayes_high"] = bayes.low, bayes.high
    return numbers


def _finite(tables: Iterable[Floats]) -> list[Floats]:
    return [table for table in tables if np.isfinite(table).all()]


def observed(runs: Sequence[Outcomes], members: Members, name: str) -> Floats:
    """A metric of every seed and problem, [S, P]."""
    kind, k = kind_of(name)
    if kind in OF_COUNTS:
        return np.stack(
            [OF_COUNTS[kind](run.num_samples[members], run.num_correct[members], k) for run in runs]
        )
    return np.stack([getattr(run, kind)[members] for run in runs])


def measured(runs: Sequence[Outcomes], members: Members, name: str) -> tuple[Floats, Floats]:
    """The same, and with the samples drawn again [S, P, M]."""
    kind, k = kind_of(name)
    if kind in OF_COUNTS:
        redrawn = [
            OF_COUNTS[kind](run.num_samples[members][:, None], run.redrawn.num_correct[members], k)
            for run in runs
        ]
    else:
        redrawn = [getattr(run.redrawn, kind)[members] for run in runs]
    return observed(runs, members, name), np.stack(redrawn)


def differences(
    section: Report,
    ours: Sequence[Outcomes],
    theirs: Sequence[Outcomes],
    members: Members,
    *,
    metrics: Sequence[str] | None = None,
    same_seeds: bool = False,
    pool: Callable[[str], list[Floats]] | None = None,
    num_comparisons: int = 1,
) -> dict[str, Any]:
    """Ours minus theirs on one group, by metric, of all metrics or of these; `correct` then says which are shown.

    Compared are the problems on which both have a value (an empty answer has no entropy). Where only some metrics are
    asked for, all of them are of the family of `num_comparisons`. `pool`: of a metric, the values of all arms whose
    seeds tell how much seeds differ; without it ours and theirs.
    """
    first, most = ours[0], family(ours[0], members)
    rows: dict[str, Any] = {
        "num_problems": int(members.sum()),
        "num_samples": int(first.num_samples[members].min()),
        "num_seeds": len(ours),
        "num_seeds_baseline": len(theirs),
    }
    needed = math.ceil(RESAMPLES * num_comparisons / (1 - section.confidence))
    for name in metrics or measures(first, members):
        a, b = (measured(runs, members, name) for runs in (ours, theirs))
        known = np.isfinite(a[0]).all(axis=0) & np.isfinite(b[0]).all(axis=0)
        if not known.any():
            continue
        resampling = _resampling(section)
        if name in (metrics or most):
            resampling["resamples"] = max(section.resamples, needed)
        tables = _finite(table[:, known] for table in pool(name)) if pool else []
        found = statistics.paired_difference(
            a[0][:, known],
            b[0][:, known],
            (a[1][:, known], b[1][:, known]),
            same_seeds=same_seeds,
            pool=tables or None,
            **resampling,
        )
        room = _room(section, name, np.concatenate([a[0], b[0]]))
        found = found._replace(low=found.low - room, high=found.high + room)
        rows[name] = found._asdict() | {"p_holm": None, "shown": False}
    return rows


def _room(section: Report, name: str, values: Floats) -> float:
    """How far a rate may be off where all values [S, P] are 1, or all 0; else 0, since they have a spread."""
    if name.startswith("mean_") or not (values == values[0, 0]).all() or values[0, 0] not in (0.0, 1.0):
        return 0.0
    return float(1 - ((1 - section.confidence) / 2) ** (1 / values.shape[1]))


def correct(section: Report, rows: Iterable[dict[str, Any]]) -> None:
    """Holm's correction over all of these rows, in place, and which of them are shown."""
    found = list(rows)
    for row, p_holm in zip(found, statistics.holm([row["p_value"] for row in found]), strict=True):
        row["p_holm"] = float(p_holm)
        excludes_0 = row["low"] > 0 or row["high"] < 0
        row["shown"] = bool(excludes_0 and p_holm <= 1 - section.confidence)


def _resampling(section: Report) -> dict[str, Any]:
    return {"resamples": section.resamples, "confidence": section.confidence, "seed": section.seed}
