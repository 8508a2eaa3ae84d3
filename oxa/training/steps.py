"""What the trainers share: the progress bar, means over a step, and the refusal of a loss that is not finite."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from oxa.errors import ConfigError
from oxa.runtime import progress

FINAL_SHARE = 0.1
"""Share of the steps, at the end, over which the returned losses and entropies are averaged."""


class Bar(TrainerCallback):
    """One bar over the steps; the Trainer's own would also print every step's log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = progress.bar(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            quiet=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = ("loss", "ce_loss", "ul_loss", "ce_entropy", "ul_entropy", "ul_probability", "grad_norm")
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names if name in rows[0]}


def not_finite(learning_rate: float, loss: float, step: int) -> ConfigError:
    return ConfigError(
        f"train.shared.learning_rate: the loss is {loss} at step {step}; take a lower one than {learning_rate}"
    )
