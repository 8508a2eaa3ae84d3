"""Section `gates`: how the small world's student is examined."""

from __future__ import annotations

from oxa.config.section import Count, Sampling


class Gates(Sampling):
    """What a student of the small world must be able to do before arms are compared on it (oxa/data/gates.py)."""

    num_problems: Count = 1200
    """Held-out problems, over all tiers."""
    num_samples: Count = 4
    """Responses a problem with the student left alone; each strategy is forced once a problem."""
