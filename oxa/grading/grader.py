"""Extracts the answer from a response and grades it against the accepted gold answers.

A verdict says what is known, so that nothing uncertain passes for wrong:

    correct      the answer equals one of the accepted gold answers (oxa/answers/equality.py)
    incorrect    both were read as the same kind of thing, and differ from every accepted one beyond rounding
    unsure       it can be read, but nothing shows it equal or different: another kind of answer, other words, a coarse
                 rounding, or an exception of sympy's
    unparsable   there is no answer (no </think>, nothing behind it, longer than MAX_CHARS), or it cannot be read
    timeout      the check did not end within its processor time or memory: its worker was killed, or died
    bad_gold     a gold answer cannot be read, and no other one matches

The text is untrusted: a tower of powers or an unlucky expression keeps sympy busy for hours or eats all memory. In
this process it is only searched, in time linear in its length; everything else happens in worker processes (worker.py)
that end at the limit and with this process. They are forked off a server that has loaded sympy and nothing else, so
that the next one stands ready after 0.1 s; a fork of this process would inherit torch's locks and the accelerator's
state.

Distinct pairs of gold answers and prediction are graded once. They go to the workers in batches, since a message to
a worker costs as much as an easy answer; each answer has the full limit for itself, and the verdicts of a worker from
before the answer that ended it stand. Where a worker was killed from outside, the answer that it was at gets another
try. A verdict therefore does not depend on the answers beside it, their order or the worker count.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from pebble import ProcessExpired, ProcessPool

from oxa.config.verify import Verify
from oxa.grading import worker
from oxa.grading.cache import Memo
from oxa.grading.extraction import Answer, find
from oxa.grading.worker import Question
from oxa.runtime import progress

MAX_CHARS = 10_000  # a longer answer (what is in the box, else the whole tail) is unparsable
BATCH = 64  # answers a message to a worker, at most
IN_FLIGHT = 4  # batches a worker, handed out ahead
MAX_RESTARTS = 3  # of a pool whose idle workers died, with no answer between them
PATIENCE = 10.0  # times the limit by the clock on the wall, after which a batch counts as lost


class Graded(NamedTuple):
    verdict: str  # one of records' and config's verdicts
    predicted: str | None  # the answer as it was written; None where there is none


class Grader:
    """Grades answers in worker processes, which start with the first answer and end with the `with` block.

    Memoised on (gold answers, prediction) as long as it lives or, with a file `memo`, as long as that stands.
    `num_distinct` counts those pairs.
    """

    def __init__(self, section: Verify, memo: Path | None = None) -> None:
        self._limit = section.timeout
        self._workers = section.workers or _cores()
        self._require_think = section.require_think
        self._pool: ProcessPool | None = None
        self._notes: Any = None  # BATCH bytes a batch in flight, see worker.py
        self._memo = Memo(memo)

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
            answer = find(text, require_think=self._require_think)
            if answer is not None and len(answer.text) > MAX_CHARS:
                answer = None
            predictions.append(answer.text if answer else None)
            questions.append((tuple(golds), answer) if answer else None)
        verdicts = self._verdicts(questions, description)
        return [Graded(verdict, predicted) for verdict, predicted in zip(verdicts, predictions, strict=True)]

    def check_golds(
        self, golds: Sequence[Sequence[str]], description: str = "checking gold answers"
    ) -> list[bool]:
        """For each problem, whether it has a gold answer and every accepted one is correct by its own measure."""
        questions: list[Question | None] = [
            ((gold,), Answer(gold)) for accepted in golds for gold in accepted
        ]
        verdicts = iter(self._verdicts(questions, description))
        return [set(itertools.islice(verdicts, len(accepted))) == {"correct"} for accepted in golds]

    def compare(self, pairs: Sequence[tuple[str, str]], description: str = "comparing answers") -> list[str]:
        """For each pair of answers the verdict on the second, the first being the only gold answer."""
        return self._verdicts([((first,), Answer(second)) for first, second in pairs], description)

    def _verdicts(self, questions: list[Question | None], description: str) -> list[str]:
        keys = [None if question is None else _key(question) for question in questions]
        new = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key is not None and question is not None and key not in self._memo
        }
        try:
            self._memo.update(zip(new, self._ask(list(new.values()), description), strict=True))
        except BaseException:
            self._stop()  # its workers may be at answers that nobody waits for
            raise
        return ["unparsable" if key is None else self._memo[key] for key in keys]

    def _ask(self, questions: list[Question], description: str) -> list[str]:
        """The workers' verdicts, in order."""
        verdicts = [""] * len(questions)
        size = max(1, min(BATCH, len(questions) // (2 * IN_FLIGHT * self._workers)))
        todo = deque(range(i, min(i + size, len(questions))) for i in range(0, len(questions), size))
        places = [BATCH * i for i in range(IN_FLIGHT * self._workers)]
        pending: dict[Future[None], tuple[range, int]] = {}
        lost: set[int] = set()  # answers at which a worker was killed from outside, once
        restarts = 0
        with progress.bar(
            total=len(questions), desc=description, unit="answer", quiet=not (questions and description)
        ) as bar:
            while todo or pending:
                while todo and places:
                    batch, place = todo.popleft(), places.pop()
                    pending[self._schedule([questions[i] for i in batch], place)] = batch, place
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        restarts += 1
                        if restarts > MAX_RESTARTS:
                            raise error
                        self._stop()
                        todo.extendleft(batch for batch, _ in pending.values())
                        places.extend(place for _, place in pending.values())
                        pending.clear()
                        break
                    if error is not None and not isinstance(error, TimeoutError | ProcessExpired):
                        raise error
                    batch, place = pending.pop(future)
                    places.append(place)
                    graded = self._noted(place, len(batch))
                    if error is not None and len(graded) < len(batch):  # the next one ended its worker
                        culprit = batch[len(graded)]
                        if culprit in lost or _is_own_fault(error):
                            graded.append("timeout")
                        lost.add(culprit)
                    if rest := batch[len(graded) :]:
                        todo.appendleft(rest)
                    for i, verdict in zip(batch, graded, strict=False):
                        verdicts[i] = verdict
                    restarts = 0
                    bar.update(len(graded))
        return verdicts

    def _schedule(self, batch: list[Question], place: int) -> Future[None]:
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(
                ["latex2sympy2_extended", "oxa.answers.equality", "oxa.grading.worker"]
            )
            self._notes = context.RawArray("B", BATCH * IN_FLIGHT * self._workers)
            self._pool = ProcessPool(
                max_workers=self._workers,
                initializer=worker.start_worker,
                initargs=[self._notes],
                context=context,
            )
        self._notes[place : place + BATCH] = bytes(BATCH)
        longest = PATIENCE * (worker.PART_SECONDS + self._limit)
        return self._pool.schedule(worker.judge_batch, args=[batch, self._limit, place], timeout=longest)

    def _noted(self, place: int, count: int) -> list[str]:
        """The verdicts on a batch's answers, up to the first that has none."""
        return [worker.CODES[code] for code in bytes(self._notes[place : place + count]).partition(b"\0")[0]]

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def _is_own_fault(error: BaseException) -> bool:
    """Whether a worker ended by what it did: its time, memory or stack ran out. Nothing in it sends SIGKILL."""
    return isinstance(error, ProcessExpired) and error.exitcode != -signal.SIGKILL


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(question: Question) -> bytes:
    """A short key: a million predictions of some kilobytes would not fit as they are."""
    golds, answer = question
    boxes = answer.boxes if sum(map(len, answer.boxes)) <= MAX_CHARS else ()
    return blake2b(
        repr((golds, answer.text, boxes, answer.certain)).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()
