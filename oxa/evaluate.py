"""A checkpoint's answers to the benchmarks, every one of them stored and graded.

pass@1 is the mean over samples, pass@k the unbiased estimate (oxa/metrics.py), each averaged over problems.

A generation's random numbers follow from the seed and an id of problem, benchmark and sample index, not from the
checkpoint: all arms and seeds answer with the same uniforms (common random numbers), which lowers the variance of
the paired differences between them and biases none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa import answers, generate, lm, prompts, records
from oxa.config import Evaluate, Generate, Prompt, Verify
from oxa.errors import DataError
from oxa.metrics import k_values, pass_at_k


def run(
    section: Evaluate,
    engine: Generate,
    prompt: Prompt,
    verify: Verify,
    *,
    model: Path,
    problems: Path,
    output: Path,
    scratch: Path,
    log: records.Log,
) -> dict[str, Any]:
    """Answers, grades and writes records.GENERATIONS: a problem's samples together, in the problems' order.

    Returns {"benchmarks": {name: numbers, with "tiers": {tier: numbers} where the benchmark has tiers}, "pooled":
    numbers over all benchmarks' problems}; entropies in nats a token, lengths in tokens. Only the verdict `correct`
    counts as right; the other verdicts' shares are given beside it, since a timeout or an unparsable answer is not
    known to be wrong. `no_room` counts the empty answers to prompts that fill the model's context: they have 0 tokens,
    are unparsable and have no entropy; mean_entropy is over the problems that have one, None where none has.
    """
    table = _benchmark_problems(section, problems)
    tokenizer = lm.load_tokenizer(model)
    rows: list[dict[str, Any]] = []
    requests: list[generate.Request] = []
    for problem in table.to_pylist():
        benchmark, problem_id = problem["split"], problem["problem_id"]
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(problem["question"], prompt.suffix))
        for index in range(_num_samples(section, benchmark)):
            key = records.response_id(problem_id, "evaluate", benchmark, f"{section.seed}/{index}")
            requests.append(generate.Request(key, ids))
            rows.append(problem | {"benchmark": benchmark, "sample_index": index})
    generations = generate.generate(
        model, requests, section, engine, scratch=scratch, description="generations"
    )
    with answers.Grader(verify) as grader:
        items = [
            (row["answers"], generation.text, generation.finish_reason)
            for row, generation in zip(rows, generations, strict=True)
        ]
        graded = grader.grade(items)
    for row, generation, grade in zip(rows, generations, graded, strict=True):
        row |= generation._asdict() | grade._asdict()
    written = pa.Table.from_pylist(rows, schema=records.GENERATIONS)
    records.write(output, written, records.GENERATIONS)
    return summarize(written)


def summarize(generations: pa.Table) -> dict[str, Any]:
    """The numbers of `run` from records.GENERATIONS; needs no model."""
    benchmarks: dict[str, Any] = {}
    for name in sorted(generations["benchmark"].unique().to_pylist()):
        part = generations.filter(pc.equal(generations["benchmark"], name))
        benchmarks[name] = _numbers(part)
        tiers = sorted(tier for tier in part["tier"].unique().to_pylist() if tier)
        if tiers:
            benchmarks[name]["tiers"] = {
                tier: _numbers(part.filter(pc.equal(part["tier"], tier))) for tier in tiers
            }
    return {"benchmarks": benchmarks, "pooled": _numbers(generations)}


def _benchmark_problems(section: Evaluate, problems: Path) -> pa.Table:
    table = records.read(problems, records.PROBLEMS)
    table = table.filter(pc.not_equal(table["split"], "train"))
    found = set(table["split"].unique().to_pylist())
    for name in section.num_samples_by_benchmark:
        if name not in found:
            raise DataError(
                f"{problems}: benchmark {name!r} of evaluate.num_samples_by_benchmark has no problems; found "
                f"{sorted(found)}; check its source under ingest.benchmarks"
            )
    if table.num_rows == 0:
        raise DataError(f"{problems}: no benchmark has a problem to evaluate on; check ingest.benchmarks")
    return table


def _num_samples(section: Evaluate, benchmark: str) -> int:
    return section.num_samples_by_benchmark.get(benchmark, section.num_samples)


def _numbers(generations: pa.Table) -> dict[str, Any]:
    """Each problem weighs the same; k goes up to the fewest samples that a problem has."""
    keys = [
        f"{b}\0{p}"
        for b, p in zip(*(generations[c].to_pylist() for c in ("benchmark", "problem_id")), strict=True)
    ]
    _, problem = np.unique(keys, return_inverse=True)
    verdicts = np.array(generations["verdict"].to_pylist())
    num_samples = np.bincount(problem)
    num_tokens = generations["num_tokens"].to_numpy()
    drawn = num_tokens > 0

    def mean(values: Any, among: Any = True) -> float:
        """Over the problems that have samples `among` their own, of these."""
        counts = np.bincount(problem, weights=np.broadcast_to(among, problem.shape))
        sums = np.bincount(problem, weights=np.where(among, values, 0))
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    num_correct = np.bincount(problem, weights=verdicts == "correct").astype(int)
    numbers: dict[str, Any] = {"num_problems": len(num_samples), "num_samples": int(num_samples.min())}
    numbers["no_room"] = int((~drawn).sum())
    for k in k_values(int(num_samples.min())):
        numbers[f"pass_at_{k}"] = float(pass_at_k(num_samples, num_correct, k).mean())
    entropy = generations["mean_entropy"].to_numpy().astype(np.float64)
    numbers["mean_entropy"] = mean(entropy, drawn) if drawn.any() else None
    numbers["mean_tokens"] = mean(num_tokens)
    numbers["truncated"] = mean(np.array(generations["finish_reason"].to_pylist()) == "length")
    for verdict in ("incorrect", "unparsable", "timeout", "bad_gold"):
        numbers[verdict] = mean(verdicts == verdict)
    return numbers
