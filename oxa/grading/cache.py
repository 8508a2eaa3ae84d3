"""Verdicts that are known already, in memory and, where a file is named, in it: a killed stage does not judge twice.

    key      16 bytes, of the gold answers and the prediction
    record   the key, then one byte for the verdict, from 1; a file is records one after the other, in any order

Each `update` is appended and handed to the system at once, so a killed process loses the call it was in. What a kill
leaves of a record at the file's end is dropped; so is everything from a record on that no process wrote whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from oxa.config.section import Verdict

KEY = 16  # bytes
VERDICTS: tuple[str, ...] = get_args(Verdict)


class Memo:
    """Verdict by key."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[bytes, str] = {}
        if path is not None and path.exists():
            self._load(path)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> str:
        return self._known[key]

    def update(self, found: Iterable[tuple[bytes, str]]) -> None:
        """Notes further verdicts."""
        new = dict(found)
        if self._path is not None and new:
            with self._path.open("ab") as file:
                file.write(
                    b"".join(key + bytes([1 + VERDICTS.index(verdict)]) for key, verdict in new.items())
                )
        self._known |= new

    def _load(self, path: Path) -> None:
        written, whole = path.read_bytes(), 0
        for start in range(0, len(written) - KEY, KEY + 1):
            code = written[start + KEY]
            if not 1 <= code <= len(VERDICTS):
                break
            self._known[written[start : start + KEY]] = VERDICTS[code - 1]
            whole = start + KEY + 1
        with path.open("r+b") as file:
            file.truncate(whole)
