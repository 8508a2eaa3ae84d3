"""An arm's training set as tests write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oxa.records import schemas, tables


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A folder with the UL rows in a file of their own, and all others in the CE rows' file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, is_ul in (("ce", False), ("ul", True)):
        part = [row for row in rows if (row["objective"] == "ul") == is_ul]
        tables.write(folder / f"{name}.parquet", part, schemas.TRAIN)
    return folder
