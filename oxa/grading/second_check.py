"""A second opinion on wrong answers, which shares no code with math-verify and claims little.

A verifier's "incorrect" is too often a right answer that it could not read (Xu et al. 2025, arXiv 2505.14625), and
unlikelihood on that pushes a right pattern away. This check says that an answer is wrong only where answer and gold are
plain numbers of one reading each, and differ by more than rounding. Of everything else it says nothing: not of commas,
which separate thousands, decimals or two answers, nor of a point that may separate thousands.
Answers are text from a model: they are matched by patterns, never evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

MAX_CHARS = 100
CLOSE = Fraction(1, 100)
"""Where a number has a fractional part, a relative difference up to this may be rounding, too."""

_PLAIN = re.compile(r"([-+]?)(?:(\d*)\.(\d+)|(\d+)\.?|(\d+)/(\d+)|\\[dt]?frac\{(\d+)\}\{(\d+)\})", re.ASCII)
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3}(?!\d))", re.ASCII)  # LaTeX's, of thousands only
_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}", re.ASCII)  # or a decimal: 1.234


class Number(NamedTuple):
    value: Fraction
    places: int | None
    """Digits behind the point; None of a fraction, which is no rounding of anything."""


def surely_wrong(golds: Sequence[str], predicted: str | None) -> bool:
    """Whether the answer is a plain number, and every accepted one another plain number that it is no rounding of."""
    answer = None if predicted is None else number(predicted)
    if answer is None or not golds:
        return False
    return all((gold := number(text)) is not None and _differ(gold, answer) for text in golds)


@lru_cache(maxsize=4096)
def number(text: str) -> Number | None:
    """What a text says that is one plain number, exactly; None of any other."""
    if len(text) > MAX_CHARS:
        return None
    text = _SEPARATOR.sub("", text.strip().strip("$").strip())
    match = _PLAIN.fullmatch(text)
    if match is None or _THOUSANDS.fullmatch(text.lstrip("+-")):
        return None
    sign, whole, decimals, integer, *ratio = match.groups()
    if decimals is not None:
        size, places = Fraction(f"{whole or 0}.{decimals}"), len(decimals)
    elif integer is not None:
        size, places = Fraction(integer), 0
    else:
        above, below = (int(part) for part in ratio if part is not None)
        if not below:
            return None
        size, places = Fraction(above, below), None
    return Number(-size if sign == "-" else size, places)


def _differ(gold: Number, answer: Number) -> bool:
    if gold.value.denominator == answer.value.denominator == 1:
        return gold.value != answer.value
    gap = abs(gold.value - answer.value)
    coarsest = min((number.places for number in (gold, answer) if number.places is not None), default=None)
    rounding = Fraction(0) if coarsest is None else Fraction(1, 2 * 10**coarsest)
    return gap > max(rounding, CLOSE * max(abs(gold.value), abs(answer.value)))
