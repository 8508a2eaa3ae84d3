"""Gate G5 of the small world: whether plain fine-tuning, and RL after it, leave the arms room to differ in.

The other gates (oxa/data/gates.py) are measured on the base; this one on the arm that all others are compared with.
"""

from __future__ import annotations

from typing import Any

BOUNDS: dict[str, tuple[float, float | None]] = {
    "pass_at_1": (0.3, 0.75),
    "pass_at_k": (0.6, 0.95),
    "gain": (0.05, None),
}
"""What each value must lie in, ends included; fixed before any arm but `sft` was trained with the settings that they
chose."""


def judge(arm: str, num_samples: int, pass_at_1: float, pass_at_k: float, after_rl: float) -> dict[str, Any]:
    """The gate, in the form of the others: {"passed": …, "rows": {what: {"value", "margin", "low", "high", "passed"}}}.

    `pass_at_k` is at the largest k, `num_samples`; `after_rl` is pass@1 there. All are shares of the problems.
    """
    values = {
        f"{arm}: pass@1": ("pass_at_1", pass_at_1),
        f"{arm}: pass@{num_samples}": ("pass_at_k", pass_at_k),
        f"{arm}: what RL adds to pass@1": ("gain", after_rl - pass_at_1),
    }
    rows = {what: _row(value, *BOUNDS[name]) for what, (name, value) in values.items()}
    return {"passed": all(row["passed"] for row in rows.values()), "rows": rows}


def _row(value: float, low: float, high: float | None) -> dict[str, Any]:
    passed = low <= value and (high is None or value <= high)
    return {"value": value, "margin": None, "low": low, "high": high, "passed": passed}
