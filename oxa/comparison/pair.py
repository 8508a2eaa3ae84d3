"""Two checkpoints side by side, from their generations: what `oxa compare A B` computes.

A and B are each a checkpoint (`base`, `sft-0`, `sft-0-rl`), an arm with all its seeds (`sft`, `sft-rl`) or a path of a
generation table; `@N` behind it takes RL step N instead of the last one, and step 0 is before RL: `sft-rl@0` is `sft`.
Where both are one arm, as before and after RL, their seeds are paired, too. Formulas are in
oxa/comparison/estimators.py; Holm's correction covers every row that is printed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oxa.comparison import arms
from oxa.comparison.measures import Metric, metrics, pass_at
from oxa.comparison.outcomes import RL, Outcomes, outcomes, unlike
from oxa.config.report import Report
from oxa.errors import DataError


class Side(NamedTuple):
    """One of the two."""

    name: str
    arm: str
    """Without seed and phase; "" for a path."""
    seeds: tuple[str, ...]
    runs: list[Outcomes]


def run(
    section: Report, a: str, b: str, *, folder: Path, benchmark: str | None = None, k: int | None = None
) -> dict[str, Any]:
    """{"a", "b", "confidence", "same_seeds", "groups": {name: {"num_problems", …, "metrics": {metric: row}}}}.

    A row: a, b (values), difference (a minus b), low, high, p_value, p_holm, shown. Metrics are pass@1, pass@k (by
    default k = n), maj@n, entropy and tokens.
    """
    ours, theirs = _side(a, folder), _side(b, folder)
    first = ours.runs[0]
    for run in (*ours.runs[1:], *theirs.runs):
        if why := unlike(first, run):
            raise DataError(f"{a} and {b} cannot be compared: {why}")
    members = arms.groups_of(first)
    if benchmark is not None:
        if benchmark not in members:
            raise DataError(f"{a}: no benchmark {benchmark!r}; found {', '.join(members)}")
        members = {benchmark: members[benchmark]}
    same_seeds = bool(ours.arm) and (ours.arm, ours.seeds) == (theirs.arm, theirs.seeds)
    compared = {name: _metrics(first.only(of), k, name) for name, of in members.items()}
    groups: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, of in members.items():
        sides = {"a": [run.only(of) for run in ours.runs], "b": [run.only(of) for run in theirs.runs]}
        part = arms.differences(
            section,
            *sides.values(),
            only=compared[name],
            same_seeds=same_seeds,
            num_comparisons=sum(map(len, compared.values())),
        )
        of_metric = {metric.name: part.pop(metric.name) for metric in compared[name] if metric.name in part}
        for metric in compared[name]:
            if metric.name in of_metric:
                row, highest = of_metric[metric.name], metric.unit.highest
                row |= {side: float(arms.observed(runs, metric).mean()) for side, runs in sides.items()}
                row["low"], row["high"] = max(-highest, row["low"]), min(highest, row["high"])
                rows.append(row)
        groups[name] = part | {"metrics": of_metric}
    arms.correct(section, rows)
    return {"a": a, "b": b, "confidence": section.confidence, "same_seeds": same_seeds, "groups": groups}


def _metrics(outcomes: Outcomes, k: int | None, group: str) -> list[Metric]:
    num_samples = int(outcomes.num_samples.min())
    if k is not None and not 1 <= k <= num_samples:
        raise DataError(f"pass@{k} needs {k} samples of every problem of {group}, found {num_samples}")
    others = [metric for metric in metrics(outcomes.num_samples) if metric.interval and not metric.solved]
    return [*(pass_at(tries) for tries in sorted({1, k or num_samples})), *others]


def _side(argument: str, folder: Path) -> Side:
    name, _, step = argument.rpartition("@") if re.search(r"@\d+$", argument) else (argument, "", "")
    at = int(step) if step else None
    if at == 0:
        name = name.removesuffix(RL)
    known = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if name in known:
        matched = re.fullmatch(r"(.+)-(\d+)(?:-rl)?", name)
        arm, *of_seed = matched.groups() if matched else (name,)
        return Side(argument, arm, tuple(of_seed), [outcomes(known[name], at)])
    arm, ending = name.removesuffix(RL), RL * name.endswith(RL)
    pattern = re.compile(rf"{re.escape(arm)}-(\d+){ending}")
    by_seed = {matched[1]: path for stem, path in known.items() if (matched := pattern.fullmatch(stem))}
    if by_seed:
        seeds = tuple(sorted(by_seed, key=int))
        return Side(argument, arm, seeds, [outcomes(by_seed[seed], at) for seed in seeds])
    if Path(name).suffix == ".parquet":
        return Side(argument, "", (), [outcomes(Path(name), at)])
    raise DataError(f"{argument}: no such checkpoint, arm or table; {folder} holds {_shown(list(known))}")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
