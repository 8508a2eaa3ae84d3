"""Selection against a plain Python reference, on tables small enough to follow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oxa import hashes
from oxa.config.prompt import Prompt
from oxa.config.selection import SelectionArm, SelectionShared, UnlikelihoodSet
from oxa.errors import DataError
from oxa.records import schemas
from oxa.records import tables as records
from oxa.selection import rules
from oxa.selection.candidates import Candidates
from oxa.stages import selection

MASK = 2**64 - 1


class Row(NamedTuple):
    """A response with all that the tables say about it; verdict or ppl None: not judged, not scored."""

    id: str
    problem: str
    ppl: float | None = 2.0
    num_tokens: int = 10
    verdict: str | None = "correct"
    finish: str = "stop"
    truncated: bool = False
    predicted: str | None = "1"


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashed(seed: int, text: str) -> int:
    raw = text.encode()
    state = mix(len(raw))
    for start in range(0, len(raw), 8):
        state = mix(state ^ int.from_bytes(raw[start : start + 8], "little"))
    return mix(state ^ mix(seed))


def reference_lowest(rows: Sequence[Row], num: int, cap: int, seed: int) -> list[str]:
    given_: Counter[str] = Counter()
    chosen = []
    for row in sorted(rows, key=lambda r: (r.ppl, hashed(seed, r.id))):
        if given_[row.problem] < cap and len(chosen) < num:
            given_[row.problem] += 1
            chosen.append(row.id)
    return chosen


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
    edges, targets = rules.gaussian_targets(shared)
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
        num_tokens=np.array([row.num_tokens for row in rows], np.int64),
        order=np.array([hashed(seed, row.id) for row in rows], np.uint64),
    )


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Up to 40 responses of up to 8 problems, with many ties, some on bin edges and some outside all bins."""
    ppl = st.sampled_from([1.0, 1.2, 1.4, 1.5, 1.6, 1.9, 2.0, 2.1, 2.5, 3.0, 3.4])
    entries = draw(st.lists(st.tuples(st.integers(0, 7), ppl, st.integers(5, 8)), max_size=40))
    return [Row(f"r{i}-{'x' * (i % 11)}", f"p{p}", x, n) for i, (p, x, n) in enumerate(entries)]


def small(**changes: Any) -> SelectionShared:
    """Bins of half a ppl from 1 to 3: asks for little, so that a table of 40 can give it."""
    values = {"num_ce": 6, "mean": 2.0, "std": 0.5, "ppl_min": 1.0, "ppl_max": 3.0, "bin_width": 0.5}
    return SelectionShared(**{**values, **changes})


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_lowest_equals_the_plain_reference(rows: list[Row], num: int, cap: int, seed: int) -> None:
    chosen = rules.lowest(as_candidates(rows, seed), num, cap)
    assert [rows[i].id for i in chosen] == reference_lowest(rows, num, cap, seed)


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_random_equals_the_plain_reference(rows: list[Row], num: int, cap: int, seed: int) -> None:
    chosen = rules.random(as_candidates(rows, seed), num, cap)
    expected = reference_round_robin(rows, num, cap, Counter(), lambda row: hashed(seed, row.id))
    assert [rows[i].id for i in chosen] == expected


@given(
    tables(), st.integers(1, 12), st.integers(1, 3), st.sampled_from(["longest", "random"]), st.integers(0, 3)
)
def test_gaussian_equals_the_plain_reference(
    rows: list[Row], num: int, cap: int, within: Any, seed: int
) -> None:
    shared = small(num_ce=num, per_problem=cap, within_bin=within, seed=seed)
    chosen, bins = rules.gaussian(as_candidates(rows, seed), shared)
    expected = reference_gaussian(rows, shared)
    assert sorted(rows[i].id for i in chosen) == sorted(name for names in expected for name in names)
    assert [b["chosen"] for b in bins] == [len(names) for names in expected]


@given(tables(), st.integers(0, 3))
def test_no_problem_gives_more_than_its_cap_over_all_bins(rows: list[Row], seed: int) -> None:
    chosen, bins = rules.gaussian(as_candidates(rows, seed), small(num_ce=30, per_problem=2, seed=seed))
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
    edges, targets = rules.gaussian_targets(shared)
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
    edges, targets = rules.gaussian_targets(SelectionShared(num_ce=50_000))
    assert len(targets) == 80
    assert targets.sum() == 50_000
    np.testing.assert_allclose(np.diff(edges), 0.05, atol=1e-9)
    assert sorted(np.argsort(targets)[-2:].tolist()) == [29, 30]  # [2.45, 2.5) and [2.5, 2.55)
    # density at the center next to the mean, times the width, times N
    expected = 50_000 * 0.05 * math.exp(-0.5 * (0.025 / 0.25) ** 2) / (0.25 * math.sqrt(2 * math.pi))
    assert abs(targets[30] - expected) < 2
    assert targets[29] in (targets[30], targets[30] + 1)


def test_a_mean_far_outside_the_bins_asks_for_the_nearest_ones() -> None:
    _, targets = rules.gaussian_targets(SelectionShared(num_ce=10, mean=500.0, std=0.25))
    assert targets[-1] == 10


def test_longest_first_prefers_long_and_random_does_not() -> None:
    rows = [Row(f"r{i}", f"p{i}", 2.1, num_tokens=i) for i in range(300)]
    found = as_candidates(rows, 0)
    one_bin = {"num_ce": 50, "ppl_min": 2.0, "ppl_max": 2.5, "bin_width": 0.5}
    chosen, _ = rules.gaussian(found, small(**one_bin))
    assert sorted(rows[i].num_tokens for i in chosen) == list(range(250, 300))
    chosen, _ = rules.gaussian(found, small(**one_bin, within_bin="random"))
    assert 100 < np.mean([rows[i].num_tokens for i in chosen]) < 200


def test_the_scarcest_bin_takes_first_so_that_a_full_one_cannot_starve_it() -> None:
    # every problem has a response in the full bin [2, 2.5); the first two alone have one in [1.5, 2)
    rows = [Row(f"full{i}", f"p{i}", 2.2, num_tokens=100 - i) for i in range(6)]
    rows += [Row(f"scarce{i}", f"p{i}", 1.7) for i in range(2)]
    shared = small(num_ce=4, ppl_min=1.5, ppl_max=2.5, mean=2.0, std=5.0)
    chosen, bins = rules.gaussian(as_candidates(rows, 0), shared)
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
    found = as_candidates(rows, 0)
    order = rules.RULES[rule](found, len(rows), cap)
    totals = [0, *np.cumsum([rows[i].num_tokens for i in order]).tolist()]
    num = rules.number(small(num_ce=f"tokens({budget})", per_problem=cap), rule, found)
    assert num == (None if totals[-1] < budget else nearest(totals, budget, range(len(totals))))


def gaussian_totals(rows: Sequence[Row], **changes: Any) -> list[int]:
    """Tokens of a Gaussian of 0, 1, 2, ... as many as there are rows."""
    chosen = [
        rules.gaussian(as_candidates(rows, 0), small(num_ce=num_ce, **changes))[0]
        for num_ce in range(1, len(rows) + 1)
    ]
    return [0, *(sum(rows[i].num_tokens for i in each) for each in chosen)]


@given(tables(), st.sampled_from(["longest", "random"]), st.integers(1, 3), BUDGETS)
def test_a_budget_of_tokens_takes_a_gaussian_where_its_tokens_come_up_to_it(
    rows: list[Row], within: Any, cap: int, budget: int
) -> None:
    totals = gaussian_totals(rows, per_problem=cap, within_bin=within)
    shared = small(num_ce=f"tokens({budget})", per_problem=cap, within_bin=within)
    num = rules.number(shared, "gaussian", as_candidates(rows, 0))
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
    num = rules.number(small(num_ce=f"tokens({budget})"), "gaussian", as_candidates(rows, 0))
    assert num is not None
    assert totals[num] == budget


# Whole runs, over files.


def write_tables(
    folder: Path, teacher: Sequence[Row], own: Sequence[Row], splits: dict[str, str] | None = None
) -> dict:
    """Writes the seven tables and returns the path keywords of `run`."""
    names = sorted({row.problem for row in (*teacher, *own)})
    records.write(
        folder / "problems.parquet",
        [
            {
                "problem_id": name,
                "source": "test",
                "question": f"what is {name}?",
                "answers": ["1"],
                "tier": "",
                "split": (splits or {}).get(name, "train"),
            }
            for name in names
        ],
        schemas.PROBLEMS,
    )
    paths = {"problems": folder / "problems.parquet"}
    for prefix, responses_name, rows in (("teacher", "teacher", teacher), ("self", "self_responses", own)):
        paths[responses_name] = folder / f"{responses_name}.parquet"
        paths[f"{prefix}_verdicts"] = folder / f"{prefix}_verdicts.parquet"
        paths[f"{prefix}_scores"] = folder / f"{prefix}_scores.parquet"
        records.write(
            paths[responses_name],
            [
                {
                    "response_id": row.id,
                    "problem_id": row.problem,
                    "origin": prefix,
                    "model": "m",
                    "sample_index": 0,
                    "seed": -1,
                    "text": f"<think>text of\n{row.id} ü</think> \\boxed{{1}}",
                    "num_tokens": -1,
                    "finish_reason": row.finish,
                    "mean_entropy": float("nan"),
                }
                for row in rows
            ],
            schemas.RESPONSES,
        )
        records.write(
            paths[f"{prefix}_verdicts"],
            [
                {"response_id": r.id, "verdict": r.verdict, "predicted": r.predicted}
                for r in reversed(rows)
                if r.verdict
            ],
            schemas.VERDICTS,
        )
        records.write(
            paths[f"{prefix}_scores"],
            [
                {
                    "response_id": row.id,
                    "scorer": "base",
                    "mean_nll": math.log(row.ppl),
                    "ppl": row.ppl,
                    "num_tokens": row.num_tokens,
                    "truncated": row.truncated,
                    "mean_entropy": 0.1,
                }
                for row in sorted(rows, key=lambda row: row.num_tokens)
                if row.ppl is not None
            ],
            schemas.SCORES,
        )
    return paths


def spread(num: int, verdict: str = "correct", prefix: str = "t") -> list[Row]:
    """Two responses a problem, ppl spread over [1, 3)."""
    return [
        Row(f"{prefix}{i:04d}", f"p{i // 2:03d}", 1 + 2 * ((i * 7919) % num) / num, 5 + i % 9, verdict)
        for i in range(num)
    ]


def run(folder: Path, paths: dict, shared: SelectionShared, log: Any, **arm: Any) -> tuple[list[dict], dict]:
    output = folder / "out.parquet"
    metrics = selection.run(
        shared, SelectionArm(**arm), Prompt(suffix=" Think."), **paths, output=output, log=log, scratch=folder
    )
    return records.read(output, schemas.TRAIN).to_pylist(), metrics


def test_rows_carry_the_prompt_the_verbatim_text_and_the_scores(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(60), [])
    rows, metrics = run(tmp_path, paths, small(num_ce=10), log, ce="lowest")
    assert [row["response_id"] for row in rows] == sorted(row["response_id"] for row in rows)
    scored = {row.id: row for row in spread(60)}
    for row in rows:
        source = scored[row["response_id"]]
        assert row["prompt"] == f"what is {source.problem}? Think."
        assert row["completion"] == f"<think>text of\n{source.id} ü</think> \\boxed{{1}}"
        assert (row["problem_id"], row["ppl"], row["num_tokens"]) == (
            source.problem,
            source.ppl,
            source.num_tokens,
        )
        assert row["objective"] == "ce"
    assert metrics["ce"]["asked"] == metrics["ce"]["chosen"] == metrics["ce"]["problems"] == 10
    assert metrics["ce"]["eligible"] == 60
    assert metrics["ce"]["eligible_problems"] == 30
    assert metrics["ce"]["ppl_mean"] == pytest.approx(np.mean([row["ppl"] for row in rows]))
    assert metrics["ce"]["mean_tokens"] == pytest.approx(np.mean([row["num_tokens"] for row in rows]))
    assert metrics["shortage"] == 0
    assert "ul" not in metrics
    assert "bins" not in metrics
    assert "within_bin" not in metrics


def test_only_verified_scored_whole_training_responses_are_eligible(tmp_path: Path, log: Any) -> None:
    rows = [
        Row("good", "p0"),
        Row("wrong", "p1", verdict="incorrect"),
        Row("unjudged", "p2", verdict=None),
        Row("unscored", "p3", ppl=None),
        Row("not-a-number", "p4", ppl=float("nan")),
        Row("benchmark", "p5"),
        Row("bad-gold", "p6", verdict="bad_gold"),
        Row("cut", "p7", finish="length"),
        Row("cut-by-scorer", "p8", truncated=True),
    ]
    paths = write_tables(tmp_path, rows, [], splits={"p5": "aime"})
    one_bin = {"mean": 2.0, "ppl_min": 1.5, "ppl_max": 2.5, "bin_width": 1.0}
    for rule in ("random", "lowest", "gaussian"):
        chosen, metrics = run(tmp_path, paths, small(num_ce=1, **one_bin), log, ce=rule)
        assert [row["response_id"] for row in chosen] == ["good"]
        assert metrics["ce"]["eligible"] == 1
        expected = {"responses": 9, "verdict": 6, "scored": 4, "train": 3, "whole": 1}
        assert metrics["ce"]["funnel"] == expected


def test_a_question_that_stands_in_two_benchmarks_is_no_hindrance(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, [*spread(8), Row("other", "exam", 9.0)], [], splits={"exam": "aime24"})
    table = pq.read_table(paths["problems"])
    twice = table.slice(0, 1).set_column(5, table.schema.field("split"), pa.array(["aime25"]))
    assert twice["problem_id"].to_pylist() == ["exam"]
    pq.write_table(pa.concat_tables([twice, table]), paths["problems"])  # in front: every row has moved
    rows, metrics = run(tmp_path, paths, small(num_ce=8, per_problem=2), log, ce="random")
    assert metrics["ce"]["funnel"]["train"] == 8
    for row in rows:
        assert row["prompt"] == f"what is {row['problem_id']}? Think."
    pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), paths["problems"])
    with pytest.raises(DataError, match=r"problems.parquet: an id stands in two rows"):
        run(tmp_path, paths, small(num_ce=8), log, ce="random")


def test_oxa_full_has_the_ce_set_of_oxa_mle_and_wrong_responses_beside_it(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(200), spread(80, "incorrect", "s"))
    shared = small(num_ce=20, per_problem=1)
    mle, _ = run(tmp_path, paths, shared, log, ce="gaussian")
    full, metrics = run(tmp_path, paths, shared, log, ce="gaussian", ul=UnlikelihoodSet(num=12, min_ppl=1.2))
    assert full[: len(mle)] == mle
    assert metrics["within_bin"] == "longest"
    assert {row["objective"] for row in full[len(mle) :]} == {"ul"}
    wrong = [row for row in spread(80, "incorrect", "s") if row.ppl >= 1.2]
    expected = reference_lowest(wrong, 12, 1, shared.seed)
    assert [row["response_id"] for row in full[len(mle) :]] == sorted(expected)
    assert metrics["ul"]["chosen"] == 12
    assert metrics["ul"]["eligible"] == len(wrong)


def test_with_consensus_a_second_check_must_call_it_wrong_too(tmp_path: Path, log: Any) -> None:
    answers = {"other": "2", "same": "1", "text": "x + 1", "none": None, "rounded": "1.04"}
    own = [
        Row(name, f"p{place}", 1.5, verdict="incorrect", predicted=answer)
        for place, (name, answer) in enumerate(answers.items())
    ]
    paths = write_tables(tmp_path, spread(20), own)
    for consensus, wanted in ((True, {"other"}), (False, set(answers))):
        ul = UnlikelihoodSet(num=len(wanted), consensus=consensus)
        rows, metrics = run(tmp_path, paths, small(num_ce=5), log, ce="random", ul=ul)
        assert {row["response_id"] for row in rows if row["objective"] == "ul"} == wanted
        assert metrics["ul"]["funnel"].get("consensus", 5) == len(wanted)


def test_ul_takes_only_what_proves_a_wrong_pattern(tmp_path: Path, log: Any) -> None:
    own = [
        Row("wrong", "p0", 1.5, verdict="incorrect"),
        Row("loop", "p1", 1.1, verdict="incorrect"),
        Row("right", "p2", 1.5),
        Row("unparsable", "p3", 1.5, verdict="unparsable"),
        Row("timeout", "p4", 1.5, verdict="timeout"),
        Row("bad-gold", "p5", 1.5, verdict="bad_gold"),
        Row("cut", "p6", 1.5, verdict="incorrect", finish="length"),
        Row("cut-by-scorer", "p7", 1.5, verdict="incorrect", truncated=True),
    ]
    paths = write_tables(tmp_path, spread(20), own)

    def ul(**changes: Any) -> tuple[set[str], dict]:
        rows, metrics = run(tmp_path, paths, small(num_ce=5), log, ce="random", ul=UnlikelihoodSet(**changes))
        return {row["response_id"] for row in rows if row["objective"] == "ul"}, metrics["ul"]["funnel"]

    chosen, funnel = ul(num=1)
    assert chosen == {"wrong"}
    assert funnel == {"responses": 8, "verdict": 4, "scored": 4, "train": 4, "whole": 2, "floor": 1}
    assert ul(num=3, allow_length=True)[0] == {"wrong", "cut", "cut-by-scorer"}
    assert ul(num=2, verdicts=["incorrect", "timeout"])[0] == {"wrong", "timeout"}
    assert ul(num=2, min_ppl=1.0)[0] == {"wrong", "loop"}
    with pytest.raises(
        DataError, match=r"2 UL sequences and 1 can be had.*self_responses|self_responses.*2 UL"
    ):
        ul(num=2)


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(tmp_path_factory: pytest.TempPathFactory, random: Any) -> None:
    folder = tmp_path_factory.mktemp("order")
    paths = write_tables(folder, spread(120), spread(40, "incorrect", "s"))
    arms = [{"ce": "random"}, {"ce": "lowest"}, {"ce": "gaussian", "ul": UnlikelihoodSet(num=5, min_ppl=1.0)}]
    shared = small(num_ce=20, per_problem=2, max_shortage=1.0)
    before = [run(folder, paths, shared, lambda step, **values: None, **arm) for arm in arms]
    for path in paths.values():
        table = pq.read_table(path)
        pq.write_table(table.take(random.sample(range(len(table)), len(table))), path, row_group_size=7)
    assert [run(folder, paths, shared, lambda step, **values: None, **arm) for arm in arms] == before


def test_another_seed_draws_other_responses(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(200), [])
    drawn = [
        {row["response_id"] for row in run(tmp_path, paths, small(num_ce=30, seed=seed), log, ce="random")[0]}
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0] & drawn[2]) < 15  # 30 of 200 twice: 4.5 in common by chance


def test_random_draws_every_response_equally_often() -> None:
    rows = [Row(f"r{i}", f"p{i}") for i in range(50)]
    counts: Counter[int] = Counter()
    for seed in range(400):
        counts.update(rules.random(as_candidates(rows, seed), 10, 1).tolist())
    # binomial(400, 0.2): mean 80, standard deviation 8
    assert 45 < min(counts.values()) <= max(counts.values()) < 115


def test_shortage_is_reported_by_bin_and_filled_by_nothing(tmp_path: Path, log: Any, caplog: Any) -> None:
    rows = [Row(f"t{i}", f"p{i}", 1.7, i) for i in range(10)] + [Row("lone", "p10", 2.2)]
    paths = write_tables(tmp_path, rows, [])
    shared = small(num_ce=6, ppl_min=1.5, ppl_max=2.5, mean=2.0, std=5.0, max_shortage=0.5)
    chosen, metrics = run(tmp_path, paths, shared, log, ce="gaussian")
    assert len(chosen) == 4
    assert metrics["shortage"] == 2
    assert metrics["bins"] == [
        {"low": 1.5, "high": 2.0, "target": 3, "chosen": 3, "available": 10},
        {"low": 2.0, "high": 2.5, "target": 3, "chosen": 1, "available": 1},
    ]
    assert [row["bin_shortage"] for row in log.rows] == [0, 2]
    assert "1 of 3 CE sequences found, 2 missing" in caplog.text


def test_a_shortage_above_the_limit_says_what_was_found_and_what_to_change(tmp_path: Path, log: Any) -> None:
    rows = [Row(f"t{i}", f"p{i}", 1.1) for i in range(10)]
    paths = write_tables(tmp_path, rows, [])
    with pytest.raises(DataError) as caught:
        run(tmp_path, paths, small(num_ce=6, mean=2.5, std=0.2), log, ce="gaussian")
    assert "found 0 of the 6 CE sequences" in str(caught.value)
    assert "10 eligible responses of 10 problems" in str(caught.value)
    assert "50% 1.1" in str(caught.value)
    assert "move selection.shared.mean" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_a_mean_given_as_a_quantile_follows_the_students_scale(tmp_path: Path, log: Any) -> None:
    ppl = [1.0 + 0.02 * i for i in range(100)]
    paths = write_tables(tmp_path, [Row(f"t{i}", f"p{i}", x) for i, x in enumerate(ppl)], [])
    written, metrics = run(tmp_path, paths, small(mean="quantile(0.75)", std=0.2), log, ce="gaussian")
    assert metrics["mean"] == pytest.approx(np.quantile(ppl, 0.75))
    same, _ = run(tmp_path, paths, small(mean=metrics["mean"], std=0.2), log, ce="gaussian")
    assert written == same
    assert np.mean([row["ppl"] for row in written]) == pytest.approx(metrics["mean"], abs=0.2)


@pytest.mark.parametrize(
    "mean", ["quantile(1.5)", "quantile(80%)", "median", 0, -1.0, True, None, float("inf"), [2]]
)
def test_a_mean_that_is_neither_a_number_nor_a_quantile_is_refused(mean: Any) -> None:
    with pytest.raises(ValueError, match=r"above 0, or `quantile\(q\)`"):
        small(mean=mean)


@pytest.mark.parametrize("rule", ["random", "lowest"])
def test_an_arm_that_needs_more_than_exists_is_refused(tmp_path: Path, log: Any, rule: str) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    with pytest.raises(
        DataError, match=r"asks for 11 CE sequences and 10 can be had: 20 eligible.* of 10 problems"
    ):
        run(tmp_path, paths, small(num_ce=11), log, ce=rule)
    assert len(run(tmp_path, paths, small(num_ce=20, per_problem=2), log, ce=rule)[0]) == 20


@pytest.mark.parametrize("rule", ["random", "lowest", "gaussian"])
def test_a_run_with_a_budget_of_tokens_tells_what_it_chose(tmp_path: Path, log: Any, rule: str) -> None:
    paths = write_tables(tmp_path, spread(120), [])
    written, metrics = run(tmp_path, paths, small(num_ce="tokens(200)"), log, ce=rule)
    assert metrics["ce"]["tokens"] == sum(row["num_tokens"] for row in written)
    assert abs(metrics["ce"]["tokens"] - 200) <= 13 / 2  # half of the longest
    assert metrics["ce"]["asked"] == metrics["ce"]["chosen"] == len(written)
    again, _ = run(tmp_path, paths, small(num_ce=len(written)), log, ce=rule)
    assert written == again


@pytest.mark.parametrize("rule", ["random", "lowest", "gaussian"])
def test_a_budget_above_the_tokens_that_exist_is_refused_in_a_sentence(
    tmp_path: Path, log: Any, rule: str
) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    shared = small(num_ce="tokens(200)", per_problem=2, std=50.0, max_shortage=1.0)
    with pytest.raises(DataError) as caught:
        run(tmp_path, paths, shared, log, ce=rule)
    assert "CE sequences of 200 tokens together" in str(caught.value)
    assert f"what the rule {rule} can choose, at most 2 of one problem, holds fewer" in str(caught.value)
    assert "20 eligible responses of 10 problems, with 173 tokens and ppl quantiles" in str(caught.value)
    assert ("move selection.shared.mean" in str(caught.value)) == (rule == "gaussian")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()
    _, metrics = run(tmp_path, paths, shared.model_copy(update={"num_ce": "tokens(173)"}), log, ce=rule)
    assert metrics["ce"]["tokens"] == 173


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    other = write_tables(tmp_path / "other", spread(24), [])
    mixed = {**paths, "teacher_scores": other["teacher_scores"]}
    with pytest.raises(DataError, match=r"teacher_scores.parquet: 4 rows name responses that are not in"):
        run(tmp_path, mixed, small(num_ce=2), log, ce="random")
    mixed = {**other, "problems": paths["problems"]}
    with pytest.raises(DataError, match="4 rows name problems that are not in"):
        run(tmp_path, mixed, small(num_ce=2), log, ce="random")
    twice = pq.read_table(paths["teacher_scores"])
    pq.write_table(pa.concat_tables([twice, twice.slice(0, 1)]), paths["teacher_scores"])
    with pytest.raises(DataError, match=r"teacher_scores.parquet: an id stands in two rows"):
        run(tmp_path, paths, small(num_ce=2), log, ce="random")
    twice = pq.read_table(other["teacher"])
    pq.write_table(pa.concat_tables([twice, twice.slice(3, 1)]), other["teacher"])
    with pytest.raises(DataError, match=r"teacher.parquet: an id stands in two rows"):
        run(tmp_path, other, small(num_ce=2), log, ce="random")


def test_an_unusable_table_is_named(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    with pytest.raises(DataError, match=r"nowhere.parquet: no such file; `dvc repro` makes it"):
        run(
            tmp_path,
            {**paths, "teacher_scores": tmp_path / "nowhere.parquet"},
            small(num_ce=2),
            log,
            ce="random",
        )
    with pytest.raises(DataError, match=r"teacher_verdicts.parquet: no column 'ppl'; found"):
        swapped = {**paths, "teacher_scores": paths["teacher_verdicts"]}
        run(tmp_path, swapped, small(num_ce=2), log, ce="random")
    paths["teacher"].write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"teacher.parquet: not a readable Parquet file"):
        run(tmp_path, paths, small(num_ce=2), log, ce="random")


def test_nothing_at_all_is_refused_in_a_sentence(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, [], [])
    for rule in ("random", "lowest", "gaussian"):
        for num_ce in (2, "tokens(2)"):
            with pytest.raises(DataError, match="0 eligible responses of 0 problems"):
                run(tmp_path, paths, small(num_ce=num_ce), log, ce=rule)


@given(st.lists(st.text(max_size=20), max_size=30), st.integers(0, 5))
def test_the_vectorised_hash_equals_the_plain_one(texts: list[str], skip: int) -> None:
    part = pa.array(texts, pa.string())[skip:]  # a slice, with an offset into its buffer
    mixed = hashes.mix(hashes.hash_texts(part) ^ hashes.mix(np.array([3], np.uint64)))
    assert mixed.tolist() == [hashed(3, text) for text in texts[skip:]]
