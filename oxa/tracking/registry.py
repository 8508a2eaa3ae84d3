"""The model registry: versions that refer to checkpoints by path and hash, and the chain from each to its data.

Nothing is copied. A version of the MLflow model `registry.model` says where the checkpoint lay and which content it
had; DVC's cache keeps the content. Its tags lead back to the sources, and from a source to the versions:

    oxa.arm, oxa.seed, oxa.stage   which checkpoint it is; the stage as in dvc.lock
    dvc.path, dvc.md5              its folder and content; also in the version's source, `dvc://PATH?md5=MD5`
    git.commit, git.dirty          when it was registered
    dvc.<path>                     md5 of each file or folder that it was made from, directly or not
    oxa.lineage                    JSON: what each stage of the chain read and wrote, the modules that ran (with
                                   git.dirty the commit does not tell), the checkpoint's files, all with their md5s
    oxa.results                    `RUN_ID/ARTIFACT#HASH`: what it answered to each problem, for later comparisons
    promoted.by, .at, .why         on versions that have been champion: gate or hand, UTC, the reason

oxa/tracking/lineage.py reads the chain. The alias `challenger` is the version that the gate chose last
(flows/promote.py), `champion` the one that holds.

Limits of MLflow 3.17: 250 characters a tag's key, of letters, digits and `_-. :/`; 100,000 a value; on PostgreSQL
500 the source and 5,000 the description, more than which is an error there (SQLite takes any).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote

from oxa.config.operations import Registry
from oxa.errors import DataError, UserError
from oxa.runtime import guard
from oxa.tracking import outbox, spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
MAX_DESCRIPTION = 5000


class Step(Protocol):
    """A stage as dvc.lock has it: path -> DVC md5."""

    @property
    def deps(self) -> Mapping[str, str]: ...
    @property
    def outs(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Checkpoint:
    """A trained checkpoint as dvc.lock names it."""

    stage: str
    arm: str
    seed: int
    path: str
    md5: str


@dataclass(frozen=True)
class Version:
    """A registered version."""

    number: int
    tags: dict[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    description: str

    def __str__(self) -> str:
        """`version 3 (oxa_full, seed 0), champion`."""
        return ", ".join([self.name, *self.aliases])

    @property
    def name(self) -> str:
        """`version 3 (oxa_full, seed 0)`."""
        return f"version {self.number} ({self.tags['oxa.arm']}, seed {self.tags['oxa.seed']})"


def chain(locked: Mapping[str, Step], stage: str) -> dict[str, Step]:
    """The stage and all upstream of it, the stage itself first and each before what it was made from.

    Raises DataError where a stage read other content than the stage that makes it has left since: what is in the
    workspace is then not what the checkpoint was made from.
    """
    upstream: dict[str, list[str]] = {}
    todo = [stage]
    while todo:
        name = todo.pop()
        if name in upstream:
            continue
        upstream[name] = []
        for path, md5 in locked[name].deps.items():
            if _is_code(path):
                continue
            makers = [
                other for other, step in locked.items() if any(_overlap(out, path) for out in step.outs)
            ]
            # dvc.lock keeps stages that are no longer in dvc.yaml: any that left this content will do
            fitting = [other for other in makers if locked[other].outs.get(path, md5) == md5]
            if makers and not fitting:
                raise DataError(
                    f"{name} was made from another {path} than {makers[0]} has made since; `oxa run` makes it again"
                )
            upstream[name] += fitting[:1]
        todo += upstream[name]
    order = list(TopologicalSorter(upstream).static_order())
    return {name: locked[name] for name in reversed(order)}


def register(
    settings: Registry,
    checkpoint: Checkpoint,
    locked: Mapping[str, Step],
    *,
    commit: str | None,
    dirty: bool,
    experiment: str,
) -> tuple[Version, bool]:
    """Registers the checkpoint, whose files lie in the workspace, and says whether it is new.

    The same content of the same stage is not registered twice. The training run is found by what it wrote, in
    `experiment`; without one the version has none. Raises DataError as `chain` does and UserError where MLflow cannot
    be reached.
    """
    with connection() as client:
        for version in versions(settings):
            if (version.tags["oxa.stage"], version.tags["dvc.md5"]) == (checkpoint.stage, checkpoint.md5):
                return version, False
        tags = _tags(checkpoint, chain(locked, checkpoint.stage), commit, dirty, experiment)
        run = training_run(experiment, checkpoint.stage, checkpoint.path, checkpoint.md5)
        _ensure_model(client, settings.model)
        made = client.create_model_version(
            settings.model,
            source=f"dvc://{quote(checkpoint.path)}?md5={checkpoint.md5}",
            run_id=run.info.run_id if run else None,
            tags=tags,
        )
        return _version(made, ()), True


def describe(settings: Registry, version: Version, text: str) -> None:
    """Gives a version a description (Markdown), cut to what MLflow holds."""
    text = _shortened(text)
    if text != version.description:
        with connection() as client:
            client.update_model_version(settings.model, str(version.number), text)


def versions(settings: Registry) -> list[Version]:
    """All versions that `register` made, oldest first; none where nothing is registered yet."""
    from mlflow.exceptions import MlflowException

    with connection() as client:
        try:
            aliases = client.get_registered_model(settings.model).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        found: list[Any] = []
        token = None
        while True:
            page = client.search_model_versions(f"name = '{settings.model}'", page_token=token)
            found += page
            if not (token := page.token):
                break
    names: dict[int, list[str]] = {}
    for alias, number in aliases.items():
        names.setdefault(int(number), []).append(alias)
    return sorted(
        (
            _version(one, tuple(sorted(names.get(int(one.version), []))))
            for one in found
            if "dvc.md5" in one.tags
        ),
        key=lambda version: version.number,
    )


def with_alias(known: list[Version], alias: str) -> Version | None:
    """The version that has this alias, if one has."""
    return next((version for version in known if alias in version.aliases), None)


def find(settings: Registry, version: str) -> Version:
    """The version of this number or alias; DataError, with those that there are, where there is none."""
    known = versions(settings)
    for one in known:
        if version in (str(one.number), *one.aliases):
            return one
    if not known:
        raise DataError(f"nothing is registered as {settings.model} yet; `oxa register` does it")
    aliases = [f"{alias} (version {one.number})" for one in known for alias in one.aliases]
    raise DataError(
        f"no version {version!r} of {settings.model}; there are {ranges([one.number for one in known])}"
        + (f" and {', '.join(aliases)}" if aliases else "")
    )


def promote(
    settings: Registry, version: str, *, by: Literal["gate", "hand"] = "hand", why: str = ""
) -> Version:
    """Moves `champion` to a version (number or alias) and notes on it by whom, when and why; returns it."""
    chosen = find(settings, version)
    if CHAMPION in chosen.aliases:
        return chosen
    before = with_alias(versions(settings), CHAMPION)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    over = f"over {before.name}" if before else "the first champion"
    with connection() as client:
        for key, value in (("by", by), ("at", now), ("why", why or over)):
            client.set_model_version_tag(settings.model, str(chosen.number), f"promoted.{key}", value)
        client.set_registered_model_alias(settings.model, CHAMPION, str(chosen.number))
    return find(settings, CHAMPION)


def challenge(settings: Registry, version: Version) -> None:
    """Moves `challenger` to a version."""
    with connection() as client:
        client.set_registered_model_alias(settings.model, CHALLENGER, str(version.number))


def record(
    experiment: str, files: Mapping[str, str], tags: Mapping[str, str], values: Mapping[str, float]
) -> str:
    """Keeps texts by name as the artifacts of a new run `register`, with tags and metrics; returns the run's id."""
    with connection() as client:
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment, tags=spool.EXPERIMENT)
        run = client.create_run(
            number, run_name="register", tags={"oxa.kind": "register", **tags}
        ).info.run_id
        try:
            for name, text in files.items():
                client.log_text(run, text, name)
            for name, value in values.items():
                client.log_metric(run, name, value)
        except BaseException:
            with suppress(Exception):  # the first error tells more
                client.set_terminated(run, "FAILED")
            raise
        client.set_terminated(run)
    return str(run)


def keep_results(settings: Registry, version: Version, run_id: str, artifact: str, digest: str) -> None:
    """Notes on a version where its answers are kept, and their hash."""
    with connection() as client:
        value = f"{run_id}/{artifact}#{digest}"
        client.set_model_version_tag(settings.model, str(version.number), "oxa.results", value)


def has_results(version: Version, digest: str) -> bool:
    """Whether these answers are kept for the version already."""
    return version.tags.get("oxa.results", "").endswith(f"#{digest}")


def results(version: Version) -> str | None:
    """The text kept by `keep_results`; None where there is none or it cannot be had any more.

    Raises UserError where MLflow does not say which.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    run_id, _, artifact = version.tags.get("oxa.results", "").partition("#")[0].partition("/")
    if not run_id:
        return None
    with connection() as client, TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, artifact, folder)).read_text(encoding="utf-8")
        except RequestException:
            raise
        except OSError:
            return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def path_of(settings: Registry, version: str) -> Path:
    """Where the checkpoint of a version (number or alias) lies, after its content has been checked.

    Raises DataError where it is gone or holds something else now.
    """
    one = find(settings, version)
    path, expected = Path(one.tags["dvc.path"]), one.tags["dvc.md5"]
    commit, dirty = one.tags.get("git.commit"), one.tags["git.dirty"] == "true"
    checkout = f"dvc checkout {'--force ' * path.exists()}{path}"
    mend = f"`{checkout}` brings it back if dvc.lock still names it"
    if commit:
        unsure = ", if dvc.lock was committed with it (it was registered with uncommitted changes)" * dirty
        mend += f", else `git checkout {commit} && {checkout}`{unsure}"
    mend += "; otherwise `oxa run` trains it again"
    if not path.exists():
        raise DataError(f"{path}: {one.name} is gone from the workspace (md5 {expected}); {mend}")
    fingerprint = guard.Fingerprint.of(path)
    if (found := fingerprint.md5()) != expected:
        before: dict[str, str] = json.loads(one.tags["oxa.lineage"])["files"]
        now = fingerprint.content()
        differing = [
            f"{name} {'added' if name not in before else 'gone' if name not in now else 'changed'}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        raise DataError(
            f"{path}: its files changed since {one.name} was registered: {', '.join(differing)} "
            f"(md5 {expected} then, {found} now); {mend}"
        )
    return path


def _tags(
    checkpoint: Checkpoint, steps: Mapping[str, Step], commit: str | None, dirty: bool, experiment: str
) -> dict[str, str]:
    stages = {
        name: {"deps": {p: m for p, m in step.deps.items() if not _is_code(p)}, "outs": dict(step.outs)}
        for name, step in steps.items()
    }
    code = {path: md5 for step in steps.values() for path, md5 in step.deps.items() if _is_code(path)}
    read = {path: md5 for step in stages.values() for path, md5 in step["deps"].items()}
    files = guard.Fingerprint.of(Path(checkpoint.path)).content()
    lineage = {"stages": stages, "code": code, "files": files, "experiment": experiment}
    tags = {
        "oxa.arm": checkpoint.arm,
        "oxa.seed": str(checkpoint.seed),
        "oxa.stage": checkpoint.stage,
        "dvc.path": checkpoint.path,
        "dvc.md5": checkpoint.md5,
        "git.dirty": str(dirty).lower(),
    }
    tags |= {"git.commit": commit} if commit else {}
    made_from = {key: md5 for path, md5 in sorted(read.items()) if _is_key(key := f"dvc.{path}")}
    return {
        **tags,
        **made_from,
        **tags,
        "oxa.lineage": json.dumps(lineage),
    }  # a path called `md5` does not count


def _is_code(path: str) -> bool:
    return path.startswith("oxa/")


def _is_key(key: str) -> bool:
    """Whether MLflow takes it as a tag's key; what it does not is still in oxa.lineage."""
    return len(key) <= 250 and re.fullmatch(r"[/\w.\- :]*", key) is not None and os.path.normpath(key) == key


def _overlap(a: str, b: str) -> bool:
    """Whether two paths are the same, or one lies in the other."""
    return a == b or a.startswith(f"{b}/") or b.startswith(f"{a}/")


def _shortened(text: str) -> str:
    """`text` with what fits of it: tables are not aligned, then whole lines are left out at the end."""
    if len(text) > MAX_DESCRIPTION:
        text = re.sub(r"(?m)^\|.*\|$", lambda row: re.sub(r"-{3,}", "---", re.sub(" +", " ", row[0])), text)
    ending = "\n(cut; whole in table.md of the run `register`)"
    if len(text) > MAX_DESCRIPTION:
        text = text[: MAX_DESCRIPTION - len(ending)].rpartition("\n")[0] + ending
    return text


def ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _version(found: Any, aliases: tuple[str, ...]) -> Version:
    return Version(
        int(found.version), dict(found.tags), aliases, found.run_id or None, found.description or ""
    )


def training_run(experiment: str, stage: str, path: str, md5: str) -> Any:
    """The newest run of this stage that wrote this content, if tracking has one."""
    found = outbox.find_runs(experiment, {"oxa.stage": stage, f"dvc.out.{path}": md5})
    return max(found, key=lambda run: run.info.start_time, default=None)


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            name, description="OXA checkpoints, by reference: DVC holds the files."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def connection() -> Iterator[MlflowClient]:
    """MLflow's client; what MLflow refuses or cannot do inside is one sentence."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    for name, value in (
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(name, value)
    client = outbox.client()
    try:
        yield client
    except (MlflowException, RequestException) as error:
        raise UserError(f"MLflow at {spool.shown(spool.uri())} refused: {outbox.reason(error)}") from None
