"""Section `verify`: how answers are graded, and the verdicts there are."""

from __future__ import annotations

from oxa.config.section import Count, Positive, Section


class Verify(Section):
    """Answers are graded by math-verify in worker processes."""

    timeout: Positive = 10.0
    """Longest processor time for one answer, seconds; then its worker is killed and the verdict is `timeout`."""
    workers: Count | None = None
    """Worker processes; none: one a core."""
    require_think: bool = True
    """An answer counts only behind a </think>. False for sources without reasoning tags."""
