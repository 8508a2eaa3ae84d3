"""What each stage of a params file will do, before any of it runs: rows, tokens, steps, FLOPs, hours, memory.

No weights are loaded, no stage runs, nothing is fetched. A function a stage; the formulas are in cost.py, rows and
tokens in workload.py.

Hours are the arithmetic's and the memory traffic's alone, at the share of the device's peak that `plan.utilization`
names: whichever of the two takes longer. Loading, tokenising, grading and saving come on top; models of a few million
parameters stay far below that share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oxa.config.base import Checkpoint
from oxa.config.fine_tuning import FineTuning
from oxa.config.params import Params
from oxa.config.rlvr import Rlvr
from oxa.config.section import Sampling
from oxa.data.world import STRATEGIES
from oxa.errors import ConfigError
from oxa.forecast import cost
from oxa.forecast.cost import BYTES, GIB, Memory, Shape
from oxa.forecast.devices import Machine, machine
from oxa.forecast.shape import published, student
from oxa.forecast.workload import Number, Origin, Rows, Workload, generated, workload, worst
from oxa.model.log_probs import TILE
from oxa.training import batches

VLLM_SHARE = 0.9  # of a GPU, where generate.vllm.memory_share does not say
VLLM_CPU_CACHE = 4 * GIB  # on a CPU


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

    @property
    def fits(self) -> bool:
        return self.memory is None or self.memory.total <= self.room


class Plan(NamedTuple):
    params: str
    student: str
    """Where its shape was read."""
    shape: Shape
    machine: Machine
    numbers: dict[str, Number]
    steps: list[Step]


def make(params: Params, where: Path, data: Path | None = None) -> Plan:
    """`where` names the params file; `data` is a folder whose tables are counted as they lie there."""
    shape, origin = student(params)
    device, work = machine(params.plan), workload(params, shape.context, data)
    return Plan(str(where), origin, shape, device, work.numbers, list(_stages(params, shape, device, work)))


def _stages(params: Params, shape: Shape, device: Machine, work: Workload) -> Iterator[Step]:
    """One pass over the graph."""
    origins = [number.origin for number in work.benchmarks.values()]
    yield base(params, shape, device, work)
    teacher = work.responses["teacher"]
    yield Step("ingest", 1, worst([teacher.origin, *origins]), teacher.num)
    for exam in params.gates.values():
        responses = exam.num_problems * (exam.num_samples + len(STRATEGIES))
        rows = generated(params, exam.max_tokens, shape.context, responses)
        yield generation("gates@world", params, shape, device, work, exam, rows, exam.num_samples)
    yield sample(params, shape, device, work)
    for origin, rows in work.responses.items():
        yield Step(f"verify@{origin}", 1, rows.origin, rows.num)
    for origin, rows in work.responses.items():  # at most all of them
        yield score(f"score@{origin}", params, shape, device, work, rows)
    for arm, sets in work.sets.items():
        for objective, rows in sets.items():
            yield Step(f"selection_{objective}@{arm}", 1, rows.origin, rows.num)
    for arm in params.arms:
        yield train(arm, params, shape, device, work)
    yield rlvr(params, shape, device, work)
    section, drawn = params.evaluate, params.evaluate.num_samples_by_benchmark
    num = sum(n.value * drawn.get(name, section.num_samples) for name, n in work.benchmarks.items())
    answers = generated(params, section.max_tokens, shape.context, num, *origins)
    runs, checkpoints = len(params.arms) * len(params.seeds), -(-params.rlvr.steps // params.rlvr.save_every)
    arguments, reused = (params, shape, device, work, section), section.num_samples
    yield generation("evaluate_base", *arguments, answers, reused)
    yield generation("evaluate", *arguments, answers, reused, runs)
    step = generation("evaluate_rlvr", *arguments, answers.times(checkpoints), reused, runs)
    yield step._replace(remark=f"{checkpoints} checkpoints along RL" if checkpoints > 1 else step.remark)
    yield traces(params, shape, device, work)
    yield Step("report", 1, "from params")


def base(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section = params.base
    if isinstance(section, Checkpoint):
        remark = f"takes over {section.model}, {2 * shape.parameters / GIB:,.1f} GiB in bfloat16"
        return Step("base", 1, "from params", remark=remark)
    size, num = section.batch_tokens, section.steps * section.batch_tokens
    longest = min(size, section.max_position_embeddings)
    document = work.responses["teacher"].mean + work.prompt  # much like the teacher's data
    rows = Rows(0, num, num * min(longest, document), longest, "from params")
    flops = cost.training_flops(shape, rows.tokens, rows.squares, rows.tokens, checkpointing=False)
    memory = cost.training_memory(shape, tokens=size, longest=longest, dtype="float32", checkpointing=False)
    # transformers' own loss: all logits in float32, their log-probabilities, both gradients
    memory = memory._replace(logits=4 * 4 * size * shape.vocab)
    return _step("base", device, rows, flops, "float32", memory, devices=1, steps=section.steps)


def sample(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, rows, remark = params.sample, work.responses["self"], ""
    known = published(section.model) if section.model else None
    if known is not None:
        shape = known._replace(context=shape.context)
    elif section.model:
        remark = f"{section.model}'s config.json is not at hand; taken for as large as the student"
    step = generation("sample", params, shape, device, work, section, rows, section.num_samples)
    return step._replace(remark=remark or step.remark)


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
    read = _read(shape, device, rows, prompt, together)
    step = _step(name, device, rows, flops, device.native, memory, runs=runs, devices=devices, read=read)
    return step._replace(room=room, remark=remark)


def score(name: str, params: Params, shape: Shape, device: Machine, work: Workload, rows: Rows) -> Step:
    section = params.score
    if section.condition_on_prompt:
        rows = rows.with_prompt(work.prompt)
    tokens = max(min(section.max_length, shape.context, rows.longest), section.batch_tokens)
    memory = _scoring_memory(shape, device, tokens, section.dtype, section.chunk)
    flops = cost.forward_flops(shape, rows.tokens, rows.squares, rows.tokens)
    return _step(name, device, rows, flops, section.dtype, memory)


def train(arm: str, params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    shared, own = params.train.shared, params.train.arms[arm]
    sets = {objective: rows.with_prompt(work.prompt) for objective, rows in work.sets[arm].items()}
    per_step = {"ce": shared.num_ce, "ul": own.num_ul}
    steps = batches.num_steps(round(sets["ce"].num), shared.num_ce, shared.epochs)
    passes = [rows.times(steps * per_step[objective] / rows.num) for objective, rows in sets.items()]
    longest = max(rows.longest for rows in passes)
    rows = Rows(
        sum(rows.num for rows in sets.values()),
        sum(rows.tokens for rows in passes),
        sum(rows.squares for rows in passes),
        longest,
        worst(rows.origin for rows in passes),
    )
    scored = rows.tokens - work.prompt * sum(rows.num for rows in passes)
    flops = cost.training_flops(
        shape, rows.tokens, rows.squares, scored, checkpointing=shared.gradient_checkpointing
    )
    longest = min(shared.max_length, shape.context, longest)
    memory, cannot = _training_memory(shape, device, shared, sum(per_step.values()), longest)
    runs = len(params.seeds)
    step = _step(f"train@{arm}", device, rows, flops, shared.dtype, memory, runs=runs, steps=steps)
    return step._replace(cannot=cannot)


def rlvr(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, runs = params.rlvr, len(params.arms) * len(params.seeds)
    each = section.num_prompts * section.num_generations
    prompt = min(work.prompt, float(section.max_prompt_tokens))
    rows = generated(params, section.max_tokens, shape.context, section.steps * each)
    whole = rows.with_prompt(prompt)
    learning = cost.training_flops(
        shape, whole.tokens, whole.squares, rows.tokens, checkpointing=section.gradient_checkpointing
    )
    # the reference takes another forward pass, and vLLM's probabilities are corrected for by one of the policy's own
    forwards = (section.kl_weight > 0) + (section.engine != "torch")
    learning += forwards * cost.forward_flops(shape, whole.tokens, whole.squares, rows.tokens)
    writing = cost.generation_flops(
        shape, rows.num, rows.tokens, rows.squares, prompt, reused=section.num_generations
    )
    together = float(-(-each // device.number))
    if section.engine == "torch":
        together = min(together, section.batch_size)
    longest = min(section.max_prompt_tokens + section.max_tokens, shape.context)
    memory, cannot = _training_memory(shape, device, section, each, longest, section.kl_weight > 0)
    if section.engine == "vllm_colocate":  # it holds its share all the time
        memory = memory._replace(cache=section.vllm.memory_share * device.memory)
    elif (
        section.engine == "torch"
    ):  # its cache is gone when the policy learns; autocast: float32 keys, bfloat16 values
        cache = {"float32": 4, "bfloat16": 3}[section.dtype] * shape.cache * together * longest
        if cache > memory.activations + memory.logits:
            memory = memory._replace(activations=0, logits=0, cache=cache)
    read = _read(shape, device, rows, prompt, together)
    step = _step("rlvr", device, rows, learning, section.dtype, memory, runs=runs, steps=section.steps)
    draws = _step("rlvr", device, rows, writing, device.native, memory, runs=runs, read=read)
    flops, hours = (step.flops or 0) + (draws.flops or 0), (step.hours or 0) + (draws.hours or 0)
    return step._replace(flops=flops, hours=hours, cannot=cannot)


def traces(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, arms = params.traces, len(params.arms)
    num = max(map(len, work.sets.values())) * section.num_examples * (1 + 2 * section.num_beside)
    longest = min(section.max_tokens + round(work.prompt), shape.context)
    rows = Rows(num, num * longest, num * longest**2, longest, "from params")
    flops = 2 * cost.forward_flops(shape, rows.tokens, rows.squares, rows.tokens)
    memory = _scoring_memory(shape, device, max(longest, section.batch_tokens), "float32", 2048)
    return _step("traces", device, rows, flops, "float32", memory, runs=arms, devices=1)


def _step(
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


def _read(shape: Shape, device: Machine, rows: Rows, prompt: float, together: float) -> float:
    number = BYTES[device.native]
    return cost.decoding_bytes(shape, rows.tokens, rows.squares, prompt, together=together, number=number)


def _scoring_memory(shape: Shape, device: Machine, tokens: int, dtype: str, chunk: int) -> Memory:
    onednn = dtype == "float32" and device.kind == "cpu"
    return cost.scoring_memory(
        shape, tokens=tokens, dtype=dtype, chunk=chunk, tile=TILE[device.kind], onednn=onednn
    )


def _training_memory(
    shape: Shape,
    device: Machine,
    section: FineTuning | Rlvr,
    size: int,
    longest: int,
    reference: bool = False,
) -> tuple[Memory, str]:
    """Of a step of `size` sequences; and why the stage would refuse to cut it into micro-batches."""
    rows, cannot = min(section.micro_batch_size, size), ""
    try:
        step = f"a step of {size} sequences"
        rows = batches.micro_batch_size(step, size, device.number, section.micro_batch_size)
    except ConfigError as error:
        cannot = str(error)
    memory = cost.training_memory(
        shape,
        tokens=rows * longest,
        longest=longest,
        dtype=section.dtype,
        checkpointing=section.gradient_checkpointing,
        devices=device.number,
        fsdp=device.fsdp and device.number > 1,
        reference=reference,
        triton=device.kind == "cuda",
    )
    return memory, cannot
