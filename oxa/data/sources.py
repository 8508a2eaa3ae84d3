"""Reads a configured source (small world, file or hub dataset) into uniform records.

What the columns mean, a mapping says (mappings.py). Text is kept as it is, but for reasoning that a source marks in
another way: it comes to `<think>…</think>`.

A teacher source without a column of gold answers (`acereason` and `messages` may be such) takes for
gold what the first of the row's own responses that boxes its answer boxes (oxa/grading/extraction.py), and says so in
the record: then "correct" means no more than "agrees with that teacher".

A file that cannot be read as what it claims to be is a DataError. A row whose content is unusable is a `Reject`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from oxa import hashes
from oxa.config.sources import Source, Sources, World
from oxa.data import readers
from oxa.data.mappings import Purpose, Record, Reject, layout_of, needed, record_of, writable

if TYPE_CHECKING:
    from oxa.data.world import Document


def name(source: Source) -> str:
    """Short name for tables and metrics, without machine paths: `openai/gsm8k:main:train[1/2]`."""
    text = source.source.removeprefix("hf:")
    path = Path(text)
    short = path.name if path.is_absolute() or ".." in path.parts else text
    return f"{short}[{source.part}]" if source.part else short


def read(source: Source, sources: Sources, purpose: Purpose) -> Iterator[Record | Reject]:
    """Yields the source's rows, each as a record or as a reject, in their order.

    Rows outside `part` and `limit` are not the source's: nothing is yielded for them. All rows of one problem fall on
    the same side.
    """
    items = (
        _world(sources.world, purpose)
        if source.source == "world"
        else _mapped(source, Path(sources.folder), purpose)
    )
    if source.part is not None:
        index, count = map(int, source.part.split("/"))
        items = filter(lambda item: int(_problem_id(item), 16) % count == index, items)
    return items if source.limit is None else _lowest(items, source.limit)


def count(source: Source, folder: Path) -> int | None:
    """How many rows `read` yields, for a progress bar; None where only reading them tells."""
    if source.source == "world" or source.part is not None or source.limit is not None:
        return None
    return readers.count(source, folder)


def at_most(source: Source, folder: Path) -> int | None:
    """About how many problems a source can have, by `limit` and the rows of local files; None where neither tells."""
    rows = None if source.source == "world" else readers.count(source, folder)
    if rows and source.part is not None:
        _, count = map(int, source.part.split("/"))
        rows = ceil(rows / count)
    return min(filter(None, (source.limit, rows)), default=None)


def check_first_row(source: Source, sources: Sources, purpose: Purpose) -> bool:
    """Reads a source as far as its first row, or returns False where that would be asked of the hub.

    Raises ConfigError or DataError where a file, a column or that row is not what it should be.
    """
    folder = Path(sources.folder)
    if source.source == "world":
        return True
    if readers.local_paths(source, folder) is None:
        return False
    next(_mapped(source, folder, purpose), None)
    return True


def documents(source: Source, sources: Sources) -> Iterator[Document | Reject]:
    """Yields pretraining documents: a chat of question and response each. Endless for `world`, else finite.

    Beside the rejects of `read`, a row without responses is one (`no_response`), and each empty response.
    """
    from oxa.data.world import Document, corpus

    if source.source == "world":
        yield from corpus(sources.world)
        return
    for item in read(source, sources, "teacher"):
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
    from oxa.data.world import benchmark_examples, rlvr_examples, train_examples

    examples = {"teacher": train_examples, "rlvr": rlvr_examples, "benchmark": benchmark_examples}[purpose]
    for row, example in enumerate(examples(world)):
        yield Record(row, example.question, [example.answer], list(example.responses), example.tier)


def _problem_id(item: Record | Reject) -> str:
    text = item.question if isinstance(item, Record) else item.text
    return hashes.problem_id(text.encode(errors="replace").decode())


def _lowest(items: Iterator[Record | Reject], limit: int) -> Iterator[Record | Reject]:
    """Keeps the `limit` problems of lowest id, and every reject; holds no more than these."""
    lowest: dict[str, list[Record]] = {}
    highest: list[tuple[int, str]] = []  # heap of their ids: the one that goes first is at the top
    rejects: list[Reject] = []
    for item in items:
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        key = _problem_id(item)
        if key not in lowest:
            heapq.heappush(highest, (-int(key, 16), key))
            lowest[key] = []
        lowest[key].append(item)
        if len(highest) > limit:
            del lowest[heapq.heappop(highest)[1]]
    left: list[Record | Reject] = [*rejects, *(item for items in lowest.values() for item in items)]
    yield from sorted(left, key=lambda item: item.row)


def _mapped(source: Source, folder: Path, purpose: Purpose) -> Iterator[Record | Reject]:
    layout = layout_of(source, purpose)
    for row, where, columns in readers.read(source, folder, partial(needed, layout)):
        item = record_of(row, where, columns, layout, purpose)
        if isinstance(item, Record) and not writable(item):
            item = Reject(
                row, "bad_unicode", "bytes that are not UTF-8, or half a surrogate pair", item.question
            )
        yield item
