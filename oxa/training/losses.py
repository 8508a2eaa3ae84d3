"""The objective: promote some sequences, suppress others.

Per response token, with ℓ = ln p(y_t | x, y_<t):

    cross-entropy    -ℓ
    dft              -p ℓ, p taken as a constant        (Wu et al. 2025, arXiv 2508.05629; a contrast to cross-entropy)
    eaft             -w ℓ, w the entropy of the 20 likeliest tokens among themselves over ln 20, taken as a constant
                                                        (arXiv 2601.02151; w is 1 where the student knows nothing)
    psft             -min(r, clip(r, 0.8, 1.28)), r = p / p_old             (Zhu et al. 2025, arXiv 2508.17784, and its
                                                        released script's bounds; PPO's with an advantage of 1)
    gem              -β ln q_y, q = softmax(z / β), β = 0.7         (Li et al. 2025, arXiv 2408.16673, h linear)
    unlikelihood     -ln(1 - p) = -log1mexp(ℓ)          (Welleck et al. 2020, arXiv 1908.04319, equation 5)

In psft p_old is the student's at the beginning of a round of 8 steps, as in the released script, which takes 256
sequences in 8 updates. Within the first of them r = 1 and the gradient is cross-entropy's; later on, a token that a
round has made 1.28 times likelier is pushed no further. (A p_old of the same step would be p, and psft cross-entropy; a
p_old of the base would bound the whole training.) A round also ends where a checkpoint is written, so that a training
that was stopped goes on as it would have.

gem is published as Σ_v q_v (ln p_v - ln p_y) with q as a constant. Its gradient with respect to the logits, q - e_y, is
that of -β ln q_y, which needs no sum over the vocabulary beside the head's own; the value differs.

Over one optimiser step of n_ce and n_ul sequences (METHOD §4)

    normalization sequence   L = 1/n_ce Σ_ce mean_t CE + λ · 1/n_ul Σ_ul mean_t UL
    normalization token      L = 1/T_ce Σ_ce Σ_t CE    + λ · 1/T_ul Σ_ul Σ_t UL,   T the tokens of all its sequences

An arm may push only some tokens of a UL sequence, those of lowest entropy (`surest`): the others' UL is 0, and the
means stay over all, so that λ says the same of every token that is pushed.

Both are sums over sequences with weights that only depend on the whole step, so a step may be cut into micro-batches
and spread over processes in any way: the parts add up to L.

Legend: B sequences, T tokens. Log-probabilities are natural logarithms, losses are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_LOG_PROB = math.log1p(-1e-6)
"""ℓ is clamped to this: 1 - p has no correct digit left in float32 beyond it. A token more certain than that still
costs 13.8 nats but has no gradient."""


def cross_entropy(log_probs: Tensor) -> Tensor:
    """-ℓ, any shape."""
    return -log_probs


def dynamic(log_probs: Tensor) -> Tensor:
    """-p ℓ, any shape, p without gradient: what is unlikely counts little (dynamic fine-tuning)."""
    return -log_probs.detach().exp() * log_probs


def entropy_adaptive(log_probs: Tensor, weights: Tensor) -> Tensor:
    """-w ℓ, any shape; the weights are `normalised_entropies`."""
    return -weights * log_probs


def proximal(log_probs: Tensor, old: Tensor) -> Tensor:
    """-min(r, clip(r)), any shape; `old` is ln p_old."""
    ratio = (log_probs - old).exp()
    return -torch.minimum(ratio, ratio.clamp(*RATIO_BOUNDS))


def entropic_matching(log_probs: Tensor, tempered: Tensor) -> Tensor:
    """-β ln q, any shape; `tempered` is ln q, at the temperature β."""
    return -GEM_BETA * tempered


RATIO_BOUNDS = (1 - 0.2, 1 + 0.28)
ROUND = 8
"""Steps of psft that share a p_old."""
GEM_BETA = 0.7
NUM_TOP = 20

CE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "nll": cross_entropy,
    "dft": dynamic,
    "eaft": entropy_adaptive,
    "psft": proximal,
    "gem": entropic_matching,
}
"""What `train.arms.X.ce_loss` may name: functions of ℓ, and where they have a second argument, of that."""


@torch.no_grad()
def normalised_entropies(top_logits: Tensor) -> Tensor:
    """[N], eaft's w of the 20 highest logits, [N, 20]: 1 where they are equal; of all, in a smaller vocabulary."""
    log_p = top_logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) / math.log(top_logits.shape[1])


def surest(entropy: Tensor, scored: Tensor, count: int) -> Tensor:
    """Of each row's scored tokens, the `count` of lowest entropy, the first ones where they tie; all [B, T]."""
    order = entropy.where(scored, torch.inf).sort(dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return scored & (rank < count)


def unlikelihood(log_probs: Tensor) -> Tensor:
    """-ln(1 - exp ℓ) of ℓ clamped to MAX_LOG_PROB, any shape; its gradient with respect to ℓ is p / (1 - p).

    Either branch is exact where the other cancels (Mächler 2012, "Accurately computing log(1 - exp(-|a|))"). Both stay
    finite, gradients included, on the whole clamped range, so that `where` mixes no NaN into the branch it takes.
    """
    bounded = log_probs.clamp(max=MAX_LOG_PROB)
    return torch.where(
        bounded < -math.log(2), -torch.log1p(-torch.exp(bounded)), -torch.log(-torch.expm1(bounded))
    )


class Totals(NamedTuple):
    """What one optimiser step holds, over all its micro-batches and processes; numbers or tensors of no dimension."""

    ce_sequences: Tensor | int
    ul_sequences: Tensor | int
    ce_tokens: Tensor | int
    ul_tokens: Tensor | int


class Mix(NamedTuple):
    """A part's share of the step; the shares of all parts add up to the step's values."""

    loss: Tensor  # [], L, with gradient
    ce_loss: Tensor  # [], mean cross-entropy as in L's first term, whatever is minimised, without gradient
    ul_loss: Tensor  # [], L's second term before λ, without gradient


def mix(
    log_probs: Tensor,
    scored: Tensor,
    suppressed: Tensor,
    totals: Totals,
    *,
    ul_weight: float,
    normalization: Literal["sequence", "token"],
    ce_loss: str = "nll",
    beside: Tensor | None = None,
    pushed: Tensor | None = None,
) -> Mix:
    """The share of L that these rows carry.

    log_probs [B, T], scored [B, T] marks the response tokens (finite values are needed elsewhere, too), suppressed [B]
    marks the unlikelihood rows, pushed [B, T] their tokens that UL is taken of (None: all). `ul_weight` is λ, `ce_loss`
    an entry of CE_LOSSES, `beside` [B, T] its second argument where it has one. A row without a scored token weighs
    nothing.
    """
    ul = unlikelihood(log_probs) if pushed is None else unlikelihood(log_probs) * pushed  # [B, T]
    of_sequence = scored.sum(1).clamp(min=1) if normalization == "sequence" else 1
    num_ce, num_ul = (
        (totals.ce_sequences, totals.ul_sequences)
        if normalization == "sequence"
        else (totals.ce_tokens, totals.ul_tokens)
    )

    def mean(per_token: Tensor, rows: Tensor, count: Tensor | int) -> Tensor:
        per_row = torch.where(rows[:, None], per_token * scored, 0).sum(1) / of_sequence  # [B]
        return per_row.sum() / _at_least_one(count)

    arguments = (log_probs,) if beside is None else (log_probs, beside)
    promoted = mean(CE_LOSSES[ce_loss](*arguments), ~suppressed, num_ce)
    pushed_away = mean(ul, suppressed, num_ul)
    nll = promoted if ce_loss == "nll" else mean(cross_entropy(log_probs), ~suppressed, num_ce)
    return Mix(promoted + ul_weight * pushed_away, nll.detach(), pushed_away.detach())


def _at_least_one(count: Tensor | int) -> Tensor | int:
    """An arm without unlikelihood counts no such rows: its sum of 0 is divided by 1."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
