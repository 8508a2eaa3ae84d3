"""Sections that no result depends on: `flow`, `tracking` and `registry`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oxa.config.section import Count, Name, Positive, Section


class Needs(Section):
    """What stages take of a cluster; where several name one stage, the later counts, key by key."""

    stages: Annotated[str, Field(min_length=1)]
    """Name or pattern, such as `train@*`."""
    where: Literal["cluster", "head"] | None = None
    """`head`: on this machine, whatever flow.placement says; a stage that needs the network, for example."""
    nodes: Count | None = None
    """Machines; several only for stages that OXA_LAUNCH starts (default 1)."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of each (default: 1 for stages that load a model, where placement.gpus; else 0)."""
    cpus: Count | None = None
    """Cores of each (default: what the scheduler gives)."""
    memory: Positive | None = None
    """Main memory of each, GiB (default: what the scheduler gives)."""
    hours: Positive | None = None
    """Longest time, after which SLURM ends the stage; it is started again and goes on where it was. Ray has none."""


class Placement(Section):
    """Where stages run. No result depends on it."""

    by: Literal["local", "slurm", "ray"] = "local"
    """`local`: on this machine. `slurm`: each by `srun`, in the allocation that the command was started in, or as a job
    of its own. `ray`: each as a task on the Ray cluster of RAY_ADDRESS, or the one that this machine belongs to."""
    flags: list[str] = []
    """Further words for `srun`, such as `--partition=long`."""
    gpus: bool = True
    """Whether stages that load a model ask for a GPU each."""
    needs: list[Needs] = []
    """What stages take; stages that no entry names take what the scheduler gives."""


class Flow(Section):
    """How `oxa run` walks the graph; no result depends on it."""

    max_workers: Count = 2
    """Stages that run at the same time."""
    accelerators: Count = 1
    """Of these, stages that load a model (`accelerator: true` in dvc.yaml); visible GPUs are shared out among them."""
    placement: Placement = Placement()
    """Where stages run: on this machine, or on the nodes of a cluster with the same folder."""
    warm: bool = True
    """Fork stages from one process that has imported their libraries, where there is no GPU (Linux alone); false: each
    imports them itself."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a stage that failed for its surroundings (killed, out of reach) is started again."""
    retry_delay: Annotated[float, Field(ge=0)] = 10.0
    """Wait before that, seconds."""


class Tracking(Section):
    """What MLflow is told. Where it listens is MLFLOW_TRACKING_URI's matter (default: sqlite:///mlflow.db)."""

    enabled: bool = True
    """False: nothing is recorded."""
    experiment: str = "oxa"
    """MLflow experiment of all runs."""


class Registry(Section):
    """Which checkpoint is put forward, and what it must show."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "oxa"
    """Registered model whose versions are the checkpoints."""
    benchmark: Name | None = None
    """Benchmark that decides; None: all of them, every problem counting the same."""
    metric: Annotated[str, Field(pattern=r"^pass@[1-9]\d*$")] = "pass@1"
    """What is compared; pass@k needs k samples a problem."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Champion is who leads the former one by more than this with report.confidence (share of problems)."""
