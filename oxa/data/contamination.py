"""Finds problems of training or RL that are also in a benchmark, by the n-grams of their words (METHOD §6.9)."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from oxa.config.ingest import Decontamination

_WORDS = """
a all an and answer any are as be both by can common compute coprime denote determine dfrac distinct divided divides
divisible divisor each equal equals express expressed factor find for form frac free give given gives greatest has
have if in integer integers irreducible is it its let lowest no nonnegative not number of or other pairwise positive
possibly prime primes real reduced relatively remainder simplest so sqrt square squarefree such sum terms tfrac than
that the then there to value what when where which with written + - / ^ = 1 100 1000
"""
CLOSINGS = frozenset(_WORDS.split())
"""Words of a contest's closing: `can be written as m/n, where m and n are relatively prime positive integers. Find
m + n.` An n-gram of nothing but these and single letters says nothing about the problem."""
MIN_WORDS = 3
"""A benchmark problem of fewer words is found as a whole text only, not within another."""


class Overlap:
    """Finds problems of training or RL that are also in a benchmark, by the n-grams of their words (METHOD §6.9).

    Words are runs of letters and digits after Unicode NFKC and case folding, and each arithmetic sign, so that 3 + 4
    and 3 - 4 differ. An n-gram weighs 1/(number of benchmark problems that hold it), and nothing if it is of a closing.
    With A a problem's n-grams, B those of a benchmark problem and w the sum of weights,

        share = max(w(A ∩ B)/w(A), w(A ∩ B)/w(B)),

    so that a benchmark problem is found in the middle of instructions, and a part of one alone. A text of n words or
    fewer is one n-gram; such a benchmark problem is found within a text, too, where whole sentences are it. A share
    from `threshold` on is a hit, and so is the same problem id.
    """

    WORD = re.compile(r"[^\W_]+|[-+*/^=<>×÷]")
    STOP = re.compile(r"[.?!:;][^\w\s]*\s|\n")
    """Between the last word of a sentence and the first of the next."""

    def __init__(self, section: Decontamination) -> None:
        self._ngram, self._threshold = section.ngram, section.threshold
        self._problems: list[tuple[str, str, str]] = []
        self._grams: list[set[str]] = []
        self._holders: dict[str, list[int]] = defaultdict(list)
        self._same: dict[str, list[int]] = defaultdict(list)
        self._weights: dict[str, float] = {}
        """Of the benchmarks' n-grams, once they are asked for; and of their problems, the sums."""
        self._wholes: dict[int, float] = {}
        self._short: set[int] = set()
        """Numbers of words of the benchmark problems that are one n-gram."""

    def add(self, benchmark: str, key: str, question: str) -> None:
        """Notes one benchmark problem."""
        self._weights.clear()
        self._wholes.clear()
        number = len(self._problems)
        grams = self.grams(question)
        self._problems.append((benchmark, key, question))
        self._grams.append(grams)
        self._same[key].append(number)
        for gram in grams:
            self._holders[gram].append(number)
        if len(grams) == 1 and (length := len(next(iter(grams)).split(" "))) >= MIN_WORDS:
            self._short.add(length)

    def grams(self, text: str) -> set[str]:
        """The distinct n-grams of a text, words joined by blanks."""
        words = self.WORD.findall(_folded(text))
        if not words:
            return set()
        return {" ".join(words[i : i + self._ngram]) for i in range(max(1, len(words) - self._ngram + 1))}

    def hits(self, key: str, question: str) -> list[dict[str, Any]]:
        """Columns of the contamination table for this problem, the largest share first."""
        grams = self.grams(question)
        common: dict[int, list[float]] = defaultdict(list)
        for gram in grams:
            for number in self._holders.get(gram, ()):
                common[number].append(self._weight(gram))
        whole = math.fsum(map(self._weight, grams)) if common else 0
        shares = {
            number: self._share(number, math.fsum(weights), whole, grams)
            for number, weights in common.items()
        }
        for gram in self._sentences(question):
            if gram in self._holders and self._weight(gram):
                shares |= dict.fromkeys(self._holders[gram], 1.0)
        shares |= dict.fromkeys(self._same.get(key, ()), 1.0)
        hits = [(-share, number) for number, share in shares.items() if share >= self._threshold]
        columns = ("benchmark", "benchmark_problem_id", "benchmark_question")
        return [
            dict(zip(columns, self._problems[number], strict=True)) | {"share": -share}
            for share, number in sorted(hits)
        ]

    def _share(self, number: int, common: float, whole: float, grams: set[str]) -> float:
        """The larger share that two problems have in each other; of closings alone, whether they are equal."""
        others = self._grams[number]
        if not common:
            return float(grams == others)
        if number not in self._wholes:
            self._wholes[number] = math.fsum(map(self._weight, others))
        return max(common / whole, common / self._wholes[number])

    def _weight(self, gram: str) -> float:
        holders = self._holders.get(gram, ())
        weight = self._weights.get(gram)
        if weight is None:
            words = gram.split(" ")
            is_closing = all(word in CLOSINGS or (len(word) == 1 and word.isalpha()) for word in words)
            if len(words) < self._ngram:  # a whole problem: What is 100 - 1?
                is_closing = is_closing and not any(map(str.isdecimal, words))
            weight = 0 if is_closing else 1 / max(1, len({self._problems[number][1] for number in holders}))
            if holders:
                self._weights[gram] = weight
        return weight

    def _sentences(self, text: str) -> Iterator[str]:
        """What begins and ends with a sentence and has as many words as a benchmark problem that is one n-gram."""
        if not self._short:
            return
        text = _folded(text)
        words = list(self.WORD.finditer(text))
        ends = {
            number
            for number, (one, other) in enumerate(pairwise(words), 1)
            if self.STOP.search(text, one.end(), other.start())
        } | {0, len(words)}
        for start in ends:
            for length in self._short:
                if start + length in ends:
                    yield " ".join(word[0] for word in words[start : start + length])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
