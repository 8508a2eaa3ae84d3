"""What round the project would stop a run in the middle, told before it starts: `oxa doctor` and `oxa run` ask here.

Each check returns a sentence for a person, or None where all is well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from flows import bridge, servers
from oxa.errors import UserError
from oxa.runtime import child, files, guard
from oxa.tracking import connection


def faults() -> Iterator[str]:
    """Every fault that is found without asking a server."""
    for check in (_folder_fault, child.socket_fault, _ownership_fault, bridge.lock_fault):
        if fault := check():
            yield fault


def prefect_fault() -> str | None:
    """What is wrong with the Prefect server that the environment names."""
    if not (url := os.environ.get("PREFECT_API_URL")):
        return None
    try:
        servers.check_answers(url)
    except UserError as error:
        return str(error)
    return None


def _folder_fault() -> str | None:
    for folder in (guard.WORK, connection.FOLDER, servers.FOLDER):
        if folder.exists() and not folder.is_dir():
            return files.misplaced(folder)
    return None


def _ownership_fault() -> str | None:
    """git trusts no repository of another user, and DVC then fails when it first writes a file for git to ignore."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "--git-dir"]
    answer = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False
    )
    if "dubious ownership" not in answer.stderr:
        return None
    named = re.search(
        r"safe\.directory (.+)", answer.stderr
    )  # the repository's folder, quoted where it must be
    folder = named[1] if named else str(Path.cwd())
    return (
        f"{folder}: belongs to another user than this one (id {os.geteuid()}), so that git and DVC refuse it; "
        f"`git config --global --add safe.directory {folder}` has them trust it"
    )
