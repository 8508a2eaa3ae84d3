"""A study's tables, from generations of which it is known what they must say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oxa.config.report import Report
from oxa.data import world
from oxa.errors import DataError
from oxa.records import schemas, tables
from oxa.runtime import files
from oxa.study import page
from oxa.study.experiments import Comparison, Experiment, Run, Study

SECTION = Report(resamples=200)
WORLDS, SEEDS = [4, 5], [0, 1]
STUDY = Study(
    worlds=WORLDS,
    seeds=SEEDS,
    experiments={
        "first": Experiment(stages=["gates", "evaluate"]),
        "second": Experiment(set={"arms": ["b"]}),
    },
    tables={
        "one": Comparison(
            rows={"plain": "first/a", "new": "second/b"}, baseline="plain", beside=["tiers", "strategies"]
        ),
        "rl": Comparison(rows={"plain": "first/a", "new": "first/b"}, baseline="plain", after_rl=True),
        "pairs": Comparison(
            rows={"plain": "first/a", "new": "second/b", "old": "first/b"},
            compare={"new": "old", "old": "plain"},
        ),
    },
)
RATES = {"base": 1, "first/a": 2, "first/b": 3, "second/b": 4}
"""Of the four samples of an easy problem, how many are right in world 4; in world 5 one less for a row above 3."""


def generations(seed: int, num_right: int, strategy: str) -> list[dict[str, Any]]:
    """12 problems of a world, half of them easy; on hard ones one sample less is right."""
    rows = []
    for problem in range(12):
        tier = "easy" if problem % 2 else "hard"
        for sample in range(4):
            right = sample < num_right - (tier == "hard")
            rows.append(
                {
                    "benchmark": "world",
                    "problem_id": f"w{seed}-{problem}",
                    "tier": tier,
                    "step": 0,
                    "sample_index": sample,
                    "text": world.respond(111, 222, strategy),
                    "num_tokens": 10 + sample,
                    "finish_reason": "stop",
                    "verdict": "correct" if right else "incorrect",
                    "predicted": "333",
                }
            )
    return rows


def write_answers(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A checkpoint's generations and, one a problem, the responses that its entropy is measured on."""
    tables.write(folder / f"data/generations/{name}.parquet", rows, schemas.GENERATIONS)
    num_right = sum(row["verdict"] == "correct" for row in rows if row["tier"] == "easy") // (
        6 * len({row["step"] for row in rows})
    )
    apart = [
        {name: row[name] for name in ("benchmark", "problem_id", "tier", "step", "sample_index", "text")}
        | {"finish_reason": "stop", "num_tokens": 10, "entropy": 1.0 * num_right}
        for row in rows
        if row["sample_index"] == 0
    ]
    tables.write(folder / f"data/entropies/{name}.parquet", apart, schemas.ENTROPIES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every experiment and world, with what a table reads."""
    root = tmp_path_factory.mktemp("experiments")
    for experiment, arms in (("first", "ab"), ("second", "b")):
        for seed in WORLDS:
            folder = root / f"{experiment}-{seed}"
            write_answers(folder, "base", generations(seed, 1, "digits"))
            for arm in arms:
                rate = RATES[f"{experiment}/{arm}"]
                made = generations(seed, rate - (seed == 5 and rate > 3), "columns")
                train = {
                    "response_id": "r",
                    "problem_id": "p",
                    "prompt": "q",
                    "completion": world.respond(111, 222, "places"),
                    "objective": "ce",
                    "ppl": 1.0,
                    "num_tokens": 9,
                    "finish_reason": "stop",
                }
                tables.write(folder / f"data/train/{arm}/ce.parquet", [train], schemas.TRAIN)
                chosen = {"ce": {"chosen": 160, "tokens": 7000 + seed}}
                files.write_json(folder / f"metrics/selection/ce/{arm}.json", chosen)
                for number in SEEDS:
                    name = f"{arm}-{number}"
                    write_answers(folder, name, made)
                    after = [
                        row | {"step": step}
                        for step, right in ((8, 2), (16, 4))
                        for row in generations(seed, right, "columns")
                    ]
                    write_answers(folder, f"{name}-rl", after)
                    final = {"ul_probability": 0.25} if arm == "b" else {}
                    files.write_json(folder / f"metrics/train/{name}.json", {"final": final})
                    files.write_json(folder / f"metrics/rlvr/{name}.json", {"temperature": 1.2})
    return root


@pytest.fixture
def read(workspace: Path) -> Callable[[Run, str], Path]:
    return lambda run, path: workspace / run.name / path


def runs(*experiments: str) -> dict[str, Run]:
    there = [Run(name, seed, {}, []) for name in experiments for seed in WORLDS]
    return {run.name: run for run in there}


def cells(text: str, first: str) -> list[str]:
    """The row of a Markdown table that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(text: str, name: str, title: str) -> dict[str, str]:
    """The cells of the row `name` under the header that begins with `title`, by column."""
    (table,) = [part for part in text.split("\n\n") if part.startswith(f"| {title} ")]
    return dict(zip(cells(table, title), cells(table, name), strict=True))


def test_numbers_are_those_of_all_worlds_problems_together(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["one"]
    assert text.startswith(
        "24 problems of 2 worlds, 4 samples a problem, 2 fine-tuning seeds a world; p by Holm's"
    )
    plain, new = row(text, "plain", "row"), row(text, "new", "row")
    # plain: 2 of 4 on easy problems, 1 of 4 on hard ones; new: 4 and 3 in world 4, 3 and 2 in world 5
    assert plain["pass@1, %"].startswith("37.5 [")
    assert new["pass@1, %"].startswith("75.0 [")
    assert plain["pass@1 in world 4 / 5"] == "37.5 / 37.5"
    assert new["pass@1 in world 4 / 5"] == "87.5 / 62.5"
    assert new["token entropy, nats"].startswith("0.350")
    assert (new["CE sequences"], new["CE tokens"], new["p of UL tokens"]) == ("160", "7004", "0.25")
    assert plain["p of UL tokens"] == "–"
    assert row(text, "base", "row")["pass@1, %"].startswith("12.5 [")


def test_differences_are_those_to_the_baseline_and_shown_as_such(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["one"]
    cells_of_row = row(text, "new − plain", "difference")
    assert cells_of_row["Δ pass@1, points"].startswith("+37.5 [")
    assert "n.s." not in cells_of_row["Δ pass@1, points"]
    assert cells_of_row["Δ token entropy, nats"] == "–", (
        "the same on every problem, so its interval is unknown"
    )


def test_a_difference_is_told_of_every_world_too(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["one"]
    (lines,) = [part.splitlines() for part in text.split("\n\n") if part.startswith("| difference ")]
    assert lines[2].startswith("| new − plain ")
    assert [line.split("|")[1].strip() for line in lines[3:]] == ["· in world 4", "· in world 5"]
    assert [line.split("|")[2].split(" [")[0].strip() for line in lines[3:]] == ["+50.0", "+25.0"]
    assert not any(", p " in line for line in lines[3:])


def spread(text: str) -> float:
    """Width of the interval of "… [low, high]…"."""
    low, high = text.partition("[")[2].partition("]")[0].split(", ")
    return float(high) - float(low)


def test_rows_that_learn_from_the_same_solutions_are_paired_by_seed(workspace: Path, tmp_path: Path) -> None:
    """Seeds differ by much and alike in both rows: with the pairs kept the difference is known, without them not."""
    for seed in WORLDS:
        folder = shutil.copytree(workspace / f"first-{seed}", tmp_path / "same" / f"first-{seed}")
        for number, lost in zip(SEEDS, (0, 1), strict=True):
            for arm in "ab":
                made = generations(seed, RATES[f"first/{arm}"] + (arm == "b") - lost, "columns")
                write_answers(folder, f"{arm}-{number}", made)
        other = shutil.copytree(folder, tmp_path / "other" / f"first-{seed}")
        table = tables.read(other / "data/train/b/ce.parquet", schemas.TRAIN).to_pylist()
        train = [row | {"response_id": "another"} for row in table]
        (other / "data/train/b/ce.parquet").unlink()
        tables.write(other / "data/train/b/ce.parquet", train, schemas.TRAIN)

    def difference(root: Path) -> str:
        parts = page.parts(STUDY, SECTION, runs("first"), lambda run, path: root / run.name / path)
        return row(parts["rl"], "new − plain", "difference")["Δ pass@1, points"]

    same, other = difference(tmp_path / "same"), difference(tmp_path / "other")
    assert same.startswith("+50.0 [")
    assert other.startswith("+50.0 [")
    assert spread(same) < 35, "what is the same in all problems may be another in one more"
    assert spread(other) > 80, "two seeds"


def test_a_table_compares_the_pairs_it_names_and_counts_no_others(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["pairs"]
    assert "by Holm's method over 8 comparisons" in text
    assert row(text, "new − old", "difference")["Δ pass@1, points"].startswith("+12.5 [")
    assert row(text, "old − plain", "difference")["Δ pass@1, points"].startswith("+25.0 [")
    assert "new − plain" not in text
    part = page.parts(STUDY, SECTION, runs("first"), read)["pairs"]
    assert "by Holm's method over 8 comparisons" in part  # those to come count from the start
    assert "old − plain" in part
    assert "Not run yet: new." in part


def test_rows_that_were_drawn_with_other_settings_are_refused(workspace: Path, tmp_path: Path) -> None:
    for folder in workspace.glob("first-*"):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        for path in copy.glob("data/generations/*.parquet"):
            cooler = {"temperature": 0.6 if path.stem == "b-1-rl" else 1.0}
            tables.write(
                path, tables.read(path, schemas.GENERATIONS), schemas.GENERATIONS, {"sampling": cooler}
            )
    with pytest.raises(
        DataError, match=r"new-rl: not evaluated like base: drawn with temperature 0.6 and 1.0"
    ):
        page.parts(STUDY, SECTION, runs("first"), lambda run, path: tmp_path / run.name / path)


def test_tiers_and_strategies_are_told_beside(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["one"]
    tiers = row(text, "new", "pass@1, %")
    assert tiers["easy"].startswith("87.5 [")
    assert tiers["hard"].startswith("62.5 [")
    strategies = row(text, "new", "digits / columns / places, %")
    assert (strategies["CE set"], strategies["answers"]) == ("0 / 0 / 100", "0 / 100 / 0")


def test_after_rl_the_last_step_counts_and_is_compared_with_the_baseline_after_rl(read: Any) -> None:
    text = page.parts(STUDY, SECTION, runs("first", "second"), read)["rl"]
    assert row(text, "new-rl", "row")["pass@1, %"].startswith("87.5 [")
    assert row(text, "new-rl", "row")["T of RL"] == "1.20"
    assert row(text, "new-rl − plain-rl", "difference")["Δ pass@1, points"].startswith("+0.0 [")
    assert row(text, "new − plain", "difference")["Δ pass@1, points"].startswith("+25.0 [")


def test_what_has_not_run_is_named_and_what_has_is_told(read: Any) -> None:
    parts = page.parts(STUDY, SECTION, runs("first"), read)
    assert parts["one"].strip() == "Not run yet: new."
    assert "new-rl" in parts["rl"]
    assert "`second-4` (not run)" in parts["experiments"]
    assert page.parts(STUDY, SECTION, {}, read)["gates"] == "Not run yet."


def test_only_what_stands_between_the_marks_is_written_anew() -> None:
    text = "Words.\n\n<!-- study: a -->\nold\n<!-- end -->\n\nMore.\n\n<!-- study: b -->\n<!-- end -->\n"
    once = page.page(text, {"a": "new | table", "b": "other\n", "c": "unused"})
    assert "old" not in once
    assert once.startswith("Words.\n\n<!-- study: a -->\n\nnew | table\n\n<!-- end -->\n\nMore.")
    assert page.page(once, {"a": "new | table", "b": "other"}) == once


def test_a_mark_without_a_part_is_refused() -> None:
    with pytest.raises(DataError, match="asks for 'x', which is no part of the study; known here: a"):
        page.page("<!-- study: x --><!-- end -->", {"a": ""})


@pytest.mark.parametrize("text", ["<!-- study: a -->\n", "<!-- study: a -->\n<!-- study: a --><!-- end -->"])
def test_a_mark_without_an_end_is_refused_before_it_swallows_words(text: str) -> None:
    with pytest.raises(DataError, match="mark of 'a' has no `<!-- end -->`"):
        page.page(text, {"a": ""})
