"""Stages that start at once: a process that has imported what they need, and forks one for every `oxa` that is called.

    with warm.stages(os.environ, folder) as environment: subprocess.run(["dvc", "repro"], env=environment)

`import trl` takes six to thirteen seconds of a core; of the small world's stages it would be the larger part. PATH's
first folder gets an `oxa` that only hands its arguments, folder, environment and standard streams over to the process
that waits for it, and ends as the stage ends. Where one of the two is killed, the other ends as well. When code has
been edited since it was imported, stages start afresh.

For Linux, and where there is no GPU: CUDA does not survive a fork.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import multiprocessing
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import flows
import oxa
from flows import schedule
from oxa.runtime.child import Child

MODULES = tuple(
    f"oxa.stages.{name}" for name in ("train", "rlvr", "evaluate", "selection_ce", "selection_ul", "gates")
)
Code = list[tuple[Path, int, int]]
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
there = socket.socket(socket.AF_UNIX)
there.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
there.sendmsg([len(call).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
there.sendall(call)
sys.exit(int(there.recv(8) or b"1"))
"""


def possible() -> bool:
    return hasattr(os, "pidfd_open") and not schedule.devices()


@contextmanager
def stages(
    environment: Mapping[str, str], folder: Path, modules: Sequence[str] = MODULES
) -> Iterator[dict[str, str]]:
    """That environment, but `oxa` is a stage of a process that was started with it in that folder."""
    with tempfile.TemporaryDirectory(prefix="oxa-") as own:  # a socket's path has at most 107 characters
        address = str(Path(own) / "socket")
        client = Path(own) / "oxa"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        with Child(
            [sys.executable, "-m", "flows.warm", address, *modules],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise RuntimeError("the process that stages are forked from ended at once")
            yield {**environment, "PATH": os.pathsep.join([own, environment.get("PATH", os.defpath)])}


def _serve(address: str, modules: Sequence[str]) -> None:
    """Forks a stage for every client, as long as it is left alive."""
    code = _code()
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each fork's collector would visit, and so copy, all that was imported
    at_work: dict[int, _Forked] = {}
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as waiting:
        listening.bind(address)
        listening.listen()
        waiting.register(listening, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not listening:
                    if forked := at_work.pop(key.data, None):  # its end and its client's may come together
                        waiting.unregister(forked.client)
                        waiting.unregister(forked.alive)
                        forked.end()
                    continue
                client, _ = listening.accept()
                call = _receive(client)
                if call is None:
                    client.close()
                    continue
                others = [listening, client, *(forked.client for forked in at_work.values())]
                # it leaves by os._exit, and spares the seconds of taking apart all that was imported
                stage = multiprocessing.get_context("fork").Process(target=_run, args=(call, others, code))
                stage.start()
                for stream in call.streams:
                    os.close(stream)
                assert stage.pid is not None
                alive = os.pidfd_open(stage.pid)
                at_work[alive] = _Forked(stage, alive, client)
                waiting.register(client, selectors.EVENT_READ, alive)  # it only ever ends
                waiting.register(alive, selectors.EVENT_READ, alive)


@dataclass(frozen=True)
class _Call:
    argv: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]
    """Descriptors of standard input, output and error."""


@dataclass(frozen=True)
class _Forked:
    """A stage at work for a client."""

    stage: BaseProcess
    alive: int
    """Descriptor that becomes readable when the process ends, whatever program it has become by then."""
    client: socket.socket

    def end(self) -> None:
        """Tells the client the exit code; where the client is gone, ends the stage."""
        if self.stage.is_alive():
            self.stage.kill()
        self.stage.join()
        code = self.stage.exitcode or 0
        with suppress(BrokenPipeError):  # it was killed as its stage ended
            self.client.sendall(str(code if code >= 0 else 128 - code).encode())
        self.client.close()
        os.close(self.alive)
        self.stage.close()


def _run(call: _Call, others: Sequence[socket.socket], code: Code) -> None:
    """The stage, in a process of its own; `others`: sockets that are not its own; `code`: as it was imported."""
    for other in others:  # each client must see its own stage's end
        other.close()
    for target, stream in enumerate(call.streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(call.folder)
    os.environ.clear()
    os.environ.update(call.environment)
    if _code() != code:
        os.execv(sys.executable, [sys.executable, "-m", "flows.cli", *call.argv])
    from flows import cli  # here, so that no more is imported before than MODULES

    sys.argv = [shutil.which("oxa") or "oxa", *call.argv]
    sys.exit(cli.main(call.argv))


def _code() -> Code:
    """Every file of ours with its size and the time of its last change."""
    folders = (Path(package.__path__[0]) for package in (flows, oxa))
    files = sorted(path for folder in folders for path in folder.rglob("*.py") if path.is_file())
    return [(path, (status := path.stat()).st_size, status.st_mtime_ns) for path in files]


def _receive(client: socket.socket) -> _Call | None:
    """A caller's arguments, folder, environment and streams; None where it was killed before it had sent all."""
    streams: Any = array.array("i")
    call = b""
    with suppress(ConnectionResetError):
        head, descriptors, _, _ = client.recvmsg(8, socket.CMSG_LEN(3 * streams.itemsize))
        for _, _, data in descriptors:
            streams.frombytes(data)
        size = int.from_bytes(head, "big")
        while len(call) < size and (part := client.recv(1 << 16)):
            call += part
        if head and len(call) == size:
            argv, folder, environment = json.loads(call)
            return _Call(argv, folder, environment, list(streams))
    for stream in streams:
        os.close(stream)
    return None


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
