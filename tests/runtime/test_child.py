"""Children that end with us: real processes, ended in every way that there is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import below, until, wait_until_gone

from oxa.runtime.child import Child

# a tree of three: the child, its own child, and a grandchild in a session of its own whose parent has ended
TREE = """
import subprocess, sys, time
subprocess.Popen(["sleep", "1000"])
subprocess.run([sys.executable, "-c",
    "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"])
print("up", flush=True)
time.sleep(1000)
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(1000)
"""

PARENT = """
import sys, time
from oxa.runtime.child import Child
child = Child([sys.executable, "-c", sys.argv[1]])
time.sleep(1000)
"""


def started(code: str) -> Child:
    child = Child([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    return child


def test_the_commands_output_and_exit_code_come_through():
    with Child(["sh", "-c", "echo said; exit 7"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.read() == "said\n"
        assert child.wait() == 7


def test_a_command_that_a_signal_ended_says_so():
    with Child(["sh", "-c", "kill -9 $$"]) as child:
        assert child.wait() == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_is_named(capfd: pytest.CaptureFixture[str]):
    with Child(["no-such-command"]) as child:
        assert child.wait() == 127
    assert capfd.readouterr().err == "no-such-command: No such file or directory\n"


def test_end_ends_the_whole_tree_orphans_included():
    with started(TREE) as child:
        tree = below(child.pid)
        assert sum("sleep" in p.name() for p in tree) == 2
        assert child.end() == 128 + signal.SIGTERM, "never taken for a success"
        wait_until_gone(tree)


def test_what_does_not_listen_to_a_polite_signal_is_killed():
    with started(STUBBORN) as child:
        tree = below(child.pid)
        child.end()
        wait_until_gone(tree)


def test_what_a_command_leaves_behind_ends_with_it():
    with Child(["sh", "-c", "sleep 1000 & cat"], stdin=subprocess.PIPE) as child:  # cat ends with its input
        left = until(
            lambda: [p for p in below(child.pid) if p.cmdline() == ["sleep", "1000"]], "it sleeps", child
        )
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait() == 0
        wait_until_gone(left)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_tree_ends_when_the_process_that_started_it_is_killed(how: signal.Signals):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, TREE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    tree = below(parent.pid)
    assert len(tree) == 4, "the keeper, the child and two below it"
    parent.send_signal(how)
    parent.wait()
    wait_until_gone(tree)


def test_children_of_two_parents_do_not_hold_each_others_lifelines(tmp_path: Path):
    with started(TREE) as first, started(TREE) as second:
        tree = below(first.pid)
        first.end()
        wait_until_gone(tree)
        assert second.poll() is None
        assert os.path.exists(f"/proc/{second.pid}")


def test_the_command_ends_with_its_keeper_too():
    with started("import time; print('up', flush=True); time.sleep(1000)") as child:
        (command,) = below(child.pid)
        child.send_signal(signal.SIGKILL)
        wait_until_gone([command])
