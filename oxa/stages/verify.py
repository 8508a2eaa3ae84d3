"""Stage: a verdict for every response, teacher's or self, in the responses' order.

What a verdict means, and how an answer is found and compared, is said in oxa/grading/grader.py. The responses are read
and graded ROWS at a time; what stays is the gold answers and some 150 bytes a distinct answer, so a million responses
need little more memory than a few thousand. Verdicts are kept in scratch as they come: after a kill the responses are
read again, and only what was not judged yet is judged.

With `verify.judge`, a language model is asked about every answer that is not `correct` (oxa/grading/judge.py). Its
verdict stands in a column of its own; where there is no answer to ask about, that is null.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, get_args

from oxa.config.section import Verdict
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import chat
from oxa.grading.grader import Grader
from oxa.grading.judge import Judge, Question
from oxa.records import schemas, tables
from oxa.runtime import journal, progress

ROWS = 4096  # read and graded together


def run(
    section: Verify, *, problems: Path, responses: Path, output: Path, log: journal.Log, scratch: Path
) -> dict[str, Any]:
    """Writes VERDICTS for RESPONSES; with a judge, JUDGED.

    Returns {responses, verdicts: {verdict: count}, distinct: pairs of gold answers and prediction that differ,
    correct_share: of all responses}, and with a judge {judge: {distinct: questions that differ, agreement: {verdict:
    {the judge's: count}}}} of the answers that it was asked about. Logs the running shares against the number of rows
    done.
    """
    judge = section.judge and Judge(partial(chat.replies, section.judge), memo=scratch / "judged")
    golds: dict[str, list[str]] = {}
    questions: dict[str, str] = {}
    columns = ["problem_id", "answers", *(["question"] if judge else [])]
    for batch in tables.stream(problems, schemas.PROBLEMS, columns, ROWS):
        names, answers, *others = (column.to_pylist() for column in batch)
        golds.update(zip(names, answers, strict=True))
        for texts in others:
            questions.update(zip(names, texts, strict=True))
    counts = Counter(dict.fromkeys(get_args(Verdict), 0))
    agreement: Counter[tuple[str, str]] = Counter()
    columns = ["response_id", "problem_id", "text", "finish_reason"]
    num_rows = 0
    with (
        Grader(section, memo=scratch / "verdicts") as grader,
        tables.Writer(output, schemas.JUDGED if judge else schemas.VERDICTS) as writer,
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
            rows = [{"response_id": name} | grade._asdict() for name, grade in zip(ids, graded, strict=True)]
            if judge:
                asked = {
                    at: Question(questions[named[at]], tuple(golds[named[at]]), predicted)
                    for at, (verdict, predicted) in enumerate(graded)
                    if verdict != "correct" and predicted is not None
                }
                judged = dict(zip(asked, judge.verdicts(list(asked.values())), strict=True))
                agreement.update((graded[at].verdict, verdict) for at, verdict in judged.items())
                rows = [row | {"judge_verdict": judged.get(at)} for at, row in enumerate(rows)]
            for row in rows:
                writer.add(**row)
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
        **({"judge": _agreement(judge, agreement)} if judge else {}),
    }


def _agreement(judge: Judge, counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    firsts = [verdict for verdict in get_args(Verdict) if verdict != "correct"]
    table = {
        first: {second: counts[first, second] for second in ("correct", "incorrect", "unsure")}
        for first in firsts
    }
    return {"distinct": judge.num_distinct, "agreement": table}
