r"""Sets of real numbers: intervals, inequalities, set-builder notation, unions, what is left out, and the empty set.

A region is a sorted list of disjoint pieces with numeric ends, so that `x \ge \sqrt{3}`, `[\sqrt3, \infty)` and
`\{x \mid x \ge \sqrt3\}` are one value, `x \ne 4` is two pieces, and `]2,5[` is `(2,5)`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from oxa.answers import expressions, numbers, structure
from oxa.answers.spelling import END, TEXT

_EVERYTHING = re.compile(
    r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*R\s*\}?|all (?:real numbers|reals)|(?:全体)?实数集?|R"
)
_NOTHING = re.compile(
    r"\\emptyset|\\\{\s*\\\}|\{\s*\}|(?:the )?empty set|no (?:real )?(?:solutions?|roots?|such \w+)|空集|无解"
)
_MEMBER = re.compile(r"\s*\\in(?![A-Za-z])\s*")
_CUP, _CAP = (
    re.compile(r"\s*(?:\\cup(?![A-Za-z])|(?<=[)\]])\s*U(?=\s*[(\[]))\s*"),
    re.compile(r"\s*\\cap(?![A-Za-z])\s*"),
)
_MINUS = re.compile(r"\s*\\setminus(?![A-Za-z])\s*")
_EXCEPT = re.compile(r"\s+(?:except(?: for)?|other than|excluding)\s+")
_BUILDER = re.compile(
    r"\\?\{\s*(?P<name>[^|:;]+?)\s*(?:\||:|;|\\colon)\s*(?P<condition>.*?)\s*\\?\}", re.DOTALL
)
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?|[A-Za-z]\s*\([a-z]\)")
_INTERVAL = re.compile(r"([(\[\]])(.*)([)\]\[])", re.DOTALL)


class Piece(NamedTuple):
    low: Any
    high: Any  # sympy numbers, evaluated; low <= high
    low_closed: bool
    high_closed: bool


class Region(NamedTuple):
    pieces: tuple[Piece, ...]
    name: str | None
    """The variable that is bounded; None of a bare interval or a bound variable."""
    plain: bool
    """Whether it is one open interval in parentheses, which may be a point of the plane as well."""


@lru_cache(maxsize=4096)
def read(text: str) -> Region | None:
    """The region that a canonical text describes, or None."""
    text = structure.strip(text)
    words = text.replace(TEXT, "").replace(END, "").strip().rstrip(".").lower()
    if _NOTHING.fullmatch(words) or _NOTHING.fullmatch(text):
        return Region((), None, False)
    if _EVERYTHING.fullmatch(text) or _EVERYTHING.fullmatch(words):
        return None if text == "R" else Region((_line(),), None, False)
    parts = _EXCEPT.split(words)
    if len(parts) == 2 and (whole := read(parts[0])) and (out := _points(rf"\{{{parts[1]}\}}")):
        return Region(_difference(whole.pieces, out.pieces), None, False)
    for pattern, join in ((_CUP, _union), (_MINUS, _difference), (_CAP, _intersection)):
        parts = structure.split(text, pattern)
        if len(parts) > 1:
            name, first = None, _MEMBER.split(parts[0], maxsplit=1)
            if len(first) == 2 and _NAME.fullmatch(first[0].strip()):
                name, parts[0] = first[0].strip(), first[1]
            regions = [read(part) or _points(part) for part in parts]
            if any(region is None for region in regions):
                return None
            pieces = regions[0].pieces  # type: ignore[union-attr]
            for region in regions[1:]:
                pieces = join(pieces, region.pieces)  # type: ignore[union-attr]
            return Region(pieces, name, False)
    if (builder := _BUILDER.fullmatch(text)) and (region := _condition(builder["condition"])) is not None:
        variable = _MEMBER.split(builder["name"], maxsplit=1)
        if len(variable) == 2 and not _EVERYTHING.fullmatch(variable[1].strip()):
            return None
        return region._replace(name=None, plain=False)
    members = _MEMBER.split(text, maxsplit=1)
    if len(members) == 2 and _NAME.fullmatch(members[0].strip()):
        region = read(members[1])
        return None if region is None else region._replace(name=members[0].strip(), plain=False)
    if (interval := _INTERVAL.fullmatch(text)) is not None:
        return _interval(interval)
    return _condition(text)


def _interval(match: re.Match[str]) -> Region | None:
    ends = structure.split(match[2], re.compile(r"\s*[,;]\s*"))
    if len(ends) != 2 or (match[1] == "[" and match[3] not in ")]["):
        return None
    low, high = map(_number, ends)
    if low is None or high is None or not low < high:
        return None
    low_closed, high_closed = match[1] == "[", match[3] == "]"
    plain = match[1] == "(" and match[3] == ")" and not (low.is_infinite or high.is_infinite)
    return Region((_piece(low, high, low_closed, high_closed),), None, plain)


def _condition(text: str) -> Region | None:
    """A condition on one variable: relations, joined by `and` (or commas) and `or`."""
    choices = structure.alternatives(text)
    if len(choices) > 1:
        return _joined(choices, _union)
    parts = structure.conjuncts(text)
    if len(parts) > 1:
        parts = [part for part in parts if not re.fullmatch(r"\w+\s*\\in\s*\\mathbb\{?R\}?", part)]
        both = _joined(parts, _intersection)
        return both if both is None or both.pieces else _joined(parts, _union)
    return _chain(text)


def _joined(parts: list[str], join: Any) -> Region | None:
    regions = [read(part) or _value(part) for part in parts]
    names = {region.name for region in regions if region is not None}
    if not any(map(read, parts)) or None in regions or len(names) != 1 or None in names:
        return None
    pieces = regions[0].pieces  # type: ignore[union-attr]
    for region in regions[1:]:
        pieces = join(pieces, region.pieces)  # type: ignore[union-attr]
    return Region(pieces, names.pop(), False)


def _value(text: str) -> Region | None:
    """`x = 0` among inequalities."""
    sides, signs = structure.relation(text)
    value = _number(sides[1]) if signs == ["="] and _is_name(sides[0]) else None
    return None if value is None else Region((Piece(value, value, True, True),), sides[0], False)


_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "ne": "ne"}


def _chain(text: str) -> Region | None:
    """One relation of a name and numbers, or two; what is bounded may be called e (an eccentricity)."""
    sides, signs = structure.relation(text)
    if not signs or len(signs) > 2 or not set(signs) <= {"<", ">", "le", "ge", "ne"}:
        return None
    if len(signs) == 1:
        left, right = sides
        sign = signs[0]
        if not _is_name(left) and (_is_name(right) or (right == "e" and _number(left) is not None)):
            left, right, sign = right, left, _FLIPPED[sign]
        if not _is_name(left) and left != "e":
            return _solved(text)
        bound = _number(right)
        return None if bound is None else Region(_half(sign, bound), left, False)
    low, middle, high = sides
    first, second = _number(low), _number(high)
    if not (_is_name(middle) or middle == "e") or first is None or second is None:
        return None
    return Region(_intersection(_half(_FLIPPED[signs[0]], first), _half(signs[1], second)), middle, False)


def _solved(text: str) -> Region | None:
    """An inequality such as 2x > 6 or |x| < 3, by sympy."""
    import sympy

    sides, signs = structure.relation(text)
    left, right = expressions.expression(sides[0]), expressions.expression(sides[1])
    if left is None or right is None or len((left - right).free_symbols) != 1 or "..." in text:
        return None
    (symbol,) = (left - right).free_symbols
    real = sympy.Symbol(symbol.name, real=True)
    relation = {"<": sympy.Lt, ">": sympy.Gt, "le": sympy.Le, "ge": sympy.Ge, "ne": sympy.Ne}[signs[0]]
    try:
        solved = relation(left.subs(symbol, real), right.subs(symbol, real))
        answer = solved.as_set() if isinstance(solved, sympy.core.relational.Relational) else None
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None
    parts: tuple[Any, ...] = answer.args if isinstance(answer, sympy.Union) else (answer,)
    if not all(isinstance(part, sympy.Interval) for part in parts):
        return None
    pieces: tuple[Piece, ...] = ()
    for part in parts:
        pieces = _union(
            pieces,
            (
                _piece(
                    part.start.evalf(expressions.DIGITS),
                    part.end.evalf(expressions.DIGITS),
                    not part.left_open,
                    not part.right_open,
                ),
            ),
        )
    return Region(pieces, symbol.name, False)


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and not re.fullmatch(r"\\(?:pi|infty|sqrt|frac)|e|i|pi", text)


def _number(text: str) -> Any:
    r"""The value of a bound, or None: \infty, or an expression without variables."""
    import sympy

    text = structure.strip(text)
    if re.fullmatch(r"\+?\s*\\infty", text):
        return sympy.oo
    if re.fullmatch(r"-\s*\\infty", text):
        return -sympy.oo
    if (number := numbers.number(text)) is not None:
        return numbers.rational(number.value)
    value = expressions.expression(text)
    if value is None or value.free_symbols or not value.is_real:
        return None
    value = value.evalf(expressions.DIGITS)
    return value if value.is_Number else None


def _points(text: str) -> Region | None:
    r"""A set of single numbers, `\{1, 2\}`."""
    items = structure.items(text)
    if items is None or items.kind != "set":
        return None
    pieces: tuple[Piece, ...] = ()
    for part in items.parts:
        value = _number(part)
        if value is None:
            return None
        pieces = _union(pieces, (Piece(value, value, True, True),))
    return Region(pieces, None, False)


def _line() -> Piece:
    import sympy

    return Piece(-sympy.oo, sympy.oo, False, False)


def _piece(low: Any, high: Any, low_closed: bool, high_closed: bool) -> Piece:
    return Piece(low, high, low_closed and not low.is_infinite, high_closed and not high.is_infinite)


def _half(sign: str, bound: Any) -> tuple[Piece, ...]:
    below, above = _line()._replace(high=bound), _line()._replace(low=bound)
    if sign == "ne":
        return below, above
    if sign in ("<", "le"):
        return (below._replace(high_closed=sign == "le"),)
    return (above._replace(low_closed=sign == "ge"),)


def _same(a: Any, b: Any) -> bool:
    if a.is_infinite or b.is_infinite:
        return bool(a == b)
    return bool(
        abs(a - b) <= max(abs(a), abs(b)) * expressions.EQUAL.numerator / expressions.EQUAL.denominator
    )


def _union(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for piece in sorted([*first, *second], key=lambda piece: (piece.low, not piece.low_closed)):
        if pieces:
            last = pieces[-1]
            touches = piece.low < last.high or (
                _same(piece.low, last.high) and (piece.low_closed or last.high_closed)
            )
            if touches:
                if _same(piece.high, last.high):
                    pieces[-1] = last._replace(high_closed=last.high_closed or piece.high_closed)
                elif piece.high > last.high:
                    pieces[-1] = last._replace(high=piece.high, high_closed=piece.high_closed)
                continue
        pieces.append(piece)
    return tuple(pieces)


def _complement(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    gaps, start, closed = [], _line().low, False
    for piece in pieces:
        if start < piece.low or (
            _same(start, piece.low) and closed and not piece.low_closed and not piece.low.is_infinite
        ):
            gaps.append(Piece(start, piece.low, closed, not piece.low_closed and not piece.low.is_infinite))
        start, closed = piece.high, not piece.high_closed
    if not start.is_infinite or not pieces:
        gaps.append(Piece(start, _line().high, closed and not start.is_infinite, False))
    return tuple(
        gap for gap in gaps if not gap.low.is_infinite or not gap.high.is_infinite or gap.low < gap.high
    )


def _intersection(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return _complement(_union(_complement(first), _complement(second)))


def _difference(first: tuple[Piece, ...], second: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return _intersection(first, _complement(second))


def equal(gold: Region, answer: Region) -> bool | None:
    """Whether two regions are the same numbers; None where both name a variable, and not the same one."""
    same = len(gold.pieces) == len(answer.pieces) and all(
        _same(a.low, b.low) and _same(a.high, b.high) and a[2:] == b[2:]
        for a, b in zip(gold.pieces, answer.pieces, strict=True)
    )
    ends = [[piece[2:] for piece in region.pieces] for region in (gold, answer)]
    if same and gold.name and answer.name and gold.name != answer.name:
        return None
    if not same and (gold.name or answer.name) in _WHOLE and ends[0] != ends[1]:
        return None
    return same


_WHOLE = frozenset("nNmk")
"""Names that whole numbers often have: n > 2 may mean n >= 3."""
