"""Stage `predictors`: what an arm's model says before RL, to see afterwards whether it told what RL would reach.

    held_out_nll    mean over solutions of -1/T Σ_t ln p_arm(y_t | x, y_<t), of verified teacher solutions to training
                    problems that are in no arm's training set (Kang et al. 2025, arXiv 2510.01624), T their tokens
    kl_base_arm     KL(base ‖ arm) a token, on the base's responses to benchmark problems
    kl_arm_base     KL(arm ‖ base) a token, on the arm's (Shenfeld et al. 2025, arXiv 2509.04259; model/divergence.py)

Responses are those that entropy is measured on, drawn at temperature 1 and top-p 1 from the model itself, as a KL's
estimate takes them. Each text is read once by each model that has a part in it. Which solutions and problems are taken
is the same for all arms. All in nats a token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from oxa import hashes, prompts
from oxa.config.predictors import Predictors
from oxa.config.prompt import Prompt
from oxa.errors import ConfigError
from oxa.model import divergence, loading, log_probs, scoring
from oxa.records import schemas, tables
from oxa.runtime import journal
from oxa.selection import candidates
from oxa.training import batches

logger = logging.getLogger(__name__)


class Text(NamedTuple):
    problem_id: str
    question: str
    text: str
    ended: bool
    """Whether a token that ends it is read, too."""


def run(
    section: Predictors,
    prompt: Prompt,
    *,
    base: Path,
    model: Path,
    problems: Path,
    responses: Path,
    verdicts: Path,
    train_sets: Path,
    base_samples: Path,
    samples: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Writes records.PREDICTORS, a row a text that was read, and returns the measures with their numbers of texts.

    `train_sets`: the folder of all arms'; `base_samples` and `samples`: records.ENTROPIES of base and arm. A measure
    that no text is left for is None. Nothing is measured, and nothing returned, where the section says so.
    """
    if section.num == 0:
        tables.write(output, [], schemas.PREDICTORS)
        return {}
    table = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "split"])
    texts = {
        "held_out_nll": _held_out(section, table, responses, verdicts, train_sets),
        "kl_base_arm": _drawn(section, table, base_samples),
        "kl_arm_base": _drawn(section, table, samples),
    }
    arm, tokenizer = loading.load(model)
    student, _ = loading.load(base)
    of_batch: dict[str, batches.OfBatch] = {
        "held_out_nll": lambda ids, starts: _nll(arm, ids, starts, section.chunk),
        "kl_base_arm": lambda ids, starts: _kl(student, arm, ids, starts, section.chunk),
        "kl_arm_base": lambda ids, starts: _kl(arm, student, ids, starts, section.chunk),
    }
    limit = min(section.max_length, loading.context_length(arm.config))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for name, each in texts.items():
        ids = [_ids(tokenizer, prompt, text, limit) for text in each]
        kept = scratch / f"{name}.npy"
        if not kept.exists():
            sequences, starts = [one for one, _ in ids], [start for _, start in ids]
            measured = batches.summed(sequences, starts, of_batch[name], section.batch_tokens, name)
            scoring.save(kept, measured)
        measured = np.load(kept)
        rows += [
            {"measure": name, "problem_id": text.problem_id, "nats": nats, "num_tokens": int(num)}
            for text, (nats, num) in zip(each, measured, strict=True)
        ]
        metrics[name] = _mean(measured, by_token=name != "held_out_nll")
        metrics[f"{name}_texts"] = int((measured[:, 1] > 0).sum())
    tables.write(output, rows, schemas.PREDICTORS)
    return metrics


def _held_out(
    section: Predictors, problems: pa.Table, responses: Path, verdicts: Path, train_sets: Path
) -> list[Text]:
    """Verified, whole solutions of the training problems that no arm learns from, one of each, by lot."""
    learnt = pa.concat_arrays(
        [
            tables.read(path, schemas.TRAIN, ["problem_id"])["problem_id"].combine_chunks()
            for path in sorted(train_sets.rglob("*.parquet"))
        ]
        or [pa.array([], pa.string())]
    )
    judged = tables.read(verdicts, schemas.VERDICTS, ["response_id", "verdict"])
    correct = judged.filter(pc.equal(judged["verdict"], "correct"))["response_id"]
    question = _questions(problems, ["train"])
    table = tables.read(responses, schemas.RESPONSES, ["response_id", "problem_id", "finish_reason"])
    keep = pc.and_(
        pc.and_(pc.is_in(table["response_id"], correct), pc.invert(pc.is_in(table["problem_id"], learnt))),
        pc.not_equal(table["finish_reason"], "length"),
    )
    first: dict[str, tuple[int, int]] = {}  # of each problem, the lot and row of one solution
    (rows,) = keep.to_numpy().nonzero()
    names = table.take(pa.array(rows))
    for row, response, problem in zip(
        rows.tolist(), names["response_id"].to_pylist(), names["problem_id"].to_pylist(), strict=True
    ):
        if problem in question:
            one = (hashes.lot(section.seed, response), row)
            first[problem] = min(one, first.get(problem, one))
    chosen = sorted(first, key=lambda problem: hashes.lot(section.seed, problem))[: section.num]
    if not chosen:
        logger.warning(
            "every problem with a verified solution is in some arm's training set: held_out_nll is not measured; "
            "bring more teacher data or lower selection.shared.num_ce"
        )
        return []
    taken = np.array([first[problem][1] for problem in chosen])
    texts = candidates.take(responses, schemas.RESPONSES, ["text"], taken)["text"].to_pylist()
    return [
        Text(problem, question[problem], text, ended=False)
        for problem, text in zip(chosen, texts, strict=True)
    ]


def _drawn(section: Predictors, problems: pa.Table, samples: Path) -> list[Text]:
    """A model's responses to the first problems by lot."""
    drawn = tables.read(samples, schemas.ENTROPIES)
    if not len(drawn):
        raise ConfigError(
            "predictors.num: a KL is measured on the responses that entropy is, and evaluate.entropy_samples is 0; "
            "set it to 1 or more, or predictors.num to 0"
        )
    names = drawn["problem_id"].unique().to_pylist()
    wanted = set(sorted(names, key=lambda problem: hashes.lot(section.seed, problem))[: section.num])
    question = _questions(problems, drawn["benchmark"].unique().to_pylist())
    return [
        Text(row["problem_id"], question[row["problem_id"]], row["text"], row["finish_reason"] == "stop")
        for row in drawn.to_pylist()
        if row["problem_id"] in wanted and row["num_tokens"]
    ]


def _questions(problems: pa.Table, splits: Sequence[str]) -> dict[str, str]:
    """By id."""
    some = problems.filter(pc.is_in(problems["split"], pa.array(splits, pa.string())))
    return dict(zip(some["problem_id"].to_pylist(), some["question"].to_pylist(), strict=True))


def _ids(tokenizer: Any, prompt: Prompt, one: Text, limit: int) -> tuple[np.ndarray, int]:
    """Ids of prompt and response, `limit` at most, and where the response begins; a 0 stands for the end token."""
    before = prompts.prompt_ids(tokenizer, prompts.user_turn(one.question, prompt.suffix))
    after = prompts.response_ids(tokenizer, one.text, end=False) + [0] * one.ended
    return np.array(before + after, np.int64)[:limit], len(before)


def _nll(model: Any, ids: list[np.ndarray], starts: list[int], chunk: int) -> tuple[np.ndarray, np.ndarray]:
    statistics, counts = log_probs.batch_statistics(model, ids, starts, chunk)
    return -statistics.log_probs.double().cpu().numpy(), counts


def _kl(
    p: torch.nn.Module, q: torch.nn.Module, ids: list[np.ndarray], starts: list[int], chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    nats, counts = divergence.batch_kl(p, q, ids, starts, chunk)
    return nats.cpu().numpy(), counts


def _mean(measured: np.ndarray, *, by_token: bool) -> float | None:
    """Nats a token: over all tokens, or over each text's own and then over texts."""
    known = measured[measured[:, 1] > 0]
    if not len(known):
        return None
    nats, num = known.T
    return float(nats.sum() / num.sum() if by_token else (nats / num).mean())
