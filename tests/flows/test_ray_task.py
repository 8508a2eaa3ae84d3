"""Commands as tasks on a Ray cluster: what is said where none can be. Real clusters: tests/whole/test_placement.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray")

from flows import ray_task


def test_a_machine_that_is_no_node_of_a_cluster_is_told_how_to_become_one() -> None:
    assert ray_task.hindrance("10.7.0.1:6379", is_node=True) is None
    assert ray_task.hindrance("", is_node=True) is None
    advice = ray_task.hindrance("10.7.0.1:6379", is_node=False)
    assert advice is not None
    assert "`ray start --address 10.7.0.1:6379 --num-cpus 0" in advice


def test_an_address_of_rays_client_is_refused_in_a_sentence() -> None:
    command = [sys.executable, "-m", "flows.ray_task", "--", "true"]
    environment = os.environ | {"RAY_ADDRESS": "ray://10.7.0.1:10001"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == os.EX_CONFIG
    (line,) = done.stderr.splitlines()
    assert line.startswith("ray: this machine has to be a node of the cluster")
