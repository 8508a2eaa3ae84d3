"""Lineage of registered checkpoints: from a version back to its sources, and from data to the versions made from it.

What is read here was written by oxa/tracking/registration.py; what the workspace holds now is compared with it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from oxa.config.operations import Registry
from oxa.runtime import guard
from oxa.tracking import connection, registration, registry

MIN_PREFIX = 6  # characters of an md5 that may stand for the whole


def of(settings: Registry, version: str) -> str:
    """The chain from a version (number or alias) to its sources, and what of it the workspace still holds."""
    one = registry.find(settings, version)
    now = _Workspace()
    tags = one.tags
    commit = tags.get("git.commit", "none")
    if tags["git.dirty"] == "true":
        commit += ", with uncommitted changes"
    lines = [
        f"{settings.model} {one}",
        f"  checkpoint    {tags['dvc.path']}  {tags['dvc.md5']}  {now.state(tags['dvc.path'], tags['dvc.md5'])}",
        f"  training run  {_run_line(one)}",
        f"  git commit    {commit}",
    ]
    if "promoted.by" in tags:
        lines.append(
            f"  promoted      by {tags['promoted.by']}, {tags['promoted.at']}: {tags['promoted.why']}"
        )
    chain = json.loads(tags["oxa.lineage"])
    steps: dict[str, dict[str, dict[str, str]]] = chain["stages"]
    width = max(len(path) for step in steps.values() for part in step.values() for path in part)
    for name, step in steps.items():
        lines += ["", name]
        for verb, part in (("read", "deps"), ("wrote", "outs")):
            lines += [
                f"  {verb:5}  {path.ljust(width)}  {md5:36}  {now.state(path, md5)}"
                for path, md5 in step[part].items()
            ]
    code: dict[str, str] = chain["code"]
    states = {path: now.state(path, md5) for path, md5 in code.items()}
    moved = [f"{path} {state}" for path, state in states.items() if state != _Workspace.SAME]
    lines += ["", f"code  {len(code)} modules: {', '.join(moved) or _Workspace.SAME}"]
    return "\n".join(lines)


def versions_from(settings: Registry, what: str) -> str:
    """Which versions were made from a path, or from content whose md5 begins with `what` (6 or more), a line each.

    A path inside a folder that DVC knows as one thing stands for the folder.
    """
    path = os.path.relpath(what)
    is_md5 = re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},32}}(\.dir)?", what) is not None
    now = _Workspace()
    rows = []
    for one in registry.versions(settings):
        chain = json.loads(one.tags["oxa.lineage"])
        made_from = chain["code"] | {
            k: v for step in chain["stages"].values() for k, v in step["deps"].items()
        }
        for name, md5 in (made_from | {one.tags["dvc.path"]: one.tags["dvc.md5"]}).items():
            if (is_md5 and md5.startswith(what)) or path == name or path.startswith(f"{name}/"):
                rows.append((str(one), name, md5, now.state(name, md5)))
    if not rows:
        return f"no version of {settings.model} was made from {what}"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    )


class _Workspace:
    """What the workspace holds now; each path is hashed once."""

    SAME = "same as now"

    def __init__(self) -> None:
        self._hashes: dict[str, str | None] = {}

    def state(self, path: str, md5: str) -> str:
        if path not in self._hashes:
            self._hashes[path] = guard.dvc_md5(Path(path)) if Path(path).exists() else None
        now = self._hashes[path]
        return "gone" if now is None else self.SAME if now == md5 else "changed"


def _run_line(version: registry.Version) -> str:
    from mlflow.exceptions import MlflowException

    with connection.opened() as client:
        tags, run = version.tags, None
        if version.run_id:
            try:
                run = client.get_run(version.run_id)
            except MlflowException:
                return f"{version.run_id}, which MLflow does not have any more"
        else:  # one that has reached MLflow since
            experiment = json.loads(tags["oxa.lineage"])["experiment"]
            run = registration.training_run(experiment, tags["oxa.stage"], tags["dvc.path"], tags["dvc.md5"])
    return f"{run.info.run_id}  {run.info.run_name}  {run.info.status}" if run else "none recorded"
