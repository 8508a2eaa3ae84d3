"""What a row of a data source means: from its columns to a uniform record.

A built-in mapping is one entry of MAPPINGS, by its name in params.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from oxa.config.sources import Mapping, Source
from oxa.errors import ConfigError, DataError
from oxa.prompts import END_THINK, THINK, answer_part, last_box

Purpose = Literal["teacher", "rlvr", "benchmark"]
"""What rows are read for: only a teacher's responses are read, and only a teacher may lack gold answers."""


@dataclass(frozen=True)
class Record:
    """One usable row."""

    row: int
    """From 0, blank lines not counted."""
    question: str
    answers: list[str]
    """Accepted gold answers, at least one."""
    responses: list[str]
    """In the row's order; empty ones included, so that whoever drops them can count them."""
    tier: str
    gold_from_response: bool = False
    """The source has no gold answers; this is what the row's own response boxed."""


@dataclass(frozen=True)
class Reject:
    """One row that is dropped, and why."""

    row: int
    reason: str
    detail: str
    text: str


class Cells(NamedTuple):
    """A row with its question and gold answer picked out, as they stand there."""

    row: int
    where: str
    columns: dict[str, Any]
    layout: Layout
    question: Any
    answer: Any


Contents = tuple[Any, Any, list[str]]
"""Question, gold answer (a value or a list of them) and responses."""


def _as_they_stand(cells: Cells) -> Contents:
    names = cells.layout.responses
    responses = _pick(cells.columns, names, cells.where, optional=not names)
    return cells.question, cells.answer, _texts(responses, cells.where, "response")


def _conversation(cells: Cells) -> Contents | Reject:
    """One user turn is the question, the assistant turns are responses."""
    turns = _turns(cells.question, cells.where)
    questions = [text for role, text in turns if role == "user"]
    if len(questions) > 1:
        detail = f"{len(questions)} user turns, one was expected"
        return Reject(cells.row, "multi_turn", detail, questions[0])
    return (questions or [""])[0], cells.answer, [text for role, text in turns if role == "assistant"]


def _gsm8k(cells: Cells) -> Contents:
    """The rationale becomes the reasoning, without its `<<48/2=24>>` calculator notes, and `\\boxed{n}` follows."""
    rationale, mark, answer = _text(cells.answer, cells.where, "answer").rpartition("####")
    if not mark:
        return cells.question, None, []
    answer = answer.strip().replace(",", "")
    rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    responses = [f"{THINK}\n{rationale}\n{END_THINK}\n\\boxed{{{answer}}}"] if answer else []
    return cells.question, answer, responses


@dataclass(frozen=True)
class Layout:
    """Under which names a source keeps what; of several names, the first that a row has counts."""

    question: tuple[str, ...]
    answer: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    tier: tuple[str, ...] = ()
    think: tuple[str, str] = (THINK, END_THINK)
    kind: tuple[str, ...] = ()
    """Column of the subject; rows that have it and are not `math` are dropped."""
    answer_optional: bool = False
    """Rows without any answer column take their gold from their response."""
    contents: Callable[[Cells], Contents | Reject] = _as_they_stand
    """What the columns mean where they do not hold question, answer and responses as they are."""


MAPPINGS = {
    # takagi97/OXA-AceReason-1.1-Math, as the released scripts of arXiv 2603.16206 read it (`query`,
    # `DeepSeek-R1_Response_List`), and nvidia/AceReason-1.1-SFT (`input`, `output`, `category`)
    "acereason": Layout(
        question=("query", "problem", "question", "input"),
        answer=("answer", "ground_truth", "gt", "gold"),
        responses=("DeepSeek-R1_Response_List", "responses", "generations", "output", "response"),
        kind=("category",),
        answer_optional=True,
    ),
    # open-r1/OpenR1-Math-220k; its correctness flags are not read, since stage `verify` judges every response itself
    "openr1": Layout(question=("problem",), answer=("answer",), responses=("generations",)),
    # `messages` (role, content) or `conversations` (from, value)
    "messages": Layout(
        question=("messages", "conversations"),
        answer=("answer",),
        answer_optional=True,
        contents=_conversation,
    ),
    # openai/gsm8k: the answer is the rationale, then `#### n`
    "gsm8k": Layout(question=("question",), answer=("answer",), contents=_gsm8k),
    # benchmarks such as AIME or Minerva; the answer is one or a list of accepted ones
    "math": Layout(question=("problem", "question"), answer=("answer",)),
}
"""The built-in mappings, each after the published columns of the data set that it is named for."""


def check(source: Source, purpose: Purpose) -> None:
    """Raises ConfigError where the source's mapping is none that is known, or cannot serve the purpose."""
    if source.source != "world":
        layout_of(source, purpose)


def layout_of(source: Source, purpose: Purpose) -> Layout:
    """Raises ConfigError where there is no mapping of that name, or it cannot serve the purpose."""
    mapping = source.mapping
    if isinstance(mapping, Mapping):
        layout = Layout(
            question=(mapping.question,),
            answer=(mapping.answer,) if mapping.answer else (),
            responses=(mapping.responses,) if mapping.responses else (),
            tier=(mapping.tier,) if mapping.tier else (),
            think=mapping.think,
            answer_optional=mapping.answer is None,
        )
    else:
        assert mapping is not None, "config.Source demands a mapping"
        if mapping not in MAPPINGS:
            *names, last = map(repr, MAPPINGS)
            raise ConfigError(
                f"source {source.source!r}: mapping: input should be {', '.join(names)} or {last}, found {mapping!r}"
            )
        layout = MAPPINGS[mapping]
    if purpose != "teacher":
        if not layout.answer:
            what = "a benchmark needs" if purpose == "benchmark" else "RL needs"
            raise ConfigError(f"source {source.source!r}: {what} gold answers: `mapping.answer`")
        # for RL a row without the column is dropped (no_answer); a benchmark is whole or at fault
        return replace(layout, answer_optional=layout.answer_optional and purpose == "rlvr", responses=())
    if not layout.responses and layout.contents is _as_they_stand:
        raise ConfigError(
            f"source {source.source!r}: a teacher needs responses; name their column in `mapping`"
        )
    return layout


def record_of(
    row: int, where: str, columns: dict[str, Any], layout: Layout, purpose: Purpose
) -> Record | Reject:
    question = _pick(columns, layout.question, where)
    answer = _pick(columns, layout.answer, where, optional=layout.answer_optional)
    kind = _pick(columns, layout.kind, where, optional=True)
    tier = _pick(columns, layout.tier, where) if layout.tier else None
    contents = layout.contents(Cells(row, where, columns, layout, question, answer))
    if isinstance(contents, Reject):
        return contents
    question, answer, responses = contents
    question = _text(question, where, "question")
    if not question.strip():
        return Reject(row, "empty_problem", "no question", "")
    if kind is not None and kind != "math":
        return Reject(row, "not_math", f"category {kind!r}", question)
    responses = [_reasoning(text, layout.think) for text in responses] if purpose == "teacher" else []

    answers = list(dict.fromkeys(text.strip() for text in _texts(answer, where, "answer") if text.strip()))
    gold_from_response = layout.answer_optional and not any(column in columns for column in layout.answer)
    if gold_from_response:
        answers = next(([gold] for text in responses if (gold := _boxed(text))), [])
    if not answers:
        return Reject(row, "no_answer", "no gold answer", question)
    return Record(row, question, answers, responses, "" if tier is None else str(tier), gold_from_response)


def _pick(columns: dict[str, Any], names: tuple[str, ...], where: str, *, optional: bool = False) -> Any:
    """The first of these columns that the row has."""
    for column in names:
        if column in columns:
            return columns[column]
    if optional:
        return None
    wanted = " or ".join(map(repr, names))
    raise DataError(f"{where}: no column {wanted}; found {list(columns)}; correct the `mapping`")


def _texts(value: Any, where: str, what: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [_text(one, where, what) for one in values]


def _text(value: Any, where: str, what: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = type(value).__name__
    raise DataError(f"{where}: expected text as {what}, found {kind}; correct the row or the `mapping`")


def _turns(value: Any, where: str) -> list[tuple[str, str]]:
    """A conversation as (role, text); reasoning in a field of its own is put in front, in <think> marks."""
    roles = {"human": "user", "gpt": "assistant"}
    turns = []
    for turn in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(turn, dict):
            raise DataError(f"{where}: a conversation should be a list of turns, found {type(turn).__name__}")
        role = _pick(turn, ("role", "from"), where)
        text = _text(_pick(turn, ("content", "value"), where), where, "turn")
        thought = _text(turn.get("reasoning_content"), where, "reasoning")
        whole = f"{THINK}\n{thought}\n{END_THINK}\n\n{text}" if thought else text
        turns.append((roles.get(role, role), whole))
    return turns


def _reasoning(text: str, marks: tuple[str, str]) -> str:
    return text if marks == (THINK, END_THINK) else text.replace(marks[0], THINK).replace(marks[1], END_THINK)


def _boxed(text: str) -> str | None:
    """What the last \\boxed{…} behind the reasoning holds."""
    tail = answer_part(text, require_think=False) or ""
    box = last_box(tail)
    return (tail[slice(*box)].strip() or None) if box else None


def writable(item: Record) -> bool:
    try:
        "".join([item.question, item.tier, *item.answers, *item.responses]).encode()
    except UnicodeEncodeError:
        return False
    return True


def needed(layout: Layout, names: list[str], where: str) -> list[str]:
    """Those of a table's columns that the layout reads, so that a wide table's others stay on disk."""
    groups = (layout.question, layout.answer, layout.responses, layout.tier, layout.kind)
    required = (
        layout.question,
        () if layout.answer_optional else layout.answer,
        layout.responses,
        layout.tier,
    )
    for group in required:
        _pick(dict.fromkeys(names), group, where, optional=not group)
    return [column for column in names if any(column in group for group in groups)]
