"""Progress bars of long stages: drawn in a terminal, printed line by line for a parent that reads them, else silent.

`oxa run` reads its children through pipes and shows how far they are: OXA_PROGRESS in their
environment asks for lines. A log file is spared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from tqdm import tqdm

VARIABLE = "OXA_PROGRESS"
INTERVAL = 2.0  # seconds between two lines to a parent
_LINE = re.compile(r"^(?P<what>[^|]*?):\s+(?P<percent>\d+)%\|(.*<(?P<left>[\d:]+),)?")


class Reading(NamedTuple):
    """How far a bar is."""

    what: str
    percent: int
    left: str
    """Time to go at this pace, as tqdm writes it (`01:20`); "" where it is not known."""


def bar(iterable: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A tqdm of these options; `quiet` where there is nothing to show."""
    if quiet:
        options["disable"] = True
    elif VARIABLE in os.environ:
        options |= {"ascii": True, "ncols": 100, "mininterval": INTERVAL, "maxinterval": INTERVAL}
    else:
        options["disable"] = None  # tqdm's word for: only in a terminal
    return tqdm(iterable, **options)


def read(line: str) -> Reading | None:
    """What a line of a bar says; None for any other line."""
    match = _LINE.match(line.strip())
    return Reading(match["what"].strip(), int(match["percent"]), match["left"] or "") if match else None
