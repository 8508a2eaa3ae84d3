"""Files of JSON lines that grow at their end, of which a `kill -9` costs at most the lines that were being written.

Lines are appended together or not at all. A line that a kill has cut, and whatever lies behind it, is dropped by the
next process that opens the file to write, and passed over by whoever only reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Place = tuple[int, int]
"""A line's offset and length, bytes."""


class Lines:
    """A file open for appending, and an index of it; or open for reading alone, where another process appends.

    `take(value, place)` is called with every whole line: with those in the file at once, later with those appended.
    """

    def __init__(self, path: Path, take: Callable[[Any, Place], None], *, append: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b" if append else "rb")
        self._take = take
        self._end = 0
        self.look()
        if append:
            self._file.truncate(self._end)

    def look(self) -> None:
        """Takes the lines that another process has appended."""
        self._file.seek(self._end)
        for value, length in _whole(self._file):
            self._enter(value, length)

    def __del__(self) -> None:
        self._file.close()

    def append(self, values: Iterable[Any]) -> None:
        """Appends a line a value; they outlive this process when the call returns."""
        values = list(values)
        for value, line in zip(values, append(self._file.fileno(), values), strict=True):
            self._enter(value, len(line))

    def read(self, place: Place) -> Any:
        """The value of a line."""
        offset, length = place
        return json.loads(os.pread(self._file.fileno(), length, offset))

    def _enter(self, value: Any, length: int) -> None:
        self._take(value, (self._end, length))
        self._end += length


def read(path: Path) -> list[Any]:
    """The values of all whole lines, in order; none where there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        return [value for value, _ in _whole(file)]


def encode(values: Iterable[Any]) -> list[bytes]:
    return [(json.dumps(value) + "\n").encode() for value in values]


def append(descriptor: int, values: Iterable[Any]) -> list[bytes]:
    """Appends a line a value to a file opened with O_APPEND, which ends in a whole line; returns the lines.

    Where it raises OSError (a full disk), the file is as it was.
    """
    lines = encode(values)
    rest, end = b"".join(lines), os.fstat(descriptor).st_size
    try:
        while rest:  # one write, unless the system takes only a part
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise
    return lines


def _whole(file: BinaryIO) -> Iterator[tuple[Any, int]]:
    """Each line's value and length in bytes, up to the first that is broken."""
    for line in file:
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not line.endswith(b"\n"):
            return
        yield value, len(line)
