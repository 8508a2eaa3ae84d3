"""Advantages other than GRPO's: two that ask for exploration. Rewards are 1 or 0, over groups of G rollouts.

Neither changes what a rollout is worth, only what is learnt from it; each is a setting of `rlvr.advantage`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

POSITIVE = 0.1
"""Weight of right rollouts in `nsr`: λ of arXiv 2506.01347."""


def nsr(advantages: Tensor) -> Tensor:
    """GRPO's advantages [B], the positive ones times 0.1: right rollouts are strengthened little, wrong ones fully
    weakened, and probability moves to what else the policy finds likely (Zhu et al. 2025, arXiv 2506.01347,
    W-REINFORCE with λ = 0.1). There rewards are +λ and -1 without a baseline; here the group's mean is taken off
    first, as everywhere in this stage, so that groups of equal rewards teach nothing.
    """
    return torch.where(advantages > 0, POSITIVE * advantages, advantages)


def pass_at_k(right: Tensor, k: int) -> Tensor:
    """[N, G] from which rollouts are right, bool [N, G]: their mean advantage over all subsets of k <= G of the group,
    where a subset is worth 1 if one of it is right (Chen et al. 2025, arXiv 2508.10751, the analytical form):

        W wrong ones of G     R = 1 - C(W, k) / C(G, k)     σ = sqrt(R (1 - R))
        right: (1 - R) / σ    wrong: (1 - R - C(W - 1, k - 1) / C(G - 1, k - 1)) / σ

    They add up to 0 over a group, and are 0 where fewer than k are wrong, or all.
    """
    size = right.shape[1]
    rows = []
    for wrong in (~right).sum(1).tolist():
        none_right = math.comb(wrong, k) / math.comb(size, k)  # 1 - R
        if none_right in (0, 1):
            rows.append((0.0, 0.0))
            continue
        deviation = math.sqrt(none_right * (1 - none_right))
        others_wrong = math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)
        rows.append((none_right / deviation, (none_right - others_wrong) / deviation))
    of_right, of_wrong = torch.tensor(rows, dtype=torch.float64).T[..., None]
    return torch.where(right, of_right, of_wrong)
