"""Properties of batches and steps, over drawn sizes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxa import batches

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


@given(st.lists(st.integers(1, 50), min_size=12, max_size=12), st.integers(0, 100))
def test_sorting_by_length_keeps_every_steps_rows(lengths: list[int], seed: int) -> None:
    order = batches.step_order(8, 4, 3, 2, 2.0, seed)
    ordered = batches.longest_first(order, lengths)
    for before, after in zip(order.tolist(), ordered.tolist(), strict=True):
        assert Counter(before) == Counter(after)
        sizes = [lengths[row] for row in after]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("size", "num_processes", "at_most", "expected"),
    [(16, 1, 16, 16), (16, 1, 5, 4), (32, 4, 16, 8), (32, 2, 3, 2), (7, 1, 6, 1), (6, 6, 9, 1)],
)
def test_a_micro_batch_is_the_largest_that_cuts_each_processs_share_evenly(
    size: int, num_processes: int, at_most: int, expected: int
) -> None:
    assert batches.micro_batch_size("a step", size, num_processes, at_most) == expected
