"""Which rows go together: batches of a token budget for scoring, the exact CE:UL mix of a training step.

Pure functions of lengths, counts and a seed. How a step is cut into micro-batches and processes changes nothing else.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from oxa.errors import ConfigError
from oxa.runtime import progress

CE, UL = 0, 1


def by_token_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in batches of at most `budget` tokens, padding to a batch's longest row included; longest first.

    Every row is in exactly one batch. A row longer than the budget gets a batch of its own. Equal lengths stay in
    order. The first batch is the largest in memory, so that what fits first fits throughout.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        num_rows = max(1, budget // max(1, lengths[order[start]]))
        batches.append(order[start : start + num_rows].tolist())
        start += num_rows
    return batches


OfBatch = Callable[[list[np.ndarray], list[int]], tuple[np.ndarray, np.ndarray]]
"""Values [N] of a batch of sequences of ids, each from its start on, row by row, and the [B] numbers of positions."""


def summed(
    sequences: Sequence[np.ndarray], starts: Sequence[int], of_batch: OfBatch, budget: int, description: str
) -> np.ndarray:
    """[rows, 2]: values summed over the positions of each sequence from its start on, and how many these are.

    Batches have at most `budget` tokens; sequences without a position are in none, and have zeros.
    """
    measured = np.zeros((len(sequences), 2))
    rows = [row for row, ids in enumerate(sequences) if len(ids) > starts[row]]
    lengths = [len(sequences[row]) for row in rows]
    with progress.bar(total=sum(lengths), desc=description, unit="tok", unit_scale=True) as bar:
        for batch in by_token_budget(lengths, budget):
            members = [rows[place] for place in batch]
            values, counts = of_batch([sequences[row] for row in members], [starts[row] for row in members])
            bounds = np.concatenate([[0], np.cumsum(counts)[:-1]])
            measured[members] = np.stack([np.add.reduceat(values, bounds), counts], axis=1)
            bar.update(sum(len(sequences[row]) for row in members))
    return measured


def num_steps(num_ce_rows: int, n_ce: int, epochs: float) -> int:
    """Optimiser steps of `epochs` passes over the CE set, at n_ce sequences a step; at least one."""
    return max(1, round(epochs * num_ce_rows / n_ce))


def step_order(
    num_ce_rows: int, num_ul_rows: int, n_ce: int, n_ul: int, epochs: float, seed: int
) -> np.ndarray:
    """Rows of every optimiser step, int64 [num_steps, n_ce + n_ul]; rows from num_ce_rows on are the UL rows.

    Each step holds n_ce CE rows and then n_ul UL rows. Either stream is one seeded permutation of its rows after the
    other, cut where the steps end: a row comes again only when every other row of its set has come as often.
    """
    assert num_ce_rows > 0
    assert num_ul_rows > 0 or n_ul == 0
    steps = num_steps(num_ce_rows, n_ce, epochs)
    ce = _stream(num_ce_rows, steps * n_ce, (seed, CE)).reshape(steps, n_ce)
    ul = _stream(num_ul_rows, steps * n_ul, (seed, UL)).reshape(steps, n_ul)
    return np.concatenate([ce, num_ce_rows + ul], axis=1)


def micro_batches(lengths: Sequence[int] | np.ndarray, num: int) -> list[list[int]]:
    """Rows in exactly `num` batches, the largest of which holds as few tokens, padding included, as can be.

    Longest first, so that a batch pads little; the fewer rows, the longer they are. With num = len(lengths) / size no
    batch is larger than the `size` longest rows. A step's loss is a sum over its rows: the cut changes nothing else.
    """
    sizes = np.asarray(lengths, np.int64).tolist()
    assert 0 < num <= len(sizes)
    longest = max(1, *sizes)
    budgets = range(longest, longest * len(sizes) + 1)
    least = bisect.bisect_left(budgets, True, key=lambda budget: len(by_token_budget(sizes, budget)) <= num)
    plan = by_token_budget(sizes, budgets[least])
    while len(plan) < num:  # rows of one length: a smaller budget gave too many
        i = max(
            (i for i, rows in enumerate(plan) if len(rows) > 1),
            key=lambda i: len(plan[i]) * sizes[plan[i][0]],
        )
        half = (len(plan[i]) + 1) // 2
        plan[i : i + 1] = [plan[i][:half], plan[i][half:]]
    return plan


def micro_batch_size(step: str, size: int, num_processes: int, at_most: int) -> int:
    """The largest micro-batch of at most so many of a step's `size` sequences that cuts each process's share evenly.

    Raises ConfigError where the processes cannot share the step evenly; `step` describes it there.
    """
    if size % num_processes:
        divisors = ", ".join(str(i) for i in range(1, size + 1) if size % i == 0)
        raise ConfigError(
            f"{step} cannot be shared by {num_processes} processes evenly; run one of {divisors} processes or change it"
        )
    share = size // num_processes
    return max(i for i in range(1, min(at_most, share) + 1) if share % i == 0)


def _stream(num_rows: int, size: int, key: tuple[int, int]) -> np.ndarray:
    """The first `size` entries of one permutation of range(num_rows) after the other.

    A permutation sorts raw Philox words, whose stream NumPy guarantees between versions (that of `permutation` it does
    not), keyed by a hash of the key and the pass.
    """
    if size == 0:
        return np.empty(0, np.int64)
    passes = -(-size // num_rows)
    permutations = [
        np.argsort(
            np.random.Philox(np.random.SeedSequence((*key, epoch))).random_raw(num_rows), kind="stable"
        )
        for epoch in range(passes)
    ]
    return np.concatenate(permutations)[:size]
