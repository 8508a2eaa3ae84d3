r"""Compares an answer with its gold answers by math-verify, in a worker process that may run out of time or memory.

Forms that math-verify would misread (`4.5e33`, `1\,080`, `50\%`) are rewritten first. Its own time limit (a handler of
SIGALRM, which waits while C code runs) is off: each answer has the kernel's timer of processor time, and nothing
handles its signal, so that it ends the worker at the limit whatever runs. By the clock on the wall, a verdict would
depend on what else the machine does, and on the number of workers. A worker holds MEMORY bytes at most, and an
exception or a lack of memory is never taken for "not equal".

A worker notes each verdict in memory that it shares with the parent, who thus knows of a worker that ended which answer
it was at, and its verdicts before.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from oxa.runtime.child import die_with_parent

MEMORY = 2 * 2**30  # bytes of address space of one worker
PART_SECONDS = 1.0  # after which a worker hands back the rest of a batch, which others may have room for
# Verdict by the byte that stands for it in the notes; 0: none yet.
CODES = ("", "correct", "incorrect", "unparsable", "bad_gold", "timeout")

_SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:\\[,!;: ]|\{,\}|[~\s])\d{3})+(?:\.\d+)?")
_PERCENT = re.compile(
    r"(?:\.0+)?\s*\\?%\s*$"
)  # it would take 50% for 50 and for 1/2, but 50.0% for 1/2 alone

Question = tuple[tuple[str, ...], str, bool]  # gold answers, prediction, whether it stood in a box


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
    assert judge(("0.5",), r"\frac{1}{2}", True) == "correct"
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def judge_batch(batch: list[Question], limit: float, place: int) -> None:
    """Notes the verdicts of a batch, or of its first part, from `place` on. SIGPROF ends this process where one answer
    takes more than `limit` seconds of processor time.

    An answer that comes near the memory's limit is given up like one that runs out of time: math-verify takes a
    MemoryError for "not equal". A worker that keeps much of what an answer took ends, so that each answer has the same
    room whatever came before it.
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


def judge(golds: tuple[str, ...], predicted: str, boxed: bool) -> str:
    """The verdict on one prediction."""
    from math_verify import verify

    answer = _parse(predicted, boxed)
    if not answer:
        return "unparsable"
    doubt, bad = not _is_parsed(answer), not golds
    for gold in golds:
        expected = _parse_gold(gold)
        if not _is_parsed(expected):
            bad = True
            continue
        for pair in itertools.product(expected, answer):
            matches = _guarded(partial(verify, *pair, timeout_seconds=None, raise_on_error=True))
            if matches:
                return "correct"
            doubt |= matches is None
    if bad:
        return "bad_gold"
    return "unparsable" if doubt else "incorrect"


def _guarded(call: Callable[[], Any]) -> Any:
    """What the call returns, or None where it raises: math-verify and sympy raise anything on model output."""
    try:
        return call()
    except MemoryError:
        raise
    except Exception:
        return None


def _is_parsed(values: list[Any]) -> bool:
    """math-verify gives the text itself beside the expression, or alone where it could not be parsed."""
    return any(not isinstance(value, str) for value in values)


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> list[Any]:
    return _parse(gold, True)


def _parse(text: str, boxed: bool) -> list[Any]:
    """What math-verify reads in an answer: an expression and its text, the text alone, or nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # the content of a box is one expression; looking for numbers inside what does not parse would find a wrong one
    configs = [LatexExtractionConfig()] if boxed else [LatexExtractionConfig(), ExprExtractionConfig()]
    values: list[Any] = []
    for form in _forms(text, boxed):
        values = _guarded(partial(parse, form, configs, parsing_timeout=None, raise_on_error=True)) or values
        if _is_parsed(values):
            break
    return values


def _forms(text: str, boxed: bool) -> Iterator[str]:
    """Ways to write an answer that math-verify reads, the first one that parses being taken."""
    text = text.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()  # a full stop is no part of the answer: `\boxed{18.}` would not parse
    if scientific := _SCIENTIFIC.fullmatch(text):  # it would read `4.5e33` as 4.5·e·33, or as 4.5
        yield rf"\boxed{{{scientific[1]} \times 10^{{{scientific[2]}}}}}"
    elif _THOUSANDS.fullmatch(text):  # it would read `1\,080` as the mixed number 1 + 080
        yield rf"\boxed{{{re.sub(r'[^0-9.+-]', '', text)}}}"
    elif not boxed:
        yield text
    else:
        if (percent := _PERCENT.search(text)) is not None:
            yield f"${text[: percent.start()]}$%"  # inside the environment the sign would be dropped
        yield rf"\boxed{{{text}}}"
        yield f"${text}$"
