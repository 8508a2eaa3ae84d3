"""The objective: promote some sequences, suppress others.

Per response token, with ℓ = ln p(y_t | x, y_<t):

    cross-entropy    -ℓ
    dft              -p ℓ, p taken as a constant        (Wu et al. 2025, arXiv 2508.05629; a contrast to cross-entropy)
    unlikelihood     -ln(1 - p) = -log1mexp(ℓ)          (Welleck et al. 2020, arXiv 1908.04319, equation 5)

and over one optimiser step of n_ce and n_ul sequences (METHOD §4)

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


CE_LOSSES = {"nll": cross_entropy, "dft": dynamic}
"""What `train.arms.X.ce_loss` may name."""


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
    pushed: Tensor | None = None,
) -> Mix:
    """The share of L that these rows carry.

    log_probs [B, T], scored [B, T] marks the response tokens (finite values are needed elsewhere, too), suppressed [B]
    marks the unlikelihood rows, pushed [B, T] their tokens that UL is taken of (None: all). `ul_weight` is λ, `ce_loss`
    an entry of CE_LOSSES. A row without a scored token weighs nothing.
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

    promoted = mean(CE_LOSSES[ce_loss](log_probs), ~suppressed, num_ce)
    pushed_away = mean(ul, suppressed, num_ul)
    nll = promoted if ce_loss == "nll" else mean(cross_entropy(log_probs), ~suppressed, num_ce)
    return Mix(promoted + ul_weight * pushed_away, nll.detach(), pushed_away.detach())


def _at_least_one(count: Tensor | int) -> Tensor | int:
    """An arm without unlikelihood counts no such rows: its sum of 0 is divided by 1."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
