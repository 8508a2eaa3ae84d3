"""Stage `selection_ce`: which verified teacher responses an arm learns from by cross-entropy (METHOD §3).

Eligible are correct teacher responses to training problems that no length limit cut, neither the sampler's nor the
scorer's (whose ppl would be of the beginning alone), and that are short enough to be trained on, prompt and end token
included (`train.shared.max_length`, the base's context). Which of them are chosen says the arm's rule
(selection/rules.py). Arms with the same rule have the same set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from oxa.config.fine_tuning import FineTuning
from oxa.config.prompt import Prompt
from oxa.config.selection import By, CeSet, SelectionShared, tokens_of
from oxa.errors import DataError
from oxa.runtime import journal
from oxa.selection import candidates
from oxa.selection.candidates import Candidates, Files
from oxa.selection.rules import Bins, num_sequences, num_tokens, rule_of
from oxa.selection.training_set import describe, left_after, num_problems, quantiles, spread, too_few, write

logger = logging.getLogger(__name__)


def run(
    shared: SelectionShared,
    ce: CeSet,
    prompt: Prompt,
    train: FineTuning,
    *,
    problems: Path,
    pass_rates: Path,
    apart: Path,
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
    eligible, funnel = candidates.read(
        files,
        apart,
        ["correct"],
        shared.seed,
        max_length=train.max_length,
        whole=True,
        by=ce.by,
        pass_rates=pass_rates,
    )
    rule = rule_of(ce)
    num = num_sequences(rule, eligible, shared)
    if num is None:
        raise _too_few_tokens(shared, ce, eligible, funnel, responses)
    chosen, bins = rule(eligible, num, shared)
    metrics: dict[str, Any] = {}
    if bins is not None:
        _report(bins, ce.by, log)
        if num - len(chosen) > shared.max_shortage * num:
            raise _too_short(shared, ce, bins, num, len(chosen), eligible, funnel)
        metrics = {**bins.settings, "bins": bins.rows}
    elif len(chosen) < num:
        raise too_few("CE", num, len(chosen), shared.per_problem, eligible, funnel, responses)
    write(output, files, eligible.only(chosen), "ce", prompt)
    described = describe(eligible, chosen, num, ["correct"], funnel)
    if ce.by != "ppl":
        described |= {"by": ce.by, "quantiles": quantiles(eligible.value[chosen])}
        described["eligible_quantiles"] = quantiles(eligible.value)
    return metrics | {"ce": described, "shortage": num - len(chosen)}


def _report(bins: Bins, by: By, log: journal.Log) -> None:
    """Logs each bin that was asked for something, and warns of those that came short."""
    for index, row in enumerate(bins.rows):
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
                    "%s bin %.4g-%.4g: %d of %d CE sequences found, %d missing (%d before other bins took theirs)",
                    by,
                    *(row[name] for name in ("low", "high", "chosen", "target")),
                    short,
                    row["available"],
                )


def _too_short(
    shared: SelectionShared,
    ce: CeSet,
    bins: Bins,
    num: int,
    num_chosen: int,
    eligible: Candidates,
    funnel: dict[str, int],
) -> DataError:
    outside = ce.by == "ppl" and not shared.ppl_min <= bins.settings["mean"] <= shared.ppl_max
    bounds = "let selection.shared.ppl_min and ppl_max hold the mean, " if outside else ""
    return DataError(
        f"{bins.shape} found {num_chosen} of the {num} CE sequences asked for, more missing than "
        f"selection.shared.max_shortage {shared.max_shortage:g} allows: {len(eligible.row)} eligible responses of "
        f"{num_problems(eligible.problem)} problems have {ce.by} {spread(eligible.value)} ({left_after(funnel)}); "
        f"{bounds}move {_mean_of(ce)} towards these, widen std and bin_width, lower num_ce, raise per_problem or bring "
        "more teacher data"
    )


def _mean_of(ce: CeSet) -> str:
    return "selection.shared.mean" if ce.mean is None else "its mean"


def _too_few_tokens(
    shared: SelectionShared, ce: CeSet, eligible: Candidates, funnel: dict[str, int], source: Path
) -> DataError:
    shape = f"move {_mean_of(ce)} towards these {ce.by}, widen std, " if ce.rule == "gaussian" else ""
    return DataError(
        f"{source}: selection asks for CE sequences of {tokens_of(shared.num_ce)} tokens together, and what the rule "
        f"{ce.rule} can choose, at most {shared.per_problem} of one problem, holds fewer: {len(eligible.row)} eligible "
        f"responses of {num_problems(eligible.problem)} problems, with {num_tokens(eligible, slice(None))} "
        f"tokens and {ce.by} {spread(eligible.value)} ({left_after(funnel)}); lower num_ce, {shape}raise per_problem "
        "or bring more responses"
    )
