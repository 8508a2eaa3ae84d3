"""What a stage tells MLflow goes to disk first: no stage waits for a server, and nothing is lost with one.

    with spool.record(settings, stage="train@sft-0", kind="train", items={"arm": "sft", "seed": "0"}, …) as record:
        record.log(1, loss=0.7)
        record.finish(metrics, outputs)

A spool is the folder `.tracking/<stage>.<key>.<id>`:

    events.jsonl    one event a line: begin, log, artifact, result, end; times in milliseconds since 1970
    uri             fingerprint of the tracking URI under which the stage ran last
    artifacts/      copies of the files to send, for the originals may be gone when they are
    sent.json       the sender's notes: which MLflow run this is, and up to where it was sent

A stage holds a flock on its events.jsonl as long as it lives; without an end and without a lock, it was killed. The
same stage with the same key (guard's hash of inputs, configuration and code) continues an unfinished spool, and with
it the MLflow run. Lines are written whole and unbuffered: a kill costs at most the last one, which is then skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import numbers
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from oxa.errors import tell
from oxa.tracking import provenance

if TYPE_CHECKING:
    from oxa.config.operations import Tracking

FOLDER = Path(".tracking")
EVENTS = "events.jsonl"
EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development"
}  # else its page opens on traces, not on runs
LATELY = 600.0  # seconds for which an error of the sender's is worth a warning
PATIENCE = 2.0  # seconds to wait for a lock that is held for a moment only


class Record:
    """A running stage's end of its spool. Without a folder (tracking is off) it does nothing."""

    def __init__(self, folder: Path | None = None, descriptor: int = -1) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._torn = bool(folder) and not _ends_whole(descriptor)

    def log(self, step: int, **values: float) -> None:
        """A `records.Log`: metrics of one step."""
        self.write("log", step=step, values={name: float(value) for name, value in values.items()})

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file, or of a folder with all that is in it, to be sent under its name."""
        if self._folder is not None:
            place = self._folder / "artifacts" / uuid.uuid4().hex[:8]
            try:
                place.mkdir(parents=True)
                shutil.copytree(path, place / path.name) if path.is_dir() else shutil.copyfile(
                    path, place / path.name
                )
            except OSError as error:
                tell(f"{path} is not sent to MLflow ({error.strerror})")
            else:
                self.write("artifact", path=str((place / path.name).relative_to(self._folder)))

    def finish(self, metrics: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
        """What the stage returned (numbers; all else is left out), and its outputs' DVC md5 by path."""
        found = {
            name: float(value)
            for name, value in flatten(metrics)
            if isinstance(value, numbers.Real) and not isinstance(value, bool)
        }
        self.write("result", metrics=found, outputs=dict(outputs))

    def write(self, event: str, **content: Any) -> None:
        """Appends an event. A disk that takes no more costs the event, not the stage."""
        if self._folder is None:
            return
        line = json.dumps({"event": event, "time": _now(), **content}) + "\n"
        data = b"\n" * self._torn + line.encode()  # a torn line gets its end, and becomes one that is skipped
        self._torn = True
        try:
            self._torn = os.write(self._descriptor, data) < len(data)
        except OSError as error:
            tell(f"{self._folder}: {event} is not kept for MLflow ({error.strerror})")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the lock goes with it


@contextmanager
def record(
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
        path, descriptor = _open(folder, stage, key)
        (path / "uri").write_text(fingerprint(uri()))
    except OSError as error:
        tell(f"{folder}: nothing of this stage is kept for MLflow ({error.strerror})")
        yield Record()
        return
    run = Record(path, descriptor)
    run.write(
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
    kick(folder)
    warned = _warn(folder)
    try:
        yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        run.write("end", status=status, error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
        raise
    else:
        run.write("end", status="FINISHED")
    finally:
        run.close()
        kick(folder)
        if not warned:
            _warn(folder)


def kick(folder: Path = FOLDER) -> None:
    """Starts the sender, detached, unless one is at work.

    Whoever has something to send writes it down first and kicks then; the sender looks again after it has let go of
    its lock. So either this finds the lock free, or the sender finds the event.
    """
    if held(folder / f"{sender_name()}.lock"):
        return
    with suppress(OSError), (folder / f"{sender_name()}.log").open("ab") as log:
        # through a shell that ends at once: no zombie stays with a long stage
        subprocess.run(
            ["sh", "-c", '"$0" -m oxa.tracking.sender &', sys.executable],
            env=os.environ | {"OXA_TRACKING_FOLDER": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=False,
        )


def uri() -> str:
    """Where MLflow is."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def shown(address: str) -> str:
    """A URI without user, password and options."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else address


def fingerprint(address: str) -> str:
    """Tells MLflow servers apart, and does not give a password away."""
    return hashlib.sha256(address.encode()).hexdigest()[:8]


def sender_name() -> str:
    """Stem of the sender's files; each tracking URI has a sender of its own."""
    return f"sender-{fingerprint(uri())}"


def state(folder: Path) -> dict[str, Any]:
    """How the sender fared last: `time` (seconds since 1970; 0: never), `error`, and whether MLflow is `down`."""
    try:
        return dict(json.loads((folder / f"{sender_name()}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {"time": 0.0, "error": "", "down": False}


def note_state(folder: Path, error: str = "", down: bool = False) -> None:
    write_json(folder / f"{sender_name()}.json", {"time": time.time(), "error": error, "down": down})


def write_json(path: Path, value: Any) -> None:
    """Writes a small file that is whole at any time. (`records.write_json` would import pyarrow.)"""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value), encoding="utf-8")
    os.replace(part, path)


def held(path: Path) -> bool:
    """Whether a process holds the file's lock; asking shares the lock for a moment, which no other asker notices."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def lock(path: Path, patience: float = PATIENCE) -> int | None:
    """Opens a spool's events for appending, under their lock; None where another process keeps it, or they are gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            if os.fstat(descriptor).st_nlink:  # else the sender removed the spool while we waited
                return descriptor
            break
    os.close(descriptor)
    return None


def last_event(descriptor: int) -> dict[str, Any]:
    """The last whole event if it is a short one, as ends are; else an empty one."""
    size = os.fstat(descriptor).st_size
    lines = os.pread(descriptor, 8192, max(0, size - 8192)).split(b"\n")
    try:
        return dict(json.loads(lines[-2])) if len(lines) > 1 and not lines[-1] else {}
    except ValueError:
        return {}


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts with their dotted names."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _open(folder: Path, stage: str, key: str) -> tuple[Path, int]:
    """The stage's unfinished spool, or a new one, and its events, locked."""
    assert not set("./") & set(key), key
    stage = stage.replace("/", "_")  # of a dvc.yaml in a sub-folder
    if folder.exists():
        for path in folder.iterdir():
            if path.name.startswith(".") or path.name.rpartition(".")[0] != f"{stage}.{key}":
                continue
            descriptor = lock(path / EVENTS)
            if descriptor is not None:
                if last_event(descriptor).get("status") != "FINISHED":
                    return path, descriptor
                os.close(descriptor)
    name = f"{stage}.{key}.{uuid.uuid4().hex[:12]}"
    new = folder / f".{name}"  # it takes its name under the lock, so that nobody takes it for a killed one
    new.mkdir(parents=True)
    (new / EVENTS).touch()
    descriptor = lock(new / EVENTS)
    assert descriptor is not None
    new.rename(folder / name)
    return folder / name, descriptor


def _ends_whole(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def _params(kind: str, items: Mapping[str, str], sections: Mapping[str, Any]) -> dict[str, str]:
    """MLflow params under names that compare between arms: `train.arms.sft.num_ul` is `num_ul` of every arm's run."""
    own = (f"{kind}.shared.", f"{kind}.arms.{items.get('arm')}.", f"{kind}.")
    found = dict(items)
    for name, value in flatten(sections):
        prefix = next((prefix for prefix in own if name.startswith(prefix)), "")
        found[name.removeprefix(prefix)] = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
    return found


def _warn(folder: Path) -> bool:
    """Says so where the sender failed lately."""
    found = state(folder)
    if not found["error"] or time.time() - found["time"] > LATELY:
        return False
    tell(kept(folder, found["error"]))
    return True


def kept(folder: Path, error: str) -> str:
    """What to tell a person of an MLflow that the sender had this error from."""
    return (
        f"MLflow at {shown(uri())} cannot be reached ({error}); all is kept in {folder}, "
        "and `oxa track --replay` sends it"
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
