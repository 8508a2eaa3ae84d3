"""Weights of rollouts that were drawn with other probabilities than training computes.

vLLM, or a pass in bfloat16 with a cache, gives the token y_t a probability μ(y_t) that differs from the trainer's
π(y_t) at the same weights. A gradient over such rollouts is that of π again once each token counts by

    token_*     w_t = π(y_t) / μ(y_t)                                of its own
    sequence_*  w = Π_t π(y_t) / μ(y_t)                              one for the whole rollout
    *_truncate  min(w, C)              *_mask  w where w <= C, else 0      C = rlvr.rollout_bound

(truncated importance sampling: Espeholt et al. 2018, arXiv 1802.01561; names and formulas are TRL's, which calls C
`vllm_importance_sampling_clip_max`.) A token's weight alone leaves out that what stands before it was drawn from μ,
too: a bias of the order of the deviation, with weights near 1 at any length. The rollout's own weight has no such bias
before C acts, but its variance grows with the length T. Where ln π - ln μ deviates by σ a token, ln w of a rollout is
normal with deviation s = σ √T and mean -s²/2, and the mean weight that `sequence_mask` leaves is Φ((ln C - s²/2) / s):
for T = 16,384, σ = 0.02, C = 3 this is 0.20, so that steps shrink to a fifth, and for arms that write at other lengths
to something else. Hence `token_truncate` is the default here; TRL's is `sequence_mask`.

Legend: B rollouts, T tokens. Log-probabilities are natural logarithms, at the temperature of the rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oxa.config.rlvr import RolloutCorrection

EQUAL = (0.9, 1.1)
"""Mean weights between which the steps of different arms are taken for equally large."""


def weights(
    trained: Tensor, drawn: Tensor, mask: Tensor, correction: RolloutCorrection, bound: float
) -> Tensor:
    """[B, T], or [B, 1] of sequences, from ln π and ln μ [B, T]; `mask` [B, T] is 0 behind a rollout's end."""
    difference = torch.where(mask.bool(), trained - drawn, 0.0)
    if correction.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    weight = difference.exp()
    return weight.clamp(max=bound) if correction.endswith("truncate") else weight.where(weight <= bound, 0.0)


def sums(weight: Tensor, mask: Tensor, bound: float) -> Tensor:
    """[n, Σ w, Σ w², how many the bound cut to it or to 0], float64 [4], of weights [B, T] or [B, 1]."""
    flat = (weight.flatten() if weight.shape[1] == 1 else weight[mask.bool()]).double()
    cut = (flat >= bound) | (flat == 0)
    return torch.stack([torch.ones_like(flat).sum(), flat.sum(), flat.square().sum(), cut.double().sum()])


def summary(n: float, total: float, squares: float, num_cut: float) -> dict[str, float]:
    """Mean weight, effective sample size (Σ w)² / Σ w² as a share of n (Kish 1965), share that the bound cut."""
    size = total**2 / (n * squares) if squares else 0.0
    return {"weight": total / n, "weight_size": size, "weight_cut": num_cut / n}


def is_equal(mean: float) -> bool:
    return EQUAL[0] <= mean <= EQUAL[1]
