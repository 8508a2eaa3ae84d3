"""What it costs to have a stage placed by a scheduler, over the same stage here: wall time of one that does nothing.

    python benchmarks/placement.py [--repeats 5]

SLURM and Ray of two idle nodes each on this machine, as the tests start them; a scheduler that is not installed is left
out. The ways take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from results import row

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

import pytest  # noqa: E402
import ray_nodes  # noqa: E402
import slurm  # noqa: E402
from pipelines import make_repository  # noqa: E402

TARGETS = {"slurm": 2.0, "ray": 5.0}  # seconds over `local`


def seconds(folder: Path, environment: dict[str, str]) -> float:
    """The stage `begin`, which copies a few lines, as DVC would start it."""
    command = ["oxa", "begin", "--arm=sft", "--trained=data/trained/sft", "--output=data/after.json"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment | {"PATH": path, "DVC_STAGE": "begin@sft"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = make_repository(Path(temporary) / "project")
        (folder / "data/trained/sft").mkdir(parents=True)
        ways = {"local": {"OXA_PLACEMENT": "local"}}
        for kind, cluster in (("slurm", slurm.cluster), ("ray", ray_nodes.cluster)):
            try:
                nodes = stack.enter_context(cluster())
            except pytest.skip.Exception as reason:
                print(f"{kind} is left out: {reason}", file=sys.stderr)
            else:
                ways[kind] = nodes.environment | {"OXA_PLACEMENT": kind}
        if len(ways) == 1:
            return
        times: dict[str, list[float]] = {way: [] for way in ways}
        for environment in ways.values():  # a first time, for what each keeps in memory
            seconds(folder, environment)
        for _ in range(repeats):
            for way, environment in ways.items():
                times[way].append(seconds(folder, environment))
    print(
        f"""## A stage placed by a scheduler: `benchmarks/placement.py`

The stage `begin`, which copies a few lines, here and on a node of an idle cluster on this machine; median of {repeats}
(range), wall time.

| placement | seconds | over `local` |
|---|---|---|"""
    )
    local = statistics.median(times["local"])
    for way, taken in times.items():
        median = statistics.median(taken)
        spread = f"{median:.1f} ({min(taken):.1f} to {max(taken):.1f})"
        print(f"| {way} | {spread} | {'' if way == 'local' else f'{median - local:.1f}'} |")
    for way, target in TARGETS.items():
        if way in times:
            over = statistics.median(times[way]) - local
            row(f"a stage placed by `{way}`", "`local`", over, target, better="lower", unit="s more")


if __name__ == "__main__":
    main()
