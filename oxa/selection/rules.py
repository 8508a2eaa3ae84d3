"""The rules of the CE set: which of the eligible responses an arm is trained on (METHOD §3).

    ppl(y|x) = exp(-1/T Σ_t ln p(y_t | x, y_<t))        over the T tokens of a response, under the base

Every rule takes at most `per_problem` responses of one problem:

- `random`    in the order of a seeded hash, round-robin: every problem gives one before any gives a second.
- `lowest`    ascending ppl, passing over a problem that has given its share; `highest` the other way round.
- `gaussian`  ppl follows a Gaussian cut to [ppl_min, ppl_max]. With c_b the center and w_b the width of bin b (all
              equal, but for a last one that ppl_max cuts short),
                  target_b = N · w_b pdf(c_b) / Σ_b w_b pdf(c_b),   rounded by largest remainder so that Σ = N.
              The mean may be given as a quantile of the ppl of all that may be chosen.
              Bins are [low, high), the last one closed. Inside a bin: round-robin over problems, a problem's round
              counting what it gave to other bins; in a round the longest go first, ties by the seeded hash. A problem
              has one cap over all bins, so bins compete: the bin that can give the fewest for each that it is asked for
              goes first, ties by ppl. What a bin cannot give is its shortage, reported and filled by nothing.

What is said of ppl holds of every measure that `by` may name. Only a Gaussian's bins differ, since every measure has a
scale of its own: σ/5 wide (the paper's, of ppl), over [μ - 4σ, μ + 4σ], outside which lie 6 in 100,000 of a Gaussian.

With `num_ce: tokens(B)` each rule takes the N at which its choice comes up to B tokens, or N - 1 where that is nearer;
one sequence at least. A Gaussian of N + 1 can hold fewer tokens than one of N (a bin's rounded target may fall, and
bins compete), so that there can be several such N: bisection picks one.

A rule is one function (candidates, number of sequences, settings) -> Choice, its name an entry of RULES and of
config/selection.py's CeRule.

Arrays are [N], one entry a candidate. No rule sees the order of rows: what chance decides, a 64-bit hash of (seed,
response_id) decides.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from oxa.config.selection import CeRule, CeSet, SelectionShared, quantile_of, tokens_of
from oxa.selection.candidates import Candidates, Floats, Ints


class Bins(NamedTuple):
    """What a rule that fills bins of a measure asked of each bin and got; such a rule may come short."""

    shape: str
    """The distribution that the bins follow, in words."""
    settings: dict[str, Any]
    """What the rule worked with, for the metrics."""
    rows: list[dict[str, Any]]
    """Of each bin: its ends `low` and `high`, its `target`, the number `chosen`, and what was `available` to it."""


class Choice(NamedTuple):
    """What a rule takes from the candidates."""

    positions: Ints
    bins: Bins | None = None
    """None of a rule without bins: its positions are then in order, and the first n are its choice of n."""


Rule = Callable[[Candidates, int, SelectionShared], Choice]
"""The rule of one CE set, as `rule_of` gives it."""


def rule_of(ce: CeSet) -> Rule:
    return partial(gaussian, ce=ce) if ce.rule == "gaussian" else RULES[ce.rule]


def random(candidates: Candidates, num: int, shared: SelectionShared) -> Choice:
    """At most `num` in hashed order, round-robin over problems."""
    order = np.argsort(candidates.order)
    turn = in_turn(candidates.problem[order])
    allowed = np.flatnonzero(turn < shared.per_problem)
    return Choice(order[allowed[np.argsort(turn[allowed], kind="stable")]][:num])


def lowest(candidates: Candidates, num: int, shared: SelectionShared) -> Choice:
    """At most `num` of lowest value, ties by hash."""
    return Choice(of_lowest(candidates, num, shared.per_problem))


def highest(candidates: Candidates, num: int, shared: SelectionShared) -> Choice:
    """At most `num` of highest value, ties by hash."""
    return Choice(of_lowest(candidates._replace(value=-candidates.value), num, shared.per_problem))


def of_lowest(candidates: Candidates, num: int, per_problem: int) -> Ints:
    """Positions of `lowest`, which the UL sets are chosen by, too."""
    order = np.lexsort((candidates.order, candidates.value))
    return order[in_turn(candidates.problem[order]) < per_problem][:num]


def num_sequences(rule: Rule, candidates: Candidates, shared: SelectionShared) -> int | None:
    """CE sequences to ask for; None where even as many as are eligible do not come up to the B of `tokens(B)`."""
    budget = tokens_of(shared.num_ce)
    if budget is None:
        assert isinstance(shared.num_ce, int)
        return shared.num_ce
    most = len(candidates.row)
    whole = rule(candidates, most, shared)

    def total(num: int) -> int:
        choice = whole.positions[:num] if whole.bins is None else rule(candidates, num, shared).positions
        return num_tokens(candidates, choice)

    num = 1 + bisect.bisect_left(range(1, most + 1), budget, key=total)
    if num > most:
        return None
    return num - 1 if num > 1 and budget - total(num - 1) < total(num) - budget else num


def num_tokens(candidates: Candidates, chosen: Ints | slice) -> int:
    return int(candidates.num_tokens[chosen].sum(dtype=np.int64))


BY_PPL = CeSet(rule="gaussian")


def gaussian(candidates: Candidates, num: int, shared: SelectionShared, ce: CeSet = BY_PPL) -> Choice:
    """At most `num` whose values follow the truncated Gaussian."""
    bell = bell_of(candidates, shared, ce)
    edges, targets = gaussian_targets(num, bell)
    num_bins = len(targets)
    bin_of = (np.searchsorted(edges, candidates.value, side="right") - 1).astype(
        np.int32
    )  # -1 and num_bins: outside
    bin_of[candidates.value == edges[-1]] = num_bins - 1
    by_bin = np.argsort(bin_of, kind="stable").astype(np.int32)
    starts = np.searchsorted(bin_of, np.arange(num_bins + 1), sorter=by_bin)
    del bin_of

    # a bin at a time, so that what is sorted is small; what a bin could give, if it stood alone, orders the bins
    turn = np.empty(len(by_bin), np.int32)
    capped = np.zeros(num_bins, np.int64)
    for b in range(num_bins):
        here = slice(starts[b], starts[b + 1])
        members = by_bin[here]
        first = (
            -candidates.num_tokens[members]
            if shared.within_bin == "longest"
            else np.zeros(len(members), np.int32)
        )
        by_bin[here] = members = members[np.lexsort((candidates.order[members], first))]
        turn[here] = in_turn(candidates.problem[members])
        capped[b] = np.count_nonzero(turn[here] < shared.per_problem)

    given = np.zeros(
        int(candidates.problem.max(initial=-1)) + 1, np.int64
    )  # by problem, over all bins so far
    chosen: list[Ints] = []
    num_chosen = np.zeros(num_bins, np.int64)
    for b in np.argsort(capped / np.maximum(targets, 1), kind="stable"):
        if not targets[b]:
            continue
        here = slice(starts[b], starts[b + 1])
        members = by_bin[here]
        rounds = turn[here] + given[candidates.problem[members]]
        open_ = np.flatnonzero(rounds < shared.per_problem)
        taken = members[open_[np.argsort(rounds[open_], kind="stable")]][: targets[b]]
        np.add.at(given, candidates.problem[taken], 1)
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
    shape = (
        f"the Gaussian over {ce.by} (mean {bell.mean:g}, std {bell.std:g}, cut to {bell.low:g}-{bell.high:g})"
    )
    settings = {"mean": bell.mean, "within_bin": shared.within_bin}
    return Choice(np.concatenate([np.empty(0, np.int32), *chosen]), Bins(shape, settings, bins))


class Bell(NamedTuple):
    """A Gaussian and its bins, in the measure's own unit."""

    mean: float
    std: float
    low: float
    high: float
    width: float


def bell_of(candidates: Candidates, shared: SelectionShared, ce: CeSet) -> Bell:
    """A mean of `quantile(q)` is what this comes to among the candidates; 1 where there are none."""
    given = shared.mean if ce.mean is None else ce.mean
    std, q = shared.std if ce.std is None else ce.std, quantile_of(given)
    if q is None:
        mean = float(given)
    else:
        mean = float(np.quantile(candidates.value, q)) if len(candidates.value) else 1.0
    if ce.by == "ppl":
        return Bell(mean, std, shared.ppl_min, shared.ppl_max, shared.bin_width)
    return Bell(mean, std, mean - 4 * std, mean + 4 * std, std / 5)


def gaussian_targets(num: int, bell: Bell) -> tuple[Floats, Ints]:
    """Edges [bins + 1] and target counts [bins], which sum to `num` exactly."""
    num_bins = max(1, int(np.ceil((bell.high - bell.low) / bell.width - 1e-9)))
    # rounded, so that 1 + 3 · 0.05 is the 1.15 that a reader of the metrics expects
    edges = np.round(bell.low + bell.width * np.arange(num_bins + 1), 12)
    edges[-1] = bell.high
    widths = np.append(np.full(num_bins - 1, bell.width), edges[-1] - edges[-2])
    centers = (edges[:-1] + edges[1:]) / 2
    log_pdf = -0.5 * ((centers - bell.mean) / bell.std) ** 2
    share = widths * np.exp(log_pdf - log_pdf.max())  # never all zero, however far the mean lies outside
    quota = num * share / share.sum()
    targets = np.floor(quota).astype(np.int64)
    remainder = np.round(
        quota - targets, 9
    )  # bins at equal distance from the mean tie; the lower one goes first
    targets[np.argsort(-remainder, kind="stable")[: num - targets.sum()]] += 1
    return edges, targets


RULES: dict[CeRule, Rule] = {"random": random, "lowest": lowest, "highest": highest, "gaussian": gaussian}


def in_turn(group: Ints) -> Ints:
    """For each entry, how many before it belong to the same group."""
    place = np.arange(len(group))
    # unique keys: several times faster than a stable sort
    order = np.argsort(group.astype(np.int64) * len(group) + place)
    ranked = group[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)])
    turn = np.empty(len(group), np.int64)
    turn[order] = place - np.repeat(starts, np.diff(np.append(starts, len(group))))
    return turn
