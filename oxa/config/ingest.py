"""Section `ingest`: which teacher data, RL problems and benchmarks are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Count, Name, Section
from oxa.config.sources import Source


class Decontamination(Section):
    """A problem of training or RL is dropped when it shares too many word n-grams with a benchmark problem."""

    ngram: Count = 10
    """Words an n-gram; a shorter problem counts as one n-gram."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of either problem's n-grams that both have, from which on the training problem is dropped; those of a
    contest's closing do not count, those of many benchmark problems count less."""


class Ingest(Section):
    """Teacher data and benchmarks become `problems` and teacher `responses`."""

    teacher: list[Source] = Field(min_length=1)
    """Sources of training problems and teacher responses."""
    rlvr: list[Source] = []
    """Sources of problems for RL, without responses; none: RL takes the training problems."""
    benchmarks: dict[Name, Source] = Field(min_length=1)
    """Benchmarks by name."""
    decontamination: Decontamination = Decontamination()
    """What counts as a training problem that repeats a benchmark problem."""
    max_chars: Count = 200_000
    """A longer response is dropped (reason `too_long`), characters."""
