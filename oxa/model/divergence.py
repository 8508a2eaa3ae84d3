"""How far two models' distributions lie apart along a response, exactly and never with all logits at once.

    KL_t(p ‖ q) = Σ_v p(v | x, y_<t) ln [p(v | x, y_<t) / q(v | x, y_<t)],    nats

Summed over the tokens t of responses y that were drawn from p and divided by their number, this estimates the KL
divergence of whole responses, a token (Shenfeld et al. 2025, arXiv 2509.04259): exact at a position, sampled over y.

Legend: B sequences, T tokens, N positions, V vocabulary, H hidden size of either model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from oxa.model.log_probs import MIN_WIDTH, TILE, OneDnn, linear, padded


class _Side(NamedTuple):
    """One of the two models at N positions."""

    before: Tensor  # [N, H], hidden states
    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]

    def logits(self, rows: slice, tile: slice) -> Tensor:
        """[n, v] float32."""
        bias = None if self.bias is None else self.bias[tile]
        return linear(self.before[rows], self.weight[tile], bias).float()


@torch.no_grad()
def batch_kl(
    p: Any, q: Any, sequences: Sequence[np.ndarray], starts: Sequence[int], chunk: int
) -> tuple[Tensor, np.ndarray]:
    """KL(p ‖ q) [N] float64 of B sequences of ids, each from its start on, row by row; and [B] numbers of positions.

    Both models read every sequence once. Nothing stands before a sequence's first token: starts are above 0.
    """
    assert min(starts) > 0
    input_ids, _, scored = padded(sequences, starts)
    ours, theirs = (_side(model, input_ids.to(model.device), scored.to(model.device)) for model in (p, q))
    num = int(scored.sum())
    parts = [_tiled_kl(ours, theirs, slice(first, first + chunk)) for first in range(0, num, chunk)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64), scored.sum(1).numpy()


def _side(model: Any, input_ids: Tensor, scored: Tensor) -> _Side:
    """What is causal never sees the padding behind it, so no mask is needed."""
    with OneDnn():
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    return _Side(hidden[:, :-1][scored[:, 1:]], head.weight, head.bias)


def _tiled_kl(p: _Side, q: _Side, rows: slice) -> Tensor:
    """[n] float64 of these positions, one tile of the vocabulary after the other.

    With logits a of p and b of q, KL = Σ e^a (a - b) / Σ e^a - ln Σ e^a + ln Σ e^b; each sum is kept relative to the
    highest logit so far, as in log_probs.py.
    """
    num = len(p.before[rows])
    device = p.before.device
    highest = torch.full((2, num), torch.finfo(torch.float32).min, dtype=torch.float64, device=device)
    sums, apart = torch.zeros_like(highest), torch.zeros(num, dtype=torch.float64, device=device)
    width = max(MIN_WIDTH, TILE[device.type] // (2 * num))
    for start in range(0, len(p.weight), width):
        tile = slice(start, start + width)
        logits = [side.logits(rows, tile).to(device) for side in (p, q)]
        higher = torch.maximum(highest, torch.stack([part.amax(-1) for part in logits]).double())
        scale, highest = (highest - higher).exp(), higher
        powers = [(part - top[:, None].float()).exp() for part, top in zip(logits, higher, strict=True)]
        sums = sums * scale + torch.stack([part.sum(-1, dtype=torch.float64) for part in powers])
        apart = apart * scale[0] + (powers[0] * (logits[0] - logits[1])).sum(-1, dtype=torch.float64)
    normalizers = highest + sums.log()
    return apart / sums[0] - normalizers[0] + normalizers[1]
