"""What a row of a data source means: from its columns to a uniform record.

A built-in mapping is one entry of MAPPINGS, by its name in params.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from oxa.config.sources import Mapping, Source
from oxa.data.cells import (
    SYSTEM_ADVICE,
    Unusable,
    exchange,
    golds_of,
    has,
    is_chat,
    pick,
    responses_of,
    text_of,
    with_thought,
)
from oxa.errors import ConfigError
from oxa.grading import extraction
from oxa.prompts import END_THINK, THINK

if TYPE_CHECKING:
    from oxa.config.params import Params

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

    where: str
    columns: dict[str, Any]
    layout: Layout
    question: Any
    answer: Any


Contents = tuple[str, Any, list[str]]
"""Question, gold answer (a value or a list of them) and responses."""


def _as_they_stand(cells: Cells) -> Contents:
    """Texts are taken as they are; of a chat, the user's turn is the question and the assistant's the response."""
    layout, columns = cells.layout, cells.columns
    question = _question(cells)
    responses: list[str] = []
    for number, names in enumerate(layout.response_columns):
        texts = _texts(columns, names, cells)
        if layout.reasoning:
            thoughts = _texts(columns, layout.reasoning[number : number + 1], cells)
            if len(thoughts) != len(texts):
                detail = f"{len(thoughts)} pieces of reasoning for {len(texts)} responses"
                raise Unusable("bad_value", detail, question)
            texts = [with_thought(*pair) for pair in zip(thoughts, texts, strict=True)]
        responses += texts
    return question, cells.answer, responses


def _question(cells: Cells) -> str:
    value, layout = cells.question, cells.layout
    if is_chat(value):
        question = exchange(value, layout.system)[0]
    elif value is not None and layout.question == layout.responses:
        kind = "text" if isinstance(value, str) else type(value).__name__
        raise Unusable("bad_value", f"expected a chat, which is a list of turns, found {kind}")
    else:
        question = text_of(value, "question")
    system = pick(cells.columns, layout.system_text, cells.where, optional=True)
    if layout.system == "reject" and text_of(system, "system turn").strip():
        raise Unusable("system_turn", SYSTEM_ADVICE, question)
    return question


def _texts(columns: dict[str, Any], names: tuple[str, ...], cells: Cells) -> list[str]:
    """What the first of these columns that the row has holds, with reasoning in <think> marks."""
    opening, closing = cells.layout.think
    texts = responses_of(pick(columns, names, cells.where), cells.layout.system)
    return [text.replace(opening, THINK).replace(closing, END_THINK) for text in texts]


def _gsm8k(cells: Cells) -> Contents:
    """The rationale becomes the reasoning, without its `<<48/2=24>>` calculator notes, and `\\boxed{n}` follows."""
    question = text_of(cells.question, "question")
    rationale, mark, answer = text_of(cells.answer, "answer").rpartition("####")
    if not mark:
        return question, None, []
    answer = answer.strip().replace(",", "")
    rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
    responses = [f"{THINK}\n{rationale}\n{END_THINK}\n\\boxed{{{answer}}}"] if answer else []
    return question, answer, responses


def _gsm8k_tier(cells: Cells) -> str:
    """By the number of calculator notes in the rationale."""
    num_steps = text_of(cells.answer, "answer").count("<<")
    return "1-2 steps" if num_steps <= 2 else "3-4 steps" if num_steps <= 4 else "5+ steps"


@dataclass(frozen=True)
class Layout:
    """Under which names a source keeps what; of several names, the first that a row has counts."""

    question: tuple[str, ...]
    answer: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    all_responses: bool = False
    """All columns of responses are read, not the first alone."""
    reasoning: tuple[str, ...] = ()
    """For each column of responses that is read, the one with their reasoning, where that stands apart."""
    tier: tuple[str, ...] = ()
    think: tuple[str, str] = (THINK, END_THINK)
    system: Literal["reject", "drop"] = "reject"
    """What becomes of a row with a system turn."""
    system_text: tuple[str, ...] = ()
    """Column with the text of a system turn that stands outside the chat."""
    kind: tuple[str, ...] = ()
    """Column of the subject; rows that have it and are not `math` are dropped."""
    answer_optional: bool = False
    """Rows without any answer column take their gold from their response."""
    contents: Callable[[Cells], Contents] = _as_they_stand
    """What the columns mean where they do not hold question, answer and responses as they are."""
    tier_of: Callable[[Cells], str] | None = None
    """The difficulty where no column tells it."""

    @property
    def response_columns(self) -> tuple[tuple[str, ...], ...]:
        """Names of each column of responses that is read."""
        if self.all_responses:
            return tuple((name,) for name in self.responses)
        return (self.responses,) if self.responses else ()


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
    # `messages` (role, content) or `conversations` (from, value), and OpenThoughts' `system` beside them
    "messages": Layout(
        question=("messages", "conversations"),
        answer=("answer",),
        responses=("messages", "conversations"),
        system_text=("system",),
        answer_optional=True,
    ),
    # openai/gsm8k: the answer is the rationale, then `#### n`
    "gsm8k": Layout(question=("question",), answer=("answer",), contents=_gsm8k, tier_of=_gsm8k_tier),
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
            responses=mapping.response_columns,
            all_responses=True,
            reasoning=mapping.reasoning_columns,
            tier=(mapping.tier,) if mapping.tier else (),
            think=mapping.think,
            system=mapping.system,
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
    """Raises DataError where the row lacks a column."""
    question = ""
    try:
        cells = Cells(
            where,
            columns,
            layout,
            pick(columns, layout.question, where),
            pick(columns, layout.answer, where, optional=layout.answer_optional),
        )
        question, answer, responses = layout.contents(cells)
        if not question.strip():
            return Reject(row, "empty_problem", "no question", "")
        kind = text_of(pick(columns, layout.kind, where, optional=True), "category")
        if kind not in ("", "math"):
            return Reject(row, "not_math", f"category {kind!r}", question)
        tier = layout.tier_of(cells) if layout.tier_of else _tier(cells)
        gold_from_response = layout.answer_optional and not has(columns, layout.answer)
        if gold_from_response:
            answer = next((gold for text in responses if (gold := extraction.boxed(text))), None)
        answers = golds_of(answer)
    except Unusable as fault:
        return Reject(row, fault.reason, fault.detail, fault.text or question)
    if not answers:
        return Reject(row, "no_answer", "no gold answer", question)
    return Record(row, question, answers, responses if purpose == "teacher" else [], tier, gold_from_response)


def _tier(cells: Cells) -> str:
    names = cells.layout.tier
    return text_of(pick(cells.columns, names, cells.where) if names else None, "tier")


def writable(item: Record) -> bool:
    try:
        "".join([item.question, item.tier, *item.answers, *item.responses]).encode()
    except UnicodeEncodeError:
        return False
    return True


def needed(layout: Layout, names: list[str], where: str) -> list[str]:
    """Those of a table's columns that the layout reads, so that a wide table's others stay on disk."""
    reasoning = tuple((name,) for name in layout.reasoning)
    required = [layout.question, layout.tier, *layout.response_columns, *reasoning]
    optional = [layout.kind, layout.system_text]
    (optional if layout.answer_optional else required).append(layout.answer)
    tops = {name: name if name in names else name.partition(".")[0] for name in sum(required + optional, ())}
    for group in required:
        if group and not any(tops[name] in names for name in group):
            pick(dict.fromkeys(names), group, where)  # tells what is missing
    return [column for column in names if column in tops.values()]


def named(params: Params) -> list[tuple[str, Source, Purpose]]:
    """Every source that the params name: the key under which they do, the source, what it is for."""
    corpus = getattr(params.base, "corpus", [])  # of a student that is pretrained
    ingest = params.ingest
    return [
        *((f"base.corpus.{place}", source, "teacher") for place, source in enumerate(corpus)),
        *((f"ingest.teacher.{place}", source, "teacher") for place, source in enumerate(ingest.teacher)),
        *((f"ingest.rlvr.{place}", source, "rlvr") for place, source in enumerate(ingest.rlvr)),
        *((f"ingest.benchmarks.{name}", source, "benchmark") for name, source in ingest.benchmarks.items()),
    ]


def check_all(params: Params, path: Path) -> None:
    """Checks the mapping of every source that a params file names; ConfigError names the file and the key."""
    for key, source, purpose in named(params):
        try:
            check(source, purpose)
        except ConfigError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
