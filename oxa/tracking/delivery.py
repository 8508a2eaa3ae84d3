"""Sends one spool's events to its run in MLflow.

Every message can be sent twice, for the sender may be killed at any time, and starts again behind the last message that
was noted down: MLflow keeps a metric once by (name, step, time, value), params and tags by name, inputs by name and
digest; a run is looked up by its spool's id before it is created a second time. A resumed stage logs some steps again;
those are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from oxa.tracking import connection
from oxa.tracking.connection import clean
from oxa.tracking.spool import EVENTS, Notes, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 500  # metrics that are sent together
EMPTY: Mapping[str, str] = MappingProxyType({})
PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")


class Refused(Exception):
    """MLflow takes a spool for wrong, and will do so again; str(error) is the reason."""


def send(client: MlflowClient, spool: Spool) -> None:
    """Sends what is new in a spool.

    Raises Refused where there is no use in trying again, and notes why; else whatever MLflow does.
    """
    from mlflow.exceptions import MlflowException

    uri = connection.fingerprint()
    notes = spool.notes(uri)
    try:
        try:
            Shipment(client, spool, notes).send()
        except MlflowException as error:
            if error.error_code not in PERMANENT or not notes.run_id or not _is_gone(client, notes.run_id):
                raise
            # somebody deleted the run, or the database: the spool is whole, and starts again
            Shipment(client, spool, Notes(uri)).send()
    except MlflowException as error:
        if error.error_code not in PERMANENT:
            raise
        connection.log_traceback()
        notes = spool.notes(uri)
        notes.fault = connection.reason(error)
        spool.keep(notes)
        raise Refused(notes.fault) from None


def _is_gone(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "deleted")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True


class Shipment:
    """One spool's events on their way to its MLflow run."""

    def __init__(self, client: MlflowClient, spool: Spool, notes: Notes) -> None:
        self._client, self._spool, self._notes = client, spool, notes
        self._metrics: list[Any] = []

    def send(self) -> None:
        """Sends all whole lines that are new."""
        self._notes.fault = ""
        with (self._spool.path / EVENTS).open("rb") as file:
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
        from mlflow.exceptions import MlflowException

        experiment = connection.experiment(self._client, event["experiment"])
        if experiment.lifecycle_stage == "deleted":
            raise MlflowException.invalid_parameter_value(
                f"experiment {experiment.name!r} is deleted; restore it in MLflow, or choose another"
                " tracking.experiment"
            )
        if self._notes.run_id is None:
            self._create(experiment.experiment_id, event)
            self._describe(event)
            return
        self._client.update_run(self._run, status="RUNNING")
        self._log(tags=event["tags"])
        if self._notes.failed:
            if "oxa.error" in self._client.get_run(self._run).data.tags:  # a sender may have died in between
                self._client.delete_tag(self._run, "oxa.error")
            self._notes.failed = False

    def _create(self, experiment: str, event: dict[str, Any]) -> None:
        if self._notes.creating:
            runs = self._client.search_runs([experiment], f"tags.`oxa.spool` = '{self._spool.id}'")
            if runs:
                self._notes.run_id = runs[0].info.run_id
        if self._notes.run_id is None:
            self._notes.creating = True
            self._note(0)
            tags = {clean(name): value[:5000] for name, value in event["tags"].items()}
            tags["oxa.spool"] = self._spool.id
            run = self._client.create_run(experiment, event["time"], tags, event["stage"])
            self._notes.run_id = run.info.run_id

    def _describe(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._log(params=event["params"])
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
        path = self._spool.path / event["path"]
        if path.is_dir():
            self._client.log_artifacts(self._run, str(path), path.name)
        elif path.exists():
            self._client.log_artifact(self._run, str(path))

    def _result(self, event: dict[str, Any]) -> None:
        # beside the last step; where a name was logged with that step, it is the same number
        step = max(self._notes.steps.values(), default=0)
        self._add(event["metrics"], step, event["time"])
        self._log(tags={f"dvc.out.{path}": digest for path, digest in event["outputs"].items()})

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

    def _log(self, *, params: Mapping[str, str] = EMPTY, tags: Mapping[str, str] = EMPTY) -> None:
        """Sends these and the metrics so far."""
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            self._run,
            self._metrics,
            [Param(clean(name), value[:6000]) for name, value in params.items()],
            [RunTag(clean(name), value[:5000]) for name, value in tags.items()],
        )
        self._metrics = []

    def _flush(self, end: int) -> None:
        if self._metrics:
            self._log()
        if end > self._notes.offset:
            self._note(end)

    def _note(self, end: int) -> None:
        self._notes.offset = end
        self._spool.keep(self._notes)

    @property
    def _run(self) -> str:
        assert self._notes.run_id is not None, "events before a begin"
        return self._notes.run_id
