"""Repositories with the real pipeline at a tiny size, and what tests do to them: run, look, forget, kill."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from processes import below, until, wait_until_left

from flows import warm

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = ("data", "models", "metrics", "reports")

REPRO = ("dvc", "repro")
FLOW = ("oxa", "run")

CHECKPOINTS = "checkpoints/checkpoint-*/trainer_state.json"
SIGNS = {  # files in scratch, each written when a part of the stage's work is done
    "sample": "*.jsonl",
    "score@self": "shard-*.npy",
    "train@oxa_full-0": CHECKPOINTS,
    "rlvr@oxa_full-0": CHECKPOINTS,
}

Files = dict[Path, tuple[int, int]]
"""Files with their inode and the time of their last change: what tells whether one was written again."""


def environment(**more: str) -> dict[str, str]:
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))
    }
    # DVC takes the shell from SHELL; of the usual ones, sh is the one that stays between DVC and a plain command
    variables |= {"DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SHELL": "/bin/sh"}
    return variables | more


def tiny_params() -> dict[str, Any]:
    """The small world from scratch at a size at which stages take seconds, for a student that knows next to nothing.

    Sampling (15 shards), scoring (64 shards or more) and training (6 checkpoints) can be killed half way.
    """
    params: dict[str, Any] = yaml.safe_load((ROOT / "presets/small-world-from-scratch.yaml").read_text())
    params["arms"], params["seeds"] = ["sft", "oxa_full"], [0]
    params["sources"]["world"] |= {"num_train": 60, "num_rlvr": 24, "num_benchmark": 16}
    params["base"] |= {"hidden_size": 32, "num_layers": 2, "intermediate_size": 64, "steps": 40}
    params["base"] |= {"warmup": 5, "checkpoint_every": 10}
    params["generate"] |= {"batch_size": 16}
    params["verify"] |= {"workers": 1}  # a worker's imports take longer than what there is to parse
    params["gates"]["world"] |= {"num_problems": 6, "num_samples": 2, "max_tokens": 60}
    params["sample"] |= {"num_samples": 4, "max_tokens": 60}
    params["evaluate"] |= {"num_samples": 2, "max_tokens": 60}
    params["score"] |= {"self_verdicts": ["incorrect", "unparsable"], "batch_tokens": 100}
    shared = {
        "num_ce": 32,
        "mean": 20.0,
        "std": 30.0,
        "ppl_max": 400.0,
        "bin_width": 400.0,
        "max_shortage": 0.9,
    }
    params["selection"]["shared"] |= shared
    params["selection"]["ul"]["oxa_full"] |= {
        "num": 16,
        "min_ppl": 1.0,
        "verdicts": ["incorrect", "unparsable"],
        "allow_length": True,
    }
    params["train"]["shared"] |= {"epochs": 12.0, "num_ce": 8, "micro_batch_size": 4, "checkpoint_every": 8}
    params["train"]["arms"]["oxa_full"] |= {"num_ul": 8}
    params["rlvr"] |= {
        "steps": 6,
        "save_every": 3,
        "checkpoint_every": 1,
        "num_prompts": 4,
        "num_generations": 4,
    }
    params["rlvr"] |= {"max_tokens": 60, "micro_batch_size": 8, "batch_size": 16}
    params["traces"] |= {"num_examples": 6}
    params["report"] |= {"resamples": 200}
    params["flow"] = {
        "max_workers": 2,
        "accelerators": 2,
        "retry_delay": 1.0,
        "warm": False,
    }  # tests share one
    return params


def make_repository(folder: Path) -> Path:
    folder.mkdir()
    for name in ("oxa", "sources", ".dvcignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    for name in ("dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    return folder


def reference(tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...]) -> Path:
    """A repository in which the whole pipeline has run without a break; tests work in copies.

    pytest's workers share it: the first that asks makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "-".join(["pipeline", *command])
    with (base / f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "reports").exists():
            make_repository(folder)
            # what goes to MLflow costs as much as the stages at this size, and their outputs do not depend on it
            change(folder, "tracking.enabled", command == FLOW)
            change(folder, "flow.warm", True)  # the flow has one of its own here, as with users
            output = run(folder, *(command if command == FLOW else warmed(*command)))
            change(folder, "flow.warm", False)
            assert (folder / "reports").exists(), output
            wait_until_left(folder)  # MLflow's database is at rest when it is copied
    return folder


def warmed(*command: str) -> list[str]:
    """`dvc repro …` or `oxa run …` that forks its stages from a process that has imported their libraries.

    Which importing costs more than what most stages do at this size. Tests that kill start them in the usual way, and
    compare what they leave with what these leave, byte by byte.
    """
    if not warm.possible():
        return list(command)
    path = _warm_path()
    if command[0] == "oxa":
        return [
            sys.executable,
            "-P",  # else tests/flows would be taken for the package
            str(ROOT / "tests" / "warm_flow.py"),
            path.partition(os.pathsep)[0],
            *command[1:],
        ]
    return ["env", f"PATH={path}", *command]


@cache
def _warm_path() -> str:
    """PATH with the warm process's `oxa` first; the process is started here and ends with this one."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(warm.stages(environment(), ROOT))["PATH"]


def copied(reference: Path, folder: Path) -> Path:
    return Path(shutil.copytree(reference, folder, symlinks=True))


def run(folder: Path, *command: str, code: int | None = 0, **variables: str) -> str:
    """Runs a command in the folder; returns what it printed. `code` None: any but 0."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == code if code is not None else done.returncode != 0, done.stdout[-4000:]
    return done.stdout


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def change(folder: Path, key: str, value: Any) -> None:
    """Changes one value of params.yaml, by its dotted key."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    *parents, last = key.split(".")
    section = params
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def contents(folder: Path, *paths: str) -> dict[str, bytes]:
    """Every file that the pipeline made, or those under the paths, by relative name."""
    candidates = [path for name in paths or OUTPUTS for path in [folder / name, *(folder / name).rglob("*")]]
    return {str(path.relative_to(folder)): path.read_bytes() for path in candidates if path.is_file()}


def locked(folder: Path) -> dict[str, Any]:
    """dvc.lock's stages. They stand there in the order in which they ended first, which tells nothing."""
    stages: dict[str, Any] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return stages


def outputs(stage: dict[str, Any]) -> list[str]:
    """Paths of what a stage of dvc.lock writes."""
    return [out["path"] for out in stage["outs"]]


def forget(folder: Path, *names: str) -> None:
    """Leaves the stages, and all that hang on them, as if they had never run."""
    stages = locked(folder)
    gone: list[str] = []
    todo = set(names)
    while todo:
        for name in todo:
            gone += outputs(stages.pop(name))
        todo = {
            name
            for name, stage in stages.items()
            if any(_overlap(dep["path"], path) for dep in stage["deps"] for path in gone)
        }
    for path in gone:
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    shutil.rmtree(folder / ".dvc" / "cache" / "runs")  # from which DVC would bring them back


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def assert_same(folder: Path, reference: Path, *names: str) -> None:
    """The stages, and all before them, ended as in the reference: every byte, and dvc.lock."""
    stages, expected = locked(folder), locked(reference)
    assert set(names) <= set(stages)
    assert stages == {name: expected[name] for name in stages}
    paths = [path for stage in stages.values() for path in outputs(stage)]
    made, wanted = contents(folder), contents(reference, *paths)
    assert made.keys() == wanted.keys()
    assert [name for name in made if made[name] != wanted[name]] == []


def stale(folder: Path) -> set[str]:
    """Stages that DVC would run."""
    return set(json.loads(run(folder, "dvc", "status", "--json")))


class Command(subprocess.Popen[str]):
    """A command at work in a folder; what it prints goes to a file."""

    def __init__(self, folder: Path, *command: str, **variables: str) -> None:
        self.folder, self._log = folder, folder / "printed.log"
        with self._log.open("w") as log:
            super().__init__(command, cwd=folder, env=environment(**variables), stdout=log, stderr=log)

    def printed(self) -> str:
        return self._log.read_text()


def stopped_at_work(command: Command, stage: str) -> tuple[psutil.Process, psutil.Process]:
    """Waits until the stage's process has done a part of its work and halts it there, so that work is left to do.

    Returns its DVC and itself. It must be started in the usual way, importing for seconds: a warm one might have done
    all of its work before it is found.
    """

    def processes() -> list[psutil.Process] | None:
        try:
            candidates = [psutil.Process(command.pid), *below(command.pid)]
            dvc = [p for p in candidates if _runs(p, "dvc", stage)]
            pair = dvc + [
                p for one in dvc for p in below(one.pid) if _runs(p, "oxa", stage.partition("@")[0])
            ]
            return pair if len(pair) == 2 else None
        except psutil.NoSuchProcess:
            return None

    dvc, running = until(processes, _state(command, stage), command, pause=0.1)
    progress(command, stage)
    running.suspend()
    return dvc, running


def progress(command: Command, stage: str, before: Iterable[Path] = ()) -> Files:
    """Waits until scratch holds work of the stage that it did not hold `before`.

    Returns all of it that was seen on the way, what newer work has replaced since included.
    """
    seen: Files = {}

    def news() -> bool:
        seen.update(now := finished(command.folder, stage))
        return not now.keys() <= set(before)

    until(news, _state(command, stage), command, pause=0.01)
    return seen


def _state(command: Command, stage: str) -> Callable[[], str]:
    return lambda: f"stage {stage} at work; printed: {command.printed()}"


def finished(folder: Path, stage: str) -> Files:
    """What scratch holds of the stage's work."""
    files = {}
    for path in (folder / ".work").glob(f"{stage}/*/scratch/{SIGNS[stage]}"):
        try:
            if path.suffix == ".jsonl":  # a response a line: as if each were a file, written with that line
                for number, line in enumerate(path.read_text().splitlines()):
                    if "response_id" in (row := json.loads(line)):
                        files[path / row["response_id"]] = (number, 0)
                continue
            if path.suffix == ".json":  # the last file of a checkpoint
                json.loads(path.read_text())
            files[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
        except (FileNotFoundError, ValueError):  # removed, or still being written
            continue
    return files


def _runs(process: psutil.Process, program: str, argument: str) -> bool:
    try:
        words = process.cmdline()
        return argument in words and any(Path(word).name == program for word in words[:3])
    except psutil.NoSuchProcess:
        return False
