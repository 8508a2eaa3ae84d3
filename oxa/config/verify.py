"""Section `verify`: how answers are graded, and the verdicts there are."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from oxa.config.section import Count, Positive, Section

_ADDRESS = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")


class Judge(Section):
    """A language model that stage `verify` asks about every answer that the rules do not call `correct`: is it right?
    What it says (`correct`, `incorrect`, or `unsure` where it says neither yes nor no) stands in a column of its own,
    beside the rules' verdict, which it never changes. Rewards of RL and evaluations are the rules' alone."""

    url: str
    """A running server with OpenAI's API for chats, for example "http://10.0.0.2:8000", or with its path, as in
    "https://api.openai.com/v1"; reached without a proxy. A key that it asks for is read from JUDGE_API_KEY."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name there. It is asked at temperature 0."""
    max_tokens: Count = 1024
    """Longest reply, tokens: one word is asked for, and some models think first."""
    timeout: Positive = 120.0
    """Longest wait for a reply, seconds; then it is asked for again."""
    concurrency: Count = 32
    """Requests in flight."""

    @model_validator(mode="after")
    def _address(self) -> Judge:
        if not _ADDRESS.fullmatch(self.url):  # not shown: it may hold a password
            raise ValueError(
                "url: expected http://HOST:PORT or https://HOST/PATH, without a name, password or query; a key is read "
                "from the environment's JUDGE_API_KEY"
            )
        return self


class Verify(Section):
    """Answers are graded by math-verify in worker processes."""

    timeout: Positive = 10.0
    """Longest processor time for one answer, seconds; then its worker is killed and the verdict is `timeout`."""
    workers: Count | None = None
    """Worker processes; none: one a core."""
    require_think: bool = True
    """An answer counts only behind a </think>. False for sources without reasoning tags."""
    judge: Judge | None = None
    """A second check by a language model; none: no such check."""
