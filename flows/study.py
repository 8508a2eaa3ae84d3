"""`oxa study`: every experiment of a study as a DVC experiment, and the page that their tables are written into.

An experiment in a world is `dvc exp run --name EXPERIMENT-WORLD --set-param …`, run in a clone of the repository that
the world has for itself under .work/study: DVC writes an experiment's parameters into the folder it runs in, so that a
kill would leave them in yours, and two at once could take each other's. What stages make lies in the repository's own
DVC cache, and the experiment's commit (parameters, dvc.lock, metrics) is brought home under refs/exps: `dvc exp show`
lists it, `dvc exp apply NAME` brings it back, and stages that experiments share run once. Worlds run side by side, the
experiments of one after each other; a killed stage goes on where it was.

An experiment is done where there is a commit of its name that asks for the same results: equal parameters, and the
same dvc.yaml and files that its stages depend on as the workspace has. Nothing of it is run again then.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dvc.api import DVCFileSystem

from flows import bridge, warm
from oxa.config.params import Params, load_params
from oxa.errors import DataError, UserError, tell
from oxa.runtime.child import Child
from oxa.study import experiments, figures
from oxa.study import page as study_page
from oxa.study.results import Results

PARAMS = "params.yaml"  # the file that DVC reads
WORK = Path(".work/study")
"""Of every experiment what it printed, and of every world its clone."""
LAST_LINES = 5
RUNNING = "Running stage '"


def run(path: Path, page: Path, *, only: Sequence[str], jobs: int | None, tables: bool) -> int:
    """Runs what is not done, then writes the page's tables; with `tables` nothing is run. Returns the exit code."""
    study = experiments.load(path)
    planned, params = plan(path)
    _refuse_unknown(path, planned, only)
    name = path.stem
    no_parts = dict.fromkeys(study_page.names(study), "")
    study_page.page(_text(page), name, no_parts)  # fails before hours of work
    done = {one.name: commit for one in planned if (commit := find(one))}
    missing = [one for one in planned if one.name not in done and (not only or one.experiment in only)]
    failed: list[str] = []
    if missing and not tables:
        _refuse_uncommitted(study.params)
        tell(f"{len(missing)} experiments to run, {len(done)} done; what they print: {WORK}")
        failed = _run_all(missing, jobs or min(len({one.world for one in missing}), os.cpu_count() or 1))
        done = {one.name: commit for one in planned if (commit := find(one))}
    text = _text(page)  # its words may have changed meanwhile
    with _files(done) as read:
        results = Results(study, {one.name: one for one in planned if one.name in done}, read)
        written = study_page.page(
            text, name, study_page.parts(params.report, results, study_page.asked(text, name))
        )
        if f"images/{name}-" in text:
            figures.draw(page.parent / "images", name, params.report, results)
    if written != text:
        page.write_text(written, encoding="utf-8")
    left = len(planned) - len(done)
    tell(f"{page}: tables of {len(done)} experiments" + (f"; {left} are not run yet" if left else ""))
    return 1 if failed else 0


def show(path: Path) -> Iterator[str]:
    """A line an experiment and world: whether it is done, and the command that runs it alone."""
    planned, _ = plan(path)
    for one in planned:
        begin = "" if one.params == PARAMS else f"cp {shlex.quote(one.params)} {PARAMS} && "
        yield f"{'done' if find(one) else 'to do'}  {begin}{shlex.join(command(one))}"


def plan(path: Path) -> tuple[list[experiments.Run], Params]:
    """All runs of the study, every one's parameters checked, and those that they begin with."""
    study = experiments.load(path)
    params = load_params(Path(study.params))
    raw = _raw(study.params)
    planned = experiments.runs(study)
    arms = {
        one.experiment: experiments.changed(raw, one.changes, f"{path}: experiment {one.experiment}")["arms"]
        for one in planned
    }
    experiments.refuse_empty_rows(study, arms, str(path))
    return planned, params


def command(one: experiments.Run) -> list[str]:
    """What runs it alone, in a folder whose params.yaml is the study's."""
    changes = [f"++{key}={_hydra(value)}" for key, value in one.changes.items()]
    flags = [word for change in changes for word in ("--set-param", change)]
    return ["dvc", "exp", "run", "--name", one.name, *flags, *one.stages]


def _hydra(value: Any) -> str:
    """A value as --set-param reads it, in Hydra's grammar: JSON but for the keys of dicts, which it wants bare."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def find(one: experiments.Run) -> str | None:
    """The commit of the experiment as it would come out now; None where there is none."""
    wanted = experiments.changed(_raw(one.params), one.changes, one.name)
    for commit, ref in _experiments():
        if ref.rpartition("/")[2] == one.name and _is_current(commit, one, wanted):
            return commit
    return None


def _raw(params: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(params).read_text(encoding="utf-8"))
    return content


def _experiments(folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Commit and ref, refs/exps/ab/cdef…/NAME, of every DVC experiment, the newest first."""
    order = ["--sort=-committerdate", "--format=%(objectname) %(refname)"]
    for line in _git("for-each-ref", *order, "refs/exps", folder=folder).splitlines():
        commit, _, ref = line.partition(" ")
        if ref.count("/") == 4:
            yield commit, ref


def _is_current(commit: str, one: experiments.Run, wanted: Mapping[str, Any]) -> bool:
    ran = {name.partition("@")[0] for name in _lock(commit)}
    return (
        {name.partition("@")[0] for name in one.stages} <= ran
        and experiments.same_results(_yaml(commit, PARAMS), wanted)
        and not _changed_since(commit, "dvc.yaml", *_code(ran))
    )


def _code(of: Collection[str] | None = None) -> list[str]:
    """The files of ours that stages depend on, all or some."""
    stages = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
    # a stage that runs for every key of a section stands under `do`
    wanted = [stage.get("do", stage) for name, stage in stages.items() if of is None or name in of]
    deps = (path for stage in wanted for path in stage["deps"])
    return sorted({path for path in deps if path.startswith("oxa/")})


def _changed_since(commit: str, *paths: str) -> list[str]:
    return _git("diff", "--name-only", commit, "--", *paths).splitlines()


def _git(*words: str, folder: Path | None = None) -> str:
    done = subprocess.run(["git", *words], check=False, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise UserError(f"git {words[0]}: {done.stderr.strip()}; a study needs the project's git repository")
    return done.stdout


def _refuse_uncommitted(params: str) -> None:
    if changed := _changed_since("HEAD", params, "dvc.yaml", *_code()):
        raise UserError(
            f"{', '.join(changed)}: changed since the last commit, which an experiment is kept with; "
            "`git commit` it, then run the study"
        )


def _refuse_unknown(path: Path, planned: Sequence[experiments.Run], only: Sequence[str]) -> None:
    known = list(dict.fromkeys(one.experiment for one in planned))
    for name in only:
        if name not in known:
            raise UserError(f"{path}: no experiment is called {name!r}; known here: {', '.join(known)}")


def _run_all(missing: Sequence[experiments.Run], jobs: int) -> list[str]:
    """Runs them, worlds side by side; returns the names of those that failed. The rest of a failed world goes on."""
    environment = bridge.own_environment()
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    # it runs beside other work: threads that spin for one that has lost its core made pretraining ten times as long
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    failed: list[str] = []
    ended = threading.Event()
    at_work: set[Child] = set()
    count = iter(range(1, len(missing) + 1))

    def work(world: int) -> None:
        folder = _clone(world)
        own = environment | {"PYTHONPATH": str(folder)}  # the clone's code, not the installed one
        with warm.stages(own, folder) if warm.possible() else nullcontext(own) as served:
            for one in (one for one in missing if one.world == world):
                begun = time.monotonic()
                last_lines = _run(one, folder, served, at_work)
                if ended.is_set():
                    return
                if last_lines:
                    failed.append(one.name)
                    tell(f"{one.name}: FAILED\n{last_lines}")
                else:
                    seconds = time.monotonic() - begun
                    tell(f"{one.name}: done in {seconds:.0f} s ({next(count)} of {len(missing)})")

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, world) for world in dict.fromkeys(one.world for one in missing)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            ended.set()
            for future in futures:
                future.cancel()
            for child in list(at_work):
                child.end()
            raise
    return failed


def _clone(world: int) -> Path:
    """A clone of the repository for the world's experiments, at the last commit, with our DVC cache."""
    folder = (WORK / f"world-{world}").resolve()
    if not (folder / ".git").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git("clone", "-q", "--no-checkout", ".", str(folder))
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {_cache()}\n")
    return folder


def _reset(folder: Path) -> None:
    """The clone as at our last commit, whatever an experiment that was killed has left; what DVC made stays."""
    _git("fetch", "-q", "origin", "HEAD", folder=folder)
    for ref in _git("for-each-ref", "--format=%(refname)", "refs/exps", folder=folder).split():
        _git("update-ref", "-d", ref, folder=folder)
    _git("checkout", "-q", "--force", "--detach", "FETCH_HEAD", folder=folder)
    shutil.rmtree(folder / ".dvc" / "tmp" / "exps", ignore_errors=True)


def _run(one: experiments.Run, folder: Path, environment: dict[str, str], at_work: set[Child]) -> str:
    """Runs one experiment in that clone to its end and brings it home; "" where all is well, else its last lines."""
    _reset(folder)
    if one.params != PARAMS:
        shutil.copy(folder / one.params, folder / PARAMS)
    lines: list[str] = []
    with (
        (WORK / f"{one.name}.log").open("w", encoding="utf-8") as log,
        Child(
            [sys.executable, "-m", *command(one)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child,
    ):
        at_work.add(child)
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            log.flush()
            if line.strip():
                lines.append(line.strip())
            if line.startswith(RUNNING):
                stage, _, _ = line.removeprefix(RUNNING).partition("'")
                tell(f"{one.name}: {stage}")
        code = child.wait()
        at_work.discard(child)
    return "\n".join(lines[-LAST_LINES:]) if code else _bring_home(one, folder)


def _bring_home(one: experiments.Run, folder: Path) -> str:
    """Takes the experiment's commit over in place of older ones of its name; "" where there is one."""
    made = [ref for _, ref in _experiments(folder) if ref.rpartition("/")[2] == one.name]
    if not made:
        return f"dvc made no experiment of the name {one.name}"
    older = [ref for _, ref in _experiments() if ref.rpartition("/")[2] == one.name]
    _git("fetch", "-q", "--no-write-fetch-head", str(folder), f"+{made[0]}:{made[0]}")
    for ref in {*older} - {made[0]}:
        _git("update-ref", "-d", ref)
    return ""


def _text(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}; it holds the words round the tables") from None


@contextmanager
def _files(done: Mapping[str, str]) -> Iterator[Callable[[experiments.Run, str], Path]]:
    """Finds files of experiments in DVC's cache; what is not there is fetched from its remotes, by way of DVC.

    DVC itself takes seconds to open a commit, so that its cache is read where its documentation says that files lie.
    """
    systems: dict[str, Any] = {}
    files = _cache() / "files" / "md5"
    with tempfile.TemporaryDirectory() as folder:

        def read(one: experiments.Run, path: str) -> Path:
            md5 = _outputs(done[one.name]).get(path, "")
            cached = files / md5[:2] / md5[2:]
            if md5 and cached.is_file():
                return cached
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


@cache
def _outputs(commit: str) -> dict[str, str]:
    """Path, to the md5, of all files and folders that the experiment's stages made."""
    return {out["path"]: out["md5"] for stage in _lock(commit).values() for out in stage.get("outs", [])}


@cache
def _lock(commit: str) -> dict[str, Any]:
    """The experiment's stages, as they ran."""
    stages: dict[str, Any] = _yaml(commit, "dvc.lock")["stages"]
    return stages


def _yaml(commit: str, name: str) -> Any:
    return yaml.load(_git("show", f"{commit}:{name}"), yaml.CSafeLoader)


def _cache() -> Path:
    """The folder of DVC's cache."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"dvc cache dir: {done.stderr.strip()}")
    return Path(done.stdout.strip()).resolve()
