"""How a checkpoint enters the model registry: by path and hash, with the chain of stages that it was made from.

What a version's tags say is told in oxa/tracking/registry.py.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from oxa.config.operations import Registry
from oxa.errors import DataError
from oxa.runtime import guard
from oxa.tracking import connection
from oxa.tracking.registry import Version, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


MADE_WITH = ("dvc.lock", "params.yaml")  # of which a version has the md5 at its registration


class Step(Protocol):
    """A stage as dvc.lock has it: path -> DVC md5, and the values of params.yaml that it ran with."""

    @property
    def deps(self) -> Mapping[str, str]: ...
    @property
    def outs(self) -> Mapping[str, str]: ...
    @property
    def params(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Checkpoint:
    """A trained checkpoint as dvc.lock names it."""

    stage: str
    arm: str
    seed: int
    path: str
    md5: str


def register(
    settings: Registry,
    checkpoint: Checkpoint,
    locked: Mapping[str, Step],
    *,
    commit: str | None,
    dirty: bool,
    experiment: str,
) -> tuple[Version, bool]:
    """Registers the checkpoint, whose files lie in the workspace, and says whether it is new.

    The same content of the same stage is not registered twice. The training run is found by what it wrote, in
    `experiment`; without one the version has none. Raises DataError as `chain` does and UserError where MLflow cannot
    be reached.
    """
    with connection.opened() as client:
        for version in versions(settings):
            if (version.tags["oxa.stage"], version.tags["dvc.md5"]) == (checkpoint.stage, checkpoint.md5):
                return version, False
        steps = chain(locked, checkpoint.stage)
        run = training_run(experiment, checkpoint.stage, checkpoint.path, checkpoint.md5)
        _ensure_model(client, settings.model)
        made = client.create_model_version(
            settings.model,
            source=f"dvc://{quote(checkpoint.path)}?md5={checkpoint.md5}",
            run_id=run.info.run_id if run else None,
            tags=_tags(checkpoint, steps, commit, dirty, experiment),
        )
        return Version.of(made), True


def chain(locked: Mapping[str, Step], stage: str) -> dict[str, Step]:
    """The stage and all upstream of it, the stage itself first and each before what it was made from.

    Raises DataError where a stage read other content than the stage that makes it has left since: what is in the
    workspace is then not what the checkpoint was made from.
    """
    upstream: dict[str, list[str]] = {}
    todo = [stage]
    while todo:
        name = todo.pop()
        if name in upstream:
            continue
        upstream[name] = []
        for path, md5 in locked[name].deps.items():
            if _is_code(path):
                continue
            makers = [
                other for other, step in locked.items() if any(_overlap(out, path) for out in step.outs)
            ]
            # dvc.lock keeps stages that are no longer in dvc.yaml: any that left this content will do
            fitting = [other for other in makers if locked[other].outs.get(path, md5) == md5]
            if makers and not fitting:
                raise DataError(
                    f"{name} was made from another {path} than {makers[0]} has made since; `oxa run` makes it again"
                )
            upstream[name] += fitting[:1]
        todo += upstream[name]
    order = list(TopologicalSorter(upstream).static_order())
    return {name: locked[name] for name in reversed(order)}


def _tags(
    checkpoint: Checkpoint, steps: Mapping[str, Step], commit: str | None, dirty: bool, experiment: str
) -> dict[str, str]:
    stages = {
        name: {"deps": {p: m for p, m in step.deps.items() if not _is_code(p)}, "outs": dict(step.outs)}
        for name, step in steps.items()
    }
    code = {path: md5 for step in steps.values() for path, md5 in step.deps.items() if _is_code(path)}
    read = {path: md5 for step in stages.values() for path, md5 in step["deps"].items()}
    files = guard.Fingerprint.of(Path(checkpoint.path)).content()
    lineage: dict[str, Any] = {"stages": stages, "code": code, "files": files, "experiment": experiment}
    lineage["params"] = {name: step.params for name, step in steps.items() if step.params}
    lineage["made_with"] = {name: guard.dvc_md5(Path(name)) for name in MADE_WITH if Path(name).is_file()}
    return {
        # first, since a path called `md5` does not count
        **{key: md5 for path, md5 in sorted(read.items()) if _is_key(key := f"dvc.{path}")},
        "oxa.arm": checkpoint.arm,
        "oxa.seed": str(checkpoint.seed),
        "oxa.stage": checkpoint.stage,
        "dvc.path": checkpoint.path,
        "dvc.md5": checkpoint.md5,
        "git.dirty": str(dirty).lower(),
        **({"git.commit": commit} if commit else {}),
        "oxa.lineage": json.dumps(lineage),
    }


def _is_code(path: str) -> bool:
    return path.startswith("oxa/")


def _is_key(key: str) -> bool:
    """Whether MLflow takes it as a tag's key; what it does not is still in oxa.lineage."""
    return len(key) <= 250 and re.fullmatch(r"[/\w.\- :]*", key) is not None and os.path.normpath(key) == key


def _overlap(a: str, b: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


def training_run(experiment: str, stage: str, path: str, md5: str) -> Run | None:
    """The newest run of this stage that wrote this content, if tracking has one."""
    runs = connection.find_runs(experiment, {"oxa.stage": stage, f"dvc.out.{path}": md5})
    return max(runs, key=lambda run: run.info.start_time, default=None)


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="OXA checkpoints, by reference: DVC holds the files."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
