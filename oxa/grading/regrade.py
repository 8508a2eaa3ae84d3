"""New verdicts for stored generations, when the verifier has changed: nothing is sampled again.

Texts, lengths and entropies stay as they are; verdict, extracted answer and the numbers that follow from them are made
anew. What it means for DVC is flows/recommit.py's matter.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.grading.grader import Grader
from oxa.records import schemas, tables


class Regraded(NamedTuple):
    table: pa.Table
    """records.GENERATIONS with the new verdicts."""
    changes: Counter[tuple[str, str]]
    """Old and new verdict, where they differ, to the number of generations."""
    num_predicted: int
    """Generations with the same verdict in which another answer is extracted."""

    @property
    def changed(self) -> bool:
        return bool(self.changes or self.num_predicted)

    def __str__(self) -> str:
        if not self.changed:
            return f"{len(self.table)} generations keep their verdicts"
        parts = [f"{count} {old} -> {new}" for (old, new), count in sorted(self.changes.items())]
        parts += [f"{self.num_predicted} other answers with the same verdict"] * bool(self.num_predicted)
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
    return Regraded(table, changes, num_predicted)
