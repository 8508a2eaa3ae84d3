"""Scored responses as arrays: four tables of one origin joined by id, without a Python object a row.

Only the columns that a rule needs are read; texts follow, of the chosen rows alone. Ids are joined by a 64-bit hash,
which also stands for chance: what is decided by lot is decided by a hash of (seed, response_id), so that the order of
rows never matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from oxa import records
from oxa.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

BATCH_ROWS = 4096  # texts of up to 200 kB each pass through memory this many at a time


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
    columns = ["response_id", "problem_id", *(["finish_reason"] if whole else [])]
    responses = records.read(files.responses, records.RESPONSES, columns)
    key = _hash(responses["response_id"])
    problem, in_train = _problems(files, responses["problem_id"])
    cut = _mask(pc.equal(responses["finish_reason"], "length")) if whole else None
    del responses

    judged = records.read(files.verdicts, records.VERDICTS, ["response_id", "verdict"])
    allowed = _mask(pc.is_in(judged["verdict"], pa.array(list(verdicts), pa.string())))
    allowed = np.append(allowed, False)[
        _align(key, _hash(judged["response_id"]), files.responses, files.verdicts)
    ]
    del judged

    scores = records.read(files.scores, records.SCORES, ["response_id", "ppl", "num_tokens", "truncated"])
    score_row = _align(key, _hash(scores["response_id"]), files.responses, files.scores)
    ppl = scores["ppl"].to_numpy()
    scored = np.append(np.isfinite(ppl), False)[score_row]

    funnel = {"responses": len(key)}
    keep = np.ones(len(key), bool)
    conditions = {"verdict": allowed, "scored": scored, "train": in_train}
    if cut is not None:
        conditions["whole"] = ~(cut | np.append(_mask(scores["truncated"]), False)[score_row])
    for name, condition in conditions.items():
        keep &= condition
        funnel[name] = int(keep.sum())
    row = np.flatnonzero(keep)
    score_row = score_row[row]
    return Candidates(
        row=row,
        score_row=score_row,
        problem=problem[row],
        ppl=ppl[score_row],
        num_tokens=scores["num_tokens"].to_numpy()[score_row].astype(np.int64),
        order=_mix(key[row] ^ _mix(np.array([seed], np.uint64))),
    ), funnel


def _problems(files: Files, ids: pa.ChunkedArray) -> tuple[Ints, Mask]:
    """Each response's row in the problems table, and whether that is a training problem."""
    table = records.read(files.problems, records.PROBLEMS, ["problem_id", "split"])
    coded = ids.dictionary_encode().combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    rows = pc.index_in(coded.dictionary, value_set=table["problem_id"])
    if rows.null_count:
        missing = coded.dictionary.filter(rows.is_null())[0]
        raise DataError(
            f"{files.responses}: problem_id {missing} is not in {files.problems}; make both with dvc repro"
        )
    problem = rows.to_numpy().astype(np.int64)[coded.indices.to_numpy()]
    return problem, _mask(pc.equal(table["split"], "train"))[problem]


def _align(key: Hashes, other: Hashes, here: Path, there: Path) -> Ints:
    """For each response its row in another table, -1 where it has none.

    Raises DataError where an id stands twice in either table, or the other names a response that does not exist.
    """
    order, other_order = np.argsort(key), np.argsort(other)
    ranked, other_ranked = key[order], other[other_order]
    for path, ids in ((here, ranked), (there, other_ranked)):
        if (ids[1:] == ids[:-1]).any():
            raise DataError(f"{path}: a response_id stands in two rows; make the file again with dvc repro")
    at = np.searchsorted(other_ranked, ranked)
    hit = np.append(other_ranked, np.uint64(0))[at] == ranked
    hit &= at < len(other)
    if hit.sum() < len(other):
        excess = len(other) - int(hit.sum())
        raise DataError(
            f"{there}: {excess} rows name responses that are not in {here}; make both with dvc repro"
        )
    rows = np.full(len(key), -1, np.int64)
    rows[order[hit]] = other_order[at[hit]]
    return rows


def _hash(ids: pa.ChunkedArray) -> Hashes:
    """64-bit hash of each text: its length and its bytes, eight at a time, each multiplied and folded in."""
    return np.concatenate([_hash_chunk(chunk) for chunk in ids.chunks] or [np.empty(0, np.uint64)])


def _hash_chunk(ids: pa.StringArray) -> Hashes:
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


def _mask(array: pa.ChunkedArray) -> Mask:
    return array.fill_null(False).to_numpy().astype(bool)


def take(path: Path, columns: list[str], rows: Ints) -> pa.Table:
    """`columns` of these rows, in this order; streams, so that only one batch and the result are in memory."""
    wanted, back = np.unique(rows, return_inverse=True)
    start, parts = 0, []
    with pq.ParquetFile(path, memory_map=True) as file:
        absent = set(columns) - set(file.schema_arrow.names)
        if absent:
            raise DataError(f"{path}: no column {min(absent)!r}; make it again with dvc repro")
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if np.searchsorted(wanted, start) < np.searchsorted(wanted, end):
                at = start
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    low, high = np.searchsorted(wanted, (at, at + len(batch)))
                    if low < high:
                        parts.append(batch.take(pa.array(wanted[low:high] - at)).select(columns))
                    at += len(batch)
            start = end
    return pa.Table.from_batches(parts, schema).take(pa.array(back))
