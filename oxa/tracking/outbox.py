"""Spools that wait to be sent to MLflow: what they are, waiting for them, and sending them again (`oxa track`).

Stages write spools (oxa/tracking/record.py), a background process sends them (oxa/tracking/sender.py).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from oxa.errors import UserError
from oxa.tracking import connection, sender
from oxa.tracking.connection import FOLDER, Unreachable
from oxa.tracking.spool import Spool, spools

if TYPE_CHECKING:
    from oxa.config.operations import Tracking

PATIENCE = 60.0  # seconds that a replay waits for a sender at work


@contextmanager
def sending(settings: Tracking, folder: Path = FOLDER) -> Iterator[None]:
    """Keeps one sender at work while the block runs: one that a stage starts ends with the flow's child (lifeline)."""
    if not settings.enabled:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / sender.ATTENDED).open("a") as file:
        with suppress(BlockingIOError):  # another one attends
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sender.kick(folder)
        yield


def wait_until_sent(folder: Path = FOLDER, seconds: float = 60.0, since: float | None = None) -> str | None:
    """Waits until all that ended stages left is sent; else returns a sentence for a person, and why it is not.

    An MLflow that did not answer when the sender last tried is not waited for if that was after `since` (seconds since
    1970; by default now): the sender's next try may be a quarter of a minute off.
    """
    began = time.time() if since is None else since
    deadline, kicked = time.monotonic() + seconds, 0.0
    while left := [one for one in spools(folder) if one.mine() and not one.live() and one.unsent()]:
        is_working = sender.at_work(folder)
        state = sender.state(folder)
        if state["down"] and state["time"] > began:
            return sender.outage(folder, state["error"])
        faults = [fault for one in left if (fault := one.notes().fault)]
        if len(faults) == len(left):
            return (
                f"MLflow refuses {', '.join(one.stage for one in left)} ({faults[0]}); `oxa track` tells more"
            )
        if time.monotonic() > deadline:
            return (
                f"MLflow at {connection.shown(connection.uri())} has not taken all yet"
                + (f" ({state['error']})" if state["error"] else "")
                + "; sending goes on, and `oxa track` tells what is left"
            )
        if not is_working and time.monotonic() > kicked + 2:
            sender.kick(folder)
            kicked = time.monotonic()
        time.sleep(0.1)
    return None


def status(folder: Path = FOLDER) -> str:
    """What is sent, what is not, and why: for `oxa track`."""
    live: list[Spool] = []
    ended: list[Spool] = []
    for one in spools(folder):
        (live if one.live() else ended).append(one)
    unsent = [one for one in ended if one.unsent()]
    lines = [f"MLflow: {connection.shown(connection.uri())}"]
    lines += [f"{one.stage}: runs" for one in live]
    for one in unsent:
        why = one.notes().fault if one.mine() else "it was meant for another MLFLOW_TRACKING_URI"
        lines.append(f"{one.stage}: not sent" + (f" ({why})" if why else ""))
    state = sender.state(folder)
    if state["error"] and (live or unsent):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["time"]))
        lines.append(f"last error, {when}: {state['error']}")
    if unsent:
        lines.append("`oxa track --replay` sends what is left")
    elif not live:
        lines.append("everything is sent")
    return "\n".join(lines)


def replay(folder: Path = FOLDER) -> str:
    """Sends all that ended stages left, whatever MLflow it was meant for; returns a sentence for a person.

    Raises UserError where MLflow cannot be reached, or refuses.
    """
    left = [one for one in spools(folder) if one.unsent() and not one.live()]
    if not left:
        return "nothing is left to send"
    connection.client()
    for one in left:
        one.adopt()
    sent = f"sent: {', '.join(sorted(one.stage for one in left))}"
    deadline = time.monotonic() + PATIENCE
    while (lock := sender.lock(folder)) is None:
        if not any(one.unsent() for one in left):
            return sent
        if time.monotonic() > deadline:
            raise UserError("another process sends to the same MLflow, and is not done yet; try again later")
        time.sleep(0.1)
    try:
        now = sender.Sender(folder)
        for attempt in range(1, sender.TRIES + 1):
            try:
                now.sweep()
                sender.note_state(folder)
                break
            except Exception as error:  # MLflow hands on whatever its backends raise
                if attempt == sender.TRIES or isinstance(error, Unreachable):
                    raise connection.unreachable(error) from None
                time.sleep(sender.pause(attempt))
    finally:
        os.close(lock)
        if any(one.live() or one.unsent() for one in spools(folder)):  # whose kick found our lock
            sender.kick(folder)
    refused = [f"MLflow refuses {one.stage}: {fault}" for one in left if (fault := one.notes().fault)]
    if refused:
        raise UserError("\n".join(refused))
    return sent
