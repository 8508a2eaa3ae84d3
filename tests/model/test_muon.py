"""Muon for the matrices, AdamW for the rest."""

from __future__ import annotations

import pytest
import torch

from oxa.model.muon import MuonAdamW

SETTINGS = {"lr": 0.02, "weight_decay": 0.1}


class Network(torch.nn.Module):
    """An embedding, a matrix with a bias, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(7, 4)
        self.linear = torch.nn.Linear(4, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(self.embedding(ids))).square().mul(torch.arange(6.0)).mean()


def steps(network: Network, *optimizers: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        network.zero_grad()
        network(torch.tensor([step % 7, (3 * step) % 7])).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_move_by_muon_and_all_else_by_adamw() -> None:
    ours, theirs = Network(), Network()
    steps(ours, MuonAdamW(ours, betas=(0.9, 0.95), **SETTINGS), count=5)
    rest = [theirs.embedding.weight, theirs.linear.bias, theirs.norm.weight, theirs.norm.bias]
    steps(
        theirs,
        torch.optim.Muon([theirs.linear.weight], adjust_lr_fn="match_rms_adamw", **SETTINGS),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), **SETTINGS),
        count=5,
    )
    before = Network()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name))
        assert not torch.equal(parameter, before.get_parameter(name))


def test_a_schedule_reaches_both() -> None:
    network = Network()
    optimizer = MuonAdamW(network, betas=(0.9, 0.95), **SETTINGS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [parameter.clone() for parameter in network.parameters()]
    steps(network, optimizer, count=2)
    assert schedule.get_last_lr() == [0.0, 0.0]
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize("at", [1, 4])
def test_it_goes_on_from_its_state_as_if_it_had_not_stopped(at: int) -> None:
    whole, first = Network(), Network()
    steps(whole, MuonAdamW(whole, betas=(0.9, 0.95), **SETTINGS), count=6)
    optimizer = MuonAdamW(first, betas=(0.9, 0.95), **SETTINGS)
    steps(first, optimizer, count=at)
    second = Network()
    second.load_state_dict(first.state_dict())
    resumed = MuonAdamW(second, betas=(0.9, 0.95), **SETTINGS)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(at, 6):
        second.zero_grad()
        second(torch.tensor([step % 7, (3 * step) % 7])).backward()
        resumed.step()
    assert all(map(torch.equal, whole.parameters(), second.parameters()))
