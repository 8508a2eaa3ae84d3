"""A stage as a Ray task: `python -m flows.ray_task NEEDS COMMAND …`, the driver that flows/placement.py starts.

Prints the stage's output as it comes. When this process ends, in whatever way, Ray ends its tasks. Ray is imported here
alone (extra `ray`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30


def run(needs: dict[str, Any], command: Sequence[str]) -> int:
    """Places the command on as many nodes as it needs and waits for it; what to exit with."""
    try:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    except ImportError:
        print('oxa: flow.placement: ray is not installed; `pip install "oxa[ray]"`', file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        ray.init(address=needs["address"], namespace="oxa", logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        print(f"ray: {' '.join(str(error).split())}", file=sys.stderr)
        return os.EX_TEMPFAIL
    nodes = needs["nodes"] or 1
    share: dict[str, float] = {"CPU": needs["cpus"] or 1, "GPU": needs["gpus"] or 0}
    if needs["memory"]:
        share["memory"] = needs["memory"] * GIB
    group = placement_group([share] * nodes, strategy="STRICT_SPREAD")
    if not group.wait(1.0):
        print(f"ray: {needs['stages']} waits for a place", file=sys.stderr, flush=True)
        ray.get(group.ready())
    task = ray.remote(max_retries=0, max_calls=1)(on_node)
    outputs = [
        task.options(
            num_cpus=share["CPU"],
            num_gpus=share["GPU"],
            memory=share.get("memory"),
            name=needs["stages"],
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(
            list(command), str(Path.cwd()), {**os.environ, "OXA_RANK": str(rank), "OXA_NODES": str(nodes)}
        )
        for rank in range(nodes)
    ]
    try:
        for reference in outputs[0]:
            sys.stdout.buffer.write(ray.get(reference))
            sys.stdout.buffer.flush()
    except ray.exceptions.RayError as error:
        print(f"ray: {str(error).splitlines()[0]}", file=sys.stderr)
        return os.EX_TEMPFAIL
    return 0


def on_node(command: list[str], folder: str, environment: dict[str, str]) -> Iterator[bytes]:
    """Runs the command and hands on its output; Ray's own choice of GPUs goes before the head's."""
    own = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        while part := process.stdout.read(1 << 16):
            yield part


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), sys.argv[2:]))
