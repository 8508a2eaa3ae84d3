"""A plan as a table for a person and as a document for a machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from oxa.forecast import devices
from oxa.forecast.cost import GIB
from oxa.forecast.forecast import Plan, Step


def text(plan: Plan) -> str:
    """For a person, 100 columns wide."""
    shape, device = plan.shape, plan.machine
    lines = [
        f"Plan of {plan.params}: a forecast; nothing was loaded, run or fetched.",
        "",
        f"student   {plan.student}: {shape.parameters:,} parameters, {shape.layers} layers, {shape.hidden} wide",
        f"devices   {device.number} x {device.name} ({device.origin}): {device.memory / GIB:,.1f} GiB, "
        + ", ".join(f"{kind} {peak / 1e12:,.3g} TFLOP/s" for kind, peak in device.peak.items()),
        f"          taken to reach {plan.utilization:.0%} of that, and to have {devices.USABLE:.0%} of the memory free",
        "",
        f"{'what goes in':<30}{'':>14}  known how",
    ]
    for name, number in plan.numbers.items():
        lines.append(f"{name:<30}{_exact(number.value):>14}  {number.origin}: {number.why}")
    lines += [
        "",
        "rows, tokens and steps of one run; FLOPs and time of all its runs, on so many devices",
        f"{'stage':<19}{'runs':>5}{'rows':>10}{'tokens':>10}{'steps':>8}{'FLOPs':>9}{'time':>10}{'dev.':>6}  known how",
    ]
    for step in plan.steps:
        flops = "-" if step.flops is None else f"{step.flops:.1e}".replace("e+", "e")
        time = "-" if step.hours is None else _time(step.hours)
        lines.append(
            f"{step.name:<19}{step.runs:>5}{_short(step.rows):>10}{_short(step.tokens):>10}"
            f"{_short(step.steps):>8}{flops:>9}{time:>10}{step.devices or '-':>6}  {step.origin}"
        )
    hours = sum(step.hours or 0 for step in plan.steps)
    spent = sum((step.hours or 0) * step.devices for step in plan.steps)
    total = f"{sum(step.flops or 0 for step in plan.steps):.1e}".replace("e+", "e")
    lines.append(
        f"{'one after the other':<52}{total:>9}{_time(hours):>10}        {_time(spent)} of one device"
    )
    lines += [
        "",
        f"memory of one device at the peak, with the longest rows allowed: GiB of {device.memory / GIB:,.1f}",
    ]
    names = ("weights", "gradients", "optimizer", "activations", "logits", "cache")
    heads = ("weights", "gradients", "optimizer", "activations", "logits", "KV cache")
    lines.append(f"{'stage':<19}" + "".join(f"{head:>12}" for head in heads) + f"{'all':>7}  fits")
    for names_of, step in _alike(plan.steps):
        assert step.memory is not None
        cells = "".join(_gib(getattr(step.memory, name), 12) for name in names)
        lines.append(f"{names_of:<19}{cells}{_gib(step.memory.total, 7)}  {'yes' if step.fits else 'NO'}")
    lines += ["", *_verdict(plan)]
    return "\n".join(lines)


def _alike(steps: list[Step]) -> Iterator[tuple[str, Step]]:
    """Steps with memory; the arms of a stage that need the same share a line."""
    for (kind, _), group in itertools.groupby(
        (step for step in steps if step.memory), key=lambda step: (step.name.partition("@")[0], step.memory)
    ):
        same = list(group)
        yield (f"{kind}@*" if len(same) > 1 else same[0].name), same[0]


def _verdict(plan: Plan) -> list[str]:
    lines: list[str] = []
    short = [(name, step) for name, step in _alike(plan.steps) if not step.fits]
    for name, step in short:
        assert step.memory is not None
        room = plan.machine.usable / GIB
        lines.append(
            f"DOES NOT FIT  {name}: {step.memory.total / GIB:,.1f} GiB, with room for {room:,.1f} GiB"
        )
        if step.remedies:
            lines += [
                f"    {'enough:' if i == 0 else '    or:'} {remedy}" for i, remedy in enumerate(step.remedies)
            ]
        else:
            lines.append("    no setting here makes it fit: take a larger device or a smaller student")
    refused = [step for step in plan.steps if step.cannot]
    lines += [f"CANNOT RUN    {step.name}: {step.cannot}" for step in refused]
    for step in plan.steps:
        if step.remark:
            lines.append(f"{step.name}: {step.remark}")
    if plan.fsdp or any("FSDP" in remedy for _, step in short for remedy in step.remedies):
        loaded = 4 * plan.shape.parameters / GIB
        lines += [
            "FSDP: plan.fsdp and plan.devices tell this forecast; what starts it, with N processes, is",
            '    OXA_LAUNCH="accelerate launch --config_file presets/accelerate/fsdp.yaml --num_processes N" dvc repro',
            f"    and every process first loads the weights into main memory: N times {loaded:,.1f} GiB",
        ]
    return lines if short or refused else ["Everything fits.", *lines]


def _exact(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    for size, sign in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:,.3g}{sign}"
    return f"{value:,.0f}"


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:,.0f} s"
    return f"{hours * 60:,.0f} min" if hours < 1 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _gib(value: float, width: int) -> str:
    if not value:
        return f"{'-':>{width}}"
    return f"{value / GIB:>{width},.1f}" if value >= 0.05 * GIB else f"{'<0.1':>{width}}"


def document(plan: Plan) -> dict[str, Any]:
    """For a machine: bytes, FLOPs and hours."""
    steps = []
    for step in plan.steps:
        row = step._asdict()
        if step.memory is not None:
            row["memory"] = step.memory._asdict() | {"total": step.memory.total}
        steps.append(row)
    return {
        "params": plan.params,
        "student": plan.shape._asdict() | {"read_from": plan.student},
        "machine": plan.machine._asdict(),
        "utilization": plan.utilization,
        "numbers": {name: number._asdict() for name, number in plan.numbers.items()},
        "stages": steps,
        "fits": all(step.fits and not step.cannot for step in plan.steps),
    }
