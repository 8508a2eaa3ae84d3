r"""Reads one expression by math-verify's parser and says whether two are equal: exactly, or at points drawn by hash.

Expressions go through latex2sympy2_extended, math-verify's parser, with decimals made fractions before, so that nothing
is rounded on the way. Constants are equal where they differ by less than EQUAL of the larger one, and large ones to the
last place before the point as well; what a decimal may stand for is said in numbers.py.

Expressions with variables are equal where they agree at every one of POINTS points, positive and negative, to DIGITS
digits; where they agree at some of them alone (\sqrt{x^2} and x), nothing is said.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from oxa.answers.numbers import MAX_DIGITS, MAX_POWER, Number, near, rational
from oxa.answers.spelling import DOLLAR, TEXT, THIN

DIGITS = 60  # of the evaluation
EQUAL = Fraction(1, 10**45)
POINTS = 6

_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_ENGLISH = frozenset(["and", "or", "to", "of", "if", "on", "no"])  # no products of variables
_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NAMES = (
    "pi sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp sqrt min max gcd lcm mod deg"
)
FUNCTIONS = frozenset(_NAMES.split())
_ARGUMENT = r"(?:\{([^{}]*)\}|(\w))"
_COMBINATIONS = (
    (re.compile(rf"(?:\{{\s*\}}\s*)?\^\s*{_ARGUMENT}\s*C\s*_\s*{_ARGUMENT}"), False),
    (re.compile(rf"(?:\{{\s*\}}\s*)?_\s*{_ARGUMENT}\s*C\s*_\s*{_ARGUMENT}"), False),
    (re.compile(rf"(?<![A-Za-z\\])C\s*_\s*{_ARGUMENT}\s*\^\s*{_ARGUMENT}"), False),
    (re.compile(rf"(?<![A-Za-z\\])C\s*\^\s*{_ARGUMENT}\s*_\s*{_ARGUMENT}"), True),
    (re.compile(r"(?<![A-Za-z\\])C\s*\(\s*(\w+)()\s*,\s*(\w+)()\s*\)"), False),
)
"""Ways to write a binomial coefficient: its upper and lower number, or the other way round."""


def _products(text: str) -> str:
    r"""Signs between factors that latex2sympy would add like the parts of a mixed number: `2(3)`, `(2)(3)`."""
    opened: list[bool] = []  # whether each brace open here holds an index, power or limit
    factor = False  # whether what ends here is a factor: no index, power or lower limit
    parts: list[str] = []
    for token in re.finditer(r"\\[A-Za-z]+|\\.|\s+|\d+|.", text):
        piece = token[0]
        if factor and (
            piece == "(" or piece == r"\binom" or (piece.isdigit() and parts and parts[-1] == ")")
        ):
            parts.append(r"\cdot ")
        if piece == "{":
            opened.append(bool(parts and parts[-1].strip()[-1:] in ("^", "_", "]")))
        if piece.isspace():
            parts.append(piece)
            continue
        is_script = piece == "}" and opened and opened.pop()
        factor = (
            (piece.isdigit() and not (parts and parts[-1] in ("_", "^")))
            or piece == ")"
            or (piece == "}" and not is_script)
        )
        parts.append(piece)
    return "".join(parts)


def _combinations(text: str) -> str:
    for pattern, swapped in _COMBINATIONS:

        def replace(match: re.Match[str], swapped: bool = swapped) -> str:
            pair = match[1] or match[2], match[3] or match[4]
            above, below = reversed(pair) if swapped else pair
            return rf"\binom{{{above}}}{{{below}}}"

        text = pattern.sub(replace, text)
    return text


@lru_cache(maxsize=4096)
def expression(text: str) -> Any:
    """The sympy expression of a canonical text, or None where it is none.

    Raises whatever latex2sympy and sympy raise on model output but for errors of syntax, which are "none".
    """
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    prepared = (
        _prepared(text) if len(text) <= MAX_DIGITS or not re.search(rf"\d{{{MAX_DIGITS}}}", text) else None
    )
    if prepared is None:
        return None
    import sympy

    try:
        value = latex2sympy(
            prepared,
            is_real=None,
            normalization_config=None,
            conversion_config=ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False),
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # latex2sympy raises plain Exceptions on whatever it does not take
        return None
    if not isinstance(value, sympy.Expr) or value.has(sympy.nan, sympy.zoo):
        return None
    value = value.replace(lambda part: isinstance(part, sympy.UnevaluatedExpr), lambda part: part.args[0])
    if value.has(sympy.Sum, sympy.Product, sympy.Integral):
        return value  # whose index may be called i
    return value.xreplace({sympy.Symbol("i"): sympy.I})


_GROUPS = re.compile(r"(?<![\d.,}])[1-9]\d{0,2}(?:(?:\{,\}|,)\d{3})+(?!\d)")
_NO_EXPRESSION = re.compile(
    r"\d\s+\d|[,;:=<>']|\\(?:le|ge|ne|in|cup|cap|approx|pm|mp|to|land|lor)(?![A-Za-z])"
)
_OTHER_MEANING = re.compile(
    r"\d\s*_|\\(?:gcd|lcm)\s*\([^()]*[A-Za-z]"
)  # a base; gcd(n, 3), a polynomial's here
_WITH_COMMAS = re.compile(r"\\(?:gcd|max|min|lcm|sum|prod|int|lim)(?![A-Za-z])")


def _prepared(text: str) -> str | None:
    """For latex2sympy: mixed numbers, decimals, products and combinations as it reads them; None of words."""
    if (
        not text
        or TEXT in text
        or any(sign in text for sign in (DOLLAR, "#", "&", "?", "...", "\\\\", "%", "!!"))
        or (not text.isascii() and not set(text) <= _ALLOWED)
    ):
        return None
    text = text.replace(THIN, " ").replace("°", r" \cdot \frac{\pi}{180}")
    text = re.sub(r"(\d)\s*'\s*(?=\d{3})", r"\1", text)
    text = re.sub(r"(?<=[A-Za-z])\s*('+)", lambda match: "_{" + "p" * (len(match[1]) + 1) + "}", text)
    if "'" in text or _OTHER_MEANING.search(text):
        return None
    text = re.sub(
        r"_\{([^{}=]*[\\,][^{}=]*)\}",
        lambda match: "_{" + re.sub(r"[^A-Za-z0-9+-]", "", match[1].replace(",", "c")) + "}",
        text,
    )
    text = re.sub(r"(?<![A-Za-z\\])E\s*_", "X_", text)
    text = _GROUPS.sub(lambda match: re.sub(r"[{},]", "", match[0]), text)
    text = re.sub(r"(?<![\\A-Za-z])log_?(\d+)\s*\(", r"\\log_{\1}(", text)
    text = re.sub(r"\\log_\s*(?:\{(\w+)\}|(\w))\s*(\d+)", r"\\log_{\1\2}{\3}", text)
    if _NO_EXPRESSION.search(text) and not _WITH_COMMAS.search(text):
        return None
    text = re.sub(r"\s+(?=[\^_])", "", text)
    text = re.sub(r"\\([gG]amma)(?![A-Za-z])", r"X_{\1}", text)  # latex2sympy takes it for the function
    if re.search(r"\^\s*\{?\s*(?:T|\\top)\s*\}?(?![A-Za-z])", text):  # latex2sympy drops it from a symbol
        return None
    text = _combinations(text)
    text = re.sub(r"\\binom\s*(\w)\s*(\w)", r"\\binom{\1}{\2}", text)
    text = re.sub(r"(\\binom\s*\{[^{}]*\})\s*(\w)", r"\1{\2}", text)
    text = re.sub(r"(?<![\d.}_^])(\d+)\s*(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    text = _DECIMAL.sub(
        lambda match: rf"{{\frac{{{int((match[1] or '0') + match[2])}}}{{{10 ** len(match[2])}}}}}", text
    )
    for run in _RUN.findall(
        re.sub(r"\\(?:overline|vec|hat|dot|bar|mathbb|angle|triangle)\s*\{[^{}]*\}|_\{[^{}]*\}", "", text)
    ):
        if run.lower() in FUNCTIONS:
            continue
        if run.isupper():
            text = re.sub(rf"(?<![\\A-Za-z]){run}(?![A-Za-z])", f"X_{{{run}}}", text)
        elif len(run) > 3 or run in _ENGLISH:
            return None
    text = re.sub(
        r"(?<![\\A-Za-z])(pi|sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan)(?![A-Za-z])",
        r"\\\1 ",
        text,
    )
    text = _products(text)
    text = re.sub(r"\+\s*-", "-", text)
    text = re.sub(r"-\s*-", "+", text)
    return text.strip()


_ALLOWED = frozenset(map(chr, range(128))) | {THIN, "°"}


def equal(gold: Any, answer: Any) -> bool | None:
    """Whether two expressions are equal; None where it cannot be told."""
    import sympy

    if gold == answer:
        return True
    gold, answer = (_without_functions(part) for part in (gold, answer))
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    verdict = _equal_everywhere(gold, answer, symbols)
    if verdict is not False:
        return verdict
    for other in (_real_roots, _natural_logarithms):  # what else the same signs may mean
        if _equal_everywhere(other(gold), other(answer), symbols):
            return True
    if {"c", "C"} <= {symbol.name for symbol in symbols}:  # of integration, in either case
        answer = answer.xreplace({sympy.Symbol("c"): sympy.Symbol("C")})
        gold = gold.xreplace({sympy.Symbol("c"): sympy.Symbol("C")})
        return True if _equal_everywhere(gold, answer, [s for s in symbols if s.name != "c"]) else None
    constants = [symbol for symbol in symbols if _CONSTANT.fullmatch(symbol.name)]
    if constants and len(symbols) > len(constants):
        return True if _differ_by_a_constant(gold, answer, symbols, constants) else None
    if gold.free_symbols != answer.free_symbols or _renamed(gold, answer, symbols):
        return None
    return False


def _renamed(gold: Any, answer: Any, symbols: list[Any]) -> bool:
    """Whether they differ in nothing but which of two capital letters is called which: A cos x + B sin x."""
    capitals = [symbol for symbol in symbols if symbol.name.isupper()]
    pairs = [dict(zip(pair, pair[::-1], strict=True)) for pair in itertools.combinations(capitals[:4], 2)]
    return any(_equal_everywhere(gold, answer.xreplace(pair), symbols) for pair in pairs)


_CONSTANT = re.compile(r"[CcK](?:_\{?\w+\}?)?")


def _equal_everywhere(gold: Any, answer: Any, symbols: list[Any]) -> bool | None:
    """Whether they agree at every point; False where they do at none, or at not all whole numbers."""
    import sympy

    if not symbols:
        return _equal_constants(gold, answer)
    counts = (sympy.Sum, sympy.Product, sympy.binomial, sympy.factorial)
    whole = {symbol.name for symbol in symbols} <= COUNTS
    discrete = whole or any(part.has(*counts) for part in (gold, answer))
    points = _points(symbols, discrete=discrete, signed=any(part.has(sympy.Abs) for part in (gold, answer)))
    verdicts = [_equal_values(_value(gold, point), _value(answer, point)) for point in points]
    if None in verdicts:
        return _by_simplifying(gold, answer)
    if all(verdicts):
        return True
    return None if any(verdicts) and not discrete else False


def _differ_by_a_constant(gold: Any, answer: Any, symbols: list[Any], constants: list[Any]) -> bool:
    """Whether f(x) + C and g(x) + C are the same family: with C at 0, f - g is the same at every point."""
    if gold.free_symbols != answer.free_symbols or len(constants) != 1:
        return False
    (constant,) = constants
    if gold.coeff(constant) != 1 or answer.coeff(constant) != 1:
        return False
    points = _points([symbol for symbol in symbols if symbol != constant], discrete=False, signed=True)
    gaps = [_value((gold - answer).subs(constant, 0), point) for point in points]
    return None not in gaps and all(_equal_values(gap, gaps[0]) for gap in gaps[1:])


def _real_roots(value: Any) -> Any:
    """With odd roots of negative numbers real: sqrt[3]{-27} is -3."""
    import sympy

    def is_odd_root(part: Any) -> bool:
        return isinstance(part, sympy.Pow) and part.exp.is_Rational and part.exp.q % 2 == 1 and part.exp.q > 1

    def real(part: Any) -> Any:
        size = sympy.Pow(sympy.Abs(part.base), part.exp)
        return sympy.sign(part.base) * size if part.exp.p % 2 else size

    return value.replace(is_odd_root, real)


def _natural_logarithms(value: Any) -> Any:
    r"""With \log for \ln."""
    import sympy

    return value.replace(
        lambda part: isinstance(part, sympy.log) and len(part.args) == 2 and part.args[1] == 10,
        lambda part: sympy.log(part.args[0]),
    )


COUNTS = frozenset("nN")
"""Names of whole numbers, which are positive."""
_SIZES = ((7, 11), (20, 13), (11, 5), (46, 7), (313, 12), (2003, 7))
_WHOLE = ((2, 1), (3, 2), (5, 4), (9, 3), (16, 5), (24, 7))
"""Whole numbers of every residue of 2, 3, 4 and 5, and how much more each further variable is."""


def _points(symbols: list[Any], *, discrete: bool, signed: bool) -> list[dict[Any, Any]]:
    """Values of the variables: fractions of either sign, small and large, or whole numbers for what counts."""
    import sympy

    points = []
    for k in range(POINTS):
        point = {}
        for i, symbol in enumerate(symbols):
            if discrete:
                point[symbol] = sympy.Integer(_WHOLE[k][0] + i * _WHOLE[k][1])
                continue
            above, below = _SIZES[(k + i) % POINTS]
            size = sympy.Rational(above + 2 * i, below)
            negative = (k + i * (k > 1)) % 2 and (signed or symbol.name not in COUNTS)
            point[symbol] = -size if negative else size
        points.append(point)
    return points


def _without_functions(value: Any) -> Any:
    """Unknown functions and derivatives as symbols of their own."""
    import sympy
    from sympy.core.function import AppliedUndef

    whole = sympy.Integral | sympy.Derivative
    value = value.replace(
        lambda part: isinstance(part, whole) and bool(part.atoms(AppliedUndef)),
        lambda part: sympy.Symbol(f"[{part}]"),
    )
    return value.replace(
        lambda part: isinstance(part, AppliedUndef | sympy.Derivative), lambda part: sympy.Symbol(f"[{part}]")
    )


def _value(value: Any, point: dict[Any, Any] | None = None, digits: int = DIGITS) -> Any:
    """A number (real or complex), to so many digits; None where there is none."""
    import sympy

    if point:
        value = value.subs(point)
    if value.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit):
        value = value.doit()
    value = value.evalf(digits, maxn=digits + 400)
    if value.is_infinite:
        return value
    real, imaginary = value.as_real_imag() if not value.is_real else (value, sympy.Integer(0))
    if not (real.is_Number and imaginary.is_Number) or sympy.nan in (real, imaginary):
        return None
    return value


def _equal_values(gold: Any, answer: Any) -> bool | None:
    if gold is None or answer is None:
        return None
    if gold.is_infinite or answer.is_infinite:
        return bool(gold == answer)
    gap, size = abs(gold - answer), max(abs(gold), abs(answer))
    if (gold == 0 or answer == 0) and 0 < size < 1e-30:
        return None  # what is left of terms that cancel
    return bool(gap == 0 or gap < size * rational(EQUAL))


def _equal_constants(gold: Any, answer: Any) -> bool | None:
    """Constants; large ones to the last place before the point, so that 10^50 is not 10^50 + 1."""
    import sympy

    left, right = _value(gold), _value(answer)
    verdict = _equal_values(left, right)
    if verdict and not left.is_infinite:
        exact = gold.doit(), answer.doit()
        if exact[0].is_Rational and exact[1].is_Rational:
            return bool(exact[0] == exact[1])
    if verdict and not left.is_infinite and abs(left) > 10**15:
        digits = DIGITS + int(sympy.log(abs(left), 10).evalf(5))
        if digits > MAX_POWER:
            return None
        left, right = _value(gold, digits=digits), _value(answer, digits=digits)
        return None if left is None or right is None else bool(abs(left - right) < EQUAL)
    return verdict


def _by_simplifying(gold: Any, answer: Any) -> bool | None:
    """True where sympy shows that nothing is left of the difference; it never shows the contrary here."""
    import sympy

    try:
        return True if sympy.simplify(gold - answer) == 0 else None
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None


def close(gold: Any, answer: Any, decimal: Number, *, is_gold: bool) -> bool | None:
    """Whether a decimal is the rounding of an exact value; `gold` and `answer` are expressions without variables."""
    left, right = _value(gold), _value(answer)
    if (
        left is None
        or right is None
        or left.is_infinite
        or right.is_infinite
        or not (left.is_real and right.is_real)
    ):
        return _equal_values(left, right)
    if _equal_values(left, right):
        return True
    exact = Number(Fraction(0), None, Fraction(0))
    first, second = Fraction(str(left)), Fraction(str(right))
    pair = (decimal, exact) if is_gold else (exact, decimal)
    return near(abs(first - second), max(abs(first), abs(second)), *pair)
