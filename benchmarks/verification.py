"""Verification: what memo, batches and a second worker bring, against a plain loop of math-verify.

    python benchmarks/verification.py [--data shared/data] [--samples 100000] [--plain 4000]

The samples are 100,000 responses to the 1,319 problems of GSM8K's test split: for each problem, what four real models
answered (`gsm8k_model_solutions.jsonl`), drawn with repetition by hash; a second set has a tenth of the answers
replaced by other numbers, so that more of them are distinct. The plain loop (parse the gold answer, parse the tail,
verify, with math-verify's own time limit) is timed on every n-th sample and its rate compared. The workers are
compared on pairs that are all distinct, half numbers and half LaTeX, so that the memo brings nothing.

Prints one Markdown table a part: answers a second and ratios, all from one run. Worker start-up is included in the
first part and left out of the second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from pathlib import Path

from oxa import config, prompts
from oxa.answers import Grader

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


def ours(items: list[Item], workers: int, *, warm: bool) -> tuple[float, int]:
    """Answers a second of a fresh Grader, and how many distinct pairs it had to grade."""
    with Grader(config.Verify(workers=workers)) as grader:
        if warm:
            grader.grade([([str(i)], f"</think>\\boxed{{{i}}}", "stop") for i in range(10**9, 10**9 + 400)])
        before = grader.num_distinct
        start = time.perf_counter()
        grader.grade(items)
        return len(items) / (time.perf_counter() - start), grader.num_distinct - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--plain", type=int, default=4000, help="samples of the plain loop")
    parser.add_argument("--distinct", type=int, default=20_000, help="pairs that the workers are compared on")
    arguments = parser.parse_args()

    print("| samples | distinct pairs | plain loop, answers/s | Grader, 2 workers, answers/s | ratio |")
    print("|---|---|---|---|---|")
    for share_new in (0.0, 0.1):
        items = samples(arguments.data, arguments.samples, share_new=share_new)
        loop = plain(items[:: max(1, len(items) // arguments.plain)])
        rate, pairs = ours(items, 2, warm=False)
        print(
            f"| {len(items):,}, {share_new:.0%} new | {pairs:,} | {loop:,.0f} | {rate:,.0f} | {rate / loop:.1f} |"
        )

    items = distinct(arguments.distinct)
    loop = plain(items[: arguments.plain])  # the forms take turns: a stride would pick some of them only
    one, _ = ours(items, 1, warm=True)
    two, pairs = ours(items, 2, warm=True)
    print()
    print("| all distinct | plain loop | 1 worker | 2 workers | 1 worker / plain | 2 workers / 1 |")
    print("|---|---|---|---|---|---|")
    print(f"| {pairs:,} | {loop:,.0f} | {one:,.0f} | {two:,.0f} | {one / loop:.2f} | {two / one:.2f} |")


if __name__ == "__main__":
    main()
