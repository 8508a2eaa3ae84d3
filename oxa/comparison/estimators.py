"""Estimates of pass@k and its like from samples, with intervals and p-values: arrays in, numbers out.

Of a problem with n samples, c of them right, and k ≤ n; a benchmark's number is the mean over its problems (and over
seeds), each weighing the same:

    pass@k     at least one of k samples is right    1 - C(n - c, k) / C(n, k)    (Chen et al. 2021, arXiv 2107.03374)
    pass^k     all of k samples are right            C(c, k) / C(n, k)            (Yao et al. 2024, arXiv 2406.12045)
    maj@n      the answer given most often among the n is right; of t answers that tie, each is taken with chance 1/t,
               and the number is the mean over these chances. Who gave no answer has no vote; none at all is not right.

Intervals at level 1 - α answer: what would the mean be over other problems like these (and with other seeds)? They are
quantiles of R replicates of the mean, and x_i, a problem's value, holds the noise of its samples already. Problems have
weights u_i of sum 1 (1/P each) and are drawn within strata, apart from each other. With e_i ~ Exp(1) and the
contributions g_i = u_i (x_i - x̄_t), of P_t problems of stratum t, T strata:

    problems   Σ_t √((P_t + 1) / (P_t - 1)) P_t Σ_{i∈t} e_i g_i / Σ_{i∈t} e_i · √((P - T) / χ²_{P-T})

is a Bayesian bootstrap (Rubin 1981) whose variance is s²/P and, as that is itself estimated, Student's for normal
values. It sees only what is in the sample: three problems of 4/8 each have no spread, 200 with one failure a bound that
is too near. What lies beyond is a problem more, as far out as can be (Gaffke 2005; Learned-Miller & Thomas 2019, arXiv
1905.06208), of weight w ~ Beta(1, 1 / max u). Each bound has its own:

    unseen     w · (estimate to the end of the range)   with chance 2^-m,  m = (Σ g²)² / Σ g⁴
               w · (estimate to the farthest value)     otherwise, with chance ½ (1 - 3m / P) or 0

m counts the problems that the spread comes from: none where all values are the same, about P/3 of normal ones. So the
end of the range counts only while next to nothing else is known, and neither does where many problems differ. Of values
0 and 1 the bounds are Clopper & Pearson's (1934) where all are the same, with the sign test's p, and close to Jeffreys'
where few differ. A metric without a highest value has no such end: where nothing differs, its interval is infinite and
p is 1.

Several seeds add a normal draw of variance v f / χ²_f - r, at least 0, with v = Σ_arms v_a, v_a the variance of an
arm's mean over its S_a seeds, r what problems and samples explain of it and f = v² / Σ_arms v_a² / (S_a - 1) (Welch
1947). An arm's seeds tell of this arm alone: pooled with arms whose seeds agree, they would say too little. So two
seeds have one degree of freedom, 12.7 standard errors to either side, and five have 2.8. One seed tells nothing:
intervals are then those of these very checkpoints, and whether another seed would differ cannot be known.

A pair of arms is one array of differences on the same problems. Its two-sided p = 2 · min(1 + #{low* ≤ 0},
1 + #{high* ≥ 0}) / (R + 1), at most 1, of the replicates of its two bounds.

benchmarks/coverage.py measures how often the 95% intervals hold the truth and how often equal arms are told apart:
benchmarks/RESULTS.md has the numbers.

The Bayesian interval (Bayes@N, arXiv 2510.04265) answers another question: what would pass@1 be on these very problems
with endless samples? Each problem's rate has a uniform prior, hence the posterior Beta(1 + c, 1 + n - c); quantiles of
the mean over problems are simulated. With few samples the prior pulls it towards ½: (1 + c) / (2 + n) each.

Legend: S seeds, P problems, T strata, N samples a problem, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BLOCK = 2**21  # drawn values that exist at the same time
ROUNDING = 1e-12  # differences up to here, of values of about 1, are none


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
    *,
    highest: float = 1.0,
    strata: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of the values of problems [P] or [S, P], with its interval.

    No value is below 0 or above `highest`, which may be infinite. `strata` [P]: labels of those that were drawn apart
    from each other, one by default. `weights` [P]: of problems in the mean, all the same by default.
    """
    drawn = _replicates([(1, _array(values, highest))], (0.0, highest), strata, weights, resamples, seed)
    return Interval(drawn.estimate, *_bounds(drawn, confidence))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    same_seeds: bool = False,
    highest: float = 1.0,
    strata: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Mean of a minus mean of b on the same problems, in the same order: [P] or [S, P], S may differ between them.

    `same_seeds`: a seed of a belongs to that seed of b, as for checkpoints that were trained on from those of b. All
    else as in bootstrap_interval.
    """
    ours, theirs = _array(a, highest), _array(b, highest)
    if theirs.shape[1] != ours.shape[1]:
        raise ValueError(f"a pair needs the same problems, found {ours.shape[1]} and {theirs.shape[1]}")
    arms = [(1, ours), (-1, theirs)]
    if same_seeds:
        if len(ours) != len(theirs):
            raise ValueError(f"same_seeds needs as many of each, found {len(ours)} and {len(theirs)}")
        arms = [(1, ours - theirs)]
    drawn = _replicates(arms, (-highest, highest), strata, weights, resamples, seed)
    tail = min((drawn.lows <= 0).sum(), (drawn.highs >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(tail)) / (resamples + 1))
    return Difference(drawn.estimate, *_bounds(drawn, confidence), p_value)


def bayes_interval(
    num_samples: ArrayLike,
    num_correct: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Posterior mean of pass@1 on these very problems [P], with its credible interval; `weights` as above."""
    n, c = _counts(num_samples, num_correct, 1)
    weight = _weights(weights, c.size)

    def replicate(rng: np.random.Generator, size: int) -> Floats:
        drawn: Floats = rng.beta(1 + c, 1 + n - c, size=(size, c.size)) @ weight
        return drawn

    replicates = _in_blocks(replicate, resamples, c.size, np.random.default_rng(seed))
    return Interval(float(((1 + c) / (2 + n)) @ weight), *_quantiles(replicates, replicates, confidence))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p-values (Holm 1979): those of at most α are shown together with an error of at most α.

    The i-th smallest of m becomes (m - i + 1) p_i, but no less than a smaller one's and at most 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted


def _array(values: ArrayLike, highest: float) -> Floats:
    """Values [S, P]."""
    array = np.atleast_2d(np.asarray(values, np.float64))
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError("values must be finite numbers, as [problems] or [seeds, problems], at least one")
    if np.isfinite(highest) and (array.min() < 0 or array.max() > highest):
        raise ValueError(
            f"values must lie between 0 and {highest:g}, found {array.min():g} to {array.max():g}"
        )
    return array


class _Replicates(NamedTuple):
    estimate: float
    lows: Floats
    """[R], of the lower bound."""
    highs: Floats


def _replicates(
    arms: Sequence[tuple[int, Floats]],
    ends: tuple[float, float],
    strata: ArrayLike | None,
    weights: ArrayLike | None,
    resamples: int,
    seed: int,
) -> _Replicates:
    """Of the signed sum of the arms' means over seeds and problems, between `ends`; see the module's text."""
    rng = np.random.default_rng(seed)
    values = np.sum([sign * array.mean(axis=0) for sign, array in arms], axis=0)  # [P]
    weight = _weights(weights, len(values))
    members = _members(strata, len(values))
    estimate = next((end for end in ends if abs(end - weight @ values) < ROUNDING), float(weight @ values))
    shares, sizes = weight @ members, members.sum(axis=0)
    contributions = weight * (values - members @ ((weight * values) @ members / shares))
    if np.abs(contributions).max() <= ROUNDING * max(1.0, np.abs(values).max()) * weight.max():
        contributions = np.zeros(len(values))
    means = _in_blocks(partial(_draws, contributions, members, sizes), resamples, len(values), rng)
    if freedom := len(values) - len(sizes):
        means *= np.sqrt(freedom / rng.chisquare(freedom, resamples))
    if several := [array for _, array in arms if len(array) > 1]:
        means += _seed_draws(rng, resamples, several, weight)
    low, high = _unseen(rng, resamples, contributions, weight, (estimate - ends[0], ends[1] - estimate))
    return _Replicates(
        estimate, np.clip(estimate + means - low, *ends), np.clip(estimate + means + high, *ends)
    )


def _weights(weights: ArrayLike | None, num_problems: int) -> Floats:
    """[P], of sum 1."""
    given = np.ones(num_problems) if weights is None else np.asarray(weights, np.float64)
    return given / given.sum()


def _members(strata: ArrayLike | None, num_problems: int) -> Floats:
    """[P, T], 1 where a problem is of a stratum. Those of one problem are put together, with the smallest other if need
    be: one problem does not tell how problems differ (collapsed strata, Cochran 1977, §5A.12)."""
    if strata is None:
        return np.ones((num_problems, 1))
    _, place, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    num_small = int((counts == 1).sum())
    if num_small:
        place = np.where(np.isin(place, order[: max(2, num_small)]), order[0], place)
    return (place[:, None] == np.unique(place)).astype(np.float64)


def _draws(
    contributions: Floats, members: Floats, sizes: Floats, rng: np.random.Generator, size: int
) -> Floats:
    """[size]: what other problems would have added to the mean, by the Bayesian bootstrap in each stratum."""
    drawn = rng.standard_exponential((size, len(contributions)), dtype=np.float32)
    scale = sizes * np.sqrt((sizes + 1) / np.maximum(1, sizes - 1))
    of_strata = (drawn @ (contributions[:, None] * members).astype(np.float32)) / (
        drawn @ members.astype(np.float32)
    )
    return (of_strata * scale).sum(axis=1)


def _unseen(
    rng: np.random.Generator, size: int, contributions: Floats, weight: Floats, rooms: tuple[float, float]
) -> tuple[Floats, Floats]:
    """How much farther out the lower and the upper bound lie, [size] each; `rooms`: from the estimate to the ends."""
    num_differing, heaviest = _kish(contributions), weight.max()
    drawn, chance = rng.beta(1, 1 / heaviest, size), rng.random(size)
    rare = max(0.0, 1 - 3 * num_differing / _kish(weight)) / 2
    has_ends = np.isfinite(rooms).all() or not num_differing
    unknown = 2.0**-num_differing if has_ends else 0.0
    is_end, is_tail = chance < unknown, chance < unknown + (1 - unknown) * rare
    bounds = []
    for room, farthest in zip(rooms, (-contributions.min(), contributions.max()), strict=True):
        bounds.append(drawn * np.where(is_end, room, np.where(is_tail, farthest / heaviest, 0.0)))
    return bounds[0], bounds[1]


def _kish(values: Floats) -> float:
    """How many values the sum of their squares comes from: their number where all are as large."""
    squares = values**2
    fourth = float((squares**2).sum())
    return float(squares.sum()) ** 2 / fourth if fourth > 0 else 0.0


def _seed_draws(rng: np.random.Generator, size: int, arms: Sequence[Floats], weight: Floats) -> Floats:
    """What other seeds would have changed, [size]; `arms` have several seeds each, [S, P]."""
    num_problems = len(weight)
    variances, explained = [], 0.0
    for values in arms:
        freedom, means = len(values) - 1, values @ weight
        rest = values - values.mean(axis=0) - (means - means.mean())[:, None]
        variances.append(float(((means - means.mean()) ** 2).sum()) / freedom / len(values))
        noise = float(((rest * weight) ** 2).sum()) * num_problems / max(1, num_problems - 1)
        explained += noise / freedom / len(values)
    of_all = sum(variances)
    if not of_all:
        return np.zeros(size)
    parts = sum(variance**2 / (len(values) - 1) for variance, values in zip(variances, arms, strict=True))
    welch = of_all**2 / parts
    spread = np.maximum(0, of_all * welch / rng.chisquare(welch, size) - explained)
    return rng.standard_normal(size) * np.sqrt(spread)


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


def _bounds(drawn: _Replicates, confidence: float) -> tuple[float, float]:
    return _quantiles(drawn.lows, drawn.highs, confidence)


def _quantiles(lows: Floats, highs: Floats, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}")
    tail = (1 - confidence) / 2
    # no interpolation, since infinite bounds have none
    low, high = (np.quantile(bounds, tail, method="inverted_cdf") for bounds in (lows, -highs))
    return float(low), float(-high)
