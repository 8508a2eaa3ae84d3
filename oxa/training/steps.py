"""What the trainers share: their settings, their planned micro-batches, means over steps, and one log line a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from oxa.errors import ConfigError
from oxa.model.trainer import SETTINGS, Bar

if TYPE_CHECKING:
    from transformers import Trainer

    from oxa.config.fine_tuning import FineTuning
    from oxa.config.rlvr import Rlvr
    from oxa.runtime import journal
else:
    Trainer = object  # what follows is mixed into TRL's trainers

FINAL_SHARE = 0.1
"""Share of the steps, at the end, over which the returned losses and entropies are averaged."""


def settings(
    section: FineTuning | Rlvr,
    num_steps: int,
    micro_batch_size: int,
    accumulation: int,
    checkpoints: Path,
    seed: int,
) -> dict[str, Any]:
    """What the configs of TRL's trainers have in common."""
    return (
        SETTINGS
        | {
            "output_dir": str(checkpoints),
            "per_device_train_batch_size": micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": section.learning_rate,
            "warmup_steps": math.ceil(section.warmup_ratio * num_steps),
            "weight_decay": section.weight_decay,
            "max_grad_norm": section.max_grad_norm,
            "bf16": section.dtype == "bfloat16",
            "gradient_checkpointing": section.gradient_checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "seed": seed % 2**32,  # NumPy takes no more
            "logging_steps": 1,
            "logging_nan_inf_filter": False,  # it would show the mean of earlier losses for one that is no number
            "save_strategy": "steps",
            "save_steps": section.checkpoint_every,
            "use_cpu": not torch.cuda.is_available(),  # without it several processes on CPUs would each train alone
            "ddp_find_unused_parameters": False,  # all are used; looking for others walks the graph once more
            "push_to_hub": False,
        }
    )


class Quiet(Trainer):
    """A Trainer with one progress bar of ours, and without lines and files of its own."""

    def __init__(self, *, callbacks: Sequence[Any] = (), **of_trainer: Any) -> None:
        super().__init__(callbacks=[Bar("training"), *callbacks], **of_trainer)
        self.remove_callback(PrinterCallback)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into every checkpoint; ours are scratch."""


class Planned(Quiet):
    """A Trainer on a training set: micro-batches as planned, and one log line every `log_every` steps."""

    METRICS: ClassVar[dict[str, str]]
    """What is averaged over steps: its name in the Trainer's log, and in ours."""

    def __init__(
        self,
        plan: list[list[int]],
        shared: FineTuning,
        log: journal.Log,
        epochs_a_step: float,
        **of_trainer: Any,
    ) -> None:
        """`plan` has the rows of every micro-batch; those of a step share nothing but its loss."""
        self._plan, self._shared = plan, shared
        self._user_log, self._epochs_a_step = log, epochs_a_step
        super().__init__(**of_trainer)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches as planned, of any number of rows; the processes take turns."""
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=self._plan,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )

    def step_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        """What is logged of a step beside the Trainer's `logs`, its `seconds` and `tokens` among it."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after every optimizer step, and once at the end with a summary that is of no use here."""
        is_step = "learning_rate" in logs
        if is_step:
            logs = {**logs, **self.step_metrics(logs)}
        super().log(logs, start_time)  # into state.log_history, which a checkpoint keeps
        step, every = self.state.global_step, self._shared.log_every
        if is_step and self.is_world_process_zero() and (step % every == 0 or step == self.state.max_steps):
            window = self._history()[-((step - 1) % every + 1) :]
            self._user_log(
                step,
                **means(window, self.METRICS),
                learning_rate=window[-1]["learning_rate"],
                tokens_per_second=sum(row["tokens"] for row in window)
                / sum(row["seconds"] for row in window),
                epoch=step * self._epochs_a_step,
            )

    def _history(self) -> list[dict[str, float]]:
        """Every step's metrics so far, those before a resume included."""
        return [row for row in self.state.log_history if "seconds" in row]

    def final(self) -> dict[str, float]:
        """Means over the last steps."""
        return means(last(self._history()), self.METRICS)


def last(steps: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
    """The last FINAL_SHARE of the steps."""
    return steps[-max(1, round(FINAL_SHARE * len(steps))) :]


def means(steps: Sequence[dict[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    """Means over steps of those of the values that they have, under the names given for them."""
    return {
        ours: math.fsum(step[name] for step in steps) / len(steps)
        for name, ours in names.items()
        if name in steps[0]
    }


def not_finite(key: str, learning_rate: float, name: str, value: float | str, step: int) -> ConfigError:
    """Of a step's loss or another value that is no number; `key` is the learning rate's in params.yaml."""
    return ConfigError(f"{key}: the {name} is {value} at step {step}; take a lower one than {learning_rate}")


def pad_id(tokenizer: Any) -> int:
    pad: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad
