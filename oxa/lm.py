"""A language model on disk and its per-token log-probabilities, never with all logits at once.

Legend: B sequences, T tokens, N scored positions, V vocabulary, H hidden size. Log-probabilities are natural
logarithms, entropies are in nats.

Only safetensors weights are loaded and no code from a checkpoint runs (`trust_remote_code` is off).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oxa.errors import DataError


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Loads (model, tokenizer) from a checkpoint folder or a hub id, in eval mode.

    `dtype` is float32 on a CPU and bfloat16 on CUDA unless named. Raises DataError where there is no checkpoint, no
    safetensors weights, no tokenizer, or the checkpoint wants to run code of its own.
    """
    from transformers import AutoModelForCausalLM

    device = device or default_device()
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer = load_tokenizer(path, revision=revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, revision=revision or "main", use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable model: {_first_line(error)}") from None
    return model.to(device).eval(), tokenizer


def load_tokenizer(path: str | Path, *, revision: str | None = None) -> Any:
    """Loads the tokenizer alone; DataError where there is none."""
    from transformers import AutoTokenizer

    if isinstance(path, Path) and not (path / "config.json").is_file():
        raise DataError(f"{path}: not a checkpoint folder (no config.json); `dvc repro base` makes the base")
    try:
        return AutoTokenizer.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no usable tokenizer: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class TokenStatistics(NamedTuple):
    """For the N scored positions, row by row."""

    log_probs: Tensor  # [N] float32, ln p of the token that stands there
    entropies: Tensor  # [N] float32, of the distribution it was drawn from


@torch.no_grad()
def token_statistics(
    model: Any, input_ids: Tensor, attention_mask: Tensor, scored: Tensor, chunk: int
) -> TokenStatistics:
    """ln p(token | what stands before it) and entropies at the positions that `scored` marks.

    input_ids, attention_mask, scored: [B, T], right-padded; scored[:, 0] must be false (nothing stands before it).
    The backbone runs once; the head runs over `chunk` positions at a time, so that at most [chunk, V] logits exist,
    reduced in float32. Padding and unscored positions cost the head nothing.
    """
    assert not scored[:, 0].any()
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    before = hidden[:, :-1][scored[:, 1:]]  # [N, H]
    tokens = input_ids[scored]  # [N]
    head = model.get_output_embeddings()
    log_probs = torch.empty(len(tokens), dtype=torch.float32, device=tokens.device)
    entropies = torch.empty_like(log_probs)
    for start in range(0, len(tokens), chunk):
        part = slice(start, start + chunk)
        log_p = head(before[part]).float().log_softmax(-1)
        log_probs[part] = log_p.gather(-1, tokens[part, None])[:, 0]
        entropies[part] = -(log_p.exp() * log_p).sum(-1)
    return TokenStatistics(log_probs, entropies)


def batch_statistics(
    model: Any, sequences: Sequence[np.ndarray], starts: Sequence[int], chunk: int
) -> tuple[TokenStatistics, np.ndarray]:
    """Statistics of B sequences of ids, each from its start on, row by row; and the int64 [B] numbers of positions."""
    width = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    scored = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        input_ids[row, : len(ids)] = torch.from_numpy(ids)
        attention_mask[row, : len(ids)] = 1
        scored[row, start : len(ids)] = True
    device = model.device
    statistics = token_statistics(
        model, input_ids.to(device), attention_mask.to(device), scored.to(device), chunk
    )
    return statistics, scored.sum(1).numpy()


@torch.no_grad()
def check_head(model: Any, input_ids: Tensor) -> None:
    """Holds our log-probabilities of one short text, [1, T], against the model's own forward pass.

    Raises DataError where they differ: an architecture that caps or scales its logits would be scored wrongly.
    """
    mask = torch.ones_like(input_ids)
    scored = mask.bool()
    scored[:, 0] = False
    ours = token_statistics(model, input_ids, mask, scored, input_ids.numel()).log_probs
    log_p = (
        model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        .logits[0, :-1]
        .float()
        .log_softmax(-1)
    )
    theirs = log_p.gather(-1, input_ids[0, 1:, None])[:, 0]
    worst = (ours - theirs).abs().max().item()
    if worst > (1e-3 if model.dtype == torch.float32 else 0.1):
        raise DataError(
            f"{model.config.model_type} models cannot be scored: their forward pass changes the logits behind the "
            f"head (log-probabilities differ by up to {worst:.3g}); use another student"
        )
