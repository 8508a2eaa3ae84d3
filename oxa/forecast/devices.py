"""The devices that `oxa plan` plans for: named in the params file, or what this machine has."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from oxa.config.forecast import Plan
from oxa.forecast.cost import GIB

USABLE = 0.95  # of a device's memory: the rest goes to the driver, its libraries and holes between blocks
REPEATS = 3


class Machine(NamedTuple):
    name: str
    origin: str
    number: int
    memory: float
    """Bytes of one device."""
    bandwidth: float
    """Of its memory, bytes/s."""
    peak: dict[str, float]
    """FLOP/s of one device, by type of the numbers."""
    is_gpu: bool

    @property
    def usable(self) -> float:
        return USABLE * self.memory


def of(plan: Plan) -> Machine:
    """The section's device; without one the CUDA devices here, without those the CPU as one device.

    What no data sheet tells is measured within a second: a product of two matrices in either type, and a copy.
    """
    if plan.device is not None:
        named = plan.device
        return Machine(
            named.name,
            "from params",
            plan.devices or 1,
            named.memory * GIB,
            named.bandwidth * 1e12,
            {"bfloat16": named.bfloat16 * 1e12, "float32": named.float32 * 1e12},
            True,
        )
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda")
        found = torch.cuda.get_device_properties(0)
        name, memory, number = found.name, float(found.total_memory), torch.cuda.device_count()
    else:
        device = torch.device("cpu")
        name = f"CPU, {torch.get_num_threads()} threads"
        memory, number = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), 1
    is_gpu = device.type == "cuda"
    size = 8192 if is_gpu else 512
    peak = {kind: _flops(getattr(torch, kind), size, device) for kind in ("bfloat16", "float32")}
    return Machine(
        name,
        "measured",
        plan.devices or number,
        memory,
        _copied(2**30 if is_gpu else 2**26, device),
        peak,
        is_gpu,
    )


def _flops(dtype: Any, size: int, device: Any) -> float:
    import torch

    one = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _seconds(lambda: one @ one, device)


def _copied(size: int, device: Any) -> float:
    """Bytes read and written a second."""
    import torch

    one = torch.ones(size, dtype=torch.uint8, device=device)
    return 2 * size / _seconds(one.clone, device)


def _seconds(work: Any, device: Any) -> float:
    """The fastest of a few runs after one that warms up.

    On CPUs one thread's own processor time, divided by the threads: other work here at the moment does not count.
    """
    import torch

    threads = torch.get_num_threads()
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    times = []
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        for _ in range(REPEATS + 1):
            begun = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - begun)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:]) / (threads if device.type == "cpu" else 1)
