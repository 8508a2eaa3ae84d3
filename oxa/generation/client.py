"""Several servers of one model as if they were one: requests are shared out, and a server's failures are seen to.

Each server has `concurrency` workers, which take the next request when they have their last answer: a fast server
takes more, and what a server fails at goes back to all. After a lost connection, 429 or 5xx a server is left alone for
FIRST_WAIT · 2^n seconds, n failures in a row; one that has given nothing but failures for PATIENCE seconds is left out.
Any other answer than a response ends the run with the server's words.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from oxa.errors import DataError, UserError, tell
from oxa.generation.replica import BUSY, Replica

FIRST_WAIT = 0.5  # seconds
LONGEST_WAIT = 16.0  # seconds
PATIENCE = 60.0  # seconds of failures only, after which a server is left out
MAX_LOSSES = 12  # lost connections and 5xx of one request, after which it is taken for their cause


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
        self._indices: asyncio.Queue[int] = asyncio.Queue()
        self._num_losses: Counter[int] = Counter()
        self._answers: asyncio.Queue[tuple[int, dict[str, Any], str] | UserError] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self._replicas if not replica.is_out]

    async def open(self, model: str | Path, max_model_len: int) -> None:
        """Asks every server for what it serves. Raises UserError as `answer` does."""
        await asyncio.gather(*(self._greet(replica, model, max_model_len) for replica in self._replicas))

    async def ask(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._indices.put_nowait(index)
        # server by server in turn, so that few requests are shared out evenly
        turns = self.alive * self._concurrency
        self._workers = [asyncio.create_task(self._work(replica)) for replica in turns]

    async def answer(self) -> tuple[int, dict[str, Any], str]:
        """The next response to come: its index, the answer's `choice` and the server's URL.

        Raises UserError where a server refuses a request or answers what is no response, or none is left; the last
        comes from a ConnectionError: a later try may succeed.
        """
        answer = await self._answers.get()
        if isinstance(answer, UserError):
            raise answer
        return answer

    async def close(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _greet(self, replica: Replica, model: str | Path, max_model_len: int) -> None:
        async with replica.connect() as http:
            while not replica.is_out:
                try:
                    await replica.greet(http, model, max_model_len)
                    return
                except httpx.HTTPError as error:
                    self._failed(replica, error)
                    await asyncio.sleep(replica.pause())

    async def _work(self, replica: Replica) -> None:
        async with replica.connect() as http:
            while not replica.is_out:
                await asyncio.sleep(replica.pause() * random.uniform(1.0, 1.5))  # not all come back at once
                index = await self._indices.get()
                if replica.is_out or replica.pause():
                    self._indices.put_nowait(index)  # wakes another's worker, if one waits
                    continue
                try:
                    try:
                        choice = await replica.complete(http, self._body(index))
                    except httpx.HTTPError as error:
                        self._failed(replica, error, index)
                        self._indices.put_nowait(index)
                    else:
                        replica.failing_since, replica.num_pauses = None, 0
                        self._answers.put_nowait((index, choice, replica.url))
                except UserError as final:
                    self._answers.put_nowait(final)

    def _failed(self, replica: Replica, error: httpx.HTTPError, index: int | None = None) -> None:
        """Leaves the server alone for a while, or for good; raises UserError where that ends the run."""
        self._check()
        why = str(error) or type(error).__name__
        response = error.response if isinstance(error, httpx.HTTPStatusError) else None
        if index is not None and (response is None or response.status_code not in BUSY):
            self._num_losses[index] += 1
            if self._num_losses[index] >= MAX_LOSSES:
                lost = DataError(f"{replica.url}: a request failed {MAX_LOSSES} times, the last time: {why}")
                raise lost from ConnectionError(why)
        now = time.monotonic()
        replica.failing_since = replica.failing_since or now
        if not replica.pause():  # else this belongs to the failures for which it is left alone
            after = "" if response is None else response.headers.get("Retry-After", "")
            wait = max(FIRST_WAIT * 2**replica.num_pauses, float(after) if after.isdigit() else 0.0)
            replica.not_before = now + min(wait, LONGEST_WAIT)
            replica.num_pauses += 1
        if replica.is_out or now - replica.failing_since < PATIENCE:
            return
        replica.is_out = True
        sentence = f"{replica.url}: out of reach for {PATIENCE:g} seconds, the last time: {why}"
        if not self.alive:
            raise DataError(f"{sentence}; no server is left ({replica.setting})") from ConnectionError(why)
        tell(f"{sentence}; the others go on without it")
