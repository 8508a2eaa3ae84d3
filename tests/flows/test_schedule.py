"""Order, limits and failures, on graphs drawn at random."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.bridge import Node
from flows.schedule import Schedule, devices, environment, stale


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Up to a dozen stages, each after those that it reads from."""
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, 12))):
        names = [node.name for node in nodes]
        upstream = draw(st.sets(st.sampled_from(names), max_size=3)) if names else set()
        nodes.append(Node(f"stage-{i}", frozenset(upstream), accelerator=draw(st.booleans()), changed=True))
    return nodes


@given(graphs(), st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_stage_runs_once_after_its_inputs_and_within_both_limits(
    nodes: list[Node], max_workers: int, accelerators: int, rng: random.Random
):
    plan = Schedule(nodes, max_workers=max_workers, accelerators=accelerators)
    running: dict[str, tuple[Node, int | None]] = {}
    ended: list[str] = []
    while plan.num_left:
        for node, slot in plan.ready():
            assert node.upstream <= set(ended)
            running[node.name] = (node, slot)
        assert running, "something must always be able to run"
        assert len(running) <= max_workers
        slots = [slot for node, slot in running.values() if node.accelerator]
        assert len(slots) <= accelerators
        assert len(set(slots)) == len(slots)
        assert all(slot is None for node, slot in running.values() if not node.accelerator)
        name = rng.choice(sorted(running))
        del running[name]
        ended.append(name)
        plan.ended(name, succeeded=True)
    assert sorted(ended) == sorted(node.name for node in nodes)
    assert plan.given_up == {}


@given(graphs(), st.sets(st.integers(0, 11)))
def test_after_failures_exactly_what_hangs_on_them_is_given_up(nodes: list[Node], failing: set[int]):
    plan = Schedule(nodes, max_workers=3, accelerators=3)
    ran: set[str] = set()
    running: list[str] = []
    while plan.num_left:
        running += [node.name for node, _ in plan.ready()]
        name = running.pop(0)
        ran.add(name)
        plan.ended(name, succeeded=int(name.split("-")[1]) not in failing)
    upstream = {node.name: node.upstream for node in nodes}
    lost: set[str] = set()
    for node in nodes:
        if any(name in lost or int(name.split("-")[1]) in failing for name in upstream[node.name]):
            lost.add(node.name)
    assert set(plan.given_up) == lost
    assert ran == set(upstream) - lost


def test_what_has_the_longest_way_behind_it_comes_first():
    nodes = [
        Node("short", frozenset(), accelerator=False, changed=True),
        Node("long", frozenset(), accelerator=False, changed=True),
        Node("next", frozenset({"long"}), accelerator=False, changed=True),
        Node("last", frozenset({"next", "short"}), accelerator=False, changed=True),
    ]
    plan = Schedule(nodes, max_workers=1, accelerators=1)
    assert [node.name for node, _ in plan.ready()] == ["long"]


def test_gpus_are_shared_out_among_the_slots(monkeypatch: pytest.MonkeyPatch):
    gpus = [str(i) for i in range(8)]
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment(1, 4, 4, gpus) == {"CUDA_VISIBLE_DEVICES": "1,5"}
    assert environment(2, 3, 2, ["0"]) == {"CUDA_VISIBLE_DEVICES": "0"}, "fewer GPUs than slots: they share"
    assert environment(0, 4, 1, gpus) == {}, "who has them alone has them all"


def test_a_stage_shares_only_with_those_that_may_run_beside_it():
    def node(name: str, *upstream: str, accelerator: bool = True) -> Node:
        return Node(name, frozenset(upstream), accelerator=accelerator, changed=True)

    nodes = [
        node("base"),
        node("sample", "base"),
        node("score", "base"),
        node("choose", "score", accelerator=False),
    ]
    nodes += [
        node("train-0", "choose", "sample"),
        node("train-1", "choose", "sample"),
        node("train-2", "choose", "sample"),
    ]
    plan = Schedule(nodes, max_workers=4, accelerators=2)
    assert plan.sharing("base") == plan.sharing("choose") == 1
    assert (plan.sharing("sample"), plan.sharing("score")) == (2, 2)
    assert plan.sharing("train-0") == 2, "three could, two may"
    assert Schedule(nodes, max_workers=4, accelerators=1).sharing("train-0") == 1


def test_a_stage_keeps_its_threads_but_waits_without_burning_a_core(monkeypatch: pytest.MonkeyPatch):
    """With other threads than under `dvc repro` its sums would differ in the last bits."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment(0, 2, 2, []) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert environment(0, 2, 1, []) == {}, "alone it is quicker when it does"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment(0, 2, 2, []) == {}, "the user's word"


def test_the_users_choice_of_gpus_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-1f2e")
    assert devices() == ["3", "GPU-1f2e"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices() == []


def test_what_hangs_on_a_changed_stage_may_change_too():
    def node(name: str, *upstream: str, changed: bool = False) -> Node:
        return Node(name, frozenset(upstream), accelerator=False, changed=changed)

    nodes = [node("a"), node("b", changed=True), node("c", "a"), node("d", "b"), node("e", "c", "d")]
    assert stale(nodes) == {"b", "d", "e"}
