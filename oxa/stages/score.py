"""Perplexity of responses under the base (METHOD §2).

    ppl(y|x) = exp( -1/T · Σ_t ln p(y_t | x, y_<t) ),   T tokens of the response's text, NLL in nats a token

With `condition_on_prompt` x is the rendered prompt; without it the response stands alone and its first token, before
which nothing stands, is not scored. The end-of-sequence token is not part of the text and is not scored. A response
with no token left to score (empty, or its prompt fills `max_length`) gets no row and is counted as `unscorable`; those
that spell a control token are counted as `control_tokens`.

Teacher responses are scored by `measures`, too; oxa/model/scoring.py has the formulas of those that the same pass
gives. `ifd` is ppl(y|x) / ppl(y) and takes a second pass: without the prompt, or with it where `condition_on_prompt` is
off. A response of one token has no ppl without a prompt, and so no ifd.

Rows go longest first into batches of at most `batch_tokens` tokens; a finished shard of batches is kept in scratch, so
a rerun after a kill does the rest with the same batches and ends with the same numbers.

Under torchrun or accelerate every process has the whole model and takes the next shard that nobody has taken, so that
all end together, however fast each is. Shards do not depend on the number of processes: a rerun may have another one. A
process that dies costs the shard that it was at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from oxa.config.prompt import Prompt
from oxa.config.score import Score
from oxa.errors import DataError
from oxa.model import loading, scoring
from oxa.records import schemas, tables
from oxa.runtime import journal, progress
from oxa.runtime.shards import Shards, together
from oxa.training import batches

BATCHES_A_SHARD = 64  # at most
SHARDS = 64  # at least, where there are as many batches: who waits for the last one waits for a 64th


def run(
    section: Score,
    prompt: Prompt,
    *,
    model: Path,
    problems: Path,
    responses: Path,
    verdicts: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Scores teacher responses that are correct and self-samples whose verdict is in `self_verdicts`.

    Writes records.SCORES in the order of `responses`, with the model's context length beside them; returns counts and
    ppl quantiles.
    """
    measures = section.measures if section.measures and _are_the_teachers(responses) else []
    in_pass, other = [name for name in measures if name in scoring.OF_ONE_PASS], scratch / "other"
    network, tokenizer = loading.load(model, dtype=getattr(torch, section.dtype))
    with together() as shards:
        if shards.is_first:
            rows = _rows_to_score(section, problems, responses, verdicts)
            context = loading.context_length(network.config)
            limit = min(section.max_length, context)
            conditioned = section.condition_on_prompt
            tokens = scoring.tokenize(rows, tokenizer, prompt, limit, scratch, conditioned=conditioned)
            scoring.check_head(network, scratch)
            if "ifd" in measures:
                other.mkdir(exist_ok=True)
                others = scoring.tokenize(rows, tokenizer, prompt, limit, other, conditioned=not conditioned)
        shards.meet()
        _score(section, network, scratch, shards, in_pass)
        if "ifd" in measures:
            _score(section, network, other, shards)
        shards.meet()
    if not shards.is_first:
        return {}
    num_scored = tokens.lengths - tokens.starts
    scorable = num_scored > 0
    rows = rows.filter(pa.array(scorable))
    scores = _gather(section, tokens.lengths[scorable], scratch, 2 + len(in_pass))
    columns = dict(zip(in_pass, scores[:, 2:].T, strict=True))
    if "ifd" in measures:
        nll = np.full(len(scorable), np.nan)
        has_other = others.lengths > others.starts
        nll[has_other] = _gather(section, others.lengths[has_other], other)[:, 0]
        columns["ifd"] = np.exp((scores[:, 0] - nll[scorable]) * (1 if conditioned else -1))
    table = pa.table(
        {
            "response_id": rows["response_id"],
            "scorer": pa.array([model.name] * len(rows), pa.string()),
            "mean_nll": scores[:, 0],
            "ppl": np.exp(scores[:, 0]),
            "num_tokens": num_scored[scorable],
            "truncated": tokens.truncated[scorable],
            "mean_entropy": scores[:, 1],
            "train_tokens": tokens.train_tokens[scorable],
            **columns,
        }
    )
    tables.write(output, table, schemas.scores(measures), {schemas.CONTEXT: context})
    counts = {"unscorable": int((~scorable).sum()), "control_tokens": tokens.num_control}
    return _metrics(table, measures) | counts


def _are_the_teachers(responses: Path) -> bool:
    """Which every process asks; a table has responses of one origin."""
    return "teacher" in tables.read(responses, schemas.RESPONSES, ["origin"])["origin"].unique().to_pylist()


def _rows_to_score(section: Score, problems: Path, responses: Path, verdicts: Path) -> pa.Table:
    """response_id, origin, text, question of what is to be scored, in the order of `responses`."""
    table = tables.read(responses, schemas.RESPONSES, ["response_id", "problem_id", "origin", "text"])
    graded = tables.read(verdicts, schemas.VERDICTS, ["response_id", "verdict"])
    if not table["response_id"].equals(graded["response_id"]):
        raise DataError(f"{verdicts}: its rows are not those of {responses}; run `dvc repro verify` again")
    is_teacher = pc.equal(table["origin"], "teacher")
    wanted = pc.or_(
        pc.and_(is_teacher, pc.equal(graded["verdict"], "correct")),
        pc.and_(pc.invert(is_teacher), pc.is_in(graded["verdict"], pa.array(section.self_verdicts))),
    )
    table = table.filter(wanted)
    known = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "split"])
    known = known.filter(pc.equal(known["split"], "train"))
    index = pc.index_in(table["problem_id"], known["problem_id"])
    if index.null_count:
        raise DataError(f"{responses}: {index.null_count} rows name a problem that {problems} does not hold")
    return table.append_column("question", known["question"].take(index))


def _plan(section: Score, lengths: np.ndarray) -> list[list[list[int]]]:
    """Rows of the batches of every shard."""
    plan = batches.by_token_budget(lengths.tolist(), section.batch_tokens)
    size = min(BATCHES_A_SHARD, max(1, len(plan) // SHARDS))
    return [plan[first : first + size] for first in range(0, len(plan), size)]


def _score(section: Score, network: Any, scratch: Path, shards: Shards, measures: Sequence[str] = ()) -> None:
    """Scores the shards that are dealt to this process and are not in scratch already."""
    tokens = scoring.Tokens.open(scratch)
    plan = _plan(section, tokens.lengths)
    num_tokens = [int(tokens.lengths[np.concatenate(part)].sum()) for part in plan]
    bar = progress.bar(
        total=sum(num_tokens), desc="scoring", unit="tok", unit_scale=True, quiet=not shards.is_first
    )
    before = 0
    for shard in shards:
        bar.update(sum(num_tokens[before:shard]))  # what others were dealt meanwhile, too
        if shard >= len(plan):
            break
        before = shard
        if not (path := _shard(scratch, shard)).exists():
            scores = [
                scoring.score_batch(network, batch, tokens, section.chunk, measures) for batch in plan[shard]
            ]
            scoring.save(path, np.concatenate(scores))
    bar.close()


def _gather(section: Score, lengths: np.ndarray, scratch: Path, num_columns: int = 2) -> np.ndarray:
    """[rows, columns] float64: what `scoring.score_batch` gives of each row."""
    scores = np.empty((len(lengths), num_columns), np.float64)
    for shard, part in enumerate(_plan(section, lengths)):
        scores[np.concatenate(part)] = np.load(_shard(scratch, shard))
    return scores


def _shard(scratch: Path, shard: int) -> Path:
    return scratch / f"shard-{shard:05d}.npy"


def _metrics(table: pa.Table, measures: Sequence[str]) -> dict[str, Any]:
    if not len(table):
        return {"responses": 0, "tokens": 0, "truncated": 0}
    ppl = table["ppl"].to_numpy()
    return {
        "responses": len(table),
        "tokens": int(pc.sum(table["num_tokens"]).as_py()),
        "truncated": int(pc.sum(pc.cast(table["truncated"], pa.int64())).as_py()),
        "ppl_mean": math.fsum(ppl) / len(ppl),
        "ppl": _quantiles(ppl),
        "mean_entropy": math.fsum(table["mean_entropy"].to_numpy()) / len(table),
    } | {name: _quantiles(table[name].to_numpy()) for name in measures}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Of those that are finite."""
    values = values[np.isfinite(values)]
    return {f"p{q}": float(np.quantile(values, q / 100)) for q in (5, 25, 50, 75, 95)} if len(values) else {}
