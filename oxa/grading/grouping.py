"""Which of a problem's wrong answers are one answer, written differently: majorities count them together.

A problem's distinct spellings are compared in the order of their votes: the first takes for its group all that the
verifier holds equal to it, as if it were the gold answer; then the next that is left, and so on. Plain numbers that
surely differ (second_check.py) are not asked about, nor what ran out of time or could not be read before. Of more than
MAX_ANSWERS spellings, the rarest stay alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import pyarrow as pa

from oxa.grading.grader import Grader
from oxa.grading.second_check import surely_wrong
from oxa.records.same_answers import Groups, spelling

MAX_ANSWERS = 200  # spellings of one problem that are compared: some 20,000 pairs
COMPARED = ("incorrect", "unsure", "bad_gold")  # verdicts of answers that can be read

Problem = tuple[str, str]  # benchmark and problem_id


def same_answers(grader: Grader, generations: pa.Table) -> Groups:
    """Groups of equal answers, of two spellings at least, in records.GENERATIONS; `text` may be missing."""
    votes: defaultdict[Problem, Counter[str]] = defaultdict(Counter)
    texts: dict[tuple[Problem, str], str] = {}  # as first written
    columns = ("benchmark", "problem_id", "verdict", "predicted")
    for benchmark, problem_id, verdict, answer in zip(
        *(generations[name].to_pylist() for name in columns), strict=True
    ):
        if verdict in COMPARED and answer is not None:
            problem, spelled = (benchmark, problem_id), spelling(answer)
            votes[problem][spelled] += 1
            texts.setdefault((problem, spelled), answer)
    left = {
        problem: sorted(counts, key=lambda spelled: (-counts[spelled], spelled))[:MAX_ANSWERS]
        for problem, counts in sorted(votes.items())
    }
    groups: Groups = {}
    while left := {problem: spellings for problem, spellings in left.items() if len(spellings) > 1}:
        pairs = [
            (problem, head, other)
            for problem, (head, *others) in left.items()
            for other in others
            if not surely_wrong([texts[problem, head]], texts[problem, other])
        ]
        verdicts = grader.compare(
            [(texts[problem, head], texts[problem, other]) for problem, head, other in pairs]
        )
        settled: defaultdict[Problem, set[str]] = defaultdict(set)
        members: defaultdict[Problem, list[str]] = defaultdict(list)
        for (problem, _, other), verdict in zip(pairs, verdicts, strict=True):
            if verdict == "correct":
                members[problem].append(other)
            if verdict in ("correct", "timeout"):
                settled[problem].add(other)
        for problem, others in members.items():
            benchmark, problem_id = problem
            groups.setdefault(benchmark, {}).setdefault(problem_id, []).append([left[problem][0], *others])
        left = {
            problem: [other for other in others if other not in settled[problem]]
            for problem, (_, *others) in left.items()
        }
    return groups
