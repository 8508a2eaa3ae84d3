"""Section `score`: perplexity under the base."""

from __future__ import annotations

from typing import Literal

from oxa.config.section import Count, Section, Verdict

Measure = Literal["rsr", "hes", "ifd"]
"""What a response can be scored by beside its perplexity."""


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
    measures: list[Measure] = []
    """What teacher responses are scored by beside perplexity, for the rules of `selection.ce` that ask for it (`by`).
    `rsr`: mean token rank (100 at most) over mean NLL, low is good (arXiv 2601.14249). `hes`: sum of the entropies of
    the 0.5% of tokens with the highest (arXiv 2605.22389). `ifd`: perplexity with the prompt over that without
    (arXiv 2308.12032), which takes a second pass of the model, the others none."""
    self_verdicts: list[Verdict] = ["incorrect"]
    """Verdicts of self-samples that are scored."""
