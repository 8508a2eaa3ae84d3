"""Finds problems of training or RL that are also in a benchmark, by the n-grams of their words (METHOD §6.9)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from typing import Any

from oxa.config.ingest import Decontamination


class Overlap:
    """Finds problems of training or RL that are also in a benchmark, by the n-grams of their words (METHOD §6.9).

    Words are runs of letters and digits after Unicode NFKC and case folding, and each arithmetic sign, so that 3 + 4
    and 3 - 4 differ. share(problem, benchmark problem) = of the problem's distinct n-grams, the part that the
    benchmark problem has too; a text of n words or fewer is one n-gram. A share from `threshold` on is a hit, and so
    is the same problem id.
    """

    WORD = re.compile(r"[^\W_]+|[-+*/^=<>×÷]")

    def __init__(self, section: Decontamination) -> None:
        self._ngram, self._threshold = section.ngram, section.threshold
        self._problems: list[tuple[str, str, str]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)
        self._same: dict[str, list[int]] = defaultdict(list)

    def add(self, benchmark: str, key: str, question: str) -> None:
        """Notes one benchmark problem."""
        number = len(self._problems)
        self._problems.append((benchmark, key, question))
        self._same[key].append(number)
        for gram in self.grams(question):
            self._holders[gram].append(number)

    def grams(self, text: str) -> set[str]:
        """The distinct n-grams of a text, words joined by blanks."""
        words = self.WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-"))
        if not words:
            return set()
        return {" ".join(words[i : i + self._ngram]) for i in range(max(1, len(words) - self._ngram + 1))}

    def hits(self, key: str, question: str) -> list[dict[str, Any]]:
        """Columns of the contamination table for this problem, the largest share first."""
        grams = self.grams(question)
        shared = Counter(number for gram in grams for number in self._holders.get(gram, ()))
        shares = {number: count / len(grams) for number, count in shared.items()}
        shares |= dict.fromkeys(self._same.get(key, ()), 1.0)
        hits = [(-share, number) for number, share in shares.items() if share >= self._threshold]
        columns = ("benchmark", "benchmark_problem_id", "benchmark_question")
        return [
            dict(zip(columns, self._problems[number], strict=True)) | {"share": -share}
            for share, number in sorted(hits)
        ]
