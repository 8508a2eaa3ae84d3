"""What ingestion keeps and drops: its four tables while they are written, and the counts that agree with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from oxa import hashes
from oxa.data.mappings import Record
from oxa.records import tables

ROW_REASONS = (
    "empty_problem",
    "no_answer",
    "multi_turn",
    "system_turn",
    "not_math",
    "bad_value",
    "bad_unicode",
    "bad_gold",
    "contaminated",
    "in_training",
    "conflicting_answer",
    "duplicate_problem",
    "no_response",
)
FAULTS = ("no_answer", "multi_turn", "system_turn", "bad_value")
"""Reasons whose detail tells what to do about the row."""
RESPONSE_REASONS = ("empty_response", "too_long", "duplicate_response")
MAX_REJECT_CHARS = 2000
"""Of a dropped text, this much is kept in the rejects file."""


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
    details: dict[str, str] = field(default_factory=dict)
    """Of each reason, why the first row was dropped for it."""
    oddities: Counter[str] = field(default_factory=Counter)
    """What looks wrong in rows that are read all the same."""


@dataclass
class BenchmarkCount(Count):
    """The same of a benchmark, whose responses are not read."""

    guess_rate: float = 0.0
    """Share that its most frequent answers solve, see oxa/stages/ingest.py."""


def summary(
    teacher: dict[str, Count], rlvr: dict[str, Count], benchmarks: dict[str, BenchmarkCount]
) -> dict[str, Any]:
    """The counts as metrics."""
    numbers = [one.name for one in fields(Count) if one.type == "int"]

    def shown(counts: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
        return {key: _shown(count, names) for key, count in counts.items()}

    total = Count(dropped=sum((count.dropped for count in teacher.values()), Counter()))
    for key in numbers:
        setattr(total, key, sum(getattr(count, key) for count in teacher.values()))
    return {
        "sources": shown(teacher, numbers),
        "rlvr": shown(rlvr, ("rows", "problems")),
        "benchmarks": shown(benchmarks, ("rows", "problems", "guess_rate")),
        "totals": _shown(total, numbers)
        | {"benchmark_problems": sum(count.problems for count in benchmarks.values())},
    }


def why(counts: Collection[Count]) -> str:
    """Where the rows went, for a person: `bad_gold 1, contaminated 3`; and what is wrong with one of them."""
    dropped = sum((count.dropped for count in counts), Counter[str]())
    told = ", ".join(f"{reason} {number}" for reason, number in sorted(dropped.items())) or "no rows"
    details = {reason: text for count in counts for reason, text in count.details.items() if reason in FAULTS}
    commonest = max(details, key=lambda reason: dropped[reason], default="")
    return f"{told}; {details[commonest]}" if commonest else told


def _shown(count: Count, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(count, name) for name in names} | {"dropped": dict(sorted(count.dropped.items()))}


@dataclass(frozen=True)
class Tables:
    """The stage's outputs while they are written."""

    problems: tables.Writer
    responses: tables.Writer
    rejects: tables.Writer
    contamination: tables.Writer

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
            response_id=hashes.response_id(key, "teacher", source, text),
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
        count.details.setdefault(reason, f"row {row}: {detail}")
        shown = text[:MAX_REJECT_CHARS].encode(errors="replace").decode()
        self.rejects.add(source=source, row=row, reason=reason, detail=detail, text=shown)
