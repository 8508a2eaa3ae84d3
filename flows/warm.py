"""Stages that start at once: a process that has imported what they need, and forks one for every `oxa` that is called.

    with warm.stages(os.environ, folder) as environment: subprocess.run(["dvc", "repro"], env=environment)

`import trl` takes six to thirteen seconds of a core; of a study's hundreds of short trainings it would be the larger
part. PATH's first folder gets an `oxa` that only hands its arguments, folder, environment and standard streams over to
the process that waits for it, and ends as the stage ends. Where one of the two is killed, the other ends as well.

For Linux, and where there is no GPU: CUDA does not survive a fork. Stages run one at a time.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flows import schedule
from oxa.runtime.child import Child

MODULES = tuple(f"oxa.stages.{name}" for name in ("train", "rlvr", "evaluate", "selection", "gates"))
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
there = socket.socket(socket.AF_UNIX)
there.connect({address!r})
told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
there.sendmsg([len(told).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
there.sendall(told)
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


def _serve(address: str, modules: Sequence[str]) -> int:
    """Forks a stage for every client, one after the other; only a stage returns from here, with its exit code."""
    for name in modules:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            client, _ = listening.accept()
            with client:
                asked = _asked(client)
                if asked is None:
                    continue
                argv, folder, environment, streams = asked
                if pid := os.fork():
                    for stream in streams:
                        os.close(stream)
                    code = _wait(pid, client)
                    if code is not None:
                        with suppress(BrokenPipeError):  # it was killed as its stage ended
                            client.sendall(str(code).encode())
                    continue
                listening.close()
                for target, stream in enumerate(streams):
                    os.dup2(stream, target)
                    os.close(stream)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            from flows import cli  # here, so that no more is imported before than was asked for

            sys.argv = [shutil.which("oxa") or "oxa", *argv]
            return cli.main(argv)


def _asked(client: socket.socket) -> tuple[list[str], str, dict[str, str], list[int]] | None:
    """A caller's arguments, folder, environment and streams; None where it was killed before it had told all."""
    streams: Any = array.array("i")
    told = b""
    with suppress(ConnectionResetError):
        head, found, _, _ = client.recvmsg(8, socket.CMSG_LEN(3 * streams.itemsize))
        for _, _, data in found:
            streams.frombytes(data)
        size = int.from_bytes(head, "big")
        while len(told) < size and (part := client.recv(1 << 16)):
            told += part
        if head and len(told) == size:
            argv, folder, environment = json.loads(told)
            return argv, folder, environment, list(streams)
    for stream in streams:
        os.close(stream)
    return None


def _wait(pid: int, client: socket.socket) -> int | None:
    """The stage's exit code; None where the client was gone before it, and the stage was killed."""
    stage = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([stage, client.fileno()], [], [])
        gone = stage not in ready
        if gone:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(stage)
    return None if gone else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1], sys.argv[2:]))
