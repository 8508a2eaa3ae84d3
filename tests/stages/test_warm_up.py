"""The stage `warm_up`: a sampler out of the base, its problems kept apart, and what it changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import Kept
from oxa import hashes
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.sample import Sample, WarmUp
from oxa.config.verify import Verify
from oxa.errors import DataError
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import sample, warm_up

NUM = 12
WARM_UP = WarmUp(num=4, num_ce=2, micro_batch_size=2, epochs=30.0, learning_rate=1e-2, checkpoint_every=4)
SECTION = Sample(max_tokens=32, num_samples=2, temperature=0.5, seed=1, warm_up=WARM_UP)


def text_of(answer: int) -> str:
    return f"<think>a</think>\\boxed{{{answer}}}"


def question_of(index: int) -> str:
    return f"Give {index}."


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Twelve training problems, each with a wrong, a right and a cut solution, and one of a benchmark."""
    paths = {name: tmp_path / f"{name}.parquet" for name in ("problems", "responses", "verdicts")}
    problems, responses, verdicts = [], [], []
    for index in range(NUM + 1):
        name = hashes.problem_id(question_of(index))
        problems.append(
            {"problem_id": name, "source": "t", "question": question_of(index), "answers": ["7"]}
            | {"tier": "", "split": "train" if index < NUM else "exam"}
        )
        for kind, verdict in (("wrong", "incorrect"), ("right", "correct"), ("cut", "correct")):
            key = f"{kind}-{index}"
            responses.append(
                {"response_id": key, "problem_id": name, "origin": "teacher", "model": "t", "sample_index": 0}
                | {"seed": -1, "text": text_of(8 if kind == "wrong" else 7), "num_tokens": -1}
                | {"finish_reason": "length" if kind == "cut" else "stop", "mean_entropy": float("nan")}
            )
            verdicts.append({"response_id": key, "verdict": verdict, "predicted": "7"})
    tables.write(paths["problems"], problems, schemas.PROBLEMS)
    tables.write(paths["responses"], responses, schemas.RESPONSES)
    tables.write(paths["verdicts"], verdicts, schemas.VERDICTS)
    return paths


def run(section: Sample, model: Path, inputs: dict[str, Path], folder: Path, log: Any) -> dict[str, Any]:
    return warm_up.run(
        section,
        Generate(batch_size=8),
        Prompt(suffix=" Go."),
        Verify(workers=1),
        model=model,
        **inputs,
        output=folder / "sampler",
        apart=folder / "apart.parquet",
        scratch=folder / "scratch",
        log=log,
    )


def apart(folder: Path) -> set[str]:
    return set(tables.read(folder / "apart.parquet", schemas.APART)["problem_id"].to_pylist())


def test_the_sampler_learns_the_form_and_its_problems_are_neither_probed_nor_sampled(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    log = Kept()
    metrics = run(SECTION, checkpoint, inputs, tmp_path, log)
    assert metrics["training"]["ce_rows"] == metrics["num_apart"] == 4
    assert metrics["probed"] == NUM - 4
    assert (metrics["before"]["parsable"], metrics["after"]["parsable"]) == (0.0, 1.0)
    assert metrics["after"]["correct"] == metrics["after"]["verdicts"]["correct"] / (NUM - 4) == 1.0
    assert len(log.rows) == metrics["training"]["steps"] == 60
    rows = tables.read(tmp_path / "scratch" / "data" / "ce.parquet", schemas.TRAIN).to_pylist()
    assert {row["problem_id"] for row in rows} == apart(tmp_path)
    assert all(row["response_id"].startswith("right-") for row in rows)
    assert rows[0]["prompt"].endswith(" Go.")
    assert rows[0]["num_tokens"] == len(text_of(7))

    drawn = sample.run(
        SECTION,
        Generate(batch_size=8),
        Prompt(suffix=" Go."),
        model=checkpoint,
        sampler=tmp_path / "sampler",
        problems=inputs["problems"],
        apart=tmp_path / "apart.parquet",
        output=tmp_path / "self.parquet",
        scratch=tmp_path / "scratch-of-sample",
        log=log,
    )
    assert drawn["num_responses"] == 2 * (NUM - 4)
    table = tables.read(tmp_path / "self.parquet", schemas.RESPONSES)
    assert set(table["model"].to_pylist()) == {"sampler"}
    assert set(table["text"].to_pylist()) == {text_of(7)}
    assert not set(table["problem_id"].to_pylist()) & apart(tmp_path)


def test_without_one_the_base_samples_every_problem(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    section = SECTION.model_copy(update={"warm_up": None})
    assert run(section, checkpoint, inputs, tmp_path, log) == {}
    assert apart(tmp_path) == set()
    assert [path.name for path in (tmp_path / "sampler").iterdir()] == ["README.md"]


def test_problems_can_be_shared_with_the_arms(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    short = WARM_UP.model_copy(update={"apart": False, "epochs": 1.0})
    metrics = run(SECTION.model_copy(update={"warm_up": short}), checkpoint, inputs, tmp_path, log)
    assert (metrics["num_apart"], apart(tmp_path)) == (0, set())


def test_a_larger_warm_up_holds_the_smaller_one_and_another_seed_another(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    def chosen(**changed: Any) -> set[str]:
        section = WARM_UP.model_copy(update=changed)
        rows, _ = warm_up._choose(section, Prompt(suffix=""), checkpoint, *inputs.values())
        return {row["problem_id"] for row in rows}

    assert chosen() < chosen(num=6)
    assert chosen() != chosen(seed=1)


@pytest.mark.parametrize(
    ("changed", "had"), [({"num": 13}, "12 can be had"), ({"max_length": 20}, "0 can be had")]
)
def test_too_few_solutions_are_told_with_what_to_do(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path, log: Any, changed: dict[str, int], had: str
) -> None:
    section = SECTION.model_copy(update={"warm_up": WARM_UP.model_copy(update=changed)})
    with pytest.raises(DataError, match=rf"sample\.warm_up asks for .*{had} .*lower sample\.warm_up\.num"):
        run(section, checkpoint, inputs, tmp_path, log)


def test_a_sampler_that_still_cannot_be_read_is_warned_of(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path, log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short = WARM_UP.model_copy(update={"epochs": 1.0, "learning_rate": 1e-9})
    run(SECTION.model_copy(update={"warm_up": short}), checkpoint, inputs, tmp_path, log)
    assert "after the warm-up 0% of 8 answers can be read" in caplog.text


def test_a_rerun_trains_and_answers_nothing_again(
    checkpoint: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    first = run(SECTION, checkpoint, inputs, tmp_path, Kept())
    weights = (tmp_path / "sampler" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "sampler")
    log = Kept()
    assert run(SECTION, checkpoint, inputs, tmp_path, log) == first
    assert log.rows == []
    assert (tmp_path / "sampler" / "model.safetensors").read_bytes() == weights
    assert warm_up.num_in_form(checkpoint, Prompt(suffix=" Go.")) == 0
    assert warm_up.num_in_form(tmp_path / "sampler", Prompt(suffix=" Go.")) == len(warm_up.QUESTIONS)
    assert loading.load(tmp_path / "sampler")[0].config.vocab_size == 261
