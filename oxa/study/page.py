"""What a study found, as the tables of its page, from what its checkpoints answered.

Of every row the same statistics are told as in the report (oxa/comparison/arms.py), with the problems of all worlds
together: a world's problems are its own, and seed s of a row stands for its fine-tuning seed s in every world. So an
interval holds for other problems and other fine-tuning seeds of these worlds and their students. How worlds differ is
seen from the differences in each, since two or three of them are too few to estimate it.

How much seeds differ is estimated from a row alone, and for a difference from its two rows: rows of a study may be far
from each other, or nearly the same. Two rows that learn from the same solutions do so in the same order under the same
seed, and are paired by seed, too.

A table's comparisons, before and after RL, in pass@1, pass@N and entropy, are one family of Holm's; one that is still
to be run counts as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from oxa.comparison import arms, measures, outcomes
from oxa.config.report import Report
from oxa.data import world
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.report import gates, markdown
from oxa.runtime import files
from oxa.study.experiments import Run, Study, Table

Read = Callable[[Run, str], Path]
"""The file at a path of an experiment's workspace."""


Whole = Mapping[str, Sequence[outcomes.Outcomes]]
"""Row's name, and the base's, to its outcomes, one a fine-tuning seed."""


class Row(NamedTuple):
    outcomes: list[outcomes.Outcomes]
    """One a fine-tuning seed, of all worlds' problems together."""
    solutions: list[list[str]]
    """Of every world, the response ids that cross-entropy learns from."""
    beside: dict[str, str]
    """What else is told of it, by column."""


def page(text: str, parts: Mapping[str, str]) -> str:
    """The text with every part between its marks, `<!-- study: NAME -->` and `<!-- end -->`, written anew.

    Raises DataError where a mark names no part, or has no end.
    """

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name not in parts:
            known = ", ".join(sorted(parts))
            raise DataError(f"the page asks for {name!r}, which is no part of the study; known here: {known}")
        if not found[2]:
            raise DataError(f"the page's mark of {name!r} has no `<!-- end -->` before the next one")
        return f"<!-- study: {name} -->\n\n{parts[name].strip()}\n\n<!-- end -->"

    mark = r"<!-- study: (\S+) -->(?:(?!<!-- study: ).)*?(?:(<!-- end -->)|(?=<!-- study: )|\Z)"
    return re.sub(mark, fill, text, flags=re.DOTALL)


def names(study: Study) -> list[str]:
    """Of all parts."""
    return ["gates", "experiments", *study.tables]


def parts(study: Study, section: Report, made: Mapping[str, Run], read: Read) -> dict[str, str]:
    """The page's parts by name: `gates`, `experiments` and every table, of the runs that are there."""
    found = {"gates": _gates(study, made, read), "experiments": _experiments(study, made)}
    for name, table in study.tables.items():
        there = {
            row: place
            for row, place in table.rows.items()
            if all(f"{place.partition('/')[0]}-{seed}" in made for seed in study.worlds)
        }
        missing = [row for row in table.rows if row not in there]
        told = f"Not run yet: {'; '.join(missing)}." if missing else ""
        if any(there.keys() >= {*pair} for pair in table.pairs.items()):
            told = f"{_table(study, section, table, there, made, read)}\n\n{told}"
        found[name] = told
    return found


def _gates(study: Study, made: Mapping[str, Run], read: Read) -> str:
    """What was measured of every world's base, side by side."""
    columns: dict[int, list[list[str]]] = {}
    for seed in study.worlds:
        having = [run for run in made.values() if run.world == seed and "gates" in run.stages]
        if having:
            columns[seed] = gates.gate_rows(
                files.read_json(read(having[0], "metrics/evaluate/gates-world.json"))
            )
    if not columns:
        return "Not run yet."
    first = next(iter(columns.values()))
    rows = []
    for i, (gate, what, _, wanted, _) in enumerate(first):
        cells = [f"{found[i][2]}{'' if found[i][4] == 'passed' else ' FAILED'}" for found in columns.values()]
        rows.append([gate, what, wanted, *cells])
    return "\n".join(
        markdown.aligned(["gate", "what", "wanted", *(f"world {seed}" for seed in columns)], rows)
    )


def _experiments(study: Study, made: Mapping[str, Run]) -> str:
    rows = [
        [
            f"`{name}`",
            ", ".join(f"`{key}={_shown(value)}`" for key, value in experiment.set.items()) or "–",
            ", ".join(
                f"`{name}-{seed}`" + ("" if f"{name}-{seed}" in made else " (not run)")
                for seed in study.worlds
            ),
        ]
        for name, experiment in study.experiments.items()
    ]
    return "\n".join(markdown.aligned(["experiment", "set over the study's settings", "names"], rows))


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _table(
    study: Study,
    section: Report,
    table: Table,
    places: Mapping[str, str],
    made: Mapping[str, Run],
    read: Read,
) -> str:
    endings = ["", outcomes.RL] if table.after_rl else [""]
    rows = {
        name + ending: _row(study, place, ending, made, read)
        for ending in endings
        for name, place in places.items()
    }
    first = _base(study, next(iter(places.values())), made, read)
    whole = {outcomes.BASE: [first]} | {name: row.outcomes for name, row in rows.items()}
    for name, found in whole.items():
        for one in found:
            if why := outcomes.unlike(one, first):
                raise DataError(f"{name}: not evaluated like {outcomes.BASE}: {why}")
    asked = measures.family(first, _all(first))
    num_comparisons = len(table.pairs) * len(endings) * len(asked)
    pairs = {
        name + ending: other + ending
        for ending in endings
        for name, other in table.pairs.items()
        if name in places and other in places
    }
    parts = [
        f"{len(first.problem_id)} problems of {len(study.worlds)} worlds, {first.num_samples.min()} samples a problem, "
        f"{len(study.seeds)} fine-tuning seeds a world; p by Holm's method over {num_comparisons} comparisons.",
        _numbers(study, section, whole, rows, asked),
        _differences(study, section, rows, pairs, asked, num_comparisons),
    ]
    if "tiers" in table.beside:
        parts.append(_tiers(section, whole))
    if "strategies" in table.beside:
        parts.append(_strategies(study, places, endings, made, read))
    return "\n\n".join(parts)


def _all(found: outcomes.Outcomes) -> measures.Members:
    return np.ones(len(found.problem_id), bool)


def _of_world(found: outcomes.Outcomes, seed: int) -> measures.Members:
    return np.array([name.endswith(f" {seed}") for name in found.benchmark.tolist()])


def _numbers(
    study: Study, section: Report, whole: Whole, rows: Mapping[str, Row], asked: Sequence[str]
) -> str:
    """A line a row, the base's first: numbers over all worlds, pass@1 in each, and what the row was made from."""
    beside = sorted({column for row in rows.values() for column in row.beside})
    lines = []
    for name, found in whole.items():
        told = arms.numbers_of(section, found, _all(found[0]), [found], asked)
        solved = np.mean([one.num_correct / one.num_samples for one in found], axis=0)
        by_world = (f"{100 * solved[_of_world(found[0], seed)].mean():.1f}" for seed in study.worlds)
        lines.append(
            [
                name,
                *(markdown.cell(told, metric) for metric in asked),
                f"{told['mean_tokens']:.0f}",
                " / ".join(by_world),
                *((rows[name].beside.get(column, "–") if name in rows else "–") for column in beside),
            ]
        )
    in_worlds = f"pass@1 in world {' / '.join(map(str, study.worlds))}"
    return _lines(["row", *map(markdown.column, asked), "tokens", in_worlds, *beside], lines)


def _differences(
    study: Study,
    section: Report,
    rows: Mapping[str, Row],
    pairs: Mapping[str, str],
    asked: Sequence[str],
    num_comparisons: int,
) -> str:
    """A line a pair, corrected by Holm's method, and one for each world, with intervals alone."""

    def compare(name: str, members: measures.Members, of_family: int) -> dict[str, Any]:
        ours, theirs = rows[name], rows[pairs[name]]
        return arms.differences(
            section,
            ours.outcomes,
            theirs.outcomes,
            members,
            metrics=asked,
            same_seeds=ours.solutions == theirs.solutions,
            num_comparisons=of_family,
        )

    pooled = {name: compare(name, _all(rows[name].outcomes[0]), num_comparisons) for name in pairs}
    compared = [found[metric] for found in pooled.values() for metric in asked if metric in found]
    to_be_run = [{"p_value": 1.0, "low": 0.0, "high": 0.0}] * (num_comparisons - len(compared))
    arms.correct(section, [*compared, *to_be_run])
    lines = []
    for name, other in pairs.items():
        told = (markdown.difference(pooled[name].get(metric), metric) for metric in asked)
        lines.append([f"{name} − {other}", *told])
        for seed in study.worlds if len(study.worlds) > 1 else []:
            found = compare(name, _of_world(rows[name].outcomes[0], seed), 1)
            lines.append([f"· in world {seed}", *(markdown.change(found.get(m), m) for m in asked)])
    return _lines(["difference", *map(markdown.delta, asked)], lines)


def _lines(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(markdown.aligned(header, rows))


def _tiers(section: Report, whole: Whole) -> str:
    """pass@1 by tier, in the order of the small world where it is one."""
    tier = next(iter(whole.values()))[0].tier
    tiers = sorted(
        set(tier.tolist()), key=lambda one: (one not in world.TIERS, (*world.TIERS, one).index(one))
    )
    rows = []
    for name, found in whole.items():
        cells = []
        for one in tiers:
            told = arms.numbers_of(section, found, tier == one, [found], ["pass_at_1"])
            cells.append(markdown.cell(told, "pass_at_1"))
        rows.append([name, *cells])
    return _lines(["pass@1, %", *tiers], rows)


def _strategies(
    study: Study, places: Mapping[str, str], endings: Sequence[str], made: Mapping[str, Run], read: Read
) -> str:
    """Which strategies of the small world the CE sets hold, and the answers take, percent."""

    def shares(texts: Sequence[str]) -> list[str]:
        found = Counter(world.strategy_of(text) for text in texts)
        return [f"{100 * found[name] / max(1, len(texts)):.0f}" for name in world.STRATEGIES]

    rows = []
    for name, place in places.items():
        trained = [
            text
            for seed in study.worlds
            for text in _solutions(place, seed, made, read)["completion"].to_pylist()
        ]
        cells = [" / ".join(shares(trained))]
        for ending in endings:
            texts: list[str] = []
            for path in _paths(study, place, ending, made, read):
                written = tables.read(path, schemas.GENERATIONS, ["text", "step"])
                last = max(written["step"].to_pylist())
                texts += [row["text"] for row in written.to_pylist() if row["step"] == last]
            cells.append(" / ".join(shares(texts)))
        rows.append([name, *cells])
    order = " / ".join(world.STRATEGIES)
    return _lines(
        [f"{order}, %", "CE set", "answers", *(["answers after RL"] if outcomes.RL in endings else [])], rows
    )


def _solutions(place: str, seed: int, made: Mapping[str, Run], read: Read) -> pa.Table:
    """What cross-entropy learns from."""
    experiment, _, arm = place.partition("/")
    path = read(made[f"{experiment}-{seed}"], f"data/train/{arm}/ce.parquet")
    return tables.read(path, schemas.TRAIN, ["response_id", "completion"])


def _paths(study: Study, place: str, ending: str, made: Mapping[str, Run], read: Read) -> Iterator[Path]:
    experiment, _, arm = place.partition("/")
    for seed in study.worlds:
        for fine_tuning in study.seeds:
            yield read(made[f"{experiment}-{seed}"], f"data/generations/{arm}-{fine_tuning}{ending}.parquet")


def _row(study: Study, place: str, ending: str, made: Mapping[str, Run], read: Read) -> Row:
    paths = list(_paths(study, place, ending, made, read))
    num = len(study.seeds)
    found = [
        _joined({seed: outcomes.outcomes(paths[w * num + s]) for w, seed in enumerate(study.worlds)})
        for s in range(num)
    ]
    solutions = [
        sorted(_solutions(place, seed, made, read)["response_id"].to_pylist()) for seed in study.worlds
    ]
    return Row(found, solutions, _beside(study, place, ending, made, read))


def _base(study: Study, place: str, made: Mapping[str, Run], read: Read) -> outcomes.Outcomes:
    experiment = place.partition("/")[0]
    return _joined(
        {
            seed: outcomes.outcomes(read(made[f"{experiment}-{seed}"], "data/generations/base.parquet"))
            for seed in study.worlds
        }
    )


def _joined(of_world: Mapping[int, outcomes.Outcomes]) -> outcomes.Outcomes:
    """One checkpoint's outcomes in every world, as of one set of problems; `benchmark` names the world."""
    named = [
        found._replace(benchmark=np.array([f"{name} {seed}" for name in found.benchmark], object))
        for seed, found in of_world.items()
    ]
    redrawn = outcomes.Redrawn(*map(np.concatenate, zip(*(one.redrawn for one in named), strict=True)))
    columns = {
        field: np.concatenate([getattr(one, field) for one in named])
        for field in outcomes.Outcomes._fields
        if field != "redrawn"
    }
    return named[0]._replace(redrawn=redrawn, **columns)


def _beside(study: Study, place: str, ending: str, made: Mapping[str, Run], read: Read) -> dict[str, str]:
    """What the arm was trained on, or its temperature in RL: means over worlds and seeds."""
    experiment, _, arm = place.partition("/")

    def mean(folder: str, *path: str, seeds: bool = True) -> float | None:
        values = []
        for seed in study.worlds:
            for fine_tuning in study.seeds if seeds else [None]:
                name = arm if fine_tuning is None else f"{arm}-{fine_tuning}"
                value: Any = files.read_json(
                    read(made[f"{experiment}-{seed}"], f"metrics/{folder}/{name}.json")
                )
                for key in path:
                    value = (value or {}).get(key)
                values.append(value)
        return None if None in values else float(np.mean(values))

    if ending:
        temperature = mean("rlvr", "temperature")
        return {} if temperature is None else {"T of RL": f"{temperature:.2f}"}
    chosen, tokens = (
        mean("selection/ce", "ce", "chosen", seeds=False),
        mean("selection/ce", "ce", "tokens", seeds=False),
    )
    suppressed = mean("train", "final", "ul_probability")
    return {
        "CE sequences": f"{chosen:.0f}",
        "CE tokens": f"{tokens:.0f}",
        **({} if suppressed is None else {"p of UL tokens": f"{suppressed:.2f}"}),
    }
