"""A spool: one stage's record for MLflow, kept on disk until it is sent, so that no stage waits for a server.

A spool is the folder `.tracking/<stage>.<key>.<id>`:

    events.jsonl    one event a line: begin, log, artifact, result, end; times in milliseconds since 1970
    uri             fingerprint of the tracking URI under which the stage ran last
    artifacts/      copies of the files to send, for the originals may be gone when they are
    sent.json       notes: which MLflow run this is, and up to where it was sent

A stage (oxa/tracking/record.py) holds a flock on its events.jsonl as long as it lives; without an end and without a
lock, it was killed. The same stage with the same key (guard's hash of inputs, configuration and code) continues an
unfinished spool, and with it the MLflow run. Lines are written whole and unbuffered: a kill costs at most the last
one, which is then skipped.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oxa.errors import tell
from oxa.runtime import files
from oxa.tracking import connection

EVENTS = "events.jsonl"
NAME = re.compile(r"[^.].*\.[^.]+\.[0-9a-f]+")
PATIENCE = 2.0  # seconds to wait for a lock that is held for a moment only


@dataclass
class Notes:
    """What is sent of a spool; written to its sent.json after every message."""

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


class Spool:
    """A spool on disk. Whoever does not hold its lock may see it vanish: then it is sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage, _, self.id = path.name.rsplit(".", 2)
        self._events = path / EVENTS
        self._descriptor = -1
        self._torn = False

    @classmethod
    def open(cls, folder: Path, stage: str, key: str) -> Spool:
        """The stage's unfinished spool, or a new one, locked. Raises OSError where the disk takes none."""
        assert not set("./") & set(key), key
        stage = stage.replace("/", "_")  # of a dvc.yaml in a sub-folder
        name = f"{stage}.{key}.{uuid.uuid4().hex[:12]}"
        for path in folder.iterdir() if folder.exists() else ():
            if not path.name.startswith(".") and path.name.rpartition(".")[0] == f"{stage}.{key}":
                spool = cls(path)
                if spool.lock():
                    if spool.status() != "FINISHED":
                        break
                    spool.release()
        else:
            new = folder / f".{name}"  # renamed under its lock, so that nobody takes it for a killed one
            new.mkdir(parents=True)
            (new / EVENTS).touch()
            descriptor = lock(new / EVENTS)
            assert descriptor is not None
            spool = cls(new.rename(folder / name))._take(descriptor)
        spool.adopt()
        return spool

    def lock(self, patience: float = PATIENCE) -> bool:
        """Takes the lock, for writing; False where another process keeps it, or the spool is gone."""
        descriptor = lock(self._events, patience)
        if descriptor is not None:
            self._take(descriptor)
        return descriptor is not None

    def _take(self, descriptor: int) -> Spool:
        size = os.fstat(descriptor).st_size
        self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        os.close(self._descriptor)  # the lock goes with it

    def write(self, event: str, **content: Any) -> None:
        """Appends an event, under the lock. A disk that takes no more costs the event, not the stage."""
        line = json.dumps({"event": event, "time": time.time_ns() // 1_000_000, **content}) + "\n"
        data = b"\n" * self._torn + line.encode()  # a torn line gets its end, and becomes one that is skipped
        self._torn = True
        try:
            self._torn = os.write(self._descriptor, data) < len(data)
        except OSError as error:
            tell(f"{self.path}: {event} is not kept for MLflow ({error.strerror})")

    def adopt(self) -> None:
        """Means it for the configured MLflow."""
        (self.path / "uri").write_text(connection.fingerprint())

    def mine(self) -> bool:
        """Whether it is meant for the configured MLflow."""
        return self._uri() == connection.fingerprint()

    def _uri(self) -> str:
        try:
            return (self.path / "uri").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def notes(self, uri: str = "") -> Notes:
        """What is sent of it to the MLflow of this fingerprint, by default to the one that it is meant for."""
        fresh = Notes(uri or self._uri())
        try:
            notes = Notes(**json.loads((self.path / "sent.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return fresh
        except (ValueError, TypeError):  # damaged: all is sent again, to the run that may be there
            return Notes(fresh.uri, creating=True)
        return notes if notes.uri == fresh.uri else fresh

    def keep(self, notes: Notes) -> None:
        files.write_json(self.path / "sent.json", asdict(notes))

    def live(self) -> bool:
        """Whether its stage runs."""
        return held(self._events)

    def size(self) -> int:
        """Bytes of its events."""
        try:
            return self._events.stat().st_size
        except FileNotFoundError:
            return 0

    def status(self) -> str | None:
        """How its stage ended last: FINISHED, FAILED or KILLED; None where its last event is no end."""
        try:
            with self._events.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))  # an end is a short line
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return None
        try:
            event = json.loads(lines[-2]) if len(lines) > 1 and not lines[-1] else None
        except ValueError:
            return None
        return event.get("status") if isinstance(event, dict) else None

    def unsent(self) -> bool:
        """Whether some of it is still to be sent, or to be written."""
        return self.size() > 0 and (not self.status() or self.notes().offset < self.size())

    def end_if_killed(self) -> None:
        """Writes the end that a killed stage could not; its last sign of life is the time."""
        if self.lock(patience=0):
            if not self.status():
                self.write("end", status="KILLED", time=os.fstat(self._descriptor).st_mtime_ns // 1_000_000)
            self.release()

    def remove(self) -> None:
        """Unless its stage has come back meanwhile."""
        if self.lock(patience=0):
            if not self.unsent():
                shutil.rmtree(self.path.rename(self.path.with_name(f".gone.{self.path.name}")))
            self.release()


def spools(folder: Path) -> list[Spool]:
    """All spools, by name; what else lies in the folder is left alone."""
    if not folder.exists():
        return []
    return [
        Spool(path)
        for path in sorted(folder.iterdir())
        if NAME.fullmatch(path.name) and (path / EVENTS).is_file() and (path / "uri").is_file()
    ]


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
    """Opens a file for appending, under its lock; None where another process keeps that, or the file is gone."""
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
