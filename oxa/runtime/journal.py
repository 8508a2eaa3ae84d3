"""What a stage logs while it runs: metrics.jsonl, one line {step, name, value} a number.

How fast it went is not written here: the file is an output that DVC keeps, and the same inputs give the same bytes.
Clock times and speeds go to `also` alone (MLflow's part).

The file stays right over a kill and a resume: a stage that resumes at step k logs k again, and what an earlier,
killed process had logged from k on is dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from oxa.runtime import lines
from oxa.runtime.files import atomic

SPEEDS = {"tokens_per_second"}


class Log(Protocol):
    """Takes a stage's metrics while it runs: log(step, name=value, ...). What the stage returns is recorded anyway."""

    def __call__(self, step: int, **values: float) -> None: ...


class Journal:
    """A Log that appends to a file; what is logged outlives the process when the call returns."""

    def __init__(self, path: Path, also: Log | None = None) -> None:
        self._path = path
        self._also = also
        self._started = False

    def __call__(self, step: int, **values: float) -> None:
        if not self._started:
            self._rewind(step)
            self._started = True
        with self._path.open("ab") as file:
            lines.append(
                file.fileno(),
                [
                    {"step": step, "name": name, "value": float(value)}
                    for name, value in values.items()
                    if name not in SPEEDS
                ],
            )
        if self._also is not None:
            self._also(step, **values)

    def _rewind(self, step: int) -> None:
        """Leaves what was logged before `step`."""
        if self._path.exists():
            rows = [row for row in read(self._path) if row["step"] < step]
            with atomic(self._path) as temporary:
                temporary.write_bytes(b"".join(lines.encode(rows)))


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, in order; none where there is no file."""
    return lines.read(path)
