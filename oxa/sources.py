"""Reads a configured source (small world, file or hub dataset) into uniform records.

Built-in mappings, each after the published columns of the data it is named for; of several names for one thing, the
first that a row has counts:

    acereason  takagi97/OXA-AceReason-1.1-Math, as the released scripts of arXiv 2603.16206 read it (`query`,
               `DeepSeek-R1_Response_List`), and nvidia/AceReason-1.1-SFT (`input`, `output`, `category`; of its
               categories, only `math` is taken)
    openr1     open-r1/OpenR1-Math-220k: `problem`, `answer`, `generations`; its correctness flags are not read,
               since the `verify` stage judges every response itself
    messages   `messages` (role, content) or `conversations` (from, value): one user turn, one assistant turn
    gsm8k      openai/gsm8k: `question`, `answer` = rationale, then `#### n`
    math       benchmarks such as AIME or Minerva: `problem` or `question`, and `answer`, one or a list of accepted ones

Text is kept as it is, but for reasoning that a source marks in another way: it comes to `<think>…</think>`. GSM8K's
rationale becomes the reasoning, without its `<<48/2=24>>` calculator notes, and `\\boxed{n}` follows.

A teacher source without a column of gold answers (`acereason` and `messages` may be such) takes the last `\\boxed{}`
of the row's own first response for gold and says so in the record: then "correct" means no more than "agrees with
that teacher".

A file that cannot be read as what it claims to be is a DataError. A row whose content is unusable is a `Reject`.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from oxa import records, rows
from oxa.config import Mapping, Source, World
from oxa.errors import ConfigError, DataError
from oxa.prompts import END_THINK, THINK, answer_part, last_box

if TYPE_CHECKING:
    from oxa.world import Document

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


@dataclass(frozen=True)
class Layout:
    """Under which names a source keeps what."""

    question: tuple[str, ...]
    answer: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    tier: tuple[str, ...] = ()
    think: tuple[str, str] = (THINK, END_THINK)
    kind: tuple[str, ...] = ()
    """Column of the subject; rows that have it and are not `math` are dropped."""
    answer_optional: bool = False
    """Rows without any answer column take their gold from their response."""


LAYOUTS = {
    "acereason": Layout(
        question=("query", "problem", "question", "input"),
        answer=("answer", "ground_truth", "gt", "gold"),
        responses=("DeepSeek-R1_Response_List", "responses", "generations", "output", "response"),
        kind=("category",),
        answer_optional=True,
    ),
    "openr1": Layout(question=("problem",), answer=("answer",), responses=("generations",)),
    "messages": Layout(question=("messages", "conversations"), answer=("answer",), answer_optional=True),
    "gsm8k": Layout(question=("question",), answer=("answer",)),
    "math": Layout(question=("problem", "question"), answer=("answer",)),
}


def name(source: Source) -> str:
    """Short name for tables and metrics, without machine paths: `openai/gsm8k:main:train[1/2]`."""
    text = source.source.removeprefix("hf:")
    path = Path(text)
    short = path.name if path.is_absolute() or ".." in path.parts else text
    return f"{short}[{source.part}]" if source.part else short


def read(source: Source, *, folder: Path, world: World, purpose: Purpose) -> Iterator[Record | Reject]:
    """Yields the source's rows, each as a record or as a reject, in their order.

    Rows outside `part` and `limit` are not the source's: nothing is yielded for them. All rows of one problem fall on
    the same side.
    """
    found = _world(world, purpose) if source.source == "world" else _mapped(source, folder, purpose)
    if source.part is not None:
        index, count = map(int, source.part.split("/"))
        found = filter(lambda item: int(_problem_id(item), 16) % count == index, found)
    return found if source.limit is None else _lowest(found, source.limit)


def count(source: Source, folder: Path) -> int | None:
    """How many rows `read` yields, for a progress bar; None where only reading them tells."""
    if source.source == "world" or source.part is not None or source.limit is not None:
        return None
    return rows.count(source, folder)


def documents(source: Source, *, folder: Path, world: World) -> Iterator[Document | Reject]:
    """Yields pretraining documents: a chat of question and response each. Endless for `world`, else finite.

    Beside the rejects of `read`, a row without responses is one (`no_response`), and each empty response.
    """
    from oxa.world import Document, corpus

    if source.source == "world":
        yield from corpus(world)
        return
    for item in read(source, folder=folder, world=world, purpose="teacher"):
        if isinstance(item, Reject):
            yield item
            continue
        if not item.responses:
            yield Reject(item.row, "no_response", "no response in its row", item.question)
        for text in item.responses:
            if text.strip():
                yield Document(user=item.question, text=text)
            else:
                yield Reject(item.row, "empty_response", "nothing but white space", item.question)


def _world(world: World, purpose: Purpose) -> Iterator[Record | Reject]:
    from oxa.world import benchmark_examples, rlvr_examples, train_examples

    examples = {"teacher": train_examples, "rlvr": rlvr_examples, "benchmark": benchmark_examples}[purpose]
    for row, example in enumerate(examples(world)):
        yield Record(row, example.question, [example.answer], list(example.responses), example.tier)


def _problem_id(item: Record | Reject) -> str:
    text = item.question if isinstance(item, Record) else item.text
    return records.problem_id(text.encode(errors="replace").decode())


def _lowest(found: Iterator[Record | Reject], limit: int) -> Iterator[Record | Reject]:
    """Keeps the `limit` problems of lowest id, and every reject; holds no more than these."""
    kept: dict[str, list[Record]] = {}
    highest: list[tuple[int, str]] = []  # heap: the kept id that goes first is at the top
    rejects: list[Reject] = []
    for item in found:
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        key = _problem_id(item)
        if key not in kept:
            heapq.heappush(highest, (-int(key, 16), key))
            kept[key] = []
        kept[key].append(item)
        if len(highest) > limit:
            del kept[heapq.heappop(highest)[1]]
    left: list[Record | Reject] = [*rejects, *(item for items in kept.values() for item in items)]
    yield from sorted(left, key=lambda item: item.row)


def _mapped(source: Source, folder: Path, purpose: Purpose) -> Iterator[Record | Reject]:
    layout = _layout(source, purpose)
    for row, where, columns in rows.read(source, folder, partial(_needed, layout)):
        item = _record(row, where, columns, layout, source.mapping, purpose)
        if isinstance(item, Record) and not _writable(item):
            item = Reject(row, "bad_unicode", "half a surrogate pair, which no file can hold", item.question)
        yield item


def _layout(source: Source, purpose: Purpose) -> Layout:
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
        layout = LAYOUTS[mapping]
    if purpose != "teacher":
        if not layout.answer:
            what = "a benchmark needs" if purpose == "benchmark" else "RL needs"
            raise ConfigError(f"source {source.source!r}: {what} gold answers: `mapping.answer`")
        # for RL a row without the column is dropped (no_answer); a benchmark is whole or at fault
        return replace(layout, answer_optional=layout.answer_optional and purpose == "rlvr", responses=())
    if not layout.responses and mapping not in ("gsm8k", "messages"):
        raise ConfigError(
            f"source {source.source!r}: a teacher needs responses; name their column in `mapping`"
        )
    return layout


def _record(
    row: int, where: str, columns: dict[str, Any], layout: Layout, mapping: Any, purpose: Purpose
) -> Record | Reject:
    question = _pick(columns, layout.question, where)
    answer = _pick(columns, layout.answer, where, optional=layout.answer_optional)
    kind = _pick(columns, layout.kind, where, optional=True)
    tier = _pick(columns, layout.tier, where) if layout.tier else None
    if mapping == "messages":
        turns = _turns(question, where)
        questions = [text for role, text in turns if role == "user"]
        if len(questions) > 1:
            return Reject(row, "multi_turn", f"{len(questions)} user turns, one was expected", questions[0])
        question, responses = (questions or [""])[0], [text for role, text in turns if role == "assistant"]
    elif mapping == "gsm8k":
        rationale, mark, answer = _text(answer, where, "answer").rpartition("####")
        answer = answer.strip().replace(",", "") if mark else None
        rationale = re.sub(r"<<[^<>]*>>", "", rationale).strip()
        responses = [f"{THINK}\n{rationale}\n{END_THINK}\n\\boxed{{{answer}}}"] if answer else []
    else:
        found = _pick(columns, layout.responses, where, optional=not layout.responses)
        responses = _texts(found, where, "response")
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
    found = type(value).__name__
    raise DataError(f"{where}: expected text as {what}, found {found}; correct the row or the `mapping`")


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


def _writable(item: Record) -> bool:
    try:
        "".join([item.question, item.tier, *item.answers, *item.responses]).encode()
    except UnicodeEncodeError:
        return False
    return True


def _needed(layout: Layout, names: list[str], where: str) -> list[str]:
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
