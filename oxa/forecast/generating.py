"""Forecasts of the stages that let a model write."""

from __future__ import annotations

import math

from oxa.config.base import Checkpoint
from oxa.config.params import Params
from oxa.config.section import Sampling
from oxa.forecast import cost
from oxa.forecast.cost import BYTES, GIB, Memory, Shape
from oxa.forecast.devices import Machine
from oxa.forecast.shape import published
from oxa.forecast.steps import Step, step_of
from oxa.forecast.workload import Rows, Workload, generated

PROBLEMS_OF = {"train": "training problems", "rlvr": "problems for RL"}  # as the printout calls them
VLLM_SHARE = 0.9  # of a GPU, where generate.vllm.memory_share does not say
VLLM_CPU_CACHE = 4 * GIB  # on a CPU


def sample(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, rows, remark = params.sample, work.responses["self"], ""
    known = published(section.model) if section.model else None
    if known is not None:
        shape = known._replace(context=shape.context)
    elif section.model:
        remark = f"{section.model}'s config.json is not at hand; taken for as large as the student"
    step = generation("sample", params, shape, device, work, section, rows, section.num_samples)
    return step._replace(remark=remark or step.remark)


def evaluate(
    name: str,
    params: Params,
    shape: Shape,
    device: Machine,
    work: Workload,
    runs: int = 1,
    checkpoints: int = 1,
) -> Step:
    """Answers to grade and those that entropy is measured on, which the checkpoint reads once more."""
    section, drawn = params.evaluate, params.evaluate.num_samples_by_benchmark
    problems = sum(n.value for n in work.benchmarks.values())
    origins = [n.origin for n in work.benchmarks.values()]
    num = sum(n.value * drawn.get(name, section.num_samples) for name, n in work.benchmarks.items())
    num_apart = problems * section.entropy_samples
    rows = generated(params, section.max_tokens, shape.context, num + num_apart, *origins).times(checkpoints)
    step = generation(name, params, shape, device, work, section, rows, section.num_samples, runs)
    apart = rows.times(num_apart / (num + num_apart))
    whole = apart.with_prompt(work.prompt)
    flops = cost.forward_flops(shape, whole.tokens, whole.squares, apart.tokens)
    hours = runs * device.hours(flops, device.native, 1)
    return step._replace(flops=(step.flops or 0) + runs * flops, hours=(step.hours or 0) + hours)


def pass_rate(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section = params.pass_rate
    if not section.splits:
        return Step("pass_rate", 1, "from params", remark="makes nothing: pass_rate.splits is empty")
    num = sum(work.numbers[PROBLEMS_OF[split]].value for split in section.splits)
    origins = [work.numbers[PROBLEMS_OF[split]].origin for split in section.splits]
    answers = generated(params, section.max_tokens, shape.context, num * section.num_samples, *origins)
    known = published(section.model) if section.model else None
    shape = known._replace(context=shape.context) if known else shape
    return generation("pass_rate", params, shape, device, work, section, answers, section.num_samples)


def generation(
    name: str,
    params: Params,
    shape: Shape,
    device: Machine,
    work: Workload,
    section: Sampling,
    rows: Rows,
    reused: int,
    runs: int = 1,
) -> Step:
    """A stage that lets a model write `rows`, `reused` of them to each prompt."""
    engine, server, prompt = params.generate, params.generate.vllm, work.prompt
    length = min(section.max_tokens, shape.context)
    if engine.engine == "torch":
        devices, together, remark, room = 1, float(min(engine.batch_size, rows.num)), "", device.usable
        memory: Memory | None = cost.sampling_memory(
            shape,
            batch=math.ceil(together),
            prompts=-(-math.ceil(together) // reused),
            prompt=round(prompt),
            length=length,
            dtype=device.native,
            kind=device.kind,
        )
    elif engine.url:
        devices, together, memory, room = len(engine.url), float(engine.concurrency), None, 0.0
        remark = "on the servers of generate.url, taken for one device each"
    else:
        weights = "bfloat16" if isinstance(params.base, Checkpoint) else "float32"
        number = BYTES.get(weights if server.dtype == "auto" else server.dtype, 2)
        parts, devices = server.tensor_parallel, server.tensor_parallel * server.data_parallel
        room = (server.memory_share or VLLM_SHARE) * device.memory
        if server.memory_share is None and device.kind == "cpu":
            room = number * shape.parameters / parts + cost.VLLM_WORKING + VLLM_CPU_CACHE
        memory = cost.vllm_memory(shape, number, parts, room=room, longest=prompt + length)
        one = number * shape.cache / parts * (prompt + rows.mean)
        together = min(max(1.0, memory.cache / one), engine.concurrency / server.data_parallel)
        remark = f"about {together:,.0f} responses at once on a device"
    reused = reused if engine.engine == "torch" else 1
    flops = cost.generation_flops(shape, rows.num, rows.tokens, rows.squares, prompt, reused=reused)
    read = bytes_read(shape, device, rows, prompt, together)
    step = step_of(name, device, rows, flops, device.native, memory, runs=runs, devices=devices, read=read)
    return step._replace(room=room, remark=remark)


def bytes_read(shape: Shape, device: Machine, rows: Rows, prompt: float, together: float) -> float:
    number = BYTES[device.native]
    return cost.decoding_bytes(shape, rows.tokens, rows.squares, prompt, together=together, number=number)
