r"""Splits an answer at its top level: lists, tuples, sets, lines of an environment, alternatives and relations.

All functions work on canonical text (spelling.py) and read no values.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from oxa.answers.spelling import END, ROW, TEXT, THIN, closing

_OPEN, _CLOSE = "([{", ")]}"
_AND_OR = re.compile(
    rf"\s*{TEXT}\s*,?\s*(?:and|or|und|oder|和|或|与|及)\s*,?\s*{END}\s*|(?<![A-Za-z\\])\s*(?:and|or)\s+(?![A-Za-z]*{END})|\s*(?:或者|或|和|与)\s*|\s*\\l(?:and|or)(?![A-Za-z])\s*"
)
_ENVIRONMENT = re.compile(
    r"(?:\\\{\s*)?\\begin\{([dr]?cases|aligned|align\*?|array|gathered|split)\}(.*)\\end\{\1\}\s*(?:\\\})?",
    re.DOTALL,
)
_ROW = re.compile(rf"{ROW}|\\cr(?![A-Za-z])|\\newline(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv)(?![A-Za-z])|[=<>]")


class Items(NamedTuple):
    parts: tuple[str, ...]
    kind: str
    """tuple: in parentheses, in order; list: in square brackets, in order; set: in braces; bare: commas or words."""


def top_level(text: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    """Where the pattern matches outside of all brackets, and outside of a text's words but for `and` and `or`."""
    places, depth, i = [], 0, 0
    while i < len(text):
        char = text[i]
        if depth <= 0 and (match := pattern.match(text, i)) and match.end() > i:
            places.append((i, match.end()))
            i = match.end()
            continue
        if char == "\\":
            if text[i + 1 : i + 2] in ("{", "}"):
                depth += 1 if text[i + 1] == "{" else -1
                i += 2
                continue
            if text.startswith(r"\langle", i):
                depth += 1
            elif text.startswith(r"\rangle", i):
                depth -= 1
            elif text.startswith(r"\begin", i):
                depth += 1
            elif text.startswith(r"\end", i):
                depth -= 1
            name = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL).match(text, i)
            i = name.end() if name else i + 1
            continue
        if char == TEXT:
            depth += 1
        elif char == END:
            depth -= 1
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        i += 1
    return places


def split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The parts between the pattern's matches at the top level."""
    parts, start = [], 0
    for begin, end in top_level(text, pattern):
        parts.append(text[start:begin])
        start = end
    return [*parts, text[start:]]


def strip(text: str) -> str:
    """Without the spaces of any kind round it, and without braces that hold all of it."""
    text = text.strip().strip(THIN).strip()
    while text[:1] == "{" and text[-1:] == "}" and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip().strip(THIN).strip()
    if text[:1] == TEXT and text[-1:] == END and TEXT not in text[1:]:
        text = text[1:-1].strip()
    return text


_COMMA = re.compile(rf"\s*[,;](?:\s*(?:{TEXT}\s*(?:and|or|和|或)\s*{END}|(?:and|or)(?=\s)))?\s*")
_SEMICOLON = re.compile(r"\s*;\s*")


def items(text: str) -> Items | None:
    """What a list, tuple or set holds, or the lines of an environment; None of a single thing."""
    text = strip(text)
    match = re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL)
    if match and _encloses(text, 2, len(text) - 2):
        return Items(tuple(_elements(match[1])), "set")
    match = _ENVIRONMENT.fullmatch(text)
    if match:
        inner = re.sub(r"^\s*(?:\{[^{}]*\}|\[[^\]]*\])", "", match[2]) if match[1] == "array" else match[2]
        rows = [strip(row.replace("&", " ")).rstrip(",;.") for row in _ROW.split(inner)]
        rows = [row for row in rows if row]
        if any(_AND_OR.search(row) or "," in row for row in rows):
            rows = [part for row in rows for part in _elements(row)]
        return Items(tuple(rows), "bare")
    for opening, close, kind in (("(", ")", "tuple"), ("[", "]", "list")):
        if text[:1] == opening and text[-1:] == close and _encloses(text, 1, len(text) - 1):
            parts = _elements(text[1:-1])
            if len(parts) > 1:
                return Items(tuple(parts), kind)
            return None
    if match := re.fullmatch(r"\\langle(.*)\\rangle", text, re.DOTALL):
        parts = _elements(match[1])
        return Items(tuple(parts), "tuple") if len(parts) > 1 else None
    parts = _elements(text)
    return Items(tuple(parts), "bare") if len(parts) > 1 else None


def one_line(text: str) -> str:
    """A display of one line, or of one chain of equations over several, without its environment."""
    match = _ENVIRONMENT.fullmatch(text)
    if match is None:
        return text
    rows = [row for row in (strip(row.replace("&", " ")) for row in _ROW.split(match[2])) if row]
    if len(rows) == 1 or (rows and match[1] != "cases" and all(row.startswith("=") for row in rows[1:])):
        return " ".join(rows)
    return text


def _encloses(text: str, start: int, end: int) -> bool:
    """Whether what lies between is balanced: the brackets round it belong together."""
    depth, i = 0, start
    while i < end:
        if text[i] == "\\":
            if text[i + 1 : i + 2] in ("{", "}"):
                depth += 1 if text[i + 1] == "{" else -1
            i += 2
        else:
            depth += (text[i] in _OPEN) - (text[i] in _CLOSE)
            i += 1
        if depth < 0:
            return False
    return depth == 0


def _elements(text: str) -> list[str]:
    """Split at semicolons if there are any, else at commas; then at `and` and `or`."""
    divider = _SEMICOLON if top_level(text, _SEMICOLON) else _COMMA
    parts = [part for piece in split(text, divider) for part in split(piece, _AND_OR)]
    return [part for part in map(strip, parts) if part]


def alternatives(text: str) -> list[str]:
    """The parts between `or`s."""
    return [part for part in map(strip, split(text, OR)) if part]


OR = re.compile(
    rf"\s*{TEXT}\s*,?\s*(?:or|或|或者)\s*{END}\s*|(?<![A-Za-z\\])\s*or\s+|\s*(?:或者|或)\s*|\s*\\lor(?![A-Za-z])\s*"
)
_AND = re.compile(
    rf"\s*{TEXT}\s*,?\s*(?:and|且|和)\s*{END}\s*|(?<![A-Za-z\\])\s*and\s+|\s*(?:并且|且|和)\s*|\s*\\land(?![A-Za-z])\s*|\s*,\s*"
)


def conjuncts(text: str) -> list[str]:
    """The parts between `and`s and commas."""
    return [part for part in map(strip, split(text, _AND)) if part]


def relation(text: str) -> tuple[list[str], list[str]]:
    """A chain of relations: its sides and the signs between them (=, <, >, le, ge, ne, approx, equiv)."""
    places = top_level(text, _RELATION)
    sides, start = [], 0
    for begin, end in places:
        sides.append(strip(text[start:begin]))
        start = end
    sides.append(strip(text[start:]))
    return sides, [text[begin:end].strip("\\ ") for begin, end in places]


def signs(text: str) -> list[str]:
    r"""A text with \pm or \mp as the two that it stands for, or it alone."""
    if not re.search(r"\\[pm]{2}(?![A-Za-z])", text):
        return [text]
    upper = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    lower = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return [re.sub(r"(^|[=,(]\s*)\+\s*", r"\1", upper.strip()), lower.strip()]


def matrix(text: str) -> tuple[str, list[list[str]]] | None:
    """(factor before it, rows of entries) of a matrix or a nested list; None of anything else."""
    text = strip(text)
    match = re.fullmatch(
        r"(?P<factor>[^&]*?)(?:\\cdot\s*)?[(\[]?\s*\\begin\{(?P<name>[pbB]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(?P<body>.*)\\end\{(?P=name)\}\s*[)\]]?(?P<power>\s*\^\s*\{?(?:T|\\top|\\mathsf\{T\})\}?)?",
        text,
        re.DOTALL,
    )
    if match:
        rows = [[strip(cell) for cell in row.split("&")] for row in _ROW.split(match["body"]) if row.strip()]
        if match["power"]:
            rows = [list(column) for column in zip(*rows, strict=False)]
        return match["factor"].strip(), rows
    outer = items(text) if text.startswith("[") else None
    if outer and outer.kind == "list" and all(part.startswith("[") for part in outer.parts):
        inner = [items(part) for part in outer.parts]
        return "", [
            list(row.parts) if row else [strip(part[1:-1])]
            for row, part in zip(inner, outer.parts, strict=True)
        ]
    return None
