"""The background process that sends what stages wrote into their spools to MLflow.

`python -m oxa.tracking.sender` is one process a workspace and tracking URI (a flock says so). The first stage starts it
(`kick`), it works while stages live, and is gone some seconds after the last one. So a stage waits for nothing, the
database has one writer, and mlflow (2 s) is imported once. It may be killed at any time: see oxa/tracking/delivery.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxa.runtime import files
from oxa.tracking import connection, delivery, spool
from oxa.tracking.connection import FOLDER, Unreachable
from oxa.tracking.spool import Spool, spools

if TYPE_CHECKING:
    from mlflow import MlflowClient

POLL = 1.0  # seconds between two looks at the spools
LINGER = 5.0  # seconds to wait for the next stage
LONGEST_PAUSE = 15.0  # seconds between two tries, at most
TRIES = 8  # of an MLflow that answers, but fails, with no stage alive
TRIES_UNREACHABLE = 2  # of one that does not answer
ELSEWHERE = "OXA_SENDER_ELSEWHERE"  # in the environment of stages whose records another machine sends
ATTENDED = "attended.lock"  # locked by a process that asks the sender to stay


class Sender:
    """Sends every spool of a folder; whoever uses it holds the sender's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: MlflowClient | None = None
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
                down = isinstance(error, Unreachable)
                if not down:
                    connection.log_traceback()
                note_state(self._folder, connection.reason(error), down)
                if failures >= (TRIES_UNREACHABLE if down else TRIES) and not self._attended():
                    return before
                time.sleep(pause(failures))
            else:
                if not noted or failures:
                    note_state(self._folder)
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
        if not live and one.status() == "FINISHED" and not one.unsent():
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
        if self._client is None:
            self._client = connection.connect(self._folder)
        try:
            delivery.send(self._client, one)
        except delivery.Refused:
            self._refused.add(one.path.name)
        except Exception:
            self._client = None
            connection.knock()  # a server that went away says so here in fewer words
            raise


def kick(folder: Path = FOLDER) -> None:
    """Starts the sender, detached, unless one is at work.

    Whoever has something to send writes it down first and kicks then; the sender looks again after it has let go of
    its lock. So either this finds the lock free, or the sender finds the event.
    """
    if ELSEWHERE in os.environ or at_work(folder):
        return
    with suppress(OSError), file_of(folder, "log").open("ab") as log:
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


def file_of(folder: Path, suffix: str) -> Path:
    """The sender's lock, log or json (its state); each tracking URI has a sender of its own."""
    return folder / f"sender-{connection.fingerprint()}.{suffix}"


def at_work(folder: Path = FOLDER) -> bool:
    return spool.held(file_of(folder, "lock"))


def lock(folder: Path) -> int | None:
    """The sender's lock, as a descriptor; None where another sender is at work."""
    path = file_of(folder, "lock")
    path.touch()
    return spool.lock(
        path, patience=0.5
    )  # whoever asks whether a sender is at work shares the lock for a moment


def state(folder: Path) -> dict[str, Any]:
    """How the sender fared last: `time` (seconds since 1970; 0: never), `error`, and whether MLflow is `down`."""
    never = {"time": 0.0, "error": "", "down": False}
    try:
        noted = json.loads(file_of(folder, "json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return never
    return never | noted if isinstance(noted, dict) else never


def note_state(folder: Path, error: str = "", down: bool = False) -> None:
    files.write_json(file_of(folder, "json"), {"time": time.time(), "error": error, "down": down})


def outage(folder: Path, error: str) -> str:
    """A sentence for a person on an MLflow that cannot be reached; `error` is the reason that the sender noted."""
    return (
        f"MLflow at {connection.shown(connection.uri())} cannot be reached ({error}); all is kept in {folder}, "
        "and `oxa track --replay` sends it"
    )


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each spool's events."""
    return {one.path.name: one.size() for one in spools(folder)}


def pause(failures: int) -> float:
    """Seconds to wait after so many failures."""
    return min(LONGEST_PAUSE, 0.5 * 2.0**failures)


def main() -> None:
    """Works until there is nothing left to do, and looks once more after its lock is free: see `kick`."""
    folder = Path(os.environ.get("OXA_TRACKING_FOLDER", FOLDER))
    os.nice(5)  # the stages go first
    first = True
    while (descriptor := lock(folder)) is not None:
        if first:
            with suppress(OSError):  # not a file where a person started us
                os.ftruncate(2, 0)  # the log holds the last sender's words
            first = False
        for left in folder.glob(".gone.*"):  # by a sender that was killed
            shutil.rmtree(left, ignore_errors=True)
        seen = Sender(folder).work()
        os.close(descriptor)
        if all(seen.get(name) == size for name, size in sizes(folder).items()):
            return


if __name__ == "__main__":
    main()
