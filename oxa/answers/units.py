r"""Units and words round a number: `15\text{ cm}^2`, `12 km/h`, `$5`, `7 apples`, `100元`.

A measure is a product of powers of base units with a factor, so that 5 m is 500 cm and no 5 cm; any other word is a
noun, which is compared by its stem. Nothing is said of a unit that is missing: what may be left out is the reader's
matter (quantities.py).
"""

from __future__ import annotations

import re
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


_MEASURES: dict[str, tuple[str, str]] = {}


def _measure(base: str, factor: str, names: str) -> None:
    for name in names.split(","):
        _MEASURES[name.strip()] = base, factor


_measure("m", "1", "m, meter, metre, 米")
_measure("m", "1/100", "cm, centimeter, centimetre, 厘米")
_measure("m", "1/10", "dm, decimeter, decimetre, 分米")
_measure("m", "1/1000", "mm, millimeter, millimetre, 毫米")
_measure("m", "1000", "km, kilometer, kilometre, 千米, 公里")
_measure("in", "1", "in, inch, inche")
_measure("in", "12", "ft, foot, feet, 英尺")
_measure("in", "36", "yd, yard")
_measure("in", "63360", "mi, mile")
_measure("s", "1", "s, sec, second, 秒")
_measure("s", "60", "min, minute, 分钟")
_measure("s", "3600", "h, hr, hour, 小时, 时")
_measure("day", "1", "day, d, 天, 日")
_measure("day", "7", "week, wk, 周")
_measure("month", "1", "month, 个月, 月")
_measure("month", "12", "year, yr, 年")
_measure("g", "1", "g, gram, gramme, gm, 克")
_measure("g", "1000", "kg, kilogram, kilo, 千克, 公斤")
_measure("g", "1/1000", "mg, milligram, 毫克")
_measure("g", "1000000", "tonne, ton, 吨")
_measure("lb", "1", "lb, pound, lbs")
_measure("lb", "1/16", "oz, ounce")
_measure("l", "1", "l, liter, litre, 升")
_measure("l", "1/1000", "ml, milliliter, millilitre, 毫升")
_measure("gal", "1", "gal, gallon")
_measure("dollar", "1", f"dollar, usd, {DOLLAR}, buck, 美元")
_measure("dollar", "1/100", "cent, ¢")
_measure("euro", "1", "euro, eur, €")
_measure("gbp", "1", "£, gbp")
_measure("yuan", "1", "yuan, rmb, cny, ¥, 元, 块")
_measure("rupee", "1", "rupee, rs, inr, ₹")
_measure("J", "1", "j, joule")
_measure("J", "1000", "kj, kilojoule")
_measure("W", "1", "w, watt")
_measure("W", "1000", "kw, kilowatt")
_measure("N", "1", "n, newton")
_measure("V", "1", "v, volt")
_measure("A", "1", "a, amp, ampere")
_measure("ohm", "1", r"ohm, \omega")
_measure("Hz", "1", "hz, hertz")
_measure("Pa", "1", "pa, pascal")
_measure("K", "1", "k, kelvin")
_measure("degC", "1", "°c, celsius")
_measure("degF", "1", "°f, fahrenheit")
_measure("rad", "1", "rad, radian, 弧度")
_measure("mol", "1", "mol, mole")
_measure("eV", "1", "ev")
_measure("T", "1", "t, tesla")
_measure("bit", "1", "bit")
_measure("bit", "8", "byte")

_ALIASES = {
    "mph": "mile/hour", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s", "cc": "cm^3", "sqm": "m^2",
    "平方米": "m^2", "平方厘米": "cm^2", "平方千米": "km^2", "平方分米": "dm^2", "立方米": "m^3", "立方厘米": "cm^3",
}  # fmt: skip
_NOTHING = frozenset(
    (
        "单位",
        "unit",
        "units",
        "approximately",
        "about",
        "roughly",
        "exactly",
        "only",
        "total",
        "of",
        "the",
        "a",
        "an",
        "each",
    )
)
_COUNTERS = frozenset("个只条本岁名位种次件张棵辆头页题分对组套支盒箱袋斤里号度倍") | {"平方", "立方"}
AMBIGUOUS = frozenset("msghdlnjwvakt") | {"in"}
"""Single letters that are a variable as often as a unit."""
_PIECE = re.compile(
    rf"(?P<power>\^\s*(?:\{{\s*(-?\d)\s*\}}|(-?\d)))|(?P<per>/|\bper\b|每)|(?P<word>[^\W\d_]+\.?|°[CF]|[{DOLLAR}€£¥₹¢]|\\[oO]mega)|(?P<times>\\cdot|\*|-|\.)|(?P<skip>[\s{{}}{TEXT}{END}()]+)"
)
_CJK = re.compile("[\u3400-\u9fff]")


def read(text: str) -> Unit | None:
    """The unit that a text names, or None where it holds what is no word of one."""
    powers: dict[str, int] = {}
    factor, nouns = Fraction(1), set()
    sign, raised, last, at = 1, 0, None, 0
    text = re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1 / \2", text.replace(r"\mu ", "µ"))
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None:
            return None
        at = match.end()
        if match["per"]:
            sign = -1
        elif match["power"]:
            if last is None:
                return None
            power = int(match[2] or match[3]) - 1
            base, size, direction = last
            powers[base] = powers.get(base, 0) + direction * power
            factor *= size ** (direction * power)
            last = None
        elif match["word"]:
            word = match["word"].rstrip(".")
            lower = word.lower()
            if lower in ("square", "sq", "squared", "cubic", "cu", "cubed", "平方", "立方"):
                power = 2 if lower in ("square", "sq", "squared", "平方") else 3
                if lower in ("squared", "cubed"):
                    if last is None:
                        return None
                    base, size, direction = last
                    powers[base] = powers.get(base, 0) + direction * (power - 1)
                    factor *= size ** (direction * (power - 1))
                else:
                    raised = power
                continue
            if lower in _NOTHING:
                continue
            if lower in _ALIASES:
                alias = read(_ALIASES[lower])
                assert alias is not None
                for base, power in alias.powers:
                    powers[base] = powers.get(base, 0) + sign * power
                factor *= alias.factor**sign
                last = None
                continue
            measure = _MEASURES.get(lower) or _MEASURES.get(_stem(lower))
            if measure is None:
                if _CJK.search(word) and word in _COUNTERS:
                    continue
                nouns.add(_stem(lower))
                last = None
                continue
            base, size = measure[0], Fraction(measure[1])
            power = raised or 1
            powers[base] = powers.get(base, 0) + sign * power
            factor *= size ** (sign * power)
            last, raised = (base, size, sign), 0
    return Unit(frozenset((base, power) for base, power in powers.items() if power), factor, frozenset(nouns))


def is_measure(word: str) -> bool:
    """Whether a word is known as a unit."""
    return word.lower() in _MEASURES or word.lower() in _ALIASES or _stem(word.lower()) in _MEASURES


def _stem(word: str) -> str:
    for ending, rest in (("ies", "y"), ("sses", "ss"), ("es", "e"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word[: -len(ending)] + rest
    return word
