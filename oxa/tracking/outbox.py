"""MLflow for people and for the rest of the code: a client, runs by their tags, and what became of the spools.

Stages write spools (oxa/tracking/spool.py), a process of its own (oxa/tracking/sender.py) sends them
(oxa/tracking/delivery.py).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from oxa.errors import UserError
from oxa.tracking import delivery, sender, spool
from oxa.tracking.delivery import Unreachable
from oxa.tracking.sender import ATTENDED, Sender, spools
from oxa.tracking.spool import FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from oxa.config.operations import Tracking

PATIENCE = 60.0  # seconds that a replay waits for a sender at work

reason = delivery.reason


def client(folder: Path = FOLDER) -> MlflowClient:
    """A client of the configured MLflow; a database is created if there is none.

    Raises UserError where it cannot be reached.
    """
    try:
        return delivery.connect(folder)
    except Exception as error:  # MLflow hands on whatever its backends raise
        raise _unreachable(error) from None


def find_runs(experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """The experiment's runs that carry all these tags, the newest first.

    Raises UserError where MLflow cannot be reached.
    """
    found = client()
    try:
        known = found.get_experiment_by_name(experiment)
        query = " and ".join(f"tags.`{delivery.clean(name)}` = '{value}'" for name, value in tags.items())
        runs: list[Run] = []
        token = None
        while known is not None:
            page = found.search_runs([known.experiment_id], query, max_results=1000, page_token=token)
            runs += page
            if not (token := page.token):
                break
        return runs
    except Exception as error:  # as above
        raise _unreachable(error) from None


@contextmanager
def sending(settings: Tracking, folder: Path = FOLDER) -> Iterator[None]:
    """Keeps one sender at work while the block runs: one that a stage starts ends with the flow's child (lifeline)."""
    if not settings.enabled:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ATTENDED).open("a") as file:
        with suppress(BlockingIOError):  # another one attends
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        spool.kick(folder)
        yield


def wait_until_sent(folder: Path = FOLDER, seconds: float = 60.0, since: float | None = None) -> str | None:
    """Waits until all that ended stages left is sent; else returns a sentence for a person, and why it is not.

    An MLflow that did not answer when the sender last tried is not waited for if that was after `since` (seconds since
    1970; by default now): the sender's next try may be a quarter of a minute off.
    """
    began, kicked = time.time(), 0.0
    while left := [one for one in spools(folder) if one.mine() and not one.live() and one.unsent()]:
        working = spool.held(folder / f"{spool.sender_name()}.lock")
        failed = spool.state(folder)
        if failed["down"] and failed["time"] > (began if since is None else since):
            return spool.kept(folder, failed["error"])
        faults = [fault for one in left if (fault := one.notes().fault)]
        if len(faults) == len(left):
            return (
                f"MLflow refuses {', '.join(one.stage for one in left)} ({faults[0]}); `oxa track` tells more"
            )
        if time.time() > began + seconds:
            return (
                f"MLflow at {spool.shown(spool.uri())} has not taken all yet"
                + (f" ({failed['error']})" if failed["error"] else "")
                + "; sending goes on, and `oxa track` tells what is left"
            )
        if not working and time.time() > kicked + 2:
            spool.kick(folder)
            kicked = time.time()
        time.sleep(0.1)
    return None


def status(folder: Path = FOLDER) -> str:
    """What is sent, what is not, and why: for `oxa track`."""
    found = spools(folder)
    live = [one for one in found if one.live()]
    unsent = [one for one in found if one not in live and one.unsent()]
    lines = [f"MLflow: {spool.shown(spool.uri())}"]
    lines += [f"{one.stage}: runs" for one in live]
    for one in unsent:
        why = one.notes().fault if one.mine() else "it was meant for another MLFLOW_TRACKING_URI"
        lines.append(f"{one.stage}: not sent" + (f" ({why})" if why else ""))
    failed = spool.state(folder)
    if failed["error"] and (live or unsent):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failed["time"]))
        lines.append(f"last error, {when}: {failed['error']}")
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
    client(folder)
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
        sending_now = Sender(folder)
        for attempt in range(1, sender.TRIES + 1):
            try:
                sending_now.sweep()
                spool.note_state(folder)
                break
            except Exception as error:  # MLflow hands on whatever its backends raise
                if attempt == sender.TRIES or isinstance(error, Unreachable):
                    raise _unreachable(error) from None
                time.sleep(sender.pause(attempt))
    finally:
        os.close(lock)
        if any(one.live() or one.unsent() for one in spools(folder)):  # whose kick found our lock
            spool.kick(folder)
    refused = [f"MLflow refuses {one.stage}: {fault}" for one in left if (fault := one.notes().fault)]
    if refused:
        raise UserError("\n".join(refused))
    return sent


def _unreachable(error: Exception) -> UserError:
    return UserError(f"MLflow at {spool.shown(spool.uri())} cannot be reached ({reason(error)})")
