"""What the arms of a study's experiments left behind: their outcomes, training sets and metrics.

What is read of an arm is held for all comparisons that it stands in.

An arm is named by its place, `EXPERIMENT/ARM`. Of the worlds together, a checkpoint's outcomes are those of one set of
problems, whose `benchmark` ends in the world: `world 30`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa.comparison import drawn, outcomes
from oxa.comparison.measures import Members
from oxa.comparison.outcomes import Outcomes
from oxa.data import world
from oxa.records import schemas, tables
from oxa.runtime import files
from oxa.study.experiments import Run, Study

Read = Callable[[Run, str], Path]
"""The file at a path of an experiment's workspace."""


class Results:
    """Of the experiments that are `done`, by name: EXPERIMENT-WORLD."""

    def __init__(self, study: Study, done: Mapping[str, Run], read: Read) -> None:
        self.study = study
        self.done = done
        self._read = read
        self.base = cache(self._base)
        self.outcomes = cache(self._outcomes)
        self.strategies_taken = cache(self._strategies_taken)
        self._ce_sets = cache(self._read_ce_sets)

    def has(self, place: str) -> bool:
        """Whether its experiment is done in every world."""
        return all(f"{place.partition('/')[0]}-{seed}" in self.done for seed in self.study.worlds)

    def gates(self) -> dict[int, dict[str, Any]]:
        """What was measured of every world's base."""
        measured: dict[int, dict[str, Any]] = {}
        for run in self.done.values():
            if "gates" in run.stages and run.world not in measured:
                measured[run.world] = files.read_json(self._read(run, "metrics/evaluate/gates-world.json"))
        return {seed: measured[seed] for seed in self.study.worlds if seed in measured}

    def mean(self, place: str, path: str, *keys: str) -> float | None:
        """Of a metric, over worlds, and over seeds where `{seed}` is in the path; None where one has none."""
        values: list[Any] = []
        for seed in self.study.seeds if "{seed}" in path else [0]:
            for file in self._files(place, path, seed):
                value = files.read_json(file)
                for key in keys:
                    value = (value or {}).get(key)
                values.append(value)
        return None if None in values else float(np.mean(values))

    def _files(self, place: str, path: str, seed: int = 0) -> list[Path]:
        """One a world; `{arm}` and `{seed}` in the path stand for the arm and its fine-tuning seed."""
        experiment, _, arm = place.partition("/")
        path = path.format(arm=arm, seed=seed)
        return [self._read(self.done[f"{experiment}-{of}"], path) for of in self.study.worlds]

    def _answers(self, place: str, ending: str, folder: str = "generations") -> list[list[Path]]:
        """Of every fine-tuning seed, one a world; `ending` is that of arms after RL, or empty."""
        path = f"data/{folder}/{{arm}}-{{seed}}{ending}.parquet"
        return [self._files(place, path, seed) for seed in self.study.seeds]

    def _base(self, place: str) -> Outcomes:
        """Of the base that the arm was trained from."""
        answers, entropies = (
            self._files(place, f"data/{folder}/base.parquet") for folder in ("generations", "entropies")
        )
        return self._joined(answers, entropies)

    def _outcomes(self, place: str, ending: str) -> list[Outcomes]:
        """One a fine-tuning seed."""
        both = (self._answers(place, ending), self._answers(place, ending, "entropies"))
        return [self._joined(*paths) for paths in zip(*both, strict=True)]

    def drawn(self, place: str, ending: str) -> list[drawn.Settings]:
        """With which settings the answers of every seed and world were drawn, those of the base first."""
        base = self._files(place, "data/generations/base.parquet")
        paths = [path for paths in (base, *self._answers(place, ending)) for path in paths]
        return [drawn.settings(path) for path in paths]

    def _joined(self, answers: Sequence[Path], entropies: Sequence[Path]) -> Outcomes:
        parts = []
        for seed, path, apart in zip(self.study.worlds, answers, entropies, strict=True):
            part = outcomes.outcomes(path, entropies=apart)
            parts.append(replace(part, benchmark=part.benchmark + f" {seed}"))
        return outcomes.joined(parts)

    def solutions(self, place: str) -> list[list[str]]:
        """Of every world, the ids of the responses that cross-entropy learns from."""
        return [sorted(table["response_id"].to_pylist()) for table in self._ce_sets(place)]

    def _read_ce_sets(self, place: str) -> list[pa.Table]:
        paths = self._files(place, "data/train/{arm}/ce.parquet")
        return [tables.read(path, schemas.TRAIN, ["response_id", "completion"]) for path in paths]

    def strategies_taught(self, place: str) -> Counter[str]:
        """Of the small world's strategies, how many solutions that cross-entropy learns from take them."""
        return _strategies(table["completion"] for table in self._ce_sets(place))

    def _strategies_taken(self, place: str, ending: str) -> Counter[str]:
        """How many answers take them, at the last step of RL or before it."""
        parts = []
        for path in (path for paths in self._answers(place, ending) for path in paths):
            table = tables.read(path, schemas.GENERATIONS, ["text", "step"])
            parts.append(table.filter(pc.equal(table["step"], pc.max(table["step"])))["text"])
        return _strategies(parts)


def _strategies(texts: Iterable[pa.ChunkedArray]) -> Counter[str]:
    return Counter(str(world.strategy_of(text)) for part in texts for text in part.to_pylist())


def of_world(checkpoint: Outcomes, seed: int) -> Members:
    """Which of the problems of all worlds are this one's."""
    return np.array([name.endswith(f" {seed}") for name in checkpoint.benchmark.tolist()])
