"""What one cell of a source's row holds: text, gold answers, responses, a chat.

A value that is none of these makes its row unusable, with a reason; it never ends the reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from oxa.errors import DataError
from oxa.prompts import END_THINK, THINK

MISSING = ("", "-", "--", "nan", "none", "null", "n/a", "#n/a", "<na>", "proof", "notfound", "not found")
"""Words, in any case, that stand where an answer is missing: what pandas, spreadsheets and people write for it, and
`proof` and `notfound` of NuminaMath-1.5 and OpenR1-Math."""

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "ai"),
    "system": ("system", "developer"),
    "tool": (
        "tool",
        "tool_call",
        "tool_response",
        "function",
        "function_call",
        "function_response",
        "observation",
        "ipython",
        "environment",
    ),
}
SYSTEM_ADVICE = (
    "a system turn, which no student is shown; name the columns in `mapping`, with `system: drop`, to read the rows "
    "without it"
)
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_CALLS = ("tool_calls", "function_call")
_ABSENT = object()


class Unusable(Exception):
    """A row is dropped for this reason; `text` is what is known of its question."""

    def __init__(self, reason: str, detail: str, text: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.text = reason, detail, text


@dataclass(frozen=True)
class Unreadable:
    """Stands in a row for a value that its file holds but nobody can read, such as text that is not UTF-8."""

    why: str


class Turn(NamedTuple):
    """One turn of a chat: its role, one of ROLES, and its text."""

    role: str
    text: str


def lookup(columns: dict[str, Any], name: str, absent: Any = _ABSENT) -> Any:
    """The column of this name; else, dots lead into objects and, by number, into lists."""
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        elif value is not None and not isinstance(value, Unreadable):
            return absent
    return value


def pick(columns: dict[str, Any], names: Iterable[str], where: str, *, optional: bool = False) -> Any:
    """The first of these columns that the row has; DataError, or None if `optional`, where it has none."""
    for name in names:
        if (value := lookup(columns, name)) is not _ABSENT:
            return value
    if optional:
        return None
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{where}: no column {wanted}; found {list(columns)}; {_advice(columns, names)}")


def has(columns: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether the row has one of these columns."""
    return any(lookup(columns, name) is not _ABSENT for name in names)


def _advice(columns: dict[str, Any], names: Iterable[str]) -> str:
    for column, value in columns.items():
        if isinstance(value, list) and value and isinstance(value[0], dict) and has(value[0], names):
            return (
                f"the rows are the entries of its {column!r}: write that list into a file of its own "
                f"(`jq -c '.{column}[]'`)"
            )
        if isinstance(value, dict):
            inner = next((name for name in names if name in value), None)
            if inner is not None:
                return f"write `{column}.{inner}` in the `mapping`"
    return "correct the `mapping`"


def text_of(value: Any, what: str) -> str:
    """Text as it is, a number as its digits, "" for what is missing."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            pass
        case int():
            return str(value)
        case float() if not math.isinf(value):
            return "" if math.isnan(value) else str(int(value)) if _is_whole(value) else str(value)
        case Decimal():
            return "" if value.is_nan() else f"{value:f}"
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise Unusable("bad_value", f"{what}: bytes that are not UTF-8 text") from None
        case Unreadable():
            raise Unusable("bad_value", f"{what}: {value.why}")
    raise Unusable("bad_value", f"expected text as {what}, found {type(value).__name__}")


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 2**53


def golds_of(value: Any) -> list[str]:
    """The accepted answers that a cell names, one or a list of them or such a list as JSON text, without repeats.

    Raises Unusable where there are values, but each stands for a missing one.
    """
    listed = _json_list(value) if isinstance(value, str) else None
    values = value if isinstance(value, list) else [value] if listed is None else listed
    texts = [text_of(one, "answer").strip() for one in values]
    answers = [text for text in dict.fromkeys(texts) if not is_missing(text)]
    if not answers and (words := [text for text in texts if text]):
        raise Unusable("no_answer", f"{words[0]!r} stands for a missing answer")
    return answers


def is_missing(answer: str) -> bool:
    """Whether this word stands for an answer that is not there."""
    return answer.strip().casefold() in MISSING


def _json_list(text: str) -> list[str] | None:
    """The texts of a list that was written down as JSON text, as Skywork-OR1's gold answers are."""
    if not text.strip().startswith('["'):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if all(isinstance(one, str) for one in values) else None


def responses_of(value: Any, system: Literal["reject", "drop"]) -> list[str]:
    """The responses that a cell holds: a text, a chat's assistant turn, or a list of either; none if it is missing."""
    if isinstance(value, list) and not is_chat(value):
        return [text for one in value for text in (_response(one, system) or [""])]
    return _response(value, system)


def _response(value: Any, system: Literal["reject", "drop"]) -> list[str]:
    if is_chat(value):
        response = exchange(value, system)[1]
        return [] if response is None else [response]
    text = text_of(value, "response")
    return [text] if text or isinstance(value, str) else []


def is_chat(value: Any) -> bool:
    """Whether this is a chat: one turn or a list of them."""
    turn = value[0] if isinstance(value, list) and value else value
    return isinstance(turn, dict) and has(turn, ("role", "from"))


def exchange(value: Any, system: Literal["reject", "drop"]) -> tuple[str, str | None]:
    """A chat's question and response: the one user turn and the one assistant turn that may follow it.

    Raises Unusable for another order of turns, a tool, and a system turn unless these are dropped.
    """
    turns = [_turn(turn) for turn in (value if isinstance(value, list) else [value])]
    questions = [turn.text for turn in turns if turn.role == "user"]
    question = (questions or [""])[0]
    roles = [turn.role for turn in turns if turn.role != "system"]
    if "tool" in roles:
        raise Unusable("multi_turn", "a tool is called or answers in it", question)
    for role in ("user", "assistant"):
        if (number := roles.count(role)) > 1:
            raise Unusable("multi_turn", f"{number} {role} turns, one was expected", question)
    if roles == ["assistant", "user"]:
        raise Unusable("multi_turn", "the assistant speaks before the user", question)
    if system == "reject" and any(turn.role == "system" and turn.text.strip() for turn in turns):
        raise Unusable("system_turn", SYSTEM_ADVICE, question)
    return question, next((turn.text for turn in turns if turn.role == "assistant"), None)


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, dict):
        raise Unusable("bad_value", f"expected a chat as a list of turns, found {type(turn).__name__} in it")
    name = text_of(_first(turn, ("role", "from")), "role")
    role = _ROLE_OF.get(name.strip(" <|>:").casefold())
    if role is None:
        raise Unusable("bad_value", f"a turn's role is {name!r}, expected one of {', '.join(_ROLE_OF)}")
    if any(turn.get(call) for call in _CALLS):
        return Turn("tool", "")
    content = _first(turn, ("content", "value", "text"))
    parts = (
        [_part(part) for part in content]
        if isinstance(content, list)
        else [Turn("text", text_of(content, "turn"))]
    )
    if any(part.role == "tool" for part in parts):
        return Turn("tool", "")
    text = "".join(part.text for part in parts if part.role != "thought")
    thoughts = [text_of(_first(turn, _THOUGHTS), "reasoning")]
    thoughts += [part.text for part in parts if part.role == "thought"]
    return Turn(role, with_thought("\n".join(filter(None, thoughts)), text))


def _part(part: Any) -> Turn:
    """One part of a turn's content; its role is "tool", "thought" or "text"."""
    if not isinstance(part, dict):
        return Turn("text", text_of(part, "turn"))
    kind = str(part.get("type") or "text")
    if kind.startswith(("tool", "function")):
        return Turn("tool", "")
    if kind in ("thinking", "reasoning", "thought"):
        return Turn("thought", text_of(_first(part, (*_THOUGHTS, "text")), "reasoning"))
    if kind not in ("text", "input_text", "output_text"):
        raise Unusable("bad_value", f"a turn holds a part of type {kind!r}, expected text")
    return Turn("text", text_of(_first(part, ("text", "content", "value")), "turn"))


def _first(turn: dict[str, Any], keys: Iterable[str]) -> Any:
    """The first of these keys that holds something: of turns of several shapes, Arrow makes one with empty keys."""
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def with_thought(thought: str, text: str) -> str:
    """A response whose reasoning stands apart: in front, in marks, unless the text has its reasoning already."""
    thought = thought.strip().removeprefix(THINK).removesuffix(END_THINK).strip()
    return f"{THINK}\n{thought}\n{END_THINK}\n\n{text}" if thought and END_THINK not in text else text
