"""Scored responses as arrays: four tables of one origin joined by id, without a Python object a row.

Only the columns that a rule needs are read; texts follow, of the chosen rows alone. Ids are joined by a 64-bit hash,
which also stands for chance: what is decided by lot is decided by a hash of (seed, response_id), so that the order of
rows never matters.

Arrays are made from Arrow's buffers and Arrow's from theirs: pyarrow's own conversions, of a single number even, import
pandas where it is installed, which takes 40 MB and as long as a third of the selection from a million responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from oxa.errors import DataError
from oxa.hashes import Hashes, hash_texts, mix
from oxa.records import schemas, tables

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]
"""Rows and counts: of 32 bits where there are as many as candidates."""
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

Columns = dict[str, Callable[[pa.Array], Any]]

ARRAY_ROWS = (
    65_536  # rows read at a time where every column becomes numbers: a megabyte of ids stays in the cache
)
TEXT_ROWS = 4_096  # the same for texts, which may hold 200 kB each
FOUND_ROWS = 65_536  # ids looked up at a time


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
    verdict_row: Ints  # in the verdicts table
    problem: Ints  # row in the problems table
    ppl: Floats
    value: Floats  # what the rule looks at: ppl, or another measure
    num_tokens: Ints
    order: Hashes  # hash of (seed, response_id)

    def only(self, keep: Any) -> Candidates:
        """Those that `keep`, a mask or positions, names."""
        return Candidates(*(array[keep] for array in self))


def read(
    files: Files,
    apart: Path,
    verdicts: Iterable[str],
    seed: int,
    *,
    max_length: int,
    whole: bool = False,
    by: str = "ppl",
    pass_rates: Path | None = None,
) -> tuple[Candidates, dict[str, int]]:
    """Scored responses to training problems with one of `verdicts`, and how many were left after each condition.

    None to a problem of the table `apart`. Only those that can be trained on: with prompt and end token not longer
    than `max_length`, nor than the context of the model that scored them. `whole`: only those that no limit cut,
    neither the sampler's nor the scorer's. A ppl that is not finite is no score, nor is any measure that the scores
    hold beside it, whether `by` asks for it or not: every rule chooses among the same responses. `pass_rates` is read
    where `by` is `pass_rate`.
    """
    columns: Columns = {"response_id": hash_texts, "problem_id": hash_texts}
    if whole:
        columns["finish_reason"] = partial(_is_one_of, ["length"])
    response = _arrays(files.responses, schemas.RESPONSES, columns)
    key = response["response_id"]

    problems: Columns = {"problem_id": hash_texts, "split": partial(_is_one_of, ["train"])}
    table = _arrays(files.problems, schemas.PROBLEMS, problems)
    named = response.pop("problem_id")
    held = _arrays(apart, schemas.APART, {"problem_id": hash_texts})["problem_id"]
    is_free = ~np.isin(named, held)
    train = np.flatnonzero(table["split"]).astype(
        np.int32
    )  # alone: a question may stand in several benchmarks
    problem = _find(named, _sorting(named), table["problem_id"][train], files.problems)
    problem = np.append(train, np.int32(-1))[
        problem
    ]  # rows of the whole table; -1, none, is the one appended
    rates = _rates(pass_rates, table["problem_id"], train) if by == "pass_rate" and pass_rates else None
    number = int((~np.isin(named[problem < 0], table["problem_id"])).sum())
    del named, table
    if number:
        raise DataError(
            f"{files.responses}: {number} rows name problems that are not in {files.problems}; make both with dvc repro"
        )

    order = _sorting(key)
    _refuse_twice(key[order], files.responses)
    judged: Columns = {"response_id": hash_texts, "verdict": partial(_is_one_of, list(verdicts))}
    verdict = _arrays(files.verdicts, schemas.VERDICTS, judged)
    verdict_row = _same_rows(key, order, verdict["response_id"], files.responses, files.verdicts)
    allowed = np.append(verdict["verdict"], False)[verdict_row]  # row -1, none, is the one appended
    del verdict

    measures = [name for name in tables.columns(files.scores) if name in schemas.MEASURES.names]
    if by in schemas.MEASURES.names and by not in measures:
        raise DataError(f"{files.scores}: does not hold {by}; add it to score.measures and run `dvc repro`")
    numbers: Columns = dict.fromkeys(("ppl", "num_tokens", "truncated", "train_tokens", *measures), _numbers)
    score = _arrays(files.scores, schemas.scores(measures), {"response_id": hash_texts, **numbers})
    score_row = _same_rows(key, order, score.pop("response_id"), files.responses, files.scores)

    finite = np.logical_and.reduce([np.isfinite(score[name]) for name in ("ppl", *measures)])
    scored = np.append(finite, False)[score_row]
    conditions = {"verdict": allowed, "scored": scored, "train": problem >= 0}
    if len(held):
        conditions["apart"] = is_free
    if whole:
        conditions["whole"] = ~(response["finish_reason"] | np.append(score["truncated"], False)[score_row])
    longest = min(max_length, _context(files.scores))
    conditions["fits"] = np.append(score["train_tokens"] <= longest, False)[score_row]
    keep = np.ones(len(key), bool)
    funnel = {"responses": len(key)}
    for name, condition in conditions.items():
        keep &= condition
        funnel[name] = int(keep.sum())
    del order, conditions, scored
    row = np.flatnonzero(keep).astype(np.int32)
    score_row = score_row[row]
    ppl = score["ppl"][score_row]
    if by == "ppl":
        value = ppl
    elif rates is not None:
        value = rates[problem[row]]
    else:
        value = score["num_tokens" if by == "length" else by][score_row].astype(np.float64)
    return Candidates(
        row=row,
        score_row=score_row,
        verdict_row=verdict_row[row],
        problem=problem[row],
        ppl=ppl,
        value=value,
        num_tokens=score["num_tokens"][score_row],
        order=mix(key[row] ^ mix(np.array([seed], np.uint64))),
    ), funnel


def _rates(path: Path, problems: Hashes, train: Ints) -> Floats:
    """Of every row of the problems table the share of answers that solved it; NaN of those that are none of `train`.

    Raises DataError where one of those was not measured.
    """
    columns: Columns = {"problem_id": hash_texts, "split": partial(_is_one_of, ["train"])}
    columns |= dict.fromkeys(("num_samples", "num_correct"), _numbers)
    table = _arrays(path, schemas.PASS_RATES, columns)
    table = {name: values[table["split"]] for name, values in table.items()}
    wanted = problems[train]
    at = _find(wanted, _sorting(wanted), table["problem_id"], path)
    if missing := int((at < 0).sum()):
        raise DataError(
            f"{path}: holds no pass rate of {missing} of {len(train)} training problems; add train to pass_rate.splits "
            "and run `dvc repro`"
        )
    rates = np.full(len(problems), np.nan)
    rates[train] = table["num_correct"][at] / table["num_samples"][at]
    return rates


def _context(scores: Path) -> int:
    """The longest sequence that the scorer takes, tokens, as it is kept with its table."""
    notes = tables.notes(scores)
    if schemas.CONTEXT not in notes:
        raise DataError(
            f"{scores}: does not say how long the scorer's context is; make it again with dvc repro"
        )
    return int(notes[schemas.CONTEXT])


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

    `order` sorts `key`: searching in order, some at a time, keeps the search in the cache.
    """
    table_order = _sorting(table)
    table = table[table_order]
    _refuse_twice(table, path)
    rows = np.full(len(key), -1, np.int32)
    for start in range(0, len(key) if len(table) else 0, FOUND_ROWS):
        here = order[start : start + FOUND_ROWS]
        ranked = key[here]
        at = np.searchsorted(table, ranked)
        at[at == len(table)] = 0
        hit = table[at] == ranked
        rows[here[hit]] = table_order[at[hit]]
    return rows


def _sorting(keys: Hashes) -> npt.NDArray[np.int32]:
    """What sorts the keys."""
    assert len(keys) < 2**31
    return np.argsort(keys).astype(np.int32)


def _refuse_twice(ranked: Hashes, path: Path) -> None:
    if (ranked[1:] == ranked[:-1]).any():
        raise DataError(f"{path}: an id stands in two rows; make the file again with dvc repro")


def _arrays(path: Path, schema: pa.Schema, columns: Columns) -> dict[str, Any]:
    """Each column as the array that its function makes of it, batch by batch: no column of texts is ever whole."""
    length, start = tables.num_rows(path), 0
    empty = {name: pa.nulls(0, schema.field(name).type) for name in columns}
    arrays = {name: np.empty(length, convert(empty[name]).dtype) for name, convert in columns.items()}
    for batch in tables.stream(path, schema, list(columns), ARRAY_ROWS):
        for name, convert in columns.items():
            arrays[name][start : start + len(batch)] = convert(batch[name])
        start += len(batch)
    pa.default_memory_pool().release_unused()  # decoding leaves some 25 MB with Arrow that numpy is about to want
    return arrays


def _is_one_of(texts: list[str], array: pa.StringArray) -> Mask:
    """Which entries are one of these texts; a null is none."""
    return _bits(pc.is_in(array, strings(texts)))


def _bits(array: pa.BooleanArray) -> Mask:
    whole = array.cast(pa.uint8())
    return np.frombuffer(whole.buffers()[1] or b"", np.bool_)[whole.offset :][: len(whole)]


def _numbers(array: pa.Array) -> Any:
    if array.null_count:
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(array.type):
        return _bits(array)
    kind = {pa.float64(): np.float64, pa.int32(): np.int32}[array.type]
    return np.frombuffer(array.buffers()[1] or b"", kind)[array.offset :][: len(array)]


def strings(texts: Sequence[str | bytes]) -> pa.StringArray:
    """The texts, bytes being UTF-8, as an Arrow array."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    assert offsets[-1] < 2**31
    data = pa.py_buffer(b"".join(encoded))
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets.astype(np.int32)), data)


def numbers(array: npt.NDArray[Any]) -> pa.Array:
    """The numbers, of 32 or 64 bits, as an Arrow array."""
    kind = pa.from_numpy_dtype(array.dtype)
    return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(np.ascontiguousarray(array))])


def take(path: Path, schema: pa.Schema, columns: list[str], rows: Ints) -> pa.Table:
    """`columns` of these rows, in this order; one batch of the file and the result are in memory."""
    wanted, back = np.unique(rows, return_inverse=True)
    start, parts = 0, []
    for batch in tables.stream(path, schema, columns, TEXT_ROWS):
        low, high = np.searchsorted(wanted, (start, start + len(batch)))
        if low < high:
            parts.append(batch.take(numbers(wanted[low:high] - start)))
        start += len(batch)
    table = pa.Table.from_batches(parts, pa.schema([schema.field(name) for name in columns]))
    return table.take(numbers(back))


def pick(path: Path, schema: pa.Schema, columns: list[str], rows: Ints) -> list[list[bytes]]:
    """Columns of texts of these rows, in this order, as UTF-8.

    One batch of the file is in memory, and each text once: an Arrow array of them all could hold no more than 2 GiB.
    """
    wanted, back = np.unique(rows, return_inverse=True)
    columns_of_texts: list[list[bytes]] = [[] for _ in columns]
    start = 0
    for batch in tables.stream(path, schema, columns, TEXT_ROWS):
        low, high = np.searchsorted(wanted, (start, start + len(batch)))
        if low < high:
            taken = batch.take(numbers(wanted[low:high] - start))
            for texts, column in zip(columns_of_texts, taken.columns, strict=True):
                texts += column.cast(pa.binary()).to_pylist()
        start += len(batch)
    return [[texts[i] for i in back] for texts in columns_of_texts]
