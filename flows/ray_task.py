"""A command as a task on a Ray cluster, `python -m flows.ray_task OPTIONS -- COMMAND…`: what `srun` is to SLURM.

Ray has no command that runs another one where there is room, shows its output as it comes and takes it back when
stopped; this is one, of a task, and a placement group where it needs several nodes. Ray finds the cluster as its own
commands do: RAY_ADDRESS, else the one that this machine belongs to. The exit code is the command's (of several nodes
the first one's), and EX_TEMPFAIL where a node was lost.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from flows.node import PLACE

QUEUED = 5.0  # seconds after which a task that waits for room says so
GIVEN = "CUDA_VISIBLE_DEVICES"  # what Ray decides of the command's environment
ENDING = 10.0  # seconds in which a command ends when told to, on its node


def work(
    command: Sequence[str], folder: str, environment: Mapping[str, str], place: str
) -> Iterator[bytes | int]:
    """What runs on a node: its name, the command's output as it comes, both streams in one, and the exit code.

    Travels to the node as a value, so all that it needs is imported here.
    """
    import contextlib
    import os
    import subprocess

    import ray

    here = ray.get_runtime_context().get_node_id()
    name = next(node["NodeName"] for node in ray.nodes() if node["NodeID"] == here)
    own = {name: os.environ[name] for name in (GIVEN,) if name in os.environ} | {PLACE: f"{place}/{name}"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        yield name.encode()
        while block := process.stdout.read1():  # type: ignore[attr-defined]  # typeshed knows IO alone
            yield block
        yield process.wait()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        process.kill()


def run(command: Sequence[str], nodes: int, resources: Mapping[str, float]) -> int:
    """Runs the command once on each of `nodes` nodes, each with the resources (Ray's names, as CPU and GPU).

    Its exit code: 0, or the first one that was not, which ends the others.
    """
    strategies: list[Any] = ["DEFAULT"]
    if nodes > 1:
        group = placement_group([dict(resources)] * nodes, strategy="STRICT_SPREAD")
        strategies = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(nodes)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    options = {"num_cpus": resources["CPU"], "num_gpus": resources["GPU"], "max_retries": 0}
    if resources["memory"]:
        options["memory"] = resources["memory"]
    task = ray.remote(work)
    streams = [
        task.options(scheduling_strategy=strategies[rank], **options).remote(
            command, os.getcwd(), environment, f"{rank}/{nodes}"
        )
        for rank in range(nodes)
    ]
    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    for stream in streams:
        threading.Thread(target=lambda stream=stream: codes.put(_follow(stream)), daemon=True).start()
    try:
        return next((code for code in (codes.get() for _ in streams) if code), 0)
    finally:
        for stream in streams:
            ray.cancel(stream, force=True)


def _follow(stream: Any) -> int:
    """Hands on what a task says; its command's exit code, or EX_TEMPFAIL, with a word why, where there is none."""
    waiting = threading.Timer(QUEUED, _say, ["queued, waiting for room on the cluster"])
    waiting.start()
    name = None
    try:
        for reference in stream:
            value = ray.get(reference)
            waiting.cancel()
            if isinstance(value, int):
                return value
            if name is None:
                _say(f"on {(name := value.decode())}")
                continue
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
    except RayError as error:
        if reason := str(error).strip():
            _say(reason.partition("\n")[0])
    finally:
        waiting.cancel()
    return os.EX_TEMPFAIL


def _say(sentence: str) -> None:
    print(f"ray: {sentence}", file=sys.stderr, flush=True)


def _is_node() -> bool:
    """Whether a daemon of Ray's runs here; one that is seen in a container has its socket elsewhere."""
    option = "--raylet_socket_name="
    words = chain.from_iterable(process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"]))
    return any(os.path.exists(word.removeprefix(option)) for word in words if word.startswith(option))


def hindrance(address: str, is_node: bool) -> str | None:
    """Why the cluster of RAY_ADDRESS cannot be reached from a machine that is a node of one, or is not.

    Asked beforehand, for where no daemon of Ray's runs its library ends the process with a dump of its stack.
    """
    is_client = address.startswith("ray://")
    if is_node and not is_client:
        return None
    example = "10.0.0.1:6379" if is_client or not address else address
    return (
        "this machine has to be a node of the cluster, if one that takes no stage: "
        f"`ray start --address {example} --num-cpus 0 --num-gpus 0`, and RAY_ADDRESS={example}"
    )


def main(argv: Sequence[str]) -> int:
    """The command's exit code, EX_TEMPFAIL where the cluster does not answer or a node was lost, or EX_CONFIG."""
    parser = argparse.ArgumentParser(prog="python -m flows.ray_task", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1, help="cores of each node")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each node")
    parser.add_argument("--memory", type=float, default=0, help="main memory of each node, bytes")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(argv)
    if reason := hindrance(os.environ.get("RAY_ADDRESS", ""), _is_node()):
        _say(reason)
        return os.EX_CONFIG
    try:
        ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        _say(f"no cluster answers: {str(error).strip().splitlines()[0]}")
        return os.EX_TEMPFAIL
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # in place of Ray's
    return run(given.command, given.nodes, {"CPU": given.cpus, "GPU": given.gpus, "memory": given.memory})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
