"""Rows of files or of a hub dataset, one at a time, as dictionaries.

Local files lie under `sources.folder`, which DVC watches. They are streamed, JSON lines, JSON lists and Parquet alike:
a row and a few megabytes round it are in memory. A hub dataset is named `hf:owner/name[:config][:split]`: a single part
is a split if it is called `train`, `validation` or `test`, else a configuration; without a split, `train` is read. What
cannot be read is a DataError that names the file and the line or row.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from oxa.config.sources import Source
from oxa.data import columnar
from oxa.data.columnar import Project
from oxa.errors import ConfigError, DataError

Row = tuple[int, str, dict[str, Any]]
"""Number from 0 (blank lines not counted), where a person finds it, columns."""

SPLITS = ("train", "validation", "test")
CHUNK = 2**20  # characters of a JSON list read at a time
MAX_CHARS = 2**28  # characters of a row
CUT = 16  # characters before a chunk's end, within which a token may be cut: -Infinity, an escape
PARQUET, JSON = (".parquet",), (".jsonl", ".ndjson", ".json")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BLANKS = re.compile(r"[ \t\n\r]*")


def read(source: Source, folder: Path, project: Project) -> Iterator[Row]:
    """Yields the rows of files or, unless `local` is there in its place, of a hub dataset."""
    if (paths := local_paths(source, folder)) is not None:
        return _files(paths, project)
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


def local_paths(source: Source, folder: Path) -> list[Path] | None:
    """The files with a source's rows: those that it names, or those that lie in a hub dataset's place; else None."""
    if not source.source.startswith("hf:"):
        return _paths(source.source, folder)
    paths = _paths(source.local, folder) if source.local is not None else []
    return paths if any(path.exists() for path in paths) else None


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
    """About how many rows local files have; None for a hub dataset, a JSON list and what cannot be read.

    Blank lines are counted, too: a progress bar asks, and `read` tells what is wrong with a file.
    """
    paths = local_paths(source, folder)
    counts = [_count(path) for path in paths] if paths is not None else [None]
    numbers = [number for number in counts if number is not None]
    return sum(numbers) if len(numbers) == len(counts) else None


def _count(path: Path) -> int | None:
    if not path.is_file() or (suffix := _suffix(path)) != path.suffix.lower():
        return None
    if suffix in PARQUET:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError, UnicodeDecodeError):
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
    table = data.select_columns(project(data.column_names, shown)).with_format("arrow")
    batches = map(columnar.rows, table.iter(columnar.MAX_ROWS))
    for row, value in enumerate(chain.from_iterable(batches)):
        yield row, f"{shown}: row {row}", value


def _paths(text: str, folder: Path) -> list[Path]:
    """The files that a source names: one, those of a folder, or those that a pattern matches, by name.

    They are named from sources.folder or from here, and lie under that folder either way; one that is not there is
    given as it would lie there.
    """
    root = Path(os.path.abspath(folder))
    bases = (root.parent if root.is_file() else root, Path.cwd())
    named = [[Path(os.path.abspath(path)) for path in _there(base, text)] for base in bases]
    found = next((paths for paths in named if paths and _are_inside(paths, root)), [])
    absent = [path for base in bases if _are_inside([path := Path(os.path.abspath(base / text))], root)]
    if not found and (any(named) or not absent):
        raise ConfigError(
            f"source {text!r} lies outside sources.folder {str(folder)!r}, where DVC would not see it change; move it "
            "there, or name its folder in sources.folder"
        )
    paths = found or absent[:1]
    return [path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path for path in paths]


def _there(base: Path, text: str) -> list[Path]:
    path = base / text
    if path.is_dir():
        inside = [one for one in path.iterdir() if one.is_file() and _suffix(one) in PARQUET + JSON]
        return sorted(one for one in inside if not one.name.startswith(".")) or [path]
    if path.exists():
        return [path]
    matches = [base / match for match in glob.glob(text, root_dir=base, recursive=True)]
    return sorted(path for path in matches if path.is_file())


def _are_inside(paths: list[Path], root: Path) -> bool:
    return all(path.is_relative_to(root) for path in paths)


def _suffix(path: Path) -> str:
    """What kind of file it is, without regard to case and compression."""
    *others, last = [suffix.lower() for suffix in path.suffixes] or [""]
    return others[-1] if last in COMPRESSED and others else last


def _files(paths: list[Path], project: Project) -> Iterator[Row]:
    row = 0
    for path in paths:
        for where, columns in _file(path, project):
            yield row, where, columns
            row += 1


def _file(path: Path, project: Project) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.is_dir():
        raise DataError(
            f"{path}: no .jsonl, .json or .parquet file lies in this folder; name files deeper down with a pattern, "
            f"such as {f'{path.name}/**/train-*.parquet'!r}"
        )
    if not path.is_file():
        what = "no file matches" if glob.has_magic(str(path)) else "no such file"
        raise DataError(f"{path}: {what}; put it there, or correct `source` or sources.folder in params.yaml")
    with _readable(path), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path}: a Git LFS pointer, not the data; fetch the data with `git lfs pull`")
    suffix = _suffix(path)
    if suffix in PARQUET:
        rows = enumerate(columnar.parquet(path, project))
        return ((f"{path}: row {row}", value) for row, value in rows)
    if suffix in JSON:
        return _json(path)
    raise ConfigError(
        f"{path}: expected a .jsonl, .json or .parquet file, the first two perhaps with .gz or .zst behind"
    )


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects, one a line or all in one list."""
    with _opened(path) as file:
        is_list = _first(path, file) == "["
    with _opened(path) as file:
        for where, value in _listed(path, file) if is_list else _lines(path, file):
            if not isinstance(value, dict):
                raise DataError(
                    f"{where}: expected an object with columns, found {type(value).__name__}; mend it"
                )
            yield where, value


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file, unpacked; bytes that are not UTF-8 become half surrogate pairs, and their rows `bad_unicode`."""
    compression = COMPRESSED.get(path.suffix.lower())
    with _readable(path):
        if compression is None:
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                yield file
            return
        import pyarrow as pa

        with (
            pa.input_stream(path, compression=compression) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as file,
        ):
            yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); fetch it anew, or correct its permissions"
        ) from None


def _first(path: Path, file: TextIO) -> str:
    """The first character that is no white space; "" where there is none."""
    return next((text.lstrip()[0] for text in _chunks(path, file) if text.strip()), "")


def _lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank: where it stands and what it holds."""
    size, allowed, number, is_first = 0, columnar.budget(path), 0, True
    while line := file.readline(MAX_CHARS):
        number += 1
        size += len(line)
        if size > allowed:
            raise columnar.too_large(path, allowed)
        if len(line) == MAX_CHARS:
            raise DataError(
                f"{path}:{number}: a line of {MAX_CHARS} characters or more; write one row a line"
            )
        if line.strip():
            if is_first:
                _refuse_an_object_over_lines(path, line.rstrip(), file)
            is_first = False
            yield f"{path}:{number}", _parse(line.rstrip(), path, number)


def _refuse_an_object_over_lines(path: Path, line: str, file: TextIO) -> None:
    """DataError where the first line begins an object that ends on a later one: `{"data": [` and then the rows."""
    try:
        json.loads(line)
        return
    except json.JSONDecodeError as error:
        if error.pos < len(line):
            return
    except (ValueError, RecursionError):  # see _parse
        return
    ahead = file.read(2**12)  # the line is broken in any case: nothing more will be read
    if ahead.strip() and not ahead.lstrip().startswith("{"):
        listed = re.match(r'\s*\{\s*"([^"]+)"\s*:\s*\[', line + ahead)
        do = f"write the list under {listed[1]!r}" if listed else "write each row on one line"
        hint = f"jq -c '.{listed[1]}[]'" if listed else "jq -c ."
        raise DataError(
            f"{path}: an object over several lines, not rows, one a line or in a list; {do} into a file of its own "
            f"(`{hint}`)"
        )


def _listed(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Each entry of a list: where it stands and what it holds; no more of the list than a chunk is in memory."""
    decoder, chunks = json.JSONDecoder(), _chunks(path, file)
    text, at, line = "", 0, 1  # what is being read, how far that is, and the line on which it begins

    def more(least: int) -> bool:
        """Drops what is done and reads at least so many characters more; False at the file's end."""
        nonlocal text, at, line
        if len(text) - at > MAX_CHARS:
            raise broken(f"an entry of {MAX_CHARS} characters or more", at)
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
    size, allowed = 0, columnar.budget(path)
    while text := file.read(CHUNK):
        size += len(text)
        if size > allowed:
            raise columnar.too_large(path, allowed)
        yield text


def _parse(text: str, path: Path, line: int) -> Any:
    """What this line of the file holds."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = error.msg
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits; thousands of brackets
        reason = str(error)
    if any("\udc80" <= sign <= "\udcff" for sign in text):
        raise DataError(f"{path}:{line}: neither JSON nor UTF-8 text; save the file as JSON lines in UTF-8")
    raise _broken(path, line, reason)


def _broken(path: Path, line: int, reason: str) -> DataError:
    return DataError(f"{path}:{line}: broken JSON ({reason}); mend or remove this line")
