"""Real servers for tests: Prefect's, MLflow's over HTTP, and PostgreSQL where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oxa.runtime.child import Child
from oxa.runtime.server import free_port

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
PATIENCE = 300  # seconds that a server may take to start on a busy machine


@contextmanager
def mlflow_server(folder: Path, port: int, database: str = "sqlite:///server.db") -> Iterator[str]:
    """An MLflow server on this port that keeps all it is given in the folder; gives its address."""
    folder.mkdir(exist_ok=True)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", "artifacts"]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (
        (folder / "log").open("ab") as log,
        Child(command, cwd=folder, env=environment, stdout=log, stderr=log),
    ):
        _wait(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200, folder / "log")
        yield address


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """A Prefect server without pages and schedules that keeps its database in the folder; gives its API's address.

    A flow that starts its own server takes twice as long.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--no-ui", "--no-scheduler", "--no-late-runs"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(folder), "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
    with (
        (folder / "log").open("ab") as log,
        Child(command, cwd=folder, env=environment, stdout=log, stderr=log),
    ):
        _wait(lambda: urllib.request.urlopen(f"{url}/health", timeout=5).status == 200, folder / "log")
        yield url


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server with an empty database; gives its URI. Skips the test where it is not installed."""
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(installed[-1]) if installed else "")
    if not initdb:
        pytest.skip("PostgreSQL is not installed")
    port = free_port()
    # not in a folder of pytest's, which only its owner may enter: PostgreSQL does not run as root
    with tempfile.TemporaryDirectory() as name, open(f"{name}.log", "ab") as log:
        folder, as_user = Path(name), []
        if os.geteuid() == 0:
            as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(folder, "postgres", "postgres")
        init = [initdb, "--username=oxa", "--auth=trust", "--no-sync", f"--pgdata={folder / 'data'}"]
        serve = [str(Path(initdb).with_name("postgres")), "-D", str(folder / "data"), "-p", str(port), "-F"]
        serve += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        try:
            with Child([*as_user, *init], stdout=log, stderr=log) as child:
                assert child.wait() == 0, Path(log.name).read_text()
            with Child([*as_user, *serve], stdout=log, stderr=log):
                address = f"postgresql://oxa@127.0.0.1:{port}/postgres"
                _wait(lambda: psycopg2.connect(address).close() is None, Path(log.name))
                yield address
        finally:
            os.unlink(log.name)


def _wait(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if ready():
                return
        except Exception:  # not yet
            assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def trickle(client: socket.socket, request: str) -> None:
    """A body of which a byte comes now and then, for ever."""
    client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
    while True:
        client.sendall(b" ")
        time.sleep(0.05)


@contextmanager
def serving(answer: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """A server that answers every request so; gives its address."""

    def serve(client: socket.socket) -> None:
        with client:
            try:
                answer(client, client.recv(65536).decode())
                client.shutdown(socket.SHUT_WR)
                while client.recv(
                    65536
                ):  # what is left of the request: closed on it, the answer would be lost
                    pass
            except OSError:  # the other end, or this test, has ended
                return

    def accept() -> None:
        while True:
            try:
                client, _ = there.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=[client], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as there:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{there.getsockname()[1]}"
        there.shutdown(socket.SHUT_RDWR)
