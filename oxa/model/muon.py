"""Muon for the matrices of a network and AdamW for the rest, as one optimiser.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes a matrix's momentum orthogonal before it
takes the step. Here it learns the small world in half of AdamW's steps, and with each seed that was tried. Embeddings,
biases and norms are no maps between spaces and stay with AdamW. Both are torch's; the step of a matrix is scaled to the
RMS of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that both have one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonAdamW(torch.optim.Optimizer):
    """Steps both optimisers; its groups are theirs, so that a schedule of the learning rate reaches both."""

    def __init__(
        self, model: torch.nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        embeddings = {
            id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
        }
        parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
        chosen = {id(p) for p in matrices}
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [p for p in parameters if id(p) not in chosen], lr=lr, weight_decay=weight_decay, betas=betas
            ),
        ]
        super().__init__([{"params": part.param_groups[0]["params"]} for part in self._parts], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states, to resume from."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up both states."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
