"""Servers on this machine, and that nothing speaks to them through a proxy."""

from __future__ import annotations

import http.server
import os
import threading
import time
import urllib.error
import urllib.request

import httpx
import pytest
import requests

from oxa.runtime import server

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("before", ["", "internal.example, 10.0.0.0/8"])
def test_with_proxies_set_every_client_reaches_this_machine_directly(
    monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, NOBODY)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before)
    server.spare_loopback()
    server.spare_loopback()
    assert os.environ["no_proxy"].split(",")[-2:] == ["127.0.0.1", "localhost"]
    assert len(os.environ["NO_PROXY"].split(",")) == 2 + len(before.split())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{there.server_port}/nothing"
        assert requests.get(url, timeout=30).status_code == 404
        assert httpx.get(url, timeout=30).status_code == 404
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url, timeout=30)
        there.shutdown()


def test_without_proxies_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    server.spare_loopback()
    assert dict(os.environ) == before


def test_a_call_that_takes_too_long_is_left_and_one_in_time_gives_its_value_or_its_error() -> None:
    assert server.within(60, sorted, [2, 1], reverse=True) == [2, 1]
    with pytest.raises(KeyError):
        server.within(60, {}.__getitem__, 1)
    with pytest.raises(TimeoutError, match="no whole answer within 0 s"):
        server.within(0.1, time.sleep, 1000)
