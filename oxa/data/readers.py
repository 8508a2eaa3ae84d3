"""Rows of a file or of a hub dataset, one at a time, as dictionaries.

Local files lie under `sources.folder`, which DVC watches. They are streamed, JSON lines, JSON lists and Parquet alike:
a row and a few megabytes round it are in memory. A hub dataset is named `hf:owner/name[:config][:split]`: a single part
is a split if it is called `train`, `validation` or `test`, else a configuration; without a split, `train` is read. What
cannot be read is a DataError that names the file and the line or row.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from oxa.config.sources import Source
from oxa.errors import ConfigError, DataError

Row = tuple[int, str, dict[str, Any]]
"""Number from 0 (blank lines not counted), where a person finds it, columns."""
Project = Callable[[list[str], str], list[str]]
"""From a table's columns and where it lies, those to read."""

SPLITS = ("train", "validation", "test")
CHUNK = 2**20  # characters of a JSON list read at a time
CUT = 16  # characters before a chunk's end, within which a token may be cut: -Infinity, an escape
_BLANKS = re.compile(r"[ \t\n\r]*")


def read(source: Source, folder: Path, project: Project) -> Iterator[Row]:
    """Yields the rows of a file or, unless `local` is there in its place, of a hub dataset."""
    if not source.source.startswith("hf:"):
        return _file(_path(source.source, folder), project)
    if source.local is not None and (path := _path(source.local, folder)).exists():
        return _file(path, project)
    repository, config, split = parts_of(source.source)
    if Path(repository).exists():  # `datasets` would take it, and DVC would not see it change
        raise ConfigError(
            f"source {source.source!r}: {repository} is a folder here, not only the hub's; name what is under "
            "sources.folder without `hf:`, or move that folder away"
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


def parts_of(identifier: str) -> tuple[str, str | None, str]:
    """Repository, configuration and split of hf:owner/name[:config][:split]; ConfigError for anything else."""
    match = re.fullmatch(r"hf:(\w[\w.-]*/\w[\w.-]*)(?::([^:\s]*))?(?::([^:\s]+))?", identifier)
    if match is None:
        raise ConfigError(f"source {identifier!r}: expected hf:owner/name[:config][:split]")
    repository, first, second = match.groups()
    if second is None and first in SPLITS:
        return repository, None, first
    return repository, first or None, second or "train"


def count(source: Source, folder: Path) -> int | None:
    """About how many rows a local file has; None for a hub dataset, a JSON list and what cannot be read.

    Blank lines are counted, too: a progress bar asks, and `read` tells what is wrong with a file.
    """
    text = source.local if source.source.startswith("hf:") else source.source
    path = _path(text, folder) if text is not None else None
    if path is None or not path.is_file():
        return None
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError):
            return None
    with path.open("rb") as file:
        if file.read(CHUNK).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return None
        file.seek(0)
        return sum(part.count(b"\n") for part in iter(partial(file.read, CHUNK), b""))


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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown}: the hub dataset could not be loaded ({reason}); {advice}") from None
    for row, value in enumerate(data.select_columns(project(data.column_names, shown))):
        yield row, f"{shown}: row {row}", value


def _path(text: str, folder: Path) -> Path:
    """Where a local source lies: named from the folder or from here, and under the folder either way."""
    root = Path(os.path.abspath(folder))
    named = [
        Path(os.path.abspath(path)) for path in ((root.parent if root.is_file() else root) / text, Path(text))
    ]
    inside = [path for path in named if path.is_relative_to(root)]
    path = next((path for path in inside if path.exists()), None)
    if path is None and (not inside or any(path.exists() for path in named)):
        raise ConfigError(
            f"source {text!r} lies outside sources.folder {str(folder)!r}, where DVC would not see it change; move it "
            "there, or name its folder in sources.folder"
        )
    path = path or inside[0]
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
        is_list = _first(path, file) == "["
        file.seek(0)
        values = _listed(path, file) if is_list else _lines(path, file)
        for row, (where, value) in enumerate(values):
            if not isinstance(value, dict):
                raise DataError(
                    f"{where}: expected an object with columns, found {type(value).__name__}; mend it"
                )
            yield row, where, value


def _first(path: Path, file: TextIO) -> str:
    """The first character that is no white space; "" where there is none."""
    return next((text.lstrip()[0] for text in _chunks(path, file) if text.strip()), "")


def _lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank: where it stands and what it holds."""
    with _readable(path):
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parse(line.rstrip(), path, number)


def _listed(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Each entry of a list: where it stands and what it holds; no more of the list than a chunk is in memory."""
    decoder, chunks = json.JSONDecoder(), _chunks(path, file)
    text, at, line = "", 0, 1  # what is being read, how far that is, and the line on which it begins

    def more(least: int) -> bool:
        """Drops what is done and reads at least so many characters more; False at the file's end."""
        nonlocal text, at, line
        parts = [text[at:]]
        line, at = line + text.count("\n", 0, at), 0
        while least > 0 and (part := next(chunks, "")):
            parts.append(part)
            least -= len(part)
        text = "".join(parts)
        return len(parts) > 1

    def mark() -> str:
        """The next character that is no white space; "" at the file's end."""
        nonlocal at
        while True:
            at = _BLANKS.match(text, at).end()  # type: ignore[union-attr]
            if at < len(text):
                return text[at]
            if not more(1):
                return ""

    def broken(reason: str, place: int) -> DataError:
        return _broken(path, line + text.count("\n", 0, place), reason)

    mark()
    at += 1  # the opening bracket
    row = 0
    while (sign := mark()) != "]":
        if row:
            if sign != ",":
                raise broken("Expecting ',' delimiter", at)
            at += 1
            mark()
        while True:
            try:
                value, at = decoder.raw_decode(text, at)
                break
            except json.JSONDecodeError as error:
                # what is cut off by the chunk's end may be whole with the next one; what breaks before it will not
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(text) - CUT
                if not (is_cut and more(len(text) - at)):
                    raise broken(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # see _parse
                raise broken(str(error), at) from None
        yield f"{path}: row {row}", value
        row += 1
    at += 1
    if mark():
        raise broken("Extra data", at)


def _chunks(path: Path, file: TextIO) -> Iterator[str]:
    with _readable(path):
        while text := file.read(CHUNK):
            yield text


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _parse(text: str, path: Path, line: int) -> Any:
    """What this line of the file holds."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = error.msg
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits; thousands of brackets
        reason = str(error)
    raise _broken(path, line, reason)


def _broken(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"{path}:{line}: broken JSON ({reason}); mend or remove this line")


def _parquet(path: Path, project: Project) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # by default whole row groups are read ahead, which other writers make of a million rows
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            columns = project(file.schema_arrow.names, str(path))
            parts = file.iter_batches(batch_size=256, columns=columns, use_threads=False)
            batches = (batch.to_pylist() for batch in parts)
            for row, value in enumerate(chain.from_iterable(batches)):
                yield row, f"{path}: row {row}", value
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
