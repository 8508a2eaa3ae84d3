"""Gate G5: each of its bounds, on the side where it fails."""

from __future__ import annotations

import pytest

from oxa.comparison import room
from oxa.report import wording


@pytest.mark.parametrize(
    ("values", "failing"),
    [
        ((0.5, 0.9, 0.6), []),
        ((0.3, 0.6, 0.36), []),  # ends are included
        ((0.29, 0.9, 0.6), ["sft: pass@1"]),
        ((0.76, 0.9, 0.9), ["sft: pass@1"]),
        ((0.5, 0.59, 0.6), ["sft: pass@4"]),
        ((0.5, 0.96, 0.6), ["sft: pass@4"]),
        ((0.5, 0.9, 0.54), ["sft: what RL adds to pass@1"]),
        ((0.8, 1.0, 0.7), ["sft: pass@1", "sft: pass@4", "sft: what RL adds to pass@1"]),
    ],
)
def test_the_gate_passes_where_there_is_room_in_all_three(
    values: tuple[float, float, float], failing: list[str]
) -> None:
    gate = room.judge("sft", 4, *values)
    assert [what for what, row in gate["rows"].items() if not row["passed"]] == failing
    assert gate["passed"] == (not failing)
    rows = wording.gate_rows({"gates": {"G5": gate}})
    assert [row[0] for row in rows] == ["G5 room"] * 3
    assert rows[0][2:4] == [f"{100 * values[0]:.1f}%", "30 to 75%"]
    assert rows[2][3] == "at least 5 points"
    assert ("gate G5 (room) of the small world fails" in wording.gates({"gates": {"G5": gate}})) == bool(
        failing
    )
