"""Section `evaluate`: every checkpoint on every benchmark."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Count, Name, Sampling


class Evaluate(Sampling):
    """Every checkpoint on every benchmark."""

    num_samples: Count = 8
    """Responses a problem (n of pass@k)."""
    num_samples_by_benchmark: dict[Name, Count] = {}
    """Benchmarks with another number (the paper: Minerva 64, others 128)."""
    entropy_samples: Annotated[int, Field(ge=0)] = 1
    """Further responses a problem, at temperature 1 and top-p 1 whatever the others have, on which entropy is measured;
    0: none, and no entropy."""
