"""How many rows and tokens the stages handle, and how each number is known.

`measured`: counted in a table of the data folder, as it lies there. `from params`: it follows from the params file and
the files that it names as sources, as an upper bound where ingestion may drop rows. `assumed`: the section `plan` says
so, or nothing does. What is made of several numbers is known as well as the worst of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from oxa.config.params import Params
from oxa.config.selection import tokens_of
from oxa.config.sources import Source
from oxa.data import sources
from oxa.errors import ConfigError
from oxa.records import schemas, tables

Origin = Literal["measured", "from params", "assumed"]
ORIGINS: tuple[Origin, ...] = ("measured", "from params", "assumed")

PROBLEMS = 10_000  # of a source of unknown size
BENCHMARK_PROBLEMS = 100  # likewise
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
        return self.tokens / self.num

    def with_prompt(self, prompt: float) -> Rows:
        """Each sequence longer by a prompt."""
        tokens = self.tokens + prompt * self.num
        squares = self.squares + 2 * prompt * self.tokens + prompt**2 * self.num
        return self._replace(tokens=tokens, squares=squares, longest=self.longest + round(prompt))

    def times(self, factor: float) -> Rows:
        return Rows(factor * self.num, factor * self.tokens, factor * self.squares, self.longest, self.origin)


class Workload(NamedTuple):
    numbers: dict[str, Number]
    """What everything is made of, as it is called in the printout."""
    benchmarks: dict[str, Number]
    """Problems of each."""
    prompt: float
    """Mean length of a prompt, tokens."""
    responses: dict[str, Rows]
    """By origin: correct teacher responses (all, where they are not counted yet) and self-samples."""
    sets: dict[str, dict[str, Rows]]
    """Training sets without prompts, by arm and objective."""


def worst(origins: Iterable[Origin]) -> Origin:
    return max(origins, key=ORIGINS.index)


def estimated(num: float, mean: float, longest: int, *origins: Origin) -> Rows:
    """Lengths spread as reasoning chains are, as far as the longest allows."""
    return Rows(num, num * mean, num * mean * min(SPREAD * mean, longest), longest, worst(origins))


def generated_length(params: Params, max_tokens: int, context: int) -> Number:
    """Mean length of what a model of the pipeline writes under this limit, tokens."""
    room, mean = min(max_tokens, context), params.plan.generated_tokens
    if mean:
        return Number(min(mean, room), "assumed", "plan.generated_tokens")
    return Number(room, "assumed", "all as long as max_tokens; plan.generated_tokens sets it")


def generated(params: Params, max_tokens: int, context: int, num: float, *origins: Origin) -> Rows:
    length = generated_length(params, max_tokens, context)
    return estimated(num, length.value, min(max_tokens, context), *origins, length.origin)


def workload(params: Params, context: int, data: Path | None) -> Workload:
    """Of a student with a context of so many tokens; `data` is the folder whose tables are counted, if any."""
    plan, teachers, world = params.plan, params.ingest.teacher, params.sources.world
    is_world, folder = all(one.source == "world" for one in teachers), Path(params.sources.folder)
    at_most = f"at most, by `limit` or the rows in {folder}"
    if data and not data.is_dir():
        raise ConfigError(f"--data: {data}: no such folder; name one whose tables are to be counted")
    table = f"{data}/problems.parquet, as it lies there"
    split = _column(data, "problems.parquet", schemas.PROBLEMS, "split")
    splits = Counter(split.to_pylist() if split else ())
    teacher = _counted(data, "scores/teacher.parquet", schemas.SCORES)
    samples = _counted(data, "responses/self.parquet", schemas.RESPONSES)
    problems = _first(
        (splits.get("train"), "measured", table),
        (plan.problems, "assumed", "plan.problems"),
        (is_world * world.num_train * len(teachers), "from params", "sources.world.num_train"),
        (partial(_at_most, teachers, folder), "from params", at_most),
        (PROBLEMS, "assumed", "nothing says; plan.problems sets it"),
    )
    benchmarks = {
        name: _first(
            (splits.get(name), "measured", table),
            (plan.benchmark_problems.get(name), "assumed", f"plan.benchmark_problems.{name}"),
            (source.source == "world" and world.num_benchmark, "from params", "sources.world.num_benchmark"),
            (partial(_at_most, [source], folder), "from params", at_most),
            (BENCHMARK_PROBLEMS, "assumed", f"nothing says; plan.benchmark_problems.{name} sets it"),
        )
        for name, source in params.ingest.benchmarks.items()
    }
    scores = f"{data}/scores/teacher.parquet, as it lies there"
    each = _first(
        (teacher.num / problems.value if teacher else None, "measured", scores),
        (plan.responses_per_problem, "assumed", "plan.responses_per_problem"),
        (is_world * world.num_teacher, "from params", "sources.world.num_teacher"),
        (1, "assumed", "nothing says; plan.responses_per_problem sets it"),
    )
    limit = params.sample.max_tokens
    length = _first(
        (teacher.mean if teacher else None, "measured", scores),
        (plan.response_tokens, "assumed", "plan.response_tokens"),
        (min(limit, context), "assumed", "as sample.max_tokens; plan.response_tokens sets it"),
    )
    origins = (problems.origin, each.origin, length.origin)
    own_length = generated_length(params, limit, context)
    if samples:
        own_length = Number(samples.mean, "measured", f"{data}/responses/self.parquet, as it lies there")
    warm_up = params.sample.warm_up
    apart = warm_up.num if warm_up and warm_up.apart else 0
    num = max(1, problems.value - apart) * params.sample.num_samples
    teacher = teacher or estimated(problems.value * each.value, length.value, context, *origins)
    samples = samples or generated(params, limit, context, num, problems.origin)
    of_rl = _first(
        (splits.get("rlvr"), "measured", table),
        (
            any(one.source == "world" for one in params.ingest.rlvr) and world.num_rlvr,
            "from params",
            "sources.world.num_rlvr",
        ),
        (partial(_at_most, params.ingest.rlvr, folder), "from params", at_most),
        (params.rlvr.num_problems, "assumed", "as rlvr.num_problems"),
        (PROBLEMS, "assumed", "nothing says"),
    )
    numbers = {
        "training problems": problems,
        **({"problems for RL": of_rl} if "rlvr" in params.pass_rate.splits else {}),
        **{f"problems of {name}": number for name, number in benchmarks.items()},
        "teacher responses a problem": each,
        "tokens of a teacher response": length,
        "tokens of a self-sample": own_length,
        "tokens of an answer": generated_length(params, params.evaluate.max_tokens, context),
        "tokens of a rollout": generated_length(params, params.rlvr.max_tokens, context),
    }
    return Workload(
        numbers,
        benchmarks,
        float(min(PROMPT_TOKENS, context // 8)),
        {"teacher": teacher, "self": samples},
        {arm: _sets(params, arm, context, teacher, samples) for arm in params.arms},
    )


def _at_most(named: list[Source], folder: Path) -> int:
    """Problems of all these sources; 0 where one of them tells nothing."""
    each = [sources.at_most(source, folder) or 0 for source in named]
    return all(each) * sum(each)


def _sets(params: Params, arm: str, context: int, teacher: Rows, samples: Rows) -> dict[str, Rows]:
    """Of an arm, by objective."""
    shared, suppressed = params.selection.shared, params.selection.ul.get(arm)
    longest = min(params.train.shared.max_length, context)
    mean, origin, longest_first = teacher.mean, teacher.origin, params.plan.longest_tokens
    ce = params.selection.ce[arm]
    takes_longest = ce.rule == "gaussian" and shared.within_bin == "longest"
    if longest_first and (takes_longest or (ce.by, ce.rule) == ("length", "highest")):
        mean, origin = longest_first, "assumed"
    mean, budget = min(mean, longest), tokens_of(shared.num_ce)
    num = int(shared.num_ce) if budget is None else max(1, round(budget / mean))
    sets = {"ce": estimated(num, mean, longest, "from params", origin)}
    if suppressed:
        sets["ul"] = estimated(
            suppressed.num, min(samples.mean, longest), longest, "from params", samples.origin
        )
    return sets


def _first(*numbers: tuple[float | Callable[[], int] | None, Origin, str]) -> Number:
    """The first that has a value; what has to be counted for it is, where none before it has one."""
    for known, origin, why in numbers:
        if value := known() if callable(known) else known:
            return Number(value, origin, why)
    raise AssertionError("the last one always has a value")


def _column(data: Path | None, table: str, schema: pa.Schema, name: str) -> pa.ChunkedArray | None:
    """Of a table that is there."""
    path = data and data / table
    return tables.read(path, schema, [name])[name] if path and path.is_file() else None


def _counted(data: Path | None, table: str, schema: pa.Schema) -> Rows | None:
    """A table's rows, by num_tokens; None where there are none."""
    column = _column(data, table, schema, "num_tokens")
    if not column:
        return None
    lengths = column.to_numpy().astype(np.float64)
    return Rows(len(lengths), float(lengths.sum()), float((lengths**2).sum()), int(lengths.max()), "measured")
