"""Section `train`: fine-tuning of the arms."""

from __future__ import annotations

from pydantic import model_validator

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.config.section import Arm, Section


class Train(Section):
    shared: FineTuning
    """What holds for every arm."""
    arms: dict[Arm, TrainArm]
    """What is an arm's own."""
    after: dict[Arm, Arm] = {}
    """Arms of two passes: `sft_ul: sft` trains sft_ul, on its own sets and with what is said of it above, from the
    checkpoint of sft of the same seed, in place of the base. Such an arm sees as much again as one of one pass."""

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Train:
        for arm in self.after:
            passes = [arm]
            while (before := self.after.get(passes[-1])) is not None:
                if before in passes:
                    raise ValueError(
                        f"after: {' after '.join([*passes, before])}: none of them begins with the base; take one out"
                    )
                passes.append(before)
        return self
