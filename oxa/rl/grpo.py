"""TRL's GRPOTrainer with rewards from the grader, rollouts from our sampler, and metrics that are exact over a step.

One optimizer step over num_prompts problems with G rollouts each (METHOD §5; GRPO: arXiv 2402.03300, §4.1). A rollout's
reward r is 1 or 0, and its advantage is what it has over its group,

    A_i = (r_i - mean r) / (std r + 1e-4)        mean and (sample) standard deviation over the group of G

or another one (advantages.py). With scale_rewards `batch` the deviation is the step's, with `none` the division is
left out. The loss is

    L = mean over tokens t of rollouts i of   -min(ρ A_i, clip(ρ, 1-ε, 1+ε) A_i) + β k3
    ρ = π(y_t) / π_old(y_t)      k3 = π_ref/π - ln(π_ref/π) - 1  ≥ 0,  the unbiased estimate of KL(π ‖ π_ref)

k3 is differentiated as it stands, as in that paper (TRL's default multiplies it by ρ, which changes its gradient even
where ρ = 1). The mean goes over each rollout's tokens and then over rollouts (`grpo`), over all tokens of the step
(`dapo`), or over rollouts of the tokens' sum divided by max_tokens (`dr_grpo`). Each step draws new rollouts and
updates once, so that π_old = π and ρ = 1: the clip never acts, and ε is no setting here. Where a rollout was drawn with
other probabilities than training computes, A_i is multiplied by its weight, or its tokens' (weights.py): by TRL for
vLLM's rollouts, here for those of the engine torch in bfloat16.

π is the policy at the sampling temperature (top_p left out), here as in TRL: so are the logged token entropy and KL.

Legend: B rollouts of a micro-batch, G of a group, T tokens.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from oxa.config.rlvr import Rlvr, entropy_of, k_of
from oxa.config.section import Verdict
from oxa.model import log_probs
from oxa.rl import advantages, weights
from oxa.rl.rollouts import Judged, Rollouts
from oxa.runtime import journal
from oxa.training.steps import Quiet, last, means, not_finite, settings

SCHEDULES = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",
    "linear": "linear",
}  # transformers' names

logger = logging.getLogger(__name__)

VERDICTS: tuple[str, ...] = get_args(Verdict)


class RLVRTrainer(Quiet, GRPOTrainer):
    """GRPOTrainer whose rewards are verdicts, with the project's metrics and one log line a step."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Dataset,
        arguments: GRPOConfig,
        *,
        peft_config: Any = None,
        rollouts: Rollouts,
        keep: Callable[[RLVRTrainer, int], None],
        log: journal.Log,
    ) -> None:
        self._rollouts, self._keep, self._user_log = rollouts, keep, log
        self._micro_tokens: list[Tensor] = []  # of a step's micro-batches, this process's
        self._micro_weights: list[Tensor] = []  # the same
        self._judged = torch.empty(0, 3, dtype=torch.int64)  # a step's rollouts, all processes'
        with warnings.catch_warnings():  # TRL calls rollout_func experimental; hence the pin of trl
            warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
            super().__init__(
                model=model,
                reward_funcs=self._reward,
                args=arguments,
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=peft_config,  # without it, TRL would take a copy of the adapter for the reference
                callbacks=[Keeper(self)],
                rollout_func=None if arguments.use_vllm else rollouts.draw,
            )

    def keep(self, step: int) -> None:
        """Keeps the weights of a step that is to be evaluated."""
        self._keep(self, step)

    def get_batch_samples(self, *args: Any) -> Any:
        self._step_begun = time.perf_counter()
        return super().get_batch_samples(*args)

    def _reward(
        self,
        completion_ids: list[list[int]],
        problem_id: list[str],
        judged: list[Judged] | None = None,
        **_: Any,
    ) -> list[float]:
        """1 for a rollout whose answer is correct, else 0; every process calls this once a step, with its own part.

        Of `pass_at_k` the advantages themselves: their mean over a group is 0, so TRL takes nothing off them.
        """
        if judged is None:
            judged = self._rollouts.grade(problem_id, completion_ids)
            self._judged = self.accelerator.gather(_rows(judged).to(self.args.device)).cpu()
        else:
            self._judged = _rows(self._rollouts.judged)
        rewards = torch.tensor([float(one.verdict == "correct") for one in judged])
        if k := k_of(self._rollouts.section.advantage):
            right = (
                self.accelerator.gather(rewards.to(self.args.device)).cpu().view(-1, self.num_generations)
                == 1
            )
            part = slice(self.accelerator.process_index * len(rewards), None)
            rewards = advantages.pass_at_k(right, k).flatten()[part][: len(rewards)]
        return rewards.tolist()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """TRL's loss, without the columns that are padding in the whole micro-batch.

        TRL pads to the longest rollout of the step, in reasoning models often one that was cut at max_tokens.
        """
        self._micro_tokens.append(inputs["completion_mask"].sum())
        with log_probs.products(self.args):
            inputs = _trimmed(inputs)
            if self._rollouts.section.advantage == "nsr":
                inputs["advantages"] = advantages.nsr(inputs["advantages"])
            inputs = self._weighed(model, inputs)
            loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss

    def _weighed(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs whose advantages, [B, T] or [B, 1], have the rollouts' weights in them; vLLM's rest with TRL."""
        section, mask = self._rollouts.section, inputs["completion_mask"]
        weight = inputs.get("importance_sampling_ratio")
        if weight is None and "sampling_per_token_logps" in inputs and section.rollout_correction != "none":
            prompt_and_completion = (
                torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1)
                for name in ("ids", "mask")
            )
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs),
            ):
                # private, hence the pin of trl, which for vLLM calls the same
                log_p, *_ = self._get_per_token_logps_and_entropies(
                    model, *prompt_and_completion, logits_to_keep=mask.shape[1]
                )
            drawn = inputs["sampling_per_token_logps"]
            weight = weights.weights(log_p, drawn, mask, section.rollout_correction, section.rollout_bound)
            inputs = inputs | {"advantages": inputs["advantages"][:, None] * weight}
        if weight is not None:
            self._micro_weights.append(weights.sums(weight, mask, section.rollout_bound))
        return inputs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after every optimizer step, and once at the end with a summary that is of no use here."""
        step = self._step_metrics(logs) if "learning_rate" in logs else {}
        super().log({**logs, "rlvr": step}, start_time)  # kept by checkpoints
        if step and self.is_world_process_zero():
            seconds = time.perf_counter() - self._step_begun
            self._user_log(
                self.state.global_step,
                **_shown(step),
                learning_rate=logs["learning_rate"],
                tokens_per_second=step["num_tokens"] / seconds,
            )

    def _step_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        """Means and counts over all rollouts of the step, whatever the micro-batches and processes."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise not_finite(
                    "rlvr.learning_rate", self.args.learning_rate, name, logs[name], self.state.global_step
                )
        tokens = self.accelerator.reduce(torch.stack(self._micro_tokens), "sum").tolist()
        self._micro_tokens.clear()
        of_weights = {}
        if self._micro_weights:
            summed = self.accelerator.reduce(torch.stack(self._micro_weights).sum(0), "sum")
            of_weights = weights.summary(*summed.tolist())
            self._micro_weights.clear()
        # private, hence the pin of trl: one mean over the tokens of each micro-batch
        means = self._metrics["train"]
        verdict, truncated, num_tokens = self._judged.T
        right = (verdict == VERDICTS.index("correct")).reshape(-1, self.num_generations)
        return {
            "reward": right.double().mean().item(),
            "token_entropy": _weighted(means["entropy"], tokens),
            **({"kl": _weighted(means["kl"], tokens)} if self.beta else {}),
            **of_weights,
            "mean_tokens": num_tokens.double().mean().item(),
            "truncated": truncated.double().mean().item(),
            "num_tokens": int(num_tokens.sum()),
            "num_groups": len(right),
            **self._num_resampled(len(right)),
            "num_all_right": int(right.all(1).sum()),
            "num_all_wrong": int((~right).all(1).sum()),
            **{f"num_{name}": int((verdict == i).sum()) for i, name in enumerate(VERDICTS)},
            "grad_norm": float(logs["grad_norm"]),
            "loss": logs["loss"],
        }

    def _num_resampled(self, num_groups: int) -> dict[str, int]:
        """Of a dynamic step: groups over those it trains on, and problems it read."""
        section = self._rollouts.section
        if section.sampling != "dynamic":
            return {}
        before = sum(row["num_read"] for row in self.history())
        return {
            "num_replaced": num_groups - section.num_prompts,
            "num_read": self._rollouts.num_read - before,
        }

    def history(self) -> list[dict[str, Any]]:
        """Every step's metrics so far, those before a resume included."""
        rows: list[Any] = self.state.log_history
        return [row["rlvr"] for row in rows if row.get("rlvr")]

    def summary(self) -> dict[str, Any]:
        """Counts over all steps, and means over the last ones."""
        history = self.history()
        shown = [_shown(row) for row in last(history)]
        total = {name: sum(row[name] for row in history) for name in history[0] if name.startswith("num_")}
        mean_weight = means(history, {"weight": "weight"})
        if not weights.is_equal(mean_weight.get("weight", 1)):
            logger.warning(
                "the rollouts' mean weight is %.2f where 1 is meant: steps are that much larger or smaller than other "
                "arms'; take rlvr.rollout_correction token_truncate, or an engine whose probabilities are nearer",
                mean_weight["weight"],
            )
        mixed = total["num_groups"] - total["num_all_right"] - total["num_all_wrong"]
        return {
            "steps": len(history),
            "rollouts": sum(total[f"num_{name}"] for name in VERDICTS),
            "tokens": total["num_tokens"],
            **mean_weight,
            "groups": {
                "all_right": total["num_all_right"],
                "all_wrong": total["num_all_wrong"],
                "mixed": mixed,
            },
            **{name[4:]: total[name] for name in ("num_replaced",) if name in total},
            "verdicts": {name: total[f"num_{name}"] for name in VERDICTS},
            "final": means(shown, {name: name for name in shown[0]}),
        }


class Keeper(TrainerCallback):
    """Keeps a step's weights before its checkpoint is written: what a resumed run stands on has been kept."""

    def __init__(self, trainer: RLVRTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.keep(state.global_step)


def _rows(judged: Sequence[Judged]) -> Tensor:
    """[B, 3]: verdict, whether truncated, number of tokens."""
    rows = [[VERDICTS.index(one.verdict), int(one.truncated), one.num_tokens] for one in judged]
    return torch.tensor(rows, dtype=torch.int64)


def _shown(step: dict[str, float]) -> dict[str, float]:
    """What is logged of a step's metrics: shares in place of counts."""
    shown = {name: value for name, value in step.items() if not name.startswith("num_")}
    rollouts = sum(step[f"num_{name}"] for name in VERDICTS)
    return shown | {
        "all_right": step["num_all_right"] / step["num_groups"],
        "all_wrong": step["num_all_wrong"] / step["num_groups"],
        **({"replaced": step["num_replaced"]} if "num_replaced" in step else {}),
        "unsure": step["num_unsure"] / rollouts,
        "unparsable": step["num_unparsable"] / rollouts,
        "timeout": step["num_timeout"] / rollouts,
    }


def _trimmed(inputs: dict[str, Any]) -> dict[str, Any]:
    """Without the first columns of prompts and the last ones of completions, [B, T] each, that all rows pad."""
    prompt = int(inputs["prompt_mask"].sum(1).max())
    completion = int(inputs["completion_mask"].sum(1).max())
    trimmed = {}
    for name, value in inputs.items():
        if name.startswith("prompt"):
            value = value[:, -prompt:]
        elif isinstance(value, Tensor) and value.dim() == 2:
            value = value[:, :completion]
        trimmed[name] = value
    return trimmed


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def config(
    section: Rlvr, micro_batch_size: int, accumulation: int, context: int, checkpoints: Path, seed: int
) -> GRPOConfig:
    """TRL's settings: `accumulation` micro-batches a step of each process, a model that reads `context` tokens."""
    common = settings(section, section.steps, micro_batch_size, accumulation, checkpoints, seed)
    is_known = entropy_of(section.temperature) is None
    return GRPOConfig(
        **common,
        max_steps=section.steps,
        steps_per_generation=accumulation,  # new rollouts for every step, which updates once
        num_iterations=1,
        num_generations=section.num_generations,
        max_completion_length=section.max_tokens,
        shuffle_dataset=False,
        temperature=section.temperature if is_known else 1.0,
        top_p=section.top_p,
        loss_type=section.loss,
        scale_rewards="none" if k_of(section.advantage) else section.scale_rewards,
        beta=section.kl_weight,
        use_bias_correction_kl=False,  # TRL's default is ρ k3, whose gradient is another
        disable_dropout=True,
        lr_scheduler_type=SCHEDULES[section.schedule],
        dataloader_pin_memory=False,  # rows of text
        **_vllm(section, context),
        **_corrected(section),
    )


def _vllm(section: Rlvr, context: int) -> dict[str, Any]:
    """TRL's settings of the vLLM engines; none for `torch`."""
    if section.engine == "torch":
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": section.engine.removeprefix("vllm_"),
        "vllm_server_base_url": section.vllm.url,
        "vllm_gpu_memory_utilization": section.vllm.memory_share,
        "vllm_tensor_parallel_size": section.vllm.tensor_parallel,
        "vllm_max_model_length": min(context, section.max_prompt_tokens + section.max_tokens),
    }


def _corrected(section: Rlvr) -> dict[str, Any]:
    """TRL's settings of the weights of vLLM's rollouts; TRL reads them for no other engine."""
    if section.rollout_correction == "none":
        return {"vllm_importance_sampling_correction": False}
    return {
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": section.rollout_correction,
        "vllm_importance_sampling_clip_max": section.rollout_bound,
    }
