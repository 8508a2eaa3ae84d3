"""Rows of Parquet files and of Arrow tables, a few at a time, so that memory holds no more than these.

A value that Arrow holds but Python cannot is `Unreadable` in its row. A small file that would become gigabytes is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oxa.data.cells import Unreadable
from oxa.errors import DataError

Project = Callable[[list[str], str], list[str]]
"""From a table's columns and where it lies, those to read."""

MAX_ROWS = 32
"""Rows turned into Python values together."""
ROW_BYTES = 64
"""What a row takes beside its texts, at least."""
MAX_GROWTH, MIN_BUDGET = 200, 2**28
"""A file may become this many times its size, and in any case this many bytes."""


def parquet(path: Path, project: Project) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    allowed = budget(path)
    try:
        # by default whole row groups are read ahead, which other writers make of a million rows
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            columns = project(file.schema_arrow.names, str(path))
            groups = _group_sizes(file.metadata)
            if sum(groups) + ROW_BYTES * file.metadata.num_rows > allowed:
                raise too_large(path, allowed)
            # one value of a dictionary may stand in every row
            num_rows = max(1, min(MAX_ROWS, allowed // max(groups, default=1)))
            size = 0
            for batch in file.iter_batches(batch_size=num_rows, columns=columns, use_threads=False):
                for row in rows(batch):
                    size += _size(row)
                    if size > allowed:
                        raise too_large(path, allowed)
                    yield row
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: not a readable Parquet file (a name that is not UTF-8); fetch it anew"
        ) from None
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}); fetch it anew") from None


def _group_sizes(metadata: Any) -> list[int]:
    """Bytes, uncompressed, of each row group; a damaged group's columns are not asked, which would end the process."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return [max(1, group.total_byte_size) for group in groups]


def _size(value: Any) -> int:
    """Characters and bytes of what a value holds."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0


def rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a record batch or table."""
    import pyarrow as pa

    try:
        yield from batch.to_pylist()
    except (ValueError, ArithmeticError, LookupError, pa.ArrowException):  # one value spoils the batch
        for row in range(batch.num_rows):
            yield {
                name: _value(column[row])
                for name, column in zip(batch.column_names, batch.columns, strict=True)
            }


def _value(scalar: Any) -> Any:
    import pyarrow as pa

    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable("bytes that are not UTF-8 text")
    except (ValueError, ArithmeticError, LookupError, pa.ArrowException) as error:
        return Unreadable(f"a value that cannot be read ({error})")


def budget(path: Path) -> int:
    """Bytes that a file may become."""
    return max(MIN_BUDGET, MAX_GROWTH * path.stat().st_size)


def too_large(path: Path, allowed: int) -> DataError:
    return DataError(
        f"{path}: its {path.stat().st_size} bytes would become more than {allowed}, which no text does; fetch it anew, "
        "or write it again if that is meant"
    )
