"""What the small world's gates say, as a sentence and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oxa.comparison.measures import Row
from oxa.report.wording import listed

GATES = {"G1": "competence", "G2": "habit", "G3": "headroom", "G4": "no guessing"}


GATE_TITLES = ["gate", "what", "measured", "wanted", "verdict"]


def gates(found: Mapping[str, Any]) -> str:
    """What the gates (oxa/data/gates.py) say in a sentence: "" where none failed, or where they do not apply."""
    failed = [
        f"{name} ({GATES[name]})" for name, gate in found.get("gates", {}).items() if not gate["passed"]
    ]
    if not failed:
        return ""
    return (
        f"Beware: the base fails {listed(failed)} of the small world's gates, so the arms' comparison measures "
        "something else than which data to train on."
    )


def gate_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Gate, what, measured, wanted and verdict of every value."""
    return [
        [f"{name} {GATES[name]}", what, _measured(row), _bounds(row), "passed" if row["passed"] else "FAILED"]
        for name, gate in found["gates"].items()
        for what, row in gate["rows"].items()
    ]


def _measured(row: Row) -> str:
    if row["value"] is None:
        return "nothing to measure"
    if row["margin"] is None:
        return f"{row['value']:,}"
    return f"{100 * row['value']:.1f}% ± {100 * row['margin']:.1f}"


def _bounds(row: Row) -> str:
    low, high = row["low"], row["high"]
    if high is None:
        return f"{low:,} or more"
    if low == high:
        return f"{low}"
    if low == 0:
        return f"at most {100 * high:.0f}%"
    return f"at least {100 * low:.0f}%" if high == 1 else f"{100 * low:.0f} to {100 * high:.0f}%"
