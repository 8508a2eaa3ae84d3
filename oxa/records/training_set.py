"""An arm's training set as it lies on disk: a folder with its CE rows and, where it has them, its UL rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from oxa.records import schemas, tables

BEFORE = "after.json"
"""Beside the tables of an arm of two passes: what it goes on from, as stage `begin` has it."""
OBJECTIVES = ("ce", "ul")


def read(folder: Path, columns: list[str], *, suppresses: bool) -> pa.Table:
    """CE rows, then the UL rows of an arm that `suppresses`, each by response_id.

    An arm without unlikelihood may have had some before: what is left of it in the folder is no part of its set.
    """
    parts = OBJECTIVES if suppresses else OBJECTIVES[:1]
    return pa.concat_tables(tables.read(folder / f"{part}.parquet", schemas.TRAIN, columns) for part in parts)
