"""A dvc.lock that a kill, a full disk or a merge has left half: what is said, and that nothing is done twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from conftest import Repository
from flows import cli, lockfile
from oxa.errors import DataError

STAGES = {
    "first": {"cmd": "echo first >> ran; echo 1 > first", "outs": ["first"], "params": ["seeds"]},
    "second": {"cmd": "echo second >> ran; cat first > second", "deps": ["first"], "outs": ["second"]},
    "third": {"cmd": "echo third >> ran; cat second > third", "deps": ["second"], "outs": ["third"]},
}


@pytest.fixture
def lock(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> str:
    """What dvc.lock holds when all has run."""
    monkeypatch.setattr(lockfile, "LOOKS", 1)
    repository.stages(**STAGES)
    reproduce()
    return lockfile.LOCK.read_text()


def reproduce() -> None:
    with Repo() as repo:
        repo.reproduce()


def conflict(lock: str) -> str:
    ours, theirs = lock, lock.replace("echo 1", "echo 2")
    return f"<<<<<<< HEAD\n{ours}=======\n{theirs}>>>>>>> other\n"


FAULTS = {
    "empty (a kill": lambda lock: "",
    "cut off (by": lambda lock: lock[: len(lock) // 2].rstrip("\n"),
    "cut off (by a kill or a full disk while DVC wrote it?) at stage third": lambda lock: lock[
        : lock.index("third:\n") + 7
    ],
    "holds both sides of a merge": conflict,
    "not valid YAML in line": lambda lock: lock.replace("stages:", "stages: ]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_sentence_by_every_command(
    lock: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lockfile.read() is not None
    lockfile.LOCK.write_text(FAULTS[fault](lock))
    commands = ["plan", "summary", "register", "regrade", "doctor", "compare sft base"]
    for command in commands if fault.startswith("empty") else ["regrade"]:
        assert cli.main(command.split()) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"oxa: dvc.lock: {fault}"), command
        assert "`git checkout dvc.lock` brings back" in printed.err
        assert ("`oxa run` mends it" in printed.err) == fault.startswith(lockfile.HALF)
        assert len(printed.err.splitlines()) == 1
        assert printed.out == ""


def test_a_lock_that_dvc_is_writing_is_waited_for(lock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "LOOKS", 2)
    monkeypatch.setattr("time.sleep", lambda seconds: lockfile.LOCK.write_text(lock))
    lockfile.LOCK.write_text("")
    assert set(lockfile.read() or {}) == set(STAGES)


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.startswith(lockfile.HALF)])
def test_what_a_kill_left_is_mended_and_nothing_runs_again(lock: str, fault: str, has_copy: bool) -> None:
    stages = Path("ran").read_text()
    if has_copy:
        subprocess.run(["git", "add", "dvc.lock"], check=True)
    lockfile.LOCK.write_text(FAULTS[fault](lock))
    said = lockfile.mend()
    assert said is not None
    assert ("git's copy" in said) == has_copy
    assert (lockfile.LOCK.exists() and lockfile.LOCK.read_text() == lock) == has_copy
    assert lockfile.mend() is None
    reproduce()
    assert _hashes(lockfile.LOCK.read_text()) == _hashes(lock)
    assert Path("ran").read_text() == stages


def test_two_sides_of_a_merge_are_left_to_their_owner(lock: str) -> None:
    lockfile.LOCK.write_text(conflict(lock))
    assert lockfile.mend() is None
    assert lockfile.LOCK.read_text() == conflict(lock)


def _hashes(lock: str) -> set[str]:
    """Its lines without sizes, which DVC does not miss, in any order."""
    return {line for line in lock.splitlines() if "size:" not in line}


@pytest.mark.whole
def test_wherever_a_kill_has_cut_the_lock_off_the_next_run_ends_with_the_same_one_and_runs_nothing_again(
    lock: str,
) -> None:
    stages = Path("ran").read_text()
    refused = 0
    line_ends = [place + 1 for place, sign in enumerate(lock) if sign == "\n"]
    for length in [0, len(lock) // 3, *line_ends]:
        lockfile.LOCK.write_text(lock[:length])
        try:
            lockfile.read()
        except DataError:
            refused += 1
            lockfile.LOCK.unlink()  # as the sentence says, where no lock was committed
        reproduce()
        assert _hashes(lockfile.LOCK.read_text()) == _hashes(lock), length
    assert refused
    assert Path("ran").read_text() == stages
