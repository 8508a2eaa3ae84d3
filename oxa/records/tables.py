"""The tables between stages: their Arrow schemas, and reading and writing that checks them.

Parquet, long format, one row a thing, joined by id. Files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oxa.errors import DataError
from oxa.runtime.files import atomic

NOTE = "oxa."  # begins the names of what Writer.note keeps


def write(
    path: Path,
    rows: pa.Table | list[dict[str, Any]] | dict[str, Any],
    schema: pa.Schema,
    notes: dict[str, Any] | None = None,
) -> None:
    """Writes a table (rows, or columns by name) with exactly this schema, atomically; `notes` as by Writer.note."""
    if isinstance(rows, list):
        table = pa.Table.from_pylist(rows, schema=schema)
    elif isinstance(rows, dict):
        table = pa.table(rows, schema=schema)
    else:
        table = rows.select(schema.names).cast(schema)
    table = table.replace_schema_metadata(dict(_note(key, value) for key, value in (notes or {}).items()))
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


class Writer:
    """Writes a table row by row, a batch at a time; for tables that are too large to be held."""

    MAX_ROWS, MAX_CHARS = 4096, 2**25

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        self._tables: list[pa.Table] = []
        self._num_rows = self._chars = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def note(self, key: str, value: Any) -> None:
        """Keeps a value with the table, as JSON, beside the schema; `notes` reads it."""
        self._writer.add_key_value_metadata(dict([_note(key, value)]))

    def add(self, **row: Any) -> None:
        """Adds a row, by column."""
        assert row.keys() == self._columns.keys(), row.keys()
        for name, value in row.items():
            self._columns[name].append(value)
            if isinstance(value, str):
                self._chars += len(value)
        self._num_rows += 1
        if self._num_rows >= self.MAX_ROWS or self._chars >= self.MAX_CHARS:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Adds rows that are columns already, of exactly this schema."""
        self._tables.append(table)
        self._num_rows, self._chars = self._num_rows + len(table), self._chars + table.nbytes
        if self._num_rows >= self.MAX_ROWS or self._chars >= self.MAX_CHARS:
            self._flush()

    def _flush(self) -> None:
        assert not (self._tables and any(self._columns.values())), "rows or tables, not both"
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
        elif self._num_rows:
            self._writer.write_table(pa.table(self._columns, schema=self._schema))
        self._columns = {name: [] for name in self._columns}
        self._tables = []
        self._num_rows = self._chars = 0


def read(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Reads a table (memory-mapped, only `columns` if given).

    Raises DataError where the file is missing, is not Parquet or has other columns.
    """
    with _checked(path, schema, columns):
        table = pq.read_table(path, columns=columns or schema.names, memory_map=True)
        table.validate(full=True)  # that text is UTF-8, above all
        return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def stream(path: Path, schema: pa.Schema, columns: list[str], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The same, `num_rows` rows at a time, for tables that are too large to be held."""
    # read through a buffer: of a file that is mapped, or read ahead, all that was read stays resident
    options = {"pre_buffer": False, "buffer_size": 2**20}
    with _checked(path, schema, columns), pq.ParquetFile(path, **options) as file:
        wanted = pa.schema([schema.field(name) for name in columns])
        # one thread: several decode little faster, and each keeps buffers of its own
        for batch in file.iter_batches(num_rows, columns=columns, use_threads=False):
            batch.validate(full=True)
            yield batch.select(columns).cast(wanted)


def _note(key: str, value: Any) -> tuple[str, str]:
    return f"{NOTE}{key}", json.dumps(value, sort_keys=True)


def notes(path: Path) -> dict[str, Any]:
    """The values that Writer.note put beside a table, by key."""
    with _checked(path, pa.schema([]), None):
        metadata = pq.read_metadata(path).metadata or {}
        return {
            key.decode().removeprefix(NOTE): json.loads(value)
            for key, value in metadata.items()
            if key.startswith(NOTE.encode())
        }


def columns(path: Path) -> list[str]:
    """The names of a table's columns."""
    with _checked(path, pa.schema([]), None):
        names: list[str] = pq.read_schema(path).names
        return names


def num_rows(path: Path) -> int:
    """Rows of a table; its footer alone is read."""
    with _checked(path, pa.schema([]), None):
        return pq.read_metadata(path).num_rows


@contextmanager
def _checked(path: Path, schema: pa.Schema, columns: list[str] | None) -> Iterator[None]:
    """Turns what is wrong with a Parquet file that is read in the block into a DataError."""
    try:
        present = pq.read_schema(path).names
        names = set(columns or schema.names)
        for field in schema:
            if field.name in names and field.name not in present:
                raise DataError(
                    f"{path}: no column {field.name!r}; found {present}; make it again with dvc repro"
                )
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `dvc repro` makes it") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: not a readable Parquet file ({reason}); `dvc checkout --force` or `dvc repro` brings it back"
        ) from None
