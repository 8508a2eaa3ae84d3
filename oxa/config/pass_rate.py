"""Section `pass_rate`: how often a model solves each problem."""

from __future__ import annotations

from typing import Literal

from oxa.config.section import Count, Sampling


class PassRate(Sampling):
    """How often the base, or another model, solves each problem: what `rlvr.pass_rate` filters by."""

    splits: list[Literal["rlvr", "train"]] = []
    """Problems that are measured: those for RL, the training problems, or both; none leaves the stage with nothing to
    do."""
    model: str | None = None
    """Checkpoint folder (not watched by DVC) or hub id that answers; none: the base."""
    num_samples: Count = 8
    """Answers a problem."""
    max_tokens: Count = 2048
    """Longest answer, tokens."""
