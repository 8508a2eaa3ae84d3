"""Stage: a verdict for every response, teacher's or self, in the responses' order.

What a verdict means, and how an answer is found and compared, is said in oxa/answers.py. The responses are read and
graded ROWS at a time, so that a million of them need no more memory than a few thousand.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow.compute as pc

from oxa import config, records
from oxa.answers import Grader
from oxa.errors import DataError

ROWS = 4096  # read and graded together


def run(
    section: config.Verify, *, problems: Path, responses: Path, output: Path, log: records.Log, scratch: Path
) -> dict[str, Any]:
    """Writes VERDICTS for RESPONSES.

    Returns {responses, verdicts: {verdict: count}, distinct: pairs of gold answers and prediction that differ,
    correct_share: of all responses}. Logs the running shares against the number of rows done. Nothing is kept in
    `scratch`: grading again costs less than sampling does.
    """
    known = records.read(problems, records.PROBLEMS, ["problem_id", "answers"])
    golds = dict(zip(known["problem_id"].to_pylist(), known["answers"].to_pylist(), strict=True))
    counts = Counter(dict.fromkeys(get_args(config.Verdict), 0))
    columns = ["response_id", "problem_id", "text", "finish_reason"]
    num_rows = 0
    with Grader(section) as grader, records.Writer(output, records.VERDICTS) as writer:
        for batch in records.stream(responses, records.RESPONSES, columns, ROWS):
            unknown = batch.filter(pc.invert(pc.is_in(batch["problem_id"], known["problem_id"])))
            if len(unknown):
                raise DataError(
                    f"{responses}: response {unknown['response_id'][0]} answers problem {unknown['problem_id'][0]}, "
                    f"which {problems} does not hold; make both again with `dvc repro ingest sample`"
                )
            items = [
                (golds[problem], text, finish)
                for problem, text, finish in zip(
                    *(batch[name].to_pylist() for name in columns[1:]), strict=True
                )
            ]
            graded = grader.grade(items, f"grading from row {num_rows}")
            for response_id, (verdict, predicted) in zip(
                batch["response_id"].to_pylist(), graded, strict=True
            ):
                writer.add(response_id=response_id, verdict=verdict, predicted=predicted)
            counts.update(verdict for verdict, _ in graded)
            num_rows += len(batch)
            log(num_rows, **{f"share_{verdict}": count / num_rows for verdict, count in counts.items()})
        distinct = grader.num_distinct
    return {
        "responses": num_rows,
        "verdicts": dict(counts),
        "distinct": distinct,
        "correct_share": counts["correct"] / num_rows if num_rows else 0.0,
    }
