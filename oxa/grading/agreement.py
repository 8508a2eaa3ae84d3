"""How well the checker agrees with answers of known verdict, by kind: `oxa verify --table FILE`.

A row of the file is {"gold": [answer, …], "response": text, "expected": "correct" or "incorrect", "kind": name}.
A right answer that is not accepted costs a good example or a reward; it is worse where it is called incorrect, which is
evidence of a wrong pattern. A wrong answer that is accepted is worst.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.grading.grader import Grader


class Case(NamedTuple):
    golds: list[str]
    response: str
    right: bool
    kind: str


TITLES = ("kind", "rows", "as expected", "right, not accepted", "of these incorrect", "wrong, accepted")


def read(path: Path) -> list[Case]:
    """The cases of a JSON Lines file; DataError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    cases = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            golds = [row["gold"]] if isinstance(row["gold"], str) else list(map(str, row["gold"]))
            right = {"correct": True, "incorrect": False}[row["expected"]]
            cases.append(Case(golds, str(row["response"]), right, str(row.get("kind", "all"))))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{path}: line {number}: expected {{"gold": [text, …], "response": text, "expected": "correct" or '
                '"incorrect", "kind": text}'
            ) from None
    if not cases:
        raise DataError(f"{path}: holds no rows")
    return cases


def verdicts(cases: Sequence[Case], section: Verify) -> list[str]:
    """The checker's verdicts."""
    with Grader(section) as grader:
        graded = grader.grade([(case.golds, case.response, "stop") for case in cases])
    return [one.verdict for one in graded]


def rows(cases: Sequence[Case], given: Sequence[str]) -> list[tuple[str, ...]]:
    """A row a kind in the order of the file, and one of all, under TITLES."""
    kinds = list(dict.fromkeys(case.kind for case in cases))
    table = []
    for kind in [*kinds, "all"] if kinds != ["all"] else kinds:
        among = [pair for pair in zip(cases, given, strict=True) if kind in (pair[0].kind, "all")]
        missed = [verdict for case, verdict in among if case.right and verdict != "correct"]
        accepted = sum(verdict == "correct" for case, verdict in among if not case.right)
        agreed = len(among) - len(missed) - accepted
        counts = (len(among), agreed, len(missed), missed.count("incorrect"), accepted)
        table.append((kind, *map(str, counts)))
    return table


def table(path: Path, section: Verify) -> str:
    """The agreement by kind, as a table for the terminal, and what was not as expected."""
    cases = read(path)
    given = verdicts(cases, section)
    lines = [TITLES, *rows(cases, given)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    for number, (case, verdict) in enumerate(zip(cases, given, strict=True), 1):
        if (verdict == "correct") != case.right:
            tail = case.response.rpartition("</think>")[2].strip()
            expected = "correct" if case.right else "incorrect"
            text.append(f"line {number}: {verdict}, expected {expected}: {case.golds} against {tail!r}")
    return "\n".join(text)
