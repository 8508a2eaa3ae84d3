"""Stage: a verdict for every response, teacher's or self, in the responses' order.

What a verdict means, and how an answer is found and compared, is said in oxa/grading/grader.py. The responses are read
and graded ROWS at a time; what stays is the gold answers and some 150 bytes a distinct answer, so a million responses
need little more memory than a few thousand. Verdicts are kept in scratch as they come: after a kill the responses are
read again, and only what was not judged yet is judged.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

from oxa.config.section import Verdict
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.grading.grader import Grader
from oxa.records import schemas, tables
from oxa.runtime import journal, progress

ROWS = 4096  # read and graded together


def run(
    section: Verify, *, problems: Path, responses: Path, output: Path, log: journal.Log, scratch: Path
) -> dict[str, Any]:
    """Writes VERDICTS for RESPONSES.

    Returns {responses, verdicts: {verdict: count}, distinct: pairs of gold answers and prediction that differ,
    correct_share: of all responses}. Logs the running shares against the number of rows done.
    """
    golds: dict[str, list[str]] = {}
    for batch in tables.stream(problems, schemas.PROBLEMS, ["problem_id", "answers"], ROWS):
        golds.update(zip(*(column.to_pylist() for column in batch), strict=True))
    counts = Counter(dict.fromkeys(get_args(Verdict), 0))
    columns = ["response_id", "problem_id", "text", "finish_reason"]
    num_rows = 0
    with (
        Grader(section, memo=scratch / "verdicts") as grader,
        tables.Writer(output, schemas.VERDICTS) as writer,
        progress.bar(total=tables.num_rows(responses), desc="grading", unit="response") as bar,
    ):
        for batch in tables.stream(responses, schemas.RESPONSES, columns, ROWS):
            ids, named, texts, finishes = (batch[name].to_pylist() for name in columns)
            lost = next((at for at, problem in enumerate(named) if problem not in golds), None)
            if lost is not None:
                raise DataError(
                    f"{responses}: response {ids[lost]} answers problem {named[lost]}, "
                    f"which {problems} does not hold; make both again with `dvc repro ingest sample`"
                )
            items = [
                (golds[problem], text, finish)
                for problem, text, finish in zip(named, texts, finishes, strict=True)
            ]
            graded = grader.grade(items, "")
            for response_id, (verdict, predicted) in zip(ids, graded, strict=True):
                writer.add(response_id=response_id, verdict=verdict, predicted=predicted)
            counts.update(verdict for verdict, _ in graded)
            num_rows += len(batch)
            bar.update(len(batch))
            log(num_rows, **{f"share_{verdict}": count / num_rows for verdict, count in counts.items()})
        distinct = grader.num_distinct
    return {
        "responses": num_rows,
        "verdicts": dict(counts),
        "distinct": distinct,
        "correct_share": counts["correct"] / num_rows if num_rows else 0.0,
    }
