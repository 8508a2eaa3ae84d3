"""Where a stage runs: what stands between DVC and `oxa STAGE` when that is to be a node of a cluster.

    dvc repro train@sft-0                     on the head, as ever
      oxa train …                             this module: asks the scheduler for a place, waits, keeps a lease
        srun … python -m flows.node …         the scheduler's way there, and the stage's output back, line by line;
                                              for Ray it is flows/ray_task.py
          oxa train …                         on the node, in the same folder

DVC and Prefect stay on the head; the stage's own command travels, over a folder that all machines share. Which node,
and when, the scheduler decides.

The two ends hold each other by a lease, a file below .work/: the head writes a new number into it every few seconds. A
stage whose lease is gone, or has stood still, is ended on its node, whatever the scheduler makes of it: a killed head
or a cut network leaves nothing running. The stage's exit code comes back in a file beside it, since srun's is 0 where
a node was lost. Without that file the stage counts as out of reach, and `oxa run` tries it again.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml

from oxa.config.operations import Needs, Placement
from oxa.errors import ConfigError, UserError
from oxa.runtime import child, files, guard
from oxa.runtime.stages import STAGES
from oxa.tracking import sender

VARIABLE = "OXA_PLACEMENT"
SCHEDULERS = ("srun: ", "slurmstepd", "ray: ")  # how their own lines begin, among the stage's
BEAT = 2.0  # seconds between two numbers in a lease, and between two looks at it
ARRIVAL = 15.0  # seconds in which a shared folder shows the head what a node has written
PATIENCE = 4.0  # seconds for a scheduler to take a job back
LEASE, EXIT = "lease", "exit"
RECORD = guard.WORK / "placed.jsonl"  # which node ran what, from when to when, and how it ended
LAST_WORDS = 3  # lines of a scheduler's that are shown where it lost a stage


def chosen(settings: Placement) -> str:
    """How stages are placed: by the environment's word, else by flow.placement's."""
    by = os.environ.get(VARIABLE, settings.by)
    ways = get_args(Placement.model_fields["by"].annotation)
    if by not in ways:
        raise ConfigError(f"{VARIABLE}: expected {', '.join(ways[:-1])} or {ways[-1]}, found {by!r}")
    return by


def is_elsewhere(settings: Placement) -> bool:
    """Whether stages are placed by a scheduler, which then counts what they take."""
    return chosen(settings) != "local"


def send(stage: str, words: Sequence[str], settings: Placement) -> int | None:
    """Runs the stage where it is to run; its exit code, or None where that is here.

    Raises ConfigError where the stage cannot take what it is said to need, and UserError, worth another try, where its
    end was not seen: a node failed, or the scheduler took the place back.
    """
    name, by = os.environ.get("DVC_STAGE"), chosen(settings)
    if name is None or by == "local":
        return None
    needs = needed(name, bool(_meta(stage).get("accelerator")), settings)
    if needs.where == "head":
        return None
    _check_nodes(name, needs)
    child.die_with_parent()
    with leased(name) as folder:
        command = [*way(name, needs, settings), sys.executable, "-m", "flows.node", str(folder), *words]
        try:
            return _await(name, command, folder)
        finally:
            sender.kick()  # nodes leave that to the head: one process on one machine writes to MLflow's database


def check(stages: Collection[str], settings: Placement) -> None:
    """Raises ConfigError where one of these stages cannot take what flow.placement.needs says, or where an entry names
    none that there is."""
    if not is_elsewhere(settings):
        return
    for entry in settings.needs:
        if not fnmatch.filter(STAGES, entry.stages.partition("@")[0]):
            raise ConfigError(
                f"flow.placement.needs: {entry.stages!r} names no stage; `dvc stage list` prints their names"
            )
    for stage in stages:
        _check_nodes(stage, needed(stage, loads_model=False, settings=settings))


def _check_nodes(stage: str, needs: Needs) -> None:
    if (needs.nodes or 1) == 1 or needs.where == "head":
        return
    asked = f"flow.placement.needs: {stage} asks for {needs.nodes} nodes"
    if not STAGES[stage.partition("@")[0]].launched:
        several = ", ".join(name for name, one in STAGES.items() if one.launched)
        raise ConfigError(f"{asked}, which only {several} can take")
    if not os.environ.get("OXA_LAUNCH"):
        raise ConfigError(
            f"{asked}, and OXA_LAUNCH is not set, which says how its processes meet (docs/scale.md, Many nodes)"
        )


def needed(stage: str, loads_model: bool, settings: Placement) -> Needs:
    """What applies to a stage: of every key what the last entry says that matches its name."""
    found: dict[str, Any] = {"gpus": int(loads_model and settings.gpus)}
    for entry in settings.needs:
        if _names(entry, stage):
            found |= {key: value for key, value in entry.model_dump().items() if value is not None}
    return Needs(**(found | {"stages": stage}))


def _names(entry: Needs, stage: str) -> bool:
    return entry.stages == stage.partition("@")[0] or fnmatch.fnmatchcase(stage, entry.stages)


def way(name: str, needs: Needs, settings: Placement) -> list[str]:
    """The scheduler's words before a command."""
    return _by_slurm(name, needs, settings) if chosen(settings) == "slurm" else _by_ray(needs)


def _by_slurm(name: str, needs: Needs, settings: Placement) -> list[str]:
    """srun's words before the command. In an allocation that makes a step of it, else a job of its own."""
    nodes = needs.nodes or 1
    words = ["srun", f"--job-name=oxa-{name}", f"--nodes={nodes}", f"--ntasks={nodes}", "--unbuffered"]
    if needs.gpus:
        words.append(f"--gres=gpu:{needs.gpus}")
    if needs.cpus:
        words.append(f"--cpus-per-task={needs.cpus}")
    if needs.memory:
        words.append(f"--mem={round(needs.memory * 1024)}M")
    if needs.hours:
        words.append(f"--time={max(1, round(needs.hours * 60))}")
    if "SLURM_JOB_ID" in os.environ:
        words.append("--exact")  # takes no more of the allocation than it asks for; the rest is the others'
    return [*words, "--kill-on-bad-exit=1", *settings.flags]


def _by_ray(needs: Needs) -> list[str]:
    """flows/ray_task.py's words before the command."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("flow.placement.by: ray is not installed; pip install 'oxa[ray]' (make ray)")
    words = [
        sys.executable,
        "-m",
        "flows.ray_task",
        f"--nodes={needs.nodes or 1}",
        f"--gpus={needs.gpus or 0}",
    ]
    if needs.cpus:
        words.append(f"--cpus={needs.cpus}")
    if needs.memory:
        words.append(f"--memory={round(needs.memory * 2**30)}")
    return [*words, "--"]


def _meta(stage: str) -> dict[str, Any]:
    """What dvc.yaml says of a stage beside what DVC reads."""
    entry = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    meta: dict[str, Any] = entry.get("do", entry).get("meta") or {}
    return meta


@contextmanager
def leased(name: str) -> Iterator[Path]:
    """A folder for one placement; when it is gone, so is the lease."""
    folder = guard.WORK / "placed" / f"{name}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await(name: str, command: Sequence[str], folder: Path) -> int:
    """Runs the scheduler's command to its end, with new numbers in the lease; the stage's exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _beat(folder, 0)
    try:
        scheduler = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=partial(child.die_with_parent, signal.SIGTERM),  # srun takes its job back on it
        )
    except OSError as error:
        raise ConfigError(
            f"{command[0]}: {error.strerror}; flow.placement and {VARIABLE} name what places stages"
        ) from None
    assert scheduler.stderr is not None
    heard: list[str] = []
    listener = threading.Thread(target=_listen, args=(scheduler.stderr, heard), daemon=True)
    listener.start()
    number = 0
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = scheduler.wait(BEAT)
                break
            _beat(folder, number := number + 1)
    finally:
        if scheduler.poll() is None:
            shutil.rmtree(folder, ignore_errors=True)
            scheduler.terminate()
            with suppress(subprocess.TimeoutExpired):
                scheduler.wait(PATIENCE)
            scheduler.kill()
    listener.join(1.0)
    end = _end(folder)
    if end is None:
        said = "; ".join(heard[-LAST_WORDS:]) or "nothing"
        if status == os.EX_CONFIG:
            raise ConfigError(f"{name}: {said}")
        raise UserError(
            f"{name}: lost by its scheduler, whose command ended with {status}; it said: {said}"
        ) from ConnectionAbortedError()
    with RECORD.open("a", encoding="utf-8") as record:
        print(json.dumps({"stage": name, **end}), file=record)
    return int(end["code"])


def _beat(folder: Path, number: int) -> None:
    with files.atomic(folder / LEASE) as temporary:
        temporary.write_text(str(number))


def _listen(stream: Any, heard: list[str]) -> None:
    """Hands on what is said on stderr as it comes; keeps what the scheduler itself says."""
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        text = line.decode(errors="replace").strip()
        if text.startswith(SCHEDULERS):
            heard.append(text)


def _end(folder: Path) -> dict[str, Any] | None:
    """What the node has written of the stage's end; a moment is given to a shared folder to show it."""
    deadline = time.monotonic() + ARRIVAL
    while True:
        os.listdir(folder)  # over NFS, this alone asks the server anew what there is
        with suppress(FileNotFoundError):
            end: dict[str, Any] = json.loads((folder / EXIT).read_text(encoding="utf-8"))
            return end
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)
