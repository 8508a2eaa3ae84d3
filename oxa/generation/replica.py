"""One vLLM server, or another that speaks its API: what it serves, and calls to it over HTTP."""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
import ssl
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import httpx

from oxa.errors import ConfigError, DataError, without_credentials

CONNECT_SECONDS = 10.0
BUSY = (429, 503)  # the server is there and has too much to do; not the request's fault
FAILING = (408, 500, 502, 504)

_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
]  # the kernel looks after silent connections: a host that lost its power closes none
_certificates = cache(ssl.create_default_context)  # the system's; they take 20 ms to read


class Refused(DataError):
    """A server does not take a request, for a reason of its own that another try would not change."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(eq=False)
class Replica:
    """A server, and how it fares."""

    setting: ClassVar[str] = "generate.url"
    """The key of params.yaml that names such servers."""
    key_name: ClassVar[str] = "VLLM_API_KEY"
    """The environment variable that holds their key."""
    path: ClassVar[str] = "v1/completions"
    """Where requests go."""

    url: str
    """Its address; user and password in it are taken out, and go to `auth`."""
    model: str | None = None
    """The name to ask it for; None: the one that it serves, if it is the right one."""
    version: str = "unknown"
    num_pauses: int = 0
    """Failures in a row, those that came while it was left alone aside."""
    failing_since: float | None = None
    not_before: float = 0.0
    is_out: bool = False
    auth: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        address, self.url = self.url, without_credentials(self.url)
        try:
            parts = urlsplit(address)
            _ = parts.port
            httpx.URL(self.url)
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(f"{self.setting}: {self.url}: {error}") from None
        if parts.username is not None:
            self.auth = unquote(parts.username), unquote(parts.password or "")
        elif self.model is None and self.key_name not in os.environ:  # not one that we have started
            self.auth = _from_netrc(parts.hostname or "")

    def pause(self) -> float:
        """Seconds for which it is to be left alone now."""
        return max(0.0, self.not_before - time.monotonic())

    def connect(self) -> httpx.AsyncClient:
        """For one request at a time: a pool of 256 connections costs httpx six times the processor time a request."""
        key = os.environ.get(self.key_name)
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            auth=self.auth,  # goes before the key
            # no limit on the whole: a long response among many takes as long as it takes
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            transport=httpx.AsyncHTTPTransport(verify=_certificates(), socket_options=_KEEP_ALIVE),
            trust_env=False,  # no proxy, and no ~/.netrc of httpx's own, which it opens for every client
        )

    async def greet(self, http: httpx.AsyncClient, model: str | Path, max_model_len: int) -> None:
        """Asks for the model and vLLM's version; ConfigError where the model is another or has too little room."""
        try:
            entries = (await self.call(http, "v1/models"))["data"]
        except (KeyError, TypeError):
            raise DataError(f"{self.url}: no OpenAI-compatible server: /v1/models lists none") from None
        entry = next((entry for entry in entries if is_asked_for(entry, model, self.model)), None)
        if entry is None:
            names = ", ".join(str(entry.get("id")) for entry in entries) or "none"
            raise ConfigError(
                f"{self.url}: serves {names} and not {model}; start it with --served-model-name {model} if it is "
                "that model"
            )
        self.model = entry["id"]
        room = entry.get("max_model_len")
        if room is not None and room < max_model_len:
            raise ConfigError(too_short(f"{self.url}: its --max-model-len", room, max_model_len))
        with contextlib.suppress(httpx.HTTPError, DataError, KeyError, TypeError):  # vLLM's own, not OpenAI's
            self.version = str((await self.call(http, "version"))["version"])

    async def complete(self, http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        """The only `choice` of the answer to a request. Raises as `call`."""
        answer = await self.call(http, self.path, body | {"model": self.model})
        try:
            choice: dict[str, Any] = answer["choices"][0]
            aborted = choice.get("finish_reason") == "abort"  # what a server that is being ended answers
        except (KeyError, IndexError, TypeError, AttributeError):
            raise DataError(f"{self.url}: the answer to a request holds no response") from None
        if aborted:
            raise httpx.RemoteProtocolError("it broke the response off")
        return choice

    async def call(self, http: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> Any:
        """Parsed answer. Raises httpx.HTTPError where another try is worth it, else DataError."""
        response = await http.request("GET" if body is None else "POST", f"/{path}", json=body)
        status = response.status_code
        if status in BUSY + FAILING:
            words = f"{status} {_message(response)}"
            raise httpx.HTTPStatusError(words, request=response.request, response=response)
        if status != 200:  # a redirect, too: it would carry prompts and key to where nobody sent them
            raise Refused(
                f"{self.url}: refused a request to /{path} ({status}): {_message(response)}", status
            )
        try:
            return response.json()
        except ValueError:
            raise DataError(f"{self.url}: answered /{path} with what is not JSON") from None


def _message(response: httpx.Response) -> str:
    """The words of an error in OpenAI's form, else the answer's beginning."""
    text = response.content.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        answer = response.json()
        error = answer.get("error", answer)
        text = str(error.get("message", text))
    return " ".join(text.split())[:500]


def _from_netrc(host: str) -> tuple[str, str] | None:
    """User and password for a host in ~/.netrc, or the file that NETRC names; None where it names none."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        entry = netrc.netrc(path).hosts.get(host)
    except FileNotFoundError:
        return None
    except netrc.NetrcParseError as error:  # whose words may be the password
        raise ConfigError(f"{path}: line {error.lineno} is not as .netrc files are") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read for a password of {host}: {error}") from None
    return (entry[0], entry[2] or "") if entry else None


def is_asked_for(entry: dict[str, Any], model: str | Path, name: str | None) -> bool:
    """Whether a server's model is `model`: by the name that we gave it, else by id or root.

    A folder may go by its path or the end of it (`sft-0` for models/sft-0); `step-N` alone is no name.
    """
    if name is not None:
        return bool(entry.get("id") == name)
    folder = Path(model)
    for served in (str(entry.get("id")), str(entry.get("root"))):
        if served == str(model):
            return True
        if folder.is_dir():
            parts, own = Path(served).parts, folder.resolve().parts
            if parts and own[-len(parts) :] == parts and not (len(parts) == 1 and served.startswith("step-")):
                return True
    return False


def too_short(where: str, room: int, needed: int) -> str:
    return (
        f"{where} of {room} tokens is too small: prompt and max_tokens come to {needed}; raise it, or lower "
        "max_tokens"
    )
