"""A stage's record for MLflow: its parameters, inputs, metrics and files, written to a spool while it runs.

    with recorded(settings, stage="train@sft-0", kind="train", items={"arm": "sft", "seed": "0"}, …) as record:
        record.log(1, loss=0.7)
        record.finish(metrics, outputs)

Nothing is sent from here: oxa/tracking/sender.py sends the spool (oxa/tracking/spool.py) in the background.
"""

from __future__ import annotations

import json
import numbers
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxa.errors import tell, without_credentials
from oxa.tracking import provenance, sender
from oxa.tracking.connection import FOLDER
from oxa.tracking.spool import Spool

if TYPE_CHECKING:
    from oxa.config.operations import Tracking

LATELY = 600.0  # seconds for which an error of the sender's is worth a warning


class Record:
    """What a running stage writes its record with. Without a spool (tracking is off) it does nothing."""

    def __init__(self, spool: Spool | None = None) -> None:
        self._spool = spool

    def log(self, step: int, **values: float) -> None:
        """A `journal.Log`: metrics of one step."""
        if self._spool:
            self._spool.write("log", step=step, values={name: float(value) for name, value in values.items()})

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file, or of a folder with all that is in it, to be sent under its name."""
        if not self._spool:
            return
        copy = self._spool.path / "artifacts" / uuid.uuid4().hex[:8] / path.name
        try:
            copy.parent.mkdir(parents=True)
            shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
        except OSError as error:
            tell(f"{path} is not sent to MLflow ({error.strerror})")
        else:
            self._spool.write("artifact", path=str(copy.relative_to(self._spool.path)))

    def finish(self, metrics: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
        """What the stage returned (numbers; all else is left out), and its outputs' DVC md5 by path."""
        values = {
            name: float(value)
            for name, value in _leaves(metrics)
            if isinstance(value, numbers.Real) and not isinstance(value, bool)
        }
        if self._spool:
            self._spool.write("result", metrics=values, outputs=dict(outputs))


@contextmanager
def recorded(
    settings: Tracking,
    *,
    stage: str,
    kind: str,
    items: Mapping[str, str],
    key: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    folder: Path = FOLDER,
) -> Iterator[Record]:
    """Records a stage while the block runs, and sees to it that a sender sends it.

    `params` are the stage's sections by their keys in params.yaml; `inputs` the DVC md5 by path. An exception ends the
    record as FAILED with the exception's text, Ctrl-C as KILLED.
    """
    if not settings.enabled:
        yield Record()
        return
    try:
        spool = Spool.open(folder, stage, key)
    except OSError as error:
        tell(f"{folder}: nothing of this stage is kept for MLflow ({error.strerror})")
        yield Record()
        return
    spool.write(
        "begin",
        stage=stage,
        experiment=settings.experiment,
        tags={
            "oxa.stage": stage,
            "oxa.kind": kind,
            **{f"oxa.{name}": value for name, value in items.items()},
            "oxa.key": key,
            **provenance.tags(),
            **{f"dvc.in.{path}": digest for path, digest in inputs.items()},
            "mlflow.source.name": f"oxa {kind}",
        },
        params=_params(kind, items, params),
        inputs=dict(inputs),
    )
    sender.kick(folder)
    warned = _warn(folder)
    try:
        yield Record(spool)
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        spool.write("end", status=status, error=_sentence(error))
        raise
    else:
        spool.write("end", status="FINISHED")
    finally:
        spool.release()
        sender.kick(folder)
        if not warned:
            _warn(folder)


def _sentence(error: BaseException) -> str:
    return without_credentials(" ".join(f"{type(error).__name__}: {error}".split()))[:500]


def _params(kind: str, items: Mapping[str, str], sections: Mapping[str, Any]) -> dict[str, str]:
    """MLflow params under names that compare between arms: `train.arms.sft.num_ul` is `num_ul` of every arm's run."""
    own = (f"{kind}.shared.", f"{kind}.arms.{items.get('arm')}.", f"{kind}.")
    params = dict(items)
    for name, value in _leaves(sections):
        prefix = next((prefix for prefix in own if name.startswith(prefix)), "")
        params[name.removeprefix(prefix)] = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
    return params


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts with their dotted names."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _warn(folder: Path) -> bool:
    """Prints the sender's error where it had one lately; whether it did."""
    state = sender.state(folder)
    recent = bool(state["error"]) and time.time() - state["time"] <= LATELY
    if recent:
        tell(sender.outage(folder, state["error"]))
    return recent
