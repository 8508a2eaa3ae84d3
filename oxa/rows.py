"""Rows of a file or of a hub dataset, one at a time, as dictionaries.

Local files lie under `sources.folder`, which DVC watches. JSON lines and Parquet are streamed; a JSON list is loaded
whole. A hub dataset is named `hf:owner/name[:config][:split]`: a single part is a split if it is called `train`,
`validation` or `test`, else a configuration; without a split, `train` is read. What cannot be read is a DataError
that names the file and the line or row.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from oxa.config import Source
from oxa.errors import ConfigError, DataError

Row = tuple[int, str, dict[str, Any]]
"""Number from 0 (blank lines not counted), where a person finds it, columns."""
Project = Callable[[list[str], str], list[str]]
"""From a table's columns and where it lies, those to read."""

SPLITS = ("train", "validation", "test")


def read(source: Source, folder: Path, project: Project) -> Iterator[Row]:
    """Yields the rows of a file or, unless `local` is there in its place, of a hub dataset."""
    if not source.source.startswith("hf:"):
        return _file(_path(source.source, folder), project)
    if source.local is not None and (path := _path(source.local, folder)).exists():
        return _file(path, project)
    match = re.fullmatch(r"hf:([^/:\s]+/[^/:\s]+)(?::([^:\s]*))?(?::([^:\s]+))?", source.source)
    if match is None:
        raise ConfigError(f"source {source.source!r}: expected hf:owner/name[:config][:split]")
    repository, first, second = match.groups()
    config, split = (
        (None, first) if second is None and first in SPLITS else (first or None, second or "train")
    )
    file = (
        f"put {source.local!r} there"
        if source.local
        else "put its rows into a file there and name it in `local`"
    )
    advice = (
        f"check its name, configuration and split and, for gated data, HF_TOKEN; or, under {folder}, {file}"
    )
    return hub(repository, config, split, source.revision, project, shown=source.source, advice=advice)


def hub(
    repository: str,
    config: str | None,
    split: str,
    revision: str | None,
    project: Project,
    *,
    shown: str,
    advice: str,
) -> Iterator[Row]:
    """Rows of a hub dataset, or of a folder laid out like one.

    The `datasets` library downloads it once into its cache and maps it into memory from there: a second reading needs
    no network. It takes the token from its own environment and runs no code of the dataset.
    """
    import datasets

    try:
        data = datasets.load_dataset(repository, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown}: the hub dataset could not be loaded ({said}); {advice}") from None
    for row, value in enumerate(data.select_columns(project(data.column_names, shown))):
        yield row, f"{shown}: row {row}", value


def _path(text: str, folder: Path) -> Path:
    """Where a local source lies: named from the folder or from here, and under the folder either way."""
    root = Path(os.path.abspath(folder))
    named = [
        Path(os.path.abspath(path)) for path in ((root.parent if root.is_file() else root) / text, Path(text))
    ]
    inside = [path for path in named if path.is_relative_to(root)]
    found = next((path for path in inside if path.exists()), None)
    if found is None and (not inside or any(path.exists() for path in named)):
        raise ConfigError(
            f"source {text!r} lies outside sources.folder {str(folder)!r}, where DVC would not see it change; move it "
            "there, or name its folder in sources.folder"
        )
    path = found or inside[0]
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _file(path: Path, project: Project) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; put it there, or correct `source` or sources.folder in params.yaml"
        )
    if path.suffix == ".parquet":
        return _parquet(path, project)
    if path.suffix in (".jsonl", ".json"):
        return _json(path)
    raise ConfigError(f"{path}: expected a .jsonl, .json or .parquet file")


def _json(path: Path) -> Iterator[Row]:
    """Objects, one a line or all in one list."""
    with path.open(encoding="utf-8-sig") as file:
        lines = iter(enumerate(_lines(path, file), 1))
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            return
        if first[1].lstrip().startswith("["):
            text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
            values = ((f"{path}: row {row}", value) for row, value in enumerate(_parse(text, path, 1)))
        else:
            filled = ((number, line) for number, line in chain([first], lines) if line.strip())
            values = ((f"{path}:{number}", _parse(line.rstrip(), path, number)) for number, line in filled)
        for row, (where, value) in enumerate(values):
            if not isinstance(value, dict):
                raise DataError(
                    f"{where}: expected an object with columns, found {type(value).__name__}; mend it"
                )
            yield row, where, value


def _lines(path: Path, file: Any) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _parse(text: str, path: Path, line: int) -> Any:
    """A JSON text that begins on this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        said, line = error.msg, line + error.lineno - 1
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits; thousands of brackets
        said = str(error)
    raise DataError(f"{path}:{line}: broken JSON ({said}); mend or remove this line")


def _parquet(path: Path, project: Project) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = project(file.schema_arrow.names, str(path))
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=256, columns=columns))
            for row, value in enumerate(chain.from_iterable(batches)):
                yield row, f"{path}: row {row}", value
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
