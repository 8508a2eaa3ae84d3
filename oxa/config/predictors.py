"""Section `predictors`: what may tell before RL what an arm will solve after it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Count, Section, Seed


class Predictors(Section):
    """Measures of an arm before RL that take a pass of its model, held against pass@1 after RL in the report."""

    num: Annotated[int, Field(ge=0)] = 0
    """Teacher solutions on which held-out NLL is measured, and benchmark problems on whose responses KL is; 0: none,
    and nothing is measured. The KLs need evaluate.entropy_samples."""
    max_length: Count = 32_768
    """Longest sequence, tokens; what lies beyond is not read."""
    batch_tokens: Count = 8192
    """Tokens of one forward pass, padding included."""
    chunk: Count = 2048
    """Positions that a head takes together, a tile of the vocabulary after the other."""
    seed: Seed = 0
    """Which solutions and problems are taken."""
