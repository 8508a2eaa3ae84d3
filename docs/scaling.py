"""Writes the table "How far more GPUs take it" into docs/scale.md: the paper's graph on simulated clusters.

    python docs/scaling.py

The graph is DVC's own of dvc.yaml and presets/paper-1.5b.yaml, the order that of flows/schedule.py, the hours those of
`oxa plan`; stages of which the plan knows no time take none. tests/test_docs.py holds the page against this.
"""

import heapq
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flows import bridge
from flows.schedule import Schedule
from oxa.config.params import check_params
from oxa.forecast import forecast

PAGE, ROOT = Path(__file__).parent / "scale.md", Path(__file__).parents[1]
PRESET = ROOT / "presets/paper-1.5b.yaml"
GPUS = (1, 8, 32, 128)
EACH = (1, 8, 32)
"""GPUs that a stage takes."""
MARKERS = re.compile(r"(<!-- scaling -->\n).*?(<!-- end -->)", flags=re.DOTALL)


class Outcome(NamedTuple):
    hours: float
    """From the first stage's start to the last one's end."""
    busy: float
    """GPU hours that stages took."""
    longest: list[str]
    """Stages that followed each other without a wait up to the end, those that take time."""


def page() -> str:
    """docs/scale.md with the table in it."""
    return MARKERS.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", PAGE.read_text("utf-8"))


def table() -> str:
    lines = ["| GPUs of a stage | GPUs | hours | idle | what it waits for |", "|---|---|---|---|---|"]
    nodes = graph(PRESET)
    for each in EACH:
        hours = durations(PRESET, each, [node.name for node in nodes])
        for gpus in GPUS:
            if gpus < each:
                continue
            outcome = simulate(nodes, hours, gpus // each)
            idle = abs(1 - outcome.busy * each / (outcome.hours * gpus))
            path = " → ".join(f"`{name}` {hours[name]:,.0f} h" for name in outcome.longest)
            cell = path if gpus // each > 1 else "every stage, one after the other"
            lines.append(f"| {each} | {gpus} | {outcome.hours:,.0f} | {idle:.0%} | {cell} |")
    return "\n".join(lines) + "\n"


def graph(params: Path) -> list[bridge.Node]:
    """The stages that DVC sees with these parameters."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(ROOT / "dvc.yaml", name)
        shutil.copy(params, Path(name) / "params.yaml")
        subprocess.run(["dvc", "init", "-q", "--no-scm"], cwd=name, check=True)
        with chdir(name):
            return bridge.plan()


def durations(params: Path, gpus: int, names: Iterable[str]) -> dict[str, float]:
    """Hours of every stage on so many GPUs."""
    raw: dict[str, Any] = yaml.safe_load(params.read_text("utf-8"))
    raw["plan"]["devices"] = raw["generate"]["vllm"]["data_parallel"] = gpus
    steps = {step.name: step for step in forecast.make(check_params(raw, str(params)), params).steps}

    def hours(name: str) -> float:
        kind, _, instance = name.partition("@")
        known = [
            kind,
            f"{kind}@{instance.rpartition('-')[0]}",
            name,
        ]  # of a kind, an arm with all seeds, itself
        step = next((steps[one] for one in reversed(known) if one in steps), None)
        return (step.hours or 0.0) / step.runs if step else 0.0

    return {name: hours(name) for name in names}


def simulate(nodes: list[bridge.Node], hours: dict[str, float], places: int) -> Outcome:
    """Runs the graph in the scheduler's order where so many stages have room at once."""
    plan = Schedule(nodes, max_workers=len(nodes), accelerators=places)
    now, running, ends = 0.0, [], {}
    while plan.num_left:
        for node, _ in plan.ready():
            heapq.heappush(running, (now + hours[node.name], node.name))
        now, name = heapq.heappop(running)
        ends[name] = now
        plan.ended(name, succeeded=True)
    busy = sum(hours[node.name] for node in nodes if node.accelerator)
    upstream = {node.name: node.upstream for node in nodes}
    path = [max(ends, key=lambda name: ends[name])]
    while before := upstream[path[-1]]:
        path.append(max(before, key=lambda name: ends[name]))
    return Outcome(now, busy, [name for name in reversed(path) if hours[name] > 0])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
