"""One run at a time in a project folder: DVC's own locks never wait, two pipelines would fail each other's stages."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from oxa.errors import UserError

LOCK = Path(".work") / "flow.lock"
_own: list[IO[str]] = []  # the lock, while this process has it


@contextmanager
def held(by: str) -> Iterator[None]:
    """Keeps the project folder for this run; the kernel gives it back however the run ends.

    Inside another `held` of this process it only says more closely who it is. Raises UserError, naming the holder,
    where another run has it.
    """
    if _own:
        _sign(_own[0], by)
        yield
        return
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{Path.cwd()} is in use by {_holder(lock.read())}; wait for it or end it"
            ) from None
        _own.append(lock)
        try:
            _sign(lock, by)
            yield
            lock.truncate(0)
        finally:
            _own.clear()


def _sign(lock: IO[str], by: str) -> None:
    lock.truncate(0)
    lock.write(json.dumps({"by": by, "process": os.getpid(), "since": _now()}))
    lock.flush()


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"{holder['by']} (process {holder['process']}, since {holder['since']})"
    except (ValueError, KeyError):
        return "another run"


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def tag() -> str:
    """What marks this folder's flow runs among all that a Prefect server knows."""
    where = hashlib.md5(f"{socket.gethostname()}:{Path.cwd()}".encode(), usedforsecurity=False).hexdigest()
    return f"workspace:{Path.cwd().name}-{where[:6]}"
