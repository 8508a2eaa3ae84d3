"""A stage on its node, `python -m flows.node FOLDER STAGE …`: see flows/placement.py, which is the other end.

Runs the stage as long as the head's lease lasts, and leaves its exit code beside it. Of a stage on several nodes each
runs this; the first node's word counts. OXA_LAUNCH may hold @nodes, @rank and @head (the first node's host name), which
are filled in here.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from flows.placement import BEAT, EXIT, LEASE, VARIABLE
from oxa.runtime import files
from oxa.runtime.child import Child
from oxa.tracking import sender

STILL = (
    120.0  # seconds after which a lease that does not change has ended; NFS may show a change a minute late
)
HEAD = "head"
PLACE = "OXA_PLACE"  # NUMBER/NODES/NAME of this node among the stage's; without it SLURM's variables say it


def run(folder: Path, words: Sequence[str]) -> int:
    """Runs the stage; its exit code, or EX_TEMPFAIL where the head let go of it."""
    rank, nodes, name = place()
    environment = {**os.environ, VARIABLE: "local", sender.ELSEWHERE: "1"}
    if "OXA_LAUNCH" in environment:
        values = {"@nodes": str(nodes), "@rank": str(rank), "@head": _first_host(folder, rank, nodes)}
        for word, value in values.items():
            environment["OXA_LAUNCH"] = environment["OXA_LAUNCH"].replace(word, value)
    begun = time.time()
    with Child(
        [sys.executable, "-m", "flows.cli", *words], env=environment, stdin=subprocess.DEVNULL
    ) as stage:
        code = _watched(stage, folder / LEASE)
    if rank == 0 and folder.is_dir():
        files.write_json(folder / EXIT, {"code": code, "node": name, "begun": begun, "ended": time.time()})
    return code


def place() -> tuple[int, int, str]:
    """This node's number among the stage's, how many these are, and its name."""
    if PLACE in os.environ:
        rank, nodes, name = os.environ[PLACE].split("/", 2)
        return int(rank), int(nodes), name
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return int(os.environ.get("SLURM_PROCID") or 0), int(os.environ.get("SLURM_STEP_NUM_NODES") or 1), name


def _watched(stage: Child, lease: Path) -> int:
    """Waits for the stage, and ends it where the lease ends before."""
    last, since = _read(lease), time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return stage.wait(BEAT)
        if (now := _read(lease)) != last:
            last, since = now, time.monotonic()
        if now is None or time.monotonic() - since > STILL:
            stage.end()
            print("the head has let go of this stage", file=sys.stderr)
            return os.EX_TEMPFAIL


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _first_host(folder: Path, rank: int, nodes: int) -> str:
    """The first node's, which tells it to the others."""
    if nodes == 1:
        return "localhost"
    if rank == 0:
        with files.atomic(folder / HEAD) as temporary:
            temporary.write_text(socket.gethostname())
    while (host := _read(folder / HEAD)) is None and folder.is_dir():
        time.sleep(0.2)
    return host or ""


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
