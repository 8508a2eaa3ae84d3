"""What of the records that were read is usable: problems, teacher responses and what is dropped, with the reason."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from oxa import hashes
from oxa.data import counts
from oxa.data.contamination import Overlap
from oxa.data.counts import BenchmarkCount, Count, Tables, oddities
from oxa.data.mappings import Record, Reject
from oxa.errors import DataError
from oxa.grading.grader import Grader
from oxa.prompts import END_THINK

MAX_BATCH_ROWS, MAX_BATCH_CHARS = 4096, 2**25
"""Rows taken together, so that one call checks their gold answers."""


Doubt = tuple[Sequence[str], str, str]
"""Gold answers, a response that holds another answer, finish reason: an item for the grader."""


def add_benchmark(
    split: str, source: str, rows: Iterable[Record | Reject], tables: Tables, overlap: Overlap, grader: Grader
) -> BenchmarkCount:
    """Writes a benchmark's problems and notes them for decontamination."""
    count, problems = BenchmarkCount(), dict[str, Record]()

    def answers_of(key: str) -> Sequence[str]:
        return problems[key].answers if key in problems else ()

    for key, item in _usable(rows, source, count, tables, grader, answers_of):
        if key in problems:
            reason = _repeats(problems[key].answers, item, grader)
            tables.drop(count, source, item.row, reason, f"row {problems[key].row}", item.question)
        else:
            count.problems += 1
            problems[key] = item
            tables.add_problem(key, source, item, split)
            overlap.add(split, key, item.question)
    if count.problems == 0:
        raise DataError(
            f"benchmark {split!r}: no problem is left of {source} ({counts.why([count])}); correct "
            f"ingest.benchmarks.{split}"
        )
    count.guess_rate = guess_rate(problems.values())
    return count


def guess_rate(problems: Collection[Record]) -> float:
    """Share that one solves by always giving the most frequent gold answer of the problem's tier.

    Answers are told apart as texts: 0.5 and 1/2 are two, unless a problem names both.
    """
    tiers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        tiers[problem.tier].update(set(problem.answers))
    return sum(max(answers.values()) for answers in tiers.values()) / len(problems)


@dataclass(slots=True)
class Known:
    """A question that was seen and is in no benchmark."""

    source: str
    row: int
    answers: tuple[str, ...]
    pending: Record | None = None
    """A training problem's first row, without its responses, until it has one and is written."""
    num_responses: int = 0


class Training:
    """Takes the rows of the teacher sources in their order."""

    def __init__(self, tables: Tables, overlap: Overlap, grader: Grader, max_chars: int) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)
        self._tables, self._overlap, self._grader, self._max_chars = tables, overlap, grader, max_chars
        self._known: dict[str, Known] = {}
        self._contaminated: dict[str, str] = {}
        self._texts: set[int] = set()
        """Response ids as numbers, half as large as their texts."""

    def add(self, source: str, rows: Iterable[Record | Reject]) -> None:
        """Takes one source; several of one name share their counts."""
        count = self.counts[source]
        for key, item in _usable(rows, source, count, self._tables, self._grader, self._answers):
            self._add_row(count, source, key, item)

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
            raise DataError(
                f"ingest.teacher: no training problem is left ({counts.why(self.counts.values())}); correct the "
                "sources or their mapping"
            )

    def place(self, key: str) -> str:
        """Source and row of a training problem that was written, else ""."""
        known = self._known.get(key)
        return f"{known.source} row {known.row}" if known is not None and known.pending is None else ""

    def contamination(self, key: str, question: str) -> str:
        """The benchmark problem that this one repeats most, else ""; all of them are listed, once."""
        if key not in self._contaminated:
            hits = self._overlap.hits(key, question)
            for hit in hits:
                self._tables.contamination.add(problem_id=key, question=question, **hit)
            if not hits:
                return ""
            self._contaminated[key] = f"{hits[0]['benchmark']} {hits[0]['benchmark_problem_id']}"
        return self._contaminated[key]

    def _answers(self, key: str) -> Sequence[str]:
        known = self._known.get(key)
        return known.answers if known is not None else ()

    def _add_row(self, count: Count, source: str, key: str, item: Record) -> None:
        reason, detail = "", ""
        known = self._known.get(key)
        if known is not None:
            reason, detail = _repeated(known, item, self._grader)
        elif detail := self.contamination(key, item.question):
            reason = "contaminated"
        else:
            first = replace(item, responses=[])
            known = self._known[key] = Known(source, item.row, _shared(item.answers), first)
        if reason:
            self._tables.drop(count, source, item.row, reason, detail, item.question)
        if known is None or reason == "conflicting_answer":
            count.responses_of_dropped_rows += len(item.responses)
            return
        for text in item.responses:
            self._add_response(count, source, key, item.row, known, text)

    def _add_response(self, count: Count, source: str, key: str, row: int, known: Known, text: str) -> None:
        # across sources, hence without the model's name
        text_key = int(hashes.response_id(key, "teacher", "", text), 16)
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


class Rlvr:
    """Takes the rows of the RL sources in their order, after all training problems."""

    def __init__(self, tables: Tables, training: Training, grader: Grader) -> None:
        self.counts: dict[str, Count] = defaultdict(Count)
        self._tables, self._training, self._grader = tables, training, grader
        self._known: dict[str, Known] = {}

    def add(self, source: str, rows: Iterable[Record | Reject]) -> None:
        """Takes one source; several of one name share their counts."""
        count = self.counts[source]
        for key, item in _usable(rows, source, count, self._tables, self._grader, self._answers):
            reason, detail = self._objection(key, item)
            if reason:
                self._tables.drop(count, source, item.row, reason, detail, item.question)
            else:
                count.problems += 1
                self._known[key] = Known(source, item.row, _shared(item.answers))
                self._tables.add_problem(key, source, item, "rlvr")

    def finish(self) -> None:
        """Raises DataError where there are sources, but no problem is left."""
        if self.counts and not any(count.problems for count in self.counts.values()):
            raise DataError(
                f"ingest.rlvr: no problem is left ({counts.why(self.counts.values())}); correct the sources or "
                "their mapping"
            )

    def _answers(self, key: str) -> Sequence[str]:
        return self._known[key].answers if key in self._known else ()

    def _objection(self, key: str, item: Record) -> tuple[str, str]:
        if place := self._training.place(key):
            return "in_training", place
        if key in self._known:
            return _repeated(self._known[key], item, self._grader)
        overlap = self._training.contamination(key, item.question)
        return ("contaminated", overlap) if overlap else ("", "")


def _usable(
    rows: Iterable[Record | Reject],
    source: str,
    count: Count,
    tables: Tables,
    grader: Grader,
    answers_of: Callable[[str], Sequence[str]],
) -> Iterator[tuple[str, Record]]:
    """Counts the rows and yields those that are usable as they are, with a good gold answer, behind their problem ids.

    `answers_of` gives the gold answers with which a problem came before, none where it did not: what will be asked of
    the grader row by row is asked here for all rows of a batch together, and remembered.
    """
    for batch in _batches(rows):
        records = [item for item in batch if isinstance(item, Record)]
        good = grader.check_golds([item.answers for item in records])
        keys = [
            hashes.problem_id(item.question) if ok else "" for item, ok in zip(records, good, strict=True)
        ]
        doubts, first = list[Doubt](), dict[str, Sequence[str]]()
        for key, record in zip(keys, records, strict=True):
            if key:
                doubts += _doubts(answers_of(key) or first.setdefault(key, record.answers), record)
        if doubts:
            grader.grade(doubts, "comparing answers")
        named = iter(keys)
        for item in batch:
            count.rows += 1
            if isinstance(item, Reject):
                tables.drop(count, source, item.row, item.reason, item.detail, item.text)
                continue
            count.responses_read += len(item.responses)
            count.oddities.update(oddities(item))
            if key := next(named):
                yield key, item
            else:
                count.responses_of_dropped_rows += len(item.responses)
                tables.drop(count, source, item.row, "bad_gold", repr(item.answers), item.question)


def _repeated(known: Known, item: Record, grader: Grader) -> tuple[str, str]:
    """Why a row whose question came before is dropped, and where that was."""
    detail = f"{known.source} row {known.row}, {list(known.answers)} there, {item.answers} here"
    return _repeats(known.answers, item, grader), detail


def _repeats(answers: Sequence[str], item: Record, grader: Grader) -> str:
    """By which rule a row whose question came before, with these answers, is dropped; in doubt, as a repetition."""
    doubts = _doubts(answers, item)
    conflict = doubts and all(one.verdict == "incorrect" for one in grader.grade(doubts, ""))
    return "conflicting_answer" if conflict else "duplicate_problem"


def _doubts(answers: Sequence[str], item: Record) -> list[Doubt]:
    """What has to be graded to know whether the row's answers are these; nothing where they share one."""
    if set(answers) & set(item.answers):
        return []
    return [(answers, f"{END_THINK}\\boxed{{{answer}}}", "stop") for answer in item.answers]


def _shared(answers: list[str]) -> tuple[str, ...]:
    """The same answers; of equal ones, memory holds one."""
    return tuple(map(sys.intern, answers))


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
