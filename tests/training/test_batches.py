"""Properties of batches and steps, over drawn sizes."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxa.training import batches

LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 1000))
def test_token_budget_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    plan = batches.by_token_budget(lengths, budget)
    assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))
    for batch in plan:
        padded = max(lengths[row] for row in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 1000))
def test_token_budget_batches_are_filled_and_go_longest_first(lengths: list[int], budget: int) -> None:
    plan = batches.by_token_budget(lengths, budget)
    flat = [row for batch in plan for row in batch]
    assert flat == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for batch in plan[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > budget


STEPS = st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 9), st.floats(0.1, 6)
)


@given(STEPS, st.integers(0, 2**63 - 1))
def test_every_step_holds_exactly_the_asked_mix(sizes: tuple[int, int, int, int, float], seed: int) -> None:
    num_ce, num_ul, n_ce, n_ul, epochs = sizes
    order = batches.step_order(num_ce, num_ul, n_ce, n_ul, epochs, seed)
    assert order.shape == (max(1, round(epochs * num_ce / n_ce)), n_ce + n_ul)
    assert ((order < num_ce).sum(1) == n_ce).all()
    assert order.min() >= 0
    assert order.max() < num_ce + num_ul


@given(STEPS, st.integers(0, 2**32))
def test_no_row_is_shown_twice_more_than_another(sizes: tuple[int, int, int, int, float], seed: int) -> None:
    num_ce, num_ul, n_ce, n_ul, epochs = sizes
    order = batches.step_order(num_ce, num_ul, n_ce, n_ul, epochs, seed)
    for stream, first, count in ((order[:, :n_ce], 0, num_ce), (order[:, n_ce:], num_ce, num_ul)):
        shown = np.bincount(stream.ravel() - first, minlength=count)
        assert shown.max() - shown.min() <= 1


def test_each_pass_is_a_permutation_and_passes_differ() -> None:
    order = batches.step_order(12, 8, 4, 4, 4.0, seed=3)
    ce = order[:, :4].reshape(4, 12)
    ul = order[:, 4:].reshape(6, 8)
    assert all(sorted(a_pass) == list(range(12)) for a_pass in ce.tolist())
    assert all(sorted(a_pass) == list(range(12, 20)) for a_pass in ul.tolist())
    assert len({tuple(a_pass) for a_pass in ce.tolist()}) == 4


def test_the_order_is_the_seeds_and_the_ce_rows_do_not_depend_on_the_ul_set() -> None:
    order = batches.step_order(30, 7, 5, 2, 2.0, seed=11)
    assert (order == batches.step_order(30, 7, 5, 2, 2.0, seed=11)).all()
    assert (order != batches.step_order(30, 7, 5, 2, 2.0, seed=12)).any()
    assert (order[:, :5] == batches.step_order(30, 0, 5, 0, 2.0, seed=11)).all()
    assert batches.step_order(6, 0, 3, 0, 1.0, seed=0).tolist() == [[0, 3, 5], [1, 2, 4]]  # on any version


def padded(lengths: list[int], plan: list[list[int]]) -> list[int]:
    return [max(lengths[row] for row in batch) * len(batch) for batch in plan]


@given(st.data(), st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_a_step_is_cut_into_the_asked_number_of_micro_batches_longest_rows_first(
    data: st.DataObject, lengths: list[int]
) -> None:
    num = data.draw(st.integers(1, len(lengths)))
    plan = batches.micro_batches(lengths, num)
    assert len(plan) == num
    assert all(plan)
    assert [row for batch in plan for row in batch] == sorted(
        range(len(lengths)), key=lambda row: (-lengths[row], row)
    )


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(1, 4))
def test_the_largest_micro_batch_is_as_small_as_can_be(lengths: list[int], num: int) -> None:
    num = min(num, len(lengths))
    descending = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    least = min(
        max(padded(lengths, [descending[a:b] for a, b in pairwise((0, *cuts, len(lengths)))]))
        for cuts in combinations(range(1, len(lengths)), num - 1)
    )
    assert max(padded(lengths, batches.micro_batches(lengths, num))) == least


def test_long_sequences_go_in_smaller_micro_batches() -> None:
    lengths = [10, 80, 10, 20, 10, 20, 10, 10]
    plan = batches.micro_batches(lengths, 2)
    assert plan == [[1], [3, 5, 0, 2, 4, 6, 7]]
    assert sum(padded(lengths, plan)) == 220  # cut by number: 4 · 80 + 4 · 10 = 360


@pytest.mark.parametrize(
    ("size", "num_processes", "at_most", "expected"),
    [(16, 1, 16, 16), (16, 1, 5, 4), (32, 4, 16, 8), (32, 2, 3, 2), (7, 1, 6, 1), (6, 6, 9, 1)],
)
def test_a_micro_batch_is_the_largest_that_cuts_each_processs_share_evenly(
    size: int, num_processes: int, at_most: int, expected: int
) -> None:
    assert batches.micro_batch_size("a step", size, num_processes, at_most) == expected
