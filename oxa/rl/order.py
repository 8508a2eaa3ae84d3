"""Which problems RL takes next: pass after pass over all of them, each in an order of its own, by the seed.

A problem's place in a pass is a hash of (seed, pass, problem_id); nothing else has a say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count


def passes(problem_ids: Sequence[str], seed: int) -> Iterator[list[str]]:
    """All problems, for ever, each time in another order."""
    for epoch in count():
        yield sorted(
            problem_ids, key=lambda problem: hashlib.sha256(f"{seed}\0{epoch}\0{problem}".encode()).digest()
        )


def steps(problem_ids: Sequence[str], num_prompts: int, seed: int) -> Iterator[list[str]]:
    """Each step's problems, all different. Those left when a pass cannot fill another step are left out of it."""
    for ordered in passes(problem_ids, seed):
        for start in range(0, len(ordered) - num_prompts + 1, num_prompts):
            yield ordered[start : start + num_prompts]


def unseen(stream: Iterator[str], seen: set[str], num: int, num_problems: int) -> tuple[list[str], int]:
    """The next `num` of the stream that are not in `seen`, which they are added to, and how many had to be read.

    Fewer where all `num_problems` are seen.
    """
    found: list[str] = []
    num_read = 0
    while len(found) < num and len(seen) < num_problems:
        problem_id = next(stream)
        num_read += 1
        if problem_id not in seen:
            seen.add(problem_id)
            found.append(problem_id)
    return found, num_read
