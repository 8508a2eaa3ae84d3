"""Stages on the nodes of a real SLURM on this machine: the same bytes, and what is left where something dies."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import slurm
from pipelines import contents, environment, make_repository, run
from processes import PATIENCE, until, wait_until_left

pytestmark = pytest.mark.whole

BASE = ("dvc", "repro", "--single-item", "base")


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm.Slurm]:
    with slurm.cluster() as made:
        yield made


@pytest.fixture
def placed(cluster: slurm.Slurm) -> dict[str, str]:
    """What has a stage placed on it."""
    return cluster.environment | {"OXA_PLACEMENT": "slurm"}


def started(folder: Path, placed: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        BASE,
        cwd=folder,
        env=environment(**placed),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def on_its_node(folder: Path, command: subprocess.Popen[str]) -> psutil.Process:
    """The stage's own process, once it holds its work."""

    def found() -> psutil.Process | None:
        for lock in (folder / ".work/base").glob("*/lock"):
            with contextlib.suppress(ValueError, psutil.NoSuchProcess):
                return psutil.Process(int(lock.read_text()))
        return None

    stage: psutil.Process = until(found, "no stage came to work on a node", command)
    return stage


def test_a_stage_on_a_node_makes_the_same_bytes_and_a_fault_there_is_told_here(
    tmp_path: Path, placed: dict[str, str]
) -> None:
    here, there = make_repository(tmp_path / "here"), make_repository(tmp_path / "there")
    run(here, *BASE)
    run(there, *BASE, **placed)
    made = ("models/base", "metrics/base.json")
    assert contents(there, *made) == contents(here, *made)
    assert not list((there / ".work/placed").iterdir())
    (there / "params.yaml").write_text((there / "params.yaml").read_text() + "\nnonsense: 1\n")
    said = run(there, *BASE, "--force", code=255, **placed)
    assert "oxa: params.yaml: nonsense: unknown key" in said


def test_a_killed_head_leaves_nothing_running_and_nothing_in_the_queue(
    tmp_path: Path, placed: dict[str, str], cluster: slurm.Slurm
) -> None:
    folder = make_repository(tmp_path / "repository")
    with started(folder, placed) as command:
        on_its_node(folder, command)
        command.kill()
    wait_until_left(folder)
    until(lambda: not cluster.jobs(), lambda: f"in the queue: {cluster.jobs()}")
    run(folder, *BASE, **placed)


def test_a_stage_that_is_killed_on_its_node_is_told_as_killed(tmp_path: Path, placed: dict[str, str]) -> None:
    folder = make_repository(tmp_path / "repository")
    with started(folder, placed) as command:
        on_its_node(folder, command).kill()
        said, _ = command.communicate(timeout=PATIENCE)
    assert "exited with 137" in said


def test_a_lost_node_is_out_of_reach_and_the_next_try_takes_another(
    tmp_path: Path, placed: dict[str, str], cluster: slurm.Slurm
) -> None:
    folder = make_repository(tmp_path / "repository")
    with started(folder, placed) as command:
        stage = on_its_node(folder, command)
        node = stage.environ()["SLURMD_NODENAME"]
        cluster.kill_node(node)
        said, _ = command.communicate(timeout=PATIENCE)
    wait_until_left(folder)
    assert "oxa: base: lost by srun" in said
    assert "exited with 75" in said
    run(folder, *BASE, **placed)  # on the node that is left
    cluster.start_node(node)
    cluster.wait_until_idle()
