"""Extracts the answer from a response and grades it against the accepted gold answers.

A verdict says what is known, so that nothing uncertain passes for wrong:

    correct      math-verify holds the answer equal to one of the accepted gold answers
    incorrect    both were parsed and compared, and differ
    unparsable   no answer was found (no </think>, nothing behind it, longer than MAX_CHARS), it does not parse, or
                 math-verify raised an exception on it
    timeout      the check did not end within its time or memory: its worker was killed, or died
    bad_gold     a gold answer does not parse, and no other one matches

The text is untrusted: a tower of powers or an unlucky expression keeps sympy busy for hours or eats all memory. In
this process it is only searched, in time linear in its length; everything else happens in worker processes (judge.py)
that are killed at the limit and die with this process.

Distinct pairs of gold answers and prediction are graded once. They go to the workers in batches, since a message to
a worker costs as much as an easy answer; when a batch does not come back, its answers are asked for one by one, each
with the full limit. A verdict therefore does not depend on the answers beside it, their order or the worker count.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from typing import NamedTuple

from pebble import ProcessExpired, ProcessPool

from oxa import config, judge, progress, prompts
from oxa.judge import Question

MAX_CHARS = 10_000  # a longer answer (what is in the box, else the whole tail) is unparsable
BATCH = 64  # answers a message to a worker, at most
BATCH_SECONDS = 4.0  # for a whole batch, before its answers are asked for one by one
IN_FLIGHT = 4  # batches a worker, handed out ahead
MAX_RESTARTS = 3  # of a pool whose idle workers died, in one call


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
    box = prompts.last_box(tail)
    answer = (tail if box is None else tail[slice(*box)]).strip()
    return (answer, box is not None) if answer else None


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
        """Grades (accepted gold answers, response verbatim, finish_reason), in order; no bar without a description.

        A response that was cut by length is graded by what there is of it; whether that counts is the selection's
        business. Its answer may be longer than MAX_CHARS only to be unparsable.
        """
        questions: list[Question | None] = []
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
        questions: list[Question | None] = [((gold,), gold, True) for accepted in golds for gold in accepted]
        verdicts = iter(self._verdicts(questions, description))
        return [set(itertools.islice(verdicts, len(accepted))) == {"correct"} for accepted in golds]

    def _verdicts(self, questions: list[Question | None], description: str) -> list[str]:
        keys = [None if question is None else _key(question) for question in questions]
        new = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key is not None and question is not None and key not in self._memo
        }
        self._memo.update(zip(new, self._ask(list(new.values()), description), strict=True))
        return ["unparsable" if key is None else self._memo[key] for key in keys]

    def _ask(self, questions: list[Question], description: str) -> list[str]:
        """The workers' verdicts, in order."""
        verdicts = [""] * len(questions)
        size = max(1, min(BATCH, len(questions) // (2 * IN_FLIGHT * self._workers)))
        todo = deque(range(i, min(i + size, len(questions))) for i in range(0, len(questions), size))
        restarts = 0
        with progress.bar(
            total=len(questions), desc=description, unit="answer", quiet=not (questions and description)
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

    def _schedule(self, batch: list[Question]) -> Future[list[str]]:
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self._workers,
                initializer=judge.start_worker,
                initargs=[os.getpid()],
                # a fork would inherit torch's locks and the accelerator's state
                context=multiprocessing.get_context("spawn"),
            )
        limit = self._limit if len(batch) == 1 else min(self._limit, BATCH_SECONDS)
        return self._pool.schedule(judge.judge_batch, args=[batch], timeout=limit)

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(question: Question) -> bytes:
    """A short key: a million predictions of some kilobytes would not fit as they are."""
    golds, predicted, boxed = question
    return blake2b(repr((golds, predicted, boxed)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
