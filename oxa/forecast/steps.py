"""A stage of a plan, and its time."""

from __future__ import annotations

from typing import NamedTuple

from oxa.forecast.cost import Memory
from oxa.forecast.devices import Machine
from oxa.forecast.workload import Origin, Rows


class Step(NamedTuple):
    """A stage, or those of its runs that do the same."""

    name: str
    runs: int
    origin: Origin
    rows: float | None = None
    """Of one run, as tokens and steps are."""
    tokens: float | None = None
    steps: int | None = None
    flops: float | None = None
    """Of all runs, as hours are."""
    hours: float | None = None
    devices: int = 0
    memory: Memory | None = None
    """Of one device."""
    room: float = 0
    """Bytes that it may take there."""
    cannot: str = ""
    """Why it would refuse to start, whatever the memory."""
    remark: str = ""
    lighter: str = ""
    """Setting with which weights and their state take less."""

    @property
    def fits(self) -> bool:
        return self.memory is None or self.memory.total <= self.room


def step_of(
    name: str,
    device: Machine,
    rows: Rows,
    flops: float,
    dtype: str,
    memory: Memory | None,
    *,
    runs: int = 1,
    steps: int | None = None,
    devices: int = 0,
    read: float = 0,
) -> Step:
    """`flops` and `read` are of one run; `devices`: all that the plan has."""
    devices = devices or device.number
    hours = runs * device.hours(flops, dtype, devices, read)
    size = (rows.num or None, rows.tokens, steps)
    return Step(name, runs, rows.origin, *size, runs * flops, hours, devices, memory, device.usable)
