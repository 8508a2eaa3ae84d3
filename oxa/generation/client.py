"""Several servers of one model as if they were one: requests are shared out, and a server's failures are seen to.

Each server has `concurrency` workers, which take the next request when they have their last answer: a fast server
takes more, and what a server fails at goes back to all. After a lost connection, 429 or 5xx a server is left alone for
FIRST_WAIT · 2^n seconds, n failures in a row; one that has given nothing but failures for PATIENCE seconds is left out.
Any other answer than a response ends the run with the server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from oxa.errors import ConfigError, DataError, UserError, tell

FIRST_WAIT = 0.5  # seconds
LONGEST_WAIT = 16.0  # seconds
PATIENCE = 60.0  # seconds of failures only, after which a server is left out
MAX_LOSSES = 12  # lost connections and 5xx of one request, after which it is taken for their cause
CONNECT_SECONDS = 10.0
BUSY = (429, 503)
FAILING = (408, 500, 502, 504)


@dataclass(eq=False)
class Replica:
    """A server, and how it fares."""

    url: str
    model: str | None = None
    """The name to ask it for; None: the one that it serves, if it is the right one."""
    version: str = "unknown"
    failing_since: float | None = None
    wait: float = field(default_factory=lambda: FIRST_WAIT)
    """Seconds that it is left alone after its next failure."""
    not_before: float = 0.0
    is_out: bool = False

    def pause(self) -> float:
        """Seconds for which it is to be left alone now."""
        return max(0.0, self.not_before - time.monotonic())


@dataclass
class Job:
    index: int
    num_losses: int = 0


class Failure(Exception):
    """An answer after which it is worth to try again; the text is the server's."""

    wait = 0.0
    """Seconds that the server asks for."""


class Busy(Failure):
    """The server is there and has too much to do; not the request's fault."""


LOSSES = (aiohttp.ClientError, OSError, TimeoutError, Failure)


class Client:
    """Shares requests out among servers.

    `body` makes a request's JSON from its index; `check` is called at every failure and may raise what ends the run.
    """

    def __init__(
        self,
        replicas: list[Replica],
        concurrency: int,
        *,
        body: Callable[[int], dict[str, Any]],
        check: Callable[[], None],
    ) -> None:
        self._replicas = replicas
        self._concurrency = concurrency
        self._body = body
        self._check = check
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._answers: asyncio.Queue[tuple[int, dict[str, Any], str] | Exception] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self._replicas if not replica.is_out]

    async def open(self, model: str | Path, max_model_len: int) -> None:
        """Asks every server for what it serves, and starts the workers. Raises UserError as `answer` does."""
        key = os.environ.get("VLLM_API_KEY")
        self._session = aiohttp.ClientSession(
            # no limit on the whole: a long response among many takes as long as it takes
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        await asyncio.gather(*(self._greet(replica, model, max_model_len) for replica in self._replicas))
        # server by server in turn, so that few requests are shared out evenly
        self._workers = [
            asyncio.create_task(self._work(replica))
            for _ in range(self._concurrency)
            for replica in self.alive
        ]

    def ask(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._jobs.put_nowait(Job(index))

    async def answer(self) -> tuple[int, dict[str, Any], str]:
        """The next response to come: its index, the answer's `choice` and the server's URL.

        Raises UserError where a server refuses a request or answers what is no response, or none is left; the last
        comes from a ConnectionError: a later try may succeed.
        """
        found = await self._answers.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _greet(self, replica: Replica, model: str | Path, max_model_len: int) -> None:
        while not replica.is_out:
            try:
                served = (await self._call(replica, "v1/models"))["data"]
                break
            except LOSSES as error:
                self._failed(replica, error)
                await asyncio.sleep(replica.pause())
            except (KeyError, TypeError):
                raise DataError(
                    f"{replica.url}: no OpenAI-compatible server: /v1/models lists none"
                ) from None
        else:
            return
        entry = next((entry for entry in served if is_asked_for(entry, model, replica.model)), None)
        if entry is None:
            names = ", ".join(str(entry.get("id")) for entry in served) or "none"
            raise ConfigError(
                f"{replica.url}: serves {names} and not {model}; start it with --served-model-name {model} if it is "
                "that model"
            )
        replica.model = entry["id"]
        room = entry.get("max_model_len")
        if room is not None and room < max_model_len:
            raise ConfigError(too_short(f"{replica.url}: its --max-model-len", room, max_model_len))
        with contextlib.suppress(*LOSSES, UserError, KeyError, TypeError):  # vLLM's own, not OpenAI's
            replica.version = str((await self._call(replica, "version"))["version"])

    async def _work(self, replica: Replica) -> None:
        while not replica.is_out:
            await asyncio.sleep(replica.pause() * random.uniform(1.0, 1.5))  # not all come back at once
            job = await self._jobs.get()
            if replica.is_out or replica.pause():
                self._jobs.put_nowait(job)  # wakes another's worker, if one waits
                continue
            try:
                body = self._body(job.index) | {"model": replica.model}
                choice = (await self._call(replica, "v1/completions", body))["choices"][0]
                if choice.get("finish_reason") == "abort":  # what a server that is being ended answers
                    raise Failure("it broke the response off")
            except LOSSES as error:
                try:
                    self._failed(replica, error, job)
                except UserError as final:
                    self._answers.put_nowait(final)
                    return
                self._jobs.put_nowait(job)
            except (KeyError, IndexError, TypeError, AttributeError):
                self._answers.put_nowait(
                    DataError(f"{replica.url}: the answer to a request holds no response")
                )
            except UserError as final:
                self._answers.put_nowait(final)
            else:
                replica.failing_since, replica.wait = None, FIRST_WAIT
                self._answers.put_nowait((job.index, choice, replica.url))

    async def _call(self, replica: Replica, path: str, body: dict[str, Any] | None = None) -> Any:
        """Parsed answer. Raises one of LOSSES where another try is worth it, else DataError."""
        assert self._session is not None
        method = "GET" if body is None else "POST"
        # a redirect would carry prompts and key to where nobody sent them
        asked = self._session.request(method, f"{replica.url}/{path}", json=body, allow_redirects=False)
        async with asked as response:
            content = await response.read()
            if response.status in BUSY + FAILING:
                after = response.headers.get("Retry-After", "")
                failure = (Busy if response.status in BUSY else Failure)(
                    f"{response.status} {_message(content)}"
                )
                failure.wait = min(float(after), LONGEST_WAIT) if after.isdigit() else 0.0
                raise failure
            if response.status != 200:
                raise DataError(
                    f"{replica.url}: refused a request to /{path} ({response.status}): {_message(content)}"
                )
        try:
            return json.loads(content)
        except ValueError:
            raise DataError(f"{replica.url}: answered /{path} with what is not JSON") from None

    def _failed(self, replica: Replica, error: Exception, job: Job | None = None) -> None:
        """Leaves the server alone for a while, or for good; raises UserError where that ends the run."""
        self._check()
        why = str(error) or type(error).__name__
        if job is not None and not isinstance(error, Busy):
            job.num_losses += 1
            if job.num_losses >= MAX_LOSSES:
                lost = DataError(f"{replica.url}: a request failed {MAX_LOSSES} times, the last time: {why}")
                raise lost from ConnectionError(why)
        now = time.monotonic()
        replica.failing_since = replica.failing_since or now
        if not replica.pause():  # else this belongs to the failures for which it is left alone
            replica.not_before = now + max(replica.wait, getattr(error, "wait", 0.0))
            replica.wait = min(2 * replica.wait, LONGEST_WAIT)
        if replica.is_out or now - replica.failing_since < PATIENCE:
            return
        replica.is_out = True
        said = f"{replica.url}: out of reach for {PATIENCE:g} seconds, the last time: {why}"
        if not self.alive:
            raise DataError(f"{said}; no server is left (generate.url)") from ConnectionError(why)
        tell(f"{said}; the others go on without it")


def _socket(address: Any) -> socket.socket:
    """Asks the kernel to look after silent connections: a host that lost its power closes none."""
    found = socket.socket(address[0], address[1], address[2])
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
            found.setsockopt(socket.IPPROTO_TCP, option, value)
    return found


def _message(content: bytes) -> str:
    """The words of an error in OpenAI's form, else the answer's beginning."""
    text = content.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message", text))
    return " ".join(text.split())[:500]


def is_asked_for(entry: dict[str, Any], model: str | Path, name: str | None) -> bool:
    """Whether a server's model is `model`: by the name that we gave it, else by id or root.

    A folder may go by its path or the end of it (`sft-0` for models/sft-0); `step-N` alone is no name.
    """
    if name is not None:
        return bool(entry.get("id") == name)
    folder = Path(model)
    for said in (str(entry.get("id")), str(entry.get("root"))):
        if said == str(model):
            return True
        if folder.is_dir():
            parts, own = Path(said).parts, folder.resolve().parts
            if parts and own[-len(parts) :] == parts and not (len(parts) == 1 and said.startswith("step-")):
                return True
    return False


def too_short(where: str, room: int, needed: int) -> str:
    return (
        f"{where} of {room} tokens is too small: prompt and max_tokens come to {needed}; raise it, or lower "
        "max_tokens"
    )
