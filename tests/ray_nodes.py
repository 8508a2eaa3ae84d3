"""A Ray cluster of two nodes on this machine, beside a head that runs nothing, where Ray is installed (`make ray`)."""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from processes import until

from oxa.runtime.child import Child
from oxa.runtime.server import free_port

NODES = ("n1", "n2")
STORE = str(100 * 2**20)  # bytes of shared memory a node may take; the default is a third of the machine's


class Ray:
    kind = "ray"

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack, self._address = folder, stack, f"127.0.0.1:{free_port()}"
        self._nodes: dict[str, Child] = {}
        self.environment = {
            "RAY_ADDRESS": self._address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(folder),
        }
        """What its programs need, beside the rest."""

    def start_head(self) -> None:
        words = ("--head", f"--port={self._address.partition(':')[2]}", "--node-ip-address=127.0.0.1")
        self._start("head", *words, "--include-dashboard=false", "--num-cpus=0", "--num-gpus=0")

    def start_node(self, name: str) -> None:
        self._start(name, f"--address={self._address}", "--num-cpus=1", "--num-gpus=1")

    def _start(self, name: str, *words: str) -> None:
        path = self._folder / f"{name}.log"
        command = ["ray", "start", "--block", f"--node-name={name}", f"--object-store-memory={STORE}"]

        def runs() -> Child | None:
            """The node, once it says so; Ray itself gives up after half a minute, which a busy machine may take."""
            node = self._nodes.get(name)
            if node is None or node.poll() is not None:
                with path.open("wb") as log:
                    node = Child(
                        [*command, "--disable-usage-stats", *words],
                        stdout=log,
                        stderr=log,
                        env=os.environ | self.environment,
                    )
                self._nodes[name] = self._stack.enter_context(node)
            return node if "--block" in path.read_text() else None

        until(runs, path.read_text)

    def kill_node(self, name: str) -> None:
        """All of it, as where a machine loses its power."""
        for process in psutil.Process(self._nodes[name].pid).children(recursive=True):
            process.kill()
        self._nodes[name].end()

    def drain(self, name: str) -> None:
        """Ray's own way to take a node out is to stop it."""
        self.kill_node(name)

    def resume(self, name: str) -> None:
        self.start_node(name)

    def node_of(self, stage: psutil.Process) -> str:
        """Where one of its processes runs."""
        return stage.environ()["OXA_PLACE"].split("/")[2]

    def wait_until_idle(self) -> None:
        """A node that has started is taken at once."""

    def jobs(self) -> list[str]:
        """Tasks end with the process that asked for them; there is no queue without one."""
        return []


@contextmanager
def cluster() -> Iterator[Ray]:
    """Two nodes of one core and one GPU each; skips the test where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (make ray)")
    with tempfile.TemporaryDirectory(prefix="ray-") as name, ExitStack() as stack:
        ray = Ray(Path(name), stack)
        ray.start_head()
        for node in NODES:
            ray.start_node(node)
        yield ray
