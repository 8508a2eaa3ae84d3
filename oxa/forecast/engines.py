"""What generates text, how many responses at once, and what that takes of a device's memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from oxa.config.generate import Generate
from oxa.forecast import cost, remedies
from oxa.forecast.cost import BYTES, GIB, Memory, Shape
from oxa.forecast.devices import Machine
from oxa.forecast.remedies import halves
from oxa.forecast.workload import Rows

VLLM_WORKING = 2 * GIB  # what vLLM keeps for a step's activations and its graphs, beside weights and cache
VLLM_SHARE = 0.9  # of a GPU, where generate.vllm.memory_share does not say
VLLM_CPU_CACHE = 4 * GIB  # on a CPU


class Engine(NamedTuple):
    memory: Memory | None
    """Of one device; None where it is not ours."""
    together: float
    """Responses at once on one copy of the model."""
    devices: int
    fits: bool
    remedies: tuple[str, ...]
    remark: str = ""


def of(
    section: Generate,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    *,
    prompt: float,
    length: int,
    reused: int,
    dtype: str,
    checkpoint: str,
) -> Engine:
    """The engine that the section names, for responses of up to `length` tokens to prompts of `prompt`.

    `reused`: responses to one prompt. `dtype`: what the built-in sampler loads weights in; `checkpoint`: what they are
    stored in.
    """
    if section.engine == "torch":
        return _builtin(section, shape, rows, machine, prompt, length, reused, dtype)
    if section.url:
        remark = "on the servers of generate.url, taken for one device each"
        return Engine(None, float(section.concurrency), len(section.url), True, (), remark)
    return _vllm(section, shape, rows, machine, prompt, length, checkpoint)


def _builtin(
    section: Generate,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    prompt: float,
    length: int,
    reused: int,
    dtype: str,
) -> Engine:
    """sampler.py, on one device."""

    def needed(batch_size: int) -> Memory:
        batch = min(batch_size, math.ceil(rows.num))
        return cost.sampling_memory(
            shape, batch=batch, prompts=-(-batch // reused), prompt=round(prompt), length=length, dtype=dtype
        )

    size = section.batch_size
    memory = needed(size)
    fits = memory.total <= machine.usable
    options: remedies.Options = {
        "batch": [(f"generate.batch_size: {value}", {"batch_size": value}) for value in halves(size, 1)]
    }
    found = () if fits else remedies.find(needed, lambda **_: machine.usable, {"batch_size": size}, options)
    return Engine(memory, float(min(size, rows.num)), 1, fits, found)


def _vllm(
    section: Generate,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    prompt: float,
    length: int,
    checkpoint: str,
) -> Engine:
    """A vLLM server, which fills its share of the device with weights and cache."""
    server = section.vllm
    number = BYTES.get(checkpoint if server.dtype == "auto" else server.dtype, 2)

    def limit(tensor_parallel: int, memory_share: float | None) -> float:
        if memory_share is None and not machine.is_gpu:
            return number * shape.parameters / tensor_parallel + VLLM_WORKING + VLLM_CPU_CACHE
        return (memory_share or VLLM_SHARE) * machine.memory

    def needed(tensor_parallel: int, memory_share: float | None) -> Memory:
        weights = number * shape.parameters / tensor_parallel
        one = number * shape.cache * (prompt + length) / tensor_parallel
        rest = limit(tensor_parallel, memory_share) - weights - VLLM_WORKING
        return Memory(weights=weights, activations=VLLM_WORKING, cache=math.floor(max(one, rest)))

    settings: dict[str, Any] = {
        "tensor_parallel": server.tensor_parallel,
        "memory_share": server.memory_share,
    }
    memory = needed(**settings)
    fits = memory.total <= limit(**settings)
    options: remedies.Options = {
        "tensor_parallel": [
            (f"generate.vllm.tensor_parallel: {value}", {"tensor_parallel": value})
            for value in (2, 4, 8)
            if value > server.tensor_parallel
        ]
    }
    if (server.memory_share or VLLM_SHARE) < VLLM_SHARE:
        words = f"generate.vllm.memory_share: {VLLM_SHARE}"
        options["memory_share"] = [(words, {"memory_share": VLLM_SHARE})]
    found = () if fits else remedies.find(needed, limit, settings, options)
    held = number * shape.cache / server.tensor_parallel * (prompt + rows.mean)
    together = min(max(1.0, memory.cache / held), section.concurrency / server.data_parallel)
    devices = server.tensor_parallel * server.data_parallel
    remark = f"about {together:,.0f} responses at once on a device"
    return Engine(memory, together, devices, fits, found, remark)
