"""Section `score`: perplexity under the base."""

from __future__ import annotations

from typing import Literal

from oxa.config.section import Count, Section, Verdict


class Score(Section):
    """Perplexity under the base."""

    condition_on_prompt: bool = True
    """Score ln p(response | prompt); false scores the response alone, as the released code does."""
    max_length: Count = 32_768
    """Longest sequence, tokens; what lies beyond is not scored and the row is flagged `truncated`."""
    batch_tokens: Count = 8192
    """Tokens of one forward pass, padding included."""
    chunk: Count = 2048
    """Positions that the head takes together, a tile of the vocabulary after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; log-probabilities are reduced in float32 either way. Only float32 scores are independent
    of batching to 1e-5."""
    self_verdicts: list[Verdict] = ["incorrect"]
    """Verdicts of self-samples that are scored."""
