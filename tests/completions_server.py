"""Plays vLLM's side of /v1/completions over real HTTP, with the faults that it is told to have.

Its model draws tokens by the request's seed alone. Standard library only: it also runs as a process of its own, as the
module that oxa/generation/server.py starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

END = 1  # of the tests' tokenizer


def tokens_for(body: dict[str, Any]) -> list[int]:
    """1 to 12 tokens and the end token, cut at max_tokens."""
    chance = random.Random(body["seed"])
    drawn = [chance.randrange(10, 250) for _ in range(chance.randrange(1, 13))]
    return [*drawn, END][: body["max_tokens"]]


class CompletionsServer(ThreadingHTTPServer):
    """A server in a thread; `fault(n)` names what is to go wrong with completion request number n, if anything.

    reset: the connection is lost unanswered; cut: in the middle of the answer; a number: that status, with a message;
    hold: the answer waits for `release`; text: no token ids; other: the answer to another prompt; eos: an end by a
    token that is no end token; abort: ended by the server.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        model: str = "student",
        max_model_len: int = 1024,
        fault: Callable[[int], str | None] = lambda n: None,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.max_model_len, self.fault = model, max_model_len, fault
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.release = threading.Event()
        self.arrived = threading.Semaphore(0)  # released once a completion request
        self._connections: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> CompletionsServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release.set()
        self.die()

    def die(self) -> None:
        """Takes no more connections and loses those that there are."""
        self.shutdown()
        self.server_close()
        with self.lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.lock:
            self._connections.add(request)
        super().finish_request(request, client_address)

    def handle_error(self, *_: Any) -> None:
        """Lost connections are meant."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CompletionsServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        entry = {
            "id": self.server.model,
            "root": self.server.model,
            "max_model_len": self.server.max_model_len,
        }
        answers = {"/health": {}, "/version": {"version": "0.31.0"}, "/v1/models": {"data": [entry]}}
        if self.path in answers:
            self._answer(200, answers[self.path])
        else:
            self._answer(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            fault = server.fault(len(server.bodies))
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        server.arrived.release()
        try:
            if fault == "hold":
                server.release.wait()
            self._complete(body, fault)
        finally:
            with server.lock:
                server.in_flight -= 1

    def _complete(self, body: dict[str, Any], fault: str | None) -> None:
        if fault == "reset":
            self._reset()
        elif fault and fault.isdigit():
            self._answer(int(fault), {"error": {"message": f"the server says {fault}"}})
        else:
            tokens = tokens_for(body)
            reason = "stop" if tokens[-1] == END else "length"
            choice: dict[str, Any] = {"finish_reason": reason, "token_ids": tokens, "text": "…"}
            choice["prompt_token_ids"] = [9, 9] if fault == "other" else body["prompt"]
            if fault == "text":
                del choice["token_ids"]
            if fault == "eos":
                choice |= {"token_ids": [40, 41], "finish_reason": "stop"}
            if fault == "abort":
                choice["finish_reason"] = "abort"
            self._answer(200, {"choices": [choice]}, cut=fault == "cut")

    def _answer(self, status: int, content: Any, cut: bool = False) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._reset()

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class ChatServer(CompletionsServer):
    """Plays the side of /v1/chat/completions: `reply` makes the answer's message of what the user says.

    A reply that is None is refused (400). Faults are the same.
    """

    def __init__(
        self, reply: Callable[[str], Any], fault: Callable[[int], str | None] = lambda n: None
    ) -> None:
        super().__init__("judge", fault=fault)
        self.reply = reply
        self.paths: list[str] = []
        self.RequestHandlerClass = ChatHandler

    @property
    def prompts(self) -> list[str]:
        """What was asked, in order."""
        return [body["messages"][-1]["content"] for body in self.bodies]


class ChatHandler(Handler):
    server: ChatServer

    def _complete(self, body: dict[str, Any], fault: str | None) -> None:
        self.server.paths.append(self.path)
        reply = None if fault else self.server.reply(body["messages"][-1]["content"])
        if fault == "reset":
            self._reset()
        elif fault or reply is None:
            self._answer(int(fault or 400), {"error": {"message": f"the server says {fault or 400}"}})
        else:
            message = {"role": "assistant", "content": reply}
            self._answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})


def main() -> None:
    """`python -m vllm.entrypoints.openai.api_server` as oxa/generation/server.py calls it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    known, _ = parser.parse_known_args()
    CompletionsServer(known.served_model_name, known.max_model_len, port=known.port).serve_forever()
