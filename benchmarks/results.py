"""What a benchmark hands to `make bench` beside its section: the rows of the summary, as comments between its lines."""

from __future__ import annotations

import json
import re
from typing import Literal, NamedTuple

PATTERN = re.compile(r"<!-- row: (\{.*\}) -->\n?")


class Row(NamedTuple):
    """One line of the summary; a higher value is the better one unless `better` says otherwise."""

    what: str
    against: str
    value: float
    target: float | None = None  # none: shown without a verdict
    better: Literal["higher", "lower"] = "higher"
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


def row(
    what: str,
    against: str,
    value: float,
    target: float | None = None,
    *,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "×",
) -> None:
    """Prints one row of the summary to stdout."""
    print(line(Row(what, against, round(float(value), 4), target, better, unit)), flush=True)


def line(row: Row) -> str:
    """The row as a comment, which no Markdown page shows."""
    text = json.dumps(row._asdict(), ensure_ascii=False).replace("--", "\\u002d-")  # would end the comment
    return f"<!-- row: {text} -->"


def split(output: str) -> tuple[str, list[Row]]:
    """A benchmark's section without its rows, and the rows in order."""
    rows = [Row(**json.loads(found)) for found in PATTERN.findall(output)]
    return PATTERN.sub("", output), rows
