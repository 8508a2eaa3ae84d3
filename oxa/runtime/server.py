"""A server on this machine as a child process: awaited until it answers over HTTP, ended with us however we end."""

from __future__ import annotations

import contextvars
import http.client
import os
import queue
import random
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from oxa.errors import UserError
from oxa.runtime.child import Child

ANSWER = 5.0  # seconds for a server that is up to answer
POLL = 0.05  # seconds between two looks at a starting server
SHOWN_LINES = 15  # of a failed server's log
LOG_TAIL = 2**16  # bytes of the log that are read

T = TypeVar("T")

_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerProcess(Child):
    """A server as a child; what it prints goes to the file `log`. `health` answers 200 once it is up."""

    def __init__(self, command: Sequence[str], *, health: str, log: Path, **options: Any) -> None:
        self.health, self.log = health, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            super().__init__(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **options
            )

    def answers_within(self, seconds: float) -> bool:
        """Waits until the server is up; False where it is not in time, or has ended."""
        deadline = time.monotonic() + seconds
        while not answers(self.health, timeout=1.0):
            if self.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return self.poll() is None  # what answered was not ours if ours is gone

    def last_lines(self) -> list[str]:
        """The lines at the end of the log, empty ones left out."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL))
            return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]


def answers(url: str, timeout: float = ANSWER) -> bool:
    """Whether the address answers 200; never asked through a proxy."""
    try:
        with _WITHOUT_PROXY.open(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # urllib's own errors are among the first
        return False


def within(seconds: float, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What the call returns; TimeoutError where it takes longer: it goes on in a thread that ends with the process.

    HTTP clients limit each read, so that a server which sends a byte now and then would hold them for ever.
    """
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((call(*arguments, **options), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=[work], daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    whole: T = value
    return whole


def spare_loopback() -> None:
    """Has every library leave proxies out where it speaks to this machine, if proxies are set at all.

    The whole process and what it starts: Prefect's client, MLflow's and those of DVC each read the environment.
    """
    if not any(name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ):
        return
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if listed.strip() == "*":
        return
    names = [name.strip() for name in listed.split(",") if name.strip()]
    value = ",".join(dict.fromkeys([*names, "127.0.0.1", "localhost"]))
    os.environ |= {"no_proxy": value, "NO_PROXY": value}  # libraries read one or the other


def free_port(first: int | None = None) -> int:
    """The first free port of 127.0.0.1 from `first` on, or from a random one; UserError where there is none.

    Counted up from well below 32768: above it the kernel hands ports to outgoing connections, and one of them could
    take it before the server does.
    """
    first = random.randrange(20_000, 30_000) if first is None else first
    for port in range(first, first + 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {first} and {first + 999}")
