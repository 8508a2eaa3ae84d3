"""Scored responses as arrays: four tables of one origin joined by id, without a Python object a row.

Only the columns that a rule needs are read; texts follow, of the chosen rows alone. Ids are joined by a 64-bit hash,
which also stands for chance: what is decided by lot is decided by a hash of (seed, response_id), so that the order of
rows never matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from oxa import records
from oxa.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

Columns = dict[str, Callable[[pa.Array], Any]]

ARRAY_ROWS = (
    65_536  # rows read at a time where every column becomes numbers: a megabyte of ids stays in the cache
)
TEXT_ROWS = 4_096  # the same for texts, which may hold 200 kB each


class Files(NamedTuple):
    """The tables of one origin, and the problems that they speak of."""

    problems: Path
    responses: Path
    verdicts: Path
    scores: Path


class Candidates(NamedTuple):
    """What a rule chooses from: arrays [N]."""

    row: Ints  # in the responses table
    score_row: Ints  # in the scores table
    problem: Ints  # row in the problems table
    ppl: Floats
    num_tokens: Ints
    order: Hashes  # hash of (seed, response_id)

    def only(self, keep: Any) -> Candidates:
        """Those that `keep`, a mask or positions, names."""
        return Candidates(*(array[keep] for array in self))


def read(
    files: Files, verdicts: Iterable[str], seed: int, *, whole: bool = False
) -> tuple[Candidates, dict[str, int]]:
    """Scored responses to training problems with one of `verdicts`, and how many were left after each condition.

    `whole`: only those that no limit cut, neither the sampler's nor the scorer's. A ppl that is not finite is no score.
    """
    columns: Columns = {"response_id": _hash, "problem_id": _hash}
    if whole:
        columns["finish_reason"] = lambda reason: _mask(pc.equal(reason, "length"))
    response = _arrays(files.responses, records.RESPONSES, columns)
    key = response["response_id"]

    problems = {"problem_id": _hash, "split": lambda split: _mask(pc.equal(split, "train"))}
    table = _arrays(files.problems, records.PROBLEMS, problems)
    named = response.pop("problem_id")
    train = np.flatnonzero(table["split"])  # alone: a question may stand in several benchmarks
    problem = _find(named, np.argsort(named), table["problem_id"][train], files.problems)
    problem = np.append(train, -1)[problem]  # rows of the whole table; -1, none, is the one appended
    number = int((~np.isin(named[problem < 0], table["problem_id"])).sum())
    del named, table
    if number:
        raise DataError(
            f"{files.responses}: {number} rows name problems that are not in {files.problems}; make both with dvc repro"
        )

    order = np.argsort(key)
    _refuse_twice(key[order], files.responses)
    kinds = pa.array(list(verdicts), pa.string())
    judged: Columns = {"response_id": _hash, "verdict": lambda verdict: _mask(pc.is_in(verdict, kinds))}
    verdict = _arrays(files.verdicts, records.VERDICTS, judged)
    rows = _same_rows(key, order, verdict["response_id"], files.responses, files.verdicts)
    allowed = np.append(verdict["verdict"], False)[rows]  # row -1, none, is the one appended
    del verdict, rows

    numbers: Columns = dict.fromkeys(("ppl", "num_tokens", "truncated"), _numbers)
    score = _arrays(files.scores, records.SCORES, {"response_id": _hash, **numbers})
    score_row = _same_rows(key, order, score.pop("response_id"), files.responses, files.scores)

    scored = np.append(np.isfinite(score["ppl"]), False)[score_row]
    conditions = {"verdict": allowed, "scored": scored, "train": problem >= 0}
    if whole:
        conditions["whole"] = ~(response["finish_reason"] | np.append(score["truncated"], False)[score_row])
    keep = np.ones(len(key), bool)
    funnel = {"responses": len(key)}
    for name, condition in conditions.items():
        keep &= condition
        funnel[name] = int(keep.sum())
    row = np.flatnonzero(keep)
    score_row = score_row[row]
    return Candidates(
        row=row,
        score_row=score_row,
        problem=problem[row],
        ppl=score["ppl"][score_row],
        num_tokens=score["num_tokens"][score_row].astype(np.int64),
        order=_mix(key[row] ^ _mix(np.array([seed], np.uint64))),
    ), funnel


def _same_rows(key: Hashes, order: Ints, other: Hashes, here: Path, there: Path) -> Ints:
    """For each response its row in another table, -1 where it has none.

    Raises DataError where an id stands twice in either table, or the other names a response that does not exist.
    """
    rows = _find(key, order, other, there)
    excess = len(other) - int((rows >= 0).sum())
    if excess > 0:
        raise DataError(
            f"{there}: {excess} rows name responses that are not in {here}; make both with dvc repro"
        )
    return rows


def _find(key: Hashes, order: Ints, table: Hashes, path: Path) -> Ints:
    """For each key its row in a table of unique keys, -1 where there is none; DataError where one stands twice.

    `order` sorts `key`: searching in order keeps the search in the cache.
    """
    table_order = np.argsort(table)
    table = table[table_order]
    _refuse_twice(table, path)
    rows = np.full(len(key), -1, np.int64)
    if len(table):
        ranked = key[order]
        at = np.searchsorted(table, ranked)
        at[at == len(table)] = 0
        hit = table[at] == ranked
        rows[order[hit]] = table_order[at[hit]]
    return rows


def _refuse_twice(ranked: Hashes, path: Path) -> None:
    if (ranked[1:] == ranked[:-1]).any():
        raise DataError(f"{path}: an id stands in two rows; make the file again with dvc repro")


def _arrays(path: Path, schema: pa.Schema, columns: Columns) -> dict[str, Any]:
    """Each column as the array that its function makes of it, batch by batch: no column of texts is ever whole."""
    length, start = records.num_rows(path), 0
    empty = pa.RecordBatch.from_pylist([], pa.schema([schema.field(name) for name in columns]))
    arrays = {name: np.empty(length, convert(empty[name]).dtype) for name, convert in columns.items()}
    for batch in records.stream(path, schema, list(columns), ARRAY_ROWS):
        for name, convert in columns.items():
            arrays[name][start : start + len(batch)] = convert(batch[name])
        start += len(batch)
    pa.default_memory_pool().release_unused()  # decoding leaves some 25 MB with Arrow that numpy is about to want
    return arrays


def _hash(ids: pa.StringArray) -> Hashes:
    """64-bit hash of each text: its length and its bytes, eight at a time, each multiplied and folded in."""
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = np.append(np.frombuffer(data or b"", np.uint8)[: ends[-1]], np.zeros(8, np.uint8))
    words = np.ndarray((len(text) - 7,), "<u8", text, strides=(1,))  # the eight bytes from each position on
    lengths = np.diff(ends)
    tail = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # masks what belongs to the next text
    state = _mix(lengths.astype(np.uint64))
    for k in range(0, int(lengths.max(initial=0)), 8):
        word = words[np.minimum(ends[:-1] + k, len(words) - 1)] & tail[np.clip(lengths - k, 0, 8)]
        state = np.where(lengths > k, _mix(state ^ word), state)
    return state


def _mix(x: Hashes) -> Hashes:
    """A bijection that spreads every bit over all (splitmix64's finalizer, Steele et al. 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mask(array: pa.BooleanArray) -> Mask:
    return array.fill_null(False).to_numpy(zero_copy_only=False)


def _numbers(array: pa.Array) -> Any:
    return array.to_numpy(zero_copy_only=False)


def take(path: Path, schema: pa.Schema, columns: list[str], rows: Ints) -> pa.Table:
    """`columns` of these rows, in this order; one batch of the file and the result are in memory."""
    wanted, back = np.unique(rows, return_inverse=True)
    start, parts = 0, []
    for batch in records.stream(path, schema, columns, TEXT_ROWS):
        low, high = np.searchsorted(wanted, (start, start + len(batch)))
        if low < high:
            parts.append(batch.take(pa.array(wanted[low:high] - start)))
        start += len(batch)
    table = pa.Table.from_batches(parts, pa.schema([schema.field(name) for name in columns]))
    return table.take(pa.array(back))
