"""Teacher data and benchmarks become `problems` and teacher `responses`; what is dropped is counted and listed.

Rows come one at a time and leave in batches, so that memory holds ids and counts, not texts. What is left out:

rows (a row is one problem of a source, with its responses)
    empty_problem, no_answer, multi_turn, not_math, bad_unicode   unusable as they are (oxa/sources.py)
    bad_gold            its gold answer does not verify against itself; a later row may still bring a good one
    contaminated        a training problem that is also in a benchmark, see `Overlap`
    conflicting_answer  the question came before, with another gold answer; the first one stays
    duplicate_problem   the question came before, with the same gold answer: the row is counted here, and its
                        responses join those of the first row
    no_response         a training problem none of whose rows has a usable response
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
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from oxa import progress, records
from oxa.answers import Grader
from oxa.config import Ingest, Sources, Verify, World
from oxa.errors import DataError
from oxa.overlap import Overlap
from oxa.prompts import END_THINK
from oxa.sources import Record, Reject, name, read

ROW_REASONS = (
    "empty_problem",
    "no_answer",
    "multi_turn",
    "not_math",
    "bad_unicode",
    "bad_gold",
    "contaminated",
    "conflicting_answer",
    "duplicate_problem",
    "no_response",
)
RESPONSE_REASONS = ("empty_response", "too_long", "duplicate_response")
MAX_BATCH_ROWS, MAX_BATCH_CHARS = 4096, 2**25
"""Rows taken together, so that one call checks their gold answers."""
MAX_REJECT_CHARS = 2000
"""Of a dropped text, this much is kept in the rejects file."""


def run(
    section: Ingest,
    sources: Sources,
    world: World,
    verify: Verify,
    *,
    problems: Path,
    responses: Path,
    rejects: Path,
    contamination: Path,
    log: records.Log,
    scratch: Path,
) -> dict[str, Any]:
    """Writes the four tables and returns the counts: by teacher source, by benchmark and in total.

    It takes minutes at most and begins anew after a kill, so nothing is kept in `scratch`.
    """
    folder = Path(sources.folder)
    with ExitStack() as stack:

        def table(path: Path, schema: pa.Schema) -> records.Writer:
            return stack.enter_context(records.Writer(stack.enter_context(records.atomic(path)), schema))

        tables = Tables(
            table(problems, records.PROBLEMS),
            table(responses, records.RESPONSES),
            table(rejects, records.REJECTS),
            table(contamination, records.CONTAMINATION),
        )
        grader = stack.enter_context(Grader(verify))
        overlap = Overlap(section.decontamination)
        benchmarks = {}
        for split, source in section.benchmarks.items():
            rows = read(source, folder=folder, world=world, purpose="benchmark")
            benchmarks[split] = add_benchmark(split, name(source), rows, tables, overlap, grader)
        training = Training(tables, overlap, grader, section.max_chars)
        for source in section.teacher:
            training.add(name(source), read(source, folder=folder, world=world, purpose="teacher"))
        training.finish()
    metrics = summary(training.counts, benchmarks)
    metrics["warnings"] = _warnings(training.counts, verify)
    for sentence in metrics["warnings"]:
        tqdm.write(f"ingest: {sentence}", file=sys.stderr)
    return metrics


@dataclass
class Count:
    """What became of a source's rows."""

    rows: int = 0
    problems: int = 0
    responses_read: int = 0
    responses: int = 0
    responses_of_dropped_rows: int = 0
    without_think: int = 0
    """Of the responses kept, those without a </think>: no answer of theirs counts while verify.require_think is on."""
    gold_from_response: int = 0
    """Of the problems kept, those whose gold answer is what their own teacher boxed."""
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class BenchmarkCount(Count):
    """The same of a benchmark, whose responses are not read."""

    guess_rate: float = 0.0
    """See `guess_rate`."""


def summary(teacher: dict[str, Count], benchmarks: dict[str, BenchmarkCount]) -> dict[str, Any]:
    """The counts as metrics."""
    numbers = [one.name for one in fields(Count) if one.name != "dropped"]

    def shown(count: Count, names: Iterable[str]) -> dict[str, Any]:
        return {key: getattr(count, key) for key in names} | {"dropped": dict(sorted(count.dropped.items()))}

    total = Count(dropped=sum((count.dropped for count in teacher.values()), Counter()))
    for key in numbers:
        setattr(total, key, sum(getattr(count, key) for count in teacher.values()))
    return {
        "sources": {key: shown(count, numbers) for key, count in teacher.items()},
        "benchmarks": {
            key: shown(count, ("rows", "problems", "guess_rate")) for key, count in benchmarks.items()
        },
        "totals": shown(total, numbers)
        | {"benchmark_problems": sum(count.problems for count in benchmarks.values())},
    }


def _warnings(teacher: dict[str, Count], verify: Verify) -> list[str]:
    return [
        f"{source}: none of its {count.responses} responses holds a {END_THINK}, so none can be correct; give the "
        "source's own marks in `mapping.think`, or set verify.require_think to false"
        for source, count in teacher.items()
        if verify.require_think and count.responses and count.without_think == count.responses
    ] + [
        f"{source}: {count.gold_from_response} problems have no gold answer but what their own teacher boxed, so "
        "correct means no more than agreeing with that teacher"
        for source, count in teacher.items()
        if count.gold_from_response
    ]


def add_benchmark(
    split: str, source: str, rows: Iterable[Record | Reject], tables: Tables, overlap: Overlap, grader: Grader
) -> BenchmarkCount:
    """Writes a benchmark's problems and notes them for decontamination."""
    count, found = BenchmarkCount(), dict[str, Record]()
    for batch in _batches(_progress(rows, split)):
        good = iter(grader.check_golds([item.answers for item in batch if isinstance(item, Record)]))
        for item in batch:
            count.rows += 1
            if isinstance(item, Reject):
                tables.drop(count, source, item.row, item.reason, item.detail, item.text)
                continue
            key = records.problem_id(item.question)
            if not next(good):
                tables.drop(count, source, item.row, "bad_gold", repr(item.answers), item.question)
            elif key in found:
                reason = _repeats(found[key].answers, item, grader)
                tables.drop(count, source, item.row, reason, f"row {found[key].row}", item.question)
            else:
                count.problems += 1
                found[key] = item
                tables.add_problem(key, source, item, split)
                overlap.add(split, key, item.question)
    if count.problems == 0:
        why = ", ".join(f"{reason} {number}" for reason, number in sorted(count.dropped.items())) or "no rows"
        raise DataError(
            f"benchmark {split!r}: no problem is left of {source} ({why}); correct ingest.benchmarks.{split}"
        )
    count.guess_rate = guess_rate(found.values())
    return count


def guess_rate(problems: Collection[Record]) -> float:
    """Share that one solves by always giving the most frequent gold answer of the problem's tier.

    Answers are told apart as texts: 0.5 and 1/2 are two, unless a problem names both.
    """
    tiers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        tiers[problem.tier].update(set(problem.answers))
    return sum(max(answers.values()) for answers in tiers.values()) / len(problems)


def _repeats(answers: list[str], item: Record, grader: Grader) -> str:
    """Why a row whose question came before, with these answers, is dropped."""
    if set(answers) & set(item.answers):
        return "duplicate_problem"
    graded = grader.grade([(answers, f"{END_THINK}\\boxed{{{answer}}}", "stop") for answer in item.answers])
    return "duplicate_problem" if any(one.verdict == "correct" for one in graded) else "conflicting_answer"


@dataclass(slots=True)
class Known:
    """A training question that was seen."""

    source: str
    row: int
    answers: list[str]
    contamination: str = ""
    """The benchmark problem that it repeats, if it does."""
    pending: Record | None = None
    """Its first row, until it has a response and is written."""
    num_responses: int = 0


class Training:
    """Takes the rows of the teacher sources in their order."""

    def __init__(self, tables: Tables, overlap: Overlap, grader: Grader, max_chars: int) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)
        self._tables, self._overlap, self._grader, self._max_chars = tables, overlap, grader, max_chars
        self._known: dict[str, Known] = {}
        self._texts: set[str] = set()

    def add(self, source: str, rows: Iterable[Record | Reject]) -> None:
        """Takes one source; several of one name share their counts."""
        count = self.counts[source]
        for batch in _batches(_progress(rows, source)):
            golds = [item.answers for item in batch if isinstance(item, Record)]
            good = iter(self._grader.check_golds(golds))
            for item in batch:
                count.rows += 1
                if isinstance(item, Reject):
                    self._tables.drop(count, source, item.row, item.reason, item.detail, item.text)
                else:
                    self._add_row(count, source, item, next(good))

    def finish(self) -> None:
        """Drops the problems that are still without a response.

        Raises DataError where no problem is left.
        """
        for known in self._known.values():
            if known.pending is not None:
                record, detail = known.pending, "no usable response in any row"
                self._tables.drop(
                    self.counts[known.source],
                    known.source,
                    record.row,
                    "no_response",
                    detail,
                    record.question,
                )
        if not any(count.problems for count in self.counts.values()):
            dropped = sum((count.dropped for count in self.counts.values()), Counter())
            why = ", ".join(f"{reason} {number}" for reason, number in sorted(dropped.items())) or "no rows"
            raise DataError(
                f"ingest.teacher: no training problem is left ({why}); correct the sources or their mapping"
            )

    def _add_row(self, count: Count, source: str, item: Record, has_good_gold: bool) -> None:
        count.responses_read += len(item.responses)
        key = records.problem_id(item.question)
        known = self._known.get(key)
        if not has_good_gold:
            reason, detail = "bad_gold", repr(item.answers)
        elif known is None:
            contamination = self._contamination(key, item)
            reason, detail = ("contaminated", contamination) if contamination else ("", "")
            known = Known(source, item.row, item.answers, contamination, None if reason else item)
            self._known[key] = known
        elif known.contamination:
            reason, detail = "contaminated", known.contamination
        else:
            reason = _repeats(known.answers, item, self._grader)
            detail = f"{known.source} row {known.row}, {known.answers} there, {item.answers} here"
        if reason:
            self._tables.drop(count, source, item.row, reason, detail, item.question)
        if known is None or reason not in ("", "duplicate_problem"):
            count.responses_of_dropped_rows += len(item.responses)
            return
        for text in item.responses:
            self._add_response(count, source, key, item.row, known, text)

    def _contamination(self, key: str, item: Record) -> str:
        """The benchmark problem that this one repeats most, if any; all of them are listed."""
        hits = self._overlap.hits(key, item.question)
        for hit in hits:
            self._tables.contamination.add(problem_id=key, question=item.question, **hit)
        return f"{hits[0]['benchmark']} {hits[0]['benchmark_problem_id']}" if hits else ""

    def _add_response(self, count: Count, source: str, key: str, row: int, known: Known, text: str) -> None:
        # across sources, hence without the model's name
        text_key = records.response_id(key, "teacher", "", text)
        if not text.strip():
            self._tables.drop(count, source, row, "empty_response", key, text)
        elif len(text) > self._max_chars:
            self._tables.drop(count, source, row, "too_long", f"{len(text)} characters", text)
        elif text_key in self._texts:
            self._tables.drop(count, source, row, "duplicate_response", key, text)
        else:
            self._texts.add(text_key)
            if known.pending is not None:
                owner = self.counts[known.source]
                owner.problems += 1
                owner.gold_from_response += known.pending.gold_from_response
                self._tables.add_problem(key, known.source, known.pending, "train")
                known.pending = None
            self._tables.add_response(key, source, known.num_responses, text)
            known.num_responses += 1
            count.responses += 1
            count.without_think += END_THINK not in text


@dataclass(frozen=True)
class Tables:
    """The stage's outputs while they are written."""

    problems: records.Writer
    responses: records.Writer
    rejects: records.Writer
    contamination: records.Writer

    def add_problem(self, key: str, source: str, record: Record, split: str) -> None:
        self.problems.add(
            problem_id=key,
            source=source,
            question=record.question,
            answers=record.answers,
            tier=record.tier,
            split=split,
        )

    def add_response(self, key: str, source: str, index: int, text: str) -> None:
        self.responses.add(
            response_id=records.response_id(key, "teacher", source, text),
            problem_id=key,
            origin="teacher",
            model=source,
            sample_index=index,
            seed=-1,
            text=text,
            num_tokens=-1,
            finish_reason="stop",
            mean_entropy=float("nan"),
        )

    def drop(self, count: Count, source: str, row: int, reason: str, detail: str, text: str) -> None:
        """Counts and lists a dropped row or response."""
        assert reason in ROW_REASONS or reason in RESPONSE_REASONS, reason
        count.dropped[reason] += 1
        shown = text[:MAX_REJECT_CHARS].encode(errors="replace").decode()
        self.rejects.add(source=source, row=row, reason=reason, detail=detail, text=shown)


def _progress(rows: Iterable[Record | Reject], what: str) -> Iterable[Record | Reject]:
    return progress.bar(rows, desc=f"ingest {what}", unit="row")


def _batches(rows: Iterable[Record | Reject]) -> Iterator[list[Record | Reject]]:
    """Groups rows, so that their gold answers are checked together."""
    batch: list[Record | Reject] = []
    chars = 0
    for item in rows:
        batch.append(item)
        chars += sum(map(len, item.responses)) if isinstance(item, Record) else len(item.text)
        if len(batch) >= MAX_BATCH_ROWS or chars >= MAX_BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
