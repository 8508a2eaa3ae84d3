"""TRL's KTOTrainer on an arm's training set, a contrast to the objective of losses.py: `train.arms.X.objective: kto`.

Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7) takes unpaired completions: CE rows
are its desirable ones, UL rows the undesirable ones. With r = ln π(y|x) - ln π_ref(y|x), π_ref the base,

    L = mean over a micro-batch's rows of   1 - σ(β (r - z))        for a desirable one
                                            w (1 - σ(β (z - r)))    for an undesirable one, w = ul_weight
    z = max(0, mean of r over completions that were moved on to the next row's problem)

and a step's L is the mean of its micro-batches'. z is an estimate from one micro-batch, so that, unlike in losses.py,
the result depends on `micro_batch_size`; every micro-batch holds the same mix of rows, at least one of each kind. A
response's log-probability is a sum over its tokens, in nats: long responses move further than short ones.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from oxa.config.fine_tuning import FineTuning
from oxa.errors import ConfigError
from oxa.model import log_probs
from oxa.runtime import journal
from oxa.training.steps import Planned, not_finite, pad_id


def micro_batch_size(num_ce: int, num_ul: int, num_processes: int, at_most: int) -> int:
    """The largest micro-batch of at most so many rows such that all of a step have the same mix.

    Raises ConfigError where there is none.
    """
    size, both = num_ce + num_ul, math.gcd(num_ce, num_ul)
    if both % num_processes:
        divisors = ", ".join(str(i) for i in range(1, both + 1) if both % i == 0)
        raise ConfigError(
            f"train: kto wants the same mix of {num_ce} CE and {num_ul} UL sequences in every micro-batch, which "
            f"{num_processes} processes cannot share evenly; run one of {divisors} processes or change num_ce or num_ul"
        )
    sizes = [size // num for num in range(num_processes, both + 1, num_processes) if both % num == 0]
    if min(sizes) > at_most:
        raise ConfigError(
            f"train.shared.micro_batch_size: kto compares the rows of a micro-batch, and every one is to hold the same "
            f"mix of a step's {num_ce} CE and {num_ul} UL sequences; take {min(sizes)} or more"
        )
    return max(one for one in sizes if one <= at_most)


def micro_batches(step: list[int], num: int) -> list[list[int]]:
    """A step's rows, CE before UL, in `num` parts of the same mix; `num` divides the number of either."""
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


class UnpairedTrainer(Planned, KTOTrainer):
    """KTOTrainer with fixed steps, our tokens, and one log line a step."""

    METRICS: ClassVar = {
        "loss": "loss",
        "kl": "kl",
        "entropy": "entropy",
        "rewards/chosen": "ce_reward",
        "rewards/rejected": "ul_reward",
        "grad_norm": "grad_norm",
    }

    def __init__(
        self,
        model: Any,
        reference: Any,
        tokenizer: Any,
        dataset: Dataset,
        plan: list[list[int]],
        shared: FineTuning,
        settings: KTOConfig,
        *,
        longest: int,
        log: journal.Log,
        epochs_a_step: float,
        peft_config: Any = None,
    ) -> None:
        """`reference` is None where there is an adapter: TRL then takes the model without it."""
        super().__init__(
            plan,
            shared,
            log,
            epochs_a_step,
            model=model,
            ref_model=reference,
            args=settings,
            # a completion behind another row's prompt may be longer than any row
            data_collator=Collator(pad_token_id=pad_id(tokenizer), max_length=longest),
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),  # TRL gives it a padding token
            peft_config=peft_config,
        )
        self.processing_class = tokenizer

    # private, hence the pin of trl: it would tokenise texts by rules that are not those of the other arms
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

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

    def step_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        loss, step = logs["loss"], self.state.global_step
        if not math.isfinite(loss):
            raise not_finite("train.shared.learning_rate", self._shared.learning_rate, "loss", loss, step)
        return {"seconds": time.perf_counter() - self._step_begun, "tokens": self._step_tokens}
