"""Section `evaluate`: every checkpoint on every benchmark."""

from __future__ import annotations

from oxa.config.section import Count, Name, Sampling


class Evaluate(Sampling):
    """Every checkpoint on every benchmark."""

    num_samples: Count = 8
    """Responses a problem (n of pass@k)."""
    num_samples_by_benchmark: dict[Name, Count] = {}
    """Benchmarks with another number (the paper: Minerva 64, others 128)."""
