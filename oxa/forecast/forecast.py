"""What each stage of a params file will do, before any of it runs: rows, tokens, steps, FLOPs, hours, memory.

No weights are loaded, no stage runs, nothing is fetched. A function a stage, those that write in generating.py, those
that train in learning.py; the formulas are in cost.py and training.py, rows and tokens in workload.py.

Hours are the arithmetic's and the memory traffic's alone, at the share of the device's peak that `plan.utilization`
names: whichever of the two takes longer. Loading, tokenising, grading and saving come on top; models of a few million
parameters stay far below that share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oxa.config.base import Checkpoint
from oxa.config.params import Params
from oxa.data.world import STRATEGIES
from oxa.forecast import cost, training
from oxa.forecast.cost import GIB, Memory, Shape
from oxa.forecast.devices import Machine, machine
from oxa.forecast.generating import evaluate, generation, pass_rate, sample
from oxa.forecast.learning import adapters, rlvr, train, warm_up
from oxa.forecast.shape import student
from oxa.forecast.steps import Step, step_of
from oxa.forecast.workload import Number, Rows, Workload, generated, workload, worst
from oxa.model.log_probs import TILE


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
    numbers = work.numbers | adapters(params, shape)
    return Plan(str(where), origin, shape, device, numbers, list(_stages(params, shape, device, work)))


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
    yield pass_rate(params, shape, device, work)
    if params.sample.warm_up:
        yield warm_up(params.sample.warm_up, params, shape, device, work)
    else:
        yield Step("warm_up", 1, "from params", remark="makes nothing: sample.warm_up is off")
    yield sample(params, shape, device, work)
    for origin, rows in work.responses.items():
        yield Step(f"verify@{origin}", 1, rows.origin, rows.num)
    for origin, rows in work.responses.items():  # at most all of them
        yield score(f"score@{origin}", params, shape, device, work, rows)
    for arm, sets in work.sets.items():
        for objective, rows in sets.items():
            yield Step(f"selection_{objective}@{arm}", 1, rows.origin, rows.num)
    for arm in params.train.after:
        yield Step(f"begin@{arm}", 1, "from params")
    for arm in params.arms:
        step, before = train(arm, params, shape, device, work), params.train.after.get(arm)
        yield (
            step._replace(remark=f"goes on from {before}, and so has seen both's tokens") if before else step
        )
    yield rlvr(params, shape, device, work)
    runs, checkpoints = len(params.arms) * len(params.seeds), -(-params.rlvr.steps // params.rlvr.save_every)
    yield evaluate("evaluate_base", params, shape, device, work)
    yield evaluate("evaluate", params, shape, device, work, runs)
    step = evaluate("evaluate_rlvr", params, shape, device, work, runs, checkpoints)
    yield step._replace(remark=f"{checkpoints} checkpoints along RL" if checkpoints > 1 else step.remark)
    yield predictors(params, shape, device, work)
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
    flops = training.training_flops(shape, rows.tokens, rows.squares, rows.tokens, checkpointing=False)
    memory = training.training_memory(
        shape, tokens=size, longest=longest, dtype="float32", checkpointing=False
    )
    # transformers' own loss: all logits in float32, their log-probabilities, both gradients
    memory = memory._replace(logits=4 * 4 * size * shape.vocab)
    return step_of("base", device, rows, flops, "float32", memory, devices=1, steps=section.steps)


def score(name: str, params: Params, shape: Shape, device: Machine, work: Workload, rows: Rows) -> Step:
    section, alone = params.score, rows
    prompted = rows.with_prompt(work.prompt)
    rows, other = (prompted, alone) if section.condition_on_prompt else (alone, prompted)
    tokens = max(min(section.max_length, shape.context, rows.longest), section.batch_tokens)
    memory = _scoring_memory(shape, device, tokens, section.dtype, section.chunk)
    flops = cost.forward_flops(shape, rows.tokens, rows.squares, rows.tokens)
    if "ifd" in section.measures and name == "score@teacher":
        flops += cost.forward_flops(shape, other.tokens, other.squares, other.tokens)
    return step_of(name, device, rows, flops, section.dtype, memory)


def predictors(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    """Solutions, which the arm reads, and responses of base and arm, which both read."""
    section, runs = params.predictors, len(params.arms) * len(params.seeds)
    if not section.num:
        return Step("predictors", runs, "from params", remark="measures nothing: predictors.num is 0")
    teacher = work.responses["teacher"]
    solutions = teacher.times(min(1.0, section.num / teacher.num))
    each = section.num * params.evaluate.entropy_samples
    drawn = generated(params, params.evaluate.max_tokens, shape.context, each, teacher.origin)
    flops = 0.0
    for rows, passes in ((solutions, 1), (drawn.times(2), 2)):
        whole = rows.with_prompt(work.prompt)
        flops += passes * cost.forward_flops(shape, whole.tokens, whole.squares, rows.tokens)
    longest = max(min(section.max_length, shape.context), section.batch_tokens)
    memory = _scoring_memory(shape, device, longest, device.native, section.chunk)
    memory = memory._replace(weights=2 * memory.weights)
    return step_of("predictors", device, solutions, flops, device.native, memory, runs=runs, devices=1)


def traces(params: Params, shape: Shape, device: Machine, work: Workload) -> Step:
    section, arms = params.traces, len(params.arms)
    num = max(map(len, work.sets.values())) * section.num_examples * (1 + 2 * section.num_beside)
    longest = min(section.max_tokens + round(work.prompt), shape.context)
    rows = Rows(num, num * longest, num * longest**2, longest, "from params")
    flops = 2 * cost.forward_flops(shape, rows.tokens, rows.squares, rows.tokens)
    memory = _scoring_memory(shape, device, max(longest, section.batch_tokens), "float32", 2048)
    return step_of("traces", device, rows, flops, "float32", memory, runs=arms, devices=1)


def _scoring_memory(shape: Shape, device: Machine, tokens: int, dtype: str, chunk: int) -> Memory:
    onednn = dtype == "float32" and device.kind == "cpu"
    return cost.scoring_memory(
        shape, tokens=tokens, dtype=dtype, chunk=chunk, tile=TILE[device.kind], onednn=onednn
    )
