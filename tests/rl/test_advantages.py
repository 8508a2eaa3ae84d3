"""Advantages that ask for exploration, against what they are a short form of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spellers import SECTION, over_subsets

from oxa.config.rlvr import Rlvr, k_of
from oxa.rl import advantages


@given(st.lists(st.booleans(), min_size=2, max_size=9), st.integers(1, 9))
def test_pass_at_k_is_the_mean_over_all_subsets(rewards: list[bool], k: int) -> None:
    k = min(k, len(rewards))
    made = advantages.pass_at_k(torch.tensor([rewards]), k)[0]
    torch.testing.assert_close(made, over_subsets([float(one) for one in rewards], k))
    assert float(made.sum()) == pytest.approx(0, abs=1e-9)
    if len(rewards) - sum(rewards) < k or not any(rewards):
        assert made.abs().max() == 0
    elif k < len(rewards):  # with one subset alone there is nothing to compare it with
        assert made[torch.tensor(rewards)].min() > 0


def test_pass_at_1_is_the_groups_own_advantage() -> None:
    right = torch.tensor([[True, False, False, False], [True, True, True, False]])
    rewards = right.double()
    expected = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(advantages.pass_at_k(right, 1), expected)


def test_a_rare_right_answer_gains_more_with_k_and_a_common_one_less() -> None:
    rare, common = torch.tensor([[True] + [False] * 7]), torch.tensor([[True] * 5 + [False] * 3])
    gain = {k: (advantages.pass_at_k(rare, k)[0, 0], advantages.pass_at_k(common, k)[0, 0]) for k in (1, 3)}
    assert gain[3][1] < gain[1][1]
    assert gain[3][0] / gain[3][1] > gain[1][0] / gain[1][1]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_nsr_leaves_what_is_wrong_and_takes_a_tenth_of_what_is_right(values: list[float]) -> None:
    made = advantages.nsr(torch.tensor(values, dtype=torch.float64)).tolist()
    assert made == pytest.approx([value * (0.1 if value > 0 else 1) for value in values])


def test_advantages_that_mean_nothing_are_refused() -> None:
    assert k_of("pass_at_k(4)") == 4
    assert k_of("group") is None
    for changed, why in (
        ({"advantage": "pass_at_k"}, "expected `group`, `nsr`, or `pass_at_k"),
        ({"advantage": "pass_at_k(0)"}, "expected `group`, `nsr`, or `pass_at_k"),
        ({"advantage": "pass_at_k(9)"}, "num_generations is 8"),
        ({"advantage": "pass_at_k(2)", "scale_rewards": "batch"}, "leave scale_rewards out"),
    ):
        with pytest.raises(ValueError, match=why):
            Rlvr(**{**SECTION, **changed})
