"""Stage `train`: fine-tunes the base on an arm's training set (oxa/training/fine_tuning.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.runtime import journal
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
) -> dict[str, Any]:
    """Trains `model` on the table `data` and saves the result as a checkpoint folder `output`; returns its metrics."""
    return fine_tuning.run(
        shared, arm, model=model, data=data, output=output, scratch=scratch, seed=seed, log=log
    )
