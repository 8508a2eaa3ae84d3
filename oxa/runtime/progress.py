"""Progress bars of long stages: drawn in a terminal, told line by line to a parent that asks, else silent.

`oxa run` reads its children through pipes and shows how far they are; it asks by OXA_PROGRESS. A log file is spared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

ASKED = "OXA_PROGRESS"
INTERVAL = 2.0  # seconds between two lines to a parent
_LINE = re.compile(r"^(?P<what>[^|]*?):\s+(?P<percent>\d+)%\|")


def bar(iterable: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> Any:
    """A tqdm of these options; `quiet` where there is nothing to show."""
    if quiet:
        options["disable"] = True
    elif ASKED in os.environ:
        options |= {"ascii": True, "ncols": 100, "mininterval": INTERVAL, "maxinterval": INTERVAL}
    else:
        options["disable"] = None  # tqdm's word for: only in a terminal
    return tqdm(iterable, **options)


def read(line: str) -> tuple[str, int] | None:
    """What a line of a bar says: the work's name and the per cent done; None for any other line."""
    found = _LINE.match(line.strip())
    return (found["what"].strip(), int(found["percent"])) if found else None
