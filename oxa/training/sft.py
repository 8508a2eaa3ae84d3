"""TRL's SFTTrainer with fixed steps and the objective of losses.py.

One optimizer step over exactly n_ce cross-entropy and n_ul unlikelihood sequences (METHOD §4):

    L = 1/n_ce Σ_ce mean_t( -ln p_t ) + λ · 1/n_ul Σ_ul mean_t( -ln(1 - p_t) )

or what an arm minimises in place of these (`ce_loss`, `ul_tokens`; losses.py).

Every micro-batch of every process adds its share of L, and no share is divided by the number of micro-batches.

Log-probabilities and entropies come from TRL's fused LM head: no [tokens, vocabulary] tensor larger than a tile.

Legend: B sequences of a micro-batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.model import log_probs
from oxa.runtime import journal
from oxa.training import losses
from oxa.training.steps import Planned, not_finite, pad_id


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """TRL's right-padded batch with -100 as label of the prompt, and `suppressed` [B]."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(
            [
                {
                    "input_ids": row["input_ids"],
                    "labels": [-100] * row["num_prompt"] + row["input_ids"][row["num_prompt"] :],
                }
                for row in examples
            ]
        )
        batch["suppressed"] = torch.tensor([row["suppressed"] for row in examples])
        return batch


class Head:
    """The LM head of a network alone, on the hidden states that its backbone has computed last."""

    def __init__(self, network: Any, temperature: float) -> None:
        self.config, self.get_output_embeddings = network.config, network.get_output_embeddings
        network.base_model.register_forward_hook(self._keep)
        add_fused_lm_head(
            self, temperature=temperature
        )  # which makes `forward` what computes log-probabilities

    def _keep(self, backbone: Any, arguments: Any, outputs: Any) -> None:
        self._outputs = outputs

    def base_model(self, **_: Any) -> Any:
        """In place of the backbone, for the fused head."""
        return self._outputs

    def forward(self, **arguments: Any) -> Any:
        raise NotImplementedError  # without the fused head

    def tempered(self, labels: Tensor) -> Tensor:
        """[B, T - 1], with gradient, of labels [B, T] at the temperature, 0 where they are -100."""
        outputs: Any = self.forward(labels=labels, fused_lm_head=True)
        tempered: Tensor = outputs.log_probs
        return tempered

    def entropies(self, labels: Tensor) -> Tensor:
        """[B, T - 1], losses.normalised_entropies where a label is to be predicted, else 0."""
        scored, head = labels[:, 1:] != -100, self.get_output_embeddings()
        hidden = self._outputs.last_hidden_state[:, :-1][scored]
        top = log_probs.top_logits(hidden, head.weight, head.bias, losses.NUM_TOP)
        entropies = losses.normalised_entropies(top)
        return entropies.new_zeros(scored.shape).masked_scatter(scored, entropies)


class OXATrainer(Planned, SFTTrainer):
    """SFTTrainer with fixed steps, the mixed objective, and metrics that are exact over a step's micro-batches."""

    METRICS: ClassVar = {
        name: name
        for name in ("loss", "ce_loss", "ul_loss", "ce_entropy", "ul_entropy", "ul_probability", "grad_norm")
    }

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Dataset,
        plan: list[list[int]],
        shared: FineTuning,
        arm: TrainArm,
        settings: SFTConfig,
        *,
        log: journal.Log,
        epochs_a_step: float,
        peft_config: Any = None,
    ) -> None:
        self._arm = arm
        super().__init__(
            plan,
            shared,
            log,
            epochs_a_step,
            model=model,
            args=settings,
            data_collator=Collator(pad_token_id=pad_id(tokenizer)),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        network = self.model if peft_config is None else self.model.get_base_model()
        add_fused_lm_head(network, outputs=("log_probs", "entropy"))  # TRL's own also finds the argmax
        if arm.ce_loss in ("eaft", "gem"):
            self._head = Head(network, losses.GEM_BETA)
        self._ahead: list[Any] = []  # micro-batches of the steps to come that psft has looked at
        self.model_accepts_loss_kwargs = True  # our loss is a share of a sum: nothing is to be divided
        self._sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=self.args.device)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The step's micro-batches of this process, and losses.Totals over all processes as a tensor [4]."""
        self._step_begun = time.perf_counter()
        if self._arm.ce_loss == "psft" and not self._ahead:
            self._begin_round(epoch_iterator, num_batches)
        micro_batches = [
            self._ahead.pop(0) if self._ahead else next(epoch_iterator) for _ in range(num_batches)
        ]
        counts = torch.zeros(4, dtype=torch.int64, device=device)
        for batch in micro_batches:
            suppressed = batch["suppressed"]
            num_tokens = (batch["labels"][:, 1:] != -100).sum(1)
            counts += torch.stack(
                [
                    (~suppressed).sum(),
                    suppressed.sum(),
                    (num_tokens * ~suppressed).sum(),
                    (num_tokens * suppressed).sum(),
                ]
            )
        totals = self.accelerator.reduce(counts, "sum")
        self._totals = losses.Totals(*totals.unbind())
        return micro_batches, totals

    @torch.no_grad()
    def _begin_round(self, epoch_iterator: Any, num_batches: int) -> None:
        """Draws the micro-batches of a round of psft, and adds the log-probabilities that their tokens have now."""
        step, every = self.state.global_step, self._shared.checkpoint_every
        left = min(losses.ROUND - step % losses.ROUND, every - step % every, self.state.max_steps - step)
        self._ahead = [next(epoch_iterator) for _ in range(left * num_batches)]
        self.model_wrapped.eval()  # an adapter's dropout is no part of it
        for batch in self._ahead:
            with self.compute_loss_context_manager(), log_probs.products(self.args):
                outputs = self.model_wrapped(
                    input_ids=batch["input_ids"], labels=batch["labels"], fused_lm_head=True
                )
            batch["old"] = outputs.log_probs
        self.model_wrapped.train()

    def _beside(self, inputs: Any) -> Tensor | None:
        """[B, T - 1], the second argument of the arm's loss, if it has one."""
        promoted = inputs["labels"].where(~inputs["suppressed"][:, None], -100)
        match self._arm.ce_loss:
            case "eaft":
                return self._head.entropies(promoted)
            case "gem":
                return self._head.tempered(promoted)
            case "psft":
                old: Tensor = inputs["old"]
                return old
        return None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The micro-batch's share of the step's L, times the number of processes, over which DDP takes the mean.

        The model sees no attention mask: what is causal never sees the padding, which is on the right, and attention
        without a mask computes half as much.
        """
        with log_probs.products(self.args):
            outputs = model(input_ids=inputs["input_ids"], labels=inputs["labels"], fused_lm_head=True)
        suppressed, scored, limit = inputs["suppressed"], outputs.label_mask, self._arm.ul_tokens
        # gem minimises another head's: without UL rows, the plain one's gradient would be a pass over zeros
        is_idle = self._arm.ce_loss == "gem" and not self._arm.num_ul
        share = losses.mix(
            outputs.log_probs.detach() if is_idle else outputs.log_probs,
            scored,
            suppressed,
            self._totals,
            ul_weight=self._arm.ul_weight,
            normalization=self._shared.normalization,
            ce_loss=self._arm.ce_loss,
            beside=self._beside(inputs),
            pushed=None if limit is None else losses.surest(outputs.entropy, scored, limit),
        )
        with torch.no_grad():  # what is not scored is 0 in both
            entropy = outputs.entropy.sum(1, dtype=torch.float64)
            probability = (outputs.log_probs.exp() * scored).sum(1, dtype=torch.float64)
            self._sums += torch.stack(
                Sums(
                    loss=share.loss.double(),
                    ce_loss=share.ce_loss.double(),
                    ul_loss=share.ul_loss.double(),
                    ce_entropy=(entropy * ~suppressed).sum(),
                    ul_entropy=(entropy * suppressed).sum(),
                    ul_probability=(probability * suppressed).sum(),
                    tokens=inputs["attention_mask"].sum().double(),
                )
            )
        return share.loss * self.accelerator.num_processes

    def step_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        sums = Sums(*self.accelerator.reduce(self._sums, "sum").tolist())
        self._sums.zero_()
        num_ce, num_ul = int(self._totals.ce_tokens), int(self._totals.ul_tokens)
        if not math.isfinite(sums.loss):
            raise not_finite(
                "train.shared.learning_rate",
                self._shared.learning_rate,
                "loss",
                sums.loss,
                self.state.global_step,
            )
        metrics = {
            "loss": sums.loss,
            "ce_loss": sums.ce_loss,
            "ce_entropy": sums.ce_entropy / num_ce,
            "tokens": sums.tokens,
            "seconds": time.perf_counter() - self._step_begun,
        }
        if num_ul:
            metrics |= {
                "ul_loss": sums.ul_loss,
                "ul_entropy": sums.ul_entropy / num_ul,
                "ul_probability": sums.ul_probability / num_ul,
            }
        return metrics


class Sums(NamedTuple):
    """What a step's micro-batches add up, [] float64 each."""

    loss: Any  # L, nats
    ce_loss: Any  # mean cross-entropy of the CE sequences, nats
    ul_loss: Any  # L's second term before λ, nats
    ce_entropy: Any  # nats, over scored CE tokens
    ul_entropy: Any  # nats, over scored UL tokens
    ul_probability: Any  # p, over scored UL tokens
    tokens: Any  # all tokens but padding
