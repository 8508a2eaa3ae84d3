"""KL divergences between two models, against a float64 softmax of all logits at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oxa.model import divergence, loading, log_probs


def test_it_is_the_kl_of_the_whole_vocabulary_at_every_position(
    checkpoint: Path, neighbour: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_probs, "MIN_WIDTH", 7)
    monkeypatch.setattr(divergence, "MIN_WIDTH", 7)  # several tiles, the last of them narrower
    monkeypatch.setattr(divergence, "TILE", {"cpu": 50})
    p, q = (loading.load(path)[0] for path in (checkpoint, neighbour))
    draws = np.random.default_rng(0)
    sequences = [draws.integers(3, 60, size) for size in (9, 4, 12)]
    starts = [3, 2, 11]
    found, counts = divergence.batch_kl(p, q, sequences, starts, chunk=4)
    assert counts.tolist() == [6, 2, 1]
    expected = []
    for ids, start in zip(sequences, starts, strict=True):
        with torch.no_grad():
            log_p, log_q = (
                model(torch.from_numpy(ids)[None]).logits[0, start - 1 : -1].double().log_softmax(-1)
                for model in (p, q)
            )
        expected.append((log_p.exp() * (log_p - log_q)).sum(-1))
    assert torch.cat(expected).min() > 0.001, "the two models differ"
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-6)
    same, _ = divergence.batch_kl(p, p, sequences, starts, chunk=100)
    assert same.abs().max() < 1e-6
