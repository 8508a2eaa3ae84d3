"""Responses on disk as they are made: a killed run makes the missing ones only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

from oxa.generation.requests import Generation
from oxa.runtime.lines import Lines, Place

Where = tuple[Path, Place]
"""A file, and a line of it."""


class Generations(Sequence[Generation]):
    """Responses in the order of their requests, each read from disk when it is asked for: their texts are many."""

    def __init__(self, store: Store, places: list[Where], settings: dict[str, Any]) -> None:
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
    """Responses on disk, one a line of JSON, appended as they come: a file for each process that makes some."""

    def __init__(self, folder: Path, name: str, process: int = 0) -> None:
        self.notes: list[dict[str, Any]] = []
        self.places: dict[tuple[str, str], Where] = {}
        """By (shard's key, response_id)."""
        self._others = f"{name}-*.jsonl"
        self._path = folder / f"{name}-{process}.jsonl"
        self._own = Lines(self._path, partial(self._take, self._path))
        self._files = {self._path: self._own}

    def look(self) -> None:
        """Takes what other processes have made, those of earlier runs included."""
        for path in sorted(self._path.parent.glob(self._others)):
            if path not in self._files:
                self._files[path] = Lines(path, partial(self._take, path), append=False)
            elif path != self._path:
                self._files[path].look()

    def note(self, settings: dict[str, Any]) -> None:
        """Keeps what an engine generates with, once."""
        if settings not in self.notes:
            self._own.append([{"note": settings}])

    def add(self, key: str, generations: list[Generation]) -> None:
        """Keeps a shard's responses; they outlive this process when the call returns."""
        self._own.append([{"shard": key} | generation._asdict() for generation in generations])

    def read(self, where: Where) -> Generation:
        path, place = where
        row = self._files[path].read(place)
        return Generation(**{name: row[name] for name in Generation._fields})

    def _take(self, path: Path, row: dict[str, Any], place: Place) -> None:
        if "note" not in row:
            self.places[row["shard"], row["response_id"]] = path, place
        elif row["note"] not in self.notes:
            self.notes.append(row["note"])
