"""Sends what stages wrote into their spools to MLflow.

`python -m oxa.tracking.sender` is one process a workspace and tracking URI (a flock says so). The first stage starts it
(`spool.kick`), it works while stages live, and is gone some seconds after the last one. So a stage waits for nothing,
the database has one writer, and mlflow (2 s) is imported once. It may be killed at any time: see
oxa/tracking/delivery.py.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from oxa.tracking import spool
from oxa.tracking.delivery import Courier, Notes, Refused, Unreachable, knock, log_traceback, reason
from oxa.tracking.spool import FOLDER

POLL = 1.0  # seconds between two looks at the spools
LINGER = 5.0  # seconds to wait for the next stage
LONGEST_PAUSE = 15.0  # seconds between two tries, at most
TRIES = 8  # of an MLflow that answers, but fails, with no stage alive
TRIES_UNREACHABLE = 2  # of one that does not answer
ATTENDED = "attended.lock"  # held by who asks the sender to stay


class Spool:
    """A spool as the sender sees it. Whoever else looks may see it vanish: then it is sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stage, self.key, self.id = path.name.rsplit(".", 2)
        self.events = path / spool.EVENTS

    def mine(self) -> bool:
        """Whether it is to go to the configured MLflow."""
        return self.uri() == spool.fingerprint(spool.uri())

    def uri(self) -> str:
        """Fingerprint of the MLflow that it is meant for."""
        try:
            return (self.path / "uri").read_text()
        except FileNotFoundError:
            return ""

    def adopt(self) -> None:
        (self.path / "uri").write_text(spool.fingerprint(spool.uri()))

    def notes(self) -> Notes:
        return Notes.of(self.path, self.uri())

    def live(self) -> bool:
        return spool.held(self.events)

    def size(self) -> int:
        try:
            return self.events.stat().st_size
        except FileNotFoundError:
            return 0

    def last(self) -> dict[str, Any]:
        """The end, if the last event is one."""
        try:
            with self.events.open("rb") as file:
                event = spool.last_event(file.fileno())
        except FileNotFoundError:
            return {}
        return event if event.get("event") == "end" else {}

    def unsent(self) -> bool:
        return self.size() > 0 and (not self.last() or self.notes().offset < self.size())

    def end_if_killed(self) -> None:
        """Writes the end that a killed stage could not; its last sign of life is the time."""
        descriptor = spool.lock(self.events, patience=0)
        if descriptor is not None:
            if spool.last_event(descriptor).get("event") != "end":
                died = os.fstat(descriptor).st_mtime_ns // 1_000_000
                spool.Record(self.path, descriptor).write("end", status="KILLED", time=died)
            os.close(descriptor)

    def remove(self) -> None:
        """Unless the stage has come back meanwhile."""
        descriptor = spool.lock(self.events, patience=0)
        if descriptor is not None:
            if not self.unsent():
                gone = self.path.with_name(f".gone.{self.path.name}")
                self.path.rename(gone)
                shutil.rmtree(gone)
            os.close(descriptor)


def spools(folder: Path) -> list[Spool]:
    """All spools, by name."""
    if not folder.exists():
        return []
    return [
        Spool(path)
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (path / spool.EVENTS).exists() and (path / "uri").exists()
    ]


class Sender:
    """Sends every spool of a folder; whoever uses it holds the sender's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._courier: Courier | None = None
        self._refused: set[str] = set()

    def work(self) -> dict[str, int]:
        """Sends until there has been nothing to do for a while, or no sense in trying on.

        Returns the spools' sizes from before the last look at them.
        """
        failures, noted, last_work = 0, False, time.monotonic()
        while True:
            before = sizes(self._folder)
            try:
                self.sweep()
            except Exception as error:  # MLflow hands on whatever its backends raise; all is kept
                failures += 1
                if not isinstance(error, Unreachable):
                    log_traceback()
                spool.note_state(self._folder, reason(error), down=isinstance(error, Unreachable))
                tries = TRIES_UNREACHABLE if isinstance(error, Unreachable) else TRIES
                if failures >= tries and not self._attended():
                    return before
                time.sleep(pause(failures))
            else:
                if not noted or failures:
                    spool.note_state(self._folder)
                    noted = True
                failures = 0
                if self._attended():
                    last_work = time.monotonic()
                elif time.monotonic() > last_work + LINGER:
                    return before
                time.sleep(POLL)

    def sweep(self) -> None:
        """Looks at every spool once and sends what is new. What MLflow refuses for good is noted and left alone.

        A spool that fails keeps none of the others from being sent; raises its error, the first of several, at the end.
        """
        failed: Exception | None = None
        for one in spools(self._folder):
            try:
                if one.mine():
                    self._look_at(one)
            except Unreachable:
                raise
            except Exception as error:  # MLflow hands on whatever its backends raise
                failed = failed or error
        if failed:
            raise failed

    def _look_at(self, one: Spool) -> None:
        live = one.live()
        if not live:
            one.end_if_killed()
        if one.path.name not in self._refused and one.notes().offset < one.size():
            self._send(one)
        if not live and one.last().get("status") == "FINISHED" and not one.unsent():
            one.remove()
            for other in spools(self._folder):  # what was left of attempts on other inputs
                if other.stage == one.stage and not other.live() and not other.unsent():
                    other.remove()

    def _attended(self) -> bool:
        """Whether more may come: a stage lives, or somebody asks the sender to stay."""
        return spool.held(self._folder / ATTENDED) or any(
            one.live() for one in spools(self._folder) if one.mine()
        )

    def _send(self, one: Spool) -> None:
        if self._courier is None:
            self._courier = Courier(self._folder)
        try:
            self._courier.send(one.path)
        except Refused:
            self._refused.add(one.path.name)
        except Exception:
            self._courier = None
            knock()  # a server that went away says so here in fewer words
            raise


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each spool's events."""
    return {one.path.name: one.size() for one in spools(folder)}


def pause(failures: int) -> float:
    return min(LONGEST_PAUSE, 0.5 * 2.0**failures)


def lock(folder: Path) -> int | None:
    """The sender's lock, as a descriptor; None where another sender is at work."""
    descriptor = os.open(folder / f"{spool.sender_name()}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    for _ in range(10):  # whoever asks whether a sender is at work shares the lock for a moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return descriptor
    os.close(descriptor)
    return None


def main() -> None:
    """Works until there is nothing left to do, and looks once more after its lock is free: see `spool.kick`."""
    folder = Path(os.environ.get("OXA_TRACKING_FOLDER", FOLDER))
    os.nice(5)  # the stages go first
    first = True
    while (held := lock(folder)) is not None:
        if first:
            with suppress(OSError):  # not a file where a person started us
                os.ftruncate(2, 0)  # the log holds the last sender's words
            first = False
        for left in folder.glob(".gone.*"):  # by a sender that was killed
            shutil.rmtree(left, ignore_errors=True)
        seen = Sender(folder).work()
        os.close(held)
        if all(seen.get(name) == size for name, size in sizes(folder).items()):
            return


if __name__ == "__main__":
    main()
