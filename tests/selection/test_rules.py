"""The rules of the CE set against a plain Python reference, on rows few enough to follow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scored import Row, hashed, reference_lowest, small

from oxa.config.selection import CeRule, CeSet, SelectionShared
from oxa.selection import rules
from oxa.selection.candidates import Candidates


def reference_round_robin(
    rows: Sequence[Row], num: int, cap: int, given_: Counter[str], key: Any
) -> list[str]:
    """Round after round, each problem's best that is left, until `num` are found."""
    left = sorted(rows, key=key)
    chosen: list[str] = []
    for turn in range(cap):
        for row in list(left):
            if given_[row.problem] == turn and len(chosen) < num:
                given_[row.problem] += 1
                chosen.append(row.id)
                left.remove(row)
    return chosen


def reference_gaussian(rows: Sequence[Row], shared: SelectionShared) -> list[list[str]]:
    edges, targets = rules.gaussian_targets(shared.num_ce, bell(shared))
    last = len(targets) - 1
    bins: list[list[Row]] = [[] for _ in targets]
    for row in rows:
        for b in range(len(targets)):
            if edges[b] <= row.ppl < edges[b + 1] or (b == last and row.ppl == edges[-1]):
                bins[b].append(row)

    def could_give(b: int) -> int:
        return sum(min(n, shared.per_problem) for n in Counter(row.problem for row in bins[b]).values())

    def key(row: Row) -> Any:
        longest = -row.num_tokens if shared.within_bin == "longest" else 0
        return longest, hashed(shared.seed, row.id)

    given_: Counter[str] = Counter()
    chosen: list[list[str]] = [[] for _ in targets]
    for b in sorted(range(len(targets)), key=lambda b: (could_give(b) / max(targets[b], 1), b)):
        chosen[b] = reference_round_robin(bins[b], int(targets[b]), shared.per_problem, given_, key)
    return chosen


def as_candidates(rows: Sequence[Row], seed: int) -> Candidates:
    names = sorted({row.problem for row in rows})
    return Candidates(
        row=np.arange(len(rows)),
        score_row=np.arange(len(rows)),
        verdict_row=np.arange(len(rows)),
        problem=np.array([names.index(row.problem) for row in rows], np.int64),
        ppl=np.array([row.ppl for row in rows], np.float64),
        value=np.array([row.ppl for row in rows], np.float64),
        num_tokens=np.array([row.num_tokens for row in rows], np.int64),
        order=np.array([hashed(seed, row.id) for row in rows], np.uint64),
    )


def bell(shared: SelectionShared) -> rules.Bell:
    return rules.bell_of(as_candidates([], 0), shared, rules.BY_PPL)


def gaussian(candidates: Candidates, shared: SelectionShared) -> tuple[Any, list[dict[str, Any]]]:
    """Positions and bins of as many as the settings say."""
    positions, bins = rules.gaussian(candidates, shared.num_ce, shared)
    assert bins is not None
    return positions, bins.rows


def test_every_rule_that_a_params_file_may_name_is_there() -> None:
    assert set(rules.RULES) == set(get_args(CeRule))


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Up to 40 responses of up to 8 problems, with many ties, some on bin edges and some outside all bins."""
    ppl = st.sampled_from([1.0, 1.2, 1.4, 1.5, 1.6, 1.9, 2.0, 2.1, 2.5, 3.0, 3.4])
    entries = draw(st.lists(st.tuples(st.integers(0, 7), ppl, st.integers(5, 8)), max_size=40))
    return [Row(f"r{i}-{'x' * (i % 11)}", f"p{p}", x, n) for i, (p, x, n) in enumerate(entries)]


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_lowest_equals_the_plain_reference(rows: list[Row], num: int, cap: int, seed: int) -> None:
    chosen = rules.lowest(as_candidates(rows, seed), num, small(per_problem=cap)).positions
    assert [rows[i].id for i in chosen] == reference_lowest(rows, num, cap, seed)


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_highest_is_lowest_of_what_is_turned_round(rows: list[Row], num: int, cap: int, seed: int) -> None:
    chosen = rules.highest(as_candidates(rows, seed), num, small(per_problem=cap)).positions
    turned = [row._replace(ppl=-(row.ppl or 0)) for row in rows]
    assert [rows[i].id for i in chosen] == reference_lowest(turned, num, cap, seed)


@given(tables(), st.integers(1, 12), st.floats(1.2, 3.0), st.sampled_from([0.1, 0.25, 1.0]), st.booleans())
def test_a_gaussian_by_another_measure_is_that_of_ppl_over_its_own_bins(
    rows: list[Row], num: int, mean: float, std: float, by_quantile: bool
) -> None:
    plain = as_candidates(rows, 0)
    candidates = plain._replace(ppl=np.full(len(rows), 7.0))
    ce = CeSet(by="hes", rule="gaussian", mean="quantile(0.7)" if by_quantile else mean, std=std)
    if by_quantile and rows:
        mean = float(np.quantile([row.ppl for row in rows], 0.7))
    elif by_quantile:
        mean = 1.0
    own = {"ppl_min": mean - 4 * std, "ppl_max": mean + 4 * std, "bin_width": std / 5}
    over_ppl = small(mean=mean, std=std).model_copy(update=own)
    chosen, bins = rules.rule_of(ce)(candidates, num, small())
    expected = rules.gaussian(plain, num, over_ppl)
    assert chosen.tolist() == expected.positions.tolist()
    assert bins is not None
    assert expected.bins is not None
    assert bins.rows == expected.bins.rows
    assert "over hes" in bins.shape


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_random_equals_the_plain_reference(rows: list[Row], num: int, cap: int, seed: int) -> None:
    chosen = rules.random(as_candidates(rows, seed), num, small(per_problem=cap)).positions
    expected = reference_round_robin(rows, num, cap, Counter(), lambda row: hashed(seed, row.id))
    assert [rows[i].id for i in chosen] == expected


@given(
    tables(), st.integers(1, 12), st.integers(1, 3), st.sampled_from(["longest", "random"]), st.integers(0, 3)
)
def test_gaussian_equals_the_plain_reference(
    rows: list[Row], num: int, cap: int, within: Any, seed: int
) -> None:
    shared = small(num_ce=num, per_problem=cap, within_bin=within, seed=seed)
    chosen, bins = gaussian(as_candidates(rows, seed), shared)
    expected = reference_gaussian(rows, shared)
    assert sorted(rows[i].id for i in chosen) == sorted(name for names in expected for name in names)
    assert [b["chosen"] for b in bins] == [len(names) for names in expected]


@given(tables(), st.integers(0, 3))
def test_no_problem_gives_more_than_its_cap_over_all_bins(rows: list[Row], seed: int) -> None:
    chosen, bins = gaussian(as_candidates(rows, seed), small(num_ce=30, per_problem=2, seed=seed))
    assert max(Counter(rows[i].problem for i in chosen).values(), default=0) <= 2
    for row in bins:
        assert row["chosen"] <= min(row["target"], row["available"])


@given(
    st.integers(1, 100_000),
    st.floats(0.5, 8),
    st.floats(0.01, 5),
    st.sampled_from([0.05, 0.1, 0.3, 0.7]),
    st.floats(1.2, 9),
)
def test_targets_sum_to_n_and_round_by_largest_remainder(
    num: int, mean: float, std: float, width: float, high: float
) -> None:
    shared = SelectionShared(num_ce=num, mean=mean, std=std, bin_width=width, ppl_max=high)
    edges, targets = rules.gaussian_targets(num, bell(shared))
    assert targets.sum() == num
    assert edges[0] == 1.0
    assert edges[-1] == high
    centers = [(a + b) / 2 for a, b in pairwise(edges)]
    offsets = [-0.5 * ((c - mean) / std) ** 2 for c in centers]
    weights = [
        (b - a) * math.exp(o - max(offsets)) for a, b, o in zip(edges[:-1], edges[1:], offsets, strict=True)
    ]
    quotas = [num * w / math.fsum(weights) for w in weights]
    rest = {"up": [], "down": []}
    for target, quota in zip(targets.tolist(), quotas, strict=True):
        assert abs(target - quota) < 1 + 1e-6
        rest["up" if target > quota else "down"].append(quota - math.floor(quota))
    if rest["up"] and rest["down"] and min(rest["up"]) > 1e-6:
        assert min(rest["up"]) >= max(r for r in rest["down"]) - 1e-6 or max(rest["down"]) > 1 - 1e-6


def test_the_papers_gaussian_has_80_bins_that_sum_to_50000_and_peak_at_the_mean() -> None:
    edges, targets = rules.gaussian_targets(50_000, bell(SelectionShared(num_ce=50_000)))
    assert len(targets) == 80
    assert targets.sum() == 50_000
    np.testing.assert_allclose(np.diff(edges), 0.05, atol=1e-9)
    assert sorted(np.argsort(targets)[-2:].tolist()) == [29, 30]  # [2.45, 2.5) and [2.5, 2.55)
    # density at the center next to the mean, times the width, times N
    expected = 50_000 * 0.05 * math.exp(-0.5 * (0.025 / 0.25) ** 2) / (0.25 * math.sqrt(2 * math.pi))
    assert abs(targets[30] - expected) < 2
    assert targets[29] in (targets[30], targets[30] + 1)


def test_a_mean_far_outside_the_bins_asks_for_the_nearest_ones() -> None:
    _, targets = rules.gaussian_targets(10, bell(SelectionShared(num_ce=10, mean=500.0, std=0.25)))
    assert targets[-1] == 10


def test_longest_first_prefers_long_and_random_does_not() -> None:
    rows = [Row(f"r{i}", f"p{i}", 2.1, num_tokens=i) for i in range(300)]
    candidates = as_candidates(rows, 0)
    one_bin = {"num_ce": 50, "ppl_min": 2.0, "ppl_max": 2.5, "bin_width": 0.5}
    chosen, _ = gaussian(candidates, small(**one_bin))
    assert sorted(rows[i].num_tokens for i in chosen) == list(range(250, 300))
    chosen, _ = gaussian(candidates, small(**one_bin, within_bin="random"))
    assert 100 < np.mean([rows[i].num_tokens for i in chosen]) < 200


def test_the_scarcest_bin_takes_first_so_that_a_full_one_cannot_starve_it() -> None:
    # every problem has a response in the full bin [2, 2.5); the first two alone have one in [1.5, 2)
    rows = [Row(f"full{i}", f"p{i}", 2.2, num_tokens=100 - i) for i in range(6)]
    rows += [Row(f"scarce{i}", f"p{i}", 1.7) for i in range(2)]
    shared = small(num_ce=4, ppl_min=1.5, ppl_max=2.5, mean=2.0, std=5.0)
    chosen, bins = gaussian(as_candidates(rows, 0), shared)
    assert [b["target"] for b in bins] == [2, 2]
    assert {rows[i].id for i in chosen} == {"scarce0", "scarce1", "full2", "full3"}


BUDGETS = st.integers(1, 120)


def nearest(totals: Sequence[int], budget: int, numbers: Sequence[int]) -> int:
    """The one of the numbers, 0 left out, whose total is nearest to the budget; the larger of two."""
    return min((num for num in numbers if num), key=lambda num: (abs(totals[num] - budget), -num))


@given(tables(), st.sampled_from(["random", "lowest"]), st.integers(1, 3), BUDGETS)
def test_a_budget_of_tokens_takes_the_start_of_the_order_whose_total_is_nearest(
    rows: list[Row], rule: str, cap: int, budget: int
) -> None:
    candidates = as_candidates(rows, 0)
    order = rules.RULES[rule](candidates, len(rows), small(per_problem=cap)).positions
    totals = [0, *np.cumsum([rows[i].num_tokens for i in order]).tolist()]
    shared = small(num_ce=f"tokens({budget})", per_problem=cap)
    num = rules.num_sequences(rules.RULES[rule], candidates, shared)
    assert num == (None if totals[-1] < budget else nearest(totals, budget, range(len(totals))))


def gaussian_totals(rows: Sequence[Row], **changes: Any) -> list[int]:
    """Tokens of a Gaussian of 0, 1, 2, ... as many as there are rows."""
    chosen = [
        gaussian(as_candidates(rows, 0), small(num_ce=num_ce, **changes))[0]
        for num_ce in range(1, len(rows) + 1)
    ]
    return [0, *(sum(rows[i].num_tokens for i in each) for each in chosen)]


@given(tables(), st.sampled_from(["longest", "random"]), st.integers(1, 3), BUDGETS)
def test_a_budget_of_tokens_takes_a_gaussian_where_its_tokens_come_up_to_it(
    rows: list[Row], within: Any, cap: int, budget: int
) -> None:
    totals = gaussian_totals(rows, per_problem=cap, within_bin=within)
    shared = small(num_ce=f"tokens({budget})", per_problem=cap, within_bin=within)
    num = rules.num_sequences(rules.gaussian, as_candidates(rows, 0), shared)
    if num is None:
        assert totals[-1] < budget
    else:
        come_up = [i for i in range(1, len(totals)) if totals[i - 1] < budget <= totals[i]]
        assert num in [nearest(totals, budget, (i - 1, i)) for i in come_up]


def test_a_budget_of_tokens_is_met_by_one_of_several_gaussians_that_come_up_to_it() -> None:
    rows = [Row(f"r{i}", f"p{i}", 1.1 + 0.5 * (i % 4), num_tokens=5 + i % 3) for i in range(24)]
    totals = gaussian_totals(rows)
    budget = next(before for before, after in pairwise(totals) if after < before)
    assert sum(before < budget <= after for before, after in pairwise(totals)) == 2
    num = rules.num_sequences(rules.gaussian, as_candidates(rows, 0), small(num_ce=f"tokens({budget})"))
    assert num is not None
    assert totals[num] == budget


def test_random_draws_every_response_equally_often() -> None:
    rows = [Row(f"r{i}", f"p{i}") for i in range(50)]
    counts: Counter[int] = Counter()
    for seed in range(400):
        counts.update(rules.random(as_candidates(rows, seed), 10, small()).positions.tolist())
    # binomial(400, 0.2): mean 80, standard deviation 8
    assert 45 < min(counts.values()) <= max(counts.values()) < 115
