"""What a study found, as the tables of its page, from what its checkpoints answered.

Of every row the same statistics are told as in the report (oxa/comparison.py), with the problems of all worlds
together: a world's problems are its own, and seed s of a row stands for its fine-tuning seed s in every world. So an
interval holds for other problems and other fine-tuning seeds of these worlds; how worlds differ is seen from their
numbers side by side, since two or three of them are too few to estimate it.

A table's comparisons, before and after RL, in pass@1, pass@N and entropy, are one family of Holm's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oxa import comparison, config, findings, outcomes, records, world
from oxa.errors import DataError
from oxa.study import Run, Study, Table

Read = Callable[[Run, str], Path]
"""The file at a path of an experiment's workspace."""


class Row(NamedTuple):
    outcomes: list[outcomes.Outcomes]
    """One a fine-tuning seed, of all worlds' problems together."""
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


def parts(study: Study, section: config.Report, made: Mapping[str, Run], read: Read) -> dict[str, str]:
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
            columns[seed] = findings.gate_rows(records.read_json(read(having[0], "metrics/gates.json")))
    if not columns:
        return "Not run yet."
    first = next(iter(columns.values()))
    rows = []
    for i, (gate, what, _, wanted, _) in enumerate(first):
        cells = [f"{found[i][2]}{'' if found[i][4] == 'passed' else ' FAILED'}" for found in columns.values()]
        rows.append([gate, what, wanted, *cells])
    return "\n".join(
        findings.aligned(["gate", "what", "wanted", *(f"world {seed}" for seed in columns)], rows)
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
    return "\n".join(findings.aligned(["experiment", "set over the study's settings", "names"], rows))


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _table(
    study: Study,
    section: config.Report,
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
    everyone = np.ones(len(first.problem_id), bool)
    asked = comparison.family(first, everyone)

    def peers(name: str) -> list[Sequence[outcomes.Outcomes]]:
        return [
            row.outcomes
            for other, row in rows.items()
            if other.endswith(outcomes.RL) == name.endswith(outcomes.RL)
        ]

    numbers = {
        name: comparison.numbers_of(section, found, everyone, peers(name), asked)
        for name, found in whole.items()
    }
    pairs = {
        name + ending: other + ending
        for ending in endings
        for name, other in table.pairs.items()
        if name in places and other in places
    }
    differences = {
        name: comparison.differences(
            section,
            whole[name],
            whole[other],
            everyone,
            metrics=asked,
            pool=partial(_pool, peers(name), everyone),
            num_comparisons=len(pairs) * len(asked),
        )
        for name, other in pairs.items()
    }
    comparison.correct(section, [row[m] for row in differences.values() for m in asked if m in row])
    beside = sorted({column for row in rows.values() for column in row.beside})
    columns: findings.Columns = {
        **{findings.column(metric): partial(findings.cell, metric=metric) for metric in asked},
        "tokens": lambda found: f"{found['mean_tokens']:.0f}",
    }
    parts = [
        _caption(study, numbers[outcomes.BASE], len(pairs) * len(asked)),
        _lines(
            ["row", *columns, f"pass@1 in world {' / '.join(map(str, study.worlds))}", *beside],
            [
                [
                    name,
                    *(cell(numbers[name]) for cell in columns.values()),
                    " / ".join(_by_world(found)),
                    *((rows[name].beside.get(column, "–") if name in rows else "–") for column in beside),
                ]
                for name, found in whole.items()
            ],
        ),
        _lines(
            ["difference", *(findings.delta(metric) for metric in asked)],
            [
                [
                    f"{name} − {other}",
                    *(findings.difference(differences[name].get(metric), metric) for metric in asked),
                ]
                for name, other in pairs.items()
            ],
        ),
    ]
    if "tiers" in table.beside:
        parts.append(_tiers(section, whole, peers))
    if "strategies" in table.beside:
        parts.append(_strategies(study, places, endings, made, read))
    return "\n\n".join(parts)


def _pool(
    arms: Sequence[Sequence[outcomes.Outcomes]], members: comparison.Members, metric: str
) -> list[comparison.Floats]:
    return [comparison.observed(found, members, metric) for found in arms]


def _caption(study: Study, numbers: Mapping[str, Any], num_comparisons: int) -> str:
    return (
        f"{numbers['num_problems']} problems of {len(study.worlds)} worlds, {numbers['num_samples']} samples a "
        f"problem, {len(study.seeds)} fine-tuning seeds a world; p by Holm's method over {num_comparisons} comparisons."
    )


def _lines(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(findings.aligned(header, rows))


def _by_world(found: Sequence[outcomes.Outcomes]) -> Iterator[str]:
    solved = np.mean([one.num_correct / one.num_samples for one in found], axis=0)
    for name in dict.fromkeys(found[0].benchmark.tolist()):
        yield f"{100 * solved[found[0].benchmark == name].mean():.1f}"


def _tiers(
    section: config.Report,
    whole: Mapping[str, Sequence[outcomes.Outcomes]],
    peers: Callable[[str], list[Sequence[outcomes.Outcomes]]],
) -> str:
    """pass@1 by tier, in the order of the small world where it is one."""
    tier = next(iter(whole.values()))[0].tier
    tiers = sorted(
        set(tier.tolist()), key=lambda one: (one not in world.TIERS, (*world.TIERS, one).index(one))
    )
    rows = []
    for name, found in whole.items():
        cells = []
        for one in tiers:
            told = comparison.numbers_of(section, found, tier == one, peers(name), ["pass_at_1"])
            cells.append(findings.cell(told, "pass_at_1"))
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
        experiment, _, arm = place.partition("/")
        trained: list[str] = []
        for seed in study.worlds:
            table = records.read(
                read(made[f"{experiment}-{seed}"], f"data/train/{arm}.parquet"),
                records.TRAIN,
                ["completion", "objective"],
            ).to_pylist()
            trained += [row["completion"] for row in table if row["objective"] == "ce"]
        cells = [" / ".join(shares(trained))]
        for ending in endings:
            texts: list[str] = []
            for path in _paths(study, place, ending, made, read):
                written = records.read(path, records.GENERATIONS, ["text", "step"])
                last = max(written["step"].to_pylist())
                texts += [row["text"] for row in written.to_pylist() if row["step"] == last]
            cells.append(" / ".join(shares(texts)))
        rows.append([name, *cells])
    order = " / ".join(world.STRATEGIES)
    return _lines(
        [f"{order}, %", "CE set", "answers", *(["answers after RL"] if outcomes.RL in endings else [])], rows
    )


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
    return Row(found, _beside(study, place, ending, made, read))


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
                value: Any = records.read_json(
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
        mean("selection", "ce", "chosen", seeds=False),
        mean("selection", "ce", "tokens", seeds=False),
    )
    suppressed = mean("train", "final", "ul_probability")
    return {
        "CE sequences": f"{chosen:.0f}",
        "CE tokens": f"{tokens:.0f}",
        **({} if suppressed is None else {"p of UL tokens": f"{suppressed:.2f}"}),
    }
