"""Whether a student of the small world can answer the question at all: gates that it must pass before arms mean much.

    G1 competence   forced to begin with a strategy's first words, it is right on held-out problems
    G2 habit        left alone it mostly takes its habit, which fails where a rare strategy succeeds
    G3 headroom     there is something to learn, and something it gets right now and wrong then
    G4 no guessing  answers cannot be guessed, and nothing it is asked was in its corpus or will be trained on
    G5 room         plain SFT neither solves everything nor nothing, at the first try and in many, and RL adds to it

The first four are measured on the base alone, whatever the arms do, the fifth (oxa/comparison/room.py) on the arm that
all others are compared with; the world's settings were chosen by them. Where one of the first four fails, arms differ
for another reason than the one studied: a base that cannot carry out the rare strategies, for example, makes every arm
a measure of execution and not of the choice of strategy. Where the fifth fails, they have little left to differ in.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from oxa.config.sources import World
from oxa.data import world

BOUNDS: dict[str, tuple[float, float | None]] = {
    "competence": (0.8, 1.0),
    "habit_share": (0.7, 0.9),
    "habit_on_hard": (0.0, 0.3),
    "rare_on_hard": (0.8, 1.0),
    "pass_at_1": (0.2, 0.65),
    "mixed_hard": (0.5, 1.0),
    "answers": (100, None),
    "guessed": (0, 0.05),
    "overlap": (0, 0),
}
"""What each value must lie in, ends included. Most were fixed before arms were first trained on a small world;
rare_on_hard and guessed, and the half in mixed_hard, before they were trained on this one."""
EASY, HARD = world.TIERS[0], world.TIERS[-1]


class Trial(NamedTuple):
    """A response to a held-out problem."""

    problem: int
    tier: str
    sample_index: int
    forced: str
    """Strategy that it was forced to begin with; "" where the base was left alone."""
    strategy: str = ""
    """That it began with; "" for none that is known."""
    correct: bool = False


def overlap(world_: World, examples: Sequence[world.Example]) -> int:
    """Problems whose pair of numbers, in either order, stands in a corpus' document or a problem to train on.

    Of the endless corpus, twice the documents of its first phase are read: more than a student sees.
    """
    documents = islice(world.corpus(world_), 2 * world_.strategy_documents)
    questions = [document.user for document in documents if document.user is not None]
    for trained in (world.train_examples(world_), world.rlvr_examples(world_)):
        questions += [example.question for example in trained]
    seen = {_pair(question) for question in questions}
    return sum(_pair(example.question) in seen for example in examples)


def _pair(question: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\d+", question)))


def judge(trials: Sequence[Trial], examples: Sequence[world.Example], overlap: int) -> dict[str, Any]:
    """{gate: {"passed": …, "rows": {what: {"value", "margin", "low", "high", "passed"}}}}.

    A margin is 1.96 standard errors over problems, None where a value is a count; a value is None where there was
    nothing to measure. A gate passes where every value lies within its bounds (`high` None: there is none). `overlap`:
    problems that were in the corpus or will be trained on.
    """
    free = [trial for trial in trials if not trial.forced]
    rare = [name for name in world.STRATEGIES if name != world.HABIT]

    def right(part: Iterable[Trial]) -> Measured:
        return _share((trial.problem, trial.correct) for trial in part)

    def forced(strategy: str, *tiers: str) -> Measured:
        return right(t for t in trials if t.forced == strategy and t.tier in (tiers or world.TIERS))

    kinds: defaultdict[int, set[bool]] = defaultdict(set)
    for trial in free:
        if trial.tier == HARD:
            kinds[trial.problem].add(trial.correct)
    hard_habit = (trial for trial in free if trial.tier == HARD and trial.strategy == world.HABIT)
    best = max(rare, key=lambda name: forced(name, HARD).value or 0.0)
    most = {tier: Counter(e.answer for e in examples if e.tier == tier) for tier in world.TIERS}
    measured = {
        "G1": {f"{name}, forced: right": (forced(name), "competence") for name in rare}
        | {f"{world.HABIT}, forced: right on {EASY}": (forced(world.HABIT, EASY), "competence")},
        "G2": {
            f"{world.HABIT}: share, left alone": (
                _share((trial.problem, trial.strategy == world.HABIT) for trial in free),
                "habit_share",
            ),
            f"{world.HABIT}: right on {HARD}, left alone": (right(hard_habit), "habit_on_hard"),
            f"{best}, forced: right on {HARD}": (forced(best, HARD), "rare_on_hard"),
        },
        "G3": {
            "pass@1": (right(free), "pass_at_1"),
            f"{HARD} problems with right and wrong samples": (
                _share((problem, len(kind) == 2) for problem, kind in kinds.items()),
                "mixed_hard",
            ),
        },
        "G4": {
            "different answers": (Measured(len({example.answer for example in examples})), "answers"),
            "always giving the tier's most frequent answer: right": (
                _share((i, e.answer == most[e.tier].most_common(1)[0][0]) for i, e in enumerate(examples)),
                "guessed",
            ),
            "problems of the corpus or the training data": (Measured(overlap), "overlap"),
        },
    }
    gates = {}
    for gate, parts in measured.items():
        rows = {what: _row(value, *BOUNDS[bound]) for what, (value, bound) in parts.items()}
        gates[gate] = {"passed": all(row["passed"] for row in rows.values()), "rows": rows}
    return gates


class Measured(NamedTuple):
    value: float | None
    margin: float | None = None


def _share(outcomes: Iterable[tuple[int, bool]]) -> Measured:
    """Of (problem, outcome): the share of all, and its margin with the problem as the unit of sampling."""
    of_problem: defaultdict[int, list[bool]] = defaultdict(list)
    for problem, outcome in outcomes:
        of_problem[problem].append(outcome)
    if not of_problem:
        return Measured(None)
    total = np.array([sum(part) for part in of_problem.values()])
    count = np.array([len(part) for part in of_problem.values()])
    share = total.sum() / count.sum()
    error = np.sqrt(((total - share * count) ** 2).sum()) / count.sum()  # of a ratio of sums
    return Measured(float(share), float(1.96 * error))


def _row(measured: Measured, low: float, high: float | None) -> dict[str, Any]:
    value = measured.value
    passed = value is not None and low <= value and (high is None or value <= high)
    return measured._asdict() | {"low": low, "high": high, "passed": passed}
