"""A checkpoint's answers to the benchmarks, every one of them stored and graded.

pass@1 is the mean over samples, pass@k the unbiased estimate (oxa/comparison/estimators.py), each averaged over
problems.

A generation's random numbers follow from the seed and an id of problem, benchmark and sample index, not from the
checkpoint: all arms, seeds and RL steps answer with the same uniforms (common random numbers), which lowers the
variance of the paired differences between them and biases none.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oxa import hashes, prompts
from oxa.comparison.estimators import k_values, pass_at_k
from oxa.config.evaluate import Evaluate
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.section import Verdict
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.grading import grouping
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import same_answers, schemas, tables
from oxa.runtime import files, journal

logger = logging.getLogger(__name__)

WITHOUT_TEXT = pa.schema([field for field in schemas.GENERATIONS if field.name != "text"])


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
    log: journal.Log,
) -> dict[str, Any]:
    """Answers, grades and writes records.GENERATIONS: step after step, a problem's samples together, in their order.

    `model` is a checkpoint, which counts as step 0, or a folder of checkpoints `step-N` along RL.

    Returns {"benchmarks": {name: numbers, with "tiers": {tier: numbers} where the benchmark has tiers}, "pooled":
    numbers over all benchmarks' problems} of the last step, and for RL "steps": {N: the same without tiers}; entropies
    in nats a token, lengths in tokens. Only the verdict `correct` counts as right; the other verdicts' shares are given
    beside it, since a timeout or an unparsable answer is not known to be wrong. `no_room` counts the empty answers to
    prompts that fill the model's context: they have 0 tokens, are unparsable and have no entropy; mean_entropy is over
    the problems that have one, None where none has. The settings that they were drawn with are kept with the table, and
    so is which wrong answers to a problem are one answer in several spellings.
    """
    table = _benchmark_problems(section, problems)
    checkpoints = _checkpoints(model)
    graded: list[pa.Table] = []  # without the texts: those of all steps need not fit into memory
    with (
        Grader(verify) as grader,
        files.atomic(output) as temporary,
        tables.Writer(temporary, schemas.GENERATIONS) as writer,
    ):
        for step, checkpoint in checkpoints.items():
            tokenizer = loading.load_tokenizer(checkpoint)
            rows, requests = _requests(section, prompt, table, tokenizer)
            if num := sum(prompts.holds_control(tokenizer, text) for text in table["question"].to_pylist()):
                logger.warning("%d problems spell a control token of the model; it is read as text", num)
            what = f"generations of step {step}" if len(checkpoints) > 1 else "generations"
            generations = generate.generate(
                checkpoint, requests, section, engine, scratch=scratch, description=what
            )
            writer.note("sampling" if len(checkpoints) == 1 else f"sampling.{step}", generations.settings)
            items = [
                (row["answers"], generation.text, generation.finish_reason)
                for row, generation in zip(rows, generations, strict=True)
            ]
            for row, generation, grade in zip(rows, generations, grader.grade(items), strict=True):
                row |= {"step": step} | generation._asdict() | grade._asdict()
                writer.add(**{name: row[name] for name in schemas.GENERATIONS.names})
            graded.append(pa.Table.from_pylist(rows, schema=WITHOUT_TEXT))
        if groups := grouping.same_answers(grader, pa.concat_tables(graded)):
            writer.note(same_answers.NOTE, groups)
    return summarize(pa.concat_tables(graded))


def _checkpoints(model: Path) -> dict[int, Path]:
    """Checkpoints by RL step, in order."""
    steps = {int(path.name.removeprefix("step-")): path for path in model.glob("step-*")}
    return dict(sorted(steps.items())) or {0: model}


def _requests(
    section: Evaluate, prompt: Prompt, problems: pa.Table, tokenizer: Any
) -> tuple[list[dict[str, Any]], list[Request]]:
    """A row for every answer that is asked for, to be filled, and its request."""
    rows: list[dict[str, Any]] = []
    requests: list[Request] = []
    for problem in problems.to_pylist():
        benchmark, problem_id = problem["split"], problem["problem_id"]
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(problem["question"], prompt.suffix))
        for index in range(_num_samples(section, benchmark)):
            key = hashes.response_id(problem_id, "evaluate", benchmark, f"{section.seed}/{index}")
            requests.append(Request(key, ids))
            rows.append(problem | {"benchmark": benchmark, "sample_index": index})
    return rows, requests


def summarize(generations: pa.Table) -> dict[str, Any]:
    """The numbers of `run` from records.GENERATIONS; needs no model."""
    steps = sorted(generations["step"].unique().to_pylist())
    last = generations.filter(pc.equal(generations["step"], steps[-1]))
    metrics = _by_benchmark(last)
    for name, numbers in metrics["benchmarks"].items():
        part = last.filter(pc.equal(last["benchmark"], name))
        tiers = sorted(tier for tier in part["tier"].unique().to_pylist() if tier)
        if tiers:
            numbers["tiers"] = {tier: _numbers(part.filter(pc.equal(part["tier"], tier))) for tier in tiers}
    if steps != [0]:
        metrics["steps"] = {
            str(step): _by_benchmark(generations.filter(pc.equal(generations["step"], step)))
            for step in steps
        }
    return metrics


def _by_benchmark(generations: pa.Table) -> dict[str, Any]:
    names = sorted(generations["benchmark"].unique().to_pylist())
    return {
        "benchmarks": {
            name: _numbers(generations.filter(pc.equal(generations["benchmark"], name))) for name in names
        },
        "pooled": _numbers(generations),
    }


def _benchmark_problems(section: Evaluate, problems: Path) -> pa.Table:
    table = tables.read(problems, schemas.PROBLEMS)
    table = table.filter(pc.invert(pc.is_in(table["split"], pa.array(["train", "rlvr"]))))
    benchmarks = set(table["split"].unique().to_pylist())
    for name in section.num_samples_by_benchmark:
        if name not in benchmarks:
            raise DataError(
                f"{problems}: benchmark {name!r} of evaluate.num_samples_by_benchmark has no problems; found "
                f"{sorted(benchmarks)}; check its source under ingest.benchmarks"
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

    def mean(values: Any, among: Any = True) -> float:
        """Over the problems that have samples `among` their own, of these."""
        counts = np.bincount(problem, weights=np.broadcast_to(among, problem.shape))
        sums = np.bincount(problem, weights=np.where(among, values, 0))
        return float((sums[counts > 0] / counts[counts > 0]).mean())

    num_correct = np.bincount(problem, weights=verdicts == "correct").astype(int)
    numbers: dict[str, Any] = {"num_problems": len(num_samples), "num_samples": int(num_samples.min())}
    numbers["no_room"] = int((num_tokens == 0).sum())
    for k in k_values(int(num_samples.min())):
        numbers[f"pass_at_{k}"] = float(pass_at_k(num_samples, num_correct, k).mean())
    entropy = generations["mean_entropy"].to_numpy().astype(np.float64)
    known = np.isfinite(entropy)
    numbers["mean_entropy"] = mean(entropy, known) if known.any() else None
    numbers["mean_tokens"] = mean(num_tokens)
    numbers["truncated"] = mean(np.array(generations["finish_reason"].to_pylist()) == "length")
    for verdict in get_args(Verdict)[1:]:
        numbers[verdict] = mean(verdicts == verdict)
    return numbers
