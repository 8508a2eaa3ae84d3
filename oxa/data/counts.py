"""What ingestion keeps and drops: its four tables while they are written, and the counts that agree with them.

Text that looks wrong but can be read is kept as it is, counted by rows, and warned of.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from oxa import hashes
from oxa.data.mappings import Record
from oxa.prompts import END_THINK
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
MARKS = (
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
"""How public data open and close reasoning, beside <think>: `mapping.think` takes each of these pairs."""

_LISTED = (
    'hold a list that became text, `["…", "…"]`, and is read as one text: write it as a list into the file'
)
_ESCAPED = (
    r"hold text that was escaped twice, `\n` for a line's end or `\\frac`: unescape it once in the file"
)
_TWICE = re.compile(r"(?<!\\)\\\\(?:boxed|d?frac|sqrt|text)\s*\{")

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


def oddities(record: Record) -> set[str]:
    """What is odd about this row, as the end of a sentence that begins with the number of rows."""
    texts = [record.question, *record.answers, *record.responses]
    faults = {_LISTED if _was_list(text) else _ESCAPED if _escaped_twice(text) else "" for text in texts}
    marks = (mark for text in record.responses if END_THINK not in text for mark in _marks(text))
    return (faults | set(marks)) - {""}


def warnings(source: str, counts: Counter[str]) -> list[str]:
    """A sentence for each kind of oddity that a source has."""
    return [f"{source}: {number} rows {odd}" for odd, number in sorted(counts.items())]


def _was_list(text: str) -> bool:
    text = text.strip()
    if text.startswith("['") and text.endswith("']"):  # as Python writes it
        return True
    if not (text.startswith(('["', '[{"')) and text.endswith("]")):
        return False
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _escaped_twice(text: str) -> bool:
    return ("\\n\\n" in text and "\n" not in text) or _TWICE.search(text) is not None


def _marks(text: str) -> list[str]:
    return [
        f"mark their reasoning with {opening} and {closing}: name the columns in `mapping`, and "
        f"`think: ['{opening}', '{closing}']`"
        for opening, closing in MARKS
        if closing in text
    ]


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
