"""The rules of the CE set: which of the eligible responses an arm is trained on (METHOD §3).

    ppl(y|x) = exp(-1/T Σ_t ln p(y_t | x, y_<t))        over the T tokens of a response, under the base

Every rule takes at most `per_problem` responses of one problem:

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

Arrays are [N], one entry a candidate. No rule sees the order of rows: what chance decides, a 64-bit hash of (seed,
response_id) decides.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from oxa.config.selection import SelectionShared, quantile_of, tokens_of
from oxa.selection.candidates import Candidates, Floats, Ints


def random(found: Candidates, num: int, per_problem: int) -> Ints:
    """At most `num` positions in hashed order, round-robin over problems."""
    order = np.argsort(found.order)
    turn = in_turn(found.problem[order])
    kept = np.flatnonzero(turn < per_problem)
    return order[kept[np.argsort(turn[kept], kind="stable")]][:num]


def lowest(found: Candidates, num: int, per_problem: int) -> Ints:
    """At most `num` positions of lowest ppl, ties by hash."""
    order = np.lexsort((found.order, found.ppl))
    return order[in_turn(found.problem[order]) < per_problem][:num]


RULES = {"random": random, "lowest": lowest}


def number(shared: SelectionShared, rule: str, found: Candidates) -> int | None:
    """CE sequences to ask for; None where even as many as are eligible do not come up to the B of `tokens(B)`."""
    budget = tokens_of(shared.num_ce)
    if budget is None:
        assert isinstance(shared.num_ce, int)
        return shared.num_ce
    if rule == "gaussian":

        def total(num: int) -> int:
            chosen, _ = gaussian(found, shared.model_copy(update={"num_ce": num}))
            return num_tokens(found, chosen)
    else:
        order = RULES[rule](found, len(found.row), shared.per_problem)

        def total(num: int) -> int:
            return num_tokens(found, order[:num])

    num = 1 + bisect.bisect_left(range(1, len(found.row) + 1), budget, key=total)
    if num > len(found.row):
        return None
    return num - 1 if num > 1 and budget - total(num - 1) < total(num) - budget else num


def num_tokens(found: Candidates, chosen: Ints | slice) -> int:
    return int(found.num_tokens[chosen].sum(dtype=np.int64))


def with_mean(shared: SelectionShared, found: Candidates) -> SelectionShared:
    """With the number that `mean: quantile(q)` comes to among the candidates; 1 where there are none."""
    q = quantile_of(shared.mean)
    if q is None:
        return shared
    return shared.model_copy(update={"mean": float(np.quantile(found.ppl, q)) if len(found.ppl) else 1.0})


def gaussian(found: Candidates, shared: SelectionShared) -> tuple[Ints, list[dict[str, Any]]]:
    """Positions whose ppl follow the truncated Gaussian, and what each bin was asked for and gave."""
    edges, targets = gaussian_targets(shared)
    num_bins = len(targets)
    bin_of = (np.searchsorted(edges, found.ppl, side="right") - 1).astype(
        np.int32
    )  # -1 and num_bins: outside
    bin_of[found.ppl == edges[-1]] = num_bins - 1
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
            -found.num_tokens[members] if shared.within_bin == "longest" else np.zeros(len(members), np.int32)
        )
        by_bin[here] = members = members[np.lexsort((found.order[members], first))]
        turn[here] = in_turn(found.problem[members])
        capped[b] = np.count_nonzero(turn[here] < shared.per_problem)

    given = np.zeros(int(found.problem.max(initial=-1)) + 1, np.int64)  # by problem, over all bins so far
    chosen: list[Ints] = []
    num_chosen = np.zeros(num_bins, np.int64)
    for b in np.argsort(capped / np.maximum(targets, 1), kind="stable"):
        if not targets[b]:
            continue
        here = slice(starts[b], starts[b + 1])
        members = by_bin[here]
        rounds = turn[here] + given[found.problem[members]]
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
    return np.concatenate([np.empty(0, np.int32), *chosen]), bins


def gaussian_targets(shared: SelectionShared) -> tuple[Floats, Ints]:
    """Edges [bins + 1] and target counts [bins], which sum to num_ce exactly."""
    span = (shared.ppl_max - shared.ppl_min) / shared.bin_width
    num_bins = max(1, int(np.ceil(span - 1e-9)))
    # rounded, so that 1 + 3 · 0.05 is the 1.15 that a reader of the metrics expects
    edges = np.round(shared.ppl_min + shared.bin_width * np.arange(num_bins + 1), 12)
    edges[-1] = shared.ppl_max
    widths = np.append(np.full(num_bins - 1, shared.bin_width), edges[-1] - edges[-2])
    centers = (edges[:-1] + edges[1:]) / 2
    assert not isinstance(shared.mean, str), "with_mean comes first"
    assert isinstance(shared.num_ce, int), "number comes first"
    log_pdf = -0.5 * ((centers - shared.mean) / shared.std) ** 2
    share = widths * np.exp(log_pdf - log_pdf.max())  # never all zero, however far the mean lies outside
    quota = shared.num_ce * share / share.sum()
    targets = np.floor(quota).astype(np.int64)
    remainder = np.round(
        quota - targets, 9
    )  # bins at equal distance from the mean tie; the lower one goes first
    targets[np.argsort(-remainder, kind="stable")[: shared.num_ce - targets.sum()]] += 1
    return edges, targets


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
