"""Responses on disk as they are made: a killed run makes the missing ones only."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from oxa.generation.requests import Generation


class Generations(Sequence[Generation]):
    """Responses in the order of their requests, each read from disk when it is asked for: their texts are many."""

    def __init__(self, store: Store, places: list[tuple[int, int]], settings: dict[str, Any]) -> None:
        self._store = store
        self._places = places
        self.settings = settings
        """What they were drawn with: config.Sampling's values and what the engine noted."""

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Generation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Generation]: ...
    def __getitem__(self, index: int | slice) -> Generation | list[Generation]:
        if isinstance(index, slice):
            return [self._store.read(place) for place in self._places[index]]
        return self._store.read(self._places[index])


class Store:
    """Responses on disk, one a line of JSON, appended as they come.

    A line that a kill has cut, and whatever lies behind it, is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._end = 0
        self.notes: list[dict[str, Any]] = []
        self.places: dict[tuple[str, str], tuple[int, int]] = {}
        """(offset, length) by (shard's key, response_id)."""
        self._file.seek(0)
        for line in self._file:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self._take(row, len(line))
        self._file.truncate(self._end)

    def __del__(self) -> None:
        self._file.close()

    def note(self, settings: dict[str, Any]) -> None:
        if settings not in self.notes:
            self._append([{"note": settings}])

    def add(self, key: str, generations: list[Generation]) -> None:
        """Keeps a shard's responses; they outlive this process when the call returns."""
        self._append([{"shard": key} | generation._asdict() for generation in generations])

    def read(self, place: tuple[int, int]) -> Generation:
        offset, length = place
        row = json.loads(os.pread(self._file.fileno(), length, offset))
        return Generation(**{name: row[name] for name in Generation._fields})

    def _append(self, rows: list[dict[str, Any]]) -> None:
        lines = [(json.dumps(row) + "\n").encode() for row in rows]
        self._file.write(b"".join(lines))  # at once: a kill hardly ever cuts a shard in two
        self._file.flush()
        for row, line in zip(rows, lines, strict=True):
            self._take(row, len(line))

    def _take(self, row: dict[str, Any], length: int) -> None:
        if "note" in row:
            if row["note"] not in self.notes:
                self.notes.append(row["note"])
        else:
            self.places[row["shard"], row["response_id"]] = self._end, length
        self._end += length
