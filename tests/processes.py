"""Waiting for processes, with patience: the machine may be slow and busy, and no outcome may depend on that."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

PATIENCE = 480  # seconds after which a test is taken to hang


def until(
    reached: Callable[[], Any],
    what: str | Callable[[], str],
    process: subprocess.Popen[Any] | None = None,
    *,
    pause: float = 0.1,
) -> Any:
    """Waits for something true and returns it; fails where the process ends before. It looks every `pause` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (value := reached()):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = what if isinstance(what, str) else what()
            pytest.fail(f"it ended before: {what}" if ended else what)
        time.sleep(pause)
    return value


def below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def wait_until_left(folder: Path) -> None:
    """Waits until no process works in the folder any more; MLflow's sender goes some seconds after the last stage."""
    until(lambda: not left_running(folder), lambda: f"left running: {left_running(folder)}", pause=0.3)


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that work in this folder."""
    commands = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                commands.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return commands
