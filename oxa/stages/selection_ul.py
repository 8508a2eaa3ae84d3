"""Stage `selection_ul`: which of the student's own wrong responses an arm unlearns (METHOD §3).

Of its responses whose verdict proves a wrong pattern: the `num` of lowest ppl that are not below `min_ppl` (degenerate
loops), at most `per_problem` of one problem; none that a length limit cut unless allowed; none that is too long to be
trained on; with `consensus`, none that a second check does not call wrong, too: oxa/grading/second_check.py, or the
judge whose verdicts the table holds beside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxa.config.fine_tuning import FineTuning
from oxa.config.prompt import Prompt
from oxa.config.selection import SelectionShared, UnlikelihoodSet
from oxa.grading import second_check
from oxa.records import schemas
from oxa.runtime import journal
from oxa.selection import candidates
from oxa.selection.candidates import Candidates, Files
from oxa.selection.rules import of_lowest
from oxa.selection.training_set import describe, too_few, write


def run(
    shared: SelectionShared,
    section: UnlikelihoodSet,
    prompt: Prompt,
    train: FineTuning,
    *,
    problems: Path,
    apart: Path,
    responses: Path,
    verdicts: Path,
    scores: Path,
    output: Path,
    log: journal.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the UL set, by response_id, and returns its description.

    Raises DataError where it asks for more than exists, or tables do not belong together. `scratch` stays empty: a
    rerun takes seconds.
    """
    files = Files(problems, responses, verdicts, scores)
    eligible, funnel = candidates.read(
        files,
        apart,
        section.verdicts,
        shared.seed,
        max_length=train.max_length,
        whole=not section.allow_length,
    )
    eligible = eligible.only(eligible.ppl >= section.min_ppl)
    funnel["floor"] = len(eligible.row)
    if section.consensus:
        agrees = _judged_wrong if section.consensus == "judge" else _surely_wrong
        eligible = eligible.only(agrees(eligible, files))
        funnel["consensus"] = len(eligible.row)
    chosen = of_lowest(eligible, section.num, section.per_problem)
    if len(chosen) < section.num:
        raise too_few("UL", section.num, len(chosen), section.per_problem, eligible, funnel, responses)
    write(output, files, eligible.only(chosen), "ul", prompt)
    return {"ul": describe(eligible, chosen, section.num, list(section.verdicts), funnel)}


def _surely_wrong(eligible: Candidates, files: Files) -> list[bool]:
    """Which of them the second check calls wrong, too."""
    predicted = candidates.take(files.verdicts, schemas.VERDICTS, ["predicted"], eligible.verdict_row)
    golds = candidates.take(files.problems, schemas.PROBLEMS, ["answers"], eligible.problem)
    return [
        second_check.surely_wrong(gold, answer)
        for gold, answer in zip(golds["answers"].to_pylist(), predicted["predicted"].to_pylist(), strict=True)
    ]


def _judged_wrong(eligible: Candidates, files: Files) -> list[bool]:
    """Which of them the judge calls wrong, too."""
    verdicts = candidates.take(files.verdicts, schemas.JUDGED, ["judge_verdict"], eligible.verdict_row)
    return [verdict == "incorrect" for verdict in verdicts["judge_verdict"].to_pylist()]
