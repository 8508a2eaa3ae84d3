"""What the arms of a study's experiments left behind: their outcomes, training sets and metrics.

An arm is named by its place, `EXPERIMENT/ARM`; `ending` is that of arms after RL, or empty. What is read of an arm is
held for all comparisons that it stands in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa.comparison import drawn, outcomes
from oxa.comparison.measures import Metric, pass_at
from oxa.comparison.outcomes import BASE, Floats, Outcomes, unlike
from oxa.data import world as small_world
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import files
from oxa.study.experiments import Run, Study

Read = Callable[[Run, str], Path]
"""The file at a path of an experiment's workspace."""


class Results:
    """Of the experiments that are `done`, by name: EXPERIMENT-WORLD-SEED."""

    def __init__(self, study: Study, done: Mapping[str, Run], read: Read) -> None:
        self.study = study
        self.done = done
        self._read = read
        self.gates = cache(self._gates)
        self.outcomes = cache(self._outcomes)
        self.strategies_taught = cache(self._strategies_taught)
        self.strategies_taken = cache(self._strategies_taken)
        self.ppl_by_strategy = cache(self._ppl_by_strategy)

    def worlds(self, *places: str) -> list[int]:
        """Those in which the experiments of all of these are done with every seed."""
        experiments = {place.partition("/")[0] for place in places}
        names = [f"{name}-{{}}-{seed}" for name in experiments for seed in self.study.seeds_of(name)]
        return [of for of in self.study.worlds if all(name.format(of) in self.done for name in names)]

    def files(self, place: str, world: int, path: str) -> list[Path]:
        """One a seed; `{arm}` and `{seed}` in the path stand for the arm and its seed."""
        experiment, _, arm = place.partition("/")
        return [
            self._read(self.done[f"{experiment}-{world}-{seed}"], path.format(arm=arm, seed=seed))
            for seed in self.study.seeds_of(experiment)
        ]

    def _gates(self) -> dict[int, dict[str, Any]]:
        """What was measured of every world's base."""
        measured: dict[int, dict[str, Any]] = {}
        for run in self.done.values():
            if "gates" in run.stages and run.world not in measured:
                measured[run.world] = files.read_json(self._read(run, "metrics/evaluate/gates-world.json"))
        return {world: measured[world] for world in self.study.worlds if world in measured}

    def mean(self, place: str, world: int, path: str, *keys: str) -> float | None:
        """Of a metric, over seeds; None where one has none."""
        values: list[Any] = []
        for file in self.files(place, world, path):
            value = files.read_json(file)
            for key in keys:
                value = (value or {}).get(key)
            values.append(value)
        return None if None in values else float(np.mean(values))

    def base(self, place: str, world: int) -> Outcomes:
        """Of the base that the arm was trained from."""
        return self.outcomes(place, world, None)[0]

    def _outcomes(self, place: str, world: int, ending: str | None) -> list[Outcomes]:
        """One a seed; of the base, where `ending` is None. DataError where they were not evaluated as the base was."""
        name = BASE if ending is None else f"{{arm}}-{{seed}}{ending}"
        answers, entropies = (
            self.files(place, world, f"data/{folder}/{name}.parquet")
            for folder in ("generations", "entropies")
        )
        found = [
            outcomes.outcomes(path, entropies=apart) for path, apart in zip(answers, entropies, strict=True)
        ]
        first = self.files(place, world, f"data/generations/{BASE}.parquet")[0]
        base = found[0] if ending is None else self.base(place, world)
        for path, one in zip(answers, found, strict=True):
            if why := unlike(one, base) or drawn.unlike(drawn.settings(path), drawn.settings(first)):
                raise DataError(f"world {world}, {place}{ending or ''}: not evaluated like {BASE}: {why}")
        return found

    def values(self, place: str, world: int, ending: str | None, metric: Metric) -> Floats:
        """A metric of every seed and problem, [S, P]; of the base, [1, P], where `ending` is None."""
        runs = self.outcomes(place, world, ending)
        runs = runs[:1] if ending is None else runs
        return np.array([metric.values(run.num_samples, run) for run in runs], np.float64)

    def pass_at_1(self, place: str, world: int, ending: str | None) -> float:
        return float(self.values(place, world, ending, pass_at(1)).mean())

    def _strategies_taught(self, place: str, world: int) -> dict[str, float]:
        """Share of each of the small world's strategies among the solutions that cross-entropy learns from."""
        paths = self.files(place, world, "data/train/{arm}/ce.parquet")
        return _shares(tables.read(path, schemas.TRAIN, ["completion"])["completion"] for path in paths)

    def _strategies_taken(self, place: str, world: int, ending: str) -> dict[str, float]:
        """Share of each among the answers, at the last step of RL or before it."""
        parts = []
        for path in self.files(place, world, f"data/generations/{{arm}}-{{seed}}{ending}.parquet"):
            table = tables.read(path, schemas.GENERATIONS, ["text", "step"])
            parts.append(table.filter(pc.equal(table["step"], pc.max(table["step"])))["text"])
        return _shares(parts)

    def _ppl_by_strategy(self, place: str, world: int) -> dict[str, float]:
        """Median perplexity under the base of the right solutions that take each strategy."""
        responses, verdicts, scores = (
            tables.read(self.files(place, world, path)[0], schema, columns)
            for path, schema, columns in (
                ("data/responses/teacher.parquet", schemas.RESPONSES, ["response_id", "text"]),
                ("data/verdicts/teacher.parquet", schemas.VERDICTS, ["response_id", "verdict"]),
                ("data/scores/teacher.parquet", schemas.SCORES, ["response_id", "ppl"]),
            )
        )
        right = verdicts.filter(pc.equal(verdicts["verdict"], "correct"))
        ppl = dict(zip(scores["response_id"].to_pylist(), scores["ppl"].to_pylist(), strict=True))
        text = dict(zip(responses["response_id"].to_pylist(), responses["text"].to_pylist(), strict=True))
        by_strategy: dict[str, list[float]] = {name: [] for name in small_world.STRATEGIES}
        for response in right["response_id"].to_pylist():
            name = str(small_world.strategy_of(text[response]))
            if name in by_strategy and response in ppl:
                by_strategy[name].append(ppl[response])
        return {name: float(np.median(values)) if values else np.nan for name, values in by_strategy.items()}


def _shares(texts: Iterable[pa.ChunkedArray]) -> dict[str, float]:
    counts = Counter(str(small_world.strategy_of(text)) for part in texts for text in part.to_pylist())
    return {name: counts[name] / max(1, counts.total()) for name in small_world.STRATEGIES}
