"""The temperature at which a checkpoint's rollouts have a given token entropy, so that arms begin RL exploring alike.

Arms that leave fine-tuning with unequal entropies explore unequally at one temperature, and what RL adds to them then
tells of that as well. Choosing each arm's temperature T so that its rollouts, drawn at T from the policy at T, have the
same token entropy takes this out (Liu et al. 2025, arXiv 2506.13284, who name 0.3 nats a token as a good value):

    H(T) = mean over the tokens t of rollouts y ~ π_T of  -Σ_v π_T(v | x, y_<t) ln π_T(v | x, y_<t),   π_T ∝ π^(1/T)

T is found by bisection of ln T, with the same problems and random numbers at every T; this takes as long as generating
the rollouts of 12 steps, with the engine `torch` whatever RL's own. With top_p < 1 rollouts are drawn from the nucleus,
while H stays that of the whole π_T, as in RL's log. H is that of the checkpoint before RL; it moves on from there with
training. Entropies are in nats a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from oxa.errors import ConfigError
from oxa.model import log_probs
from oxa.training import batches

LOWEST, HIGHEST = 0.1, 3.0
HALVINGS = 10
"""Bisections: T is then known to 0.4%."""
BATCH_TOKENS = 8192
CHUNK = 2048


def matching(wanted: float, entropy_at: Callable[[float], float]) -> tuple[float, float]:
    """(T, H(T)) with H(T) as near to `wanted` as the bisection comes; ConfigError where no T in bounds reaches it."""
    low, high = entropy_at(LOWEST), entropy_at(HIGHEST)
    if not low <= wanted <= high:
        raise ConfigError(
            f"rlvr.temperature: entropy({wanted:g}) is out of reach: this checkpoint's rollouts have {low:.3g} nats a "
            f"token at temperature {LOWEST:g} and {high:.3g} at {HIGHEST:g}; name an entropy between these"
        )
    entropies = {LOWEST: low, HIGHEST: high}
    left, right = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (left + right) / 2
        temperature = math.exp(middle)
        entropies[temperature] = entropy_at(temperature)
        left, right = (middle, right) if entropies[temperature] < wanted else (left, middle)
    best = min(entropies, key=lambda temperature: abs(entropies[temperature] - wanted))
    return best, entropies[best]


def entropy(
    model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
) -> float:
    """H over the tokens of the completions, ids behind those of the prompts."""
    rows = [
        (np.array([*prompt, *completion], np.int64), len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    total, num_tokens = 0.0, 0
    for part in batches.by_token_budget([len(ids) for ids, _ in rows], BATCH_TOKENS):
        sequences, starts = zip(*(rows[i] for i in part), strict=True)
        statistics, _ = log_probs.batch_statistics(model, sequences, starts, CHUNK, temperature)
        total += statistics.entropies.double().sum().item()
        num_tokens += len(statistics.entropies)
    return total / num_tokens
