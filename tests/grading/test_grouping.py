"""Wrong answers that are one answer in several spellings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from oxa.comparison import outcomes
from oxa.config.verify import Verify
from oxa.grading import grouping
from oxa.grading.grader import Grader
from oxa.records import same_answers, schemas, tables

SECTION = Verify(timeout=10.0, workers=1)


def table(answers: list[tuple[str | None, str]], problem: str = "p") -> pa.Table:
    """Generations of one problem, from (predicted, verdict)."""
    rows = [
        {
            "benchmark": "b",
            "problem_id": problem,
            "tier": "",
            "step": 0,
            "sample_index": index,
            "text": "",
            "num_tokens": 3,
            "finish_reason": "stop",
            "verdict": verdict,
            "predicted": answer,
        }
        for index, (answer, verdict) in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.GENERATIONS)


WRONG = [r"\frac{1}{3}", r"\dfrac13", "7", "7.0", r"x \in [0, 1]", r"0 \le x \le 1", "1/3", "1 / 3", "8"]


def test_spellings_that_the_verifier_holds_equal_are_one_group_of_their_problem() -> None:
    generations = pa.concat_tables(
        [
            table([*((answer, "incorrect") for answer in WRONG), (None, "unparsable")]),
            table([("0.5", "unsure"), ("1/2", "unsure"), ("0.50", "correct")], "q"),
        ]
    )
    with Grader(SECTION) as grader:
        groups = grouping.same_answers(grader, generations)
        shuffled = grouping.same_answers(grader, generations.take(list(reversed(range(len(generations))))))
    assert {frozenset(group) for group in groups["b"]["p"]} == {
        frozenset({"1/3", r"\frac{1}{3}", r"\dfrac13"}),
        frozenset({"7", "7.0"}),
        frozenset({r"x\in[0,1]", r"0\lex\le1"}),
    }
    assert groups["b"]["p"][0][0] == "1/3", "which most have written"
    assert groups["b"]["q"] == [["0.5", "1/2"]]
    assert {problem: sorted(map(sorted, each)) for problem, each in shuffled["b"].items()} == {
        problem: sorted(map(sorted, each)) for problem, each in groups["b"].items()
    }


class Silent(Grader):
    """Grades nothing, and counts what it is asked."""

    num_asked = 0

    def compare(self, pairs: Any, description: str = "") -> list[str]:
        self.num_asked += len(pairs)
        return ["timeout"] * len(pairs)


def test_plain_numbers_that_differ_are_not_asked_about_and_the_work_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = Silent(SECTION)
    assert grouping.same_answers(silent, table([(str(i), "incorrect") for i in range(500)])) == {}
    assert silent.num_asked == 0
    monkeypatch.setattr(grouping, "MAX_ANSWERS", 10)
    letters = [(f"x_{{{i}}}", "incorrect") for i in range(30)]
    assert grouping.same_answers(silent, table(letters)) == {}
    assert silent.num_asked == 9, "what ran out of time is asked about once"
    unreadable = [("a", "timeout"), ("b", "unparsable"), ("c", "incorrect")]
    assert grouping.same_answers(silent, table(unreadable)) == {}
    assert silent.num_asked == 9


def test_a_majority_in_two_spellings_wins_and_a_table_without_groups_is_read_by_spelling(
    tmp_path: Path,
) -> None:
    answers = [("2", "correct"), ("2", "correct"), ("1/3", "incorrect"), (r"\frac13", "incorrect")]
    generations = table([*answers, (r"\frac 1 3", "incorrect")])
    with Grader(SECTION) as grader:
        notes = same_answers.noted({"sampling": 1}, grouping.same_answers(grader, generations))
    path = tmp_path / "generations.parquet"
    tables.write(path, generations, schemas.GENERATIONS, notes)
    one = outcomes.outcomes(path)
    assert (one.majority.tolist(), one.distinct_answers.tolist()) == ([0.0], [2])
    tables.write(path, generations, schemas.GENERATIONS)
    one = outcomes.outcomes(path)
    assert (one.majority.tolist(), one.distinct_answers.tolist()) == ([0.5], [3]), r"\frac13 is \frac 1 3"
