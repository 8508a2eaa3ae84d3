"""What a checkpoint did on each problem of the benchmarks.

Correctness comes from the stored verdicts of every generation. For majorities, answers that the verifier holds equal to
a gold one are one answer, and so are others that it holds equal to each other (records/same_answers.py).

Legend: P problems, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxa.comparison import estimators
from oxa.errors import DataError
from oxa.records import same_answers, schemas, tables

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BASE = "base"
RL = "-rl"  # ends the name of an arm after RL
COLUMNS = [
    "benchmark",
    "problem_id",
    "tier",
    "step",
    "sample_index",
    "num_tokens",
    "finish_reason",
    "verdict",
    "predicted",
]


@dataclass(frozen=True)
class Tally:
    """What the samples of each problem amount to: arrays [P]."""

    num_correct: Integers
    majority: Floats
    """maj@n of the problem's samples."""
    distinct_answers: Integers
    response_entropy: Floats
    """Nats a token, mean over the responses that were drawn for it; NaN where there are none."""
    entropy: Floats
    """Nats, summed over all tokens of these."""
    entropy_tokens: Floats
    """How many these are."""
    mean_tokens: Floats
    truncated: Floats
    """Share of the samples that were cut by length."""


@dataclass(frozen=True)
class Outcomes(Tally):
    """What one checkpoint did on each problem: arrays [P], in the order of (benchmark, problem_id)."""

    benchmark: NDArray[Any]
    problem_id: NDArray[Any]
    tier: NDArray[Any]
    num_samples: Integers

    def only(self, members: NDArray[Any]) -> Outcomes:
        """Of these problems alone, or in this order."""
        return _each([self], lambda arrays: arrays[0][members])


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Those of several sets of problems as those of one, in this order."""
    return _each(parts, np.concatenate)


def _each(parts: Sequence[Outcomes], function: Callable[[list[NDArray[Any]]], NDArray[Any]]) -> Outcomes:
    names = [field.name for field in fields(Outcomes)]
    return Outcomes(
        **{name: np.ascontiguousarray(function([getattr(part, name) for part in parts])) for name in names}
    )


def outcomes(path: Path, step: int | None = None, *, entropies: Path | None = None) -> Outcomes:
    """One checkpoint's generations, gathered by problem: of this RL step, by default of the last one in the table.

    `entropies`: the checkpoint's records.ENTROPIES, without which its entropies are unknown.
    """
    generated, apart = _read(path), _read_entropies(entropies)
    steps = sorted(generated["step"].unique().to_pylist())
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        raise DataError(f"{path}: nothing of step {wanted}; found {', '.join(map(str, steps))}")
    return _gathered(_of_step(generated, wanted), _of_step(apart, wanted))


def along_rl(path: Path, *, entropies: Path | None = None) -> dict[int, Outcomes]:
    """The same for every RL step in the table, in order."""
    generated, apart = _read(path), _read_entropies(entropies)
    steps = sorted(generated["step"].unique().to_pylist())
    return {step: _gathered(_of_step(generated, step), _of_step(apart, step)) for step in steps}


def _of_step(table: pa.Table, step: int) -> pa.Table:
    return table.filter(pc.equal(table["step"], step))


def _read_entropies(path: Path | None) -> pa.Table:
    columns = [field for field in schemas.ENTROPIES if field.name != "text"]
    if path is None:
        return pa.schema(columns).empty_table()
    return tables.read(path, schemas.ENTROPIES, [field.name for field in columns])


def _read(path: Path) -> pa.Table:
    generated = tables.read(path, schemas.GENERATIONS, COLUMNS)
    if not len(generated):
        raise DataError(f"{path}: no generations; check that ingest.benchmarks has problems")
    heads = same_answers.heads(tables.notes(path).get(same_answers.NOTE, {}))
    if not heads:
        return generated
    columns = (generated[name].to_pylist() for name in ("benchmark", "problem_id", "predicted"))
    answers = [
        answer and heads.get((benchmark, problem_id, same_answers.spelling(answer)), answer)
        for benchmark, problem_id, answer in zip(*columns, strict=True)
    ]
    at = generated.column_names.index("predicted")
    return generated.set_column(at, "predicted", pa.array(answers, pa.string()))


def _gathered(generated: pa.Table, entropies: pa.Table) -> Outcomes:
    keys = ("benchmark", "problem_id", "sample_index")
    generated = generated.sort_by([(key, "ascending") for key in keys])
    benchmark, problem_id, tier = (
        generated[key].to_numpy(zero_copy_only=False) for key in ("benchmark", "problem_id", "tier")
    )
    is_first = np.r_[True, (benchmark[1:] != benchmark[:-1]) | (problem_id[1:] != problem_id[:-1])]
    starts = np.flatnonzero(is_first)
    num_samples = np.diff(np.r_[starts, len(generated)])
    verdicts = generated["verdict"].to_numpy(zero_copy_only=False)
    marks = np.stack(
        [
            _answer_ids(generated["predicted"].to_pylist(), verdicts, is_first),
            generated["num_tokens"].to_numpy(),
            generated["finish_reason"].to_numpy(zero_copy_only=False) == "length",
        ]
    )
    drawn_apart = _by_problem(entropies)
    parts, places = [], []
    for n in np.unique(num_samples):
        members = np.flatnonzero(num_samples == n)
        of_problem = marks[:, starts[members][:, None] + np.arange(n)]  # [3, p, n]
        first = starts[members]
        apart = _apart(drawn_apart, benchmark[first], problem_id[first])
        parts.append(
            Outcomes(
                **vars(_tally(of_problem, apart)),
                benchmark=benchmark[first],
                problem_id=problem_id[first],
                tier=tier[first],
                num_samples=num_samples[members],
            )
        )
        places.append(members)
    return joined(parts).only(np.argsort(np.concatenate(places)))


EntropyAndTokens = list[tuple[float, int]]


def _by_problem(entropies: pa.Table) -> dict[tuple[str, str], EntropyAndTokens]:
    """Of every problem's responses that have a token; by benchmark and problem_id."""
    columns = ("benchmark", "problem_id", "entropy", "num_tokens")
    found: dict[tuple[str, str], EntropyAndTokens] = {}
    for name, problem, entropy, tokens in zip(
        *(entropies[column].to_pylist() for column in columns), strict=True
    ):
        if tokens:
            found.setdefault((name, problem), []).append((entropy, tokens))
    return found


def _apart(
    by_problem: dict[tuple[str, str], EntropyAndTokens], benchmark: NDArray[Any], problem_id: NDArray[Any]
) -> Floats:
    """[2, P, n]: entropy and tokens of each problem's responses that were drawn for it.

    Those with a token come first; 0 where a problem has fewer than n.
    """
    of_problem = [
        by_problem.get(key, []) for key in zip(benchmark.tolist(), problem_id.tolist(), strict=True)
    ]
    drawn = np.zeros((2, len(of_problem), max(1, *map(len, of_problem))))
    for place, each in enumerate(of_problem):
        drawn[:, place, : len(each)] = np.array(each).reshape(-1, 2).T
    return drawn


def _answer_ids(
    predicted: Sequence[str | None], verdicts: NDArray[Any], is_first: NDArray[np.bool_]
) -> Integers:
    """0 for the right answer, 1, 2, … for a problem's others, -1 for none."""
    ids = np.empty(len(predicted), np.int64)
    known: dict[str, int] = {}
    for row, (text, verdict, first) in enumerate(zip(predicted, verdicts, is_first, strict=True)):
        if first:
            known = {}
        if verdict == "correct":
            ids[row] = 0
        elif text is None:
            ids[row] = -1
        else:
            ids[row] = known.setdefault(same_answers.spelling(text), len(known) + 1)
    return ids


def _tally(marks: Floats, apart: Floats) -> Tally:
    """What samples [3, ..., n] (answer, tokens, cut) and those of `_apart` amount to, over the last axis."""
    answers, tokens, cut = marks
    ids = answers.astype(np.int64)
    return Tally(
        num_correct=(ids == 0).sum(axis=-1),
        majority=estimators.majority(ids),
        distinct_answers=estimators.distinct_answers(ids),
        response_entropy=estimators.response_entropy(*apart),
        entropy=apart[0].sum(axis=-1),
        entropy_tokens=apart[1].sum(axis=-1),
        mean_tokens=tokens.mean(axis=-1),
        truncated=cut.mean(axis=-1),
    )


def unlike(ours: Outcomes, theirs: Outcomes) -> str:
    """Why two checkpoints cannot be compared; "" where they can."""
    a, b = ({*zip(one.benchmark, one.problem_id, strict=True)} for one in (ours, theirs))
    if a != b:
        return f"evaluated on {len(a)} and {len(b)} problems, {len(a & b)} of them the same"
    if (differ := ours.num_samples != theirs.num_samples).any():
        at = int(np.argmax(differ))
        counts = f"{ours.num_samples[at]} and {theirs.num_samples[at]}"
        return f"evaluated with {counts} samples a problem of {ours.benchmark[at]}"
    return ""
