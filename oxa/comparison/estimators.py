"""Estimates of pass@k and its like from samples, with intervals and p-values: arrays in, numbers out.

Of a problem with n samples, c of them right, and k ≤ n; a benchmark's number is the mean over its problems (and over
seeds), each weighing the same:

    pass@k     at least one of k samples is right    1 - C(n - c, k) / C(n, k)    (Chen et al. 2021, arXiv 2107.03374)
    pass^k     all of k samples are right            C(c, k) / C(n, k)            (Yao et al. 2024, arXiv 2406.12045)
    maj@n      the answer given most often among the n is right; of t answers that tie, each is taken with chance 1/t,
               and the number is the mean over these chances. Who gave no answer has no vote; none at all is not right.

Intervals at level 1 - α are percentile bootstraps (Efron & Tibshirani 1993, ch. 13 and 16) of two levels, problems and
the samples of each; where there are several seeds, these are the third. They answer: what would the mean be over other
problems like these (and with other seeds)? The values of problems already hold the noise of their finite samples, so to
draw samples again on top of them counts it twice. It is taken out first (Davison & Hinkley 1997, §3.8): with x_i the
values of P problems, x̄ their mean, s² = Σ (x_i - x̄)² / (P - 1), e_im the change of x_i when its samples are drawn
again (m = 1…M times, centred) and v the mean of e²,

    one draw         c (x_i - x̄) + g e_im,  with g = min(1, s / √v) and c so that its variance is s²
    one replicate    x̄ + mean of P draws · √((P - 1) / χ²_{P-1})

A level's variance is itself estimated, from few problems or seeds; dividing by the drawn χ² (which makes normal draws
Student's) carries that on. Seeds add a normal draw of variance τ² Σ_compared 1/S with, over the arms of S > 1 seeds,

    τ² = max(0, A / χ²_f - B / (f (P - 1) P)),  f = Σ (S - 1)

A the squared deviations of seeds' means from their arm's, B the squared interactions of seed and problem: the spread
of seeds beyond what problems and samples explain. It is taken for the same in all arms of a `pool`, since two or three
seeds of one arm say next to nothing about it; an arm whose seeds alone differ is told apart too often (with two seeds
in one of five worlds of equal arms, not in one of 20). A pair of arms is one array of differences on the same problems;
its two-sided p = 2 · min(1 + #{d* ≤ 0}, 1 + #{d* ≥ 0}) / (R + 1), at most 1, so 2 / (R + 1) at least.

benchmarks/coverage.py measures how often the 95% intervals hold the truth: in 94 to 95% of worlds of 200 problems with
8 samples or 30 with 16, where equal arms are told apart in 4 to 6%. With two, three or five seeds and a pool of four
arms: 93 to 98%, and 1 to 6% told apart, the more cautious the less seeds differ, since so few cannot show that they do
not. Of 30 problems that are nearly all unsolved (pass@1 of 3%) a few hold all that is known: one arm's interval holds
the truth in 89%, a difference's in 94%.

The Bayesian interval (Bayes@N, arXiv 2510.04265) answers another question: what would pass@1 be on these very problems
with endless samples? Each problem's rate has a uniform prior, hence the posterior Beta(1 + c, 1 + n - c); quantiles of
the mean over problems are simulated. With few samples the prior pulls it towards ½: (1 + c) / (2 + n) each.

Legend: S seeds, P problems, N samples a problem, M draws of a problem's samples, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    n, c = _counts(num_samples, num_correct, k)
    return 1 - _share_of_subsets(n, n - c, k)


def pass_hat_k(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> Floats:
    """Unbiased pass^k, the chance that k samples are all right; counts as in pass_at_k."""
    return _share_of_subsets(*_counts(num_samples, num_correct, k), k)


def _counts(num_samples: ArrayLike, num_correct: ArrayLike, k: int) -> tuple[NDArray, NDArray]:
    n, c = np.broadcast_arrays(np.asarray(num_samples), np.asarray(num_correct))
    if k < 1 or (n < k).any():
        raise ValueError(f"k = {k}: it must be at least 1, and every problem needs as many samples")
    if (c < 0).any() or (c > n).any():
        raise ValueError("num_correct must lie between 0 and num_samples")
    return n, c


def _share_of_subsets(n: NDArray, members: NDArray, k: int) -> Floats:
    """C(members, k) / C(n, k): of the subsets of k among n, those that hold members only."""
    share = np.ones(n.shape)
    for j in range(k):
        share *= np.maximum(0, members - j) / (n - j)
    return share


def k_values(n: int) -> list[int]:
    """1, 2, 4, … up to n, and n itself."""
    if n < 1:
        raise ValueError(f"n must be at least 1, found {n}")
    return [*(2**i for i in range((n - 1).bit_length())), n]


def majority(answers: ArrayLike) -> Floats:
    """maj@n of answers [..., N]: 0 the right answer, 1, 2, … others, -1 none given."""
    votes = _votes(answers)
    most = votes.max(axis=-1, keepdims=True)
    leads = (votes == most) & (most > 0)
    return leads[..., 0] / np.maximum(1, leads.sum(axis=-1))


def distinct_answers(answers: ArrayLike) -> NDArray[np.int64]:
    """How many different answers were given, of answers as in `majority`."""
    return (_votes(answers) > 0).sum(axis=-1)


def _votes(answers: ArrayLike) -> NDArray[np.int64]:
    """[..., answers]: how often each was given."""
    ids = np.asarray(answers)
    num_rows, num_answers = ids[..., 0].size, max(1, int(ids.max()) + 1)
    cells = ids.reshape(num_rows, -1) + num_answers * np.arange(num_rows)[:, None]
    votes = np.bincount(cells[ids.reshape(num_rows, -1) >= 0], minlength=num_rows * num_answers)
    return votes.reshape(*ids.shape[:-1], num_answers)


def response_entropy(sums: ArrayLike, tokens: ArrayLike) -> Floats:
    """Mean over responses of their mean entropy, nats a token: Σ_i (s_i / t_i) / n, of [..., N] along the last axis.

    s_i: a response's entropy summed over its t_i tokens. Responses without a token do not count; NaN where none counts.
    """
    s, t = np.broadcast_arrays(np.asarray(sums, np.float64), np.asarray(tokens, np.float64))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is meant
        return (s / np.where(t > 0, t, np.inf)).sum(axis=-1) / (t > 0).sum(axis=-1)


def token_entropy(sums: ArrayLike, tokens: ArrayLike) -> Floats:
    """Values of problems whose mean is the mean entropy over all tokens, R = Σ s_p / Σ t_p, nats a token:

        v_p = R + (s_p - R t_p) / t̄,    t̄ the mean of the t_p

    s_p: entropy summed over the t_p tokens of a problem's responses. The spread of the v_p is that of R to first order
    (a linearised ratio, Cochran 1977, §6.3), so means, pairs and resamples of problems treat R like any other metric.
    NaN where a problem has no token.
    """
    s, t = np.asarray(sums, np.float64), np.asarray(tokens, np.float64)
    if not (known := t > 0).any():
        return np.full(t.shape, np.nan)
    ratio = s[known].sum() / t[known].sum()
    return np.where(known, ratio + (s - ratio * t) / t[known].mean(), np.nan)


def bootstrap_interval(
    values: ArrayLike,
    redrawn: ArrayLike | None = None,
    *,
    pool: Sequence[ArrayLike] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of the values of problems [P] or [S, P], with its interval.

    `redrawn` [P, M] or [S, P, M] holds the values with each problem's samples drawn again; without it the bootstrap
    has no second level, and the same variance. `pool`: values [S, P] of all arms whose seeds tell how much seeds
    differ; this one's alone where it is left out.
    """
    estimate, replicates = _replicates([(1, *_arrays(values, redrawn))], pool, resamples, seed)
    return Interval(estimate, *_percentiles(replicates, confidence))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    redrawn: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    same_seeds: bool = False,
    pool: Sequence[ArrayLike] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean of a minus mean of b on the same problems, in the same order: [P] or [S, P], S may differ between them.

    `redrawn`: as in bootstrap_interval, of a and of b. `same_seeds`: a seed of a belongs to that seed of b, as for
    checkpoints that were trained on from those of b. `pool`: as there, but of differences with `same_seeds`; the two
    arms alone where it is left out.
    """
    ours, theirs = (_arrays(*arm) for arm in zip((a, b), redrawn or (None, None), strict=True))
    if theirs[0].shape[1] != ours[0].shape[1]:
        raise ValueError(f"a pair needs the same problems, found {ours[0].shape[1]} and {theirs[0].shape[1]}")
    arms = [(1, *ours), (-1, *theirs)]
    if same_seeds:
        if len(ours[0]) != len(theirs[0]):
            raise ValueError(f"same_seeds needs as many of each, found {len(ours[0])} and {len(theirs[0])}")
        arms = [(1, ours[0] - theirs[0], ours[1] - theirs[1])]
    difference, replicates = _replicates(arms, pool, resamples, seed)
    tail = min((replicates <= 0).sum(), (replicates >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(tail)) / (resamples + 1))
    return Difference(difference, *_percentiles(replicates, confidence), p_value)


def bayes_interval(
    num_samples: ArrayLike,
    num_correct: ArrayLike,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Posterior mean of pass@1 on these very problems [P], with its credible interval."""
    n, c = _counts(num_samples, num_correct, 1)

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        return rng.beta(1 + c, 1 + n - c, size=(size, c.size)).mean(axis=1)

    replicates = _in_blocks(replicate, resamples, c.size, np.random.default_rng(seed))
    return Interval(float(((1 + c) / (2 + n)).mean()), *_percentiles(replicates, confidence))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p-values (Holm 1979): those of at most α are shown together with an error of at most α.

    The i-th smallest of m becomes (m - i + 1) p_i, but no less than a smaller one's and at most 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted


def _arrays(values: ArrayLike, redrawn: ArrayLike | None) -> tuple[Floats, Floats]:
    """Values [S, P] and redrawn values [S, P, M]; the values themselves where none were drawn."""
    array = np.atleast_2d(np.asarray(values, np.float64))
    again = array[..., None] if redrawn is None else np.asarray(redrawn, np.float64).reshape(*array.shape, -1)
    if array.ndim != 2 or array.size == 0 or not (np.isfinite(array).all() and np.isfinite(again).all()):
        raise ValueError("values must be finite numbers, as [problems] or [seeds, problems], at least one")
    return array, again


def _replicates(
    arms: Sequence[tuple[int, Floats, Floats]], pool: Sequence[ArrayLike] | None, resamples: int, seed: int
) -> tuple[float, Floats]:
    """The signed sum of the arms' means over seeds and problems, and its replicates [R]; see the module's text."""
    rng = np.random.default_rng(seed)
    centre = np.sum([sign * values.mean(axis=0) for sign, values, _ in arms], axis=0)  # [P]
    change = np.sum([sign * redrawn.mean(axis=0) for sign, _, redrawn in arms], axis=0)  # [P, M]
    estimate, num_problems = float(centre.mean()), len(centre)
    draws = _draws(centre - estimate, change - change.mean(axis=1, keepdims=True)).ravel()
    several = [values for _, values, _ in arms if len(values) > 1]
    known = (
        several
        if pool is None
        else [np.asarray(values, np.float64) for values in pool if len(np.atleast_2d(values)) > 1]
    )

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        means = draws[rng.integers(len(draws), size=(size, num_problems))].mean(axis=1)
        if num_problems > 1:
            means *= np.sqrt((num_problems - 1) / rng.chisquare(num_problems - 1, size))
        if several:
            means += _seed_draws(rng, size, known) * np.sqrt(sum(1 / len(values) for values in several))
        return means

    return estimate, estimate + _in_blocks(replicate, resamples, num_problems, rng)


def _draws(deviations: Floats, changes: Floats) -> Floats:
    """c (x_i - x̄) + g e_im, [P, M]."""
    observed, of_samples = deviations.var(), changes.var(axis=1).mean()
    # one problem alone does not tell how problems differ
    wanted = deviations.var(ddof=1) if len(deviations) > 1 else of_samples
    factor = np.sqrt(max(0.0, wanted - of_samples) / observed) if observed > 0 else 0.0
    share = min(1.0, np.sqrt(wanted / of_samples)) if of_samples > 0 else 0.0
    return factor * deviations[:, None] + share * changes


def _seed_draws(rng: np.random.Generator, size: int, arms: Sequence[Floats]) -> Floats:
    """What another seed would have changed, [size]; `arms` have several seeds each, [S, P]."""
    num_problems = arms[0].shape[1]
    freedom = sum(len(values) - 1 for values in arms)
    deviations = [values.mean(axis=1) - values.mean() for values in arms]
    interactions = [
        values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean() for values in arms
    ]
    spread, rest = (sum(float((part**2).sum()) for part in parts) for parts in (deviations, interactions))
    explained = rest / (freedom * max(1, num_problems - 1) * num_problems)
    variance = np.maximum(0, spread / rng.chisquare(freedom, size) - explained)
    return rng.standard_normal(size) * np.sqrt(variance)


def _in_blocks(
    replicate: Callable[[np.random.Generator, int], Floats],
    resamples: int,
    num_values: int,
    rng: np.random.Generator,
) -> Floats:
    """[R] replicates, in blocks of about BLOCK drawn values."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    block = max(1, BLOCK // num_values)
    return np.concatenate(
        [replicate(rng, min(block, resamples - start)) for start in range(0, resamples, block)]
    )


def _percentiles(replicates: Floats, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}")
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
