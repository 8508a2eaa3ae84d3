"""How a model is fine-tuned: what the sections `train` and `sample.warm_up` are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from oxa.config.section import Count, Positive, Section, Share

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
"""The last two keep their state in 8 bits, by bitsandbytes, on CUDA (arXiv 2110.02861)."""


class Adapter(Section):
    """A low-rank adapter (LoRA, arXiv 2106.09685), trained by peft in place of the weights and merged into them at the
    end: every later stage sees a plain checkpoint."""

    rank: Count = 16
    """r: inner dimension of a matrix's change B A."""
    alpha: Positive = 32.0
    """The change is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs that are dropped while it trains; drawn for each micro-batch, so that with any the
    result depends on micro_batch_size. Objective kto trains without, and rlvr takes none."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which matrices: all linear ones but the head, or those whose names end so (`q_proj`)."""
    quantize: Literal["nf4"] | None = None
    """`nf4`: the frozen weights lie in 4 bits while the adapter trains (QLoRA, arXiv 2305.14314), on CUDA, with
    bitsandbytes (`pip install "oxa[quantized]"`)."""
    save: bool = False
    """Also keep the adapter by itself, in `adapter/` of the checkpoint."""


class FineTuning(Section):
    """One fine-tuning but for its objective: of `train.shared`, the same for all arms."""

    learning_rate: Positive = 5e-5
    """Peak of the schedule (the paper: 2.5e-4 for 1.5B, 5e-5 for 7B)."""
    epochs: Positive = 6.0
    """Passes over the CE set."""
    warmup_ratio: Share = 0.03
    """Share of the steps with rising learning rate; cosine decay follows."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Share = 0.95
    """AdamW's decay of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    num_ce: Count = 128
    """CE sequences an optimiser step."""
    micro_batch_size: Count = 1
    """Sequences of one forward pass on one device, on average, at most: the largest number is taken that cuts a step
    evenly. Long ones go in smaller groups: no pass is larger than so many of the step's longest."""
    normalization: Literal["sequence", "token"] = "sequence"
    """`sequence`: each sequence weighs the same; `token`: each token does."""
    max_length: Count = 32_768
    """Longest sequence, tokens, prompt and end token included: selection chooses among what fits (and fits the model's
    context), the same for every arm, and counts the rest."""
    adapter: Adapter | None = None
    """Train a low-rank adapter; none trains all weights."""
    optimizer: Optimizer = "adamw"
    """Which keeps the moments."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the arithmetic, and of the frozen matrices beside an adapter; what is trained and optimizer state stay
    float32. bfloat16 needs hardware that has it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    checkpoint_every: Count = 50
    """Optimiser steps between checkpoints to resume from."""
    log_every: Count = 1
    """Optimiser steps between logged metrics."""


class TrainArm(Section):
    num_ul: Annotated[int, Field(ge=0)] = 0
    """UL sequences an optimiser step, beside the num_ce."""
    ul_weight: Annotated[float, Field(ge=0)] = 1e-4
    """λ: weight of the unlikelihood term; of `kto`, that of the undesirable completions (1 for desirable ones)."""
    ul_tokens: Count | None = None
    """Tokens of a UL sequence that are pushed, those at which the student is surest (lowest entropy) while it trains,
    each as hard as without this; none: all of them, as in the paper."""
    ce_loss: Literal["nll", "dft", "eaft", "psft", "gem"] = "nll"
    """What is minimised of CE tokens; other than cross-entropy (`nll`), contrasts. `dft` weighs a token by its own
    probability (dynamic fine-tuning, arXiv 2508.05629), `eaft` by the normalised entropy of the 20 likeliest tokens
    (arXiv 2601.02151). `psft` pushes a token no further than to 1.28 times the probability that it had at most 8 steps
    before (arXiv 2508.17784). `gem` is cross-entropy at temperature 0.7, which leaves the rest of the distribution
    flatter (arXiv 2408.16673)."""
    objective: Literal["oxa", "kto"] = "oxa"
    """`kto`: TRL's KTO (arXiv 2402.01306) in place of cross-entropy and unlikelihood, a contrast: CE rows are its
    desirable completions, UL rows the undesirable ones. train.shared.normalization has no effect on it."""
    kto_beta: Positive = 0.1
    """β of `kto`: larger holds the arm closer to the base."""

    @model_validator(mode="after")
    def _objectives_agree(self) -> TrainArm:
        if self.objective == "kto":
            if not self.num_ul:
                raise ValueError("objective kto needs undesirable completions: num_ul must be above 0")
            if self.ul_tokens is not None or self.ce_loss != "nll":
                raise ValueError("objective kto takes neither ul_tokens nor ce_loss: they are parts of oxa's")
        return self
