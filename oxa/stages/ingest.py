"""Teacher data, problems for RL and benchmarks become `problems` and teacher `responses`; what is dropped is counted.

Rows come one at a time and leave in batches, so that memory holds ids and counts, not texts: some 350 bytes a problem
and 100 a response. `problems` has one row a problem of training or RL: the benchmarks first, then split `train`, then
split `rlvr`. What is left out is listed, too:

rows (a row is one problem of a source, with its responses)
    empty_problem, no_answer, multi_turn, system_turn, not_math, bad_value, bad_unicode   unusable as they are
                        (oxa/data/sources.py): `nan`, `None`, `proof` and the like are no answer, nor, for RL, is what
                        a response alone gives; bad_value is a cell of another kind than text, such as a boolean
    bad_gold            its gold answer does not verify against itself; a later row may still bring a good one
    contaminated        a problem of training or RL that is also in a benchmark, see `Overlap`
    in_training         a problem for RL that is also a training problem: the arms may have seen its solution, and not
                        all of them the same one
    conflicting_answer  the question came before, with another gold answer; the first one stays
    duplicate_problem   the question came before, with the same gold answer: the row is counted here, and its
                        responses join those of the first row
    no_response         a training problem none of whose rows has a usable response; RL may still take it
responses
    empty_response, too_long, duplicate_response (of the same problem, whatever the source)

The counts of each source add up, and the rejects file has one line for each row and response that they call dropped:

    rows           = problems  + dropped, over the row reasons
    responses_read = responses + dropped, over the response reasons + responses_of_dropped_rows

A benchmark's `guess_rate` is what knowing its answers alone, and none of its questions, would solve.

Rows outside a source's `part` and `limit` are not counted. Totals are over the teacher sources alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from tqdm import tqdm

from oxa.config.ingest import Ingest
from oxa.config.sources import Source, Sources
from oxa.config.verify import Verify
from oxa.data import counts
from oxa.data.contamination import Overlap
from oxa.data.counts import Count, Tables
from oxa.data.mappings import Purpose, Record, Reject, check
from oxa.data.problems import Rlvr, Training, add_benchmark
from oxa.data.sources import count, name, read
from oxa.grading.grader import Grader
from oxa.prompts import END_THINK
from oxa.records import schemas
from oxa.records.tables import Writer
from oxa.runtime import files, journal, progress


def run(
    section: Ingest,
    sources: Sources,
    verify: Verify,
    *,
    problems: Path,
    responses: Path,
    rejects: Path,
    contamination: Path,
    log: journal.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the four tables and returns the counts: by teacher source, by RL source, by benchmark and in total.

    After a kill the sources are read anew; only what checking gold answers found is kept, in `scratch`, since that
    takes most of the time.
    """
    of_purpose: tuple[tuple[Purpose, Iterable[Source]], ...] = (
        ("benchmark", section.benchmarks.values()),
        ("teacher", section.teacher),
        ("rlvr", section.rlvr),
    )
    for purpose, named in of_purpose:  # before the first is read: checking a source's answers may take hours
        for source in named:
            check(source, purpose)
    folder = Path(sources.folder)
    with ExitStack() as stack:

        def table(path: Path, schema: pa.Schema) -> Writer:
            return stack.enter_context(Writer(stack.enter_context(files.atomic(path)), schema))

        tables = Tables(
            table(problems, schemas.PROBLEMS),
            table(responses, schemas.RESPONSES),
            table(rejects, schemas.REJECTS),
            table(contamination, schemas.CONTAMINATION),
        )
        grader = stack.enter_context(Grader(verify, memo=scratch / "verdicts"))
        overlap = Overlap(section.decontamination)

        def rows(source: Source, purpose: Purpose, what: str) -> Iterable[Record | Reject]:
            records = read(source, sources, purpose)
            bar = progress.bar(records, total=count(source, folder), desc=f"ingest {what}", unit="row")
            return cast("Iterable[Record | Reject]", bar)

        benchmarks = {
            split: add_benchmark(
                split, name(source), rows(source, "benchmark", split), tables, overlap, grader
            )
            for split, source in section.benchmarks.items()
        }
        training = Training(tables, overlap, grader, section.max_chars)
        for source in section.teacher:
            training.add(name(source), rows(source, "teacher", name(source)))
        training.finish()
        rlvr = Rlvr(tables, training, grader)
        for source in section.rlvr:
            rlvr.add(name(source), rows(source, "rlvr", name(source)))
        rlvr.finish()
    metrics = counts.summary(training.counts, rlvr.counts, benchmarks)
    odd = [
        sentence
        for named in (training.counts, rlvr.counts, benchmarks)
        for source_name, one in named.items()
        for sentence in counts.warnings(source_name, one.oddities)
    ]
    metrics["warnings"] = _warnings(training.counts, verify) + odd
    for sentence in metrics["warnings"]:
        tqdm.write(f"ingest: {sentence}", file=sys.stderr)
    return metrics


def _warnings(teacher: dict[str, Count], verify: Verify) -> list[str]:
    return [
        f"{source}: none of its {count.responses} responses holds a {END_THINK}, so none can be correct; name the "
        "source's columns and its own marks in `mapping`, as `think`, or set verify.require_think to false"
        for source, count in teacher.items()
        if verify.require_think and count.responses and count.without_think == count.responses
    ] + [
        f"{source}: {count.gold_from_response} problems have no gold answer but what their own teacher boxed, so "
        "correct means no more than agreeing with that teacher"
        for source, count in teacher.items()
        if count.gold_from_response
    ]
