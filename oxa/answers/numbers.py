r"""Numbers of one reading each, as exact fractions.

`12`, `58,500`, `-3/4`, `2\frac13`, `1.25`, `6.72\times10^{-5}`, `1.\overline{3}`, …

**Tolerance.** Two numbers are equal where their values are. A decimal stands for an exact value that is none (0.333333
for 1/3, 4.1231056256 for \sqrt{17}) where it is that value's rounding and has SIGNIFICANT digits or more. A decimal
that is a coarser rounding, or is nearer than CLOSE of the larger one, may be a rounded right value or a wrong one:
nothing is said. Two integers are equal or they are not.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from oxa.answers.spelling import THIN

SIGNIFICANT = 6
CLOSE = Fraction(1, 100)
MAX_DIGITS = 2000  # of a number: Python refuses to read more

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_THOUSANDS = re.compile(
    r"\d{1,3}(?:\.\d{3}){2,}|"
    rf"[1-9]\d{{0,2}}(?:(?P<mark>,|'|\{{,\}}|[ {THIN}])\d{{3}})(?:(?P=mark)\d{{3}})*(?:\.\d+)?"
)
_PLAIN = re.compile(rf"({_NUMBER})")
_RATIO = re.compile(
    rf"({_NUMBER})\s*(?:/|\\div\s*)\s*({_NUMBER})|\\frac\{{\s*([+-]?{_NUMBER})\s*\}}\{{\s*([+-]?{_NUMBER})\s*\}}"
)
_MIXED = re.compile(r"(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s+(\d+)/(\d+))")
_SCIENTIFIC = re.compile(
    rf"({_NUMBER})\s*(?:[eE]\s*\{{?([+-]?\d+)\}}?|(?:\\times|\\cdot|\*|x|X)\s*10\s*\^\s*(?:\{{\s*([+-]?\s*\d+)\s*\}}|([+-]?\d+)))"
)
_POWER_OF_TEN = re.compile(r"10\s*\^\s*(?:\{\s*([+-]?\s*\d+)\s*\}|(\d))")
_REPEATING = re.compile(
    r"(\d*)\.(\d*?)(?:\\(?:overline|bar)\s*\{?\s*(\d+)\s*\}?|\((\d+)\)|((?:\\dot\s*\{?\s*\d\s*\}?\s*\d*){1,2}))"
)
_ENDLESS = re.compile(r"(\d*)\.(\d*?)(\d+?)\3{2,}\s*\.\.\.")
MAX_ENDLESS = 60  # characters of a decimal whose period is sought
MAX_POWER = 3000  # of ten, in an exact number


class Number(NamedTuple):
    value: Fraction
    digits: int | None
    """Significant digits of a decimal that may be a rounding; None of what is exact."""
    step: Fraction
    """One in a decimal's last place; 0 of what is exact."""

    def times(self, factor: Fraction | int) -> Number:
        """In a unit that many times smaller."""
        return self._replace(value=self.value * factor, step=self.step * factor)


def rational(value: Fraction) -> Any:
    """A fraction as sympy's."""
    import sympy

    return sympy.Rational(value.numerator, value.denominator)


def number(text: str) -> Number | None:
    """What a text says that is one number with one reading; None of any other."""
    text = text.strip().strip(THIN).strip()
    while (
        len(text) > 2
        and text[0] in "({"
        and text[-1] == {"(": ")", "{": "}"}[text[0]]
        and not set(text[1:-1]) & set("(){},")
    ):
        text = text[1:-1].strip()
    sign = 1
    while text[:1] in ("+", "-") and text:
        sign = -sign if text[0] == "-" else sign
        text = text[1:].lstrip()
    if not text or len(text) > MAX_DIGITS or not (text[0].isdigit() or text[0] in ".\\"):
        return None
    size = _size(text)
    return None if size is None else size._replace(value=sign * size.value)


def _size(text: str) -> Number | None:
    if _THOUSANDS.fullmatch(text):
        if "," not in text and "'" not in text and re.fullmatch(r"\d+(\.\d{3}){2,}", text):
            return _decimal(text.replace(".", ""))
        return _decimal(re.sub(r"[^\d.]", "", text))
    if _PLAIN.fullmatch(text):
        return _decimal(text)
    if match := _RATIO.fullmatch(text):
        above, below = match[1] or match[3], match[2] or match[4]
        return Number(Fraction(above) / Fraction(below), None, Fraction(0)) if Fraction(below) else None
    if match := _MIXED.fullmatch(text):
        whole, above, below = match[1], match[2] or match[4], match[3] or match[5]
        return (
            Number(int(whole) + Fraction(int(above), int(below)), None, Fraction(0)) if int(below) else None
        )
    if match := _SCIENTIFIC.fullmatch(text):
        power = int(re.sub(r"\s", "", match[2] or match[3] or match[4]))
        mantissa = _decimal(match[1])
        if abs(power) > MAX_POWER:
            return None
        scale = Fraction(10) ** power
        digits = mantissa.digits if mantissa.digits else len(match[1].lstrip("0"))
        exact = "." not in match[1] and power >= 0
        return Number(
            mantissa.value * scale,
            None if exact else digits,
            Fraction(0) if exact else (mantissa.step or 1) * scale,
        )
    if match := _POWER_OF_TEN.fullmatch(text):
        power = int(re.sub(r"\s", "", match[1] or match[2]))
        return Number(Fraction(10) ** power, None, Fraction(0)) if abs(power) <= MAX_POWER else None
    if match := _REPEATING.fullmatch(text):
        period = match[3] or match[4] or re.sub(r"\D", "", match[5])
        return _repeating(match[1], match[2], period)
    if len(text) <= MAX_ENDLESS and (match := _ENDLESS.fullmatch(text)):
        return _repeating(match[1], match[2], match[3])
    return None


def _decimal(text: str) -> Number:
    whole, _, places = text.partition(".")
    value = Fraction(f"{whole or 0}.{places or 0}")
    if not places.strip("0"):
        return Number(value, None, Fraction(0))
    return Number(value, len((whole + places).lstrip("0")), Fraction(1, 10 ** len(places)))


def _repeating(whole: str, start: str, period: str) -> Number:
    head = Fraction(int(whole or 0)) + (Fraction(int(start), 10 ** len(start)) if start else 0)
    return Number(head + Fraction(int(period), 10 ** len(start) * (10 ** len(period) - 1)), None, Fraction(0))


def numbers_equal(gold: Number, answer: Number) -> bool | None:
    """Whether two numbers are equal by the tolerance above; None where one may be a rounding of the other."""
    if gold.value == answer.value:
        return True
    return near(abs(gold.value - answer.value), max(abs(gold.value), abs(answer.value)), gold, answer)


def near(gap: Fraction, size: Fraction, gold: Number, answer: Number) -> bool | None:
    """The verdict on values that differ by `gap`."""
    if gold.digits is None and answer.digits is None:
        return False
    rounded = max((gold, answer), key=lambda number: number.step)
    if (
        gap <= rounded.step / 2
        and (gold.digits is None or answer.digits is None)
        and (rounded.digits or 0) >= SIGNIFICANT
    ):
        return True
    return None if gap <= max(rounded.step / 2, CLOSE * size) else False
