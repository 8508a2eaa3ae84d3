"""A fine-tuning's outcome, which tests of training compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from conftest import Kept
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.training import fine_tuning


class Result:
    def __init__(self, metrics: dict[str, Any], output: Path, log: Kept) -> None:
        self.metrics, self.output, self.log = metrics, output, log
        self.weights = load_file(output / "model.safetensors")


def fine_tune(
    section: FineTuning,
    arm: TrainArm,
    model: Path,
    data: Path,
    folder: Path,
    *,
    seed: int,
    log: Kept | None,
) -> Result:
    """Runs in `folder`: scratch beside the checkpoint `model`, so that a second run there goes on."""
    log, scratch, output = log or Kept(), folder / "scratch", folder / "model"
    scratch.mkdir(parents=True, exist_ok=True)
    metrics = fine_tuning.run(
        section, arm, model=model, data=data, output=output, scratch=scratch, seed=seed, log=log
    )
    return Result(metrics, output, log)
