"""`oxa study`: every experiment of a study as a DVC experiment, and the page that their tables are written into.

An experiment in a world is `dvc exp run --temp --name EXPERIMENT-WORLD --set-param …`: DVC runs it in a copy of the
workspace, which stays as it is, and keeps its parameters, dvc.lock and metrics as a commit under refs/exps; what the
stages made lies in DVC's cache. So `dvc exp show` lists them, `dvc exp apply NAME` brings one back, and stages that
experiments share run once. Worlds run side by side, the experiments of one after each other.

An experiment is done where there is a commit of its name that asks for the same results: equal parameters, and the
same dvc.yaml and files that its stages depend on as the workspace has. Nothing of it is run again then.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.api import DVCFileSystem

from oxa import config, study, study_page
from oxa.errors import DataError, UserError, tell
from oxa.lifeline import Child

LOGS = Path(".work/study")
LAST_LINES = 5
TAKEN = "Reproducing experiment '"
RUNNING = "Running stage '"
DVC = [sys.executable, "-m", "dvc", "--wait-for-lock"]


def run(path: Path, page: Path, *, only: Sequence[str], jobs: int | None, tables: bool) -> int:
    """Runs what is not done, then writes the page's tables; with `tables` nothing is run. Returns the exit code."""
    planned, params = plan(path)
    _refuse_unknown(path, planned, only)
    done = {one.name: commit for one in planned if (commit := find(one))}
    missing = [one for one in planned if one.name not in done and (not only or one.experiment in only)]
    failed: list[str] = []
    if missing and not tables:
        tell(f"{len(missing)} experiments to run, {len(done)} done; what they print: {LOGS}")
        failed = _run_all(missing, jobs or min(len({one.world for one in missing}), os.cpu_count() or 1))
        done = {one.name: commit for one in planned if (commit := find(one))}
    text = _text(page)
    with _files(done) as read:
        there = {one.name: one for one in planned if one.name in done}
        written = study_page.page(text, study_page.parts(study.load(path), params.report, there, read))
    if written != text:
        page.write_text(written, encoding="utf-8")
    left = len(planned) - len(done)
    tell(f"{page}: tables of {len(done)} experiments" + (f"; {left} are not run yet" if left else ""))
    return 1 if failed else 0


def show(path: Path) -> Iterator[str]:
    """A line an experiment and world: whether it is done, and the command that runs it alone."""
    planned, _ = plan(path)
    for one in planned:
        yield f"{'done' if find(one) else 'to do'}  {shlex.join(command(one))}"


def plan(path: Path) -> tuple[list[study.Run], config.Params]:
    """All runs of the study, every one's parameters checked, and params.yaml itself."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params = config.check(raw, "params.yaml")
    planned = study.runs(study.load(path))
    for one in planned:
        study.changed(raw, one.changes, f"{path}: experiment {one.experiment}")
    return planned, params


def command(one: study.Run) -> list[str]:
    """What runs it alone."""
    changes = [f"++{key}={_hydra(value)}" for key, value in one.changes.items()]
    flags = [word for change in changes for word in ("--set-param", change)]
    return ["dvc", "exp", "run", "--temp", "--name", one.name, *flags, *one.stages]


def _hydra(value: Any) -> str:
    """A value as --set-param reads it, in Hydra's grammar: JSON but for the keys of dicts, which it wants bare."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def find(one: study.Run) -> str | None:
    """The commit of the experiment as it would come out now; None where there is none."""
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    wanted = study.changed(raw, one.changes, one.name)
    for commit, name in _experiments():
        if name == one.name and _is_current(commit, wanted):
            return commit
    return None


def _experiments() -> Iterator[tuple[str, str]]:
    """Commit and name of every DVC experiment, the newest first."""
    lines = _git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps")
    for line in lines.splitlines():
        commit, _, ref = line.partition(" ")
        if len(parts := ref.split("/")) == 5:  # refs/exps/ab/cdef…/NAME
            yield commit, parts[-1]


def _is_current(commit: str, wanted: Mapping[str, Any]) -> bool:
    had = yaml.load(_git("show", f"{commit}:params.yaml"), yaml.CSafeLoader)
    return study.same_results(had, wanted) and _unchanged(commit)


def _unchanged(commit: str) -> bool:
    """Whether dvc.yaml and the code that stages depend on are those of the commit."""
    stages = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
    code = sorted({path for stage in stages.values() for path in stage["deps"] if path.startswith("oxa/")})
    return (
        subprocess.run(["git", "diff", "--quiet", commit, "--", "dvc.yaml", *code], check=False).returncode
        == 0
    )


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {words[0]}: {done.stderr.strip()}; a study needs the project's git repository")
    return done.stdout


def _refuse_unknown(path: Path, planned: Sequence[study.Run], only: Sequence[str]) -> None:
    known = list(dict.fromkeys(one.experiment for one in planned))
    for name in only:
        if name not in known:
            raise UserError(f"{path}: no experiment is called {name!r}; known here: {', '.join(known)}")


def _run_all(missing: Sequence[study.Run], jobs: int) -> list[str]:
    """Runs them, worlds side by side; returns the names of those that failed. The rest of a failed world goes on."""
    worlds = list(dict.fromkeys(one.world for one in missing))
    failed: list[str] = []
    ended, starting = threading.Event(), threading.Lock()
    count = iter(range(1, len(missing) + 1))

    def work(world: int) -> None:
        for one in (one for one in missing if one.world == world):
            if ended.is_set():
                return
            begun = time.monotonic()
            if said := _run(one, jobs, ended, starting):
                failed.append(one.name)
                tell(f"{one.name}: FAILED\n{said}")
            else:
                tell(
                    f"{one.name}: done in {time.monotonic() - begun:.0f} s ({next(count)} of {len(missing)})"
                )

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, world) for world in worlds]
        try:
            for future in futures:
                future.result()
        except BaseException:
            ended.set()
            raise
    return failed


def _run(one: study.Run, jobs: int, ended: threading.Event, starting: threading.Lock) -> str:
    """Runs one experiment to its end; "" where all is well, else its last lines.

    One starts at a time: DVC puts an experiment into the repository and then takes it from there, and two that do so at
    once could take each other's.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    lines: list[str] = []
    with ExitStack() as start, (LOGS / f"{one.name}.log").open("w", encoding="utf-8") as log:
        start.enter_context(starting)
        if one.name in (name for _, name in _experiments()):  # an older one, which DVC would not write over
            subprocess.run([*DVC, "exp", "remove", one.name], check=False, capture_output=True)
        with Child(
            [*DVC, *command(one)[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if ended.is_set():
                    break
                log.write(line)
                log.flush()
                if line.strip():
                    lines.append(line.strip())
                if line.startswith(TAKEN):
                    start.close()
                if line.startswith(RUNNING):
                    stage, _, _ = line.removeprefix(RUNNING).partition("'")
                    tell(f"{one.name}: {stage}")
            else:
                if child.wait() == 0:
                    return ""
    return "\n".join(lines[-LAST_LINES:])


def _text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}; it holds the words round the tables") from None


@contextmanager
def _files(done: Mapping[str, str]) -> Iterator[Callable[[study.Run, str], Path]]:
    """Reads files of experiments, from DVC's cache or its remotes."""
    systems: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:

        def read(one: study.Run, path: str) -> Path:
            local = Path(folder) / one.name / path
            if not local.exists():
                if one.name not in systems:
                    systems[one.name] = DVCFileSystem(rev=done[one.name])
                local.parent.mkdir(parents=True, exist_ok=True)
                try:
                    systems[one.name].get_file(path, str(local))
                except OSError as error:
                    raise DataError(
                        f"experiment {one.name}: {path} is not in DVC's cache ({error}); `dvc exp remove {one.name}` "
                        "and run the study again"
                    ) from None
            return local

        yield read
