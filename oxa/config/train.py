"""Section `train`: fine-tuning of the arms."""

from __future__ import annotations

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.config.section import Arm, Section


class Train(Section):
    shared: FineTuning
    """What holds for every arm."""
    arms: dict[Arm, TrainArm]
    """What is an arm's own."""
