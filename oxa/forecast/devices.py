"""The devices that `oxa plan` plans for: named in the params file, or what this machine has."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer

from oxa.config.forecast import Plan
from oxa.forecast.cost import GIB

USABLE = 0.95  # of a device's memory: the rest goes to the driver, its libraries and holes between blocks


class Machine(NamedTuple):
    name: str
    origin: str
    kind: str
    """`cuda` or `cpu`."""
    number: int
    memory: float
    """Bytes of one device."""
    bandwidth: float
    """Of its memory, bytes/s."""
    peak: dict[str, float]
    """FLOP/s of one device, by type of the numbers."""
    utilization: float
    """Share of peak and bandwidth that is reached."""
    fsdp: bool
    """Training spreads weights, gradients and moments over the devices."""

    @property
    def usable(self) -> float:
        return USABLE * self.memory

    @property
    def native(self) -> str:
        """The type that weights are loaded in to generate."""
        return "bfloat16" if self.kind == "cuda" else "float32"

    def hours(self, flops: float, dtype: str, devices: int, read: float = 0) -> float:
        """Of the arithmetic or of `read` bytes of memory traffic, whichever takes longer."""
        seconds = max(flops / self.peak[dtype], read / self.bandwidth) / (self.utilization * devices)
        return seconds / 3600


def machine(plan: Plan) -> Machine:
    """The section's device; without one the CUDA devices here, without those the CPU as one device.

    What no data sheet lists is measured within seconds: a product of two matrices in either type, and a copy.
    """
    if plan.device is not None:
        sheet, tera = plan.device, 1e12
        peak = {"bfloat16": sheet.bfloat16 * tera, "float32": sheet.float32 * tera}
        described: tuple[str, str, str, int, float, float] = (
            sheet.name,
            "from params",
            sheet.kind,
            plan.devices or 1,
            sheet.memory * GIB,
            sheet.bandwidth * tera,
        )
        return Machine(*described, peak, plan.utilization, plan.fsdp)
    if torch.cuda.is_available():
        properties, kind, number = torch.cuda.get_device_properties(0), "cuda", torch.cuda.device_count()
        name, memory, size, num_bytes = properties.name, properties.total_memory, 8192, 2**30
    else:
        name, kind, number, size, num_bytes = f"CPU, {torch.get_num_threads()} threads", "cpu", 1, 512, 2**26
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    peak = {}
    for dtype in ("bfloat16", "float32"):
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=kind)
        peak[dtype] = 2 * size**3 / _seconds("x @ x", matrix)
    bandwidth = 2 * num_bytes / _seconds("y.copy_(x)", torch.ones(num_bytes, dtype=torch.uint8, device=kind))
    described = (name, "measured", kind, plan.devices or number, memory, bandwidth)
    return Machine(*described, peak, plan.utilization, plan.fsdp)


def _seconds(statement: str, x: Any) -> float:
    """On CPUs one thread's own processor time, divided by the threads: other work here at the moment does not count."""
    tensors = {
        "x": x,
        "y": x.clone(),
    }  # a copy into new memory on a CPU takes three times as long: it is mapped first
    if x.is_cuda:
        return Timer(statement, globals=tensors).blocked_autorange().median
    timer = Timer(statement, globals=tensors, timer=time.thread_time)
    return timer.blocked_autorange().median / torch.get_num_threads()
