"""What looks wrong in text that can be read all the same: it is kept as it is, counted by rows, and warned of."""

from __future__ import annotations

import json
import re
from collections import Counter

from oxa.data.mappings import Record
from oxa.prompts import END_THINK

MARKS = (
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
"""How public data open and close reasoning, beside <think>: `mapping.think` takes each of these pairs."""

_LISTED = (
    'hold a list that became text, `["…", "…"]`, and is read as one text: write it as a list into the file'
)
_ESCAPED = (
    r"hold text that was escaped twice, `\n` for a line's end or `\\frac`: unescape it once in the file"
)
_TWICE = re.compile(r"(?<!\\)\\\\(?:boxed|d?frac|sqrt|text)\s*\{")


def oddities(record: Record) -> set[str]:
    """What is odd about this row, as the end of a sentence that begins with the number of rows."""
    texts = [record.question, *record.answers, *record.responses]
    faults = {_LISTED if _was_list(text) else _ESCAPED if _escaped_twice(text) else "" for text in texts}
    marks = (mark for text in record.responses if END_THINK not in text for mark in _marks(text))
    return (faults | set(marks)) - {""}


def warnings(source: str, counts: Counter[str]) -> list[str]:
    """A sentence for each kind of oddity that a source has."""
    return [f"{source}: {number} rows {odd}" for odd, number in sorted(counts.items())]


def _was_list(text: str) -> bool:
    text = text.strip()
    if text.startswith("['") and text.endswith("']"):  # as Python writes it
        return True
    if not (text.startswith(('["', '[{"')) and text.endswith("]")):
        return False
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _escaped_twice(text: str) -> bool:
    return ("\\n\\n" in text and "\n" not in text) or _TWICE.search(text) is not None


def _marks(text: str) -> list[str]:
    return [
        f"mark their reasoning with {opening} and {closing}: name the columns in `mapping`, and "
        f"`think: ['{opening}', '{closing}']`"
        for opening, closing in MARKS
        if closing in text
    ]
