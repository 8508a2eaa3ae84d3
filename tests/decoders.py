"""Untrained decoders of a few thousand parameters, for tests that count what torch does."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 307,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 1024,
}


def model_of(settings: Any, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(settings, dtype=torch.float32, attn_implementation=attention)


def batch(rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, SIZES["vocab_size"], (rows, longest), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)
