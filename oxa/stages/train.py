"""Stage `train`: fine-tunes the base on an arm's training set (oxa/training/fine_tuning.py).

An arm of two passes goes on from another arm's checkpoint of the same seed: `model` is that one, and `data` holds the
word of stage `begin` about it. Its budget, steps and schedule are those of every arm, on its own sets; what it has seen
in all is told as `tokens_before` and `tokens`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.records.training_set import BEFORE
from oxa.runtime import files, journal
from oxa.training import fine_tuning


def run(
    shared: FineTuning,
    arm: TrainArm,
    *,
    model: Path,
    data: Path,
    output: Path,
    scratch: Path,
    seed: int,
    log: journal.Log,
    trained: Path | None = None,
) -> dict[str, Any]:
    """Trains `model` on the tables in `data` and saves the result as a checkpoint folder `output`; returns its metrics.

    `trained`: where to write, as JSON, the hash of the new weights and the tokens that they have seen, by kind.
    """
    metrics = fine_tuning.run(
        shared, arm, model=model, data=data, output=output, scratch=scratch, seed=seed, log=log
    )
    tokens: dict[str, int] = metrics["tokens"]
    if before := _tokens_before(data / BEFORE, model.name, seed):
        metrics["tokens_before"] = before
        tokens = {kind: number + before[kind] for kind, number in tokens.items()}
    if trained is not None and os.environ.get("RANK", "0") == "0":
        files.write_json(trained, {"md5": _hash_of_weights(output), "tokens": tokens})
    return metrics


def _tokens_before(path: Path, model: str, seed: int) -> dict[str, int]:
    """What the model that is gone on from has seen; {} of the base, which a word that was left behind is not about."""
    word: dict[str, Any] = files.read_json(path) if path.exists() else {}
    if f"{word.get('arm')}-{seed}" != model:
        return {}
    tokens: dict[str, int] = word["runs"][str(seed)]["tokens"]
    return tokens


def _hash_of_weights(checkpoint: Path) -> str:
    whole = hashlib.md5(usedforsecurity=False)
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest())
    return whole.hexdigest()
