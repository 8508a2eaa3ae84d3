"""The CE or UL part of an arm's training set: its rows as they are written, its metrics, the refusal of too few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from oxa import prompts
from oxa.config.prompt import Prompt
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import files
from oxa.selection import candidates
from oxa.selection.candidates import Candidates, Files, Floats, Ints
from oxa.selection.rules import num_tokens

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write(output: Path, origin: Files, chosen: Candidates, objective: str, prompt: Prompt) -> None:
    """Writes the chosen responses as rows of records.TRAIN, by response_id; `objective` is ce or ul."""
    with files.atomic(output) as temporary, tables.Writer(temporary, schemas.TRAIN) as writer:
        for rows in _rows(origin, chosen, objective, prompt):
            writer.add_table(rows)


def _rows(origin: Files, chosen: Candidates, objective: str, prompt: Prompt) -> Iterator[pa.Table]:
    names = ["response_id", "problem_id", "text", "finish_reason"]
    ids, problems, texts, finish = candidates.pick(origin.responses, schemas.RESPONSES, names, chosen.row)
    (scored,) = candidates.pick(origin.scores, schemas.SCORES, ["response_id"], chosen.score_row)
    assert ids == scored, "two ids with one hash"
    (questions,) = candidates.pick(origin.problems, schemas.PROBLEMS, ["question"], chosen.problem)
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
    for piece in _pieces(order, [len(text) for text in texts]):
        columns = {
            "response_id": candidates.strings([ids[at] for at in piece]),
            "problem_id": candidates.strings([problems[at] for at in piece]),
            "prompt": candidates.strings(
                [prompts.user_turn(questions[at].decode(), prompt.suffix) for at in piece]
            ),
            "completion": candidates.strings([texts[at] for at in piece]),
            "objective": candidates.strings([objective] * len(piece)),
            "ppl": candidates.numbers(chosen.ppl[piece]),
            "num_tokens": candidates.numbers(chosen.num_tokens[piece].astype(np.int32)),
            "finish_reason": candidates.strings([finish[at] for at in piece]),
        }
        yield pa.table(columns, schema=schemas.TRAIN)


def _pieces(order: Ints, lengths: list[int]) -> Iterator[Ints]:
    """The positions in parts that the writer takes at once."""
    start = size = 0
    for end, at in enumerate(order.tolist(), 1):
        size += lengths[at]
        if end - start >= tables.Writer.MAX_ROWS or size >= tables.Writer.MAX_CHARS or end == len(order):
            yield order[start:end]
            start, size = end, 0


def describe(
    eligible: Candidates, chosen: Ints, num_wanted: int, verdicts: list[str], funnel: dict[str, int]
) -> dict[str, Any]:
    """Metrics of the chosen, positions among the eligible, of which `num_wanted` were to be chosen."""
    ppl = eligible.ppl[chosen]
    return {
        "asked": num_wanted,
        "chosen": len(chosen),
        "eligible": len(eligible.row),
        "problems": num_problems(eligible.problem[chosen]),
        "eligible_problems": num_problems(eligible.problem),
        "ppl_mean": float(ppl.mean()) if len(ppl) else None,
        "ppl_quantiles": quantiles(ppl),
        "eligible_ppl_quantiles": quantiles(eligible.ppl),
        "mean_tokens": float(eligible.num_tokens[chosen].mean()) if len(ppl) else None,
        "tokens": num_tokens(eligible, chosen),
        "verdicts": verdicts,
        "funnel": funnel,
    }


def num_problems(problem: Ints) -> int:
    return int(np.count_nonzero(np.bincount(problem)))


def quantiles(ppl: Floats) -> dict[str, float]:
    if not len(ppl):
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(ppl, QUANTILES), strict=True)}


def too_few(
    name: str,
    num: int,
    num_chosen: int,
    per_problem: int,
    eligible: Candidates,
    funnel: dict[str, int],
    source: Path,
) -> DataError:
    """Of a CE or UL set (`name`) of `num` sequences that `source` cannot give."""
    keys = "ul.num or ul.min_ppl, raise ul.per_problem" if name == "UL" else "num_ce, raise per_problem"
    if funnel["fits"] < funnel.get("whole", funnel["train"]):
        keys += ", raise train.shared.max_length"
    if "consensus" in funnel:
        keys += ", switch ul.consensus off"
    return DataError(
        f"{source}: selection asks for {num} {name} sequences and {num_chosen} can be had: {len(eligible.row)} "
        f"eligible responses of {num_problems(eligible.problem)} problems, at most {per_problem} of one problem, with "
        f"ppl {spread(eligible.ppl)} ({left_after(funnel)}); lower {keys} or bring more responses"
    )


def left_after(funnel: dict[str, int]) -> str:
    return f"left after each condition: {', '.join(f'{step} {count}' for step, count in funnel.items())}"


def spread(ppl: Floats) -> str:
    shown = ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in quantiles(ppl).items())
    return f"quantiles {shown}" if shown else "quantiles of nothing"
