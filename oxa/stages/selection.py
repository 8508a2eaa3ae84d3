"""Which responses an arm trains on: the CE set of every arm and the UL set of those that have one (METHOD §3).

    ppl(y|x) = exp(-1/T Σ_t ln p(y_t | x, y_<t))        over the T tokens of a response, under the base

CE rules, over verified teacher responses of training problems that no length limit cut, neither the sampler's nor the
scorer's (whose ppl would be of the beginning alone), at most `per_problem` of one problem:

- `random`    in the order of a seeded hash, round-robin: every problem gives one before any gives a second.
- `lowest`    ascending ppl, passing over a problem that has given its share.
- `gaussian`  ppl follows a Gaussian cut to [ppl_min, ppl_max]. With c_b the center and w_b the width of bin b (all
              equal, but for a last one that ppl_max cuts short),
                  target_b = N · w_b pdf(c_b) / Σ_b w_b pdf(c_b),   rounded by largest remainder so that Σ = N.
              The mean may be given as a quantile of the ppl of all that may be chosen.
              Bins are [low, high), the last one closed. Inside a bin: round-robin over problems, a problem's round
              counting what it gave to other bins; in a round the longest go first, ties by the seeded hash. A problem
              has one cap over all bins, so bins compete: the bin that can give the fewest for each that it is asked for
              goes first, ties by ppl. What a bin cannot give is its shortage, reported and filled by nothing.

With `num_ce: tokens(B)` each rule takes the N at which its choice comes up to B tokens, or N - 1 where that is nearer;
one sequence at least. A Gaussian of N + 1 can hold fewer tokens than one of N (a bin's rounded target may fall, and
bins compete), so that there can be several such N: bisection picks one.

UL rule, over the student's own responses whose verdict proves a wrong pattern: the `num` of lowest ppl that are not
below `min_ppl` (degenerate loops), at most `per_problem` of one problem; none that a length limit cut unless allowed;
with `consensus`, none that a second check does not call wrong, too (oxa/grading/second_check.py).

Arrays are [N], one entry a candidate. No rule sees the order of rows: what chance decides, a 64-bit hash of (seed,
response_id) decides. Ids are joined by hash as well, and compared letter by letter for the rows chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from oxa import prompts
from oxa.config.prompt import Prompt
from oxa.config.selection import SelectionArm, SelectionShared, UnlikelihoodSet, tokens_of
from oxa.errors import DataError
from oxa.grading import second_check
from oxa.records import schemas, tables
from oxa.runtime import files as records
from oxa.runtime import journal
from oxa.selection import candidates
from oxa.selection.candidates import Candidates, Files, Floats, Ints
from oxa.selection.rules import RULES, gaussian, lowest, num_tokens, number, with_mean

logger = logging.getLogger(__name__)

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def run(
    shared: SelectionShared,
    arm: SelectionArm,
    prompt: Prompt,
    *,
    problems: Path,
    teacher: Path,
    teacher_verdicts: Path,
    teacher_scores: Path,
    self_responses: Path,
    self_verdicts: Path,
    self_scores: Path,
    output: Path,
    log: journal.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the arm's training set: CE rows, then UL rows, each by response_id.

    The CE set depends on `shared` and `arm.ce` alone, so arms with the same rule share it. Raises DataError where a
    rule asks for more than exists, or tables do not belong together. `scratch` stays empty: a rerun takes seconds.
    """
    files = Files(problems, teacher, teacher_verdicts, teacher_scores)
    with records.atomic(output) as temporary, tables.Writer(temporary, schemas.TRAIN) as writer:
        chosen, metrics = _ce_set(shared, arm.ce, files, log)
        _add(writer, files, chosen, "ce", prompt)
        if arm.ul is not None:
            files = Files(problems, self_responses, self_verdicts, self_scores)
            chosen, metrics["ul"] = _ul_set(arm.ul, shared.seed, files)
            _add(writer, files, chosen, "ul", prompt)
    return metrics


def _ce_set(
    shared: SelectionShared, rule: str, files: Files, log: journal.Log
) -> tuple[Candidates, dict[str, Any]]:
    found, funnel = candidates.read(files, ["correct"], shared.seed, whole=True)
    metrics: dict[str, Any] = {}
    if rule == "gaussian":
        shared = with_mean(shared, found)
    num_ce = number(shared, rule, found)
    if num_ce is None:
        raise DataError(_too_few_tokens(shared, rule, found, funnel, files.responses))
    shared = shared.model_copy(update={"num_ce": num_ce})
    if rule == "gaussian":
        metrics["mean"] = shared.mean
        chosen, metrics["bins"] = gaussian(found, shared)
        metrics["within_bin"] = shared.within_bin
        _report_bins(found, shared, metrics["bins"], log)
    else:
        chosen = RULES[rule](found, num_ce, shared.per_problem)
        if len(chosen) < num_ce:
            got, cap = len(chosen), shared.per_problem
            raise DataError(_too_few("CE", num_ce, got, cap, found, funnel, files.responses))
    metrics["ce"] = _describe(found, chosen, num_ce, ["correct"], funnel)
    metrics["shortage"] = num_ce - len(chosen)
    return found.only(chosen), metrics


def _ul_set(ul: UnlikelihoodSet, seed: int, files: Files) -> tuple[Candidates, dict[str, Any]]:
    found, funnel = candidates.read(files, ul.verdicts, seed, whole=not ul.allow_length)
    found = found.only(found.ppl >= ul.min_ppl)
    funnel["floor"] = len(found.row)
    if ul.consensus:
        found = found.only(_surely_wrong(found, files))
        funnel["consensus"] = len(found.row)
    chosen = lowest(found, ul.num, ul.per_problem)
    if len(chosen) < ul.num:
        raise DataError(_too_few("UL", ul.num, len(chosen), ul.per_problem, found, funnel, files.responses))
    return found.only(chosen), _describe(found, chosen, ul.num, list(ul.verdicts), funnel)


def _surely_wrong(found: Candidates, files: Files) -> list[bool]:
    """Which of them the second check calls wrong, too."""
    predicted = candidates.take(files.verdicts, schemas.VERDICTS, ["predicted"], found.verdict_row)
    golds = candidates.take(files.problems, schemas.PROBLEMS, ["answers"], found.problem)
    return [
        second_check.surely_wrong(gold, answer)
        for gold, answer in zip(golds["answers"].to_pylist(), predicted["predicted"].to_pylist(), strict=True)
    ]


# The rules: candidates in, positions of the chosen out.


def _add(writer: tables.Writer, files: Files, chosen: Candidates, objective: str, prompt: Prompt) -> None:
    """Writes the chosen as training rows, by response_id."""
    names = ["response_id", "problem_id", "text"]
    ids, problems, texts = candidates.pick(files.responses, schemas.RESPONSES, names, chosen.row)
    (scored,) = candidates.pick(files.scores, schemas.SCORES, ["response_id"], chosen.score_row)
    assert ids == scored, "two ids with one hash"
    (questions,) = candidates.pick(files.problems, schemas.PROBLEMS, ["question"], chosen.problem)
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
        writer.add_table(pa.table(columns, schema=schemas.TRAIN))


def _pieces(order: Ints, lengths: list[int]) -> Iterator[Ints]:
    """The positions in parts that the writer takes at once."""
    start = size = 0
    for end, at in enumerate(order.tolist(), 1):
        size += lengths[at]
        if end - start >= tables.Writer.MAX_ROWS or size >= tables.Writer.MAX_CHARS or end == len(order):
            yield order[start:end]
            start, size = end, 0


# What is told: metrics, log and refusals.


def _describe(
    found: Candidates, chosen: Ints, asked: int, verdicts: list[str], funnel: dict[str, int]
) -> dict[str, Any]:
    ppl = found.ppl[chosen]
    return {
        "asked": asked,
        "chosen": len(chosen),
        "eligible": len(found.row),
        "problems": _num_problems(found.problem[chosen]),
        "eligible_problems": _num_problems(found.problem),
        "ppl_mean": float(ppl.mean()) if len(ppl) else None,
        "ppl_quantiles": _quantiles(ppl),
        "eligible_ppl_quantiles": _quantiles(found.ppl),
        "mean_tokens": float(found.num_tokens[chosen].mean()) if len(ppl) else None,
        "tokens": num_tokens(found, chosen),
        "verdicts": verdicts,
        "funnel": funnel,
    }


def _num_problems(problem: Ints) -> int:
    return int(np.count_nonzero(np.bincount(problem)))


def _quantiles(ppl: Floats) -> dict[str, float]:
    if not len(ppl):
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(ppl, QUANTILES), strict=True)}


def _report_bins(
    found: Candidates, shared: SelectionShared, bins: list[dict[str, Any]], log: journal.Log
) -> None:
    """Logs each bin that was asked for something; raises DataError where too much is missing."""
    for index, row in enumerate(bins):
        if row["target"]:
            short = row["target"] - row["chosen"]
            log(
                index,
                bin_low=row["low"],
                bin_target=row["target"],
                bin_chosen=row["chosen"],
                bin_shortage=short,
            )
            if short:
                logger.warning(
                    "ppl bin %.4g-%.4g: %d of %d CE sequences found, %d missing (%d before other bins took theirs)",
                    *(row[name] for name in ("low", "high", "chosen", "target")),
                    short,
                    row["available"],
                )
    num_chosen = sum(row["chosen"] for row in bins)
    assert isinstance(shared.num_ce, int)
    if shared.num_ce - num_chosen > shared.max_shortage * shared.num_ce:
        raise DataError(
            f"the Gaussian over ppl (mean {shared.mean:g}, std {shared.std:g}, cut to {shared.ppl_min:g}-"
            f"{shared.ppl_max:g}) found {num_chosen} of the {shared.num_ce} CE sequences asked for, more missing than "
            f"selection.shared.max_shortage {shared.max_shortage:g} allows: {len(found.row)} eligible responses of "
            f"{_num_problems(found.problem)} problems have ppl {_spread(found.ppl)}; move selection.shared.mean "
            "towards these, widen std, lower num_ce, raise per_problem or bring more teacher data"
        )


def _too_few(
    name: str, asked: int, got: int, per_problem: int, found: Candidates, funnel: dict[str, int], source: Path
) -> str:
    steps = ", ".join(f"{step} {count}" for step, count in funnel.items())
    keys = "ul.num or ul.min_ppl, raise ul.per_problem" if name == "UL" else "num_ce, raise per_problem"
    if "consensus" in funnel:
        keys += ", switch ul.consensus off"
    return (
        f"{source}: selection asks for {asked} {name} sequences and {got} can be had: {len(found.row)} eligible "
        f"responses of {_num_problems(found.problem)} problems, at most {per_problem} of one problem, with ppl "
        f"{_spread(found.ppl)} (left after each condition: {steps}); lower {keys} or bring more responses"
    )


def _too_few_tokens(
    shared: SelectionShared, rule: str, found: Candidates, funnel: dict[str, int], source: Path
) -> str:
    steps = ", ".join(f"{step} {count}" for step, count in funnel.items())
    shape = "move selection.shared.mean towards these ppl, widen std, " if rule == "gaussian" else ""
    return (
        f"{source}: selection asks for CE sequences of {tokens_of(shared.num_ce)} tokens together, and what the rule "
        f"{rule} can choose, at most {shared.per_problem} of one problem, holds fewer: {len(found.row)} eligible "
        f"responses of {_num_problems(found.problem)} problems, with {int(found.num_tokens.sum(dtype=np.int64))} "
        f"tokens and ppl {_spread(found.ppl)} (left after each condition: {steps}); lower num_ce, {shape}raise "
        "per_problem or bring more responses"
    )


def _spread(ppl: Floats) -> str:
    shown = ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in _quantiles(ppl).items())
    return f"quantiles {shown}" if shown else "quantiles of nothing"
