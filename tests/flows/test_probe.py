"""What a node tells before stages go there: real answers of this machine, and what a head makes of others."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows import probe


def answer(folder: Path, *, lock: bool) -> dict[str, Any]:
    """What a process of its own, as on a node, sees of the token."""
    folder.mkdir()
    with (folder / probe.TOKEN).open("w") as token:
        token.write("written here")
        token.flush()
        if lock:
            fcntl.flock(token, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "flows.probe", str(folder)]
        subprocess.run(command, check=True, env=os.environ | {"SLURMD_NODENAME": "n7"})
    seen: dict[str, Any] = json.loads((folder / probe.SEEN).read_text())
    return seen


def test_a_node_like_this_one_has_no_fault_and_every_difference_is_named(tmp_path: Path) -> None:
    sent = time.time()
    seen = answer(tmp_path / "held", lock=True)
    received = time.time()
    assert probe.faults_of(seen, "written here", sent, received, gpus=0) == []
    gpus = seen["gpus"] + 1
    other = seen | {"python": "3.9.1", "torch": None, "time": received + 90, "token": "old"}
    said = probe.faults_of(other, "written here", sent, received, gpus=gpus)
    for words in (
        "reads other content",
        "python 3.9.1, here",
        "torch missing, here",
        "clock is 90 s off",
        "GPUs",
    ):
        assert sum(words in sentence for sentence in said) == 1, said
    assert len(said) == 5
    assert all(sentence.startswith("n7: ") for sentence in said)


def test_a_lock_that_does_not_reach_the_node_is_a_fault(tmp_path: Path) -> None:
    seen = answer(tmp_path / "free", lock=False)
    (fault,) = probe.faults_of(seen, "written here", time.time() - 60, time.time(), gpus=0)
    assert "does not see a lock" in fault


def test_a_database_on_a_network_filesystem_is_told_unless_a_server_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert probe.database_faults() == []
    monkeypatch.setattr(probe, "SHARED", (probe.filesystem(tmp_path),))  # as if this disk were one
    assert [fault.partition("'")[0] for fault in probe.database_faults()] == ["MLflow", "Prefect"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert probe.database_faults() == []
