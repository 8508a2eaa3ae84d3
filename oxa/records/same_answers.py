"""Which differently written answers to a problem are one answer, as a note beside a table of generations.

By benchmark and problem the note lists groups of spellings that the verifier holds equal; the first stands for all of
its group. What no group names is the same where its text is, white space left out: so is a table without a note read.
"""

from __future__ import annotations

NOTE = "same_answers"  # its key beside the table

Groups = dict[str, dict[str, list[list[str]]]]


def spelling(answer: str) -> str:
    """An answer's text without white space."""
    return "".join(answer.split())


def noted(notes: dict[str, object], groups: Groups) -> dict[str, object]:
    """A table's notes with these groups in place of earlier ones."""
    others = {key: value for key, value in notes.items() if key != NOTE}
    return others | ({NOTE: groups} if groups else {})


def heads(groups: Groups) -> dict[tuple[str, str, str], str]:
    """What stands for (benchmark, problem, spelling), where that is another spelling."""
    return {
        (benchmark, problem, other): head
        for benchmark, problems in groups.items()
        for problem, of_problem in problems.items()
        for head, *others in of_problem
        for other in others
    }
