"""Section `world`: sizes of the generated small world."""

from __future__ import annotations

from oxa.config.section import Count, Section, Seed


class World(Section):
    """The small world's sizes (oxa/data/world.py)."""

    seed: Seed = 0
    """Seed of everything generated: problems, wordings, the teacher's choices, the corpus."""
    num_train: Count = 1500
    """Training problems."""
    num_rlvr: Count = 600
    """Problems for RL; no response is given to them."""
    num_benchmark: Count = 200
    """Problems of the benchmark `world`, over all tiers."""
    num_teacher: Count = 4
    """Teacher responses a training problem."""
    strategy_documents: Count = 45_000
    """Documents of the corpus in which the rare strategies are learnt; after them the habit sets in."""
