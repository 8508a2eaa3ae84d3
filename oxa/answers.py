"""Extracts the answer from a response and grades it against the accepted gold answers.

A verdict says what is known, so that nothing uncertain passes for wrong:

    correct      math-verify holds the answer equal to one of the accepted gold answers
    incorrect    both were parsed and compared, and differ
    unparsable   no answer was found (no </think>, nothing behind it, longer than MAX_CHARS), it does not parse, or
                 math-verify raised an exception on it
    timeout      the check did not end within its time or memory: its worker was killed, or died
    bad_gold     a gold answer does not parse, and no other one matches

The text is untrusted: a tower of powers or an unlucky expression keeps sympy busy for hours or eats all memory. In
this process it is only searched, in time linear in its length; everything else happens in worker processes that are
killed at the limit, hold MEMORY bytes at most and die with this process. math-verify's own time limit (SIGALRM, which
waits while C code runs) is off.

Distinct pairs of gold answers and prediction are graded once. They go to the workers in batches, since a message to
a worker costs as much as an easy answer; when a batch does not come back, its answers are asked for one by one, each
with the full limit. A verdict therefore does not depend on the answers beside it, their order or the worker count.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from oxa import config, prompts

MAX_CHARS = 10_000  # a longer answer (what is in the box, else the whole tail) is unparsable
MEMORY = 2 * 2**30  # bytes of address space of one worker
BATCH = 64  # answers a message to a worker, at most
BATCH_SECONDS = 4.0  # for a whole batch, before its answers are asked for one by one
PART_SECONDS = (
    1.0  # after which a worker returns what it has of a batch, so that slow answers do not add up to that
)
IN_FLIGHT = 4  # batches a worker, handed out ahead
MAX_RESTARTS = 3  # of a pool whose idle workers died, in one call

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:(?:\\[,!;: ]|\{,\}|[~\s])\d{3})+(?:\.\d+)?")
_PERCENT = re.compile(r"\s*\\?%\s*$")

_Question = tuple[tuple[str, ...], str, bool]  # gold answers, prediction, whether it stood in a box


class Graded(NamedTuple):
    verdict: str  # one of records' and config's verdicts
    predicted: str | None  # the answer as it was written; None where there is none


def extract(text: str, *, require_think: bool) -> str | None:
    r"""The answer of a response: what the last balanced \boxed{…} behind the last </think> holds.

    Without such a box it is the whole tail, from which math-verify extracts. None where there is nothing.
    """
    found = _find(text, require_think)
    return found[0] if found else None


def _find(text: str, require_think: bool) -> tuple[str, bool] | None:
    """(answer, whether it stood in a box), or None."""
    tail = prompts.answer_part(text, require_think=require_think)
    if tail is None:
        return None
    box = _last_box(tail)
    answer = (tail if box is None else tail[slice(*box)]).strip()
    return (answer, box is not None) if answer else None


def _last_box(tail: str) -> tuple[int, int] | None:
    r"""Where the content of the balanced \boxed{…} that starts last lies: the inner one of nested boxes."""
    last = None
    opened: list[int | None] = []  # start of the content of an open box; None for another brace
    for token in _BRACES.finditer(tail):
        if (mark := token.group()) == "{":
            opened.append(None)
        elif mark == "}":
            start = opened.pop() if opened else None
            if start is not None and (last is None or start > last[0]):
                last = start, token.start()
        elif mark.endswith("{") and len(mark) > 2:  # not an escaped brace
            opened.append(token.end())
    return last


class Grader:
    """Grades answers in worker processes, which start with the first answer and end with the `with` block.

    Memoised on (gold answers, prediction) as long as it lives. `num_distinct` counts those pairs.
    """

    def __init__(self, section: config.Verify) -> None:
        self._limit = section.timeout
        self._workers = section.workers or _cores()
        self._require_think = section.require_think
        self._pool: ProcessPool | None = None
        self._memo: dict[bytes, str] = {}

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def num_distinct(self) -> int:
        return len(self._memo)

    def grade(
        self, items: Sequence[tuple[Sequence[str], str, str]], description: str = "grading"
    ) -> list[Graded]:
        """Grades (accepted gold answers, response verbatim, finish_reason), in order.

        A response that was cut by length is graded by what there is of it; whether that counts is the selection's
        business. Its answer may be longer than MAX_CHARS only to be unparsable.
        """
        questions: list[_Question | None] = []
        predictions: list[str | None] = []
        for golds, text, _ in items:
            found = _find(text, self._require_think)
            if found is not None and len(found[0]) > MAX_CHARS:
                found = None
            predictions.append(found[0] if found else None)
            questions.append((tuple(golds), *found) if found else None)
        verdicts = self._verdicts(questions, description)
        return [Graded(verdict, predicted) for verdict, predicted in zip(verdicts, predictions, strict=True)]

    def check_golds(
        self, golds: Sequence[Sequence[str]], description: str = "checking gold answers"
    ) -> list[bool]:
        """For each problem, whether it has a gold answer and every accepted one is correct by its own measure."""
        questions: list[_Question | None] = [((gold,), gold, True) for accepted in golds for gold in accepted]
        verdicts = iter(self._verdicts(questions, description))
        return [set(itertools.islice(verdicts, len(accepted))) == {"correct"} for accepted in golds]

    def _verdicts(self, questions: list[_Question | None], description: str) -> list[str]:
        keys = [None if question is None else _key(question) for question in questions]
        new = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key is not None and question is not None and key not in self._memo
        }
        self._memo.update(zip(new, self._ask(list(new.values()), description), strict=True))
        return ["unparsable" if key is None else self._memo[key] for key in keys]

    def _ask(self, questions: list[_Question], description: str) -> list[str]:
        """The workers' verdicts, in order."""
        verdicts = [""] * len(questions)
        size = max(1, min(BATCH, len(questions) // (2 * IN_FLIGHT * self._workers)))
        todo = deque(range(i, min(i + size, len(questions))) for i in range(0, len(questions), size))
        restarts = 0
        with tqdm(
            total=len(questions), desc=description, unit="answer", disable=None if questions else True
        ) as bar:
            pending: dict[Future[list[str]], range] = {}
            while todo or pending:
                while todo and len(pending) < IN_FLIGHT * self._workers:
                    batch = todo.popleft()
                    pending[self._schedule([questions[i] for i in batch])] = batch
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    batch = pending.pop(future)
                    try:
                        found = future.result()
                    except BrokenProcessPool:
                        todo.extendleft([batch, *pending.values()])
                        pending.clear()
                        self._stop()
                        restarts += 1
                        if restarts > MAX_RESTARTS:
                            raise
                        break
                    except (TimeoutError, ProcessExpired):
                        if len(batch) > 1:
                            todo.extendleft(range(i, i + 1) for i in reversed(batch))
                            continue
                        found = ["timeout"]
                    for i, verdict in zip(batch, found, strict=False):
                        verdicts[i] = verdict
                    if rest := batch[len(found) :]:
                        todo.appendleft(rest)
                    bar.update(len(found))
        return verdicts

    def _schedule(self, batch: list[_Question]) -> Future[list[str]]:
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self._workers,
                initializer=_start_worker,
                initargs=[os.getpid()],
                # a fork would inherit torch's locks and the accelerator's state
                context=multiprocessing.get_context("spawn"),
            )
        limit = self._limit if len(batch) == 1 else min(self._limit, BATCH_SECONDS)
        return self._pool.schedule(_judge_all, args=[batch], timeout=limit)

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(question: _Question) -> bytes:
    """A short key: a million predictions of some kilobytes would not fit as they are."""
    golds, predicted, boxed = question
    return blake2b(repr((golds, predicted, boxed)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


# ---- in the worker ----


def _start_worker(parent: int) -> None:
    """Bounds the worker, has it die with its parent, keeps it quiet, and loads what the first answer needs."""
    import resource

    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for C code to return
    # sympy takes a RecursionError for "not equal"; this deep, the memory or the stack ends first and the worker dies
    sys.setrecursionlimit(10**9)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    assert _judge(("0.5",), r"\frac{1}{2}", True) == "correct"
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)


def _judge_all(batch: list[_Question]) -> list[str]:
    """Verdicts of a batch, or of its first part. A worker that has come near its memory's limit ends here instead.

    math-verify takes a MemoryError for "not equal", and what the worker keeps would fail the next answers.
    """
    start = time.monotonic()
    verdicts = []
    for question in batch:
        verdicts.append(_judge(*question))
        if time.monotonic() - start > PART_SECONDS:
            break
    if _peak_memory() > MEMORY // 4:
        os._exit(1)
    return verdicts


def _peak_memory() -> int:
    """Most resident memory so far, bytes; 0 where the system does not tell. (ru_maxrss counts the parent's.)"""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _judge(golds: tuple[str, ...], predicted: str, boxed: bool) -> str:
    """The verdict on one prediction."""
    from math_verify import verify

    found = _parse(predicted, boxed)
    if not found:
        return "unparsable"
    doubt, bad = not _is_parsed(found), not golds
    for gold in golds:
        expected = _parse_gold(gold)
        if not _is_parsed(expected):
            bad = True
            continue
        for pair in itertools.product(expected, found):
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
    except Exception:
        return None


def _is_parsed(found: list[Any]) -> bool:
    """math-verify gives the text itself beside the expression, or alone where it could not be parsed."""
    return any(not isinstance(value, str) for value in found)


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> list[Any]:
    return _parse(gold, True)


def _parse(text: str, boxed: bool) -> list[Any]:
    """What math-verify reads in an answer: an expression and its text, the text alone, or nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    # the content of a box is one expression; looking for numbers inside what does not parse would find a wrong one
    configs = [LatexExtractionConfig()] if boxed else [LatexExtractionConfig(), ExprExtractionConfig()]
    found: list[Any] = []
    for form in _forms(text, boxed):
        found = _guarded(partial(parse, form, configs, parsing_timeout=None, raise_on_error=True)) or found
        if _is_parsed(found):
            break
    return found


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
