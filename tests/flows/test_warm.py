"""`oxa` as a fork of a process that is kept warm, called as DVC calls it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pipelines import ROOT, environment
from processes import PATIENCE, until, wait_until_gone

from flows import warm

pytestmark = pytest.mark.skipif(not warm.possible(), reason="needs Linux, and a machine without a GPU")


@pytest.fixture
def warmed(tmp_path: Path) -> Iterator[dict[str, str]]:
    with warm.stages(environment(), tmp_path, ["oxa.data.world"]) as warmed:
        yield warmed


def call(command: str, folder: Path, warmed: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"exec {command}"], cwd=folder, env=warmed | more, text=True, capture_output=True
    )


def test_streams_arguments_folder_environment_and_exit_code_are_the_callers(
    warmed: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "bad.yaml").write_text("arms: 3\n")
    wrong = call("oxa doctor --params bad.yaml", folder, warmed)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "bad.yaml: arms: " in wrong.stderr
    usage = call("oxa train --help", folder, warmed, COLUMNS="200")
    assert usage.returncode == 0
    assert usage.stdout.startswith("usage: oxa train ")
    assert usage.stderr == ""


def test_it_is_a_fork_that_has_imported_already(warmed: dict[str, str], tmp_path: Path) -> None:
    installed = subprocess.run(["which", "oxa"], env=warmed, text=True, capture_output=True).stdout.strip()
    assert not installed.startswith(str(Path(sys.executable).parent))
    first, second = (call("oxa nonsense", tmp_path, warmed) for _ in range(2))
    assert first.returncode == second.returncode == 2
    assert "invalid choice: 'nonsense'" in first.stderr


def test_code_that_was_edited_since_it_was_imported_is_not_run_as_it_was(tmp_path: Path) -> None:
    for name in ("oxa", "flows"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with warm.stages(environment(), tmp_path, ["oxa.errors"]) as warmed:
        assert call("oxa train --help", tmp_path, warmed).returncode == 0
        with (tmp_path / "oxa" / "errors.py").open("a") as file:
            file.write("raise SystemExit(7)\n")
        assert call("oxa train --help", tmp_path, warmed).returncode == 7


@pytest.mark.parametrize("message", [b"", (100).to_bytes(8, "big"), (100).to_bytes(8, "big") + b"[["])
def test_a_caller_killed_before_it_has_told_all_leaves_the_others_served(
    message: bytes, warmed: dict[str, str], tmp_path: Path
) -> None:
    own = Path(warmed["PATH"].split(os.pathsep)[0])
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(str(own / "socket"))
        there.sendall(message)
    assert call("oxa nonsense", tmp_path, warmed).returncode == 2


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.ZombieProcess:
        return []


@pytest.fixture
def waiting(
    warmed: dict[str, str], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A caller, and its stage, which waits for a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "params.yaml")
    caller = subprocess.Popen(["oxa", "doctor"], cwd=tmp_path, env=warmed, stderr=subprocess.DEVNULL)
    own = (
        Path(warmed["PATH"].split(os.pathsep)[0]) / "socket"
    )  # other tests may have started another such process
    (keeper,) = (one for one in psutil.Process().children() if str(own) in _arguments(one))

    def stages() -> list[psutil.Process]:
        (server,) = keeper.children()
        return server.children()

    until(lambda: len(stages()) == 1, "the stage is forked", caller)
    yield caller, stages()[0]
    caller.kill()
    caller.wait()


def test_a_stage_ends_with_its_caller(
    waiting: tuple[subprocess.Popen[bytes], psutil.Process], warmed: dict[str, str], tmp_path: Path
) -> None:
    caller, stage = waiting
    caller.kill()
    wait_until_gone([stage])
    assert call("oxa train --help", tmp_path, warmed).returncode == 0  # and the next one has its turn


def test_callers_are_served_side_by_side(
    waiting: tuple[subprocess.Popen[bytes], psutil.Process], warmed: dict[str, str], tmp_path: Path
) -> None:
    caller, stage = waiting
    assert call("oxa train --help", tmp_path, warmed).returncode == 0
    second = subprocess.Popen(["oxa", "doctor"], cwd=tmp_path, env=warmed, stderr=subprocess.DEVNULL)
    siblings = until(
        lambda: [one for one in stage.parent().children() if one != stage], "a second one", second
    )  # type: ignore[union-attr]
    second.kill()
    second.wait()
    wait_until_gone(siblings)
    assert caller.poll() is None
    assert stage.is_running()


def test_a_caller_ends_as_its_stage_does(
    waiting: tuple[subprocess.Popen[bytes], psutil.Process], warmed: dict[str, str]
) -> None:
    caller, stage = waiting
    stage.send_signal(signal.SIGKILL)
    assert caller.wait(PATIENCE) == 128 + signal.SIGKILL


def test_a_caller_whose_process_is_gone_has_failed(
    waiting: tuple[subprocess.Popen[bytes], psutil.Process],
) -> None:
    caller, stage = waiting
    stage.parent().kill()  # type: ignore[union-attr]
    assert caller.wait(PATIENCE) == 1
    wait_until_gone([stage])
