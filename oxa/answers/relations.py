r"""Names and equations: `x = 5`, `f(x) = 2x`, `P = \frac12 \approx 0.5`, `5x - 7y = 4`, `b > a > c`.

A value with a name is compared by its value. An equation that defines nothing is compared as a whole: two are equal
where the differences of their sides are multiples of each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from oxa.answers import expressions, numbers, quantities, structure
from oxa.answers.spelling import END, TEXT

Equal = Callable[[str, str], bool | None]
"""Compares two parts of answers; the caller's own comparison, one level deeper."""

Decision = tuple[bool | None, bool]
"""A verdict, and whether it is the last word."""
UNDECIDED: Decision = (None, False)

_INDEX = rf"_\{{?[\w\\, {TEXT}{END}]+\}}?"
_NAMES = (
    rf"\\?[A-Za-z]+(?:\s+[A-Za-z]+)*'*(?:{_INDEX})?'*(?:\s*\([A-Za-z\\, ]+\))?",  # x, a_n, f(x), \angle ABC
    r"\|[A-Z]{2}\||[A-Z]\s*\([^()]*\)|m?\s*\\angle\s*[A-Z]+|S_\{?\\triangle [A-Z]+\}?",  # |AB|, P(A)
    r"\\(?:overline|vec|overrightarrow|hat|bar|mathbb|mathcal)\s*\{[A-Za-z]+\}",
    rf"{TEXT}[^{END}]*{END}",
    # what is worked out, whose value follows
    r"\\begin\{vmatrix\}.*\\end\{vmatrix\}|\\(?:det|int|oint|sum|prod|lim)(?![A-Za-z]).*",
)
_NAME = re.compile("|".join(_NAMES), re.DOTALL)


MAX_NAME = 200  # characters


def is_name(text: str) -> bool:
    """Whether a side of an equation is a name: x, a_n, f(x), AB, \\angle ABC, or words."""
    text = structure.strip(text)
    return (
        len(text) <= MAX_NAME
        and bool(_NAME.fullmatch(text))
        and not re.match(rf"(?:e|i|\\pi)$|\\(?:frac|{'|'.join(expressions.FUNCTIONS)})(?![A-Za-z])", text)
        and numbers.number(text) is None
    )


_SUM = re.compile(r"\d*[a-wA-W](?:\s*[+-]?\s*\d*[a-wA-W])+")  # of an answer: m + n = 116


def _chain(text: str) -> tuple[str | None, list[str]] | None:
    """(name or None, the values said to be equal) of a chain of = and approximations; None of other relations."""
    sides, signs = structure.relation(text)
    equals = {"=", "approx"} if "mod" in text else {"=", "approx", "equiv"}
    if not signs or not set(signs) <= equals or "" in sides[1:]:
        return None
    sides = [side for side in sides if side]
    if any((many := structure.items(side)) and many.kind == "bare" for side in sides[1:-1]):
        return None  # x = 2, y = 5 is no chain
    if len(sides) > 1 and is_name(sides[0]):
        return re.sub(r"[\s{}]", "", sides[0]), sides[1:]
    return None, sides


def value_of(text: str, equal: Equal) -> str:
    """The value of `name = value`, or of a chain that is consistent; else the text as it is."""
    chain = _chain(text)
    if chain is None:
        return text
    name, values = chain
    if name is None and not _is_computation(values):
        return text
    first = next((value for value in values if quantities.sound(value) is not None), values[0])
    if all(value == first or equal(first, value) is not False for value in values):
        return (
            first
            if len(values) == 1 or quantities.sound(values[-1]) is None or r"\approx" in text
            else values[-1]
        )
    return text


def _is_computation(values: list[str]) -> bool:
    """Whether all sides are numbers: 1 + 1 = 2."""
    return all(
        numbers.number(value) is not None
        or ((read := quantities.sound(value)) is not None and quantities.is_constant(read))
        for value in values
    )


def compare(gold: str, answer: str, equal: Equal) -> Decision:
    """Where one of the texts is a relation at least."""
    first, second = structure.relation(gold), structure.relation(answer)
    if not first[1] and not second[1]:
        return UNDECIDED
    gold_value, answer_value = value_of(gold, equal), value_of(answer, equal)
    if first[1] and second[1]:
        if gold_value != gold and answer_value != answer:
            names = [(_chain(text) or (None, []))[0] for text in (gold, answer)]
            if names[0] == names[1] or None in names:
                return equal(gold_value, answer_value), True
            if (renamed := _same_function(names[0] or "", names[1] or "", answer_value)) is not None:
                return equal(gold_value, renamed), True
            same = equal(gold_value, answer_value)
            if same is False:
                return _equations(first, second), True
            return None, True
        if gold_value != gold or answer_value != answer:
            return _equations(first, second), True
        return (
            _equations(first, second) if len(first[1]) == len(second[1]) == 1 else _orderings(first, second)
        ), True
    if first[1]:
        if gold_value != gold:
            return equal(gold_value, answer), True
        return None, True
    if answer_value != answer:
        return equal(gold, answer_value), True
    sides, signs = second
    if (
        set(signs) == {"="}
        and _SUM.fullmatch(sides[0])
        and (sum_ := value_of("s=" + "=".join(sides[1:]), equal))
    ):
        return (None if "=" in sum_ else equal(gold, sum_)), True
    return None, True


_FUNCTION = re.compile(r"([A-Za-z]+)\(([a-z])\)")


def _same_function(gold: str, answer: str, value: str) -> str | None:
    """The answer's value with the gold's argument, where both name one function: f(x) and f(t)."""
    first, second = _FUNCTION.fullmatch(gold), _FUNCTION.fullmatch(answer)
    if not first or not second or first[1] != second[1]:
        return None
    if first[2] != second[2] and re.search(rf"(?<![A-Za-z\\]){first[2]}(?![A-Za-z])", value):
        return None
    return re.sub(rf"(?<![A-Za-z\\]){second[2]}(?![A-Za-z])", first[2], value)


def _equations(gold: tuple[list[str], list[str]], answer: tuple[list[str], list[str]]) -> bool | None:
    """Equations and inequalities of one sign: whether the differences of their sides are multiples of each other."""
    if len(gold[1]) != 1 or len(answer[1]) != 1:
        return None
    import sympy

    kinds = [signs[0] for _, signs in (gold, answer)]
    differences = []
    for (sides, _), kind in zip((gold, answer), kinds, strict=True):
        values = [_side(side) for side in sides]
        if values[0] is None or values[1] is None:
            return None
        difference = values[0] - values[1]
        differences.append(-difference if kind in ("<", "le") else difference)
    first, second = differences
    weak = [
        "=" if kind == "=" else "ne" if kind == "ne" else "strict" if kind in "<>" else "weak"
        for kind in kinds
    ]
    if first.free_symbols != second.free_symbols or not first.free_symbols or "approx" in kinds:
        return None
    ratio = sympy.cancel(sympy.together(first / second)) if second != 0 else None
    if ratio is None:
        return None
    if not ratio.free_symbols:
        if weak[0] != weak[1]:
            return False
        return bool(weak[0] in ("=", "ne") or ratio > 0)
    if weak[0] == weak[1] == "=":
        symbols = sorted(first.free_symbols, key=str)
        if first.is_polynomial(*symbols) and second.is_polynomial(*symbols):
            return (
                False if sympy.Poly(first, *symbols).is_sqf and sympy.Poly(second, *symbols).is_sqf else None
            )
    return None


def _side(text: str) -> Any:
    """A side of an equation as an expression, exact."""
    number = numbers.number(text)
    return expressions.expression(text) if number is None else numbers.rational(number.value)


def _orderings(gold: tuple[list[str], list[str]], answer: tuple[list[str], list[str]]) -> bool | None:
    """Chains like b > a > c: the same pairs in the same order."""
    chains = []
    for sides, signs in (gold, answer):
        if not set(signs) <= {"<", ">", "le", "ge", "="} or (
            {"<", "le"} & set(signs) and {">", "ge"} & set(signs)
        ):
            return None
        upward = bool({"<", "le"} & set(signs))
        names = [re.sub(r"[\s{}]", "", side) for side in (sides if upward else sides[::-1])]
        weak = [sign in ("le", "ge") for sign in (signs if upward else signs[::-1])]
        chains.append((names, weak))
    if chains[0] == chains[1]:
        return True
    return False if sorted(chains[0][0]) == sorted(chains[1][0]) and chains[0][1] == chains[1][1] else None
