"""Section `report`: the comparison of the arms."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Arm, Count, Section, Seed


class Report(Section):
    """Summary, table and plots."""

    baseline: Arm = "sft"
    """Arm that the others are compared with."""
    resamples: Count = 2000
    """Bootstrap resamples of an interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    seed: Seed = 0
    """Seed of every draw."""
