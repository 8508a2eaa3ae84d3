"""Where a run comes from: commit, DVC lock, library versions and the pipeline run it belongs to, as MLflow tags.

What cannot be found out (no git, no repository, a library that is not installed) is left out.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from contextlib import suppress
from pathlib import Path

LIBRARIES = ("torch", "transformers", "trl", "datasets", "math-verify", "dvc")


def tags() -> dict[str, str]:
    """Tags of a run that this process makes, in the project's folder."""
    commit, dirty = git()
    lock = Path("dvc.lock")
    named = {
        "oxa.pipeline_run": pipeline_run(),
        "git.commit": commit,
        "git.dirty": dirty,
        "dvc.lock.md5": hashlib.md5(lock.read_bytes(), usedforsecurity=False).hexdigest()
        if lock.exists()
        else None,
        "version.python": platform.python_version(),
        **{f"version.{name}": _version(name) for name in LIBRARIES},
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
    }
    return {name: value for name, value in named.items() if value is not None}


def git() -> tuple[str | None, str | None]:
    """The commit, and whether tracked files differ from it. dvc.lock does not count: every stage changes it."""
    try:
        status = subprocess.run(
            ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", ".", ":!dvc.lock"],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, None
    commit = next((line.split()[2] for line in status if line.startswith("# branch.oid")), "(initial)")
    dirty = any(not line.startswith("#") for line in status)
    return (None, None) if commit == "(initial)" else (commit, str(dirty).lower())


def pipeline_run() -> str | None:
    """What this run of the pipeline is called: by the flow, or else after the `dvc` process that runs the stages."""
    if name := os.environ.get("OXA_PIPELINE_RUN"):
        return name
    if "DVC_STAGE" not in os.environ:  # run by hand
        return None
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = [Path(word).name for word in process.cmdline()[:3]]
            if "dvc" in words:
                started = time.strftime("%Y%m%d-%H%M%S", time.gmtime(process.create_time()))
                return f"dvc-{started}-{process.pid}"
    return None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        return None
