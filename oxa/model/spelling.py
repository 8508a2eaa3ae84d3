"""A response token by token: the ids that a model reads, and the piece of text that each of them writes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from oxa import prompts


class Spelt(NamedTuple):
    """A response as the models read it."""

    ids: np.ndarray  # int32 [T], the prompt and what is shown of the response
    start: int  # where the response begins
    pieces: list[str]  # of the text, one a shown token; joined, they are the text
    num_tokens: int  # of the whole response


def spell(text: str, context: list[int], tokenizer: Any, limit: int, context_length: int) -> Spelt | None:
    """The text behind the ids of `context`, cut at `limit` tokens and where the model's context ends; None where
    nothing is left to show."""
    text_ids, ends = prompts.text_ends(tokenizer, text)
    start, num_tokens = len(context), len(text_ids)
    num_shown = min(num_tokens, limit, context_length - start)
    if start == 0 or num_shown <= 0:
        return None
    ids = np.asarray([*context, *text_ids[:num_shown]], np.int32)
    return Spelt(ids, start, pieces(text, ends)[:num_shown], num_tokens)


def pieces(text: str, ends: Iterable[int]) -> list[str]:
    """The text cut where its tokens end, one piece a token.

    White space that a tokenizer drops goes with the token after it, or with the last one. A character that several
    tokens write goes with the first of them, and the others get "".
    """
    bounds = np.maximum.accumulate([0, *ends])
    bounds[-1] = len(text)
    return [text[low:high] for low, high in pairwise(bounds)]
