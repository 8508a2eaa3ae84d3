"""What would go wrong on a node, told by one: `oxa doctor --placement`.

The head leaves a token in a folder and holds a lock on it, has the scheduler run this module on a node as it would run
a stage, and compares what the node has seen with what is here.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from flows import node, placement
from oxa.config.operations import Placement
from oxa.errors import ConfigError
from oxa.runtime import files
from oxa.tracking import connection

LIBRARIES = ("torch", "transformers", "trl", "tokenizers", "numpy", "pyarrow")  # that results depend on
PATIENCE = 60.0  # seconds
CLOCK = 2.0  # seconds that two clocks may differ
TOKEN, SEEN = "token", "seen.json"
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "fuse")


def ask(settings: Placement) -> tuple[str, list[str]]:
    """(what a node is, what would go wrong there), each a sentence. Raises ConfigError where no node answers."""
    needs = placement.needed("train@probe", loads_model=True, settings=settings)
    with placement.leased("probe") as folder, (folder / TOKEN).open("w") as token:
        token.write(written := secrets.token_hex(8))
        token.flush()
        fcntl.flock(token, fcntl.LOCK_EX)
        words = [*placement.way("probe", needs, settings), sys.executable, "-m", "flows.probe", str(folder)]
        sent = time.time()
        try:
            scheduler = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise ConfigError(f"{words[0]}: {error.strerror}") from None
        try:
            _, said = scheduler.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            scheduler.terminate()  # it takes back what it has asked for
            _, said = scheduler.communicate()
            raise ConfigError(
                f"no node has answered within {PATIENCE:.0f} s; the scheduler said: {_last(said)}"
            ) from None
        received = time.time()
        if scheduler.returncode == os.EX_CONFIG:
            raise ConfigError(_last(said))
        try:
            seen = json.loads((folder / SEEN).read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"a node could not answer in {Path.cwd()}, which has to be there the same folder as here, its Python "
                f"{sys.executable} included; the scheduler said: {_last(said)}"
            ) from None
    faults = faults_of(seen, written, sent, received, needs.gpus or 0)
    gpus = f"{seen['gpus']} GPUs" if seen["gpus"] != 1 else "a GPU"
    return f"{seen['node']}: Python {seen['python']}, {gpus}, answered in {received - sent:.1f} s", faults


def faults_of(seen: dict[str, Any], token: str, sent: float, received: float, gpus: int) -> list[str]:
    """What differs between `seen` by a node, asked and heard at these times, and what is here, where stages ask for
    `gpus`."""
    name, here = seen["node"], look()
    faults = []
    if seen["token"] != token:
        faults.append(f"{name}: reads other content in {Path.cwd()} than was written here")
    if not seen["locked"]:
        faults.append(
            f"{name}: does not see a lock that is held here; without locks across machines DVC, .work and MLflow's "
            "database are not safe (NFS: mount without nolock or local_lock)"
        )
    faults += [
        f"{name}: {what} {seen[what] or 'missing'}, here {here[what]}"
        for what in ("python", *LIBRARIES)
        if seen[what] != here[what]
    ]
    if seen["gpus"] < gpus:
        faults.append(f"{name}: {seen['gpus']} GPUs are visible to torch where stages ask for {gpus}")
    off = max(sent - seen["time"], seen["time"] - received)
    if off > CLOCK:
        faults.append(
            f"{name}: its clock is {off:.0f} s off, and files made there seem older or newer than they are"
        )
    return faults


def database_faults() -> list[str]:
    """What is wrong with the databases that lie in files, where these are on a network filesystem."""
    faults = []
    scheme, _, path = connection.uri().partition(":///")
    kind = filesystem(Path(path).absolute().parent) if scheme.startswith("sqlite") else ""
    if kind.startswith(SHARED):
        faults.append(
            f"MLflow's database is a file on {kind}; SQLite is slow there, and breaks where locks do: set "
            "MLFLOW_TRACKING_URI to a server or to a file on a local disk"
        )
    kind = "" if "PREFECT_API_URL" in os.environ else filesystem(Path(os.environ["PREFECT_HOME"]).absolute())
    if kind.startswith(SHARED):
        faults.append(
            f"Prefect's database is a file on {kind}; set PREFECT_HOME to a local folder, or PREFECT_API_URL to a "
            "server"
        )
    return faults


def look() -> dict[str, Any]:
    """What this machine is."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def filesystem(path: Path) -> str:
    """Type of the filesystem that a folder lies on."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "")


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return "; ".join(lines[-placement.LAST_WORDS :]) or "nothing"


def answer(folder: Path) -> None:
    """The node's part: writes down what it sees."""
    import torch

    with (folder / TOKEN).open("r+") as file:
        token = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = False
        except OSError:
            locked = True
    seen = {"token": token, "locked": locked, "gpus": torch.cuda.device_count(), "time": time.time()}
    files.write_json(folder / SEEN, look() | seen | {"node": node.place()[2]})


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
