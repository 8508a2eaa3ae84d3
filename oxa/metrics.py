"""What is said about samples, and how sure one can be of it: arrays in, numbers out.

pass@k (Chen et al. 2021, arXiv 2107.03374, §2.1): the probability that at least one of k samples is right, estimated
without bias from n ≥ k samples of which c are right,

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{j < k} max(0, n - c - j) / (n - j)

and averaged over problems (and over seeds, each weighing the same).

Intervals are percentile bootstraps (Efron & Tibshirani 1993, ch. 13 and 16) at level 1 - α:

    one level     problems are drawn with replacement, each with its value. The observed values already hold the noise
                  of their finite samples, so this alone covers the mean over problems like these.
    two levels    each drawn problem's n samples are drawn again, too: c* ~ Binomial(n, c/n). This counts the samples'
                  noise twice and is therefore wider: the cautious interval where problems are few.
    seeds         where there are several, they are drawn as well, the same drawn problems for all of them.
    paired        two arms on the same drawn problems, seeds of each arm apart; two-sided
                  p = 2 · min(1 + #{d* ≤ 0}, 1 + #{d* ≥ 0}) / (R + 1), at most 1.

Drawing samples again makes pass@k lower on average, since copies add nothing: E* = 1 - (1 - c/n)^k. Each problem's
replicates are moved up by the difference, so that they are centred on its estimate.

Legend: S seeds, P problems, N samples a problem, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BLOCK = 2**21  # drawn values that exist at the same time


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float


class Difference(NamedTuple):
    difference: float
    """Mean of a minus mean of b."""
    low: float
    high: float
    p_value: float
    """Two-sided, of no difference."""


def pass_at_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> Floats:
    """Unbiased pass@k of each problem; the two counts broadcast against each other.

    Raises ValueError where a problem has fewer than k samples, or counts that cannot be.
    """
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs k of at least 1 and as many samples of every problem")
    if (c < 0).any() or (c > n).any():
        raise ValueError("num_correct must lie between 0 and num_samples")
    none_right = np.ones(n.shape)
    for j in range(k):
        none_right *= np.maximum(0, n - c - j) / (n - j)
    return 1 - none_right


def k_values(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")
    return [*(2**i for i in range((n - 1).bit_length())), n]


def bootstrap_interval(
    values: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of the values of problems [P] or [S, P], resampled over problems, and over seeds where S > 1."""
    table = _seeds_by_problems(values)
    num_seeds, num_problems = table.shape

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        problems = _weights(rng, size, num_problems)
        return np.einsum("rs,sp,rp->r", _weights(rng, size, num_seeds), table, problems, optimize=True)

    replicates = _in_blocks(replicate, resamples, num_problems, seed)
    return Interval(float(table.mean()), *_percentiles(replicates, confidence))


def pass_at_k_interval(
    correct: ArrayLike, k: int, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """pass@k with its two-level interval, from 0/1 correctness [P, N] or [S, P, N]; seeds are resampled where S > 1."""
    marks = np.asarray(correct)
    marks = marks[None] if marks.ndim == 2 else marks
    if marks.ndim != 3 or 0 in marks.shape or not np.isin(marks, (0, 1)).all():
        raise ValueError("correct must hold 0 and 1, as [problems, samples] or [seeds, problems, samples]")
    num_seeds, num_problems, n = marks.shape
    counts = marks.sum(-1, dtype=np.int64)  # [S, P]
    by_count = pass_at_k(n, np.arange(n + 1), k)  # [N + 1]
    centre = by_count - (1 - (1 - np.arange(n + 1) / n) ** k)

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        seeds = rng.integers(num_seeds, size=(size, num_seeds, 1))
        problems = rng.integers(num_problems, size=(size, 1, num_problems))
        drawn = counts[seeds, problems]  # [R, S, P]
        again = rng.binomial(n, drawn / n)
        return (by_count[again] + centre[drawn]).mean(axis=(1, 2)).clip(0, 1)

    replicates = _in_blocks(replicate, resamples, num_seeds * num_problems, seed)
    return Interval(float(by_count[counts].mean()), *_percentiles(replicates, confidence))


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Mean of a minus mean of b on the same problems, in the same order: [P] or [S, P], S may differ between them."""
    ours, theirs = _seeds_by_problems(a), _seeds_by_problems(b)
    num_problems = ours.shape[1]
    if theirs.shape[1] != num_problems:
        raise ValueError(f"a pair needs the same problems, found {num_problems} and {theirs.shape[1]}")

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        problems = _weights(rng, size, num_problems)
        means = [
            np.einsum("rs,sp,rp->r", _weights(rng, size, len(arm)), arm, problems, optimize=True)
            for arm in (ours, theirs)
        ]
        return means[0] - means[1]

    replicates = _in_blocks(replicate, resamples, num_problems, seed)
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(tail)) / (resamples + 1))
    return Difference(float(ours.mean() - theirs.mean()), *_percentiles(replicates, confidence), p_value)


def _seeds_by_problems(values: ArrayLike) -> Floats:
    table = np.atleast_2d(np.asarray(values, np.float64))
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError("values must be finite numbers, as [problems] or [seeds, problems], at least one")
    return table


def _weights(rng: np.random.Generator, size: int, count: int) -> Floats:
    """[size, count]: how often each of `count` things is drawn in `count` draws, as a share."""
    drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count) / count


def _in_blocks(
    replicate: Callable[[np.random.Generator, int], Floats], resamples: int, num_values: int, seed: int
) -> Floats:
    """[R] replicates, in blocks of about BLOCK drawn values."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // num_values)
    return np.concatenate(
        [replicate(rng, min(block, resamples - start)) for start in range(0, resamples, block)]
    )


def _percentiles(replicates: Floats, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}")
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
