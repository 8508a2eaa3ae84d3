r"""A number or an expression with what stands round it: unit, currency, percent, degrees, a factor in words.

What may be left out: a unit (15 for `15\text{ cm}^2`), a degree sign, a percent sign (28 for 28%, and 0.28 for 28%, but
no 0.28 for 28). Two units of one measure are converted (5 m is 500 cm); other measures differ; other words say nothing.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from oxa.answers import expressions, numbers, structure, units
from oxa.answers.numbers import Number
from oxa.answers.spelling import DOLLAR, END, TEXT, THIN
from oxa.answers.units import Unit


class Quantity(NamedTuple):
    number: Number | None
    """The exact value, where it is one number."""
    body: str
    """What stands without its unit, to be read as an expression where it is no number."""
    unit: Unit | None
    percent: bool
    degrees: bool


_CURRENCY = re.compile(rf"^([{DOLLAR}€£¥₹])\s*|^(?:US|CA|AU)?[{DOLLAR}]\s*|^(?:Rs\.?|USD|RMB|EUR)\s+")
_PERCENT = re.compile(
    rf"\s*(?:%|{TEXT}\s*(?:%|per\s?cent|percentage|pct)\s*(?:points?)?\.?\s*{END}|(?:percent|per cent|pct)\b\.?)\s*$"
)
_DEGREES = re.compile(
    rf"\s*(?:°|{TEXT}\s*(?:degrees?|deg|°)\s*\.?\s*{END}|(?<![A-Za-z])(?:degrees?|deg)\b|\^\s*\{{?\s*{TEXT}?o{END}?\s*\}}?|度)\s*$"
)
_ANGLE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_PAIR = re.compile(
    rf"(\d+(?:\.\d+)?)\s*((?:{TEXT}[^{END}]*{END}|[A-Za-z]+\.?|[\u3400-\u9fff]+))[\s{THIN},]*(?:and\s+|{TEXT}\s*and\s*{END}\s*)?"
)
_MINUTES = re.compile(r"(-?\d+)\s*°\s*(\d+(?:\.\d+)?)\s*'(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\"))?")
_UP_TO_TWELVE = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {name: str(value) for value, name in enumerate(_UP_TO_TWELVE.split())}
_FRACTION_WORDS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_PARTS = re.compile(rf"({'|'.join(_NUMBER_WORDS)}|a)[\s-]+({'|'.join(_FRACTION_WORDS)})s?", re.IGNORECASE)
_CHANCE = re.compile(rf"^(\d+)\s*{TEXT}?\s*(?:in|out of)\s*{END}?\s*(\d+)$")
_SECONDS = re.compile(r"(?<=\d)\s*(?:''|\")\s*$")
_FACTORS = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_FACTOR = re.compile(rf"\s*{TEXT}?\s*({'|'.join(_FACTORS)})\s*{END}?(?![A-Za-z])")
_HEDGE = re.compile(
    rf"^(?:{TEXT}?\s*(?:about|approximately|around|roughly|exactly|approx\.?|约|大约)\s*{END}?|\\approx|\\sim|=|:)\s*",
    re.IGNORECASE,
)


def _part(match: re.Match[str]) -> str:
    """`two thirds` as 2/3."""
    above = _NUMBER_WORDS.get(match[1].lower(), "1")
    return f"{above}/{_FRACTION_WORDS[match[2].lower()]}"


@lru_cache(maxsize=4096)
def read(text: str) -> Quantity | None:
    """The quantity that a canonical text names, or None where it begins with no number or expression."""
    text = structure.strip(text)
    text = _HEDGE.sub("", text)
    text = _NUMBER_WORDS.get(text.lower(), text)
    text = _CHANCE.sub(r"\1/\2", _PARTS.sub(_part, text))
    if not text or not re.search(r"[\dA-Za-z\\]", text):
        return None
    if match := _MINUTES.fullmatch(text):
        size = Fraction(match[1]) + (Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600) * (
            -1 if match[1][0] == "-" else 1
        )
        return Quantity(Number(size, None, Fraction(0)), text, None, False, True)
    before = None
    sign = "-" if text.startswith("-") and _CURRENCY.match(text[1:].lstrip()) else ""
    if match := _CURRENCY.match(text[1:].lstrip() if sign else text):
        rest = text[1:].lstrip() if sign else text
        before, text = units.read(match[0].strip() or "") or None, sign + rest[match.end() :]
    text = _SECONDS.sub(f"{TEXT}arcsecond{END}", text)
    percent = bool(match := _PERCENT.search(text))
    if match and percent:
        text = text[: match.start()]
    degrees = bool(match := _DEGREES.search(text)) and not percent and not _ANGLE.search(text)
    if match and degrees:
        text = text[: match.start()]
    body, unit = text, None
    if (compound := _compound(text)) is not None:
        return compound
    if not percent and not degrees:
        body, unit = _without_unit(text)
    unit = before if unit is None or (before and not unit.powers and not unit.nouns) else unit
    number = numbers.number(body)
    if number is None and (match := _FACTOR.search(body)) and match.end() == len(body):
        number = numbers.number(body[: match.start()])
        number = None if number is None else number.times(_FACTORS[match[1]])
    return Quantity(number, structure.strip(body), unit, percent, degrees)


def sound(text: str) -> Quantity | None:
    """A quantity whose number or expression can be read; None of anything else."""
    quantity = read(text)
    if quantity is None or (quantity.number is None and expressions.expression(quantity.body) is None):
        return None
    return quantity


def is_constant(quantity: Quantity) -> bool:
    """Whether it is a number, without variables."""
    if quantity.number is not None:
        return True
    value = expressions.expression(quantity.body)
    return value is not None and not value.free_symbols


def _compound(text: str) -> Quantity | None:
    """`2 hours 30 minutes`: several numbers of units of one measure, largest first."""
    at, total, last, powers = 0, Fraction(0), None, None
    while at < len(text):
        match = _PAIR.match(text, at)
        unit = units.read(match[2]) if match else None
        if (
            match is None
            or unit is None
            or not unit.powers
            or unit.nouns
            or powers not in (None, unit.powers)
        ):
            return None
        if last is not None and unit.factor >= last:
            return None
        total, last, powers, at = (
            total + Fraction(match[1]) * unit.factor,
            unit.factor,
            unit.powers,
            match.end(),
        )
    if powers is None or len(_PAIR.findall(text)) < 2:
        return None
    return Quantity(
        Number(total, None, Fraction(0)), text, Unit(powers, Fraction(1), frozenset()), False, False
    )


def _without_unit(text: str) -> tuple[str, Unit | None]:
    """(what stands before the unit, the unit); the unit begins at the first words behind a number or expression."""
    for start in _starts(text):
        head, tail = text[:start].rstrip().rstrip(THIN).rstrip(), text[start:]
        tail = re.sub(r"^\\cdot\s*", "", tail)
        if not head or head[-1] in "+-*/^_(=," or head.lower() == "no":
            continue
        if (match := _FACTOR.match(tail)) and numbers.number(head) is not None:
            unit = units.read(tail[match.end() :])
            if unit is not None:
                return f"{head} {match[1]}", unit if unit.powers or unit.nouns else None
        if numbers.number(head) is None and expressions.expression(head) is None:
            continue
        unit = units.read(tail)
        if unit is None or not (_is_text(tail) or _is_known(tail, text, start)):
            continue
        return head, unit
    return text, None


_UNIT_START = re.compile(
    rf"\\frac\{{{TEXT}|{TEXT}|(?<![A-Za-z\\])[A-Za-z]+|[\u3400-\u9fff]+|[{DOLLAR}€£¥₹¢]|°[CF]|\\mu"
)


def _starts(text: str) -> list[int]:
    """Where a unit may begin: at marked text, at a word, at a sign of currency."""
    starts = [match.start() for match in _UNIT_START.finditer(text)]
    return [
        start
        for start in starts
        if (start and "{" not in text[:start].replace("\\{", "")) or _balanced(text[:start])
    ][:8]


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count("(") == text.count(")")


def _is_text(tail: str) -> bool:
    return tail.startswith((TEXT, "°", r"\frac{" + TEXT)) or not tail[0].isascii() or tail[0] == DOLLAR


_ATTACHED = frozenset(("cm", "km", "mm", "kg", "ml", "ft", "hr"))


def _is_known(tail: str, text: str, start: int) -> bool:
    """Whether unmarked letters are a unit: a word, or a known symbol that no variables are written like."""
    words = re.findall(r"[A-Za-z]+", tail)
    first = words[0] if words else ""
    apart = text[start - 1] in f" {THIN}"
    if len(first) == 1:
        head = text[:start].rstrip()
        if text[start - 1] != THIN:
            return False
        return numbers.number(head) is not None or (first in units.AMBIGUOUS and not _variables(head))
    if first.lower() in expressions.FUNCTIONS:
        return False
    if units.is_measure(first):
        return apart or first.lower() in _ATTACHED or (len(first) > 2 and text[start - 1].isdigit())
    return (len(first) > 3 or first in ("men", "way")) and apart


def _variables(text: str) -> bool:
    value = expressions.expression(text)
    return value is None or bool(value.free_symbols)


def equal(gold: Quantity, answer: Quantity) -> bool | None:
    """Whether two quantities are equal; None where it cannot be told."""
    if gold.percent or answer.percent:
        return _equal_percent(gold, answer)
    plain = answer if gold.degrees else gold
    if gold.degrees != answer.degrees and plain.unit and plain.unit.powers - {("rad", 1)}:
        return None
    if gold.degrees != answer.degrees and (angle := _equal_angle(gold, answer)) is not None:
        return angle
    scale: tuple[Fraction, Fraction] | None = None
    doubt = False
    if gold.unit is not None and answer.unit is not None:
        first, second = gold.unit, answer.unit
        if first.powers != second.powers:
            if first.powers and second.powers and not _one_measure(first, second):
                return None if _values(gold, answer) is None else False
            doubt = True
        elif first.powers:
            scale = first.factor, second.factor
        if first.nouns and second.nouns and not (first.nouns & second.nouns):
            doubt = True
    verdict = _values(gold, answer, scale)
    if doubt:
        pounds = {base for unit in (gold.unit, answer.unit) if unit for base, _ in unit.powers} == {
            "gbp",
            "lb",
        }
        return verdict if pounds else None
    scaled = any(_FACTOR.search(quantity.body) for quantity in (gold, answer))  # 3, of millions
    if verdict is False and (scaled or _one_unit(gold, answer)) and _may_be_converted(gold, answer):
        return None
    left, right = (quantity._replace(body=quantity.body.replace("°", "")) for quantity in (gold, answer))
    if verdict is False and (left, right) != (gold, answer) and _values(left, right):
        return None  # 180 - x, in degrees
    if verdict is False and _may_be_radians(gold, answer):
        return None
    if verdict and gold.degrees != answer.degrees and not (is_constant(gold) and is_constant(answer)):
        return None
    return verdict


_CONVERSIONS = frozenset((60, 3600, 24, 7, 12, 365, 3, 36, 5280, 16, 1440, 86400, 52, 168))


def _may_be_radians(gold: Quantity, answer: Quantity) -> bool:
    """Whether one, in degrees, is near to the other in radians: one of them must look like an angle."""
    if not (
        gold.degrees or answer.degrees or any(re.search(r"\\(?:pi|arc)", q.body) for q in (gold, answer))
    ):
        return False
    values = [_expression(quantity) for quantity in (gold, answer)]
    if any(value is None or value.free_symbols or not value.is_real for value in values):
        return False
    first, second = (float(value.evalf(15)) for value in values)
    turned = [(first * math.pi / 180, second), (first, second * math.pi / 180)]
    return any(math.isclose(a, b, rel_tol=0.01) for a, b in turned)


def _may_be_converted(gold: Quantity, answer: Quantity) -> bool:
    """Whether two numbers are one in units that are often converted, as 90 is 1.5 hours."""
    if gold.number is None or answer.number is None or not gold.number.value or not answer.number.value:
        return False
    ratio = gold.number.value / answer.number.value
    ratio = max(ratio, 1 / ratio)
    return ratio in _CONVERSIONS or set(str(ratio).rstrip("0")) == {"1"}


def _one_measure(first: Unit, second: Unit) -> bool:
    """Whether two units differ in nothing but scales that are not converted (pounds of money and of weight)."""
    bases = {base for base, _ in first.powers ^ second.powers}
    return any(bases & scales and bases <= scales for scales in units.OTHER_SCALES)


def _one_unit(gold: Quantity, answer: Quantity) -> bool:
    """Whether only one of them has a measure, so that the other may be in another one."""
    with_unit = [bool(quantity.unit and quantity.unit.powers) for quantity in (gold, answer)]
    return with_unit[0] != with_unit[1]


_LEFT_TO_RIGHT = re.compile(
    r"(?<![\w}])(\d+)\s*/\s*(\d+)(?=\s*(?:[A-Za-z(]|\\(?:pi|sqrt|[a-z]*theta|alpha|beta)))"
)


_GAUSS = re.compile(r"(?<!\\sqrt)\[([^\[\]]*)\]")


def _readings(text: str) -> list[str]:
    r"""An expression, and what else many mean by it: `1/2x` is `\frac{1}{2}x`, `[x]` is `\lfloor x \rfloor`."""
    forms = [text]
    for pattern, other in ((_LEFT_TO_RIGHT, r"\\frac{\1}{\2}"), (_GAUSS, r"\\lfloor \1 \\rfloor ")):
        forms += [pattern.sub(other, form) for form in forms if pattern.search(form)]
    return forms


def _values(gold: Quantity, answer: Quantity, scale: tuple[Fraction, Fraction] | None = None) -> bool | None:
    if gold.number is not None and answer.number is not None:
        first, second = gold.number, answer.number
        if scale is not None and scale[0] != scale[1]:
            first, second = first.times(scale[0]), second.times(scale[1])
        return numbers.numbers_equal(first, second)
    left, right = _expression(gold), _expression(answer)
    if left is None or right is None:
        return None
    if scale is not None and scale[0] != scale[1]:
        left, right = left * numbers.rational(scale[0]), right * numbers.rational(scale[1])
    if not (left.free_symbols or right.free_symbols):
        for number, is_gold in ((gold.number, True), (answer.number, False)):
            if number is not None and number.digits is not None:
                return expressions.close(left, right, number, is_gold=is_gold)
    verdict = expressions.equal(left, right)
    others = [_readings(quantity.body) for quantity in (gold, answer) if quantity.number is None]
    if verdict or scale is not None or all(len(other) == 1 for other in others):
        return verdict
    pairs = [
        (_expression(gold._replace(body=a)), _expression(answer._replace(body=b)))
        for a in _readings(gold.body)
        for b in _readings(answer.body)
    ]
    return (
        True if any(a is not None and b is not None and expressions.equal(a, b) for a, b in pairs) else None
    )


def _expression(quantity: Quantity) -> Any:
    if quantity.number is not None:
        return numbers.rational(quantity.number.value)
    return expressions.expression(quantity.body)


def _equal_percent(gold: Quantity, answer: Quantity) -> bool | None:
    """28% is 28 and 0.28; 28 is 28%; 0.28 is 28%; 0.5% is not known to be 0.5, which may be 50%."""
    plain = answer if gold.percent else gold
    if gold.percent != answer.percent and plain.unit is not None:
        return None
    as_it_stands = _values(gold, answer)
    if gold.percent and answer.percent:
        return as_it_stands
    if as_it_stands and (plain.number is None or abs(plain.number.value) > 1):
        return True
    hundredth = (Fraction(1, 100), Fraction(1)) if gold.percent else (Fraction(1), Fraction(1, 100))
    as_share = _values(gold, answer, hundredth)
    if as_share:
        return True
    return None if as_it_stands is not False or as_share is None else False


def _equal_angle(gold: Quantity, answer: Quantity) -> bool | None:
    r"""Degrees against none: the same number, or \pi radians for 180; None where that does not decide."""
    import sympy

    plain, degrees = (answer, gold) if gold.degrees else (gold, answer)
    left, right = _expression(degrees), _expression(plain)
    if left is None or right is None:
        return None
    if right.has(sympy.pi, sympy.asin, sympy.acos, sympy.atan) or (
        plain.unit and ("rad", 1) in plain.unit.powers
    ):
        equal = expressions.equal(left * sympy.pi / 180, right)
        return equal if equal or not _may_be_radians(gold, answer) else None
    return None
