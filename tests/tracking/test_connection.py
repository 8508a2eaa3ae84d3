"""An MLflow that answers slowly, endlessly or with garbage: a sentence of bounded length, in bounded time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import HEAD, serving, trickle

from oxa.config.operations import Registry
from oxa.errors import UserError
from oxa.tracking import connection, registry


def trickle_head(client: socket.socket, request: str) -> None:
    client.sendall(HEAD + b"X: ")
    while True:
        client.sendall(b"x")
        time.sleep(0.05)


def trickle_later(client: socket.socket, request: str) -> None:
    """The first question is answered well."""
    if "/experiments/search" in request:
        client.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
    else:
        trickle(client, request)


def brackets(client: socket.socket, request: str) -> None:
    client.sendall(HEAD + b"Content-Length: 3000000\r\n\r\n" + b"[" * 3_000_000)


def long_error(client: socket.socket, request: str) -> None:
    body = json.dumps({"error_code": "INTERNAL_ERROR", "message": "{" * 3_000_000}).encode()
    client.sendall(b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def wrong_kinds(client: socket.socket, request: str) -> None:
    body = json.dumps({"experiments": 7, "registered_model": [7], "runs": "7"}).encode()
    client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (trickle, "no whole answer within 1 s"),
        (trickle_head, "no whole answer within 1 s"),
        (trickle_later, "no whole answer within 1 s"),
        (brackets, "not in a valid JSON format"),
        (long_error, "INTERNAL_ERROR"),
        (wrong_kinds, "its answer cannot be read"),
    ],
)
def test_what_an_mlflow_may_do_is_one_short_sentence(
    answer: Callable[[socket.socket, str], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "ANSWER", 1.0)
    with serving(answer) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for ask in (
            lambda: registry.versions(Registry()),
            lambda: connection.find_runs("oxa", {"oxa.stage": "train@sft-0"}),
        ):
            with pytest.raises(UserError, match=said) as error:
                ask()
            assert len(str(error.value)) < 400
            assert str(error.value).startswith(f"MLflow at {address} ")
    assert capfd.readouterr().err == ""


def test_the_senders_log_takes_no_whole_answer(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("[" * 3_000_000)
    except RuntimeError:
        connection.log_traceback()
    assert len(capfd.readouterr().err) < 10_000
