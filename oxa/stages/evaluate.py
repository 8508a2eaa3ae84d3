"""A checkpoint's answers to the benchmarks, every one of them stored and graded.

pass@1 is the mean over samples, pass@k the unbiased estimate (oxa/comparison/estimators.py), each averaged over
problems.

A generation's random numbers follow from the seed and an id of problem, benchmark and sample index, not from the
checkpoint: all arms, seeds and RL steps answer with the same uniforms (common random numbers), which lowers the
variance of the paired differences between them and biases none.

Entropy is measured on responses of its own, drawn at temperature 1 and top-p 1, that nobody grades: those that are
graded may be drawn at another temperature, and then go other ways. It is exact over the vocabulary and the same for
every engine, since the checkpoint reads each response in this process once it is written:

    H_t = -Σ_v p(v | x, y_<t) ln p(v | x, y_<t)    of every position t at which a token was drawn, the end token's too

What this leaves out: a response is stored as text, so where the model spelt it in other tokens than its tokenizer
would, the latter are read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from oxa import hashes, prompts
from oxa.comparison.estimators import k_values, pass_at_k
from oxa.config.evaluate import Evaluate
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.section import Sampling, Verdict
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Generation, Request
from oxa.generation.store import Generations
from oxa.grading import grouping
from oxa.grading.grader import Grader
from oxa.model import loading, log_probs, scoring
from oxa.records import same_answers, schemas, tables
from oxa.runtime import files, journal
from oxa.training import batches

logger = logging.getLogger(__name__)

BATCH_TOKENS, CHUNK = 8192, 2048  # of a forward pass; positions that the head takes together
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
    entropies: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Answers, grades and writes records.GENERATIONS: step after step, a problem's samples together, in their order.

    Writes records.ENTROPIES in the same order, `entropy_samples` rows a problem.

    `model` is a checkpoint, which counts as step 0, or a folder of checkpoints `step-N` along RL.

    Returns {"benchmarks": {name: numbers, with "tiers": {tier: numbers} where the benchmark has tiers}, "pooled":
    numbers over all benchmarks' problems} of the last step, and for RL "steps": {N: the same without tiers}; lengths
    in tokens. Only the verdict `correct` counts as right; the other verdicts' shares are given beside it, since a
    timeout or an unparsable answer is not known to be wrong. `no_room` counts the empty answers to prompts that fill
    the model's context: they have 0 tokens, are unparsable and have no entropy. Entropies are in nats a token,
    `response_entropy` the mean over responses, then problems, `token_entropy` that over all tokens; None without a
    token. The settings that answers were drawn with are kept with the table, and so is which wrong answers to a problem
    are one answer in several spellings.
    """
    table = _benchmark_problems(section, problems)
    checkpoints = _checkpoints(model)
    graded: list[pa.Table] = []  # without the texts: those of all steps need not fit into memory
    unscored: dict[int, tuple[list[dict[str, Any]], list[Request], Generations]] = {}
    with (
        Grader(verify) as grader,
        files.atomic(output) as temporary,
        tables.Writer(temporary, schemas.GENERATIONS) as writer,
    ):
        for step, checkpoint in checkpoints.items():
            tokenizer = loading.load_tokenizer(checkpoint)
            rows, requests = _requests(section, prompt, table, tokenizer, "evaluate")
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
            if section.entropy_samples:
                rows, requests = _requests(section, prompt, table, tokenizer, "entropy")
                plain = Sampling(max_tokens=section.max_tokens, seed=section.seed)
                unscored[step] = (
                    rows,
                    requests,
                    generate.generate(
                        checkpoint,
                        requests,
                        plain,
                        engine,
                        scratch=scratch,
                        description=f"entropy: {what}",
                    ),
                )
        if groups := grouping.same_answers(grader, pa.concat_tables(graded)):
            writer.note(same_answers.NOTE, groups)
    # once nothing is generated any more: a vLLM server wants the GPU for itself
    with files.atomic(entropies) as temporary, tables.Writer(temporary, schemas.ENTROPIES) as writer:
        for step, drawn in unscored.items():
            for row in _scored(checkpoints[step], *drawn, scratch / f"entropies-{step}.npy"):
                writer.add(**{name: (row | {"step": step})[name] for name in schemas.ENTROPIES.names})
    return summarize(pa.concat_tables(graded), tables.read(entropies, schemas.ENTROPIES))


def _checkpoints(model: Path) -> dict[int, Path]:
    """Checkpoints by RL step, in order."""
    steps = {int(path.name.removeprefix("step-")): path for path in model.glob("step-*")}
    return dict(sorted(steps.items())) or {0: model}


def _requests(
    section: Evaluate,
    prompt: Prompt,
    problems: pa.Table,
    tokenizer: Any,
    purpose: Literal["evaluate", "entropy"],
) -> tuple[list[dict[str, Any]], list[Request]]:
    """A row for every answer that is asked for, to be filled, and its request; `purpose` tells random numbers apart."""
    rows: list[dict[str, Any]] = []
    requests: list[Request] = []
    for problem in problems.to_pylist():
        benchmark, problem_id = problem["split"], problem["problem_id"]
        ids = prompts.prompt_ids(tokenizer, prompts.user_turn(problem["question"], prompt.suffix))
        graded = section.num_samples_by_benchmark.get(benchmark, section.num_samples)
        for index in range(graded if purpose == "evaluate" else section.entropy_samples):
            key = hashes.response_id(problem_id, purpose, benchmark, f"{section.seed}/{index}")
            requests.append(Request(key, ids))
            rows.append(problem | {"benchmark": benchmark, "sample_index": index})
    return rows, requests


def _scored(
    checkpoint: Path,
    rows: list[dict[str, Any]],
    requests: Sequence[Request],
    generations: Generations,
    kept: Path,
) -> Iterator[dict[str, Any]]:
    """The rows with their texts and entropies; what was measured lies at `kept` when a killed run comes back."""
    if kept.exists():
        measured = np.load(kept)
    else:
        network, tokenizer = loading.load(checkpoint)
        context = loading.context_length(network.config)
        sequences = [
            np.array(request.prompt + _drawn_ids(tokenizer, generation), np.int64)[:context]
            for request, generation in zip(requests, generations, strict=True)
        ]
        starts = [len(request.prompt) for request in requests]
        measured = entropies_of(network, sequences, starts)
        scoring.save(kept, measured)
    for row, generation, (entropy, num_tokens) in zip(rows, generations, measured, strict=True):
        row |= {"text": generation.text, "finish_reason": generation.finish_reason}
        yield row | {"entropy": float(entropy), "num_tokens": int(num_tokens)}


def _drawn_ids(tokenizer: Any, generation: Generation) -> list[int]:
    """A token for every position at which one was drawn; which one ends the response, no position sees."""
    ids = prompts.response_ids(tokenizer, generation.text, end=False)
    return [*ids, 0] if generation.finish_reason == "stop" else ids


def entropies_of(network: Any, sequences: Sequence[np.ndarray], starts: Sequence[int]) -> np.ndarray:
    """[rows, 2]: of sequences of token ids, entropy summed over the positions from `starts` on, nats, and how many."""
    if any(len(ids) > start for ids, start in zip(sequences, starts, strict=True)):
        shortest = min(sequences, key=len)[:64]
        log_probs.check_head(network, torch.from_numpy(shortest)[None].to(network.device))

    def of_batch(some: list[np.ndarray], begins: list[int]) -> tuple[np.ndarray, np.ndarray]:
        statistics, counts = log_probs.batch_statistics(network, some, begins, CHUNK)
        return statistics.entropies.double().cpu().numpy(), counts

    return batches.summed(sequences, starts, of_batch, BATCH_TOKENS, "entropy")


def summarize(generations: pa.Table, entropies: pa.Table) -> dict[str, Any]:
    """The numbers of `run` from records.GENERATIONS and records.ENTROPIES; needs no model."""
    steps = sorted(generations["step"].unique().to_pylist())
    last = [_where(table, "step", steps[-1]) for table in (generations, entropies)]
    metrics = _by_benchmark(*last)
    for name, numbers in metrics["benchmarks"].items():
        parts = [_where(table, "benchmark", name) for table in last]
        if tiers := sorted(tier for tier in parts[0]["tier"].unique().to_pylist() if tier):
            numbers["tiers"] = {
                tier: _numbers(*(_where(table, "tier", tier) for table in parts)) for tier in tiers
            }
    if steps != [0]:
        metrics["steps"] = {
            str(step): _by_benchmark(*(_where(table, "step", step) for table in (generations, entropies)))
            for step in steps
        }
    return metrics


def _where(table: pa.Table, column: str, value: Any) -> pa.Table:
    return table.filter(pc.equal(table[column], value))


def _by_benchmark(generations: pa.Table, entropies: pa.Table) -> dict[str, Any]:
    return {
        "benchmarks": {
            name: _numbers(*(_where(table, "benchmark", name) for table in (generations, entropies)))
            for name in sorted(generations["benchmark"].unique().to_pylist())
        },
        "pooled": _numbers(generations, entropies),
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


def _numbers(generations: pa.Table, entropies: pa.Table) -> dict[str, Any]:
    """Each problem weighs the same, in all but token_entropy; k goes up to the fewest samples that a problem has."""
    problem = _problem_of(generations)
    verdicts = np.array(generations["verdict"].to_pylist())
    num_samples = np.bincount(problem)
    num_tokens = generations["num_tokens"].to_numpy()

    def mean(values: Any) -> float:
        return float((np.bincount(problem, weights=values) / num_samples).mean())

    num_correct = np.bincount(problem, weights=verdicts == "correct").astype(int)
    numbers: dict[str, Any] = {"num_problems": len(num_samples), "num_samples": int(num_samples.min())}
    numbers["no_room"] = int((num_tokens == 0).sum())
    for k in k_values(int(num_samples.min())):
        numbers[f"pass_at_{k}"] = float(pass_at_k(num_samples, num_correct, k).mean())
    numbers |= _entropies(entropies)
    numbers["mean_tokens"] = mean(num_tokens)
    numbers["truncated"] = mean(np.array(generations["finish_reason"].to_pylist()) == "length")
    for verdict in get_args(Verdict)[1:]:
        numbers[verdict] = mean(verdicts == verdict)
    return numbers


def _problem_of(table: pa.Table) -> np.ndarray:
    """[rows]: which problem of which benchmark each is of, from 0."""
    columns = (table[name].to_pylist() for name in ("benchmark", "problem_id"))
    keys = [f"{benchmark}\0{problem}" for benchmark, problem in zip(*columns, strict=True)]
    return np.unique(keys, return_inverse=True)[1]


def _entropies(table: pa.Table) -> dict[str, float | None]:
    table = table.filter(pc.greater(table["num_tokens"], 0))
    if not len(table):
        return {"response_entropy": None, "token_entropy": None}
    problem = _problem_of(table)
    sums, tokens = table["entropy"].to_numpy(), table["num_tokens"].to_numpy()
    of_problem = np.bincount(problem, weights=sums / tokens) / np.bincount(problem)
    return {
        "response_entropy": float(of_problem.mean()),
        "token_entropy": float(sums.sum() / tokens.sum()),
    }
