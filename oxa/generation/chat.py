"""Replies of a chat model behind an OpenAI-compatible server, at temperature 0: what a judge of answers is asked by.

Lost connections, busy servers and patience are client.py's. One request that the server refuses for what it holds
(too long, filtered) is told as such; any other refusal ends the run with the server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx

from oxa.config.verify import Judge
from oxa.errors import DataError
from oxa.generation.client import Client
from oxa.generation.replica import Refused, Replica

OF_ONE = (400, 413, 422)  # refusals that may be for what one request holds


@dataclass(eq=False)
class ChatServer(Replica):
    setting: ClassVar[str] = "verify.judge.url"
    key_name: ClassVar[str] = "JUDGE_API_KEY"
    path: ClassVar[str] = "chat/completions"

    timeout: float = 120.0
    """Seconds for a whole reply."""

    async def complete(self, http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await super().complete(http, body)
        except Refused as refused:
            if refused.status in OF_ONE:
                return {"refused": refused}
            if refused.status in (401, 403):
                raise DataError(f"{refused}; a key is read from {self.key_name}") from None
            raise

    async def call(self, http: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                return await super().call(http, path, body)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no reply within {self.timeout:g} seconds") from None


def replies(section: Judge, questions: Sequence[str]) -> Iterator[tuple[int, str | Refused]]:
    """Each question's index and its reply, as they come, or the refusal of this one."""
    bodies = [
        {
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": section.max_tokens,
        }
        for question in questions
    ]
    server = ChatServer(_address(section.url), section.model, timeout=section.timeout)
    concurrency = min(section.concurrency, len(questions))
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        client = Client([server], concurrency, body=bodies.__getitem__, check=lambda: None)
        stack.callback(lambda: runner.run(client.close()))
        runner.run(client.ask(range(len(questions))))
        for _ in questions:
            index, choice, url = runner.run(client.answer())
            yield index, choice.get("refused") or _reply(choice, url)


def _address(url: str) -> str:
    """The address up to where `chat/completions` follows: a bare host has it below /v1."""
    url = url.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def _reply(choice: dict[str, Any], url: str) -> str:
    try:
        return str(choice["message"].get("content") or "")
    except (KeyError, AttributeError):
        raise DataError(f"{url}: the answer to a request holds no message; is it OpenAI's API?") from None
