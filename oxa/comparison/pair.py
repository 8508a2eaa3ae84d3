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

from oxa.comparison import arms, drawn
from oxa.comparison.measures import MACRO, Metric, metrics, pass_at, pass_hat
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
    settings: list[drawn.Settings]
    """With which each was drawn."""


def run(
    section: Report,
    a: str,
    b: str,
    *,
    folder: Path,
    entropies: Path,
    benchmark: str | None = None,
    k: int | None = None,
) -> dict[str, Any]:
    """{"a", "b", "confidence", "same_seeds", "unlike", "groups": {name: {"num_problems", …, "metrics": {name: row}}}}.

    A row: a, b (values), difference (a minus b), low, high, p_value, p_holm, shown. Metrics are those of the report, of
    pass@k and pass^k for one k (by default n) and pass@1; of a path there are no entropies, which lie in a folder of
    their own, `entropies`, by checkpoint. `unlike`: settings with which the two were drawn and which
    differ, `temperature 1.0 and 0.6`; such a comparison is one of settings, too.
    """
    ours, theirs = _side(a, folder, entropies), _side(b, folder, entropies)
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
            is_macro=name == MACRO,
            num_comparisons=sum(map(len, compared.values())),
        )
        of_metric = {metric.name: part.pop(metric.name) for metric in compared[name] if metric.name in part}
        for metric in compared[name]:
            if metric.name in of_metric:
                row = of_metric[metric.name]
                row |= {side: arms.mean(runs, metric, is_macro=name == MACRO) for side, runs in sides.items()}
                rows.append(row)
        groups[name] = part | {"metrics": of_metric}
    arms.correct(section, rows)
    return {
        "a": a,
        "b": b,
        "confidence": section.confidence,
        "same_seeds": same_seeds,
        "unlike": _unlike(ours, theirs),
        "groups": groups,
    }


def _unlike(ours: Side, theirs: Side) -> list[str]:
    """Of the first with every other one, each difference once."""
    first, *others = (*ours.settings, *theirs.settings)
    return list(dict.fromkeys(text for other in others for text in drawn.differences(first, other)))


def _metrics(outcomes: Outcomes, k: int | None, group: str) -> list[Metric]:
    num_samples = int(outcomes.num_samples.min())
    if k is not None and not 1 <= k <= num_samples:
        raise DataError(f"pass@{k} needs {k} samples of every problem of {group}, found {num_samples}")
    tries = k or num_samples
    of_k = [*(pass_at(number) for number in sorted({1, tries})), *([pass_hat(tries)] if tries > 1 else [])]
    others = [metric for metric in metrics(outcomes.num_samples) if not metric.solved]
    return [*of_k, *(metric for metric in others if num_samples > 1 or not metric.of_several)]


def _side(argument: str, folder: Path, entropies: Path) -> Side:
    name, _, step = argument.rpartition("@") if re.search(r"@\d+$", argument) else (argument, "", "")
    at = int(step) if step else None
    if at == 0:
        name = name.removesuffix(RL)
    known = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if name in known:
        matched = re.fullmatch(r"(.+)-(\d+)(?:-rl)?", name)
        arm, *of_seed = matched.groups() if matched else (name,)
        return _of(argument, arm, tuple(of_seed), [known[name]], at, entropies)
    arm, ending = name.removesuffix(RL), RL * name.endswith(RL)
    pattern = re.compile(rf"{re.escape(arm)}-(\d+){ending}")
    by_seed = {matched[1]: path for stem, path in known.items() if (matched := pattern.fullmatch(stem))}
    if by_seed:
        seeds = tuple(sorted(by_seed, key=int))
        return _of(argument, arm, seeds, [by_seed[seed] for seed in seeds], at, entropies)
    if Path(name).suffix == ".parquet":
        return _of(argument, "", (), [Path(name)], at)
    raise DataError(f"{argument}: no such checkpoint, arm or table; {folder} holds {_shown(list(known))}")


def _of(
    argument: str,
    arm: str,
    seeds: tuple[str, ...],
    paths: Sequence[Path],
    step: int | None,
    entropies: Path | None = None,
) -> Side:
    runs = [outcomes(path, step, entropies=entropies and entropies / path.name) for path in paths]
    return Side(argument, arm, seeds, runs, [drawn.settings(path, step) for path in paths])


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
