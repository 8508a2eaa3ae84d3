"""Selection's two stages over files small enough to follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import CONTEXT, Row, reference_lowest, small, spread, write_tables

from oxa.config.fine_tuning import FineTuning
from oxa.config.prompt import Prompt
from oxa.config.selection import CeSet, SelectionShared, UnlikelihoodSet
from oxa.errors import DataError
from oxa.records import schemas
from oxa.records import tables as records
from oxa.stages import selection_ce, selection_ul


def run(
    folder: Path,
    paths: dict[str, dict[str, Path]],
    shared: SelectionShared,
    log: Any,
    *,
    ce: Any,
    ul: UnlikelihoodSet | None = None,
    max_length: int = 1000,
) -> tuple[list[dict], dict]:
    """An arm's rows, CE before UL, and what is said of them."""
    parts = ["ce"]
    given = {"log": log, "scratch": folder}
    prompt = Prompt(suffix=" Think.")
    train = FineTuning(max_length=max_length)
    metrics = selection_ce.run(
        shared,
        CeSet.model_validate(ce),
        prompt,
        train,
        **paths["teacher"],
        output=folder / "ce.parquet",
        **given,
    )
    if ul is not None:
        parts.append("ul")
        output = folder / "ul.parquet"
        metrics |= selection_ul.run(shared, ul, prompt, train, **paths["self"], output=output, **given)
    return [
        row for part in parts for row in records.read(folder / f"{part}.parquet", schemas.TRAIN).to_pylist()
    ], metrics


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
        Row("longer-than-training-takes", "p9", train_tokens=31),
    ]
    paths = write_tables(tmp_path, rows, [], splits={"p5": "aime"})
    one_bin = {"mean": 2.0, "ppl_min": 1.5, "ppl_max": 2.5, "bin_width": 1.0}
    for rule in ("random", "lowest", "gaussian"):
        chosen, metrics = run(tmp_path, paths, small(num_ce=1, **one_bin), log, ce=rule, max_length=30)
        assert [row["response_id"] for row in chosen] == ["good"]
        assert metrics["ce"]["eligible"] == 1
        expected = {"responses": 10, "verdict": 7, "scored": 5, "train": 4, "whole": 2, "fits": 1}
        assert metrics["ce"]["funnel"] == expected


def test_every_measure_chooses_among_the_same_responses(tmp_path: Path, log: Any) -> None:
    nan, inf = float("nan"), float("inf")
    teacher = [
        Row(
            f"t{i}",
            f"p{i}",
            1.1 + i / 10,
            5 + i % 4,
            measures={"rsr": 9.0 - i, "hes": (i * 7) % 11, "ifd": 0.5},
        )
        for i in range(9)
    ]
    teacher += [
        Row("certain", "q0", 1.0, measures={"rsr": inf, "hes": 0.0, "ifd": 1.0}),
        Row("short", "q1", 1.2, 1, measures={"rsr": 0.1, "hes": 0.2, "ifd": nan}),
    ]
    paths = write_tables(tmp_path, teacher, [])
    whole = {row.id: row for row in teacher[:9]}
    values = {
        "ppl": lambda row: row.ppl,
        "length": lambda row: row.num_tokens,
        "hes": lambda row: row.measures["hes"],
        "rsr": lambda row: row.measures["rsr"],
    }
    for by, value in values.items():
        for rule, sign in (("lowest", 1), ("highest", -1)):
            ce = {"by": by, "rule": rule}
            chosen, metrics = run(tmp_path, paths, small(num_ce=4), log, ce=ce)
            best = sorted(sign * value(row) for row in whole.values())[:4]
            assert sorted(sign * value(whole[row["response_id"]]) for row in chosen) == best
            assert metrics["ce"]["funnel"]["scored"] == metrics["ce"]["eligible"] == 9
            assert metrics["ce"].get("by", "ppl") == by
            assert [row["ppl"] for row in chosen] == [whole[row["response_id"]].ppl for row in chosen]
    gaussian = {"by": "rsr", "rule": "gaussian", "mean": 3.0, "std": 1.0}
    _, metrics = run(tmp_path, paths, small(num_ce=3, max_shortage=1.0), log, ce=gaussian)
    assert [metrics["mean"], metrics["bins"][0]["low"], metrics["bins"][-1]["high"]] == [3.0, -1.0, 7.0]
    with pytest.raises(
        DataError, match=r"the Gaussian over rsr .* have rsr quantiles .* move its mean towards"
    ):
        run(tmp_path, paths, small(num_ce=3, max_shortage=0.0), log, ce=gaussian | {"mean": 20.0})
    far = small(num_ce=3, max_shortage=0.0, mean=20.0)
    with pytest.raises(
        DataError, match=r"; let selection\.shared\.ppl_min and ppl_max hold the mean, move sel"
    ):
        run(tmp_path, paths, far, log, ce="gaussian")
    bare = write_tables(tmp_path, [row._replace(measures={}) for row in teacher], [])
    with pytest.raises(DataError, match=r"scores.parquet: does not hold hes; add it to score.measures"):
        run(tmp_path, bare, small(num_ce=4), log, ce={"by": "hes", "rule": "lowest"})


def test_problems_are_chosen_by_how_often_they_are_solved(tmp_path: Path, log: Any) -> None:
    teacher = [Row(f"t{i}-{j}", f"p{i}", 1.1 + i / 10) for i in range(9) for j in range(2)]

    def rates(*solved: int) -> list[dict[str, Any]]:
        named = enumerate(solved)
        row = {"split": "train", "model": "base", "num_samples": 8, "num_truncated": 0}
        return [row | {"problem_id": f"p{i}", "num_correct": num} for i, num in named]

    solved = (3, 8, 0, 5, 2, 7, 1, 4, 6)
    of_rl = [row | {"split": "rlvr", "num_correct": 0} for row in rates(*solved)]
    paths = write_tables(tmp_path, teacher, [], pass_rates=[*of_rl, *rates(*solved)])
    for rule, expected in (("lowest", {"p2", "p6", "p4"}), ("highest", {"p1", "p5", "p8"})):
        chosen, metrics = run(tmp_path, paths, small(num_ce=3), log, ce={"by": "pass_rate", "rule": rule})
        assert {row["problem_id"] for row in chosen} == expected
        assert metrics["ce"]["eligible"] == 18
    assert max(metrics["ce"]["quantiles"].values()) <= 1
    short = write_tables(tmp_path / "short", teacher, [], pass_rates=rates(*solved)[:7])
    with pytest.raises(DataError, match=r"no pass rate of 2 of 9 training problems; add train to"):
        run(tmp_path, short, small(num_ce=3), log, ce={"by": "pass_rate", "rule": "lowest"})


def test_no_arm_chooses_from_problems_kept_apart(tmp_path: Path, log: Any) -> None:
    teacher = [Row(f"t{i}", f"p{i}") for i in range(6)]
    own = [Row(f"s{i}", f"p{i}", 1.5, verdict="incorrect") for i in range(6)]
    paths = write_tables(tmp_path, teacher, own, apart=["p1", "p3"])
    ul = UnlikelihoodSet(num=4, min_ppl=1.0)
    rows, metrics = run(tmp_path, paths, small(num_ce=4), log, ce="lowest", ul=ul)
    free = ["p0", "p2", "p4", "p5"]
    assert sorted(row["problem_id"] for row in rows) == sorted(2 * free)
    assert [metrics[part]["funnel"][name] for part in ("ce", "ul") for name in ("train", "apart")] == [
        6,
        4,
        6,
        4,
    ]


def test_a_question_that_stands_in_two_benchmarks_is_no_hindrance(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, [*spread(8), Row("other", "exam", 9.0)], [], splits={"exam": "aime24"})
    table = pq.read_table(paths["teacher"]["problems"])
    twice = table.slice(0, 1).set_column(5, table.schema.field("split"), pa.array(["aime25"]))
    assert twice["problem_id"].to_pylist() == ["exam"]
    pq.write_table(
        pa.concat_tables([twice, table]), paths["teacher"]["problems"]
    )  # in front: every row has moved
    rows, metrics = run(tmp_path, paths, small(num_ce=8, per_problem=2), log, ce="random")
    assert metrics["ce"]["funnel"]["train"] == 8
    for row in rows:
        assert row["prompt"] == f"what is {row['problem_id']}? Think."
    pq.write_table(pa.concat_tables([table, table.slice(1, 1)]), paths["teacher"]["problems"])
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
    assert funnel == {
        "responses": 8,
        "verdict": 4,
        "scored": 4,
        "train": 4,
        "whole": 2,
        "fits": 2,
        "floor": 1,
    }
    assert ul(num=3, allow_length=True)[0] == {"wrong", "cut", "cut-by-scorer"}
    assert ul(num=2, verdicts=["incorrect", "timeout"])[0] == {"wrong", "timeout"}
    assert ul(num=2, min_ppl=1.0)[0] == {"wrong", "loop"}
    with pytest.raises(
        DataError, match=r"2 UL sequences and 1 can be had.*self_responses|self_responses.*2 UL"
    ):
        ul(num=2)


@pytest.mark.parametrize(("max_length", "longest"), [(25, 25), (1000, CONTEXT)])
def test_every_arm_chooses_among_what_fits_and_gets_its_full_number(
    tmp_path: Path, log: Any, max_length: int, longest: int
) -> None:
    """The context is the scorer's: what is longer than either limit would be dropped, the longest first."""
    fits = [longest - i % 5 for i in range(60)]
    teacher, own = (
        [
            *(row._replace(train_tokens=fits[i], num_tokens=fits[i]) for i, row in enumerate(rows)),
            *(
                row._replace(id=f"{row.id}+", train_tokens=longest + 1, num_tokens=longest + 1)
                for row in rows
            ),
        ]
        for rows in (spread(60), spread(60, "incorrect", "s"))
    )
    paths = write_tables(tmp_path, teacher, own)
    for rule in ("random", "lowest", "gaussian"):
        ul = UnlikelihoodSet(num=10, min_ppl=1.0)
        rows, metrics = run(tmp_path, paths, small(num_ce=12), log, ce=rule, ul=ul, max_length=max_length)
        assert len(rows) == 22
        assert not [row["response_id"] for row in rows if row["response_id"].endswith("+")]
        for part in ("ce", "ul"):
            assert metrics[part]["funnel"]["whole"] - metrics[part]["funnel"]["fits"] == 60
    sentence = r"11 CE sequences and 0 can be had.*whole 120, fits 0\).*raise train.shared.max_length"
    with pytest.raises(DataError, match=sentence):
        run(tmp_path, paths, small(num_ce=11), log, ce="random", max_length=5)


def test_rows_say_whether_their_response_ended_or_was_cut(tmp_path: Path, log: Any) -> None:
    own = [
        Row("ended", "p0", 1.5, verdict="incorrect"),
        Row("cut", "p1", 1.5, verdict="incorrect", finish="length"),
    ]
    paths = write_tables(tmp_path, spread(20), own)
    ul = UnlikelihoodSet(num=2, allow_length=True)
    rows, _ = run(tmp_path, paths, small(num_ce=5), log, ce="random", ul=ul)
    assert {row["finish_reason"] for row in rows if row["objective"] == "ce"} == {"stop"}
    assert {row["response_id"]: row["finish_reason"] for row in rows[5:]} == {
        "cut": "length",
        "ended": "stop",
    }


def test_scores_that_do_not_say_the_scorers_context_are_made_again(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    scores = paths["teacher"]["scores"]
    records.write(scores, records.read(scores, schemas.SCORES), schemas.SCORES)
    with pytest.raises(
        DataError, match=r"scores.parquet: does not say how long the scorer's context is; make it"
    ):
        run(tmp_path, paths, small(num_ce=5), log, ce="random")


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(tmp_path_factory: pytest.TempPathFactory, random: Any) -> None:
    folder = tmp_path_factory.mktemp("order")
    paths = write_tables(folder, spread(120), spread(40, "incorrect", "s"))
    arms = [{"ce": "random"}, {"ce": "lowest"}, {"ce": "gaussian", "ul": UnlikelihoodSet(num=5, min_ppl=1.0)}]
    shared = small(num_ce=20, per_problem=2, max_shortage=1.0)
    before = [run(folder, paths, shared, lambda step, **values: None, **arm) for arm in arms]
    for path in dict.fromkeys(path for tables in paths.values() for path in tables.values()):
        table = pq.read_table(path)
        pq.write_table(
            table.take(pa.array(random.sample(range(len(table)), len(table)), pa.int64())),
            path,
            row_group_size=7,
        )
    assert [run(folder, paths, shared, lambda step, **values: None, **arm) for arm in arms] == before


def test_another_seed_draws_other_responses(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(200), [])
    drawn = [
        {row["response_id"] for row in run(tmp_path, paths, small(num_ce=30, seed=seed), log, ce="random")[0]}
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0] & drawn[2]) < 15  # 30 of 200 twice: 4.5 in common by chance


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
    assert not (tmp_path / "ce.parquet").exists()


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
    assert not (tmp_path / "ce.parquet").exists()
    _, metrics = run(tmp_path, paths, shared.model_copy(update={"num_ce": "tokens(173)"}), log, ce=rule)
    assert metrics["ce"]["tokens"] == 173


def test_tables_that_do_not_belong_together_are_refused(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    other = write_tables(tmp_path / "other", spread(24), [])
    mixed = {"teacher": {**paths["teacher"], "scores": other["teacher"]["scores"]}}
    with pytest.raises(DataError, match=r"teacher_scores.parquet: 4 rows name responses that are not in"):
        run(tmp_path, mixed, small(num_ce=2), log, ce="random")
    mixed = {"teacher": {**other["teacher"], "problems": paths["teacher"]["problems"]}}
    with pytest.raises(DataError, match="4 rows name problems that are not in"):
        run(tmp_path, mixed, small(num_ce=2), log, ce="random")
    twice = pq.read_table(paths["teacher"]["scores"])
    pq.write_table(pa.concat_tables([twice, twice.slice(0, 1)]), paths["teacher"]["scores"])
    with pytest.raises(DataError, match=r"teacher_scores.parquet: an id stands in two rows"):
        run(tmp_path, paths, small(num_ce=2), log, ce="random")
    twice = pq.read_table(other["teacher"]["responses"])
    pq.write_table(pa.concat_tables([twice, twice.slice(3, 1)]), other["teacher"]["responses"])
    with pytest.raises(DataError, match=r"teacher.parquet: an id stands in two rows"):
        run(tmp_path, other, small(num_ce=2), log, ce="random")


def test_an_unusable_table_is_named(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, spread(20), [])
    with pytest.raises(DataError, match=r"nowhere.parquet: no such file; `dvc repro` makes it"):
        run(
            tmp_path,
            {"teacher": {**paths["teacher"], "scores": tmp_path / "nowhere.parquet"}},
            small(num_ce=2),
            log,
            ce="random",
        )
    with pytest.raises(DataError, match=r"teacher_verdicts.parquet: no column 'ppl'; found"):
        swapped = {"teacher": {**paths["teacher"], "scores": paths["teacher"]["verdicts"]}}
        run(tmp_path, swapped, small(num_ce=2), log, ce="random")
    paths["teacher"]["responses"].write_bytes(b"half a file")
    with pytest.raises(DataError, match=r"teacher.parquet: not a readable Parquet file"):
        run(tmp_path, paths, small(num_ce=2), log, ce="random")


def test_nothing_at_all_is_refused_in_a_sentence(tmp_path: Path, log: Any) -> None:
    paths = write_tables(tmp_path, [], [])
    for rule in ("random", "lowest", "gaussian"):
        for num_ce in (2, "tokens(2)"):
            with pytest.raises(DataError, match="0 eligible responses of 0 problems"):
                run(tmp_path, paths, small(num_ce=num_ce), log, ce=rule)
