r"""Finds the answer in a response: what stands in its last box, or where it says what the answer is.

Behind the last </think>, in this order:

    a box           the last balanced \boxed{…} or \fbox{…} that holds more than a template; with boxes right before
                    it, divided by commas or words, all of them: `\boxed{2}` and `\boxed{3}` are one answer of two
    a mark          <answer>…</answer>, `#### …`, `Answer: …`, `the answer is …`, 答案是…
    a short text    one line that is nothing else than the answer
    the last words  the only number or formula of the last sentence; not certain

What is not certain can be found right, but never wrong: nobody said that it is the answer. Where a sentence denies
or doubts what it names (`not 12`, `12. Or maybe 13.`), there is no answer. All of it takes time linear in the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from oxa import prompts

SHORT = 80  # characters of a line that is an answer as a whole
NEAR = 40  # characters between boxes that are one answer


class Answer(NamedTuple):
    text: str
    boxes: tuple[str, ...] = ()
    """All boxes of the response in order, where there are several: a gold list of as many is compared with them."""
    certain: bool = True


_BOX = re.compile(
    r"(?:\\{1,2}|\x08|(?<![A-Za-z\\]))(?:boxed|oxed|fbox|framebox)\s*(?:(\{)|(?<=boxed)\s*(\d+(?:\.\d+)?|(?<=\s)[A-Za-z](?![A-Za-z])))"
)
_TEMPLATE = re.compile(
    r"[\s{}.…_?~]*|\\(?:cdots|ldots|dots|square|Box)|(?:\\(?:text|mathrm|textbf)\s*\{)?\s*"
    r"(?:your |the |final )*(?:answer|result|solution|number|ans)s?(?: here)?\s*\}?",
    re.IGNORECASE,
)
_BETWEEN_BOXES = re.compile(
    r"[\s$,;、.&]*(?:\\[(),;\]\[ ]|\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|\\q?quad|and|or|和|或|与)?"
    r"[\s$,;、&\\()\[\]*]*"
)
_DENIED_BEFORE = re.compile(r"\b(?:not|isn't|cannot be|no longer)\s*[\s$\\(:]*$|不是\s*\$*$", re.IGNORECASE)
_DENIED_BEHIND = re.compile(
    r"[\s$\\).,?!]*(?:(?:is|was|seems)\s+(?:not|wrong|incorrect|false|impossible)|wait\b|no,|hmm|actually)",
    re.IGNORECASE,
)
_TAG = re.compile(r"<answer>", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_SAYS = re.compile(
    r"\b(?:ans(?:wers?)?|correct (?:option|choice))\*{0,2}\s*(?:\([^()\n]{0,40}\)\s*)?"
    r"(?:(?:is|are|be)(?:\s+(?:therefore|thus|simply|equal to|given by))?|[:=:])\*{0,2}\s*[:=]?"
    r"|答案\s*(?:应?[是为]|[::])\s*[::]?|故选\s*[::]?",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\d)[.!?](?=\s|$)|(?<=\d)[.!?](?=\s+[A-Z]|\s*$)|[。!?]|\n")
_DOUBT = re.compile(
    r"\b(?:not|isn't|maybe|perhaps|or|cannot|can't|unless|either|wait|actually|but|no such|impossible|might|may|could"
    r"|so far|consider|suppose|assume|if|case)\b|n't\b|不是|或",
    re.IGNORECASE,
)
_WITHDRAWN = re.compile(r"\b(?:no|fails?|wrong|incorrect)\b", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.,/])(?:[-+−]\s?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?%?(?![\w/]|[.,]\d)"
)
_EDGES = " \t\r\n*`\"'"


def find(text: str, *, require_think: bool) -> Answer | None:
    """The answer of a response; None where it has none."""
    tail = prompts.answer_part(text, require_think=require_think)
    if tail is None or not tail.strip():
        return None
    boxes = _boxes(tail)
    real = _meant(tail, boxes)
    return _boxed(tail, real) if real else _said(tail, anything=not boxes)


def boxed(text: str) -> str | None:
    """The answer of a response that boxes one, with reasoning in tags or without; None where it boxes none."""
    tail = prompts.answer_part(text, require_think=False) or ""
    real = _meant(tail, _boxes(tail))
    return _boxed(tail, real).text if real else None


class _Box(NamedTuple):
    left: int  # of the command
    start: int  # of the content
    end: int
    right: int


def _meant(tail: str, boxes: list[_Box]) -> list[_Box]:
    """Without templates, and without what the text denies."""
    return [
        box
        for box in boxes
        if not _TEMPLATE.fullmatch(tail[box.start : box.end])
        and not _DENIED_BEFORE.search(tail[max(0, box.left - NEAR) : box.left])
        and not _DENIED_BEHIND.match(tail[box.right : box.right + NEAR])
    ]


def _boxed(tail: str, real: list[_Box]) -> Answer:
    """The last group of these boxes, or the number that the text says the answer is behind them."""
    said = [match.end() for match in _SAYS.finditer(tail, real[-1].right)]
    later = (
        _NUMBER.match(tail, said[-1] + len(tail[said[-1] :]) - len(tail[said[-1] :].lstrip(_EDGES + "$")))
        if said
        else None
    )
    if later:
        return Answer(later[0])
    group = [real[-1]]
    for box in reversed(real[:-1]):
        between = tail[box.right : group[0].left]
        if len(between) > NEAR or not _BETWEEN_BOXES.fullmatch(between):
            break
        group.insert(0, box)
    contents = list(dict.fromkeys(tail[box.start : box.end].strip() for box in group))
    every = tuple(dict.fromkeys(tail[box.start : box.end].strip() for box in real))
    return Answer(", ".join(contents), every if len(every) > 1 else ())


def _boxes(tail: str) -> list[_Box]:
    """Every innermost box, in order."""
    ends = _closings(tail)
    boxes: list[_Box] = []
    for match in _BOX.finditer(tail):
        if match[2]:
            boxes.append(_Box(match.start(), match.start(2), match.end(2), match.end()))
            continue
        end = ends.get(match.end() - 1)
        if end is None:
            continue
        while boxes and boxes[-1].right > match.start():
            boxes.pop()  # it holds this one
        boxes.append(_Box(match.start(), match.end(), end, end + 1))
    first = _BOX.search(tail)
    if not boxes and first and first[1]:  # its brace was escaped: \boxed{5 \}
        close = re.compile(r"\\\}|\$|\n").search(tail, first.end())
        if close and close[0] == r"\}":
            boxes.append(_Box(first.start(), first.end(), close.start(), close.end()))
    return boxes


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def _closings(tail: str) -> dict[int, int]:
    """Where each brace closes, in one pass."""
    opened: list[int] = []
    ends: dict[int, int] = {}
    for token in _BRACES.finditer(tail):
        if token[0] == "{":
            opened.append(token.start())
        elif token[0] == "}" and opened:
            ends[opened.pop()] = token.start()
    return ends


def _said(tail: str, *, anything: bool) -> Answer | None:
    """An answer outside of a box; unless `anything` goes, where the text says that it is one."""
    starts = [match.end() for match in _TAG.finditer(tail)]
    if starts:
        end = tail.lower().find("</answer>", starts[-1])
        return _answer(tail[starts[-1] : end if end >= 0 else len(tail)])
    hashes = _HASHES.findall(tail)
    if hashes and tail.rstrip().endswith(hashes[-1].rstrip()):
        return _answer(hashes[-1])
    places = [match.end() for match in _SAYS.finditer(tail)]
    if places:
        rest = tail[places[-1] :].lstrip(_EDGES)
        stop = _SENTENCE_END.search(rest)
        answer, after = (rest[: stop.start()], rest[stop.end() :]) if stop else (rest, "")
        before = tail[max(0, places[-1] - NEAR) : places[-1]]
        if _DOUBT.match(answer) or re.search(r"\d|\$|\\", after):
            return None
        if _DOUBT.search(after[:NEAR]) or _WITHDRAWN.search(after[:NEAR]) or "?" in rest[: len(answer) + 1]:
            return None
        if re.search(r"\b(?:if|suppose|assume|assuming)\b", before, re.IGNORECASE):
            return None
        return _answer(answer)
    if not anything:
        return None
    line = tail.strip(_EDGES)
    words = len(line.split())
    if len(line) <= SHORT and "\n" not in line and (words <= 2 or (words <= 4 and not _NUMBER.search(line))):
        return None if _DOUBT.search(line) else _answer(line)
    return _last_words(line)


def _answer(text: str) -> Answer | None:
    text = text.strip(_EDGES)
    if not re.search(r"\w\*\*\d", text):  # bold, no power
        text = text.replace("**", "").strip()
    return Answer(text) if text else None


def _last_words(text: str) -> Answer | None:
    """The only formula or number of the last sentence."""
    sentences = [part for part in _SENTENCE_END.split(text[-2000:]) if part and part.strip(_EDGES)]
    if not sentences or _DOUBT.search(sentences[-1]) or _WITHDRAWN.search(sentences[-1]):
        return None
    formulas = ["".join(groups) for groups in _FORMULA.findall(sentences[-1])]
    found = formulas or _NUMBER.findall(sentences[-1])
    if len(found) != 1:
        return None
    value = found[0].rpartition("=")[2] if re.fullmatch(r"[^<>]*", found[0]) else found[0]
    return Answer(value.strip(), certain=False)
