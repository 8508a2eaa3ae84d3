"""Two checkpoints side by side, from their generations: `oxa compare A B`.

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

import numpy as np

from oxa.comparison import arms, measures
from oxa.comparison import estimators as statistics
from oxa.comparison.outcomes import RL, Outcomes, outcomes, unlike
from oxa.config.report import Report
from oxa.errors import DataError
from oxa.report import markdown

Rows = dict[str, dict[str, Any]]


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
    """{"a", "b", "confidence", "groups": {name: {"num_problems", …, "metrics": {metric: row}}}}.

    A row: a, b (values), difference (a minus b), low, high, p_value, p_holm, shown. Metrics are pass@1, pass@k (by
    default k = n), maj@n, entropy and tokens.
    """
    ours, theirs = _side(a, folder), _side(b, folder)
    for one in (*ours.runs[1:], *theirs.runs):
        if why := unlike(ours.runs[0], one):
            raise DataError(f"{a} and {b} cannot be compared: {why}")
    first = ours.runs[0]
    groups = arms.groups_of(first)
    if benchmark is not None:
        if benchmark not in groups:
            raise DataError(f"{a}: no benchmark {benchmark!r}; found {', '.join(groups)}")
        groups = {benchmark: groups[benchmark]}
    same_seeds = bool(ours.arm) and (ours.arm, ours.seeds) == (theirs.arm, theirs.seeds)
    wanted = {name: _metrics(first, members, k, name) for name, members in groups.items()}
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, members in groups.items():
        part = arms.differences(
            section,
            ours.runs,
            theirs.runs,
            members,
            metrics=wanted[name],
            same_seeds=same_seeds,
            num_comparisons=sum(map(len, wanted.values())),
        )
        metrics = {metric: part.pop(metric) for metric in wanted[name] if metric in part}
        for metric, row in metrics.items():
            for side, runs in (("a", ours.runs), ("b", theirs.runs)):
                row[side] = float(np.mean(arms.measured(runs, members, metric)[0]))
            if not metric.startswith("mean_"):  # two shares differ by 1 at most
                row["low"], row["high"] = max(-1.0, row["low"]), min(1.0, row["high"])
            rows.append(row)
        found[name] = part | {"metrics": metrics}
    arms.correct(section, rows)
    return {"a": a, "b": b, "confidence": section.confidence, "same_seeds": same_seeds, "groups": found}


def _metrics(found: Outcomes, members: measures.Members, k: int | None, group: str) -> list[str]:
    num_samples = int(found.num_samples[members].min())
    if k is not None and not 1 <= k <= num_samples:
        raise DataError(f"pass@{k} needs {k} samples of every problem of {group}, found {num_samples}")
    ks = sorted({1, k or statistics.k_values(num_samples)[-1]})
    others = [name for name in measures.measures(found, members) if name.startswith(("maj_at_", "mean_"))]
    return [*(f"pass_at_{k}" for k in ks), *others]


def _side(asked: str, folder: Path) -> Side:
    name, _, step = asked.rpartition("@") if re.search(r"@\d+$", asked) else (asked, "", "")
    at = int(step) if step else None
    if at == 0:
        name = name.removesuffix(RL)
    known = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if name in known:
        matched = re.fullmatch(r"(.+)-(\d+)(?:-rl)?", name)
        arm, seeds = (matched[1], (matched[2],)) if matched else (name, ())
        return Side(asked, arm, seeds, [outcomes(known[name], at)])
    arm, ending = name.removesuffix(RL), RL * name.endswith(RL)
    pattern = re.compile(rf"{re.escape(arm)}-(\d+){ending}")
    seeds_found = {matched[1]: path for stem, path in known.items() if (matched := pattern.fullmatch(stem))}
    if seeds_found:
        ordered = sorted(seeds_found, key=int)
        return Side(asked, arm, tuple(ordered), [outcomes(seeds_found[seed], at) for seed in ordered])
    if Path(name).suffix == ".parquet":
        return Side(asked, "", (), [outcomes(Path(name), at)])
    raise DataError(f"{asked}: no such checkpoint, arm or table; {folder} holds {_shown(list(known))}")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def text(found: dict[str, Any]) -> str:
    """`run`'s result as Markdown, readable in a terminal too."""
    a, b, level = found["a"], found["b"], f"{found['confidence']:.0%}"
    lines = [f"# {a} against {b}", ""]
    for group, part in found["groups"].items():
        seeds = f"seeds {part['num_seeds']} and {part['num_seeds_baseline']}"
        lines += [
            f"## {group}: {part['num_problems']} problems, {part['num_samples']} samples a problem, {seeds}"
        ]
        header = ["metric", a, b, f"difference [{level} interval]", "p", "Holm's p", ""]
        rows = [_row(metric, row) for metric, row in part["metrics"].items()]
        lines += ["", *markdown.aligned(header, rows), ""]
    paired = "by problem and seed" if found["same_seeds"] else "by problem"
    lines += [
        f"Differences are {a} minus {b}, paired {paired}; Holm's p is corrected over all rows above. A difference is "
        f"shown where its interval excludes 0 and Holm's p is at most {1 - found['confidence']:.2g}."
    ]
    if any(1 in (part["num_seeds"], part["num_seeds_baseline"]) for part in found["groups"].values()):
        lines += [markdown.ONE_SEED]
    return "\n".join(lines) + "\n"


def _row(metric: str, row: dict[str, Any]) -> list[str]:
    is_share = not metric.startswith("mean_")
    title = {"mean_entropy": "entropy, nats", "mean_tokens": "tokens"}.get(
        metric, f"{metric.replace('pass_at_', 'pass@').replace('maj_at_', 'maj@')}, %"
    )
    scale, digits = 100 if is_share else 1, 3 if metric == "mean_entropy" else 1
    values = [f"{scale * row[side]:.{digits}f}" for side in ("a", "b")]
    mean, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    said = "shown" if row["shown"] else "no difference shown"
    return [title, *values, f"{mean} [{low}, {high}]", f"{row['p_value']:.4f}", f"{row['p_holm']:.4f}", said]
