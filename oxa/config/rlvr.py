"""Section `rlvr`: reinforcement learning from verifiable rewards."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from oxa.config.fine_tuning import Adapter
from oxa.config.section import Address, Count, Positive, Section, Share, argument, is_number

RolloutCorrection = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "none"]

_PASS_AT_K = re.compile(r"pass_at_k\((\d+)\)")
_ENTROPY = re.compile(r"entropy\((\d*\.?\d+)\)")


def entropy_of(temperature: float | str) -> float | None:
    """x of `entropy(x)`, nats a token; None of a number."""
    x = argument(_ENTROPY, temperature)
    return None if x is None else float(x)


def k_of(advantage: str) -> int | None:
    """K of `pass_at_k(K)`; None of another advantage."""
    k = argument(_PASS_AT_K, advantage)
    return None if k is None else int(k)


def _advantage(value: Any) -> Any:
    if value not in ("group", "nsr") and not (isinstance(value, str) and k_of(value)):
        raise ValueError("expected `group`, `nsr`, or `pass_at_k(K)` with K rollouts above 0")
    return value


def _temperature(value: Any) -> Any:
    if not is_number(value) and not entropy_of(value):
        raise ValueError("expected a number above 0, or `entropy(x)` with x nats a token above 0")
    return value


class RlvrVllm(Section):
    """Where TRL's vLLM generates; see TRL's documentation of `use_vllm`."""

    url: Address = "http://127.0.0.1:8000"
    """Address of a running `trl vllm-serve` (engine vllm_server)."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the GPU's memory that vLLM takes beside the training (engine vllm_colocate)."""
    tensor_parallel: Count = 1
    """GPUs over which vLLM spreads the model (engine vllm_colocate)."""


class Rlvr(Section):
    """Reinforcement learning from verifiable rewards: GRPO from every arm's checkpoint, with the same settings."""

    steps: Count = 100
    """Optimizer steps."""
    save_every: Count = 50
    """Steps between the checkpoints that are kept and evaluated; the last one always is."""
    checkpoint_every: Count = 10
    """Steps between checkpoints to resume from."""
    num_problems: Count | None = None
    """Take this many problems, chosen by hash; none takes all (the paper: 10,000)."""
    pass_rate: tuple[Share, Share] | None = None
    """Keep the problems that were solved in a share of the answers between these two, both included, as the stage
    `pass_rate` measured it, for all arms alike; `[0.1, 0.9]`; none keeps all."""
    num_prompts: Count = 64
    """Problems a step."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Rollouts a problem: the group over which advantages are taken."""
    sampling: Literal["fixed", "dynamic"] = "fixed"
    """`dynamic`: groups whose rollouts are all right or all wrong give way to further problems, until the step is full
    (DAPO, arXiv 2503.14476); engine torch alone."""
    max_resamplings: Count = 3
    """How often a dynamic step draws anew for what is missing; what then still is, is filled with such groups."""
    temperature: Annotated[float | str, BeforeValidator(_temperature)] = 0.85
    """Of the rollouts; `entropy(0.3)`: the one at which this checkpoint's first rollouts have that token entropy, in
    nats, so that arms begin to explore alike (arXiv 2506.13284; oxa/rl/temperature.py)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the rollouts; 1 keeps all."""
    max_prompt_tokens: Count = 1536
    """Longer prompts are dropped and counted, tokens."""
    max_tokens: Count
    """Longest rollout, tokens."""
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    """How tokens are averaged: `grpo` over each rollout, then over rollouts (arXiv 2402.03300); `dapo` over all tokens
    of a step (2503.14476); `dr_grpo` by max_tokens, a constant (2503.20783)."""
    advantage: Annotated[str, BeforeValidator(_advantage)] = "group"
    """What a rollout's reward is held against: `group` its group's mean (GRPO); `nsr` the same, with right rollouts at
    a tenth (arXiv 2506.01347); `pass_at_k(4)` what all subsets of 4 of its group achieve (2508.10751), which scales by
    itself (oxa/rl/advantages.py)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the standard deviation of the rewards in the group, in the step, or not (Dr. GRPO)."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-3
    """Weight β of the KL to the arm's checkpoint, by the k3 estimator."""
    learning_rate: Positive = 2e-6
    """Peak of the schedule."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate, after the warm-up."""
    warmup_ratio: Share = 0.0
    """Share of the steps with rising learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    micro_batch_size: Count = 8
    """Rollouts of one forward pass on one device, at most: the largest number is taken that cuts a step evenly."""
    batch_size: Count = 256
    """Rollouts that the torch engine generates together."""
    adapter: Adapter | None = None
    """Train a low-rank adapter; none trains all weights. The KL is then taken to the weights without it: no second
    model is held."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic, and with the engine torch of the frozen matrices beside an adapter; what is trained and
    optimizer state stay float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    rollout_correction: RolloutCorrection = "token_truncate"
    """How rollouts count whose probabilities, as drawn, were not those that training computes: each token or each
    whole rollout by the ratio of the two, truncated at `rollout_bound` or left out beyond it (oxa/rl/weights.py)."""
    rollout_bound: Positive = 3.0
    """Largest weight of a token or rollout."""
    engine: Literal["torch", "vllm_colocate", "vllm_server"] = "torch"
    """What generates: this process, vLLM in it, or a vLLM server of TRL's."""
    vllm: RlvrVllm = RlvrVllm()
    """Settings of the vLLM engines."""

    @model_validator(mode="after")
    def _pass_at_k_fits(self) -> Rlvr:
        k = k_of(self.advantage)
        if k and k > self.num_generations:
            raise ValueError(
                f"advantage {self.advantage} takes subsets of a group, and num_generations is {self.num_generations}: "
                "take a smaller K or more rollouts"
            )
        if k and self.scale_rewards != "group":
            raise ValueError(f"advantage {self.advantage} scales by itself: leave scale_rewards out")
        return self

    @model_validator(mode="after")
    def _pass_rates_rise(self) -> Rlvr:
        if self.pass_rate and self.pass_rate[0] > self.pass_rate[1]:
            raise ValueError("pass_rate must be [low, high], and its first number is above its second")
        return self

    @model_validator(mode="after")
    def _resamples_itself(self) -> Rlvr:
        if self.sampling == "dynamic" and self.engine != "torch":
            raise ValueError(
                "sampling: dynamic takes the engine torch; TRL draws vLLM's rollouts once a step"
            )
        return self

    @model_validator(mode="after")
    def _adapter_is_of_one_policy(self) -> Rlvr:
        if self.adapter and self.adapter.dropout:
            raise ValueError("adapter.dropout must be 0: rollouts and updates are to be of one policy")
        if self.adapter and self.adapter.quantize and self.engine != "torch":
            raise ValueError(
                "adapter.quantize takes the engine torch: for vLLM the adapter would be added to weights in 4 bits, "
                "which round it away"
            )
        return self
