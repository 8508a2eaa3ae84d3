"""Section `prompt`: what stands before every response."""

from __future__ import annotations

from oxa.config.section import Section

PAPER_SUFFIX = (
    "\nLet's reason step by step. Enclose the reasoning process within <think>...</think>, then summarize it "
    "and present the final answer within \\boxed{} — for example: <think>reasoning process here</think> "
    "\\boxed{answer here}."
)


class Prompt(Section):
    """What every stage shows the model in front of a response."""

    suffix: str = PAPER_SUFFIX
    """Text appended to every problem (METHOD: the paper's instruction; empty for the small world)."""
