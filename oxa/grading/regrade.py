"""New verdicts for stored generations, when the verifier has changed: nothing is sampled again.

Texts, lengths and entropies stay as they are; verdict, extracted answer, which answers are one, and the numbers that
follow from them are made anew. What it means for DVC is flows/recommit.py's matter.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.grading import grouping
from oxa.grading.grader import Grader
from oxa.records import same_answers, schemas, tables


class Regraded(NamedTuple):
    table: pa.Table
    """records.GENERATIONS with the new verdicts."""
    changes: Counter[tuple[str, str]]
    """Old and new verdict, where they differ, to the number of generations."""
    num_predicted: int
    """Generations with the same verdict in which another answer is extracted."""
    notes: dict[str, Any]
    """What is kept beside the table, with the new groups of equal answers."""
    num_regrouped: int
    """Problems whose groups of equal answers are others than before."""

    @property
    def changed(self) -> bool:
        return bool(self.changes or self.num_predicted or self.num_regrouped)

    def __str__(self) -> str:
        if not self.changed:
            return f"{len(self.table)} generations keep their verdicts"
        parts = [f"{count} {old} -> {new}" for (old, new), count in sorted(self.changes.items())]
        parts += [f"{self.num_predicted} other answers with the same verdict"] * bool(self.num_predicted)
        parts += [f"answers to {self.num_regrouped} problems are grouped anew"] * bool(self.num_regrouped)
        return f"of {len(self.table)} generations: {', '.join(parts)}"


def regrade(section: Verify, generations: Path, problems: Path) -> Regraded:
    """Grades a table's texts against the gold answers of its benchmarks' problems; writes nothing."""
    table = tables.read(generations, schemas.GENERATIONS)
    gold_rows = tables.read(problems, schemas.PROBLEMS, ["split", "problem_id", "answers"]).to_pylist()
    golds = {(row["split"], row["problem_id"]): row["answers"] for row in gold_rows}
    rows = table.select(
        ["benchmark", "problem_id", "text", "finish_reason", "verdict", "predicted"]
    ).to_pylist()
    for row in rows:
        if (row["benchmark"], row["problem_id"]) not in golds:
            raise DataError(
                f"{generations}: problem {row['problem_id']} of {row['benchmark']} is not in {problems}; evaluate "
                "again with dvc repro"
            )
    with Grader(section) as grader:
        graded = grader.grade(
            [(golds[row["benchmark"], row["problem_id"]], row["text"], row["finish_reason"]) for row in rows],
            f"grading {generations.stem}",
        )
        changes: Counter[tuple[str, str]] = Counter()
        num_predicted = 0
        for row, grade in zip(rows, graded, strict=True):
            if row["verdict"] != grade.verdict:
                changes[row["verdict"], grade.verdict] += 1
            elif row["predicted"] != grade.predicted:
                num_predicted += 1
        for name in ("verdict", "predicted"):
            values = pa.array([getattr(grade, name) for grade in graded], pa.string())
            table = table.set_column(table.column_names.index(name), name, values)
        groups = grouping.same_answers(grader, table)
    notes = tables.notes(generations)
    before, after = (_by_problem(each) for each in (notes.get(same_answers.NOTE, {}), groups))
    num_regrouped = sum(before.get(problem) != after.get(problem) for problem in before.keys() | after.keys())
    return Regraded(table, changes, num_predicted, same_answers.noted(notes, groups), num_regrouped)


def _by_problem(groups: same_answers.Groups) -> dict[tuple[str, str], list[list[str]]]:
    return {
        (benchmark, name): each for benchmark, problems in groups.items() for name, each in problems.items()
    }
