"""What is measured of an arm before RL: which texts are taken, and the numbers against float64 ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oxa import hashes, prompts
from oxa.config.predictors import Predictors
from oxa.config.prompt import Prompt
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.stages import predictors

QUESTIONS = ["a", "b", "c", "d"]


@pytest.fixture
def inputs(checkpoint: Path, neighbour: Path, tmp_path: Path) -> dict[str, Path]:
    """Four training problems with two solutions each, of which an arm learns b; one of c is wrong, all of d are cut."""
    paths = {name: tmp_path / f"{name}.parquet" for name in ("problems", "responses", "verdicts")}
    problems = [
        {
            "problem_id": f"p{question}",
            "source": "s",
            "question": question,
            "answers": ["8"],
            "tier": "",
            "split": split,
        }
        for question, split in [
            *((question, "train") for question in QUESTIONS),
            ("x", "world"),
            ("y", "world"),
        ]
    ]
    tables.write(paths["problems"], problems, schemas.PROBLEMS)
    responses = [
        {
            "response_id": f"r{question}{index}",
            "problem_id": f"p{question}",
            "origin": "teacher",
            "model": "m",
        }
        | {"sample_index": index, "seed": -1, "text": f"{question} is {index + 7}", "num_tokens": 9}
        | {"finish_reason": "length" if question == "d" else "stop", "mean_entropy": float("nan")}
        for question in QUESTIONS
        for index in range(2)
    ]
    tables.write(paths["responses"], responses, schemas.RESPONSES)
    verdicts = [
        {"response_id": row["response_id"], "predicted": "8"}
        | {"verdict": "incorrect" if row["response_id"] == "rc0" else "correct"}
        for row in responses
    ]
    tables.write(paths["verdicts"], verdicts, schemas.VERDICTS)
    learn(tmp_path / "train", "pb")
    for name, text in (("base_samples", "13"), ("samples", "245")):
        paths[name] = tmp_path / f"{name}.parquet"
        rows = [
            {"benchmark": "world", "problem_id": f"p{question}", "tier": "", "step": 0, "sample_index": 0}
            | {"text": text + question, "finish_reason": reason, "num_tokens": 3, "entropy": 1.0}
            for question, reason in (("x", "stop"), ("y", "length"))
        ]
        tables.write(paths[name], rows, schemas.ENTROPIES)
    return paths | {"base": checkpoint, "model": neighbour, "train_sets": tmp_path / "train"}


def learn(folder: Path, problem_id: str) -> None:
    row = {"response_id": "r", "problem_id": problem_id, "prompt": "q", "completion": "c", "objective": "ce"}
    row |= {"ppl": 1.0, "num_tokens": 1, "finish_reason": "stop"}
    tables.write(folder / "some_arm" / "ce.parquet", [row], schemas.TRAIN)


def run(
    inputs: dict[str, Path], folder: Path, log: Any, num: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (folder / "scratch").mkdir(exist_ok=True)
    paths = {"output": folder / "out.parquet", "scratch": folder / "scratch"}
    section = Predictors(num=num, batch_tokens=40, chunk=3)
    metrics = predictors.run(section, Prompt(suffix=""), **inputs, **paths, log=log)
    return metrics, tables.read(folder / "out.parquet", schemas.PREDICTORS).to_pylist()


def log_p(model: Any, before: list[int], after: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.double().log_softmax(-1)


def test_held_out_are_verified_whole_solutions_of_problems_that_no_arm_learns_from(
    inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    metrics, rows = run(inputs, tmp_path, log, 10)
    assert sorted(row["problem_id"] for row in rows if row["measure"] == "held_out_nll") == ["pa", "pc"]
    assert metrics["held_out_nll_texts"] == 2
    model, tokenizer = loading.load(inputs["model"])
    expected = []
    for question in "ac":
        chosen = min("01" if question == "a" else "1", key=lambda index: hashes.lot(0, f"r{question}{index}"))
        text = f"{question} is {int(chosen) + 7}"
        after = prompts.response_ids(tokenizer, text, end=False)
        values = log_p(model, prompts.prompt_ids(tokenizer, question), after)
        expected.append(-values[torch.arange(len(after)), after].mean().item())
    assert metrics["held_out_nll"] == pytest.approx(np.mean(expected), rel=1e-5)
    json.dumps(metrics, allow_nan=False)


def test_kl_is_a_token_over_the_responses_of_the_model_that_it_begins_with(
    inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    metrics, _ = run(inputs, tmp_path, log, 10)
    (base, tokenizer), (arm, _) = (loading.load(inputs[name]) for name in ("base", "model"))
    for name, text, p, q in (("kl_base_arm", "13", base, arm), ("kl_arm_base", "245", arm, base)):
        nats: list[float] = []
        for question, end in (("x", True), ("y", False)):
            before = prompts.prompt_ids(tokenizer, question)
            after = prompts.response_ids(tokenizer, text + question, end=end)
            ours, theirs = log_p(p, before, after), log_p(q, before, after)
            nats += (ours.exp() * (ours - theirs)).sum(-1).tolist()
        assert metrics[name] == pytest.approx(np.mean(nats), rel=1e-4)
        assert metrics[f"{name}_texts"] == 2


def test_num_takes_the_same_texts_whatever_the_arm_and_0_measures_nothing(
    inputs: dict[str, Path], tmp_path: Path, log: Any
) -> None:
    metrics, rows = run(inputs, tmp_path, log, 1)
    assert [metrics[f"{name}_texts"] for name in ("held_out_nll", "kl_base_arm", "kl_arm_base")] == [1, 1, 1]
    assert rows[1]["problem_id"] == rows[2]["problem_id"]
    assert run(inputs, tmp_path, log, 0) == ({}, [])


def test_where_every_problem_is_learnt_from_nothing_is_held_out(
    inputs: dict[str, Path], tmp_path: Path, log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for place, problem in enumerate("ac"):
        learn(inputs["train_sets"] / str(place), f"p{problem}")
    metrics, _ = run(inputs, tmp_path, log, 10)
    assert metrics["held_out_nll"] is None
    assert metrics["kl_base_arm"] > 0
    assert "every problem with a verified solution is in some arm's training set" in caplog.text
