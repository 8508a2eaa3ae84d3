"""As much of the Hugging Face hub's HTTP API as an upload needs, on 127.0.0.1, with what it was given in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_abcdefghijklmnop"


class Hub(ThreadingHTTPServer):
    """Repositories of models by OWNER/NAME; .safetensors go the way of large files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.titles: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.refuses: dict[str, int] = {}
        """Part of a path, to the status that is answered to it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.server, self.path.partition("?")[0]
        status = next((code for part, code in hub.refuses.items() if part in path), None)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        if status:
            self.answer(status, {"error": "not so", "errors": [{"message": "not so"}]})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.created.append(asked)
            known = name in hub.repositories
            hub.repositories.setdefault(name, {})
            self.answer(409 if known else 200, {"url": f"{hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self.answer(200, {"files": [mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            self.answer(
                200, {"transfer": "basic", "objects": [*map(self.upload, json.loads(body)["objects"])]}
            )
        elif "/commit/" in path:
            self.commit(path.split("/api/models/")[1].partition("/commit/")[0], body)
        else:
            self.answer(404, {"error": path})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "put" in self.server.refuses:
            self.answer(self.server.refuses["put"], {"error": "not so"})
            return
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/objects/{digest}"
        self.server.objects[digest] = content
        self.answer(200, {})

    def upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.url}/objects/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    def commit(self, name: str, body: bytes) -> None:
        hub = self.server
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.titles.append(value["summary"])
            elif line["key"] == "file":
                hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                hub.repositories[name][value["path"]] = hub.objects[value["oid"]]
        self.answer(200, {"commitUrl": f"{hub.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def mode(path: str) -> dict[str, Any]:
    kind = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": kind, "shouldIgnore": False, "oid": None}


@contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
