"""Perplexity of responses under the base (METHOD §2).

    ppl(y|x) = exp( -1/T · Σ_t ln p(y_t | x, y_<t) ),   T tokens of the response's text, NLL in nats a token

With `condition_on_prompt` x is the rendered prompt; without it the response stands alone and its first token, before
which nothing stands, is not scored. The end-of-sequence token is not part of the text and is not scored. A response
with no token left to score (empty, or its prompt fills `max_length`) gets no row and is counted as `unscorable`.

Rows go longest first into batches of at most `batch_tokens` tokens; a finished shard of batches is kept in scratch, so
a rerun after a kill does the rest with the same batches and ends with the same numbers.
"""

from __future__ import annotations

import io
import math
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from oxa import batches, lm, progress, prompts, records
from oxa.config import Prompt, Score
from oxa.errors import DataError

BATCHES_A_SHARD = 64
TOKENIZED_AT_ONCE = 1000


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
    log: records.Log,
) -> dict[str, Any]:
    """Scores teacher responses that are correct and self-samples whose verdict is in `self_verdicts`.

    Writes records.SCORES in the order of `responses`; returns counts and ppl quantiles.
    """
    rows = _rows_to_score(section, problems, responses, verdicts)
    network, tokenizer = lm.load(model, dtype=getattr(torch, section.dtype))
    limit = min(section.max_length, network.config.max_position_embeddings)
    sequences, starts, truncated = _tokenize(section, prompt, tokenizer, rows, limit)
    scorable = [len(ids) > start for ids, start in zip(sequences, starts, strict=True)]
    num_unscorable = len(rows) - sum(scorable)
    rows = rows.filter(pa.array(scorable, pa.bool_()))
    sequences, starts = list(compress(sequences, scorable)), list(compress(starts, scorable))
    truncated = list(compress(truncated, scorable))
    if sequences:
        shortest = min(sequences, key=len)[:64]
        lm.check_head(network, torch.from_numpy(shortest).long()[None].to(network.device))
    scores = _score(section, network, sequences, starts, scratch)
    table = pa.table(
        {
            "response_id": rows["response_id"],
            "scorer": pa.array([model.name] * len(rows), pa.string()),
            "mean_nll": scores["mean_nll"],
            "ppl": np.exp(scores["mean_nll"]),
            "num_tokens": np.asarray([len(s) for s in sequences], np.int32) - np.asarray(starts, np.int32),
            "truncated": truncated,
            "mean_entropy": scores["mean_entropy"],
        }
    )
    records.write(output, table, records.SCORES)
    return _metrics(table) | {"unscorable": num_unscorable}


def _rows_to_score(section: Score, problems: Path, responses: Path, verdicts: Path) -> pa.Table:
    """response_id, origin, text, question of what is to be scored, in the order of `responses`."""
    table = records.read(responses, records.RESPONSES, ["response_id", "problem_id", "origin", "text"])
    graded = records.read(verdicts, records.VERDICTS, ["response_id", "verdict"])
    if not table["response_id"].equals(graded["response_id"]):
        raise DataError(f"{verdicts}: its rows are not those of {responses}; run `dvc repro verify` again")
    is_teacher = pc.equal(table["origin"], "teacher")
    wanted = pc.or_(
        pc.and_(is_teacher, pc.equal(graded["verdict"], "correct")),
        pc.and_(pc.invert(is_teacher), pc.is_in(graded["verdict"], pa.array(section.self_verdicts))),
    )
    table = table.filter(wanted)
    known = records.read(problems, records.PROBLEMS, ["problem_id", "question", "split"])
    known = known.filter(pc.equal(known["split"], "train"))
    index = pc.index_in(table["problem_id"], known["problem_id"])
    if index.null_count:
        raise DataError(f"{responses}: {index.null_count} rows name a problem that {problems} does not hold")
    return table.append_column("question", known["question"].take(index))


def _tokenize(
    section: Score, prompt: Prompt, tokenizer: Any, rows: pa.Table, limit: int
) -> tuple[list[np.ndarray], list[int], list[bool]]:
    """For each row: token ids cut at `limit`, index of the first token to score, and whether something was cut."""
    sequences: list[np.ndarray] = []
    starts: list[int] = []
    truncated: list[bool] = []
    contexts: dict[str, list[int]] = {}
    bar = progress.bar(total=len(rows), desc="tokenizing", unit="response")
    for part in rows.select(["question", "text"]).to_batches(TOKENIZED_AT_ONCE):
        texts = part["text"].to_pylist()
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        for question, ids in zip(part["question"].to_pylist(), encoded, strict=True):
            if section.condition_on_prompt:
                if question not in contexts:
                    contexts[question] = prompts.prompt_ids(
                        tokenizer, prompts.user_turn(question, prompt.suffix)
                    )
                context = contexts[question]
            else:
                context = []
            start = max(1, len(context))
            sequences.append(np.asarray([*context, *ids][:limit], np.int32))
            starts.append(start)
            truncated.append(len(context) + len(ids) > limit)
        bar.update(len(texts))
    bar.close()
    return sequences, starts, truncated


def _score(
    section: Score, network: Any, sequences: list[np.ndarray], starts: list[int], scratch: Path
) -> dict[str, np.ndarray]:
    """Mean NLL and mean entropy of each row, nats a token."""
    plan = batches.by_token_budget([len(ids) for ids in sequences], section.batch_tokens)
    result = {name: np.empty(len(sequences), np.float64) for name in ("mean_nll", "mean_entropy")}
    total = sum(len(ids) for ids in sequences)
    bar = progress.bar(total=total, desc="scoring", unit="tok", unit_scale=True)
    for shard, first in enumerate(range(0, len(plan), BATCHES_A_SHARD)):
        part = plan[first : first + BATCHES_A_SHARD]
        rows = np.concatenate([np.asarray(batch) for batch in part])
        kept = scratch / f"shard-{shard:05d}.npy"
        if kept.exists():
            values = np.load(kept)
        else:
            values = np.concatenate(
                [_score_batch(section, network, batch, sequences, starts) for batch in part]
            )
            buffer = io.BytesIO()  # into a file, numpy would hide why it could not be written
            np.save(buffer, values)
            with records.atomic(kept) as temporary:
                temporary.write_bytes(buffer.getvalue())
        result["mean_nll"][rows], result["mean_entropy"][rows] = values[:, 0], values[:, 1]
        bar.update(sum(len(sequences[row]) for row in rows))
    bar.close()
    return result


def _score_batch(
    section: Score, network: Any, batch: list[int], sequences: list[np.ndarray], starts: list[int]
) -> np.ndarray:
    """[B, 2] float64: mean NLL and mean entropy of the batch's rows."""
    statistics, counts = lm.batch_statistics(
        network, [sequences[row] for row in batch], [starts[row] for row in batch], section.chunk
    )
    bounds = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = [
        np.add.reduceat(values.double().cpu().numpy(), bounds)
        for values in (-statistics.log_probs, statistics.entropies)
    ]
    return np.stack(sums, 1) / counts[:, None]


def _metrics(table: pa.Table) -> dict[str, Any]:
    if not len(table):
        return {"responses": 0, "tokens": 0, "truncated": 0}
    ppl = table["ppl"].to_numpy()
    quantiles = {f"p{q}": float(np.quantile(ppl, q / 100)) for q in (5, 25, 50, 75, 95)}
    return {
        "responses": len(table),
        "tokens": int(pc.sum(table["num_tokens"]).as_py()),
        "truncated": int(pc.sum(pc.cast(table["truncated"], pa.int64())).as_py()),
        "ppl_mean": math.fsum(ppl) / len(ppl),
        "ppl": quantiles,
        "mean_entropy": math.fsum(table["mean_entropy"].to_numpy()) / len(table),
    }
