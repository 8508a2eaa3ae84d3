"""Agreement with answers of known verdict: the project's checker, and plain math-verify.

    python benchmarks/answers.py [--cases shared/cases/answers.jsonl]

The rows are made after public reports of misjudged answers (gold, response, the verdict that mathematics gives, kind).
Plain math-verify parses the gold answer in a box and the text behind the reasoning, as most graders do, with its own
limit of time. Prints its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from results import row

from oxa import prompts
from oxa.config.verify import Verify
from oxa.grading import agreement


def plain(case: agreement.Case) -> str:
    """math-verify's verdict."""
    from math_verify import parse, verify

    tail = prompts.answer_part(case.response) or ""
    equal = any(verify(parse(f"\\boxed{{{gold}}}"), parse(tail)) for gold in case.golds)
    return "correct" if equal else "incorrect"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--cases", type=Path, default=shared / "cases" / "answers.jsonl")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds, whose numbers mean nothing")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    cases = agreement.read(arguments.cases)[: 20 if arguments.quick else None]
    ours, theirs = agreement.verdicts(cases, Verify()), list(map(plain, cases))
    print("## Answers: `benchmarks/answers.py`\n")
    print(
        "Answers of known verdict, by kind. `incorrect` among the right ones is what a student would be punished for.\n"
    )
    wrong = []
    for name, given in (("The project's checker", ours), ("Plain math-verify", theirs)):
        table = agreement.rows(cases, given)
        print(f"{name}:\n\n| {' | '.join(agreement.TITLES)} |\n|{'---|' * len(agreement.TITLES)}")
        print("\n".join(f"| {' | '.join(line)} |" for line in table) + "\n")
        wrong.append(1 - int(table[-1][2]) / len(cases))
    row("answers of known verdict not as expected", "all", 100 * wrong[0], 2, better="lower", unit="%")
    row("the same by plain math-verify", "all", 100 * wrong[1], better="lower", unit="%")


if __name__ == "__main__":
    main()
