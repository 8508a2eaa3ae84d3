"""Stage `pass_rate`: how often the base, or a model that the section names, solves each problem of some splits.

RL learns nothing from problems that are always or never solved; `rlvr.pass_rate` leaves such problems out by what is
measured here, once for all arms and before any of them is trained. The random numbers of an answer follow from (seed,
response_id), and its id from problem, model, seed and sample index.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from oxa import hashes, prompts
from oxa.config.generate import Generate
from oxa.config.pass_rate import PassRate
from oxa.config.prompt import Prompt
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.generation import generate
from oxa.generation.requests import Generation, Request
from oxa.grading.grader import Grader
from oxa.model import loading, preflight
from oxa.records import schemas, tables
from oxa.runtime import journal

GRADED = 1024  # answers whose texts are in memory at a time


def run(
    section: PassRate,
    engine: Generate,
    prompt: Prompt,
    verify: Verify,
    *,
    model: Path,
    problems: Path,
    output: Path,
    scratch: Path,
    log: journal.Log,
) -> dict[str, Any]:
    """Writes records.PASS_RATES, a row a problem of `section.splits`, in the problems' order.

    Returns, by split, `num_problems`, `pass_rate` (mean), `truncated` (share of the answers) and `histogram`: how many
    problems were solved in 0, 1, … num_samples of the answers. Without splits the table has no row and nothing is
    returned. Raises DataError where a split has no problem, or the named model cannot answer.
    """
    if not section.splits:
        tables.write(output, [], schemas.PASS_RATES)
        return {}
    source, name = _source(section, model)
    faults = preflight.check_checkpoint(source, prompt, is_student=False) if section.model else []
    if faults:
        raise DataError(f"pass_rate.model: {name} cannot answer: {' '.join(faults)}")
    table = tables.read(problems, schemas.PROBLEMS, ["problem_id", "question", "answers", "split"])
    rows = [row for row in table.to_pylist() if row["split"] in section.splits]
    for split in section.splits:
        if not pc.any(pc.equal(table["split"], split)).as_py():
            raise DataError(
                f"{problems}: no problem of split {split!r}, which pass_rate.splits names; take it out there, or check "
                "the sources under ingest"
            )
    tokenizer = loading.load_tokenizer(source)
    requests = [
        Request(hashes.response_id(row["problem_id"], "pass_rate", name, f"{section.seed}/{index}"), ids)
        for row in rows
        for ids in [prompts.prompt_ids(tokenizer, prompts.user_turn(row["question"], prompt.suffix))]
        for index in range(section.num_samples)
    ]
    answers = iter(
        generate.generate(source, requests, section, engine, scratch=scratch, description="answers")
    )
    opening = prompts.opened_thought(tokenizer, "")
    with Grader(verify) as grader:
        for start in range(0, len(rows), -(-GRADED // section.num_samples)):
            part = rows[start : start + -(-GRADED // section.num_samples)]
            _count(part, answers, section.num_samples, opening, grader)
    columns = {name: [row[name] for row in rows] for name in schemas.PASS_RATES.names if name in rows[0]}
    table_of = {**columns, "model": [name] * len(rows), "num_samples": [section.num_samples] * len(rows)}
    tables.write(output, table_of, schemas.PASS_RATES)
    return {
        split: _summary([row for row in rows if row["split"] == split], section) for split in section.splits
    }


def _source(section: PassRate, base: Path) -> tuple[str | Path, str]:
    """(what to load, its name): a folder's name or a hub id, never a path, so that ids do not depend on the machine."""
    if section.model is None:
        return base, base.name
    folder = Path(section.model)
    return (folder, folder.resolve().name) if folder.is_dir() else (section.model, section.model)


def _count(
    rows: list[dict[str, Any]], answers: Iterator[Generation], each: int, opening: str, grader: Grader
) -> None:
    """Adds to each problem how many of its answers are correct, and how many max_tokens cut."""
    made = list(islice(answers, len(rows) * each))
    items = [
        (rows[i // each]["answers"], opening + one.text, one.finish_reason) for i, one in enumerate(made)
    ]
    right = [grade.verdict == "correct" for grade in grader.grade(items, "")]
    for i, row in enumerate(rows):
        of_problem = slice(i * each, (i + 1) * each)
        row["num_correct"] = sum(right[of_problem])
        row["num_truncated"] = sum(one.finish_reason == "length" for one in made[of_problem])


def _summary(rows: list[dict[str, Any]], section: PassRate) -> dict[str, Any]:
    solved = [row["num_correct"] for row in rows]
    num_answers = len(rows) * section.num_samples
    return {
        "num_problems": len(rows),
        "pass_rate": sum(solved) / num_answers,
        "truncated": sum(row["num_truncated"] for row in rows) / num_answers,
        "histogram": [solved.count(num) for num in range(section.num_samples + 1)],
    }
