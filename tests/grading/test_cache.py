"""Verdicts that outlive a killed stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from oxa.grading.cache import Memo
from oxa.runtime import lines

A, B, C = (bytes([i]) * 16 for i in (1, 2, 3))


def test_verdicts_are_known_to_the_next_process(tmp_path: Path) -> None:
    memo = Memo(tmp_path / "memo")
    memo.update([(A, "correct"), (B, "timeout")])
    memo.update([(C, "incorrect")])
    again = Memo(tmp_path / "memo")
    assert [again[key] for key in (A, B, C)] == ["correct", "timeout", "incorrect"]
    assert len(again) == 3


LINE = b"".join(lines.encode([[C.hex(), "correct"]]))


@pytest.mark.parametrize("tail", [LINE[:5], LINE[:-1], b"\0" * len(LINE), LINE[:20] + b"\n" + LINE])
def test_what_a_kill_leaves_of_a_record_is_dropped_and_the_next_one_stands(
    tmp_path: Path, tail: bytes
) -> None:
    path = tmp_path / "memo"
    Memo(path).update([(A, "correct"), (B, "timeout")])
    with path.open("ab") as file:
        file.write(tail)
    memo = Memo(path)
    assert len(memo) == 2
    assert C not in memo
    memo.update([(C, "bad_gold")])
    assert [Memo(path)[key] for key in (A, B, C)] == ["correct", "timeout", "bad_gold"]


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Memo().update([(A, "correct")])
    assert not list(tmp_path.iterdir())
