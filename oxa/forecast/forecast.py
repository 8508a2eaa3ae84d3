"""What each stage of a params file will do, before any of it runs: rows, tokens, steps, FLOPs, hours, memory.

No weights are loaded, no stage runs, nothing is fetched. The formulas are cost.py's, how each number is known is
workload.py's matter, the devices are devices.py's.

Hours are the arithmetic's and the memory traffic's alone, at the share of the device's peak that `plan.utilization`
names: whichever of the two takes longer. Loading, tokenising, grading and saving come on top; models of a few million
parameters stay far below that share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from oxa.config.base import Checkpoint, FromScratch
from oxa.config.params import Params
from oxa.config.section import Sampling
from oxa.errors import ConfigError
from oxa.forecast import cost, engines, remedies, workload
from oxa.forecast import devices as machine
from oxa.forecast import shape as student
from oxa.forecast.cost import BYTES, GIB, Memory, Shape
from oxa.forecast.remedies import halves
from oxa.forecast.workload import Number, Origin, Rows, worst
from oxa.model import log_probs
from oxa.training import batches


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
    fits: bool = True
    remedies: tuple[str, ...] = ()
    cannot: str = ""
    """Why it would refuse to start, whatever the memory."""
    remark: str = ""


class Plan(NamedTuple):
    params: str
    student: str
    shape: Shape
    machine: machine.Machine
    utilization: float
    numbers: dict[str, Number]
    steps: list[Step]
    fsdp: bool


def make(params: Params, raw: dict[str, Any], where: Path, *, data: Path, model: Path, lock: Path) -> Plan:
    """`raw` is the params file as it stands, which `lock` is held against; `where` names it."""
    made = workload.Made(raw, data, lock)
    shape, told = student.of(params, model if made.current(("base",)) else None)
    return _Planner(params, shape, told, machine.of(params.plan), made).plan(str(where))


class _Planner:
    """One plan in the making: what its parts share."""

    def __init__(
        self,
        params: Params,
        shape: Shape,
        told: str,
        device: machine.Machine,
        made: workload.Made,
    ) -> None:
        self.params, self.shape, self.told, self.machine = params, shape, told, device
        self.volumes = workload.Volumes(params, made, shape.context)
        self.native = "bfloat16" if device.is_gpu else "float32"  # what weights are loaded in to generate
        self.tile = log_probs.TILE["cuda" if device.is_gpu else "cpu"]

    def plan(self, where: str) -> Plan:
        found, params = self.volumes, self.params
        numbers = {"training problems": found.problems}
        numbers |= {f"problems of {name}": number for name, number in found.benchmarks.items()}
        teacher, each, length = found.teacher, found.responses_each, found.teacher_length
        if teacher.origin == "measured":
            each = Number(
                teacher.num / found.problems.value, "measured", "data/scores/teacher.parquet, correct ones"
            )
            length = Number(teacher.mean, "measured", "data/scores/teacher.parquet")
        numbers["teacher responses a problem"] = each
        numbers["tokens of a teacher response"] = length
        numbers["tokens of a self-sample"] = self._length(found.self_samples(), params.sample.max_tokens)
        numbers["tokens of an answer"] = found.generated_length(params.evaluate.max_tokens)
        numbers["tokens of a rollout"] = found.generated_length(params.rlvr.max_tokens)
        return Plan(
            where,
            self.told,
            self.shape,
            self.machine,
            params.plan.utilization,
            numbers,
            list(self._steps()),
            params.plan.fsdp,
        )

    def _length(self, rows: Rows, limit: int) -> Number:
        if rows.origin == "measured":
            return Number(rows.mean, "measured", "data/responses/self.parquet")
        return self.volumes.generated_length(limit)

    def _steps(self) -> Iterator[Step]:
        params, found = self.params, self.volumes
        yield self._base()
        benchmarks = worst(number.origin for number in found.benchmarks.values())
        yield Step("ingest", 1, worst([found.teacher.origin, benchmarks]), rows=found.teacher.num)
        samples = found.self_samples()
        if params.gates:
            yield self._gates()
        yield self._sample(samples)
        for origin, rows in (("teacher", found.teacher), ("self", samples)):
            yield Step(f"verify@{origin}", 1, rows.origin, rows=rows.num)
        for origin in ("teacher", "self"):
            yield self._score(origin)
        for arm in params.arms:
            sets = found.chosen(arm)
            for objective, rows in sets.items():
                yield Step(f"selection_{objective}@{arm}", 1, rows.origin, rows=rows.num)
        for arm in params.arms:
            yield self._train(arm)
        yield self._rlvr()
        each = len(params.arms) * len(params.seeds)
        kept = -(-params.rlvr.steps // params.rlvr.save_every)
        answers = found.answers()
        several = params.evaluate.num_samples
        for name, runs, times in (
            ("evaluate_base", 1, 1),
            ("evaluate", each, 1),
            ("evaluate_rlvr", each, kept),
        ):
            remark = f"{kept} checkpoints along RL" if times > 1 else ""
            yield self._generating(
                name, runs, answers.times(times), params.evaluate, reused=several, remark=remark
            )
        yield self._traces()
        yield Step("report", 1, "from params")

    # The stages.

    def _base(self) -> Step:
        base, shape = self.params.base, self.shape
        if isinstance(base, Checkpoint):
            size = 2 * shape.parameters / GIB
            return Step(
                "base", 1, "from params", remark=f"takes over {base.model}, {size:,.1f} GiB in bfloat16"
            )
        tokens = base.steps * base.batch_tokens
        longest = min(base.batch_tokens, base.max_position_embeddings)
        # documents much like the teacher's data
        typical = self.volumes.teacher.mean + self.volumes.prompt
        memory = cost.training_memory(
            shape, tokens=base.batch_tokens, longest=longest, dtype="float32", checkpointing=False
        )
        # transformers' own loss: all logits in float32, their log-probabilities, both gradients
        memory = memory._replace(logits=4 * 4 * base.batch_tokens * shape.vocab)
        flops = cost.training_flops(
            shape, tokens, tokens * min(longest, typical), tokens, checkpointing=False
        )
        return self._judged(
            Step(
                "base",
                1,
                "from params",
                tokens=tokens,
                steps=base.steps,
                flops=flops,
                hours=self._hours(flops, "float32", 1),
                devices=1,
                memory=memory,
            )
        )

    def _gates(self) -> Step:
        section = self.params.gates["world"]
        return self._generating("gates@world", 1, self.volumes.gates(), section, reused=section.num_samples)

    def _sample(self, samples: Rows) -> Step:
        section, shape, remark = self.params.sample, self.shape, ""
        if section.model:
            found = student.published(section.model)
            if found is None:
                remark = f"{section.model}'s config.json is not at hand; taken for as large as the student"
            else:
                shape = cost.shape_of(found)._replace(context=shape.context)
        return self._generating(
            "sample", 1, samples, section, reused=section.num_samples, shape=shape, remark=remark
        )

    def _score(self, origin: str) -> Step:
        section, shape = self.params.score, self.shape
        rows = self.volumes.scored(origin)
        if section.condition_on_prompt:
            rows = rows.with_prompt(self.volumes.prompt)
        longest = min(section.max_length, shape.context, rows.longest)
        flops = cost.forward_flops(shape, rows.tokens, rows.squares, rows.tokens)

        def memory(**settings: Any) -> Memory:
            row = min(longest, settings["max_length"])
            return cost.scoring_memory(
                shape,
                tokens=max(row, settings["batch_tokens"]),
                dtype=settings["dtype"],
                chunk=settings["chunk"],
                tile=self.tile,
                onednn=settings["dtype"] == "float32" and not self.machine.is_gpu,
            )

        settings = section.model_dump(include={"max_length", "batch_tokens", "dtype", "chunk"})
        options: remedies.Options = {
            name: [(f"score.{name}: {value}", {name: value}) for value in halves(settings[name], least)]
            for name, least in (("batch_tokens", 1024), ("chunk", 256), ("max_length", 2048))
        }
        if section.dtype == "float32" and self.machine.is_gpu:
            options["dtype"] = [("score.dtype: bfloat16", {"dtype": "bfloat16"})]
        return self._judged(
            Step(
                f"score@{origin}",
                1,
                rows.origin,
                rows=rows.num,
                tokens=rows.tokens,
                flops=flops,
                hours=self._hours(flops, section.dtype, self.machine.number),
                devices=self.machine.number,
                memory=memory(**settings),
                remedies=self._remedies(memory, settings, options),
            )
        )

    def _train(self, arm: str) -> Step:
        shared, own, shape = self.params.train.shared, self.params.train.arms[arm], self.shape
        sets = {
            name: rows.with_prompt(self.volumes.prompt) for name, rows in self.volumes.chosen(arm).items()
        }
        steps = batches.num_steps(round(sets["ce"].num), shared.num_ce, shared.epochs)
        through = [sets["ce"].times(steps * shared.num_ce / sets["ce"].num)]
        if "ul" in sets:
            through.append(sets["ul"].times(steps * own.num_ul / sets["ul"].num))
        tokens, squares = sum(rows.tokens for rows in through), sum(rows.squares for rows in through)
        longest = min(shared.max_length, shape.context, max(rows.longest for rows in through))
        size, cannot = self._micro_batch(shared.num_ce + own.num_ul, shared.micro_batch_size)
        prompts = sum(rows.num for rows in through) * self.volumes.prompt
        flops = cost.training_flops(
            shape, tokens, squares, tokens - prompts, checkpointing=shared.gradient_checkpointing
        )
        memory, settings, options = self._training("train.shared", shared, size, longest, reference=False)
        options["length"] = [
            (f"train.shared.max_length: {value} (longer rows are dropped)", {"longest": value})
            for value in halves(longest, 1024)
        ]
        runs = len(self.params.seeds)
        return self._judged(
            Step(
                f"train@{arm}",
                runs,
                worst(rows.origin for rows in sets.values()),
                rows=sum(rows.num for rows in sets.values()),
                tokens=tokens,
                steps=steps,
                flops=runs * flops,
                hours=self._hours(runs * flops, shared.dtype, self.machine.number),
                devices=self.machine.number,
                memory=memory(**settings),
                remedies=self._remedies(memory, settings, options),
                cannot=cannot,
            )
        )

    def _training(
        self, prefix: str, section: Any, rows: int, longest: int, *, reference: bool
    ) -> tuple[Callable[..., Memory], dict[str, Any], remedies.Options]:
        """Memory of train or rlvr as a function of settings, these, and what could be changed in them."""

        def memory(**settings: Any) -> Memory:
            return cost.training_memory(
                self.shape,
                tokens=settings["rows"] * settings["longest"],
                longest=settings["longest"],
                dtype=settings["dtype"],
                checkpointing=settings["checkpointing"],
                devices=settings["devices"],
                fsdp=settings["fsdp"],
                reference=reference,
                triton=self.machine.is_gpu,
            )

        settings = {
            "rows": rows,
            "longest": longest,
            "dtype": section.dtype,
            "checkpointing": section.gradient_checkpointing,
            "devices": self.machine.number,
            "fsdp": self.params.plan.fsdp and self.machine.number > 1,
        }
        options: remedies.Options = {}
        if not section.gradient_checkpointing:
            options["checkpointing"] = [(f"{prefix}.gradient_checkpointing: true", {"checkpointing": True})]
        if rows > 1:
            options["rows"] = [
                (f"{prefix}.micro_batch_size: {value}", {"rows": value}) for value in halves(rows, 1)
            ]
        if self.machine.is_gpu:
            if section.dtype == "float32":
                options["dtype"] = [(f"{prefix}.dtype: bfloat16", {"dtype": "bfloat16"})]
            held = self.machine.number if settings["fsdp"] else 1
            options["fsdp"] = [
                (f"FSDP over {number} devices", {"fsdp": True, "devices": number})
                for number in (2, 4, 8, 16, 32, 64)
                if number > held
            ]
        return memory, settings, options

    def _micro_batch(self, size: int, at_most: int) -> tuple[int, str]:
        """Its rows, and why there is none."""
        try:
            return batches.micro_batch_size(
                f"a step of {size} sequences", size, self.machine.number, at_most
            ), ""
        except ConfigError as error:
            return min(at_most, size), str(error)

    def _rlvr(self) -> Step:
        section, shape, number = self.params.rlvr, self.shape, self.machine.number
        prompt = min(self.volumes.prompt, float(section.max_prompt_tokens))
        rollouts = self.volumes.rollouts()
        whole = rollouts.with_prompt(prompt)
        longest = min(section.max_prompt_tokens + section.max_tokens, shape.context)
        each = section.num_prompts * section.num_generations
        size, cannot = self._micro_batch(each, section.micro_batch_size)
        forward = cost.forward_flops(shape, whole.tokens, whole.squares, rollouts.tokens)
        # vLLM's probabilities are corrected for by a pass of the policy's own; the reference takes another
        passes = (section.kl_weight > 0) + (section.engine != "torch")
        learning = passes * forward + cost.training_flops(
            shape,
            whole.tokens,
            whole.squares,
            rollouts.tokens,
            checkpointing=section.gradient_checkpointing,
        )
        writing = cost.generation_flops(
            shape, rollouts.num, rollouts.tokens, rollouts.squares, prompt, reused=section.num_generations
        )
        together = float(-(-each // number))
        if section.engine == "torch":
            together = min(together, section.batch_size)
        train, settings, options = self._training(
            "rlvr", section, size, longest, reference=section.kl_weight > 0
        )

        def memory(**settings: Any) -> Memory:
            """vLLM in the process holds its share all the time; the built-in sampler's cache is gone when it learns."""
            learns = train(**settings)
            if section.engine == "vllm_colocate":
                return learns._replace(cache=settings["memory_share"] * self.machine.memory)
            # with autocast, keys are float32 and values bfloat16
            kept = {"float32": 4, "bfloat16": 3}[section.dtype]
            cache = kept * shape.cache * min(together, settings["batch_size"]) * longest
            if section.engine != "torch" or cache <= learns.activations + learns.logits:
                return learns
            return learns._replace(activations=0, logits=0, cache=cache)

        settings |= {"batch_size": section.batch_size, "memory_share": section.vllm.memory_share}
        if section.engine == "torch":
            options.pop("fsdp", None)  # the sampler needs whole weights
            options["batch"] = [
                (f"rlvr.batch_size: {value}", {"batch_size": value})
                for value in halves(section.batch_size, 1)
            ]
        elif section.engine == "vllm_colocate" and section.vllm.memory_share > 0.2:
            options["memory_share"] = [("rlvr.vllm.memory_share: 0.2", {"memory_share": 0.2})]
        runs = len(self.params.arms) * len(self.params.seeds)
        hours = self._hours(learning, section.dtype, number) + self._decoding(
            writing, shape, rollouts, prompt, together, number, self.native
        )
        return self._judged(
            Step(
                "rlvr",
                runs,
                rollouts.origin,
                rows=rollouts.num,
                tokens=rollouts.tokens,
                steps=section.steps,
                flops=runs * (learning + writing),
                hours=runs * hours,
                devices=number,
                memory=memory(**settings),
                remedies=self._remedies(memory, settings, options),
                cannot=cannot,
            )
        )

    def _generating(
        self,
        name: str,
        runs: int,
        rows: Rows,
        section: Sampling,
        *,
        reused: int,
        shape: Shape | None = None,
        remark: str = "",
    ) -> Step:
        """A stage that lets a model write."""
        shape, engine, prompt = shape or self.shape, self.params.generate, self.volumes.prompt
        flops = cost.generation_flops(
            shape,
            rows.num,
            rows.tokens,
            rows.squares,
            prompt,
            reused=1 if engine.engine == "vllm" else reused,
        )
        server = engines.of(
            engine,
            shape,
            rows,
            self.machine,
            prompt=prompt,
            length=min(section.max_tokens, shape.context),
            reused=reused,
            dtype=self.native,
            checkpoint="float32" if isinstance(self.params.base, FromScratch) else "bfloat16",
        )
        hours = runs * self._decoding(
            flops, shape, rows, prompt, server.together, server.devices, self.native
        )
        return Step(
            name,
            runs,
            rows.origin,
            rows=rows.num,
            tokens=rows.tokens,
            flops=runs * flops,
            hours=hours,
            devices=server.devices,
            memory=server.memory,
            fits=server.fits,
            remedies=server.remedies,
            remark=remark or server.remark,
        )

    def _traces(self) -> Step:
        section, shape, params = self.params.traces, self.shape, self.params
        objectives = max(1 + (arm in params.selection.ul) for arm in params.arms)
        num = objectives * section.num_examples * (1 + 2 * section.num_beside)
        longest = min(section.max_tokens + round(self.volumes.prompt), shape.context)
        tokens = num * longest
        flops = 2 * len(params.arms) * cost.forward_flops(shape, tokens, tokens * longest, tokens)
        memory = cost.scoring_memory(
            shape,
            tokens=max(longest, section.batch_tokens),
            dtype="float32",
            chunk=2048,
            tile=self.tile,
            onednn=not self.machine.is_gpu,
        )
        return self._judged(
            Step(
                "traces",
                len(params.arms),
                "from params",
                rows=num,
                tokens=tokens,
                flops=flops,
                hours=self._hours(flops, "float32", 1),
                devices=1,
                memory=memory,
            )
        )

    # What they share.

    def _judged(self, step: Step) -> Step:
        return step._replace(fits=step.memory is None or step.memory.total <= self.machine.usable)

    def _hours(self, flops: float, dtype: str, devices: int) -> float:
        speed = self.machine.peak[dtype] * self.params.plan.utilization * devices
        return flops / speed / 3600

    def _decoding(
        self, flops: float, shape: Shape, rows: Rows, prompt: float, together: float, devices: int, dtype: str
    ) -> float:
        read = cost.decoding_bytes(
            shape, rows.tokens, rows.squares, prompt, together=together, number=BYTES[dtype]
        )
        waiting = read / (self.machine.bandwidth * self.params.plan.utilization * devices) / 3600
        return max(self._hours(flops, dtype, devices), waiting)

    def _remedies(
        self, memory: Callable[..., Memory], settings: dict[str, Any], options: remedies.Options
    ) -> tuple[str, ...]:
        if memory(**settings).total <= self.machine.usable:
            return ()
        return remedies.find(memory, lambda **_: self.machine.usable, settings, options)
