"""A plan as a table for a person and as a document for a machine."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from oxa.forecast.cost import GIB, Memory
from oxa.forecast.devices import USABLE
from oxa.forecast.forecast import Plan
from oxa.forecast.steps import Step

PARTS = {name: "KV cache" if name == "cache" else name for name in Memory._fields}
DECIDING = {
    "base": "base.batch_tokens",
    "score": "score.batch_tokens, score.chunk or score.max_length",
    "warm_up": "sample.warm_up.micro_batch_size, sample.warm_up.max_length or generate.batch_size, or set "
    "sample.warm_up.gradient_checkpointing: true",
    "train": "train.shared.micro_batch_size or train.shared.max_length, or set "
    "train.shared.gradient_checkpointing: true",
    "rlvr": "rlvr.micro_batch_size, rlvr.batch_size, rlvr.vllm.memory_share or rlvr.max_tokens, or set "
    "rlvr.gradient_checkpointing: true",
    "predictors": "predictors.batch_tokens or predictors.max_length",
    "traces": "traces.batch_tokens or traces.max_tokens",
}
"""By stage, what makes its batches smaller; all others generate."""
GENERATING = (
    "generate.batch_size (engine torch), or raise generate.vllm.tensor_parallel or generate.vllm.memory_share"
)
FSDP = "spread them by FSDP (plan.fsdp, plan.devices), "
VLLM = "raise generate.vllm.tensor_parallel (engine vllm), "


def text(plan: Plan) -> str:
    """For a person, about 100 columns wide."""
    shape, device = plan.shape, plan.machine
    wide = max(len("one after the other"), *(len(step.name) for step in plan.steps))
    peaks = ", ".join(f"{kind} {peak / 1e12:,.3g} TFLOP/s" for kind, peak in device.peak.items())
    lines = [
        f"Plan of {plan.params}: a forecast; nothing was loaded, run or fetched.",
        "",
        f"student   {plan.student}: {shape.parameters:,} parameters, {shape.layers} layers, {shape.hidden} wide",
        f"devices   {device.number} x {device.name} ({device.origin}): {device.memory / GIB:,.1f} GiB, {peaks}",
        f"          taken to reach {device.utilization:.0%} of that, and to have {USABLE:.0%} of the memory free",
        "",
        f"{'what goes in':<30}{'':>14}  known how",
    ]
    for name, number in plan.numbers.items():
        value = f"{number.value:,.1f}".removesuffix(".0")
        lines.append(f"{name:<30}{value:>14}  {number.origin}: {number.why}")
    lines += [
        "",
        "rows, tokens and steps of one run; FLOPs and time of all its runs, on so many devices",
        f"{'stage':<{wide}}{'runs':>5}{'rows':>10}{'tokens':>10}{'steps':>8}{'FLOPs':>9}{'time':>10}{'dev.':>6}"
        "  known how",
    ]
    for step in plan.steps:
        lines.append(
            f"{step.name:<{wide}}{step.runs:>5}{_short(step.rows):>10}{_short(step.tokens):>10}{_short(step.steps):>8}"
            f"{_power(step.flops):>9}{_time(step.hours):>10}{step.devices or '-':>6}  {step.origin}"
        )
    hours = sum(step.hours or 0 for step in plan.steps)
    flops = sum(step.flops or 0 for step in plan.steps)
    each = sum((step.hours or 0) * step.devices for step in plan.steps)
    lines += [
        f"{'one after the other':<{wide + 33}}{_power(flops):>9}{_time(hours):>10}        {_time(each)} of one device",
        "",
        f"memory of one device at the peak, with the longest rows allowed: GiB of {device.memory / GIB:,.1f}",
        f"{'stage':<{wide}}" + "".join(f"{part:>12}" for part in PARTS.values()) + f"{'all':>7}  fits",
    ]
    short = []
    for name, step, memory in _alike(plan.steps):
        cells = "".join(f"{_gib(value):>12}" for value in memory)
        lines.append(f"{name:<{wide}}{cells}{_gib(memory.total):>7}  {'yes' if step.fits else 'NO'}")
        if not step.fits:
            room = f"{memory.total / GIB:,.1f} GiB, with room for {step.room / GIB:,.1f}"
            short.append(f"DOES NOT FIT  {name}: {room}: {_advice(step, memory, device.kind)}")
    short += [f"CANNOT RUN    {step.name}: {step.cannot}" for step in plan.steps if step.cannot]
    lines += ["", *(short or ["Everything fits."])]
    lines += [f"{step.name}: {step.remark}" for step in plan.steps if step.remark]
    if device.fsdp or any("FSDP" in line for line in short):
        lines += [
            "FSDP: plan.fsdp and plan.devices set this forecast alone; what starts it, with N processes, is",
            '    OXA_LAUNCH="accelerate launch --config_file presets/accelerate/fsdp.yaml --num_processes N" dvc repro',
            "    and every process first loads the weights into main memory: N times "
            f"{4 * shape.parameters / GIB:,.1f} GiB",
        ]
    return "\n".join(lines)


def _alike(steps: list[Step]) -> list[tuple[str, Step, Memory]]:
    """Steps with memory; the arms of a stage that need the same share a line."""
    rows = [(step.name.partition("@")[0], step.memory, step) for step in steps if step.memory]
    groups = [(key, list(group)) for key, group in groupby(rows, key=lambda row: row[:2])]
    return [
        (f"{kind}@*" if len(group) > 1 else group[0][2].name, group[0][2], memory)
        for (kind, memory), group in groups
    ]


def _advice(step: Step, memory: Memory, kind: str) -> str:
    """The setting that decides: no smaller batch helps where weights, gradients and moments are too much."""
    stage = step.name.partition("@")[0]
    if memory.state <= step.room:
        return f"lower {DECIDING.get(stage, GENERATING)}"
    if stage in ("train", "rlvr"):
        spread = FSDP if kind == "cuda" else ""  # accelerate has none for CPUs
    elif stage == "warm_up":
        spread = ""
    else:
        spread = "" if stage in DECIDING else VLLM
    lighter = f"set {step.lighter}, " if step.lighter else ""
    return f"weights and their state decide: {lighter}{spread}take larger devices or a smaller student"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:,.3g}{sign}"
    return f"{value:,.0f}"


def _power(flops: float | None) -> str:
    return "-" if flops is None else f"{flops:.1e}".replace("e+", "e")


def _time(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 1 / 60:
        return f"{hours * 3600:,.0f} s"
    return f"{hours * 60:,.0f} min" if hours < 1 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _gib(value: float) -> str:
    return "-" if not value else f"{value / GIB:,.1f}" if value >= 0.05 * GIB else "<0.1"


def document(plan: Plan) -> dict[str, Any]:
    """For a machine: bytes, FLOPs and hours."""
    steps = []
    for step in plan.steps:
        memory = step.memory and step.memory._asdict() | {"total": step.memory.total}
        steps.append(step._asdict() | {"memory": memory, "fits": step.fits})
    return {
        "params": plan.params,
        "student": {name: value for name, value in plan.shape._asdict().items() if name != "linears"}
        | {"read_from": plan.student},
        "machine": plan.machine._asdict(),
        "numbers": {name: number._asdict() for name, number in plan.numbers.items()},
        "stages": steps,
        "fits": all(step.fits and not step.cannot for step in plan.steps),
    }
