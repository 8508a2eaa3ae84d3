"""From a spool's events to a run in MLflow.

Every message can be sent twice, for who sends may be killed at any time, and starts again behind the last message that
was noted down: MLflow keeps a metric once by (name, step, time, value), params and tags by name, inputs by name and
digest; a run is looked up by its spool's id before it is created a second time. A resumed stage logs some steps again;
those are left out.

mlflow is imported only where it is needed, for that takes 2 s.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import posixpath
import re
import socket
import sys
import traceback
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from oxa.tracking import spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT = 10  # seconds for one answer
BATCH = 500  # metrics that are sent together
MAX_METRICS, MAX_OTHERS = 1000, 100  # of one request, to MLflow
PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")


class Unreachable(Exception):
    """MLflow does not answer; str(error) is the reason."""


class Refused(Exception):
    """MLflow takes a spool for wrong, and will do so again; str(error) is the reason."""


def connect(folder: Path) -> MlflowClient:
    """A client of the configured MLflow that has had an answer; a database is created if there is none.

    Raises Unreachable, or whatever MLflow does.
    """
    address = spool.uri()
    knock()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # its own retries go on for minutes; ours are the sender's
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(TIMEOUT))
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what matters is raised
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if urlsplit(address).scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
        import sqlalchemy

        # MLflow tries ten times, for 100 s
        sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool).connect().close()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "database.lock").open("a") as lock:  # of two that create a database at once, one fails
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = MlflowClient(address, registry_uri=address)
        found.search_experiments(max_results=1)
    return found


def knock() -> None:
    """Raises Unreachable where nobody listens at the server's port; costs nothing, where mlflow's import takes 2 s."""
    parts = urlsplit(spool.uri())
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
    port = parts.port or ports.get(parts.scheme.partition("+")[0])
    if not parts.hostname or not port:
        return
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=TIMEOUT).close()
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from None


def reason(error: Exception) -> str:
    """What went wrong, in short, and without a password."""
    text = re.split(r"\[SQL:|\(Background on", " ".join(str(error).split()))[0].strip()
    return _without_password(text)[:200] or type(error).__name__


def log_traceback() -> None:
    """Prints the traceback of the exception at hand, into the sender's log."""
    print(_without_password(traceback.format_exc()), file=sys.stderr, flush=True)


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


def clean(name: str) -> str:
    """A name that MLflow takes: it allows no `@`, among others, and reads names as paths."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_")))[:250]


@dataclass
class Notes:
    """What is sent of a spool; kept in it after every message."""

    uri: str
    """Fingerprint of the tracking URI that the rest is about."""
    run_id: str | None = None
    creating: bool = False
    """A run was asked for, and may exist."""
    offset: int = 0
    """Bytes of the events that are sent."""
    steps: dict[str, int] = field(default_factory=dict)
    """Last step sent of each metric."""
    failed: bool = False
    """The run carries an error from an earlier attempt."""
    fault: str = ""
    """Why MLflow refuses this spool."""

    @classmethod
    def of(cls, folder: Path, uri: str) -> Notes:
        """A spool's notes; fresh ones where there are none, or they are about another MLflow than this."""
        fresh = cls(uri=uri)
        try:
            found = cls(**json.loads((folder / "sent.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return fresh
        return found if found.uri == fresh.uri else fresh

    def keep(self, folder: Path) -> None:
        spool.write_json(folder / "sent.json", asdict(self))


class Courier:
    """A connection over which spools are sent. Made without one: raises Unreachable, or whatever MLflow does."""

    def __init__(self, folder: Path) -> None:
        self._client = connect(folder)
        self._experiments: dict[str, str] = {}

    def send(self, folder: Path) -> None:
        """Sends what is new in a spool.

        Raises Refused where there is no use in trying again, and notes why; else whatever MLflow does.
        """
        from mlflow.exceptions import MlflowException

        uri = spool.fingerprint(spool.uri())
        notes = Notes.of(folder, uri)
        try:
            try:
                Shipment(self, folder, notes).send()
            except MlflowException as error:
                if error.error_code not in PERMANENT or notes.run_id is None or not self._gone(notes.run_id):
                    raise
                # somebody deleted the run, or the database: the spool is whole, and starts again
                Shipment(self, folder, Notes(uri=notes.uri)).send()
        except MlflowException as error:
            if error.error_code not in PERMANENT:
                raise
            log_traceback()
            notes = Notes.of(folder, uri)
            notes.fault = reason(error)
            notes.keep(folder)
            raise Refused(notes.fault) from None

    @property
    def client(self) -> MlflowClient:
        return self._client

    def experiment(self, name: str) -> str:
        """Its id; it is created if there is none."""
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._client.create_experiment(name, tags=spool.EXPERIMENT)
                except MlflowException as error:  # somebody else just did, or it is deleted
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = self._client.get_experiment_by_name(name)
            if found is None or found.lifecycle_stage == "deleted":
                raise MlflowException.invalid_parameter_value(
                    f"experiment {name!r} is deleted; restore it in MLflow, or choose another"
                    " tracking.experiment"
                )
            self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    def _gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True


class Shipment:
    """One spool's events on their way to its MLflow run."""

    def __init__(self, courier: Courier, folder: Path, notes: Notes) -> None:
        self._courier, self._client = courier, courier.client
        self._folder, self._notes = folder, notes
        self._id = folder.name.rpartition(".")[2]
        self._metrics: list[Any] = []

    def send(self) -> None:
        """Sends all whole lines that are new."""
        self._notes.fault = ""
        with (self._folder / spool.EVENTS).open("rb") as file:
            file.seek(self._notes.offset)
            end = self._notes.offset
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                with suppress(ValueError):  # a line cut by a kill
                    event = json.loads(line)
                    if self._notes.run_id is None and event["event"] != "begin":
                        continue  # the disk had no room for its begin: nobody can say whose it is
                    if event["event"] == "log":
                        self._add(event["values"], event["step"], event["time"])
                    else:
                        self._flush(end - len(line))
                        getattr(self, f"_{event['event']}")(event)
                        self._note(end)
                if len(self._metrics) >= BATCH:
                    self._flush(end)
            self._flush(end)

    def _begin(self, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        experiment = self._courier.experiment(event["experiment"])
        tags = {clean(name): value[:5000] for name, value in event["tags"].items()}
        if self._notes.run_id is None:
            self._create(experiment, event, tags | {"oxa.spool": self._id})
            self._describe(event)
        else:
            self._client.update_run(self._run, status="RUNNING")
            self._log_all(tags=[RunTag(name, value) for name, value in tags.items()])
            if self._notes.failed:
                self._delete_tag("oxa.error")
                self._notes.failed = False

    def _create(self, experiment: str, event: dict[str, Any], tags: dict[str, str]) -> None:
        if self._notes.creating:
            found = self._client.search_runs([experiment], f"tags.`oxa.spool` = '{self._id}'")
            if found:
                self._notes.run_id = found[0].info.run_id
        if self._notes.run_id is None:
            self._notes.creating = True
            self._note(0)
            run = self._client.create_run(experiment, event["time"], tags, event["stage"])
            self._notes.run_id = run.info.run_id

    def _describe(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._log_all(params=[Param(clean(name), value[:6000]) for name, value in event["params"].items()])
        datasets = [
            # what MetaDataset makes, without the import of pandas that it costs
            DatasetInput(
                Dataset(path[-500:], digest, "local", json.dumps({"uri": path})),
                [InputTag("mlflow.data.context", "input")],
            )
            for path, digest in event["inputs"].items()
        ]
        if datasets:
            self._client.log_inputs(self._run, datasets)

    def _artifact(self, event: dict[str, Any]) -> None:
        path = self._folder / event["path"]
        if path.is_dir():
            self._client.log_artifacts(self._run, str(path), path.name)
        elif path.exists():
            self._client.log_artifact(self._run, str(path))

    def _result(self, event: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        # beside the last step; where a name was logged with that step, it is the same number
        step = max(self._notes.steps.values(), default=0)
        self._add(event["metrics"], step, event["time"])
        self._send_metrics()
        outputs = {clean(f"dvc.out.{path}"): digest for path, digest in event["outputs"].items()}
        self._log_all(tags=[RunTag(name, digest) for name, digest in outputs.items()])

    def _end(self, event: dict[str, Any]) -> None:
        if error := event.get("error"):
            self._client.set_tag(self._run, "oxa.error", error)
            self._notes.failed = True
        self._client.set_terminated(self._run, event["status"], event["time"])

    def _add(self, values: dict[str, float], step: int, milliseconds: int) -> None:
        from mlflow.entities import Metric

        for name, value in values.items():
            key = clean(name)
            if step > self._notes.steps.get(key, -1):
                self._notes.steps[key] = step
                self._metrics.append(Metric(key, value, milliseconds, step))

    def _flush(self, end: int) -> None:
        self._send_metrics()
        if end > self._notes.offset:
            self._note(end)

    def _send_metrics(self) -> None:
        for start in range(0, len(self._metrics), MAX_METRICS):
            self._client.log_batch(self._run, metrics=self._metrics[start : start + MAX_METRICS])
        self._metrics = []

    def _log_all(self, *, params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        for start in range(0, max(len(params), len(tags)), MAX_OTHERS):
            part = slice(start, start + MAX_OTHERS)
            self._client.log_batch(self._run, params=params[part], tags=tags[part])

    def _delete_tag(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_tag(self._run, name)
        except MlflowException as error:  # deleted already, by one who was killed before noting it
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _note(self, end: int) -> None:
        self._notes.offset = end
        self._notes.keep(self._folder)

    @property
    def _run(self) -> str:
        assert self._notes.run_id is not None, "events before a begin"
        return self._notes.run_id
