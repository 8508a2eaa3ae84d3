"""The student's sizes, from the nearest place that has them; no weights are read and nothing is fetched."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from oxa.config import forecast
from oxa.config.base import FromScratch
from oxa.config.params import Params
from oxa.errors import ConfigError
from oxa.forecast import cost
from oxa.forecast.cost import Shape
from oxa.model import limits


def student(params: Params) -> tuple[Shape, str]:
    """Shape and, in words, where it was read."""
    base, sizes = params.base, params.plan.shape
    if isinstance(base, FromScratch):
        bound = "at most" if base.tokenizer == "bpe" else "the corpus decides; taken as"
        config = _config(base, "llama", base.max_position_embeddings, tied=True)
        return cost.shape_of(config), f"base, from scratch; vocabulary {bound} {base.vocab_size:,}"
    shape = published(base.model, base.revision)
    if shape is not None:
        context = base.max_position_embeddings or shape.context
        return shape._replace(context=context), f"{base.model}, its config.json"
    if sizes is None:
        raise ConfigError(
            f"plan.shape: missing, and the config.json of base.model {base.model!r} is neither a local folder's nor in "
            "the hub's cache; give the sizes that the model's page lists (hidden_size, num_layers, …)"
        )
    if sizes.hidden_size % sizes.num_heads or sizes.num_heads % sizes.num_kv_heads:
        raise ConfigError(
            f"plan.shape: hidden_size {sizes.hidden_size} must be a multiple of num_heads {sizes.num_heads}, and that "
            f"of num_kv_heads {sizes.num_kv_heads}"
        )
    config = _config(sizes, "qwen2", base.max_position_embeddings or 2**31, tied=sizes.tie_word_embeddings)
    return cost.shape_of(config), f"{base.model}, plan.shape"


def _config(sizes: FromScratch | forecast.Shape, kind: str, context: int, *, tied: bool) -> Any:
    return AutoConfig.for_model(
        kind,
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        **({"attention_bias": True} if kind == "llama" else {}),  # as pretrain.py has it; Qwen2 always has
    )


def published(model: str, revision: str | None = None) -> Shape | None:
    """The shape of a local folder's model, or of one in the hub's cache; None where neither has it.

    Raises DataError where its config.json cannot be read, or asks for a model beyond all limits.
    """
    return limits.call(f"{model}: no usable model: config.json", _published, model, revision)


def _published(model: str, revision: str | None) -> Shape | None:
    try:
        config = AutoConfig.from_pretrained(
            model, revision=revision or "main", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return cost.shape_of(config)
