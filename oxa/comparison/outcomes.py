"""What a checkpoint did on each problem of the benchmarks, and what it would have done with its samples drawn again.

Correctness comes from the stored verdicts of every generation. Checkpoints answer with common random numbers, so the
same sample numbers are drawn again for all of them. For majorities, answers that the verifier holds equal to a gold
one are one answer; others are the same where their text is, white space left out. A wrong answer that is written in two
ways thus counts as two.

Legend: P problems, M draws of a problem's samples, n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from oxa.comparison import estimators as statistics
from oxa.errors import DataError
from oxa.records import schemas, tables

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BASE = "base"
RL = "-rl"  # ends the name of an arm after RL
NUM_REDRAWN = 100  # times that a problem's samples are drawn again
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
    "mean_entropy",
]


class Redrawn(NamedTuple):
    """What a checkpoint's problems would show with their samples drawn again: arrays [P, M]."""

    num_correct: Integers
    majority: Floats
    mean_entropy: Floats
    mean_tokens: Floats


class Outcomes(NamedTuple):
    """What one checkpoint did on each problem: arrays [P], in the order of (benchmark, problem_id)."""

    benchmark: NDArray[Any]
    problem_id: NDArray[Any]
    tier: NDArray[Any]
    num_samples: Integers
    num_correct: Integers
    majority: Floats  # maj@n of the problem's samples
    distinct_answers: Integers
    mean_entropy: Floats  # nats a token, over the problem's samples that have one; NaN where none has
    mean_tokens: Floats
    truncated: Floats  # share of the samples that were cut by length
    redrawn: Redrawn


def outcomes(path: Path, step: int | None = None) -> Outcomes:
    """One checkpoint's generations, gathered by problem: of this RL step, by default of the last one in the table."""
    generated = _read(path)
    steps = sorted(generated["step"].unique().to_pylist())
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        raise DataError(f"{path}: nothing of step {wanted}; found {', '.join(map(str, steps))}")
    return _gathered(generated.filter(pc.equal(generated["step"], wanted)))


def along_rl(path: Path) -> dict[int, Outcomes]:
    """The same for every RL step in the table, in order."""
    generated = _read(path)
    steps = sorted(generated["step"].unique().to_pylist())
    return {step: _gathered(generated.filter(pc.equal(generated["step"], step))) for step in steps}


def _read(path: Path) -> pa.Table:
    generated = tables.read(path, schemas.GENERATIONS, COLUMNS)
    if not len(generated):
        raise DataError(f"{path}: no generations; check that ingest.benchmarks has problems")
    return generated


def _gathered(generated: pa.Table) -> Outcomes:
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
            generated["mean_entropy"].to_numpy().astype(np.float64),
            generated["num_tokens"].to_numpy(),
            generated["finish_reason"].to_numpy(zero_copy_only=False) == "length",
        ]
    )
    gathered: dict[str, Floats] = {}
    rng = np.random.default_rng(0)
    for n in np.unique(num_samples):
        members = np.flatnonzero(num_samples == n)
        of_problem = marks[:, starts[members][:, None] + np.arange(n)]  # [4, p, n]
        again = rng.integers(n, size=(len(members), NUM_REDRAWN, n))
        redrawn = of_problem[:, np.arange(len(members))[:, None, None], again]  # [4, p, M, n]
        for name, values in _by_problem(of_problem).items():
            gathered.setdefault(name, np.empty(len(starts)))[members] = values
        for name, values in _by_problem(redrawn).items():
            gathered.setdefault(f"{name}*", np.empty((len(starts), NUM_REDRAWN)))[members] = values
    # samples without an entropy, all drawn by chance
    entropy, entropy_again = gathered["mean_entropy"], gathered["mean_entropy*"]
    gathered["mean_entropy*"] = np.where(np.isnan(entropy_again), entropy[:, None], entropy_again)
    return Outcomes(
        benchmark[starts],
        problem_id[starts],
        tier[starts],
        num_samples,
        gathered["num_correct"].astype(np.int64),
        gathered["majority"],
        gathered["distinct_answers"].astype(np.int64),
        gathered["mean_entropy"],
        gathered["mean_tokens"],
        gathered["truncated"],
        Redrawn(
            gathered["num_correct*"].astype(np.int64),
            gathered["majority*"],
            gathered["mean_entropy*"],
            gathered["mean_tokens*"],
        ),
    )


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
            ids[row] = known.setdefault("".join(text.split()), len(known) + 1)
    return ids


def _by_problem(marks: Floats) -> dict[str, Floats]:
    """What is known of samples [4, ..., n] (answer, entropy, tokens, cut), over the last axis."""
    answers, entropy, tokens, cut = marks
    ids = answers.astype(np.int64)
    finite = np.isfinite(entropy)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        mean_entropy = np.where(finite, entropy, 0).sum(axis=-1) / finite.sum(axis=-1)
    return {
        "num_correct": (ids == 0).sum(axis=-1),
        "majority": statistics.majority(ids),
        "distinct_answers": statistics.distinct_answers(ids),
        "mean_entropy": mean_entropy,
        "mean_tokens": tokens.mean(axis=-1),
        "truncated": cut.mean(axis=-1),
    }


def unlike(ours: Outcomes, theirs: Outcomes) -> str:
    """Why two checkpoints cannot be compared; "" where they can."""
    a, b = ({*zip(found.benchmark, found.problem_id, strict=True)} for found in (ours, theirs))
    if a != b:
        return f"evaluated on {len(a)} and {len(b)} problems, {len(a & b)} of them the same"
    if (differ := ours.num_samples != theirs.num_samples).any():
        at = int(np.argmax(differ))
        counts = f"{ours.num_samples[at]} and {theirs.num_samples[at]}"
        return f"evaluated with {counts} samples a problem of {ours.benchmark[at]}"
    return ""
