r"""Judges answers against gold answers (oxa/answers/), in a worker process that may run out of time or memory.

Each answer has the kernel's timer of processor time, and nothing handles its signal, so that it ends the worker at the
limit whatever runs. By the clock on the wall, a verdict would depend on what else the machine does, and on the number
of workers. A worker holds MEMORY bytes at most, and an exception or a lack of memory is never taken for "not equal".

A worker notes each verdict in memory that it shares with the parent, who thus knows of a worker that ended which answer
it was at, and its verdicts before.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from oxa.grading.extraction import Answer
from oxa.runtime.child import die_with_parent

MEMORY = 2 * 2**30  # bytes of address space of one worker
PART_SECONDS = 1.0  # after which a worker hands back the rest of a batch, which others may have room for
# Verdict by the byte that stands for it in the notes; 0: none yet.
CODES = ("", "correct", "incorrect", "unparsable", "bad_gold", "timeout", "unsure")

Question = tuple[
    tuple[str, ...], Answer
]  # gold answers, and the answer with what else its response has in boxes

_notes: Any = bytearray()  # of this worker's pool: one byte an answer


def start_worker(notes: Any) -> None:
    """Bounds the worker, has it die with its parent, keeps it quiet, and loads what the first answer needs."""
    import resource

    global _notes
    _notes = notes
    die_with_parent()
    if sys.platform == "linux":
        # private (CPython 3.11 to 3.13): every child holds the pipe whose end tells the fork server that we are gone
        alive = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None)
        if alive is not None:
            os.close(alive)
            forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # it died before die_with_parent
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for C code to return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGTERM})
    # sympy takes a RecursionError for "not equal"; this deep, the memory or the stack ends first and the worker dies
    sys.setrecursionlimit(10**9)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    assert judge((r"\sqrt{2}",), Answer(r"2^{1/2}")) == "correct"
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def judge_batch(batch: list[Question], limit: float, place: int) -> None:
    """Notes the verdicts of a batch, or of its first part, from `place` on. SIGPROF ends this process where one answer
    takes more than `limit` seconds of processor time.

    An answer that comes near the memory's limit is given up like one that runs out of time: sympy takes a
    MemoryError for "not equal" in places. A worker that keeps much of what an answer took ends, so that each
    answer has the same room whatever came before it.
    """
    start = time.monotonic()
    for i, question in enumerate(batch):
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            verdict = judge(*question)
        except MemoryError:
            verdict = "timeout"
        signal.setitimer(signal.ITIMER_PROF, 0)
        most, now = _memory()
        _notes[place + i] = CODES.index("timeout" if most > MEMORY // 4 else verdict)
        if most > MEMORY // 4 or now > MEMORY // 8:
            os._exit(1)
        if time.monotonic() - start > PART_SECONDS:
            break


def _memory() -> tuple[int, int]:
    """Most and present resident memory, bytes; 0 where the system does not tell. (ru_maxrss counts the parent's.)"""
    sizes = {"VmHWM": 0, "VmRSS": 0}
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    return sizes["VmHWM"], sizes["VmRSS"]


def judge(golds: tuple[str, ...], answer: Answer) -> str:
    """The verdict on one answer."""
    from oxa.answers import equality

    bad, doubt = not golds, not answer.certain
    for gold in golds:
        if not _guarded(partial(equality.readable, gold)):
            bad = True
            continue
        equal = _guarded(partial(equality.equal, gold, answer.text))
        if not equal and answer.boxes:  # each of several answers may have its own box
            equal = _guarded(partial(equality.equal, gold, ", ".join(answer.boxes))) or equal
        if equal:
            return "correct"
        doubt |= equal is None
    if bad:
        return "bad_gold"
    if not doubt:
        return "incorrect"
    return "unsure" if _guarded(partial(equality.readable, answer.text)) else "unparsable"


def _guarded(call: Callable[[], Any]) -> Any:
    """What the call returns, or None where it raises: sympy and its parser raise anything on model output."""
    try:
        return call()
    except MemoryError:
        raise
    except Exception:
        return None
