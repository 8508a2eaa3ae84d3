r"""Answers with a notation of their own: choice letters, numbered statements, times, numbers in a base, ratios, words.

Each notation has a reader, which gives its value or None, and what compares two values.

Words are equal up to case, articles, punctuation and what LaTeX makes of their font. Different words are *different
answers* only within one of the closed groups below (yes and no, weekdays, …): elsewhere one answer has many wordings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from oxa.answers import numbers, structure
from oxa.answers.spelling import END, TEXT, THIN

_SPACES = re.compile(rf"[\s{THIN}{TEXT}{END}]+")


def _bare(text: str) -> str:
    """Without marks and fonts, single spaces."""
    return _SPACES.sub(" ", text).strip()


# ---- choices ----


class Choice(NamedTuple):
    letters: str
    rest: str
    """What the option says, if it was copied with the letter."""


_LETTERS = re.compile(r"\(?([A-J](?:\s*[,;]?\s*(?:and\s+)?[A-J])*)\)?[.:]?")
_OPTION = re.compile(
    r"(?:(?:the )?(?:correct )?(?:option|choice|answer)s?\s*(?:is|are|:)?\s*|选(?:择|项)?\s*(?:[为是::]\s*)?)",
    re.IGNORECASE,
)
_WITH_TEXT = re.compile(
    r"(?:\(\s*([A-J])\s*\)|([A-J])(?:[.)]|:(?=\s[^=<>]*$)))(?:\s+|(?=[\\\d$(]))"
    r"(?!(?:(?:and|or|,)\s*)?(?:\(\s*[A-J]\s*\)|[A-J]\s*(?:$|[,;.]|and\b|or\b)))(\S.*)",  # that is another choice
    re.DOTALL,
)
_SMALL = re.compile(r"\(([a-j])\)")


def choice(text: str) -> Choice | None:
    """The letters of the options chosen; None of anything else."""
    text = _bare(text)
    text = _OPTION.sub("", text, count=1) if _OPTION.match(text) else text
    if match := _LETTERS.fullmatch(text):
        letters = "".join(re.findall(r"[A-J]", match[1].replace("and", "")))
        divided = not match[1].isalpha() or len(letters) == 1
        if len(set(letters)) < len(letters) or (
            len(letters) > 1 and not divided and list(letters) != sorted(letters)
        ):
            return None
        return Choice("".join(sorted(letters)), "")
    if match := _SMALL.fullmatch(text):
        return Choice(match[1].upper(), "")
    if match := _WITH_TEXT.fullmatch(text):
        return Choice(match[1] or match[2], match[3].strip())
    return None


def choices_equal(gold: Choice, answer: Choice) -> bool | None:
    """Whether the same options were chosen; None where one letter comes with two contents."""
    if gold.letters != answer.letters:
        return False
    return True if not gold.rest or not answer.rest or gold.rest == answer.rest else None


# ---- numbered statements ----

_STATEMENT = re.compile(r"\\textcircled\s*\{?\s*(\d+)\s*\}?|\((\d{1,2})\)|\(([ivx]+)\)")
_BETWEEN = re.compile(r"(?:\s|,|;|and|和|与)*")


def statements(text: str) -> tuple[str, ...] | None:
    r"""The numbers of `(1)(3)(4)`, `\textcircled{1}\textcircled{3}` or `(i), (iii)`; one alone must be circled."""
    text = _bare(text)
    numbers, at = [], 0
    while at < len(text):
        match = _STATEMENT.match(text, at)
        if match is None:
            return None
        numbers.append(match[1] or match[2] or match[3])
        between = _BETWEEN.match(text, match.end())
        at = between.end() if between else match.end()
    if not numbers or (len(numbers) == 1 and "circled" not in text):
        return None
    return tuple(numbers)


def statements_equal(gold: tuple[str, ...], answer: tuple[str, ...]) -> bool | None:
    """The same statements; where the gold is not in ascending order, in its order."""
    if gold == answer:
        return True
    if sorted(gold) != sorted(answer):
        return False
    return True if list(gold) == sorted(gold, key=lambda text: (len(text), text)) else None


# ---- times of day ----


class Clock(NamedTuple):
    hours: int
    minutes: int
    half: str
    """am, pm or nothing."""


_CLOCK = re.compile(r"(\d{1,2})\s*:\s*([0-5]\d)(?:\s*:\s*00)?\s*(?:([ap])\s*\.?\s*m\.?)?", re.IGNORECASE)


def clock(text: str) -> Clock | None:
    """`3:30`, `15:30`, `3:30 p.m.`; None of anything else."""
    match = _CLOCK.fullmatch(_bare(text))
    if match is None or int(match[1]) > 24:
        return None
    return Clock(int(match[1]), int(match[2]), (match[3] or "").lower())


def clocks_equal(gold: Clock, answer: Clock) -> bool | None:
    """The same time; where one says no half of the day, on the dial of twelve hours."""
    if gold.half == answer.half:
        return gold[:2] == answer[:2]
    if gold.half and answer.half:
        return False
    first, second = (clock.hours % 12 + (12 if clock.half == "p" else 0) for clock in (gold, answer))
    if gold.minutes != answer.minutes or first % 12 != second % 12:
        return False
    with_half, without = (gold, answer) if gold.half else (answer, gold)
    if without.hours > 12 or without.hours == 0:
        return without.hours % 24 == with_half.hours % 12 + (12 if with_half.half == "p" else 0)
    return True


# ---- words ----

_TOKEN = re.compile(r"(?P<number>(?<![\w.])[+-]?\d+(?:\.\d+)?)|(?P<word>[^\W\d_]+(?:'[a-z]+)?)|(?P<other>\S)")
_DROPPED = frozenset(".,;:!?\"'`*_()") | {"a", "an", "the"}
_SYNONYMS = {"dne": "does not exist", "doesn't exist": "does not exist", "no solutions": "no solution"}
_GROUPS = tuple(
    frozenset(group.split())
    for group in (
        "yes no", "true false", "even odd neither", "north south east west northeast northwest southeast southwest",
        "monday tuesday wednesday thursday friday saturday sunday", "increasing decreasing", "acute obtuse right",
        "january february march april may june july august september october november december",
        "positive negative zero", "converges diverges", "convergent divergent", "parallel perpendicular",
        "ellipse hyperbola parabola circle", "rational irrational",
        "充分不必要条件 必要不充分条件 充要条件 既不充分也不必要条件",
        "是 否", "正确 错误", "quadranti quadrantii quadrantiii quadrantiv", "heads tails",
    )
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{4,}|(?![A-Z]{3})[^\W\d_]{3}|[\u3400-\u9fff]|\b[Nn][Oo]\b|\b(?:YES|DNE)\b")
_PRODUCT = re.compile(r"[b-df-hj-np-tv-z]{3}|[A-Z]{2,3}|[a-z]{1,2}")  # of variables, or a triangle
_FORMULA = re.compile(r"\\[A-Za-z]|[=<>^+|&/\\]|_\{|[A-Za-z]\s*[-(\[]|[)\]]\s*[A-Za-z]")


def words(text: str) -> str | None:
    """Words in one spelling, or None where there are none, or a formula is among them."""
    marked = TEXT in text
    text = _bare(text)
    if _FORMULA.search(re.sub(r"(?<=[a-z]{3})-(?=[a-z]{3})|(?<=[a-z]{3})\s*\(|\)\s*(?=[a-z]{3})", " ", text)):
        return None
    if not _WORD.search(text) or (
        _PRODUCT.fullmatch(text) and not marked and text.lower() not in ("no", "yes", "dne")
    ):
        return None
    tokens = (match[0].casefold() for match in _TOKEN.finditer(text))
    spelling = " ".join(token for token in tokens if token not in _DROPPED)
    return _SYNONYMS.get(spelling, spelling) or None


def words_equal(gold: str, answer: str) -> bool | None:
    """The same words; False only of two members of one closed group."""
    pair = {re.sub(r"(?<!\d) | (?!\d)", "", text) for text in (gold, answer)}
    if len(pair) == 1:
        return True
    return False if any(pair <= group for group in _GROUPS) else None


# ---- numbers in a base, ratios, residues ----

_DIGIT_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12,
    "sixteen": 16,
}  # fmt: skip
_BASE = rf"(\d+|{'|'.join(_DIGIT_WORDS)})"
_BASED = re.compile(
    rf"\(?\s*{TEXT}?(?:\\overline)?\{{?([0-9A-Fa-f][0-9A-Fa-f {THIN}]*?)\}}?{END}?\s*\)?\s*"
    rf"(?:_\s*\{{?\s*\(?\s*{TEXT}?\s*\(?(?:base\s*{END}?\s*)?{_BASE}\s*\)?{END}?\s*\)?\s*\}}?"
    rf"|\s*\(?{TEXT}?\s*\(?(?:in\s+)?base\s*[- ]?\s*{END}?\s*{_BASE}\)?{END}?\)?)"
)


def based(text: str) -> tuple[str, int] | None:
    """(digits, base) of `52_8`, `(4210)_5`, `1011_{\\text{two}}`, `52 (base 8)`."""
    match = _BASED.fullmatch(structure.strip(text))
    if match is None:
        return None
    name = match[2] or match[3]
    base = _DIGIT_WORDS.get(name) or int(name)
    digits = re.sub(rf"[ {THIN}]", "", match[1]).upper().lstrip("0") or "0"
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in digits):
        return None
    return digits, base


def bases_equal(gold: tuple[str, int], answer: tuple[str, int]) -> bool | None:
    """The same digits in one base; the same number in two bases is another answer, or not: nothing is told."""
    if gold[1] == answer[1]:
        return gold[0] == answer[0]
    return None if int(*gold) == int(*answer) else False


def ratio(text: str) -> tuple[Fraction, ...] | None:
    """The parts of `1 : 2 : 3` for one of the first."""
    text = re.sub(rf"\s*(?:{TEXT}\s*(?:to|:)\s*{END}|\bto\b)\s*", ":", structure.strip(text))
    parts = text.split(":")
    if len(parts) < 2:
        return None
    terms = [numbers.number(part) for part in parts]
    if None in terms or not all(term.value for term in terms if term):
        return None
    return tuple(term.value / terms[0].value for term in terms if term and terms[0])


def ratios_equal(gold: tuple[Fraction, ...], answer: tuple[Fraction, ...]) -> bool | None:
    """Ratios in whatever terms."""
    return gold == answer


_RESIDUE = re.compile(
    r"(?:[a-zA-Z]\s*(?:\\equiv|=)\s*)?(-?\d+)\s*(?:\(\s*)?(?:\\pmod\s*\{?\s*(\d+)\s*\}?|\\(?:bmod|mod)\s*\{?\s*(\d+)\s*\}?|mod\s*(\d+))\s*\)?"
)


def residue(text: str) -> tuple[int, int | None] | None:
    """(number, modulus) of `5 \\pmod{7}`; a whole number has no modulus."""
    if match := _RESIDUE.fullmatch(structure.strip(text).replace(TEXT, "").replace(END, "")):
        return int(match[1]), int(match[2] or match[3] or match[4])
    if re.fullmatch(r"-?\d+", text) and len(text) < numbers.MAX_DIGITS:
        return int(text), None
    return None


def residues_equal(gold: tuple[int, int | None], answer: tuple[int, int | None]) -> bool | None:
    """Congruent ones of one modulus; where one has none, the same number."""
    modulus = gold[1] or answer[1]
    if not modulus or (gold[1] and answer[1] and gold[1] != answer[1]):
        return None
    congruent = (gold[0] - answer[0]) % modulus == 0
    if gold[1] and answer[1]:
        return congruent
    return True if gold[0] == answer[0] else None if congruent else False


READERS: tuple[tuple[Callable[[str], Any], Callable[[Any, Any], bool | None]], ...] = (
    (choice, choices_equal),
    (statements, statements_equal),
    (clock, clocks_equal),
    (based, bases_equal),
    (residue, residues_equal),
    (ratio, ratios_equal),
)
"""What reads a kind of answer, and what compares two of it."""
