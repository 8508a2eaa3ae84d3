"""Stage `selection_ce`: which verified teacher responses an arm learns from by cross-entropy (METHOD §3).

Eligible are correct teacher responses to training problems that no length limit cut, neither the sampler's nor the
scorer's (whose ppl would be of the beginning alone). Which of them are chosen says the arm's rule (selection/rules.py).
Arms with the same rule have the same set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from oxa.config.prompt import Prompt
from oxa.config.selection import CeRule, SelectionShared, tokens_of
from oxa.errors import DataError
from oxa.runtime import journal
from oxa.selection import candidates
from oxa.selection.candidates import Candidates, Files
from oxa.selection.rules import RULES, gaussian, num_tokens, number, with_mean
from oxa.selection.training_set import describe, num_problems, spread, too_few, write

logger = logging.getLogger(__name__)


def run(
    shared: SelectionShared,
    rule: CeRule,
    prompt: Prompt,
    *,
    problems: Path,
    responses: Path,
    verdicts: Path,
    scores: Path,
    output: Path,
    log: journal.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the CE set, by response_id, and returns its description, shortage and bins.

    Raises DataError where the rule asks for more than exists, or tables do not belong together. `scratch` stays empty:
    a rerun takes seconds.
    """
    files = Files(problems, responses, verdicts, scores)
    chosen, metrics = _choose(shared, rule, files, log)
    write(output, files, chosen, "ce", prompt)
    return metrics


def _choose(
    shared: SelectionShared, rule: CeRule, files: Files, log: journal.Log
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
            raise DataError(too_few("CE", num_ce, got, cap, found, funnel, files.responses))
    metrics["ce"] = describe(found, chosen, num_ce, ["correct"], funnel)
    metrics["shortage"] = num_ce - len(chosen)
    return found.only(chosen), metrics


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
            f"{num_problems(found.problem)} problems have ppl {spread(found.ppl)}; move selection.shared.mean "
            "towards these, widen std, lower num_ce, raise per_problem or bring more teacher data"
        )


def _too_few_tokens(
    shared: SelectionShared, rule: str, found: Candidates, funnel: dict[str, int], source: Path
) -> str:
    steps = ", ".join(f"{step} {count}" for step, count in funnel.items())
    shape = "move selection.shared.mean towards these ppl, widen std, " if rule == "gaussian" else ""
    return (
        f"{source}: selection asks for CE sequences of {tokens_of(shared.num_ce)} tokens together, and what the rule "
        f"{rule} can choose, at most {shared.per_problem} of one problem, holds fewer: {len(found.row)} eligible "
        f"responses of {num_problems(found.problem)} problems, with {num_tokens(found, slice(None))} "
        f"tokens and ppl {spread(found.ppl)} (left after each condition: {steps}); lower num_ce, {shape}raise "
        "per_problem or bring more responses"
    )
