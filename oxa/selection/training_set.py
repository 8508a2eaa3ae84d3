"""An arm's training set as it is written, and what is said of it: counts, quantiles, and why too little was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from oxa import prompts
from oxa.config.prompt import Prompt
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
    names = ["response_id", "problem_id", "text"]
    ids, problems, texts = candidates.pick(origin.responses, schemas.RESPONSES, names, chosen.row)
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
    found: Candidates, chosen: Ints, asked: int, verdicts: list[str], funnel: dict[str, int]
) -> dict[str, Any]:
    ppl = found.ppl[chosen]
    return {
        "asked": asked,
        "chosen": len(chosen),
        "eligible": len(found.row),
        "problems": num_problems(found.problem[chosen]),
        "eligible_problems": num_problems(found.problem),
        "ppl_mean": float(ppl.mean()) if len(ppl) else None,
        "ppl_quantiles": _quantiles(ppl),
        "eligible_ppl_quantiles": _quantiles(found.ppl),
        "mean_tokens": float(found.num_tokens[chosen].mean()) if len(ppl) else None,
        "tokens": num_tokens(found, chosen),
        "verdicts": verdicts,
        "funnel": funnel,
    }


def num_problems(problem: Ints) -> int:
    return int(np.count_nonzero(np.bincount(problem)))


def _quantiles(ppl: Floats) -> dict[str, float]:
    if not len(ppl):
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(ppl, QUANTILES), strict=True)}


def too_few(
    name: str, asked: int, got: int, per_problem: int, found: Candidates, funnel: dict[str, int], source: Path
) -> str:
    steps = ", ".join(f"{step} {count}" for step, count in funnel.items())
    keys = "ul.num or ul.min_ppl, raise ul.per_problem" if name == "UL" else "num_ce, raise per_problem"
    if "consensus" in funnel:
        keys += ", switch ul.consensus off"
    return (
        f"{source}: selection asks for {asked} {name} sequences and {got} can be had: {len(found.row)} eligible "
        f"responses of {num_problems(found.problem)} problems, at most {per_problem} of one problem, with ppl "
        f"{spread(found.ppl)} (left after each condition: {steps}); lower {keys} or bring more responses"
    )


def spread(ppl: Floats) -> str:
    shown = ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in _quantiles(ppl).items())
    return f"quantiles {shown}" if shown else "quantiles of nothing"
