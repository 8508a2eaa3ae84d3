"""A second opinion on wrong answers, which shares no code with math-verify and claims little.

A verifier's "incorrect" is too often a right answer that it could not read (Xu et al. 2025, arXiv 2505.14625), and
unlikelihood on that pushes a right pattern away. This check says that an answer is wrong only where answer and gold are
plain numbers and differ: integers, decimals, fractions, with signs and separators. Of everything else it says nothing.
Answers are text from a model: they are matched by patterns, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_CHARS = 100
CLOSE = Fraction(1, 100)
"""Where a number has a fractional part, a relative difference below this may be rounding: no opinion."""

_INTEGER = r"\d+|\d{1,3}(?:,\d{3})+"
_PLAIN = re.compile(rf"([-+]?)(?:({_INTEGER})?(?:\.(\d+))?|({_INTEGER})/({_INTEGER}))", re.ASCII)
_FRACTION = re.compile(rf"([-+]?)\\[dt]?frac\{{({_INTEGER})\}}\{{({_INTEGER})\}}", re.ASCII)
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3}(?!\d))", re.ASCII)


def surely_wrong(golds: Sequence[str], predicted: str | None) -> bool:
    """Whether the answer is a plain number, and every accepted one another plain number that it is no rounding of."""
    answer = None if predicted is None else number(predicted)
    if answer is None or not golds:
        return False
    return all((gold := number(text)) is not None and _differ(gold, answer) for text in golds)


def number(text: str) -> Fraction | None:
    """What a text says that is one plain number, exactly; None of any other."""
    if len(text) > MAX_CHARS:
        return None
    text = _SEPARATOR.sub(",", text.strip().strip("$").strip()).removesuffix(".")
    if found := _FRACTION.fullmatch(text):
        sign, above, below = found.groups()
        return _ratio(sign, above, below)
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    sign, whole, decimals, above, below = found.groups()
    if above is not None:
        return _ratio(sign, above, below)
    if whole is None and decimals is None:
        return None
    size = Fraction(f"{_digits(whole or '0')}.{decimals or '0'}")
    return -size if sign == "-" else size


def _ratio(sign: str, above: str, below: str) -> Fraction | None:
    if not int(_digits(below)):
        return None
    size = Fraction(int(_digits(above)), int(_digits(below)))
    return -size if sign == "-" else size


def _digits(text: str) -> str:
    return text.replace(",", "")


def _differ(gold: Fraction, answer: Fraction) -> bool:
    if gold.denominator == answer.denominator == 1:
        return gold != answer
    return abs(gold - answer) > CLOSE * max(abs(gold), abs(answer))
