"""Section `base`: the student that everything starts from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from oxa.config.section import Count, Positive, Section, Seed
from oxa.config.sources import Source


class FromScratch(Section):
    """A tiny student pretrained here, on a corpus that is named below."""

    kind: Literal["from_scratch"]
    """Marks a student that is pretrained here."""
    hidden_size: Count = 128
    """Width of the residual stream."""
    num_layers: Count = 4
    """Transformer blocks."""
    num_heads: Count = 4
    """Attention heads a layer."""
    num_kv_heads: Count = 4
    """Key-value heads a layer (grouped-query attention)."""
    intermediate_size: Count = 384
    """Width of the feed-forward part."""
    max_position_embeddings: Count = 512
    """Longest sequence, tokens."""
    rope_theta: Positive = 100.0
    """Rotary base; short sequences want a small one."""
    tokenizer: Literal["words", "bpe"] = "words"
    """`words`: whole words and single digits; `bpe`: byte-level BPE trained on the corpus."""
    vocab_size: Count = 2048
    """Upper bound of the BPE vocabulary; `words` takes what the corpus holds."""
    corpus: list[Source]
    """What the student is pretrained on."""
    steps: Count = 3000
    """Optimiser steps."""
    batch_tokens: Count = 1280
    """Tokens a step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` moves the matrices by Muon and the rest by AdamW; it needs about half of the steps."""
    learning_rate: Positive = 3e-3
    """Peak of the schedule."""
    warmup: Count = 100
    """Steps of linear warm-up; cosine decay to 0 follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of documents."""
    checkpoint_every: Count = 300
    """Steps between checkpoints to resume from."""

    @property
    def knows_world(self) -> bool:
        """Whether it is pretrained on the small world, whose gates apply then."""
        return any(part.source == "world" for part in self.corpus)

    @model_validator(mode="after")
    def _sizes_agree(self) -> FromScratch:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be an even multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.tokenizer == "bpe" and self.vocab_size < 300:
            raise ValueError(
                f"vocab_size {self.vocab_size} must be 300 or more: 256 bytes and the special tokens"
            )
        return self


class Checkpoint(Section):
    """A published student, taken over as it is but for the edits below."""

    kind: Literal["checkpoint"]
    """Marks a student that exists."""
    model: str
    """Hub id, or a local folder; DVC does not watch a folder: when its content changes, `dvc repro -f base`. An
    adapter (LoRA), too: it is merged into the base that its adapter_config.json names."""
    revision: str | None = None
    """Commit of the hub model; without it the newest is taken."""
    rope_theta: Positive | None = None
    """New rotary base (the paper: 1.0e6); none keeps the model's own."""
    max_position_embeddings: Count | None = None
    """New context length, tokens (the paper: 40000)."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """Chat template in place of the model's own: `plain` for a built-in one with the roles as words, or the name of a
    Jinja file in sources.folder. For templates that open, drop or rewrite <think> (DeepSeek-R1-Distill's, QwQ's,
    Qwen3's) or write today's date (Llama 3.2's), and for models without one. None keeps the model's own."""
    drop_system_prompt: bool = False
    """Take the default system prompt out of the chat template (the paper does)."""
