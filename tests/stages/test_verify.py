"""The stage that gives every response its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from responses import write_problems, write_responses

from conftest import Kept
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import lines
from oxa.stages import verify

SECTION = Verify(timeout=30, workers=1)
VERDICTS = dict.fromkeys(("correct", "incorrect", "unsure", "unparsable", "timeout", "bad_gold"), 0)


def grade(folder: Path, golds: dict[str, list[str]], rows: list[tuple[str, str, str]], log: Any) -> Any:
    metrics = verify.run(
        SECTION,
        problems=write_problems(folder / "problems.parquet", golds),
        responses=write_responses(folder / "responses.parquet", rows),
        output=folder / "verdicts.parquet",
        log=log,
        scratch=folder,
    )
    return metrics, tables.read(folder / "verdicts.parquet", schemas.VERDICTS).to_pylist()


GOLDS = {"sum": ["7"], "half": ["1/2", "0.5"], "broken": [r"\frac{"]}
ROWS = [
    ("sum", r"<think>3+4</think>\boxed{7}", "stop"),
    ("half", r"<think>1/2</think>\boxed{\frac{2}{4}}", "stop"),
    ("sum", r"<think>3+5</think>\boxed{8}", "stop"),
    ("sum", r"<think>3+4</think>\boxed{7}", "stop"),
    ("sum", r"<think>\boxed{7}", "length"),
    ("broken", r"<think>?</think>\boxed{7}", "stop"),
    ("sum", r"<think>3+4</think>\boxed{\frac{7}", "stop"),
]
EXPECTED = ["correct", "correct", "incorrect", "correct", "unparsable", "bad_gold", "unparsable"]


def test_every_response_gets_its_verdict_in_order_and_each_is_counted(tmp_path: Path, log: Any) -> None:
    metrics, verdicts = grade(tmp_path, GOLDS, ROWS, log)
    assert [row["verdict"] for row in verdicts] == EXPECTED
    assert [row["response_id"] for row in verdicts] == [f"r{i}" for i in range(len(ROWS))]
    assert [row["predicted"] for row in verdicts[:5]] == ["7", r"\frac{2}{4}", "8", "7", None]
    assert metrics == {
        "responses": 7,
        "verdicts": VERDICTS | {"correct": 3, "incorrect": 1, "unparsable": 2, "bad_gold": 1},
        "distinct": 5,  # two responses say the same, one says nothing
        "correct_share": 3 / 7,
    }
    assert log.rows[-1]["step"] == 7
    assert log.rows[-1]["share_correct"] == pytest.approx(3 / 7)


def test_the_table_is_the_same_however_many_rows_are_read_together_and_on_every_run(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = grade(tmp_path, GOLDS, ROWS, log)
    first = (tmp_path / "verdicts.parquet").read_bytes()
    grade(tmp_path, GOLDS, ROWS, log)
    assert (tmp_path / "verdicts.parquet").read_bytes() == first
    monkeypatch.setattr(verify, "ROWS", 2)
    metrics, parts = grade(tmp_path, GOLDS, ROWS, log)
    assert parts == whole
    assert metrics["distinct"] == 5


def test_a_response_to_an_unknown_problem_is_refused_by_name(tmp_path: Path, log: Any) -> None:
    with pytest.raises(
        DataError, match=r"responses\.parquet: response r1 answers problem lost, which .*problems"
    ):
        grade(tmp_path, GOLDS, [ROWS[0], ("lost", r"</think>\boxed{7}", "stop")], log)


def test_a_missing_table_is_refused_by_name(tmp_path: Path, log: Any) -> None:
    problems = write_problems(tmp_path / "problems.parquet", GOLDS)
    with pytest.raises(DataError, match=r"nowhere\.parquet: no such file"):
        verify.run(
            SECTION,
            problems=problems,
            responses=tmp_path / "nowhere.parquet",
            output=tmp_path / "verdicts.parquet",
            log=log,
            scratch=tmp_path,
        )


def test_no_responses_make_an_empty_table(tmp_path: Path, log: Any) -> None:
    metrics, verdicts = grade(tmp_path, GOLDS, [], log)
    assert verdicts == []
    assert metrics["responses"] == metrics["distinct"] == 0
    assert metrics["correct_share"] == 0.0


def test_a_long_response_is_graded_by_its_end(tmp_path: Path, log: Any) -> None:
    reasoning = "so 3 + 4 = 7. " * 15_000
    _metrics, verdicts = grade(
        tmp_path,
        GOLDS,
        [
            ("sum", f"<think>{reasoning}</think>\\boxed{{7}}", "stop"),
            ("sum", f"<think></think>{reasoning}", "stop"),
        ],
        log,
    )
    assert [row["verdict"] for row in verdicts] == ["correct", "unparsable"]


def test_what_was_judged_before_a_kill_is_not_judged_again(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "ROWS", 2)
    metrics, whole = grade(tmp_path, GOLDS, ROWS, log)
    (tmp_path / "verdicts").unlink()
    with pytest.raises(KeyboardInterrupt):
        grade(tmp_path, GOLDS, ROWS, Kept(stop_after=4))
    rows = lines.read(tmp_path / "verdicts")
    assert len(rows) == 3
    assert grade(tmp_path, GOLDS, ROWS, log) == (metrics, whole)

    rows[0][1] = "timeout"  # no judge would say so of the first
    (tmp_path / "verdicts").write_bytes(b"".join(lines.encode(rows)))
    _, verdicts = grade(tmp_path, GOLDS, ROWS, log)
    assert [row["verdict"] for row in verdicts] == ["timeout", *EXPECTED[1:3], "timeout", *EXPECTED[4:]]
