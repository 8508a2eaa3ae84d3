"""Verdicts by question, in memory and, where a file is named, in it: a killed stage grades no answer twice.

The file's lines are [key as hexadecimal digits, verdict], in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from oxa.runtime.lines import Lines, Place


class Memo:
    """Verdict by key; of a file, a killed process loses the `update` that it was in."""

    def __init__(self, path: Path | None = None) -> None:
        self._verdicts: dict[bytes, str] = {}
        self._lines = None if path is None else Lines(path, self._take)

    def __len__(self) -> int:
        return len(self._verdicts)

    def __contains__(self, key: bytes) -> bool:
        return key in self._verdicts

    def __getitem__(self, key: bytes) -> str:
        return self._verdicts[key]

    def update(self, verdicts: Iterable[tuple[bytes, str]]) -> None:
        """Notes further verdicts."""
        new = dict(verdicts)
        if self._lines is not None:
            self._lines.append((key.hex(), verdict) for key, verdict in new.items())
        self._verdicts |= new

    def _take(self, row: list[str], _: Place) -> None:
        key, verdict = row
        self._verdicts[bytes.fromhex(key)] = verdict
