r"""Whether an answer is equal to a gold answer: True, False, or None where it cannot be told.

Both are brought to one spelling (spelling.py). Then each kind of answer is tried in turn, and the first that reads both
and decides has the word: choice letters, numbered statements, times, numbers in a base, ratios, residues
(notations.py), regions of the line, matrices, lists and tuples, equations, words, and last quantities and expressions.
Where one is read as one thing and the other as another, the answer is not equal, but neither known to be wrong:
different kinds of answers are often two forms of one.

The rules are ours. math-verify, whose parser reads the expressions (expressions.py), compares more loosely: it takes
letters for factors that commute (ABC, CAB), subscripts of bases for names, an equation for its right side, and
whatever is below 1e-15 for zero.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial

from oxa.answers import lists, notations, quantities, regions, relations, spelling, structure
from oxa.answers.relations import UNDECIDED, Decision, Equal
from oxa.answers.spelling import END, TEXT, THIN

MAX_DEPTH = 6  # of lists in lists

_LABEL = re.compile(
    rf"^(?:{TEXT}[^{END}]*\b(?:is|are|equals)\s*:?\s*{END}\s*(?=[-+\d\\])|{TEXT}?\s*\**\s*(?:therefore|thus|hence|so)?,?\s*(?:the\s+)?(?:(?:final|correct|right)\s+)?(?:answers?|result|solutions?|it|this)\s*\**\s*(?:is|are|:|=)\s*\**\s*{END}?\s*:?\s*"
    rf"|{TEXT}?\s*(?:最终)?(?:答案|答)(?:是|为)?\s*[::]?\s*{END}?\s*)",
    re.IGNORECASE,
)
_TRAILING = re.compile(rf"(?:[\s{THIN}]|(?<![.\\])\.(?!\.)|[,;:]|\*\*)+$")
_WHOLE = (
    r"\\in\s*\\(?:mathbb|mathbf|Bbb)\s*\{?\s*[ZN]\s*\}?(?:\s*[\^_]\s*\{?[+*]\}?)?|\\in\s*Z"
    rf"|{TEXT}?\s*(?:is an? (?:positive |non-?negative )?integer|any integer|为整数|是整数)\s*{END}?"
)
_INTEGER_NAME = re.compile(
    rf",?\s*(?:{TEXT}?\s*(?:where|for|with|for all|for any|for some|其中)?\s*{END}?)?\s*"
    rf"\(?\s*([a-z])\s*({_WHOLE})\s*\)?\s*\.?$"
)


_SAME = re.compile(
    rf"\s*[,;(]?\s*{TEXT}?\s*(?:or,? equivalently,?|equivalently|i\.\s?e\.,?|that is,?|which is|即)\s*,?\s*{END}?\s*"
)
_ASIDE = re.compile(
    rf"(?<=\S)[\s{THIN}]*(?:{TEXT}\s*)?\((?!\s*{TEXT}?\s*(?:base|mod)\b)(?=[^()]*[a-z]{{3,}}\s)[^()\\^=+*/_]*\)\s*{END}?$"
    rf"|,?\s*{TEXT}?\s*for (?:all|any|every) (?:real )?(?:numbers? )?\s*{END}?\s*[a-z](?:\s*\\in\s*\\mathbb\{{R\}})?$"
)
"""What is said behind an answer: where it is, or for which x it holds."""


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    """The one spelling of an answer, without what is said before it and points behind it."""
    text = structure.strip(spelling.canonical(text))
    text = structure.one_line(_LABEL.sub("", text, count=1))
    text = _SAME.sub(" = ", _ASIDE.sub("", text))
    previous = None
    while previous != text:
        previous = text
        text = structure.strip(_TRAILING.sub("", text))
    return text


def equal(gold: str, answer: str) -> bool | None:
    """Whether an answer, as it was written, equals a gold answer; None where it cannot be told."""
    return _equal(clean(gold), clean(answer), 0)


def readable(text: str) -> bool:
    """Whether any of the readers takes an answer for what it reads."""
    return _readable(clean(text), 0)


def _readable(text: str, depth: int) -> bool:
    if not text or depth > MAX_DEPTH or not _balanced(text):
        return False
    if any(read(text) is not None for read, _ in notations.READERS) or regions.read(text) is not None:
        return True
    if notations.words(text) is not None:
        return True
    if (family := _INTEGER_NAME.search(text)) and family.start():
        return _readable(text[: family.start()], depth + 1)
    if (match := _INTERVAL.fullmatch(text)) and (ends := structure.items(f"({match[2]})")):
        return all(_readable(part, depth + 1) for part in ends.parts)
    many = lists.items(text, partial(_equal, depth=depth + 1))
    if many is not None:
        return all(_readable(part, depth + 1) for part in many.parts)
    if (form := structure.matrix(text)) is not None:
        return all(_readable(cell, depth + 1) for row in form[1] for cell in row)
    sides, signs = structure.relation(text)
    if signs:
        return all(_readable(side, depth + 1) for side in sides)
    return quantities.sound(text) is not None


def _balanced(text: str) -> bool:
    plain = re.sub(r"\\[{}]", "", text)
    return plain.count("{") == plain.count("}") and text.count(r"\begin") == text.count(r"\end")


_SPACES = re.compile(rf"(?<!\d)[\s{THIN}]+|[\s{THIN}]+(?!\d)")  # but for those between digits


def _equal(gold: str, answer: str, depth: int) -> bool | None:
    if not gold or not answer or depth > MAX_DEPTH:
        return None
    if _SPACES.sub("", gold) == _SPACES.sub("", answer):
        return True if _readable(gold, depth) else None
    amounts = quantities.read(gold), quantities.read(answer)
    if amounts[0] and amounts[1] and amounts[0].number is not None and amounts[1].number is not None:
        verdict = quantities.equal(amounts[0], amounts[1])
        if verdict or "," not in gold + answer:
            return verdict
    verdicts = [
        compare(first, second)
        for read, compare in notations.READERS
        if (first := read(gold)) is not None and (second := read(answer)) is not None
    ]
    if True in verdicts or False in verdicts:
        return None if True in verdicts and False in verdicts else True in verdicts
    chosen = notations.choice(gold), notations.choice(answer)
    if (chosen[0] is None) != (chosen[1] is None) and (rest := (chosen[0] or chosen[1]).rest):  # type: ignore[union-attr]
        same = _equal(rest, answer, depth + 1) if chosen[0] else _equal(gold, rest, depth + 1)
        return True if same else None
    numbered = [notations.statements(text) for text in (gold, answer)]
    if any(numbered) and not all(numbered):
        return _as_statements(numbered[0] or numbered[1] or (), answer if numbered[0] else gold)
    deeper = partial(_equal, depth=depth + 1)
    for comparison in (
        _families,
        _regions,
        lists.compare_matrices,
        lists.compare,
        relations.compare,
        _words,
        _quantities,
    ):
        verdict, decided = comparison(gold, answer, deeper)
        if decided:
            return verdict
    return None


def _as_statements(numbered: tuple[str, ...], other: str) -> bool | None:
    """`(1)(3)` against `1, 3`: the same statements, or nothing can be told; no product is meant."""
    many = structure.items(other)
    return True if many is not None and sorted(many.parts) == sorted(numbered) else None


def _families(gold: str, answer: str, equal: Equal) -> Decision:
    r"""Solutions with a whole number of free choice, `\frac\pi4 + k\pi, k \in \mathbb{Z}`: its name is bound."""
    first, second = _INTEGER_NAME.search(gold), _INTEGER_NAME.search(answer)
    if (first is None) != (second is None):
        stripped = [
            text[: match.start()] if match else text for text, match in ((gold, first), (answer, second))
        ]
        return (True, True) if all(stripped) and equal(*stripped) else UNDECIDED
    if not first or not second or not first.start() or not second.start():
        return UNDECIDED
    if re.sub(r"[\s\\{}]|math(?:bb|bf)|Bbb", "", first[2]) != re.sub(
        r"[\s\\{}]|math(?:bb|bf)|Bbb", "", second[2]
    ):
        return None, True
    bound = re.compile(rf"(?<![A-Za-z\\]){re.escape(second[1])}(?![A-Za-z])")
    renamed = bound.sub(first[1], answer[: second.start()])
    return (True, True) if equal(gold[: first.start()], renamed) else (None, True)


def _regions(gold: str, answer: str, equal: Equal) -> Decision:
    first, second = regions.read(gold), regions.read(answer)
    if first is None or second is None:
        region = first or second
        if region is not None and not region.plain and region.pieces:
            return None, True
        return _symbolic_interval(gold, answer, equal)
    if first.plain and second.plain:
        return UNDECIDED  # points of the plane, rather
    return regions.equal(first, second), True


_INTERVAL = re.compile(r"([(\[\]])([^()\[\]]*)([)\]\[])")


def _symbolic_interval(gold: str, answer: str, equal: Equal) -> Decision:
    """Intervals with a parameter in their ends: bracket by bracket, end by end."""
    first, second = _INTERVAL.fullmatch(gold), _INTERVAL.fullmatch(answer)
    if not first or not second or ("[" not in gold + answer and "]" not in gold + answer):
        return UNDECIDED
    ends = [structure.split(match[2], re.compile(r"\s*[,;]\s*")) for match in (first, second)]
    if len(ends[0]) != 2 or len(ends[1]) != 2:
        return UNDECIDED
    closed = [(match[1] == "[", match[3] == "]") for match in (first, second)]
    verdict = lists.all_equal(equal(a, b) for a, b in zip(*ends, strict=True))
    if closed[0] != closed[1]:
        return (False if verdict else None), True
    return verdict, True


# ---- words and quantities ----


def _words(gold: str, answer: str, equal: Equal) -> Decision:
    if (
        quantities.sound(gold) is not None
        and quantities.sound(answer) is not None
        and not (_wordy(gold) and _wordy(answer))
    ):
        return UNDECIDED
    first, second = notations.words(gold), notations.words(answer)
    if first is None or second is None:
        return UNDECIDED
    verdict = notations.words_equal(first, second)
    return verdict, verdict is not None


def _wordy(text: str) -> bool:
    return not re.search(r"\d", text)


def _quantities(gold: str, answer: str, equal: Equal) -> Decision:
    first, second = quantities.sound(gold), quantities.sound(answer)
    if first is None or second is None:
        return UNDECIDED
    letters = [re.sub(r"\s", "", text) for text in (gold, answer)]
    if all(re.fullmatch(r"[A-Z]{2,}|[a-z]{3,}", text) for text in letters):
        return None, True  # names, whose letters do not commute
    return quantities.equal(first, second), True
