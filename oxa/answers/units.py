r"""Units and words round a number: `15\text{ cm}^2`, `12 km/h`, `$5`, `7 apples`, `100元`.

A measure is a product of powers of base units with a factor, so that 5 m is 500 cm and no 5 cm; any other word is a
noun, which is compared by its stem. Nothing is said of a unit that is missing: what may be left out is the reader's
matter (quantities.py).
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from oxa.answers.spelling import DOLLAR, END, TEXT


class Unit(NamedTuple):
    powers: frozenset[tuple[str, int]]
    """Base unit and power; empty of nouns."""
    factor: Fraction
    """How many of the base units this unit is."""
    nouns: frozenset[str]
    """Words that are no measure, without their plural's ending."""


_MEASURES: dict[str, tuple[dict[str, int], Fraction]] = {}


def _measure(base: str, factor: str, names: str) -> None:
    """Names of `factor` times a product of base units, `g m^2 s^-2`."""
    powers = {}
    for part in base.split():
        name, _, power = part.partition("^")
        powers[name] = int(power or 1)
    for name in names.split(","):
        _MEASURES[name.strip()] = powers, Fraction(factor)


_measure("m", "1", "m, meter, metre, 米")
_measure("m", "1/100", "cm, centimeter, centimetre, 厘米")
_measure("m", "1/10", "dm, decimeter, decimetre, 分米")
_measure("m", "1/1000", "mm, millimeter, millimetre, 毫米")
_measure("m", "1000", "km, kilometer, kilometre, 千米, 公里")
_measure("m", "127/5000", "in, inch, inche")
_measure("m", "381/1250", "ft, foot, feet, 英尺")
_measure("m", "1143/1250", "yd, yard")
_measure("m", "201168/125", "mi, mile")
_measure("s", "1", "s, sec, second, 秒")
_measure("s", "1/1000", "ms, millisecond")
_measure("s", "60", "min, minute, 分钟")
_measure("s", "3600", "h, hr, hour, 小时, 时")
_measure("s", "86400", "day, d, 天, 日")
_measure("s", "604800", "week, wk, 周")
_measure("month", "1", "month, 个月, 月")
_measure("month", "12", "year, yr, 年")
_measure("g", "1", "g, gram, gramme, gm, 克")
_measure("g", "1000", "kg, kilogram, kilo, 千克, 公斤")
_measure("g", "1/1000", "mg, milligram, 毫克")
_measure("g", "1000000", "tonne, 吨")
_measure("lb", "1", "lb, pound, lbs")
_measure("lb", "1/16", "oz, ounce")
_measure("m^3", "1/1000", "l, liter, litre, 升")
_measure("m^3", "1/1000000", "ml, milliliter, millilitre, 毫升")
_measure("gal", "1", "gal, gallon")
_measure("dollar", "1", f"dollar, usd, {DOLLAR}, buck, 美元")
_measure("dollar", "1/100", "cent, ¢")
_measure("euro", "1", "euro, eur, €")
_measure("gbp", "1", "£, gbp")
_measure("yuan", "1", "yuan, rmb, cny, ¥, 元, 块")
_measure("rupee", "1", "rupee, rs, inr, ₹")
_measure("g m s^-2", "1000", "n, newton")
_measure("g m^2 s^-2", "1000", "j, joule")
_measure("g m^2 s^-2", "1000000", "kj, kilojoule")
_measure("g m^2 s^-3", "1000", "w, watt")
_measure("g m^2 s^-3", "1000000", "kw, kilowatt")
_measure("g m^-1 s^-2", "1000", "pa, pascal")
_measure("s^-1", "1", "hz, hertz")
_measure("F", "1", "f, farad")
_measure("C", "1", "c, coulomb")
_measure("T", "1", "tesla")
_measure("V", "1", "v, volt")
_measure("A", "1", "a, amp, ampere")
_measure("ohm", "1", r"ohm, \omega")
_measure("temperature", "1", "k, kelvin")
_measure("degC", "1", "°c, celsius")
_measure("degF", "1", "°f, fahrenheit")
_measure("rad", "1", "rad, radian, 弧度")
_measure("mol", "1", "mol, mole")
_measure("eV", "1", "ev")
_measure("bit", "1", "bit")
_measure("bit", "8", "byte")
OTHER_SCALES = (
    {"gbp", "lb"},
    {"temperature", "degC", "degF"},
    {"lb", "g"},
    {"gal", "m"},
    {"s", "month"},
    {"eV", "g"},
)
"""Base units of one measure that are not converted here, or share a name."""

_ALIASES = {
    "mph": "mile/hour", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s", "cc": "cm^3", "sqm": "m^2",
    "平方米": "m^2", "平方厘米": "cm^2", "平方千米": "km^2", "平方分米": "dm^2", "立方米": "m^3", "立方厘米": "cm^3",
}  # fmt: skip
_EMPTY = "单位 unit units approximately about roughly exactly only total of the a an each"
_NOTHING = frozenset(_EMPTY.split())
_COUNTERS = frozenset("个只条本岁名位种次件张棵辆头页题分对组套支盒箱袋斤里号度倍") | {"平方", "立方"}
AMBIGUOUS = frozenset("msg")
"""Single letters that are a variable as often as a unit."""
_PIECE = re.compile(
    rf"(?P<power>\^\s*(?:\{{\s*(-?\d)\s*\}}|(-?\d)))|(?P<per>/|\bper\b|每)|(?P<word>[^\W\d_]+\.?|°[CF]|[{DOLLAR}€£¥₹¢]|\\[oO]mega)|(?P<times>\\cdot|\*|-|\.)|(?P<skip>[\s{{}}{TEXT}{END}()]+)"
)


def read(text: str) -> Unit | None:
    """The unit that a text names, or None where it holds what is no word of one."""
    powers: Counter[str] = Counter()
    factor, nouns = Fraction(1), set()
    sign, raised, at = 1, 1, 0
    last: tuple[dict[str, int], Fraction, int] | None = None  # the measure that a power behind it belongs to

    def times(measure: dict[str, int], size: Fraction, power: int) -> None:
        nonlocal factor
        for base, exponent in measure.items():
            powers[base] += exponent * power
        factor *= size**power

    text = re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1 / \2", text.replace(r"\mu ", "µ"))
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            return None
        at = match.end()
        if match["per"]:
            sign = -1
        elif match["power"]:
            power = int(match[2] or match[3])
            if last is None or abs(power) > MAX_POWER:
                return None
            times(last[0], last[1], last[2] * (power - 1))
            last = None
        elif match["word"]:
            spelt = match["word"].rstrip(".")
            word = spelt.lower()
            if word in _MEANINGFUL or (len(word) == 1 and word.isascii() and spelt not in _LETTERS):
                return None
            if word in _POWERS:
                if word.endswith("ed"):  # cm squared
                    if last is None:
                        return None
                    times(last[0], last[1], last[2] * (_POWERS[word] - 1))
                else:
                    raised = _POWERS[word]
            elif word in _ALIASES:
                alias = read(_ALIASES[word])
                assert alias is not None
                times(dict(alias.powers), alias.factor, sign)
                last = None
            elif not _is_other_case(spelt) and (
                (measure := _MEASURES.get(word) or _MEASURES.get(_stem(word))) is not None
            ):
                times(*measure, sign * raised)
                last, raised = (*measure, sign), 1
            elif word in _NOTHING:
                last = {}, Fraction(1), sign  # units^2
            elif word[0] in _CHINESE_CHANGING:
                return None
            elif word not in _COUNTERS:
                nouns.add(_stem(word) if len(word) > 2 else spelt)
                last = None
    return Unit(frozenset((base, power) for base, power in powers.items() if power), factor, frozenset(nouns))


MAX_POWER = 9
_POWERS = {"square": 2, "sq": 2, "squared": 2, "平方": 2, "cubic": 3, "cu": 3, "cubed": 3, "立方": 3}


_LETTERS = frozenset("msghdlLNJWVAKFC")
"""Symbols of one letter."""
_CHANGING = (
    "or and not no than more less least most at is are was isn't wrong incorrect fails false divided "
    "times plus minus dozen half halves third thirds quarter quarters fourth fourths fifth fifths sixths "
    "sevenths eighths ninths tenth tenths hundredth hundredths thousandth thousandths lakh lakhs crore "
    "factorial base mod over power percent degrees if where when for with without between from to up only "
    "but wait so x y z gross root roots doubled tripled ppm ppb negative positive choose log below above zero"
)
_MEANINGFUL = frozenset(_CHANGING.split())
"""Words that change what a number says, or that belong to no unit."""
_CHINESE_CHANGING = "十百千万亿折成半多余几以左"
"""What such words begin with in Chinese: 3千, 8折, 3以上, 3左右."""


def _is_other_case(word: str) -> bool:
    """mW and MW, Mg and mg: symbols whose prefix is told by its case."""
    return (
        len(word) == 2
        and word[0].isupper()
        and word not in ("Hz", "Pa", "KM", "CM", "MM", "KG", "FT", "Km", "Cm", "Kg", "Ft")
    )


def is_measure(word: str) -> bool:
    """Whether a word is known as a unit."""
    return word.lower() in _MEASURES or word.lower() in _ALIASES or _stem(word.lower()) in _MEASURES


def _stem(word: str) -> str:
    for ending, rest in (("ies", "y"), ("sses", "ss"), ("es", "e"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word[: -len(ending)] + rest
    return word
