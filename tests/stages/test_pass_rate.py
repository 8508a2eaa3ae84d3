"""The stage `pass_rate`: how often a model solves each problem, counted by hand, and what filters by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from spellers import PROBLEMS, VERIFY, make_speller, write_problems

from conftest import Kept
from oxa import hashes, prompts
from oxa.config.generate import Generate
from oxa.config.params import check_params
from oxa.config.pass_rate import PassRate
from oxa.config.prompt import Prompt
from oxa.errors import ConfigError, DataError
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import pass_rate

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"splits": ["rlvr"], "num_samples": 30, "max_tokens": 3, "temperature": 0.9}


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speller(tmp_path_factory.mktemp("speller"))


def run(model: Path, folder: Path, batch_size: int = 64, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    problems, output = write_problems(folder / "problems.parquet"), folder / "pass_rates.parquet"
    engine, section = Generate(batch_size=batch_size), PassRate(**{**SETTINGS, **settings})
    metrics = pass_rate.run(
        section,
        engine,
        Prompt(suffix=""),
        VERIFY,
        model=model,
        problems=problems,
        output=output,
        scratch=folder,
        log=Kept(),
    )
    return metrics, tables.read(output, schemas.PASS_RATES).to_pylist()


def test_each_problem_is_counted_as_its_answers_say(
    speller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_rate, "GRADED", 100)  # four problems at a time
    metrics, rows = run(speller, tmp_path)
    assert [row["problem_id"] for row in rows] == [row["problem_id"] for row in PROBLEMS]
    tokenizer = loading.load_tokenizer(speller)
    for problem, row in zip(PROBLEMS, rows, strict=True):
        requests = [
            Request(
                hashes.response_id(problem["problem_id"], "pass_rate", speller.name, f"0/{index}"),
                prompts.prompt_ids(tokenizer, problem["question"]),
            )
            for index in range(30)
        ]
        answers = list(
            generate.generate(
                speller, requests, PassRate(**SETTINGS), Generate(), scratch=tmp_path, description=""
            )
        )
        with Grader(VERIFY) as grader:
            graded = grader.grade([(problem["answers"], one.text, one.finish_reason) for one in answers])
        right = [grade.verdict == "correct" for grade in graded]
        assert (row["num_correct"], row["num_samples"]) == (sum(right), 30)
        assert row["num_truncated"] == sum(one.finish_reason == "length" for one in answers)
        assert (row["split"], row["model"]) == ("rlvr", speller.name)
    solved = [row["num_correct"] for row in rows]
    assert max(solved) > 0
    assert metrics["rlvr"]["histogram"] == [solved.count(num) for num in range(31)]
    assert metrics["rlvr"]["pass_rate"] == pytest.approx(sum(solved) / 240)
    assert metrics["rlvr"]["num_problems"] == 8


def test_splits_and_batches_leave_a_problems_rate_as_it_is(speller: Path, tmp_path: Path) -> None:
    _, rows = run(speller, tmp_path / "one")
    metrics, both = run(speller, tmp_path / "two", batch_size=7, splits=["train", "rlvr"])
    assert set(metrics) == {"train", "rlvr"}
    assert [row for row in both if row["split"] == "rlvr"] == rows
    assert sum(row["split"] == "train" for row in both) == 1


def test_without_splits_nothing_is_measured_and_the_table_is_there(speller: Path, tmp_path: Path) -> None:
    assert run(speller, tmp_path, splits=[]) == ({}, [])


def test_a_split_without_problems_is_refused(speller: Path, tmp_path: Path) -> None:
    problems = tmp_path / "none.parquet"
    tables.write(problems, [row | {"split": "train"} for row in PROBLEMS], schemas.PROBLEMS)
    with pytest.raises(DataError, match=r"no problem of split 'rlvr', which pass_rate\.splits names"):
        pass_rate.run(
            PassRate(**SETTINGS),
            Generate(),
            Prompt(suffix=""),
            VERIFY,
            model=speller,
            problems=problems,
            output=tmp_path / "o.parquet",
            scratch=tmp_path,
            log=Kept(),
        )


def test_a_filter_without_a_measurement_is_refused_with_the_parameters() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["rlvr"]["pass_rate"] = [0.1, 0.9]
    with pytest.raises(ConfigError, match=r"set pass_rate.splits to \[rlvr\]") as caught:
        check_params(raw, "params.yaml")
    assert "\n" not in str(caught.value)
    raw["pass_rate"] = {"splits": ["rlvr"]}
    assert check_params(raw, "params.yaml").rlvr.pass_rate == (0.1, 0.9)
