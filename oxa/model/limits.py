"""A call in a process of its own that ends at limits of time and memory: for files that come from elsewhere.

    faults = limits.call(f"{model}: no usable model", read, model)

The process is a fork: what is imported need not be imported again, which takes seconds of torch and transformers. It is
for reading, not for computing: a fork can use neither an accelerator nor more than one thread. As in the verifier's
workers, the kernel ends it at the limit of processor time, whatever runs.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from oxa.errors import DataError, UserError, is_out_of_reach
from oxa.runtime.child import die_with_parent

SECONDS = 20.0  # of processor time
MEMORY = 2 * 2**30  # bytes beyond those that this process holds
PATIENCE = (
    30.0  # times the limit by the clock on the wall, after which the call counts as lost; it may download
)

T = TypeVar("T")


class _Outcome(NamedTuple):
    value: Any = None
    fault: str = ""
    """Why there is no value."""
    out_of_reach: bool = False


def call(subject: str, function: Callable[..., T], *arguments: Any) -> T:
    """What the function returns, which must be picklable.

    Whatever goes wrong in there is a DataError: a UserError's own sentence, else one that begins with `subject`.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sending, subject, function, arguments))
    process.start()
    sending.close()
    try:
        if receiving.poll(PATIENCE * SECONDS):
            outcome: _Outcome = receiving.recv()
        else:
            outcome = _Outcome(fault=f"{subject}: not read after {PATIENCE * SECONDS:.0f} s")
    except EOFError:  # it ended without a word
        process.join()
        late = process.exitcode == -signal.SIGPROF
        how = f"takes more than {SECONDS:.0f} s" if late else f"crashes ({process.exitcode})"
        outcome = _Outcome(fault=f"{subject}: reading it {how}")
    finally:
        receiving.close()
        process.kill()
        process.join()
    if outcome.fault:
        raise DataError(outcome.fault) from (ConnectionError() if outcome.out_of_reach else None)
    value: T = outcome.value
    return value


def _work(
    sending: Connection, subject: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    die_with_parent()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(FileNotFoundError):  # without /proc the time alone is limited
        sizes = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        most = int(sizes["VmData"].split()[0]) * 1024 + MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # it would wait for the others, which a fork leaves behind
    for number in (signal.SIGPROF, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = _Outcome(function(*arguments))
    except UserError as error:
        outcome = _Outcome(fault=str(error), out_of_reach=is_out_of_reach(error))
    except MemoryError:
        outcome = _Outcome(fault=f"{subject}: reading it takes more than {MEMORY >> 30} GiB of memory")
    except Exception as error:  # libraries raise anything on files that nobody wrote with them
        outcome = _Outcome(fault=f"{subject}: {in_short(error)}")
    sending.send(outcome)


def in_short(error: BaseException) -> str:
    """An error's text on one line, its kind before it where that says more."""
    text = " ".join(str(error).split())[:300]
    return text if text and isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"
