"""The student's shape, from the nearest place that tells it; no weights are read and nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oxa.config import forecast
from oxa.config.base import FromScratch
from oxa.config.params import Params
from oxa.errors import ConfigError
from oxa.forecast import cost
from oxa.forecast.cost import Shape


def of(params: Params, made: Path | None) -> tuple[Shape, str]:
    """Shape and, in words, where it was read."""
    base, told = params.base, params.plan.shape
    if made is not None and (made / "config.json").is_file():
        return cost.shape_of(published(str(made))), f"{made}, as it is"
    if isinstance(base, FromScratch):
        bound = "at most" if base.tokenizer == "bpe" else "the corpus decides; taken as"
        said = f"base, from scratch; vocabulary {bound} {base.vocab_size:,}"
        return cost.shape_of(
            _config(base, "llama", True, base.max_position_embeddings, base.vocab_size)
        ), said
    found = published(base.model, base.revision)
    if found is not None:
        if base.max_position_embeddings:
            found.get_text_config().max_position_embeddings = base.max_position_embeddings
        return cost.shape_of(found), f"{base.model}, its config.json"
    if told is None:
        raise ConfigError(
            f"plan.shape: missing, and the config.json of base.model {base.model!r} is neither a local folder's nor in "
            "the hub's cache; give the sizes that the model's page lists (hidden_size, num_layers, …)"
        )
    context = base.max_position_embeddings or 2**31
    built = _config(told, "qwen2", told.tie_word_embeddings, context, told.vocab_size)
    return cost.shape_of(built), f"{base.model}, plan.shape"


def _config(sizes: FromScratch | forecast.Shape, kind: str, tied: bool, context: int, vocab: int) -> Any:
    from transformers import AutoConfig

    if sizes.hidden_size % sizes.num_heads or sizes.num_heads % sizes.num_kv_heads:
        raise ConfigError(
            f"plan.shape: hidden_size {sizes.hidden_size} must be a multiple of num_heads {sizes.num_heads}, and that "
            f"of num_kv_heads {sizes.num_kv_heads}"
        )
    return AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        **({"attention_bias": True} if kind == "llama" else {}),
    )


def published(model: str, revision: str | None = None) -> Any:
    """The config of a local folder or of the hub's cache; None where neither has it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model, revision=revision or "main", trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError):
        return None
