"""Child processes whose whole tree ends with us, however we end.

    with Child(["prefect", "server", "start"]) as server: …

`kill -9` runs no clean-up, so the child is not started by us but by a keeper, this module as a process of its own:
it holds the read end of a pipe whose write end only we have. When we end, in whatever way, the kernel closes it; the
keeper then ends the command and everything that it started. The keeper adopts orphans (Linux), so that a grandchild
whose parent has died is found, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

GRACE = 5.0  # seconds between asking a process to end and killing it


class Child(subprocess.Popen[Any]):
    """A Popen of `command` under a keeper. Its return code is the command's, or 128 + n where signal n ended it.

    Signals of the terminal (Ctrl-C) do not reach the command: it lives in a session of its own and ends by `end`, by
    leaving the `with` block, or with this process.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        inherited, self._lifeline = os.pipe()
        try:
            super().__init__(
                [sys.executable, "-m", "oxa.runtime.child", str(inherited), *command],
                pass_fds=[inherited],
                start_new_session=True,
                **options,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(inherited)

    def end(self) -> int:
        """Ends the command and all that it started; returns when they are gone, with the return code."""
        self._let_go()
        return self.wait()

    def __exit__(self, *exception: Any) -> None:
        self.end()
        super().__exit__(*exception)

    def __del__(self, *arguments: Any) -> None:
        self._let_go()
        super().__del__(*arguments)

    def _let_go(self) -> None:
        lifeline, self._lifeline = getattr(self, "_lifeline", -1), -1
        if lifeline >= 0:
            os.close(lifeline)


def socket_fault() -> str | None:
    """What to say where the folder for temporary files has too long a name for the sockets of multiprocessing in it."""
    folder = tempfile.gettempdir()
    longest = 107 - len("/pymp-12345678/listener-12345678")
    if len(os.fsencode(folder)) <= longest:
        return None
    return (
        f"TMPDIR {folder}: {len(os.fsencode(folder))} characters long, and worker processes meet at sockets in it, for "
        f"which it may have {longest} at most; set TMPDIR to a folder with a shorter name"
    )


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Asks the kernel (Linux) to send this process that signal when the one that started it is gone."""
    if sys.platform == "linux":
        parent, pr_set_pdeathsig = os.getppid(), 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number)
        if os.getppid() != parent:
            sys.exit("the process that started this one ended before it began")


def _keep(lifeline: int, command: Sequence[str]) -> int:
    """Runs the command until it ends or the lifeline is cut; returns what to exit with."""
    if sys.platform == "linux":
        pr_set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1)
    try:
        child = subprocess.Popen(command, preexec_fn=die_with_parent)  # for whoever kills the keeper itself
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    cut = threading.Event()
    threading.Thread(target=_end_when_cut, args=(lifeline, cut), daemon=True).start()
    code = child.wait()
    _end_tree()
    if cut.is_set():  # psutil may have been quicker to take the exit code, and then none is left for us
        code = -signal.SIGTERM
    return 128 - code if code < 0 else code


def _end_when_cut(lifeline: int, cut: threading.Event) -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    cut.set()
    _end_tree()


def _end_tree() -> None:
    """Ends every process below this one: politely, then not."""
    import psutil

    patience = GRACE
    while below := psutil.Process().children(recursive=True):
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate() if patience else process.kill()
        psutil.wait_procs(below, timeout=patience or 1.0)
        patience = 0.0


if __name__ == "__main__":
    sys.exit(_keep(int(sys.argv[1]), sys.argv[2:]))
