"""What every training with transformers' Trainer shares: quiet settings and one progress bar over the steps."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from oxa.runtime import progress

SETTINGS: dict[str, Any] = {
    "save_total_limit": 2,  # the last may be half-written when the process dies
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "report_to": [],
}
"""Of transformers' TrainingArguments."""


class Bar(TrainerCallback):
    """One bar over the steps; the Trainer's own would also print every step's log."""

    def __init__(self, description: str) -> None:
        self._description = description

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = progress.bar(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._description,
            unit="step",
            quiet=not state.is_world_process_zero,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def on_one_device(settings: Any) -> Any:
    """The TrainingArguments, for one device a process: with several GPUs each would get a whole micro-batch."""
    _ = settings.device  # counts the GPUs
    settings._n_gpu = 1  # private, hence the pin of transformers
    return settings
