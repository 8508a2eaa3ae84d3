"""Forecasts of the stages that train: the sampler's warm-up, the arms, and RL behind them."""

from __future__ import annotations

import math

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.config.params import Params
from oxa.config.rlvr import Rlvr
from oxa.config.sample import NUM_PROBED, WarmUp
from oxa.errors import ConfigError
from oxa.forecast import cost, training
from oxa.forecast.cost import Memory, Shape
from oxa.forecast.devices import Machine
from oxa.forecast.generating import bytes_read, generation
from oxa.forecast.steps import Step, step_of
from oxa.forecast.workload import Number, Rows, Workload, estimated, generated, worst
from oxa.training import batches


def warm_up(section: WarmUp, params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    """The training, and answers of the base before it and of what it makes behind it."""
    teacher, longest = work.responses["teacher"], min(section.max_length, shape.context)
    rows = estimated(section.num, min(teacher.mean, longest), longest, "from params", teacher.origin)
    step = fine_tuning("warm_up", "sample.warm_up", section, TrainArm(), {"ce": rows}, shape, device, work)
    answers = generated(params, params.sample.max_tokens, shape.context, 2 * NUM_PROBED, step.origin)
    draws = generation("warm_up", params, shape, device, work, params.sample, answers, 1)
    heavier = max(step, draws, key=lambda part: part.memory.total - part.room if part.memory else -math.inf)
    return step._replace(
        origin=worst([step.origin, draws.origin]),
        flops=(step.flops or 0) + (draws.flops or 0),
        hours=(step.hours or 0) + (draws.hours or 0),
        memory=heavier.memory,
        room=heavier.room,
        remark=f"{NUM_PROBED} answers before and behind it are drawn as those of sample",
    )


def train(arm: str, params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    shared, own = params.train.shared, params.train.arms[arm]
    arguments = (work.sets[arm], shape, device, work, len(params.seeds))
    return fine_tuning(f"train@{arm}", "train.shared", shared, own, *arguments)


def fine_tuning(
    name: str,
    key: str,
    shared: FineTuning,
    own: TrainArm,
    responses: dict[str, Rows],
    shape: Shape,
    device: Machine,
    work: Workload,
    runs: int = 1,
) -> Step:
    """On `responses` by objective, without their prompts. `key` names the section `shared`."""
    sets = {objective: rows.with_prompt(work.prompt) for objective, rows in responses.items()}
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
    adapter = _adapter(shape, shared, key)
    checkpointing = shared.gradient_checkpointing
    sizes = (shape, rows.tokens, rows.squares, scored)
    flops = training.training_flops(*sizes, checkpointing=checkpointing, adapter=adapter)
    promoted = passes[0].tokens - work.prompt * passes[0].num  # the CE set's
    match own.ce_loss:
        case "psft":  # what the tokens' probabilities were
            flops += cost.forward_flops(*sizes)
        case "eaft":  # the head once more
            flops += 2 * shape.head * promoted
        case "gem":  # a head of its own
            flops += 8 * shape.head * promoted
    longest, size = min(shared.max_length, shape.context, longest), sum(per_step.values())
    has_reference = own.objective == "kto" and adapter is None
    memory, cannot = _training_memory(shape, device, shared, size, longest, adapter, reference=has_reference)
    step = step_of(name, device, rows, flops, shared.dtype, memory, runs=runs, steps=steps)
    return step._replace(cannot=cannot, lighter=_lighter(shared, key, device))


def rlvr(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, runs = params.rlvr, len(params.arms) * len(params.seeds)
    each = section.num_prompts * section.num_generations
    prompt = min(work.prompt, float(section.max_prompt_tokens))
    rows = generated(params, section.max_tokens, shape.context, section.steps * each)
    whole = rows.with_prompt(prompt)
    adapter, sizes = _adapter(shape, section, "rlvr"), (shape, whole.tokens, whole.squares, rows.tokens)
    checkpointing = section.gradient_checkpointing
    learning = training.training_flops(*sizes, checkpointing=checkpointing, adapter=adapter)
    # the reference takes another forward pass, and rollouts are weighed by one of the policy's own
    weighed = section.rollout_correction != "none" and (
        section.engine != "torch" or section.dtype == "bfloat16"
    )
    forwards = (section.kl_weight > 0) + weighed
    learning += forwards * cost.forward_flops(*sizes)
    writing = cost.generation_flops(
        shape, rows.num, rows.tokens, rows.squares, prompt, reused=section.num_generations
    )
    together = float(-(-each // device.number))
    if section.engine == "torch":
        together = min(together, section.batch_size)
    longest = min(section.max_prompt_tokens + section.max_tokens, shape.context)
    has_reference = section.kl_weight > 0 and adapter is None
    memory, cannot = _training_memory(
        shape,
        device,
        section,
        each,
        longest,
        adapter,
        reference=has_reference,
        exact=section.engine != "torch",
    )
    if section.engine == "vllm_colocate":  # it holds its share all the time
        memory = memory._replace(cache=section.vllm.memory_share * device.memory)
    elif (
        section.engine == "torch"
    ):  # its cache is gone when the policy learns; autocast: float32 keys, bfloat16 values
        cache = {"float32": 4, "bfloat16": 3}[section.dtype] * shape.cache * together * longest
        if cache > memory.activations + memory.logits:
            memory = memory._replace(activations=0, logits=0, cache=cache)
    read = bytes_read(shape, device, rows, prompt, together)
    step = step_of("rlvr", device, rows, learning, section.dtype, memory, runs=runs, steps=section.steps)
    draws = step_of("rlvr", device, rows, writing, device.native, memory, runs=runs, read=read)
    flops, hours = (step.flops or 0) + (draws.flops or 0), (step.hours or 0) + (draws.hours or 0)
    remark = ""
    if section.sampling == "dynamic":
        remark = f"dynamic sampling draws 1 to {1 + section.max_resamplings} times these rollouts"
    lighter = _lighter(section, "rlvr", device)
    return step._replace(flops=flops, hours=hours, cannot=cannot, lighter=lighter, remark=remark)


def adapters(params: Params, shape: Shape) -> dict[str, Number]:
    """Parameters of those that are trained, as they are called in the printout."""
    sections: dict[str, FineTuning | Rlvr | None] = {
        "train.shared": params.train.shared,
        "rlvr": params.rlvr,
        "sample.warm_up": params.sample.warm_up,
    }
    made = {key: _adapter(shape, section, key) for key, section in sections.items() if section}
    return {
        f"parameters of {key}": Number(one.parameters, "from params", "its adapter's")
        for key, one in made.items()
        if one
    }


def _adapter(shape: Shape, section: FineTuning | Rlvr, key: str) -> training.Adapter | None:
    return training.adapter_of(shape, section.adapter, f"{key}.adapter") if section.adapter else None


def _lighter(section: FineTuning | Rlvr, key: str, device: Machine) -> str:
    """What the section could still set."""
    if section.adapter is None:
        return f"{key}.adapter"
    return (
        f"{key}.adapter.quantize: nf4" if section.adapter.quantize is None and device.kind == "cuda" else ""
    )


def _training_memory(
    shape: Shape,
    device: Machine,
    section: FineTuning | Rlvr,
    size: int,
    longest: int,
    adapter: training.Adapter | None,
    *,
    reference: bool,
    exact: bool = False,
) -> tuple[Memory, str]:
    """Of a step of `size` sequences; and why the stage would refuse it, or to start at all."""
    rows, cannot = min(section.micro_batch_size, size), ""
    try:
        step = f"a step of {size} sequences"
        rows = batches.micro_batch_size(step, size, device.number, section.micro_batch_size)
    except ConfigError as error:
        cannot = str(error)
    optimizer = section.optimizer if isinstance(section, FineTuning) else "adamw"
    fsdp = device.fsdp and device.number > 1
    if optimizer != "adamw" or (adapter and adapter.quantized):
        setting = "adapter.quantize: nf4" if optimizer == "adamw" else f"optimizer: {optimizer}"
        if device.kind == "cpu" or fsdp:
            cannot = f"{setting} {'runs on CUDA alone' if device.kind == 'cpu' else 'goes without FSDP (plan.fsdp)'}"
    memory = training.training_memory(
        shape,
        tokens=rows * longest,
        longest=longest,
        dtype=section.dtype,
        checkpointing=section.gradient_checkpointing,
        devices=device.number,
        fsdp=fsdp,
        reference=reference,
        cuda=device.kind == "cuda",
        adapter=adapter,
        exact=exact,
        optimizer=optimizer,
    )
    return memory, cannot
