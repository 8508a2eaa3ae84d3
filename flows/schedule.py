"""Which stage may start next: a graph, two limits, and what has ended. No Prefect, no DVC.

Of the stages whose inputs are there, the one with the longest way still to go behind it comes first. After a failure
everything that hangs on it is given up; the rest goes on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator

from flows.bridge import Node


class Schedule:
    """Hands out stages in an order that the graph allows."""

    def __init__(self, nodes: Iterable[Node], *, max_workers: int, accelerators: int) -> None:
        self._waiting = {node.name: node for node in nodes}
        self._sharing = _sharing(self._waiting, min(accelerators, max_workers))
        self._running: dict[str, int | None] = {}
        self._ended: set[str] = set()
        self._max_workers = max_workers
        self._slots = list(range(accelerators))
        self._depth = _depths(self._waiting)
        self.given_up: dict[str, str] = {}
        """Stages that will not run, each with the failed one that it hangs on."""

    def ready(self) -> Iterator[tuple[Node, int | None]]:
        """Takes what may start now; with a stage that loads a model goes the accelerator slot that it has."""
        for name in sorted(self._waiting, key=lambda name: (-self._depth[name], name)):
            node = self._waiting[name]
            if len(self._running) == self._max_workers:
                return
            if node.upstream <= self._ended and (self._slots or not node.accelerator):
                del self._waiting[name]
                self._running[name] = self._slots.pop(0) if node.accelerator else None
                yield node, self._running[name]

    def ended(self, name: str, succeeded: bool) -> None:
        """Frees what a running stage held; its dependants may start, or never will."""
        slot = self._running.pop(name)
        if slot is not None:
            self._slots = sorted([*self._slots, slot])
        if succeeded:
            self._ended.add(name)
            return
        lost = {name}
        while more := {n for n, node in self._waiting.items() if node.upstream & lost} - lost:
            lost |= more
        for given_up in lost - {name}:
            del self._waiting[given_up]
            self.given_up[given_up] = name

    def sharing(self, name: str) -> int:
        """Stages that load a model and may run at the same time as this one, itself included; 1 for any other."""
        return self._sharing.get(name, 1)

    @property
    def num_left(self) -> int:
        """Stages that run or wait."""
        return len(self._running) + len(self._waiting)


def _depths(nodes: dict[str, Node]) -> dict[str, int]:
    """Stages on the longest way from each stage to the end of the graph, itself included."""
    depths = dict.fromkeys(nodes, 1)
    for name in reversed(nodes):  # dependants first: the plan lists every stage after what it reads from
        for upstream in nodes[name].upstream:
            depths[upstream] = max(depths[upstream], depths[name] + 1)
    return depths


def _sharing(nodes: dict[str, Node], slots: int) -> dict[str, int]:
    """For each stage that loads a model: itself and those that may run beside it, as far as there are slots."""
    before: dict[str, set[str]] = {}
    for name, node in nodes.items():
        before[name] = set(node.upstream).union(*(before[upstream] for upstream in node.upstream))
    may_run = stale(nodes.values())
    models = [name for name, node in nodes.items() if node.accelerator]

    def beside(name: str) -> int:
        related = before[name] | {other for other in models if name in before[other]} | {name}
        return sum(other in may_run and other not in related for other in models)

    return {name: min(slots, 1 + beside(name)) for name in models}


def stale(nodes: Iterable[Node]) -> set[str]:
    """Stages that have changed, or that something before them may change; each node after those that it reads from."""
    names: set[str] = set()
    for node in nodes:
        if node.changed or node.upstream & names:
            names.add(node.name)
    return names


def devices() -> list[str]:
    """GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; none where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [
        str(i) for i, line in enumerate(filter(None, listing.stdout.splitlines())) if line.startswith("GPU")
    ]


def environment(slot: int | None, accelerators: int, sharing: int, gpus: list[str]) -> dict[str, str]:
    """A stage's environment variables, so that those beside it can work too: its slot's GPUs, and threads that sleep.

    The number of threads stays what `dvc repro` gives a stage, for sums depend on it in the last bits. Two trainings
    with two threads each on two cores took 24 s this way, 25 s with a thread each, 33 s one after the other. A stage
    that has all to itself is quicker when its threads spin.
    """
    if sharing == 1:
        return {}
    variables = {} if "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
    if slot is not None and gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::accelerators] or [gpus[slot % len(gpus)]])
    return variables
