"""metrics.jsonl: what a stage logged, line by line, as {step, name, value}.

How fast it went is not written here: the file is an output that DVC keeps, and the same inputs give the same bytes.
Clock times and speeds are told to `also` (MLflow's part).

The file stays right over a kill and a resume: a stage that resumes at step k logs k again, and what an earlier,
killed process had logged from k on is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from oxa.runtime.files import atomic

SPEEDS = {"tokens_per_second"}


class Journal:
    """A `records.Log` that appends to a file; flushed at every call."""

    def __init__(self, path: Path, also: Log | None = None) -> None:
        self._path = path
        self._also = also
        self._started = False

    def __call__(self, step: int, **values: float) -> None:
        if not self._started:
            self._rewind(step)
            self._started = True
        lines = [
            json.dumps({"step": step, "name": name, "value": float(value)})
            for name, value in values.items()
            if name not in SPEEDS
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        if self._also is not None:
            self._also(step, **values)

    def _rewind(self, step: int) -> None:
        """Keeps what was logged before `step`; a last line cut by a kill goes, too."""
        if self._path.exists():
            kept = [row for row in read(self._path) if row["step"] < step]
            with atomic(self._path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, in order; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Log(Protocol):
    """Takes a stage's metrics while it runs: log(step, name=value, ...). What the stage returns is kept anyway."""

    def __call__(self, step: int, **values: float) -> None: ...
