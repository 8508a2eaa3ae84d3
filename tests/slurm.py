"""A SLURM of two nodes on this machine, where its programs are installed: a real controller, two real daemons."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import until

from oxa.runtime.child import Child
from oxa.runtime.server import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=oxa
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MailProg=/bin/true
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=1 Gres=gpu:1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=1 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    kind = "slurm"

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._daemons: dict[str, Child] = {}
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        """What its programs need, beside the rest."""

    def start(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            child = Child(command, stdout=log, stderr=log, env=os.environ | self.environment)
        self._daemons[name] = self._stack.enter_context(child)

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """The daemon and what it started, as where a machine loses its power."""
        for process in psutil.Process(self._daemons[name].pid).children(recursive=True):
            process.kill()
        self._daemons[name].end()

    def says(self, *command: str) -> str:
        done: Any = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60
        )
        text: str = done.stdout
        return text

    def jobs(self) -> list[str]:
        """Names of those that wait or run."""
        return self.says("squeue", "--noheader", "--format=%j").split()

    def wait_until_idle(self) -> None:
        until(lambda: self.states() == {"idle"}, lambda: f"nodes are {self.states()}")

    def drain(self, name: str) -> None:
        """The node takes no more jobs; what runs there goes on."""
        self.says("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")

    def resume(self, name: str) -> None:
        self.says("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def node_of(self, stage: psutil.Process) -> str:
        """Where one of its processes runs."""
        return stage.environ()["SLURMD_NODENAME"]

    def states(self) -> set[str]:
        return set(self.says("sinfo", "--noheader", "--Node", "--format=%T").split())


@contextmanager
def cluster() -> Iterator[Slurm]:
    """Two nodes of one core and one GPU each; skips the test where SLURM is not installed or this is not root."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed (packages slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("slurmd runs as root alone")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot enter
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        ports = {"controller": free_port(), **{node: free_port() for node in NODES}}
        assert len(set(ports.values())) == len(ports)
        config = CONFIG.format(host=socket.gethostname().partition(".")[0], folder=folder, **ports)
        (folder / "slurm.conf").write_text(config)
        devices = zip(NODES, ("/dev/null", "/dev/zero"), strict=True)
        lines = [f"NodeName={node} Name=gpu File={device}\n" for node, device in devices]
        (folder / "gres.conf").write_text("".join(lines))
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        slurm = Slurm(folder, stack)
        munge = {f"--{name}-file": folder / f"munge.{name}" for name in ("key", "pid", "seed", "log")}
        words = [f"{option}={path}" for option, path in munge.items()]
        slurm.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *words)
        until(lambda: (folder / "munge.socket").exists(), "munged did not start")
        slurm.start("controller", "slurmctld", "-D")
        for node in NODES:
            slurm.start_node(node)
        slurm.wait_until_idle()
        yield slurm
