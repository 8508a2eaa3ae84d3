"""Which responses an arm trains on: the CE set of every arm and the UL set of those that have one (METHOD §3).

    ppl(y|x) = exp(-1/T Σ_t ln p(y_t | x, y_<t))        over the T tokens of a response, under the base

CE rules, over verified teacher responses of training problems that no length limit cut, neither the sampler's nor the
scorer's (whose ppl would be of the beginning alone), at most `per_problem` of one problem:

- `random`    in the order of a seeded hash, round-robin: every problem gives one before any gives a second.
- `lowest`    ascending ppl, passing over a problem that has given its share.
- `gaussian`  ppl follows a Gaussian cut to [ppl_min, ppl_max]. With c_b the center and w_b the width of bin b (all
              equal, but for a last one that ppl_max cuts short),
                  target_b = N · w_b pdf(c_b) / Σ_b w_b pdf(c_b),   rounded by largest remainder so that Σ = N.
              Bins are [low, high), the last one closed. Inside a bin: round-robin over problems, a problem's round
              counting what it gave to other bins; in a round the longest go first, ties by the seeded hash. A problem
              has one cap over all bins, so bins compete: the bin that can give the fewest for each that it is asked for
              goes first, ties by ppl. What a bin cannot give is its shortage, reported and filled by nothing.

UL rule, over the student's own responses whose verdict proves a wrong pattern: the `num` of lowest ppl that are not
below `min_ppl` (degenerate loops), at most `per_problem` of one problem; none that a length limit cut unless allowed.

Arrays are [N], one entry a candidate. No rule sees the order of rows: what chance decides, a 64-bit hash of (seed,
response_id) decides. Ids are joined by hash as well, and compared letter by letter for the rows chosen.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from oxa import candidates, prompts, records
from oxa.candidates import Candidates, Files, Floats, Ints
from oxa.config import Prompt, SelectionArm, SelectionShared, UnlikelihoodSet
from oxa.errors import DataError

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
    log: records.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the arm's training set: CE rows, then UL rows, each by response_id.

    The CE set depends on `shared` and `arm.ce` alone, so arms with the same rule share it. Raises DataError where a
    rule asks for more than exists, or tables do not belong together. `scratch` stays empty: a rerun takes seconds.
    """
    files = Files(problems, teacher, teacher_verdicts, teacher_scores)
    chosen, metrics = _ce_set(shared, arm.ce, files, log)
    parts = [_rows(files, chosen, "ce", prompt)]
    if arm.ul is not None:
        files = Files(problems, self_responses, self_verdicts, self_scores)
        chosen, metrics["ul"] = _ul_set(arm.ul, shared.seed, files)
        parts.append(_rows(files, chosen, "ul", prompt))
    records.write(output, pa.concat_tables(parts), records.TRAIN)
    return metrics


def _ce_set(
    shared: SelectionShared, rule: str, files: Files, log: records.Log
) -> tuple[Candidates, dict[str, Any]]:
    found, funnel = candidates.read(files, ["correct"], shared.seed, whole=True)
    metrics: dict[str, Any] = {}
    if rule == "gaussian":
        chosen, metrics["bins"] = gaussian(found, shared)
        metrics["within_bin"] = shared.within_bin
        _report_bins(found, shared, metrics["bins"], log)
    else:
        choose = random if rule == "random" else lowest
        chosen = choose(found, shared.num_ce, shared.per_problem)
        if len(chosen) < shared.num_ce:
            got, cap = len(chosen), shared.per_problem
            raise DataError(_too_few("CE", shared.num_ce, got, cap, found, funnel, files.responses))
    metrics["ce"] = _describe(found, chosen, shared.num_ce, ["correct"], funnel)
    metrics["shortage"] = shared.num_ce - len(chosen)
    return found.only(chosen), metrics


def _ul_set(ul: UnlikelihoodSet, seed: int, files: Files) -> tuple[Candidates, dict[str, Any]]:
    found, funnel = candidates.read(files, ul.verdicts, seed, whole=not ul.allow_length)
    found = found.only(found.ppl >= ul.min_ppl)
    funnel["floor"] = len(found.row)
    chosen = lowest(found, ul.num, ul.per_problem)
    if len(chosen) < ul.num:
        raise DataError(_too_few("UL", ul.num, len(chosen), ul.per_problem, found, funnel, files.responses))
    return found.only(chosen), _describe(found, chosen, ul.num, list(ul.verdicts), funnel)


# The rules: candidates in, positions of the chosen out.


def random(found: Candidates, num: int, per_problem: int) -> Ints:
    """At most `num` positions in hashed order, round-robin over problems."""
    order = np.argsort(found.order)
    turn = _turn(found.problem[order])
    kept = np.flatnonzero(turn < per_problem)
    return order[kept[np.argsort(turn[kept], kind="stable")]][:num]


def lowest(found: Candidates, num: int, per_problem: int) -> Ints:
    """At most `num` positions of lowest ppl, ties by hash."""
    order = np.lexsort((found.order, found.ppl))
    return order[_turn(found.problem[order]) < per_problem][:num]


def gaussian(found: Candidates, shared: SelectionShared) -> tuple[Ints, list[dict[str, Any]]]:
    """Positions whose ppl follow the truncated Gaussian, and what each bin was asked for and gave."""
    edges, targets = gaussian_targets(shared)
    bin_of = np.searchsorted(edges, found.ppl, side="right") - 1
    bin_of[found.ppl == edges[-1]] = len(targets) - 1
    inside = (found.ppl >= edges[0]) & (found.ppl <= edges[-1])
    capped = _capped_counts(bin_of[inside], found.problem[inside], shared.per_problem, len(targets))

    asked = np.flatnonzero(inside)
    asked = asked[targets[bin_of[asked]] > 0]
    first = -found.num_tokens[asked] if shared.within_bin == "longest" else np.zeros(len(asked), np.int64)
    asked = asked[np.lexsort((found.order[asked], first, bin_of[asked]))]
    turn = _turn(bin_of[asked] * (int(found.problem.max(initial=0)) + 1) + found.problem[asked])
    starts = np.searchsorted(bin_of[asked], np.arange(len(targets) + 1))

    given = np.zeros(int(found.problem.max(initial=-1)) + 1, np.int64)  # by problem, over all bins so far
    chosen: list[Ints] = []
    num_chosen = np.zeros(len(targets), np.int64)
    for b in np.argsort(capped / np.maximum(targets, 1), kind="stable"):
        here = slice(starts[b], starts[b + 1])
        members, rounds = asked[here], turn[here]
        rounds = rounds + given[found.problem[members]]
        open_ = np.flatnonzero(rounds < shared.per_problem)
        taken = members[open_[np.argsort(rounds[open_], kind="stable")]][: targets[b]]
        np.add.at(given, found.problem[taken], 1)
        chosen.append(taken)
        num_chosen[b] = len(taken)
    bins = [
        {"low": low, "high": high, "target": target, "chosen": took, "available": available}
        for low, high, target, took, available in zip(
            edges[:-1].tolist(),
            edges[1:].tolist(),
            targets.tolist(),
            num_chosen.tolist(),
            capped.tolist(),
            strict=True,
        )
    ]
    return np.concatenate(chosen), bins


def gaussian_targets(shared: SelectionShared) -> tuple[Floats, Ints]:
    """Edges [bins + 1] and target counts [bins], which sum to num_ce exactly."""
    span = (shared.ppl_max - shared.ppl_min) / shared.bin_width
    num_bins = max(1, int(np.ceil(span - 1e-9)))
    # rounded, so that 1 + 3 · 0.05 is the 1.15 that a reader of the metrics expects
    edges = np.round(shared.ppl_min + shared.bin_width * np.arange(num_bins + 1), 12)
    edges[-1] = shared.ppl_max
    widths = np.append(np.full(num_bins - 1, shared.bin_width), edges[-1] - edges[-2])
    centers = (edges[:-1] + edges[1:]) / 2
    log_pdf = -0.5 * ((centers - shared.mean) / shared.std) ** 2
    share = widths * np.exp(log_pdf - log_pdf.max())  # never all zero, however far the mean lies outside
    quota = shared.num_ce * share / share.sum()
    targets = np.floor(quota).astype(np.int64)
    remainder = np.round(
        quota - targets, 9
    )  # bins at equal distance from the mean tie; the lower one goes first
    targets[np.argsort(-remainder, kind="stable")[: shared.num_ce - targets.sum()]] += 1
    return edges, targets


def _turn(group: Ints) -> Ints:
    """For each entry, how many before it belong to the same group."""
    place = np.arange(len(group))
    order = np.argsort(group * len(group) + place)  # unique keys: several times faster than a stable sort
    ranked = group[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)])
    turn = np.empty(len(group), np.int64)
    turn[order] = place - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return turn


def _capped_counts(bin_of: Ints, problem: Ints, per_problem: int, num_bins: int) -> Ints:
    """What each bin could give if it stood alone: its responses, at most `per_problem` of one problem."""
    pairs, counts = np.unique(bin_of * (int(problem.max(initial=0)) + 1) + problem, return_counts=True)
    which = pairs // (int(problem.max(initial=0)) + 1)
    return np.bincount(which, np.minimum(counts, per_problem), num_bins).astype(np.int64)


def _rows(files: Files, chosen: Candidates, objective: str, prompt: Prompt) -> pa.Table:
    """The chosen as training rows, by response_id."""
    responses = candidates.take(
        files.responses, records.RESPONSES, ["response_id", "problem_id", "text"], chosen.row
    )
    scored = candidates.take(files.scores, records.SCORES, ["response_id"], chosen.score_row)
    assert responses["response_id"].equals(scored["response_id"]), "two ids with one hash"
    question = candidates.take(files.problems, records.PROBLEMS, ["question"], chosen.problem)["question"]
    turns = [prompts.user_turn(text, prompt.suffix) for text in question.to_pylist()]
    table = pa.table(
        {
            "response_id": responses["response_id"],
            "problem_id": responses["problem_id"],
            "prompt": pa.array(turns, pa.string()),
            "completion": responses["text"],
            "objective": pa.array([objective] * len(turns), pa.string()),
            "ppl": chosen.ppl,
            "num_tokens": pa.array(chosen.num_tokens, pa.int32()),
        }
    )
    return table.sort_by("response_id")


# What is told: metrics, log and refusals.


def _describe(
    found: Candidates, chosen: Ints, asked: int, verdicts: list[str], funnel: dict[str, int]
) -> dict[str, Any]:
    ppl = found.ppl[chosen]
    return {
        "asked": asked,
        "chosen": len(chosen),
        "eligible": len(found.row),
        "problems": len(np.unique(found.problem[chosen])),
        "eligible_problems": len(np.unique(found.problem)),
        "ppl_mean": float(ppl.mean()) if len(ppl) else None,
        "ppl_quantiles": _quantiles(ppl),
        "eligible_ppl_quantiles": _quantiles(found.ppl),
        "mean_tokens": float(found.num_tokens[chosen].mean()) if len(ppl) else None,
        "verdicts": verdicts,
        "funnel": funnel,
    }


def _quantiles(ppl: Floats) -> dict[str, float]:
    if not len(ppl):
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(ppl, QUANTILES), strict=True)}


def _report_bins(
    found: Candidates, shared: SelectionShared, bins: list[dict[str, Any]], log: records.Log
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
    if shared.num_ce - num_chosen > shared.max_shortage * shared.num_ce:
        raise DataError(
            f"the Gaussian over ppl (mean {shared.mean:g}, std {shared.std:g}, cut to {shared.ppl_min:g}-"
            f"{shared.ppl_max:g}) found {num_chosen} of the {shared.num_ce} CE sequences asked for, more missing than "
            f"selection.shared.max_shortage {shared.max_shortage:g} allows: {len(found.row)} eligible responses of "
            f"{len(np.unique(found.problem))} problems have ppl {_spread(found.ppl)}; move selection.shared.mean "
            "towards these, widen std, lower num_ce, raise per_problem or bring more teacher data"
        )


def _too_few(
    name: str, asked: int, got: int, per_problem: int, found: Candidates, funnel: dict[str, int], source: Path
) -> str:
    steps = ", ".join(f"{step} {count}" for step, count in funnel.items())
    keys = "ul.num or ul.min_ppl, raise ul.per_problem" if name == "UL" else "num_ce, raise per_problem"
    return (
        f"{source}: selection asks for {asked} {name} sequences and {got} can be had: {len(found.row)} eligible "
        f"responses of {len(np.unique(found.problem))} problems, at most {per_problem} of one problem, with ppl "
        f"{_spread(found.ppl)} (left after each condition: {steps}); lower {keys} or bring more responses"
    )


def _spread(ppl: Floats) -> str:
    shown = ", ".join(f"{float(q):.0%} {value:.3g}" for q, value in _quantiles(ppl).items())
    return f"quantiles {shown}" if shown else "quantiles of nothing"
