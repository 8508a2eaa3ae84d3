"""Verification: what memo, batches and a second worker bring, against a plain loop of math-verify.

    python benchmarks/verification.py [--data shared/data] [--samples 100000] [--plain 4000] [--quick]

The samples are 100,000 responses to the 1,319 problems of GSM8K's test split: for each problem, what four real models
answered (`gsm8k_model_solutions.jsonl`), drawn with repetition by hash; a second set has a tenth of the answers
replaced by other numbers, so that more of them are distinct. The plain loop (parse the gold answer, parse the tail,
verify, with math-verify's own time limit) is timed on every n-th sample and its rate compared. The workers are
compared on pairs that are all distinct, half numbers and half LaTeX, so that the memo brings nothing; last, on some of
these with answers among them that never end.

Prints its section of RESULTS.md: answers a second and ratios, all from one run. Worker start-up is included in the
first part and left out of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

from results import row

from oxa import prompts
from oxa.config.verify import Verify
from oxa.grading.grader import Grader

Item = tuple[list[str], str, str]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def draw(*key: object) -> int:
    """An integer that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")


def samples(data: Path, count: int, *, share_new: float) -> list[Item]:
    """`count` responses with the repetition of real models' answers; `share_new` of them hold another number."""
    rows = [json.loads(line) for line in (data / "gsm8k_model_solutions.jsonl").read_text().splitlines()]
    items: list[Item] = []
    for i in range(count):
        row = rows[i % len(rows)]
        solution = row[MODELS[draw(i, "model") % len(MODELS)]]["solution"]
        reasoning, _, answer = solution.rpartition("A:")
        if draw(i, "new") % 1000 < 1000 * share_new:
            answer = str(draw(i, "value") % 1000)
        gold = row["ground_truth"].rpartition("A:")[2]
        items.append(
            ([gold], f"<think>{reasoning}</think> The answer is $\\boxed{{{answer.strip()}}}$.", "stop")
        )
    return items


def distinct(count: int) -> list[Item]:
    """`count` pairs, each once: numbers, fractions, roots and polynomials, about half of them right."""
    forms = ("{0}", r"\frac{{{0}}}{{{1}}}", r"{0}\sqrt{{{1}}}", "{0}", r"x^2 + {0}x - {1}", "{0}.{1}")
    items: list[Item] = []
    for i in range(count):
        form = forms[i % len(forms)]
        right = form.format(i + 2, 7)
        answer = right if draw(i, "right") % 2 else form.format(i + 2, 11 if "{1}" in form else 0)
        if form == "{0}" and answer != right:
            answer = str(i + 1)
        items.append(([right], f"</think>\\boxed{{{answer}}}", "stop"))
    return items


def plain(items: list[Item]) -> float:
    """Answers a second of a loop over math-verify, as most graders have it."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    start = time.perf_counter()
    for golds, text, _ in items:
        verify(parse(f"\\boxed{{{golds[0]}}}"), parse(prompts.answer_part(text) or ""))
    return len(items) / (time.perf_counter() - start)


def ours(items: list[Item], workers: int, *, warm: bool, limit: float = 10.0) -> tuple[float, int]:
    """Answers a second of a fresh Grader, and how many distinct pairs it had to grade."""
    with Grader(Verify(workers=workers, timeout=limit)) as grader:
        if warm:
            easy = [([str(i)], f"</think>\\boxed{{{i}}}", "stop") for i in range(10**9, 10**9 + 400)]
            grader.grade(easy, description="")
        before = grader.num_distinct
        start = time.perf_counter()
        grader.grade(items, description="")
        return len(items) / (time.perf_counter() - start), grader.num_distinct - before


def with_hostile(items: list[Item], count: int) -> list[Item]:
    """`count` different towers of powers, spread evenly among the items."""
    mixed = list(items)
    for i in range(count):
        tower = (["7"], f"</think>\\boxed{{9^{{9^{{9^{{{i + 9}}}}}}}}}", "stop")
        mixed.insert((i + 1) * len(mixed) // (count + 1), tower)
    return mixed


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--plain", type=int, default=4000, help="samples of the plain loop")
    parser.add_argument("--distinct", type=int, default=20_000, help="pairs that the workers are compared on")
    parser.add_argument("--hostile", type=int, default=10, help="answers that never end")
    parser.add_argument("--quick", action="store_true", help="a trial of seconds, whose numbers mean nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.plain, arguments.distinct, arguments.hostile = 5000, 300, 500, 2

    lines = [
        "| samples | distinct pairs | plain loop, answers/s | ours on 2 workers, answers/s | ratio |",
        "|---|---|---|---|---|",
    ]
    ratios = []
    for share_new, what in ((0.0, "drawn from real answers"), (0.1, "a tenth replaced by new numbers")):
        items = samples(arguments.data, arguments.samples, share_new=share_new)
        loop = plain(items[:: max(1, len(items) // arguments.plain)])
        tell(f"{what}: plain {loop:.0f}/s")
        rate, pairs = ours(items, 2, warm=False)
        tell(f"{what}: ours {rate:.0f}/s")
        ratios.append(rate / loop)
        lines.append(
            f"| {len(items):,}, {what} | {pairs:,} | {loop:,.0f} | {rate:,.0f} | {rate / loop:.1f} |"
        )

    items = distinct(arguments.distinct)
    loop = plain(items[: arguments.plain])  # the forms take turns: a stride would pick some of them only
    tell(f"all distinct: plain {loop:.0f}/s")
    one, _ = ours(items, 1, warm=True)
    tell(f"all distinct: 1 worker {one:.0f}/s")
    two, pairs = ours(items, 2, warm=True)
    tell(f"all distinct: 2 workers {two:.0f}/s")
    lines += [
        "",
        "| all distinct | plain loop, answers/s | 1 worker | 2 workers | 1 worker / plain | 2 workers / 1 |",
        "|---|---|---|---|---|---|",
        f"| {pairs:,} | {loop:,.0f} | {one:,.0f} | {two:,.0f} | {one / loop:.2f} | {two / one:.2f} |",
    ]

    limit, few = 2.0, items[: arguments.distinct // 4]
    without = len(few) / ours(few, 2, warm=True, limit=limit)[0]
    mixed = with_hostile(few, arguments.hostile)
    seconds = len(mixed) / ours(mixed, 2, warm=True, limit=limit)[0]
    least = without + arguments.hostile * limit / 2
    lines += [
        "",
        "| among them, answers that never end | limit, s | without them, s | with them, s | the least possible, s |",
        "|---|---|---|---|---|",
        f"| {arguments.hostile} among {len(few):,} | {limit:g} | {without:.1f} | {seconds:.1f} | {least:.1f} |",
    ]
    print("## Verification: `benchmarks/verification.py`\n")
    print(
        "Against a plain loop of math-verify (parse, parse, verify), worker start-up included: self-samples repeat few"
    )
    print(
        "answers, and a pair is graded once. Then pairs that are all distinct, so that the memo brings nothing"
    )
    print(
        "(start-up left out), and what answers that never end cost: the least is the time without them and each one's"
    )
    print("limit, over 2 workers.\n")
    print("\n".join(lines))
    row("verification of 100k self-samples", "a loop of math-verify", ratios[0], 20)
    row("the same, a tenth of them new numbers", "a loop of math-verify", ratios[1])
    row("verification without memo, 2 workers", "1 worker", two / one, 1.8)


if __name__ == "__main__":
    main()
