"""What each arm chose, beside all that it could have chosen: ppl under the base and length, set by set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxa.errors import DataError
from oxa.records import schemas, tables, training_set
from oxa.runtime import files


class Panel(NamedTuple):
    """A training set, arrays over its responses, and the scored responses of its origin."""

    objective: str
    """ce, ul"""
    arms: list[str]
    """The arms that share it."""
    ppl: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    pool_ppl: NDArray[np.float64]
    pool_tokens: NDArray[np.int64]
    bins: list[dict[str, Any]]
    """Of the selection, with the Gaussian's targets; empty where it has none."""
    within_bin: str = ""
    """Which responses of a bin go first: longest or random; empty where there are no bins."""


Selections = Mapping[str, dict[str, Any]]
"""By arm, what the selection of its sets returned: `ce`, `ul` where it has one, `shortage`, and a Gaussian's `bins`."""


def selections(metrics: Path, arms: Sequence[str], suppressing: Sequence[str]) -> Selections:
    """Reads them; `suppressing` are the arms with a UL set."""

    def read(objective: str, arm: str) -> dict[str, Any]:
        described: dict[str, Any] = files.read_json(metrics / "selection" / objective / f"{arm}.json")
        return described

    return {arm: read("ce", arm) | (read("ul", arm) if arm in suppressing else {}) for arm in arms}


def check_trained(metrics: Path, selections: Selections, seeds: Sequence[int]) -> None:
    """DataError where a checkpoint was trained on another number of responses than were selected for its arm.

    An arm that saw fewer took fewer steps, and what it lacks would be taken for what the choice of data does.
    """
    for arm, selection in selections.items():
        for seed in seeds:
            trained = files.read_json(metrics / "train" / f"{arm}-{seed}.json")
            for objective in (name for name in ("ce", "ul") if name in selection):
                num, chosen = trained[f"{objective}_rows"], selection[objective]["chosen"]
                if num != chosen:
                    raise DataError(
                        f"{metrics / 'train' / f'{arm}-{seed}.json'}: {arm} was trained on {num:,} of the {chosen:,} "
                        f"{objective.upper()} responses that were selected for it; train it again with dvc repro"
                    )


def panels(selections: Selections, *, scores: Path, train_sets: Path) -> list[Panel]:
    """CE sets first, in the arms' order; arms with equal sets share one."""
    sets: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    arms = list(selections)
    for arm, selection in selections.items():
        table = training_set.read(
            train_sets / arm, ["response_id", "objective"], suppresses="ul" in selection
        )
        for objective in ("ce", "ul"):
            rows = table.filter(pc.equal(table["objective"], objective))
            if len(rows):
                key = (objective, tuple(sorted(rows["response_id"].to_pylist())))
                sets.setdefault(key, []).append(arm)
    pools = {name: scored(scores, name) for name in ("ce", "ul") if any(key[0] == name for key in sets)}
    panels = []
    for key in sorted(sets, key=lambda key: (key[0], arms.index(sets[key][0]))):
        objective, ids = key
        pool = pools[objective]
        taken = pool.filter(pc.is_in(pool["response_id"], pa.array(ids, pa.string())))
        selected = selections[sets[key][0]]
        if "by" in selected["ce"]:  # a Gaussian over another measure than ppl
            selected = {name: value for name, value in selected.items() if name != "bins"}
        panels.append(
            Panel(
                objective,
                sets[key],
                taken["ppl"].to_numpy(),
                taken["num_tokens"].to_numpy(),
                pool["ppl"].to_numpy(),
                pool["num_tokens"].to_numpy(),
                selected.get("bins", []) if objective == "ce" else [],
                selected.get("within_bin", "") if objective == "ce" else "",
            )
        )
    return panels


def scored(scores: Path, objective: str) -> pa.Table:
    """The scored responses from which CE sets (the teacher's) or UL sets (the student's own) are taken."""
    path = scores / ("teacher.parquet" if objective == "ce" else "self.parquet")
    table = tables.read(path, schemas.SCORES, ["response_id", "ppl", "num_tokens"])
    return table.filter(pc.is_finite(table["ppl"]))


def edges(panels: Sequence[Panel], num_bins: int = 80) -> NDArray[np.float64]:
    """Bins from 1 to where most of all and nearly all of the chosen end: a wild tail must not flatten them."""
    ends = [np.quantile(panel.pool_ppl, 0.95) for panel in panels if len(panel.pool_ppl)]
    ends += [np.quantile(panel.ppl, 0.99) for panel in panels if len(panel.ppl)]
    high = max(1.1, *ends)
    step = 10.0 ** np.floor(np.log10((high - 1) / (num_bins / 2)))
    width = next(step * factor for factor in (1, 2, 2.5, 5, 10) if (high - 1) / (step * factor) <= num_bins)
    return 1 + width * np.arange(int(np.ceil((high - 1) / width - 1e-9)) + 1)


def lengths(panels: Sequence[Panel]) -> list[tuple[str, float, float]]:
    """(set, its mean tokens, mean tokens of scored responses of the same ppl), by set.

    The latter is over fortieths of the scored responses by ppl, each weighing as much as the set has in it.
    """
    sets = []
    for panel in panels:
        edges = np.quantile(panel.pool_ppl, np.linspace(0, 1, 41))[1:-1]
        theirs, ours = np.digitize(panel.pool_ppl, edges), np.digitize(panel.ppl, edges)
        sums = np.bincount(theirs, panel.pool_tokens, 40)
        means = sums / np.maximum(1, np.bincount(theirs, minlength=40))
        name = f"{panel.objective.upper()} set of {', '.join(panel.arms)}"
        sets.append((name, float(panel.num_tokens.mean()), float(means[ours].mean())))
    return sets
