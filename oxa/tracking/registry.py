"""The model registry: versions of a model in MLflow that refer to checkpoints by path and hash.

Nothing is copied. A version of the MLflow model `registry.model` says where the checkpoint lay and which content it
had; DVC's cache keeps the content. Its tags lead back to the sources, and from a source to the versions:

    oxa.arm, oxa.seed, oxa.stage   which checkpoint it is; the stage as in dvc.lock
    dvc.path, dvc.md5              its folder and content; also in the version's source, `dvc://PATH?md5=MD5`
    git.commit, git.dirty          when it was registered
    dvc.<path>                     md5 of each file or folder that it was made from, directly or not
    oxa.lineage                    JSON: what each stage of the chain read and wrote, the modules that ran (with
                                   git.dirty the commit does not tell), the checkpoint's files, dvc.lock and
                                   params.yaml, all with their md5s; the parameters that each stage ran with
    oxa.results                    `RUN_ID/ARTIFACT#HASH`: what it answered to each problem, for later comparisons
    promoted.by, .at, .why         on versions that have been champion: gate or hand, UTC, the reason

oxa/tracking/registration.py writes the chain, lineage.py reads it. The alias `challenger` is the version that the gate
chose last (flows/promote.py), `champion` the one that holds.

Limits of MLflow 3.17: 250 characters a tag's key, of letters, digits and `_-. :/`; 100,000 a value; on PostgreSQL
500 the source and 5,000 the description, more than which is an error there (SQLite takes any).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from oxa.config.operations import Registry
from oxa.errors import DataError
from oxa.runtime import guard
from oxa.tracking import connection

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CHALLENGER = "champion", "challenger"
MAX_DESCRIPTION = 5000
MOST_VERSIONS = 200_000  # that MLflow returns at once


@dataclass(frozen=True)
class Version:
    """A registered version."""

    number: int
    tags: dict[str, str]
    aliases: tuple[str, ...]
    run_id: str | None
    description: str

    @classmethod
    def of(cls, entity: ModelVersion, aliases: Iterable[str] = ()) -> Version:
        """MLflow's own object, and the aliases that point to it."""
        return cls(
            int(entity.version),
            dict(entity.tags),
            tuple(sorted(aliases)),
            entity.run_id or None,
            entity.description or "",
        )

    def __str__(self) -> str:
        """`version 3 (oxa_full, seed 0), champion`."""
        return ", ".join([self.name, *self.aliases])

    @property
    def name(self) -> str:
        """`version 3 (oxa_full, seed 0)`."""
        return f"version {self.number} ({self.tags['oxa.arm']}, seed {self.tags['oxa.seed']})"


def describe(settings: Registry, version: Version, text: str) -> None:
    """Gives a version a description (Markdown), cut to what MLflow holds."""
    text = _shortened(text)
    if text != version.description:
        with connection.opened() as client:
            client.update_model_version(settings.model, str(version.number), text)


def versions(settings: Registry) -> list[Version]:
    """All versions that `registration.register` made, oldest first; none where nothing is registered yet."""
    from mlflow.exceptions import MlflowException

    with connection.opened() as client:
        try:
            aliases = client.get_registered_model(settings.model).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise
        entities = client.search_model_versions(f"name = '{settings.model}'", max_results=MOST_VERSIONS)
    return sorted(
        (
            Version.of(one, [alias for alias, number in aliases.items() if int(number) == int(one.version)])
            for one in entities
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
    with connection.opened() as client:
        for key, value in (("by", by), ("at", now), ("why", why or over)):
            client.set_model_version_tag(settings.model, str(chosen.number), f"promoted.{key}", value)
        client.set_registered_model_alias(settings.model, CHAMPION, str(chosen.number))
    return find(settings, CHAMPION)


def challenge(settings: Registry, version: Version) -> None:
    """Moves `challenger` to a version."""
    with connection.opened() as client:
        client.set_registered_model_alias(settings.model, CHALLENGER, str(version.number))


def record(
    experiment: str, files: Mapping[str, str], tags: Mapping[str, str], values: Mapping[str, float]
) -> str:
    """Keeps texts by name as the artifacts of a new run `register`, with tags and metrics; returns the run's id."""
    with connection.opened() as client:
        run = client.create_run(
            connection.experiment(client, experiment).experiment_id,
            run_name="register",
            tags={"oxa.kind": "register", **tags},
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
    with connection.opened() as client:
        value = f"{run_id}/{artifact}#{digest}"
        client.set_model_version_tag(settings.model, str(version.number), "oxa.results", value)


def has_results(version: Version, digest: str) -> bool:
    """Whether these answers are kept for the version already."""
    return version.tags.get("oxa.results", "").endswith(f"#{digest}")


def results(version: Version) -> str | None:
    """The text kept by `keep_results`; None where there is none or it cannot be had any more.

    Raises UserError where MLflow does not say which.
    """
    return _kept(version, version.tags.get("oxa.results", "").partition("#")[0].partition("/")[2])


def comparison(version: Version) -> str | None:
    """The table (Markdown) of all arms that was kept beside its results, as for `results`."""
    return _kept(version, "table.md")


def _kept(version: Version, artifact: str) -> str | None:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    run_id = version.tags.get("oxa.results", "").partition("/")[0]
    if not run_id:
        return None
    with connection.opened() as client, TemporaryDirectory() as folder:
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
    if (md5 := fingerprint.md5()) != expected:
        before: dict[str, str] = json.loads(one.tags["oxa.lineage"])["files"]
        now = fingerprint.content()
        differing = [
            f"{name} {'added' if name not in before else 'gone' if name not in now else 'changed'}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        raise DataError(
            f"{path}: its files changed since {one.name} was registered: {', '.join(differing)} "
            f"(md5 {expected} then, {md5} now); {mend}"
        )
    return path


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
