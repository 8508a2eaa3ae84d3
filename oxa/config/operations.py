"""Sections that no result depends on: `flow`, `tracking` and `registry`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from oxa.config.section import Count, Name, Section


class Flow(Section):
    """How `oxa run` walks the graph; no result depends on it."""

    max_workers: Count = 2
    """Stages that run at the same time."""
    accelerators: Count = 1
    """Of these, stages that load a model (`accelerator: true` in dvc.yaml); visible GPUs are shared out among them."""
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
