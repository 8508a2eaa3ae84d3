"""How many rows and tokens the stages handle, and how each number is known.

`measured`: counted in a table that DVC's lock file says was made with these very parameters. `from params`: it follows
from the params file, as an upper bound where ingestion may drop rows. `assumed`: the section `plan` says so, or nothing
does. What is made of several numbers is known as well as the worst of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from oxa.config.params import Params
from oxa.config.selection import tokens_of
from oxa.data.world import STRATEGIES

Origin = Literal["measured", "from params", "assumed"]
ORIGINS: tuple[Origin, ...] = ("measured", "from params", "assumed")

PROBLEMS = 10_000  # where nothing is said of a source
BENCHMARK_PROBLEMS = 100
PROMPT_TOKENS = 200  # a problem with the paper's suffix in Qwen's tokens
SPREAD = 1.5
"""Mean square of response lengths over their squared mean: of log-normal ones whose mean is 1.25 medians, as reasoning
chains' are (16,254 and 12,980 characters in OpenR1-Math-220k's)."""


class Number(NamedTuple):
    value: float
    origin: Origin
    why: str


class Rows(NamedTuple):
    """A set of sequences."""

    num: float
    tokens: float
    """Σ T."""
    squares: float
    """Σ T²."""
    longest: int
    origin: Origin

    @property
    def mean(self) -> float:
        return self.tokens / self.num if self.num else 0.0

    def with_prompt(self, prompt: float) -> Rows:
        """Each sequence longer by a prompt."""
        squares = self.squares + 2 * prompt * self.tokens + prompt**2 * self.num
        return Rows(
            self.num, self.tokens + prompt * self.num, squares, self.longest + round(prompt), self.origin
        )

    def times(self, factor: float) -> Rows:
        return Rows(factor * self.num, factor * self.tokens, factor * self.squares, self.longest, self.origin)


def worst(origins: Iterable[Origin]) -> Origin:
    return max(origins, key=ORIGINS.index)


class Made:
    """What DVC's lock file says of the tables in `data`: which were made with the parameters `raw`."""

    def __init__(self, raw: dict[str, Any], data: Path, lock: Path) -> None:
        self._raw, self._data = raw, data
        locked = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else None
        self._stages: dict[str, Any] = (locked or {}).get("stages", {})

    def table(self, path: str, stages: tuple[str, ...], columns: list[str]) -> pa.Table | None:
        """The table's columns, where it is there and all the stages that led to it ran with these parameters."""
        file = self._data / path
        if not file.is_file() or not self.current(stages):
            return None
        return pq.read_table(file, columns=columns)

    def current(self, stages: tuple[str, ...]) -> bool:
        return all(name in self._stages and self._same(self._stages[name]) for name in stages)

    def _same(self, stage: dict[str, Any]) -> bool:
        held = {key: value for part in stage.get("params", {}).values() for key, value in part.items()}
        return all(self._value(key) == value for key, value in held.items())

    def _value(self, key: str) -> Any:
        value: Any = self._raw
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


class Volumes:
    """Rows and tokens of every stage's input, for one params file; `context` is the student's, tokens."""

    def __init__(self, params: Params, made: Made, context: int) -> None:
        self._params, self._made, self.context = params, made, context
        self.prompt = float(min(PROMPT_TOKENS, context // 8))
        splits = self._splits()
        self.problems = splits.get("train") or self._problems()
        self.benchmarks = {
            name: splits.get(name) or self._benchmark(name) for name in params.ingest.benchmarks
        }
        self.teacher = self._teacher()

    def _splits(self) -> dict[str, Number]:
        table = self._made.table("problems.parquet", ("ingest",), ["split"])
        if table is None:
            return {}
        counted = pc.value_counts(table["split"]).to_pylist()
        return {row["values"]: Number(row["counts"], "measured", "data/problems.parquet") for row in counted}

    def _problems(self) -> Number:
        plan, params = self._params.plan, self._params
        if plan.problems:
            return Number(plan.problems, "assumed", "plan.problems")
        sources = params.ingest.teacher
        if all(source.source == "world" for source in sources):
            return Number(
                params.sources.world.num_train * len(sources), "from params", "sources.world.num_train"
            )
        if all(source.limit for source in sources):
            limits = [source.limit or 0 for source in sources]
            return Number(sum(limits), "from params", "at most, ingest.teacher[].limit")
        return Number(PROBLEMS, "assumed", "nothing says; plan.problems sets it")

    def _benchmark(self, name: str) -> Number:
        source = self._params.ingest.benchmarks[name]
        if name in self._params.plan.benchmark_problems:
            return Number(
                self._params.plan.benchmark_problems[name], "assumed", f"plan.benchmark_problems.{name}"
            )
        if source.source == "world":
            return Number(
                self._params.sources.world.num_benchmark, "from params", "sources.world.num_benchmark"
            )
        if source.limit:
            return Number(source.limit, "from params", f"at most, ingest.benchmarks.{name}.limit")
        return Number(BENCHMARK_PROBLEMS, "assumed", f"nothing says; plan.benchmark_problems.{name} sets it")

    @property
    def teacher_length(self) -> Number:
        said = self._params.plan.response_tokens
        if said:
            return Number(said, "assumed", "plan.response_tokens")
        return Number(
            min(self._params.sample.max_tokens, self.context),
            "assumed",
            "as sample.max_tokens; plan.response_tokens sets it",
        )

    def generated_length(self, max_tokens: int) -> Number:
        """Mean length of what a model of the pipeline writes under this limit."""
        room = min(max_tokens, self.context)
        said = self._params.plan.generated_tokens
        if said:
            return Number(min(said, room), "assumed", "plan.generated_tokens")
        return Number(room, "assumed", "all as long as max_tokens; plan.generated_tokens sets it")

    @property
    def responses_each(self) -> Number:
        """Teacher responses a problem."""
        said = self._params.plan.responses_per_problem
        if said:
            return Number(said, "assumed", "plan.responses_per_problem")
        if all(source.source == "world" for source in self._params.ingest.teacher):
            return Number(self._params.sources.world.num_teacher, "from params", "sources.world.num_teacher")
        return Number(1, "assumed", "nothing says; plan.responses_per_problem sets it")

    def _teacher(self) -> Rows:
        """Teacher responses behind ingestion."""
        scored = self._made.table(
            "scores/teacher.parquet", ("base", "ingest", "verify@teacher", "score@teacher"), ["num_tokens"]
        )
        if scored is not None:
            return _counted(scored)
        each, length = self.responses_each, self.teacher_length
        return estimated(
            self.problems.value * each.value,
            length.value,
            self.context,
            worst([self.problems.origin, each.origin, length.origin]),
        )

    def self_samples(self) -> Rows:
        table = self._made.table("responses/self.parquet", ("base", "ingest", "sample"), ["num_tokens"])
        if table is not None:
            return _counted(table)
        section = self._params.sample
        length = self.generated_length(section.max_tokens)
        return estimated(
            self.problems.value * section.num_samples,
            length.value,
            min(section.max_tokens, self.context),
            worst([self.problems.origin, length.origin]),
        )

    def scored(self, origin: str) -> Rows:
        """Responses that are scored: at most all of them."""
        stages = ("base", "ingest", f"verify@{origin}", f"score@{origin}") + ("sample",) * (origin == "self")
        table = self._made.table(f"scores/{origin}.parquet", stages, ["num_tokens"])
        if table is not None:
            return _counted(table)
        return self.teacher if origin == "teacher" else self.self_samples()

    def chosen(self, arm: str) -> dict[str, Rows]:
        """An arm's training set by objective, prompts left out."""
        rule, unlikelihood = self._params.selection.ce[arm], self._params.selection.ul.get(arm)
        stages = {"ce": ("base", "ingest", "score@teacher"), "ul": ("base", "ingest", "sample", "score@self")}
        made = {
            name: self._made.table(
                f"train/{arm}/{name}.parquet", (*stages[name], f"selection_{name}@{arm}"), ["num_tokens"]
            )
            for name in ("ce", "ul")[: 1 + (unlikelihood is not None)]
        }
        counted = {name: _counted(table) for name, table in made.items() if table is not None}
        if len(counted) == len(made):
            return counted
        shared, limit = self._params.selection.shared, self._params.train.shared.max_length
        longest = min(limit, self.context)
        mean, origin = self.teacher.mean, self.teacher.origin
        if rule == "gaussian" and shared.within_bin == "longest" and self._params.plan.longest_tokens:
            mean, origin = self._params.plan.longest_tokens, "assumed"
        mean = min(mean, longest)
        budget = tokens_of(shared.num_ce)
        num = int(shared.num_ce) if budget is None else max(1, round(budget / mean))
        rows = {"ce": estimated(num, mean, longest, worst(["from params", origin]))}
        if unlikelihood:
            wrong = self.self_samples()
            rows["ul"] = estimated(
                unlikelihood.num, min(wrong.mean, longest), longest, worst(["from params", wrong.origin])
            )
        return rows

    def answers(self) -> Rows:
        """One checkpoint's answers to all benchmarks."""
        section = self._params.evaluate
        drawn = section.num_samples_by_benchmark
        num = sum(
            number.value * drawn.get(name, section.num_samples) for name, number in self.benchmarks.items()
        )
        length = self.generated_length(section.max_tokens)
        origins: list[Origin] = [number.origin for number in self.benchmarks.values()]
        return estimated(
            num, length.value, min(section.max_tokens, self.context), worst([*origins, length.origin])
        )

    def gates(self) -> Rows:
        """The base's answers, left alone and forced, where it is a student of the small world."""
        section = self._params.gates["world"]
        num = section.num_problems * (section.num_samples + len(STRATEGIES))
        length = self.generated_length(section.max_tokens)
        return estimated(
            num,
            length.value,
            min(section.max_tokens, self.context),
            length.origin,
        )

    def rollouts(self) -> Rows:
        """All of one training by RL."""
        section = self._params.rlvr
        length = self.generated_length(section.max_tokens)
        num = section.steps * section.num_prompts * section.num_generations
        return estimated(num, length.value, min(section.max_tokens, self.context), length.origin)


def estimated(num: float, mean: float, longest: int, origin: Origin) -> Rows:
    """Lengths spread as reasoning chains are, as far as the longest allows."""
    squares = num * mean * min(SPREAD * mean, longest)
    return Rows(num, num * mean, squares, longest, origin)


def _counted(table: pa.Table) -> Rows:
    lengths = table["num_tokens"].to_numpy().astype(np.float64)
    return Rows(
        len(lengths),
        float(lengths.sum()),
        float((lengths**2).sum()),
        int(lengths.max(initial=0)),
        "measured",
    )
