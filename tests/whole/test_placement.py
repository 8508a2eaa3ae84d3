"""Stages on the nodes of a real SLURM and of a real Ray: the same bytes, and what is left where something dies."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import ray_nodes
import slurm
import torch
from pipelines import (
    FLOW,
    Command,
    assert_same,
    change,
    contents,
    copied,
    environment,
    forget,
    make_repository,
    reference,
    run,
    stages_run,
)
from processes import PATIENCE, until, wait_until_left

from oxa.runtime import journal
from oxa.runtime.server import free_port

pytestmark = pytest.mark.whole

BASE = ("dvc", "repro", "--single-item", "base")


Cluster = slurm.Slurm | ray_nodes.Ray


@pytest.fixture(scope="module", params=[slurm.cluster, ray_nodes.cluster], ids=["slurm", "ray"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with request.param() as made:
        yield made


@pytest.fixture
def placed(cluster: Cluster) -> dict[str, str]:
    """What has a stage placed on it."""
    return cluster.environment | {"OXA_PLACEMENT": cluster.kind}


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
    stage: psutil.Process = until(lambda: at_work(folder), "no stage came to work on a node", command)[0]
    return stage


def at_work(folder: Path) -> list[psutil.Process]:
    """Processes of stages that hold their work."""
    found = []
    for lock in (folder / ".work").glob("*/*/lock"):
        with contextlib.suppress(ValueError, FileNotFoundError, psutil.NoSuchProcess):
            found.append(psutil.Process(int(lock.read_text())))
    return found


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
    tmp_path: Path, placed: dict[str, str], cluster: Cluster
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
    tmp_path: Path, placed: dict[str, str], cluster: Cluster
) -> None:
    folder = make_repository(tmp_path / "repository")
    with started(folder, placed) as command:
        stage = on_its_node(folder, command)
        node = cluster.node_of(stage)
        cluster.kill_node(node)
        said, _ = command.communicate(timeout=PATIENCE)
    wait_until_left(folder)
    assert "oxa: base: lost by its scheduler" in said
    assert "exited with 75" in said
    run(folder, *BASE, **placed)  # on the node that is left
    cluster.start_node(node)
    cluster.wait_until_idle()


def test_arms_run_on_both_nodes_at_once_stop_with_the_flow_and_end_as_here(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, placed: dict[str, str], cluster: Cluster
) -> None:
    done = reference(tmp_path_factory, FLOW)
    folder = copied(done, tmp_path / "repository")
    forget(folder, "train@sft-0", "train@oxa_full-0")
    change(folder, "tracking.enabled", False)
    command = Command(folder, *FLOW, "evaluate@*", **placed)

    def nodes() -> set[str]:
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            return {cluster.node_of(stage) for stage in at_work(folder)}
        return set()

    until(lambda: len(nodes()) == 2, lambda: f"on {nodes()}; printed: {command.printed()}", command)
    command.send_signal(signal.SIGINT)
    command.wait(PATIENCE)
    wait_until_left(folder)
    until(lambda: not cluster.jobs(), lambda: f"in the queue: {cluster.jobs()}")
    cluster.drain("n2")  # one node of one core is left for two stages at once
    run(folder, *FLOW, "evaluate@*", **placed)
    cluster.resume("n2")
    assert_same(folder, done, "evaluate@sft-0", "evaluate@oxa_full-0")
    record = [json.loads(line) for line in (folder / ".work/placed.jsonl").read_text().splitlines()]
    assert {row["node"] for row in record} == {"n1"}
    spans = sorted((row["begun"], row["ended"]) for row in record)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert {"train@sft-0", "train@oxa_full-0"} <= {row["stage"] for row in record}


def test_a_training_on_two_nodes_is_one_placement_and_learns_what_one_process_does(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, placed: dict[str, str]
) -> None:
    done, stage = reference(tmp_path_factory, FLOW), "train@oxa_full-0"
    folder = copied(done, tmp_path / "repository")
    forget(folder, stage)
    change(folder, "flow.placement", {"needs": [{"stages": "train@*", "nodes": 2}]})
    meeting = f"--nnodes @nodes --node-rank @rank --master-addr @head --master-port {free_port()}"
    launcher = f"torchrun --nproc-per-node 1 {meeting}"
    assert stages_run(run(folder, "dvc", "repro", stage, OXA_LAUNCH=launcher, **placed)) == {stage}
    ours, theirs = (
        [row for row in journal.read(root / "metrics/train/oxa_full-0.jsonl") if row["name"] == "loss"]
        for root in (folder, done)
    )
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert [row["value"] for row in ours] == pytest.approx([row["value"] for row in theirs], rel=1e-4)
    record = [json.loads(line) for line in (folder / ".work/placed.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["code"]) for row in record] == [(stage, 0)]


def test_doctor_asks_a_node_what_would_go_wrong_there(tmp_path: Path, placed: dict[str, str]) -> None:
    folder = make_repository(tmp_path / "repository")
    said = run(folder, "oxa", "doctor", "--placement", code=2, **placed)
    assert "node      n1: Python " in said or "node      n2: Python " in said
    gpus = torch.cuda.device_count()
    assert (f": {gpus} GPUs are visible to torch where stages ask for 1" in said) == (gpus < 1)
    faults = [line for line in said.splitlines() if line.startswith("around")]
    assert len(faults) == (gpus < 1), said
    said = run(folder, "oxa", "doctor", "--placement", code=2, OXA_PLACEMENT="local")
    assert "stages run on this machine" in said
