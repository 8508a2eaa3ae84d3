"""DVC's graph as the flow sees it, and its stages as children: a real repository, real commands."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
from processes import PATIENCE, wait_until_gone

from conftest import Repository
from flows import bridge
from oxa.errors import DataError, UserError


@pytest.fixture
def chain(repository: Repository) -> Repository:
    """first → middle@{x,y} → last; `middle@y` reads `fails` and ends with that exit code."""
    (repository.folder / "input").write_text("1")
    (repository.folder / "fails").write_text("0")
    repository.stages(
        first={"cmd": "cat input > first.txt && echo working", "deps": ["input"], "outs": ["first.txt"]},
        middle={
            "matrix": {"item": ["x", "y"]},
            "cmd": "cat first.txt fails > ${item.item}.txt; test ${item.item} = x || exit $(cat fails)",
            "deps": ["first.txt", "fails"],
            "outs": ["${item.item}.txt"],
            "meta": {"accelerator": True},
        },
        last={"cmd": "cat x.txt y.txt > last.txt", "deps": ["x.txt", "y.txt"], "outs": ["last.txt"]},
    )
    return repository


def repro(name: str) -> str:
    return bridge.Children().repro(name)


def test_the_plan_is_dvcs_graph_with_what_has_changed(chain: Repository):
    before = bridge.plan()
    assert [node.name for node in before] == ["first", "middle@x", "middle@y", "last"]
    assert [node.upstream for node in before] == [
        set(),
        {"first"},
        {"first"},
        {"middle@x", "middle@y"},
    ]
    assert [node.accelerator for node in before] == [False, True, True, False]
    assert all(node.changed for node in before)
    for node in before:
        repro(node.name)
    assert not any(node.changed for node in bridge.plan())
    Path("x.txt").unlink()
    assert {node.name for node in bridge.plan() if node.changed} == {"middle@x", "last"}


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["first"], ["first"]),
        (["middle"], ["first", "middle@x", "middle@y"]),
        (["*@y"], ["first", "middle@y"]),
        (["middle@x", "first"], ["first", "middle@x"]),
        (["last"], ["first", "middle@x", "middle@y", "last"]),
    ],
)
def test_targets_are_stages_matrices_and_patterns_and_bring_what_they_need(
    chain: Repository, targets: list[str], names: list[str]
):
    assert [node.name for node in bridge.plan(targets)] == names


def test_an_unknown_target_and_a_broken_graph_are_a_sentence_each(chain: Repository):
    with pytest.raises(UserError, match=r"no stage is called 'midle'.*first, last, middle"):
        bridge.plan(["midle"])
    with pytest.raises(UserError, match=r"no stage is called 'mid'.*: middle@x, middle@y$"):
        bridge.plan(["mid"])
    Path("dvc.yaml").write_text("stages: [")
    with pytest.raises(UserError, match=r"^DVC: .*dvc\.yaml"):
        bridge.plan()


def test_a_stage_is_run_found_unchanged_or_restored(chain: Repository):
    lines: list[str] = []
    assert bridge.Children().repro("first", on_line=lines.append) == "run"
    assert "working" in lines
    assert repro("first") == "unchanged"
    Path("first.txt").unlink()
    assert repro("first") == "restored"
    Path("input").write_text("2")
    assert repro("first") == "run"
    Path("input").write_text("1")
    assert repro("first") == "restored", "the run cache knows the earlier input"
    assert bridge.Children().repro("first", force=True) == "run"


def test_the_lock_is_read_by_path_and_md5(chain: Repository):
    with pytest.raises(DataError, match=r"dvc\.lock: no such file"):
        bridge.locked()
    repro("first")
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["first"]
    assert bridge.locked() == {
        "first": bridge.Locked(
            deps={"input": recorded["deps"][0]["md5"]},
            outs={"first.txt": recorded["outs"][0]["md5"]},
            params={},
        )
    }


@pytest.mark.parametrize(
    ("code", "retry"), [(1, False), (2, False), (os.EX_TEMPFAIL, True), (128 + signal.SIGKILL, True)]
)
def test_only_failures_that_the_surroundings_caused_are_worth_another_try(
    chain: Repository, code: int, retry: bool
):
    repro("first")
    Path("fails").write_text(str(code))
    with pytest.raises(bridge.StageFailed) as failed:
        repro("middle@y")
    assert failed.value.retry is retry


def failure_of(command: str, repository: Repository) -> bridge.StageFailed:
    repository.stages(only={"cmd": command, "outs": ["out"]})
    with pytest.raises(bridge.StageFailed) as failed:
        repro("only")
    return failed.value


def test_what_a_failed_stage_says_is_its_own_sentence_or_its_last_lines(repository: Repository):
    assert str(failure_of("echo noise; echo 'oxa: data.jsonl: row 3 is bad' >&2; exit 2", repository)) == (
        "oxa: data.jsonl: row 3 is bad"
    )
    warned = failure_of(
        "echo 'oxa: MLflow cannot be reached' >&2; echo KeyError: key >&2; exit 1", repository
    )
    assert "KeyError: key" in str(warned), "a warning is not the reason"
    message = str(failure_of("for i in $(seq 100); do echo line $i; done; exit 1", repository))
    assert "line 100\n" in message
    assert "line 1\n" not in message


def test_a_killed_stage_and_a_killed_dvc_are_told_apart_from_mistakes(repository: Repository):
    killed = failure_of("exec sh -c 'kill -9 $$'", repository)
    assert (str(killed), killed.retry) == ("killed by signal 9 (out of memory, or by hand)", True)
    failed = failure_of("kill -9 $PPID; sleep 1000", repository)
    assert failed.retry
    assert "killed by signal 9" in str(failed)


WORKER = """
import os, sys, time
from pathlib import Path
from oxa.errors import tell
tell("the hub cannot be reached")
Path(os.environ["RANK"]).touch()
while not (Path("0").exists() and Path("1").exists()):  # else the first to end silences the other
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("end", "message", "retry"),
    [
        ("sys.exit(2)", "oxa: the hub cannot be reached", False),
        *(
            pytest.param(*case, marks=pytest.mark.whole)
            for case in (
                (f"sys.exit({os.EX_TEMPFAIL})", "oxa: the hub cannot be reached", True),
                ("os.kill(os.getpid(), 9)", "killed by signal 9 (out of memory, or by hand)", True),
            )
        ),
    ],
)
def test_a_stage_on_several_processes_fails_as_the_first_of_them_did(
    repository: Repository, end: str, message: str, retry: bool
):
    Path("worker.py").write_text(WORKER + end)
    failed = failure_of("torchrun --standalone --nproc-per-node 2 worker.py", repository)
    assert (str(failed), failed.retry) == (message, retry)


def test_a_fault_on_several_processes_is_told_by_their_traceback_and_not_by_torchruns_table(
    repository: Repository,
):
    Path("worker.py").write_text(f"{WORKER}\n{{}}['key']")
    failed = failure_of("torchrun --standalone --nproc-per-node 2 worker.py", repository)
    assert "KeyError: 'key'" in str(failed)
    assert "torch/distributed/run.py" not in str(failed)
    assert not failed.retry


def test_ending_the_children_ends_their_stages_and_starts_no_more(repository: Repository):
    repository.stages(only={"cmd": "sleep 1000", "outs": ["out"]})
    children = bridge.Children()
    before = set(psutil.Process().children(recursive=True))
    seen = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            children.repro("only", on_line=lambda line: seen.set())
        except bridge.StageFailed as failed:
            failures.append(failed)

    thread = threading.Thread(target=work)
    thread.start()
    assert seen.wait(PATIENCE)
    tree = list(set(psutil.Process().children(recursive=True)) - before)
    children.end()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [str(failed) for failed in failures] == ["ended with the flow"]
    wait_until_gone(tree)
    begun = time.monotonic()
    with pytest.raises(bridge.StageFailed):
        children.repro("only")
    assert time.monotonic() - begun < 2 * PATIENCE, "it would sleep for 1000 seconds"


def test_two_stages_at_once_both_find_their_way_into_the_lock(chain: Repository):
    repro("first")
    threads = [threading.Thread(target=repro, args=(name,)) for name in ("middle@x", "middle@y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(bridge.locked()) == {"first", "middle@x", "middle@y"}
