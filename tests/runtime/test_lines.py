"""Files of JSON lines over kills and full disks."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from oxa.runtime import lines
from oxa.runtime.lines import Lines, Place


def index(path: Path) -> tuple[Lines, dict[Place, Any]]:
    values: dict[Place, Any] = {}
    return Lines(path, lambda value, place: values.update({place: value})), values


def test_every_line_is_found_again_at_its_place_by_this_process_and_the_next(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "log"
    first, values = index(path)
    first.append([{"a": 1}, "é"])
    first.append([])
    first.append([[2]])
    again, same = index(path)
    assert values == same
    assert list(values.values()) == lines.read(path) == [{"a": 1}, "é", [2]]
    assert all(again.read(place) == value for place, value in values.items())


@pytest.mark.parametrize("tail", [b"[1", b"[1]", b"\0\0\0\0\n[1]\n", b'"\xff"\n'])
def test_what_a_kill_cut_is_dropped_with_all_behind_it(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"[0]\n" + tail)
    assert lines.read(path) == [[0]]
    assert path.read_bytes() == b"[0]\n" + tail, "reading leaves the file alone"
    log, _ = index(path)
    log.append([[2]])
    assert path.read_bytes() == b"[0]\n[2]\n"


def test_lines_that_find_no_room_leave_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    lines.append(descriptor, ["first"])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            lines.append(descriptor, ["second", "x" * 200])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert lines.read(path) == ["first"]
    lines.append(descriptor, ["third"])
    os.close(descriptor)
    assert lines.read(path) == ["first", "third"]


def test_no_file_holds_no_lines(tmp_path: Path) -> None:
    assert lines.read(tmp_path / "none") == []
