"""DVC's graph, and one of its stages as a child process. The only place in flows/ that knows DVC.

DVC says what the stages are, what each needs, whether it has changed, and runs it; nothing of that is written down
twice. What DVC did is read off its output (as of 3.67, to which pyproject.toml pins it).
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from flows import lockfile
from oxa.errors import DataError, UserError
from oxa.runtime import guard
from oxa.runtime.child import Child
from oxa.tracking import registration

LAST_LINES = 15  # of a failed stage's output that are shown again at the end
PIPES: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
    "errors": "replace",
}
_BAR = re.compile(r"%\|[^|]*\| [^\[]*\[[^\]]*\]")  # the end of a progress bar as tqdm draws it


@dataclass(frozen=True)
class Node:
    """A stage of the graph, as DVC sees it now."""

    name: str
    """As DVC addresses it, for example `train@sft-0`."""
    upstream: frozenset[str]
    """Stages whose outputs it reads."""
    accelerator: bool
    """Whether it loads a model (`meta: accelerator` in dvc.yaml)."""
    changed: bool
    """Whether itself, its inputs or its outputs differ from dvc.lock. Upstream may still change it."""


class StageFailed(Exception):
    """A stage did not succeed; str(error) is what to show."""

    def __init__(self, message: str, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry
        """Whether its surroundings are to blame (killed, out of reach), so that another try may succeed."""


@dataclass(frozen=True)
class Locked:
    """What dvc.lock holds of a stage: DVC md5 by path, and the values of params.yaml that it ran with."""

    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _repository() -> Iterator[Any]:
    """DVC's view of this folder; what it finds wrong is a UserError, and DataError where dvc.lock is not whole."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    lockfile.read()
    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC: {' '.join(str(error).split())}") from None


def lock_fault() -> str | None:
    """What to say where DVC's note of who reads and writes what is damaged, without which it runs nothing."""
    here = Path.cwd()
    root = next((folder for folder in [here, *here.parents] if (folder / ".dvc").is_dir()), here)
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        note = None
    if isinstance(note, dict):
        return None
    return (
        f"{path}: not what DVC writes there, left by a DVC that was killed or found the disk full; where no dvc "
        "command is at work here, remove it"
    )


def plan(targets: Iterable[str] = ()) -> list[Node]:
    """The stages that the targets need, themselves included, each after those that it reads from.

    A target is a stage (`report`), all of a matrix (`train`) or a pattern (`train@*`); none means all stages. Raises
    UserError where a target names nothing, where dvc.yaml cannot be read, or where another DVC command is at work.
    """
    import networkx as nx

    with _repository() as repo:
        graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
        meta = {stage.addressing: stage.meta or {} for stage in repo.index.stages}
        wanted = _match(list(targets), sorted(graph)) or set(graph)
        needed = wanted.union(*(nx.descendants(graph, name) for name in wanted))
        # of all stages: for each target that is named, DVC would read all of its files again
        changed = repo.status()
    order = nx.lexicographical_topological_sort(graph.subgraph(needed).reverse())
    return [
        Node(
            name,
            upstream=frozenset(graph.successors(name)),
            accelerator=bool(meta[name].get("accelerator")),
            changed=name in changed,
        )
        for name in order
    ]


def _match(targets: list[str], names: list[str]) -> set[str]:
    wanted: set[str] = set()
    for target in targets:
        matching = {name for name in names if name == target or name.startswith(f"{target}@")}
        matching = matching or set(fnmatch.filter(names, target))
        if not matching:
            close = fnmatch.filter(names, f"{target}*") or {name.partition("@")[0] for name in names}
            shown = ", ".join(sorted(close))
            raise UserError(f"no stage is called {target!r} in dvc.yaml; known here: {shown}")
        wanted |= matching
    return wanted


def own_environment() -> dict[str, str]:
    """This process's; its `oxa` is the one beside this Python, whether or not that environment is activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path}


class Children:
    """Stages at work, each a `dvc repro` of that stage alone, with everything below it."""

    all: ClassVar[WeakSet[Children]] = WeakSet()

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: what stages get to begin with; by default `own_environment()`."""
        self._environment = dict(environment or own_environment())
        self._running: set[Child] = set()
        self._ended = False
        self.all.add(self)

    def repro(
        self,
        name: str,
        *,
        force: bool = False,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> str:
        """Brings one stage up to date, its inputs taken as they are; returns what DVC did.

        `unchanged`: there was nothing to do; `restored`: its outputs came from DVC's cache; `run`: the command ran.
        `on_line` is told every line of output. Raises StageFailed.
        """
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
        lines: list[str] = []
        with Child(
            command + ["--force"] * force, env=self._environment | dict(environment or {}), **PIPES
        ) as child:
            self._running.add(child)
            if self._ended:  # the flow was ended while this one started
                child.end()
            assert child.stdout is not None
            for text in child.stdout:  # a carriage return, as of a progress bar, ends a line, too
                # whoever speaks while a bar is drawn goes on in its line
                for line in _BAR.sub(r"\g<0>\n", text).splitlines():
                    if line := line.strip():
                        lines.append(line)
                        on_line(line)
            code = child.wait()
            self._running.discard(child)
        if self._ended:
            raise StageFailed("ended with the flow", retry=False)
        if code != 0:
            raise _failure(lines, code)
        return _done(lines)

    def end(self) -> None:
        """Ends all of them and whatever they started; later ones end at once."""
        self._ended = True
        for child in list(self._running):
            child.end()


def end_all() -> None:
    """Ends every stage that this process has started."""
    for children in list(Children.all):
        children.end()


def _done(lines: list[str]) -> str:
    text = "\n".join(lines)
    if re.search(r"^Running stage '", text, re.MULTILINE):
        return "run"
    return "restored" if "is cached - skipping run, checking out outputs" in text else "unchanged"


def _failure(lines: list[str], code: int) -> StageFailed:
    """What to show of a failed child's output, and whether to try again.

    The stage's exit code is in DVC's last message; a negative one is a signal's, and 128 + n is a shell's or a
    keeper's way to say the same. torchrun, and accelerate through it, exits with 1 whatever happened, and tells at its
    table's end how the process ended that failed first; the table buries what that process said.
    """
    text = "\n".join(lines)
    exits = [int(number) for number in re.findall(r"exited with (-?\d+)", text)]
    if "ChildFailedError" in text:
        exits += [int(number) for number in re.findall(r"exitcode +: (-?\d+)", text)]
        table = (number for number, line in enumerate(lines) if "] failed (exitcode: " in line)
        lines = lines[: next(table, len(lines))]
    status = exits[-1] if exits else code
    killed = status < 0 or status in (128 + 9, 128 + 15) or code in (128 + 9, 128 + 15)
    busy = "is busy, it is being blocked by" in text
    spoken = status in (2, os.EX_TEMPFAIL)  # else `oxa: ` begins a warning of it
    # once each: all processes of a launched stage say the same
    sentences = list(dict.fromkeys(line for line in lines if line.startswith("oxa: "))) if spoken else []
    if sentences:
        message = "\n".join(sentences)
    elif killed:
        message = f"killed by signal {(-status if status < 0 else max(status, code) - 128)} (out of memory, or by hand)"
    else:
        message = "\n".join(lines[-LAST_LINES:]) or f"exited with {code} and said nothing"
    return StageFailed(message, retry=killed or busy or status == os.EX_TEMPFAIL)


def locked() -> dict[str, Locked]:
    """What dvc.lock holds, by stage, read while no DVC command writes it.

    Raises DataError where there is none or half of one, UserError where another DVC command keeps it, or this is no DVC
    repository.
    """
    with _repository() as repo, repo.lock:
        stages = lockfile.read()
        if stages is None:
            raise DataError("dvc.lock: no such file; `oxa run` or `dvc repro` makes it")
    return {name: _locked(stage) for name, stage in stages.items()}


def _locked(stage: dict[str, Any]) -> Locked:
    deps, outs = (
        {entry["path"]: entry["md5"] for entry in stage.get(kind, []) if "md5" in entry}
        for kind in ("deps", "outs")
    )
    return Locked(deps, outs, stage.get("params", {}).get("params.yaml", {}))


def output(
    stages: Mapping[str, registration.Step], stage: str, suffix: str, folder: str = ""
) -> tuple[str, str]:
    """Path and DVC md5 of a stage's folder (`.dir`) or table (`.parquet`), given what dvc.lock holds.

    `folder`: the name of that in which it lies, where the stage writes several.

    Raises DataError where the stage has not run, something upstream has moved on since, or the workspace holds
    something else.
    """
    if stage not in stages:
        raise DataError(f"{stage} has not run; `oxa run` does it")
    registration.chain(stages, stage)
    outs = stages[stage].outs.items()
    for path, md5 in outs:
        if suffix in (Path(path).suffix, Path(md5).suffix) and folder in ("", Path(path).parent.name):
            break
    else:
        raise DataError(f"{stage} has written no {folder or suffix} yet; `oxa run` makes it again")
    if not Path(path).exists():
        raise DataError(f"{path} is gone from the workspace; `oxa run` brings it back")
    if guard.dvc_md5(Path(path)) != md5:
        raise DataError(f"{path} is not what {stage} wrote; `oxa run` makes it again")
    return path, md5


def cached(md5s: Iterable[str]) -> dict[str, Path]:
    """Where DVC's cache keeps files of these md5s; those that it lacks are left out."""
    with _repository() as repo:
        paths = {md5: Path(repo.cache.local.oid_to_path(md5)) for md5 in md5s}
    return {md5: path for md5, path in paths.items() if path.is_file()}


def stages() -> set[str]:
    """All stages of dvc.yaml."""
    with _repository() as repo:
        return {stage.addressing for stage in repo.index.stages}


def changes(stages: Sequence[str]) -> dict[str, dict[str, str]]:
    """By stage, what DVC finds changed: inputs, parameters and outputs, and how."""
    with _repository() as repo:
        status = {stage: how for stage, how in repo.status().items() if stage in stages}  # as in `plan`
    by_stage: dict[str, dict[str, str]] = {stage: {} for stage in stages}
    for stage, changes in status.items():
        for change in changes:
            if isinstance(change, str):  # "changed command"
                by_stage.setdefault(stage, {})[change.removeprefix("changed ")] = "modified"
                continue
            for entries in change.values():
                for path, how in entries.items():
                    by_stage.setdefault(stage, {}).update(how if isinstance(how, dict) else {path: how})
    return by_stage


def commit(stage: str) -> None:
    """Has DVC take the stage's inputs and outputs as they lie here for what belongs together."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--force", stage]
    with Child(command, **PIPES) as child:
        text, _ = child.communicate()
    if child.returncode != 0:
        lines = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        shown = "\n".join(lines) or f"exited with {child.returncode} and said nothing"
        raise DataError(f"dvc commit {stage}: {shown}")
