"""Section `traces`: training examples shown token by token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Count, Section, Seed


class Traces(Section):
    """Examples whose tokens are shown in the report with their log-probabilities before and after training."""

    num_examples: Count = 40
    """Examples of an arm's CE set, and as many of its UL set, spread over the range of ppl."""
    num_beside: Annotated[int, Field(ge=0)] = 1
    """Responses of each origin on the same problem that are shown beside an example."""
    max_tokens: Count = 2000
    """A longer response is cut here, tokens."""
    batch_tokens: Count = 8192
    """Tokens of one forward pass, padding included."""
    seed: Seed = 0
    """Seed of every draw."""
