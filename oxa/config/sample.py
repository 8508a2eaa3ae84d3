"""Section `sample`: the student's own answers to the training problems."""

from __future__ import annotations

from oxa.config.section import Count, Sampling


class Sample(Sampling):
    """Self-samples: what the student itself answers to the training problems."""

    model: str | None = None
    """Checkpoint folder (not watched by DVC) or hub id that samples; none: the base itself."""
    num_samples: Count = 4
    """Responses a training problem."""
