"""Stage `begin`: what an arm of two passes goes on from (`train.after`), and that it is there.

DVC knows no way to write "the checkpoint of the arm that this one names" among what `train` depends on, so it depends
on this stage's word, which lies with the arm's training set: which arm it is, and of each seed the hash of the weights
and the tokens that they have seen. The checkpoint itself is the `--model` of the arm's training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxa.runtime import files, journal


def run(*, trained: Path, output: Path, scratch: Path, log: journal.Log) -> dict[str, Any]:
    """Writes as JSON what the folder `trained`, which has the arm's name, holds of its trainings, by seed."""
    runs = {path.stem: files.read_json(path) for path in sorted(trained.glob("*.json"))}
    files.write_json(output, {"arm": trained.name, "runs": runs})
    return {}
