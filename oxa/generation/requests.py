"""Requests for text from a language model, the generations that answer them, and the type of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from oxa.config.section import Sampling

if TYPE_CHECKING:
    from oxa.config.generate import Generate


class Request(NamedTuple):
    response_id: str
    """Stable and unique: with the seed, it determines the response's random numbers."""
    prompt: list[int]
    """Token ids up to where the response begins."""


class Generation(NamedTuple):
    response_id: str
    text: str
    """Verbatim, special tokens included, without the end token."""
    num_tokens: int
    """Generated tokens, the end token included; 0 where the prompt fills the model's context, and only there."""
    finish_reason: str
    """`stop`: an end token was drawn; `length`: max_tokens or the model's context was reached."""
    mean_entropy: float
    """Of the model's own distribution (temperature 1, before top-p), nats a token; NaN where num_tokens is 0 and
    from the vLLM engine, whose servers do not tell it."""


Shard = list[Request]
"""Requests that are generated together."""


Note = Callable[[dict[str, Any]], None]
"""Takes what generates (versions) and with which settings beside those of config.Sampling."""


Engine = Callable[
    [str | Path, list[Shard], Sampling, "Generate", Note, Path],
    Iterator[tuple[int, list[Generation]]],
]
"""Takes the model, the shards that are missing, the settings, a Note to be called before the first response, and a
folder for its own files; yields (index, generations) as shards finish, in any order.

An engine may work on several shards at once, but what it yields for one must not depend on the others: resuming
after a kill asks for fewer of them.
"""
