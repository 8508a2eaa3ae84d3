"""TRL's KTOTrainer on an arm's training set, a contrast to the objective of losses.py: `train.arms.X.objective: kto`.

Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7) takes unpaired completions: CE rows
are its desirable ones, UL rows the undesirable ones. With r = ln π(y|x) - ln π_ref(y|x), π_ref the base,

    L = mean over a micro-batch's rows of   1 - σ(β (r - z))        for a desirable one
                                            w (1 - σ(β (z - r)))    for an undesirable one, w = ul_weight
    z = max(0, mean of r over completions that were moved on to the next row's problem)

and a step's L is the mean of its micro-batches'. z is an estimate from one micro-batch, so that, unlike in losses.py,
the result depends on `micro_batch_size`, which must be 2 or more; every micro-batch holds the same mix of rows. A
response's log-probability is a sum over its tokens, in nats: long responses move further than short ones.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from oxa.config.train import TrainShared
from oxa.model import log_probs
from oxa.runtime import journal
from oxa.training.steps import FINAL_SHARE, Bar, not_finite

LOGGED = {
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "rewards/chosen": "ce_reward",
    "rewards/rejected": "ul_reward",
    "grad_norm": "grad_norm",
}
"""TRL's names, to ours."""


def micro_batches(step: list[int], num: int) -> list[list[int]]:
    """A step's rows, CE before UL, in `num` parts of the same mix."""
    return [step[part::num] for part in range(num)]


@dataclass
class Collator(DataCollatorForUnpairedPreference):
    """TRL's batch, of our rows; the completion that estimates z is the one before, in the order of the micro-batch."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {
                "prompt_ids": row["input_ids"][: row["num_prompt"]],
                "completion_ids": row["input_ids"][row["num_prompt"] :],
                "label": not row["suppressed"],
            }
            for row in examples
        ]
        for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
        batch: dict[str, Any] = super().torch_call(rows)
        return batch


class UnpairedTrainer(KTOTrainer):
    """KTOTrainer with fixed steps, our tokens, and one log line a step."""

    def __init__(
        self,
        model: Any,
        reference: Any,
        tokenizer: Any,
        dataset: Dataset,
        plan: list[list[int]],
        shared: TrainShared,
        settings: KTOConfig,
        *,
        longest: int,
        log: journal.Log,
        epochs_a_step: float,
    ) -> None:
        self._plan, self._shared = plan, shared
        self._user_log, self._epochs_a_step = log, epochs_a_step
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        super().__init__(
            model=model,
            ref_model=reference,
            args=settings,
            # a completion behind another row's prompt may be longer than any row
            data_collator=Collator(pad_token_id=pad, max_length=longest),
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),  # TRL gives it a padding token
            callbacks=[Bar()],
        )
        self.processing_class = tokenizer
        self.remove_callback(PrinterCallback)

    # private, hence the pin of trl: it would tokenise texts by rules that are not those of the other arms
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches as planned; the processes take turns."""
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=self._plan,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into every checkpoint; ours are scratch."""

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        self._step_begun = time.perf_counter()
        samples: tuple[list[Any], Any] = super().get_batch_samples(*args)
        num_tokens = torch.stack([batch["attention_mask"].sum() for batch in samples[0]]).sum()
        self._step_tokens = self.accelerator.reduce(num_tokens.to(self.args.device), "sum").item()
        return samples

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        with log_probs.products(self.args):
            loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after every optimizer step, and once at the end with a summary that is of no use here."""
        is_step = "learning_rate" in logs
        if is_step:
            if not math.isfinite(logs["loss"]):
                raise not_finite(self._shared.learning_rate, logs["loss"], self.state.global_step)
            logs = {**logs, "seconds": time.perf_counter() - self._step_begun, "tokens": self._step_tokens}
        super().log(logs, start_time)  # TRL adds its metrics; a checkpoint keeps them
        step, every = self.state.global_step, self._shared.log_every
        if is_step and self.is_world_process_zero() and (step % every == 0 or step == self.state.max_steps):
            window = self._history()[-((step - 1) % every + 1) :]
            self._user_log(
                step,
                **_means(window),
                learning_rate=window[-1]["learning_rate"],
                tokens_per_second=sum(row["tokens"] for row in window)
                / sum(row["seconds"] for row in window),
                epoch=step * self._epochs_a_step,
            )

    def _history(self) -> list[dict[str, float]]:
        """Every step's metrics so far, those before a resume included."""
        return [row for row in self.state.log_history if "rewards/chosen" in row]

    def final(self) -> dict[str, float]:
        """Means over the last steps."""
        history = self._history()
        return _means(history[-max(1, round(FINAL_SHARE * len(history))) :])


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {ours: math.fsum(row[trl] for row in rows) / len(rows) for trl, ours in LOGGED.items()}
