"""The comparison of arms, on generations whose truth is known: outcomes, differences, claims, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generations import apart, write

from oxa.comparison import arms, estimators, outcomes
from oxa.comparison.measures import METRICS, pass_at
from oxa.config.report import Report
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.report import markdown, wording

SECTION = Report(baseline="sft", resamples=300)
ENTROPIES = ("response_entropy", "token_entropy")


def summarized(*args: Any) -> dict[str, Any]:
    """The whole summary, as the report's stage makes it."""
    return wording.with_answer(arms.summarize(*args))


RATES = {"base": 0.3, "sft": 0.5, "oxa_mle": 0.7, "oxa_full": 0.51}


def results(
    folder: Path, *, rl: bool = True, seeds: tuple[int, ...] = (0,), **options: Any
) -> tuple[Any, Any]:
    """Outcomes as the report gathers them; oxa_mle leads by 20 points, after RL no arm does."""
    by_arm: dict[str, list[outcomes.Outcomes]] = {}
    along: dict[str, list[dict[int, outcomes.Outcomes]]] = {}
    for place, (arm, rate) in enumerate(RATES.items()):
        for seed in seeds if arm != "base" else (0,):
            path = write(folder / f"{arm}-{seed}.parquet", rate, seed=10 * place + seed, **options)
            by_arm.setdefault(arm, []).append(outcomes.outcomes(path, entropies=apart(path)))
    for place, arm in enumerate(list(RATES)[1:] if rl else []):
        for seed in seeds:
            path = folder / f"{arm}-{seed}-rl.parquet"
            write(path, 0.7, seed=100 + 10 * place + seed, steps=(10, 20), **options)
            along.setdefault(arm, []).append(outcomes.along_rl(path, entropies=apart(path)))
            by_arm.setdefault(f"{arm}-rl", []).append(outcomes.outcomes(path, entropies=apart(path)))
    return by_arm, along


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    summary = summarized(SECTION, *results(tmp_path_factory.mktemp("generations")))
    return summary | {"guess_rate": {"world": 0.018}}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "b",
        "problem_id": "p",
        "tier": "",
        "step": 0,
        "sample_index": 0,
        "text": "",
        "num_tokens": 10,
        "finish_reason": "stop",
        "verdict": "incorrect",
        "predicted": "7",
    } | changes


def outcomes_of(folder: Path, rows: list[dict[str, Any]]) -> outcomes.Outcomes:
    tables.write(folder / "rows.parquet", rows, schemas.GENERATIONS)
    return outcomes.outcomes(folder / "rows.parquet")


def test_outcomes_count_what_the_rows_hold_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        row(problem_id="q", sample_index=1, verdict="correct", num_tokens=30, finish_reason="length"),
        row(problem_id="p", sample_index=0),
        row(problem_id="q", sample_index=0, verdict="timeout"),
        row(problem_id="p", sample_index=1),
    ]
    one = outcomes_of(tmp_path, rows)
    assert one.problem_id.tolist() == ["p", "q"]
    assert (one.num_samples.tolist(), one.num_correct.tolist()) == ([2, 2], [0, 1])
    assert one.mean_tokens.tolist() == [10, 20]
    assert one.truncated.tolist() == [0, 0.5]
    assert np.isnan(one.response_entropy).all(), "nothing was drawn for it"


def test_entropy_is_that_of_the_responses_drawn_for_it_by_response_and_by_token(tmp_path: Path) -> None:
    """The issue's case: 10 tokens at 0.5 nats and 1,000 at 0.05."""
    drawn = [("p", 0, 10, 5.0), ("p", 1, 1000, 50.0), ("q", 0, 0, 0.0), ("q", 1, 20, 8.0), ("r", 0, 0, 0.0)]
    rows = [
        {"benchmark": "b", "problem_id": problem, "tier": "", "step": 0, "sample_index": index}
        | {"text": "", "finish_reason": "stop", "num_tokens": tokens, "entropy": entropy}
        for problem, index, tokens, entropy in drawn
    ]
    tables.write(tmp_path / "apart.parquet", rows, schemas.ENTROPIES)
    tables.write(tmp_path / "rows.parquet", [row(problem_id=name) for name in "pqr"], schemas.GENERATIONS)
    one = outcomes.outcomes(tmp_path / "rows.parquet", entropies=tmp_path / "apart.parquet")
    assert one.response_entropy == pytest.approx([0.275, 0.4, np.nan], nan_ok=True)
    assert one.only(np.array([0])).entropy / one.only(np.array([0])).entropy_tokens == pytest.approx(
        0.0545, 1e-3
    )
    by_token = next(metric for metric in METRICS if metric.name == "token_entropy").values(
        one.num_samples, one
    )
    assert np.nanmean(by_token) == pytest.approx(63 / 1030)
    assert np.isnan(by_token).tolist() == [False, False, True]


def test_equal_answers_vote_together_and_silence_does_not_vote(tmp_path: Path) -> None:
    rows = [
        *(row(sample_index=i, verdict="correct", predicted=text) for i, text in enumerate(["1/2", "0.5"])),
        *(row(sample_index=2 + i, predicted=text) for i, text in enumerate(["x + 1", "x+1"])),
        row(sample_index=4, predicted=None, verdict="unparsable"),
    ]
    one = outcomes_of(tmp_path, rows)
    assert (one.majority.tolist(), one.distinct_answers.tolist()) == ([0.5], [2])


def test_the_last_step_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 0.5, steps=(10, 20))
    steps = outcomes.along_rl(path)
    assert list(steps) == [10, 20]
    assert outcomes.outcomes(path).num_correct.tolist() == steps[20].num_correct.tolist()
    assert outcomes.outcomes(path, 10).num_correct.tolist() == steps[10].num_correct.tolist()
    assert (steps[10].num_correct != steps[20].num_correct).any()
    with pytest.raises(DataError, match=r"a.parquet: nothing of step 15; found 10, 20"):
        outcomes.outcomes(path, 15)


def test_equal_checkpoints_differ_by_nothing_and_their_interval_has_a_width(tmp_path: Path) -> None:
    a, b = (outcomes.outcomes(write(tmp_path / f"{name}.parquet", 0.5)) for name in "ab")
    row = arms.differences(SECTION, [a], [b])["pass_at_1"]
    room = 1 - 0.025 ** (1 / 80)  # 80 of 80 agree
    assert (row["low"], row["high"]) == pytest.approx((-room, room), rel=0.3)
    assert (row["difference"], row["p_value"]) == (0, 1)


def test_numbers_are_those_of_the_outcomes(tmp_path: Path, summary: dict[str, Any]) -> None:
    by_arm, _ = results(tmp_path)
    numbers, one = summary["arms"]["oxa_mle"]["world"], by_arm["oxa_mle"][0]
    assert (numbers["num_problems"], numbers["num_samples"], numbers["num_seeds"]) == (80, 8, 1)
    for k in (1, 2, 4, 8):
        for name, formula in (("pass_at", estimators.pass_at_k), ("pass_hat", estimators.pass_hat_k)):
            values = formula(8, one.num_correct, k)
            assert numbers[f"{name}_{k}"] == pytest.approx(values.mean())
            assert (
                0 <= numbers[f"{name}_{k}_low"] <= numbers[f"{name}_{k}"] <= numbers[f"{name}_{k}_high"] <= 1
            )
    assert numbers["maj_at_8"] == pytest.approx(one.majority.mean())
    assert numbers["distinct_answers"] == pytest.approx(one.distinct_answers.mean())
    bayes = estimators.bayes_interval(one.num_samples, one.num_correct, resamples=300)
    assert (numbers["pass_at_1_bayes_low"], numbers["pass_at_1_bayes_high"]) == bayes[1:]
    hard = one.tier == "hard"
    assert numbers["tiers"]["hard"]["pass_at_1"] == pytest.approx(one.num_correct[hard].mean() / 8)


def test_arms_are_compared_with_the_baseline_of_their_phase_and_with_themselves_before_rl(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    by_arm, _ = results(tmp_path)
    assert set(summary["differences"]) == {"base", "oxa_mle", "oxa_full", "oxa_mle-rl", "oxa_full-rl"}
    assert set(summary["gains"]) == {"sft", "oxa_mle", "oxa_full"}

    def rate(name: str) -> float:
        return float((by_arm[name][0].num_correct / 8).mean())

    for kind, name, ours, theirs in (
        ("differences", "oxa_mle", "oxa_mle", "sft"),
        ("differences", "oxa_mle-rl", "oxa_mle-rl", "sft-rl"),
        ("differences", "base", "base", "sft"),
        ("gains", "sft", "sft-rl", "sft"),
    ):
        row = summary[kind][name]["world"]["pass_at_1"]
        assert row["difference"] == pytest.approx(rate(ours) - rate(theirs)), name
        assert row["low"] <= row["difference"] <= row["high"]


def test_the_interval_of_an_arm_is_of_its_very_seeds_and_that_of_a_difference_of_others(
    tmp_path: Path,
) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    far = outcomes.outcomes(write(tmp_path / "far.parquet", 0.2, seed=7))
    seeds = {"base": by_arm["base"], "sft": [*by_arm["sft"], far], "oxa_mle": by_arm["oxa_mle"] * 2}
    found = summarized(SECTION, seeds)
    numbers = found["arms"]["sft"]["world"]
    assert max(numbers["pass_at_1_by_seed"]) - min(numbers["pass_at_1_by_seed"]) > 0.2
    assert numbers["pass_at_1_high"] - numbers["pass_at_1_low"] < 0.15
    row = found["differences"]["oxa_mle"]["world"]["pass_at_1"]
    assert row["high"] - row["low"] > 1, "two seeds that disagree tell next to nothing of a third"


def test_gains_are_paired_by_seed(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, seeds=(0, 3))
    gain = summarized(SECTION, by_arm)["gains"]["sft"]["world"]["pass_at_2"]
    after, before = (arms.observed(by_arm[name], pass_at(2)) for name in ("sft-rl", "sft"))
    paired, apart = (
        estimators.paired_difference(
            after, before, same_seeds=same, strata=by_arm["sft"][0].tier, resamples=300
        )
        for same in (True, False)
    )
    assert (gain["low"], gain["high"]) == pytest.approx((paired.low, paired.high))
    assert paired != apart


def test_how_much_an_arms_seeds_differ_is_asked_of_no_other_arm(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, seeds=(0, 1), rl=False)
    few, many = (
        summarized(SECTION, {arm: by_arm[arm] for arm in names})
        for names in (["base", "sft", "oxa_mle"], ["base", "sft", "oxa_mle", "oxa_full"])
    )
    assert few["arms"]["oxa_mle"] == many["arms"]["oxa_mle"]
    alone = arms.differences(SECTION, by_arm["oxa_mle"], by_arm["sft"])["pass_at_2"]
    assert many["differences"]["oxa_mle"]["world"]["pass_at_2"] == alone


def test_on_one_problem_a_rate_has_a_wide_interval_and_an_entropy_none(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    one = {arm: [run.only(np.array([0])) for run in runs] for arm, runs in by_arm.items()}
    summary = summarized(SECTION, one) | {"guess_rate": {}}
    numbers, row = summary["arms"]["sft"]["world"], summary["differences"]["oxa_mle"]["world"]
    assert numbers["pass_at_1_high"] - numbers["pass_at_1_low"] > 0.9
    assert row["pass_at_1"]["p_value"] > 0.4
    assert numbers["response_entropy"] > 0
    assert numbers["response_entropy_high"] is None
    assert "response_entropy" not in row
    assert "?]" in markdown.table(summary)


def test_all_differences_and_gains_of_a_group_are_one_family_of_holms(summary: dict[str, Any]) -> None:
    family: list[dict[str, Any]] = []
    for kind in ("differences", "gains"):
        for by_group in summary[kind].values():
            family += [by_group["world"][metric] for metric in ("pass_at_1", "pass_at_8", *ENTROPIES)]
    assert summary["num_comparisons"] == {"world": len(family)} == {"world": 32}
    expected = estimators.holm([row["p_value"] for row in family])
    np.testing.assert_allclose([row["p_holm"] for row in family], expected)
    for row in family:
        excludes = row["low"] > 0 or row["high"] < 0
        assert row["shown"] == (excludes and row["p_holm"] <= 1 - summary["confidence"])
    assert "over all 32 comparisons on world (arms" in wording.families(summary)
    several = summary | {"groups": ["world", "macro", "pooled"]}
    assert "The 3 tables are a family each" in wording.families(several)
    others = summary["differences"]["oxa_mle"]["world"]
    assert others["pass_at_2"]["low"] > 0
    assert (others["pass_at_2"]["p_holm"], others["pass_at_2"]["shown"]) == (None, False)


def test_a_problem_without_an_entropy_is_left_out_of_its_comparison_only(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    for runs in by_arm.values():
        for name in ("response_entropy", "entropy", "entropy_tokens"):
            getattr(runs[0], name)[3] = np.nan
    row = summarized(SECTION, by_arm)["differences"]["oxa_mle"]["world"]
    runs = [by_arm[name][0].only(np.delete(np.arange(80), 3)) for name in ("oxa_mle", "sft")]
    ours, theirs = (run.response_entropy.mean() for run in runs)
    assert row["response_entropy"]["difference"] == pytest.approx(ours - theirs)
    ours, theirs = (run.entropy.sum() / run.entropy_tokens.sum() for run in runs)
    assert row["token_entropy"]["difference"] == pytest.approx(ours - theirs)


def test_enough_resamples_are_taken_for_a_clear_difference_to_survive_holm(summary: dict[str, Any]) -> None:
    clear = summary["differences"]["oxa_mle"]["world"]["pass_at_1"]
    assert 2 * 32 / (SECTION.resamples + 1) > 0.05, "300 alone could not show anything"
    assert clear["shown"]


def test_steps_begin_before_rl_and_end_with_the_arm_after_it(summary: dict[str, Any]) -> None:
    steps = summary["steps"]["sft"]["world"]
    assert [row["step"] for row in steps] == [0, 10, 20]
    for name, row in (("sft", steps[0]), ("sft-rl", steps[-1])):
        for metric in ("pass_at_1", "pass_at_8", *ENTROPIES):
            for end in ("", "_low", "_high"):
                assert row[metric + end] == summary["arms"][name]["world"][metric + end]


def test_the_answer_names_what_is_shown_and_nothing_else(summary: dict[str, Any]) -> None:
    sentence, claims = summary["answer"]["sentence"], summary["answer"]["claims"]
    assert sentence.startswith("Problems solved at the first try, against sft: before RL oxa_mle +")
    assert ", no difference shown for oxa_full; after RL no difference shown. " in sentence
    assert " Token entropy: no difference shown, before and after RL. " in sentence
    assert sentence.endswith("One fine-tuning seed: what another would change cannot be known.")
    places = {(claim["phase"], claim["claim"], claim["arm"]) for claim in claims}
    assert len(claims) == len(places) == 2 * 4 * 2
    for claim in claims:
        name = claim["arm"] + ("-rl" if claim["phase"] == "after RL" else "")
        metric = claim["claim"].replace("@", "_at_").replace(" ", "_")
        assert claim["shown"] == summary["differences"][name]["world"][metric]["shown"]
        assert ("no difference shown" in claim["text"]) == (not claim["shown"])
    first = next(claim for claim in claims if claim["shown"])
    row = summary["differences"]["oxa_mle"]["world"]["pass_at_1"]
    interval = f"[{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    points = f"+{100 * row['difference']:.1f} points"
    assert first["text"] == f"oxa_mle solved more at the first try than sft, {points} {interval}"


def sentence_of(**differences: float) -> str:
    """The sentence for one arm whose differences these are, 0 meaning that none is shown."""
    rows = {
        metric: {
            "difference": value,
            "low": value - 0.01,
            "high": value + 0.01,
            "p_holm": 0.5,
            "shown": value != 0,
        }
        for metric, value in differences.items()
    }
    numbers = {"num_samples": 8, "num_seeds": 2, "num_problems": 50}
    return wording.answer(
        {
            "baseline": "sft",
            "num_comparisons": {"a": 3, "pooled": 3},
            "order": ["base", "sft", "oxa"],
            "groups": ["a", "b", "macro", "pooled"],
            "arms": {"sft": {"pooled": numbers}, "oxa": {"pooled": numbers}},
            "differences": {"oxa": {"pooled": rows}},
        }
    )["sentence"]


def test_the_sentence_tells_all_metrics_the_first_of_them_in_numbers() -> None:
    opening = (
        "Of the 50 problems of 2 benchmarks, pooled (the macro mean, the paper's, stands beside it): problems solved "
        "at the first try, against sft: before RL "
    )
    assert sentence_of(pass_at_1=0, pass_at_8=0, response_entropy=0, token_entropy=0) == (
        f"{opening}no difference shown. Pass@8: no difference shown, before RL. "
        "Response entropy: no difference shown, before RL. Token entropy: no difference shown, before RL."
    )
    assert sentence_of(pass_at_1=-0.05, pass_at_8=0.1, response_entropy=-0.2) == (
        f"{opening}oxa −5.0 points [−6.0, −4.0]. Pass@8: higher for oxa, before RL. "
        "Response entropy: lower for oxa, before RL."
    )


def test_what_every_problem_reaches_is_not_called_equal(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    for name in ("sft", "oxa_mle"):
        by_arm[name][0].num_correct[:] = 8
    summary = summarized(SECTION.model_copy(update={"resamples": 4000}), by_arm)
    numbers = summary["arms"]["sft"]["world"]
    low = 0.025 ** (1 / 80)  # the rate at which 80 of 80 are as unlikely as 2.5% (Clopper & Pearson)
    assert (numbers["pass_at_1_low"], numbers["pass_at_1_high"]) == (pytest.approx(low, abs=0.005), 1)
    row = summary["differences"]["oxa_mle"]["world"]["pass_at_1"]
    assert (row["low"], row["high"]) == pytest.approx((low - 1, 1 - low), abs=0.005)
    assert not row["shown"]
    (claim,) = [c for c in summary["answer"]["claims"] if (c["arm"], c["claim"]) == ("oxa_mle", "pass@1")]
    assert "which cannot tell them apart" in claim["text"]


def test_one_wrong_sample_hardly_moves_the_interval_of_an_arm_that_solves_all(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    for name, num_wrong in (("sft", 0), ("oxa_mle", 1)):
        by_arm[name][0].num_correct[:] = 8
        by_arm[name][0].num_correct[0] -= num_wrong
    summary = summarized(SECTION.model_copy(update={"resamples": 4000}), by_arm)
    lows = [1 - summary["arms"][name]["world"]["pass_at_1_low"] for name in ("sft", "oxa_mle")]
    assert lows[1] == pytest.approx(lows[0], rel=0.2)


def test_a_worse_arm_is_said_to_be_worse(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    by_arm["sft"], by_arm["oxa_mle"] = by_arm["oxa_mle"], by_arm["sft"]
    claims = summarized(SECTION, by_arm)["answer"]["claims"]
    assert "fewer at the first try than sft" in claims[0]["text"]


def test_without_rl_nothing_is_said_of_it(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    summary = summarized(SECTION, by_arm) | {"guess_rate": {}}
    assert (summary["gains"], summary["steps"]) == ({}, {})
    assert {claim["phase"] for claim in summary["answer"]["claims"]} == {"before RL"}
    assert "-rl" not in markdown.table(summary)
    assert "after RL" not in markdown.table(summary)


def test_a_baseline_alone_has_a_table_too(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    alone = {name: by_arm[name] for name in ("base", "sft")}
    summary = summarized(SECTION, alone) | {"guess_rate": {}}
    assert "| base − sft " in markdown.table(summary)
    assert summary["answer"]["claims"] == []


def test_benchmarks_are_pooled_and_seeds_counted(tmp_path: Path) -> None:
    by_arm, along = results(tmp_path, seeds=(0, 3), benchmarks={"a": 20, "z": 40}, num_samples=4)
    summary = summarized(SECTION, by_arm, along) | {"guess_rate": {}}
    assert summary["groups"] == ["a", "z", "macro", "pooled"]
    assert summary["num_comparisons"] == dict.fromkeys(summary["groups"], 32)
    for group, num_problems in (("a", 20), ("z", 40), ("macro", 60), ("pooled", 60)):
        numbers = summary["arms"]["sft"][group]
        assert (numbers["num_problems"], numbers["num_seeds"]) == (num_problems, 2)
        row = summary["differences"]["base"][group]
        assert (row["num_seeds"], row["num_seeds_baseline"]) == (1, 2)
    parts = [summary["arms"]["sft"][group]["pass_at_2"] for group in ("a", "z")]
    assert summary["arms"]["sft"]["pooled"]["pass_at_2"] == pytest.approx(
        (20 * parts[0] + 40 * parts[1]) / 60
    )
    text = markdown.table(summary)
    assert "One fine-tuning seed" not in text
    small, large = (text.split(f"## {name}:")[1].split("\n## ")[0] for name in ("a", "pooled"))
    assert "Bayes of pass@1, %" in small
    assert "Bayes of pass@1" not in large


def test_macro_is_the_mean_over_benchmarks_of_every_number(tmp_path: Path) -> None:
    by_arm, along = results(tmp_path, seeds=(0, 3), benchmarks={"a": 20, "z": 60}, num_samples=4)
    summary = summarized(SECTION, by_arm, along) | {"guess_rate": {}}
    for arm in ("base", "sft", "oxa_mle-rl"):
        numbers = summary["arms"][arm]
        for name in (
            "pass_at_1",
            "pass_at_4",
            "maj_at_4",
            "distinct_answers",
            "token_entropy",
            "mean_tokens",
        ):
            expected = (numbers["a"][name] + numbers["z"][name]) / 2
            assert numbers["macro"][name] == pytest.approx(expected), name
        assert numbers["macro"]["mean_tokens"] != pytest.approx(numbers["pooled"]["mean_tokens"])
    row = summary["differences"]["oxa_mle"]
    for name in ("pass_at_1", "token_entropy"):
        parts = [row[group][name]["difference"] for group in ("a", "z")]
        assert row["macro"][name]["difference"] == pytest.approx(sum(parts) / 2)
    seeds = [np.mean([summary["arms"]["sft"][name]["pass_at_1_by_seed"][0] for name in "az"])]
    assert summary["arms"]["sft"]["macro"]["pass_at_1_by_seed"][:1] == pytest.approx(seeds)
    assert summary["steps"]["sft"]["macro"][0]["pass_at_1"] == summary["arms"]["sft"]["macro"]["pass_at_1"]
    text = markdown.table(summary)
    assert (
        "## macro: 80 problems, 4 samples a problem; the mean over benchmarks, as the paper averages" in text
    )
    assert summary["answer"]["sentence"].startswith(
        "Of the 80 problems of 2 benchmarks, pooled (the macro mean"
    )


def test_tiers_and_benchmarks_are_strata_of_their_problems(tmp_path: Path) -> None:
    """Of two tiers, one always solved and one never, as many problems would be there again: the mean is known well."""
    by_arm, _ = results(tmp_path, rl=False, num_samples=4)
    run = by_arm["sft"][0]
    draws = np.random.default_rng(0)
    run.num_correct[:] = np.where(run.tier == "easy", 3, 0) + draws.integers(0, 2, 80)
    in_tiers = arms.numbers_of(SECTION, [run], [pass_at(1)])
    run.tier[:] = ""
    together = arms.numbers_of(SECTION, [run], [pass_at(1)])
    widths = [one["pass_at_1_high"] - one["pass_at_1_low"] for one in (in_tiers, together)]
    assert widths[0] < 0.5 * widths[1]
    run.benchmark[::2] = "other"
    assert arms.numbers_of(SECTION, [run], [pass_at(1)]) == in_tiers


def test_majorities_of_different_numbers_of_samples_are_not_pooled(tmp_path: Path) -> None:
    rows = [row(benchmark=name, sample_index=i) for name, n in (("a", 2), ("b", 4)) for i in range(n)]
    one = outcomes_of(tmp_path, rows)
    summary = summarized(SECTION, {"base": [one], "sft": [one]})
    assert {"maj_at_2"} == {name for name in summary["arms"]["sft"]["a"] if name == "maj_at_2"}
    assert not any(name.startswith("maj_at") for name in summary["arms"]["sft"]["pooled"])
    assert "pass_at_2" in summary["arms"]["sft"]["pooled"]


def test_problems_keep_their_order_whatever_their_numbers_of_samples(tmp_path: Path) -> None:
    sizes = {"p": 4, "q": 1, "r": 4, "s": 2}
    rows = [
        row(problem_id=name, sample_index=i, verdict="correct", num_tokens=n)
        for name, n in sizes.items()
        for i in range(n)
    ]
    one = outcomes_of(tmp_path, rows)
    assert one.problem_id.tolist() == list(sizes)
    for counts in (one.num_samples, one.num_correct, one.mean_tokens):
        assert counts.tolist() == list(sizes.values())


def test_an_unknown_entropy_is_not_taken_for_zero(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    by_arm["base"] = [outcomes.outcomes(write(tmp_path / "nan.parquet", 0.3))]
    summary = summarized(SECTION, by_arm) | {"guess_rate": {}}
    for metric in ENTROPIES:
        assert summary["arms"]["base"]["world"][metric] is None
        assert metric not in summary["differences"]["base"]["world"]
    assert "| – " in markdown.table(summary)


def test_other_problems_or_numbers_of_samples_cannot_be_compared(tmp_path: Path) -> None:
    by_arm, _ = results(tmp_path, rl=False)
    fewer = outcomes.outcomes(write(tmp_path / "x.parquet", 0.5, benchmarks={"world": 79}))
    with pytest.raises(
        DataError, match="sft and base cannot be compared: evaluated on 79 and 80 problems, 79 of"
    ):
        summarized(SECTION, by_arm | {"sft": [fewer]})
    other = outcomes.outcomes(write(tmp_path / "y.parquet", 0.5, num_samples=4))
    with pytest.raises(DataError, match="evaluated with 4 and 8 samples a problem of world"):
        summarized(SECTION, by_arm | {"sft": [other]})


def test_the_table_holds_every_arm_its_counts_and_what_is_not_shown(summary: dict[str, Any]) -> None:
    text = markdown.table(summary)
    sentence = " ".join(text.split("\n\n")[1].split("\n"))
    assert (text.split("\n")[0], sentence) == ("# Comparison of the arms", summary["answer"]["sentence"])
    guess = "always giving the most frequent answer solves 1.8%"
    assert f"## world: 80 problems, 8 samples a problem; {guess}\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    lines = {line.split("|")[1].strip(): line for line in reversed(rows)}  # the first of each name
    names = ["base", "sft", "oxa_mle", "oxa_full", "sft-rl", "oxa_mle-rl", "oxa_full-rl"]
    assert [name for name in reversed(lines) if name in names] == names == summary["order"]
    difference = lines["oxa_mle − sft"].split("|")
    assert "n.s." not in difference[2]
    assert " n.s." in lines["oxa_full − sft"].split("|")[2]
    assert "oxa_mle-rl − sft-rl" in lines
    assert "sft-rl − sft" in lines
    notes = " ".join(text.split())
    assert (
        "p is corrected by Holm's method over all 32 comparisons on world (arms against the baseline" in notes
    )
    assert "One fine-tuning seed" in text
    assert max(map(len, (line for line in text.splitlines() if line.startswith("|")))) <= 140


def test_the_same_outcomes_give_the_same_summary(tmp_path: Path, summary: dict[str, Any]) -> None:
    again = summarized(SECTION, *results(tmp_path)) | {"guess_rate": {"world": 0.018}}
    assert again == summary
