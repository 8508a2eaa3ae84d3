"""What to set so that a stage which does not fit does: the fewest changes, tried out on its forecast."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from oxa.forecast.cost import GIB, Memory

Settings = dict[str, Any]
Options = dict[str, list[tuple[str, Settings]]]
"""By name, ways to need less memory: what to set, in words and from mild to drastic, and what that changes in the
settings."""


def find(
    memory: Callable[..., Memory], limit: Callable[..., float], settings: Settings, options: Options
) -> tuple[str, ...]:
    """Every way with the fewest changes, in words with the memory that is then needed; none where nothing helps.

    `memory` and `limit` are bytes under the settings. Of each option the mildest value that suffices is taken.
    """
    for number in range(1, len(options) + 1):
        found = []
        for names in itertools.combinations(options, number):
            for changes in itertools.product(*(options[name] for name in names)):
                changed = settings | {key: value for _, change in changes for key, value in change.items()}
                needed = memory(**changed).total
                if needed <= limit(**changed):
                    words = " and ".join(words for words, _ in changes)
                    found.append(f"{words}: {needed / GIB:,.1f} GiB")
                    break
        if found:
            return tuple(found)
    return ()


def halves(value: int, least: int) -> list[int]:
    """value/2, value/4, … down to the least."""
    return [value >> i for i in range(1, value.bit_length()) if value >> i >= least]
