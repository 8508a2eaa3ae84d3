"""Traces: which examples are shown, what stands beside them, and log-probabilities against a plain forward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_sets
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_checkpoint
from oxa import hashes, prompts
from oxa.config.prompt import Prompt
from oxa.config.score import Score
from oxa.config.traces import Traces
from oxa.errors import DataError
from oxa.model import loading, spelling
from oxa.records import schemas, training_set
from oxa.records import tables as records
from oxa.stages import score, traces

SUFFIX = " Think."
NUM_PROBLEMS = 12
TEACHER = [
    "<think>é {0} 😀</think> \\boxed{{{0}}}",
    "<think>\n{0}  {0}\n</think>日本 \\boxed{{{0}}} ",
    "<think>{0}{0}{0} so</think> \\boxed{{{0}}}",
]
OWN = {"correct": "<think>{0}</think> \\boxed{{{0}}}", "incorrect": "<think>x{0}</think> \\boxed{{7{0}}}"}


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after some training: other weights, same tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("arm"), seed=1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Path]:
    """Three right teacher solutions and three self-samples a problem, the first of these right, scored by the base."""
    folder = tmp_path_factory.mktemp("inputs")
    questions = [f"What is {i} plus nothing?" for i in range(NUM_PROBLEMS)]
    known = [
        {
            "problem_id": hashes.problem_id(question),
            "source": "s",
            "question": question,
            "answers": [str(i), f"{i}.0"],
            "tier": "",
            "split": "train",
        }
        for i, question in enumerate(questions)
    ]
    elsewhere = known[0] | {"answers": ["?"], "split": "world"}  # a question may stand in a benchmark, too
    paths = {"problems": folder / "problems.parquet"}
    records.write(paths["problems"], [*known, elsewhere], schemas.PROBLEMS)
    for origin, names in (("teacher", TEACHER), ("self", ["correct", "incorrect", "incorrect"])):
        responses, verdicts = [], []
        for i, problem in enumerate(known):
            for index, name in enumerate(names):
                text = (OWN[name] if origin == "self" else name).format(f"{i}{'1' * (index * i)}")
                responses.append(
                    {
                        "response_id": f"{origin[0]}{i}.{index}",
                        "problem_id": problem["problem_id"],
                        "origin": origin,
                        "model": "m",
                        "sample_index": index,
                        "seed": -1,
                        "text": text,
                        "num_tokens": -1,
                        "finish_reason": "stop",
                        "mean_entropy": math.nan,
                    }
                )
                verdict = name if origin == "self" else "correct"
                verdicts.append(
                    {"response_id": f"{origin[0]}{i}.{index}", "verdict": verdict, "predicted": None}
                )
        stem = "self_responses" if origin == "self" else "teacher"
        paths |= {
            stem: folder / f"{stem}.parquet",
            f"{origin}_verdicts": folder / f"{origin}_verdicts.parquet",
        }
        paths[f"{origin}_scores"] = folder / f"{origin}_scores.parquet"
        records.write(paths[stem], responses, schemas.RESPONSES)
        records.write(paths[f"{origin}_verdicts"], verdicts, schemas.VERDICTS)
        (scratch := folder / f"scratch-{origin}").mkdir()
        score.run(
            Score(batch_tokens=2000),
            Prompt(suffix=SUFFIX),
            model=checkpoint,
            problems=paths["problems"],
            responses=paths[stem],
            verdicts=paths[f"{origin}_verdicts"],
            output=paths[f"{origin}_scores"],
            scratch=scratch,
            log=lambda step, **values: None,
        )
    return paths


def train_set(inputs: dict[str, Path], path: Path, *, ul: bool = True, backwards: bool = False) -> Path:
    """The first teacher solution of every problem, and the second self-sample, which is wrong."""
    rows: list[dict[str, Any]] = []
    for stem, origin, objective, index in (
        ("teacher", "teacher", "ce", 0),
        ("self_responses", "self", "ul", 1),
    )[: 1 + ul]:
        ppl = {
            r["response_id"]: r["ppl"]
            for r in records.read(inputs[f"{origin}_scores"], schemas.SCORES).to_pylist()
        }
        rows += [
            {key: response[key] for key in ("response_id", "problem_id", "num_tokens")}
            | {"prompt": "", "completion": response["text"], "objective": objective}
            | {"ppl": ppl[response["response_id"]]}
            for response in records.read(inputs[stem], schemas.RESPONSES).to_pylist()
            if response["sample_index"] == index
        ]
    return training_sets.write(path, rows[::-1] if backwards else rows)


def run(
    folder: Path, inputs: dict[str, Path], base: Path, arm: Path, data: Path, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    output = folder / "traces.parquet"
    metrics = traces.run(
        Traces(**{"num_examples": 4, "batch_tokens": 500} | settings),
        Prompt(suffix=SUFFIX),
        [data.name] if records.read(data / "ul.parquet", schemas.TRAIN).num_rows else [],
        base=base,
        model=arm,
        data=data,
        **inputs,
        output=output,
        scratch=folder,
        log=lambda step, **values: None,
    )
    return records.read(output, schemas.TRACES).to_pylist(), metrics


@torch.no_grad()
def reference(checkpoint: Path, question: str, text: str) -> list[float]:
    """ln p of the text's tokens by a full forward pass of this one sequence."""
    model, tokenizer = loading.load(checkpoint, dtype=torch.float32)
    context = prompts.prompt_ids(tokenizer, question + SUFFIX)
    ids = torch.tensor([context + prompts.response_ids(tokenizer, text, end=False)], device=model.device)
    log_p = model(ids).logits[0].log_softmax(-1)
    return [log_p[t - 1, ids[0, t]].item() for t in range(len(context), ids.shape[1])]


def texts(inputs: dict[str, Path]) -> dict[str, str]:
    tables = [records.read(inputs[name], schemas.RESPONSES) for name in ("teacher", "self_responses")]
    return {row["response_id"]: row["text"] for table in tables for row in table.to_pylist()}


def test_each_token_has_its_log_probability_under_the_base_and_under_the_arm(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    rows, _ = run(tmp_path, inputs, checkpoint, arm, data)
    known = texts(inputs)
    for row in (rows[0], rows[1], rows[-1]):
        text = known[row["response_id"]]
        assert row["before"] == pytest.approx(reference(checkpoint, row["question"], text), abs=1e-4)
        assert row["after"] == pytest.approx(reference(arm, row["question"], text), abs=1e-4)


def test_the_mean_before_training_is_the_ln_ppl_of_the_score_table(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    rows, _ = run(tmp_path, inputs, checkpoint, arm, data, num_examples=NUM_PROBLEMS)
    scored = [row for row in rows if not math.isnan(row["ppl"])]
    assert {row["origin"] for row in scored} == {"teacher", "self"}
    for row in scored:
        assert -np.mean(row["before"]) == pytest.approx(math.log(row["ppl"]), abs=1e-4)
    unscored = {(row["origin"], row["verdict"]) for row in rows if math.isnan(row["ppl"])}
    assert unscored == {("self", "correct")}


def test_pieces_joined_are_the_text_and_a_cut_response_its_beginning(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    whole, metrics = run(tmp_path, inputs, checkpoint, arm, data)
    known = texts(inputs)
    assert any("😀" in known[row["response_id"]] for row in whole)
    for row in whole:
        assert "".join(row["tokens"]) == known[row["response_id"]]
        assert len(row["tokens"]) == len(row["before"]) == len(row["after"]) == row["num_tokens"]
        assert not row["cut"]
    assert metrics["cut"] == 0
    short, metrics = run(tmp_path, inputs, checkpoint, arm, data, max_tokens=24)
    for row, uncut in zip(short, whole, strict=True):
        assert row["tokens"] == uncut["tokens"][:24]
        assert row["before"] == pytest.approx(uncut["before"][:24], abs=1e-4)
        assert row["num_tokens"] == uncut["num_tokens"]
        assert row["cut"] == (uncut["num_tokens"] > 24)
    assert metrics["cut"] == sum(row["cut"] for row in short) > 0


def test_examples_come_one_from_each_slice_of_the_ppl_range_ce_before_ul(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    rows, metrics = run(tmp_path, inputs, checkpoint, arm, data)
    examples = [row for row in rows if row["role"] == "example"]
    assert [row["objective"] for row in examples] == ["ce"] * 4 + ["ul"] * 4
    assert metrics["examples"] == {"ce": 4, "ul": 4}
    trained = training_set.read(data, schemas.TRAIN.names, suppresses=True).to_pylist()
    for objective in ("ce", "ul"):
        ranked = sorted(row["ppl"] for row in trained if row["objective"] == objective)
        ranks = [ranked.index(row["ppl"]) for row in examples if row["objective"] == objective]
        assert [rank // 3 for rank in ranks] == [0, 1, 2, 3]
    other, _ = run(tmp_path, inputs, checkpoint, arm, data, seed=1)
    assert [row["example_id"] for row in other] != [row["example_id"] for row in rows]
    every, _ = run(tmp_path, inputs, checkpoint, arm, data, num_examples=100)
    assert sum(row["role"] == "example" for row in every) == 2 * NUM_PROBLEMS


def test_arms_with_one_ce_set_show_the_same_examples_whatever_the_order_of_rows(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    both, _ = run(tmp_path, inputs, checkpoint, arm, train_set(inputs, tmp_path / "a"))
    data = train_set(inputs, tmp_path / "b", ul=False, backwards=True)
    alone, metrics = run(tmp_path, inputs, checkpoint, arm, data)
    assert [row["response_id"] for row in alone] == [row["response_id"] for row in both[: len(alone)]]
    assert metrics["examples"] == {"ce": 4, "ul": 0}
    assert "ul" not in metrics


@pytest.mark.parametrize("num_beside", [0, 1, 2])
def test_beside_a_ce_example_wrong_answers_come_first_and_beside_a_ul_example_right_ones(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path, num_beside: int
):
    data = train_set(inputs, tmp_path / "train")
    rows, metrics = run(tmp_path, inputs, checkpoint, arm, data, num_beside=num_beside)
    assert metrics["beside"] == 8 * 2 * num_beside
    examples = {row["response_id"]: row for row in rows if row["role"] == "example"}
    shown: dict[str, list[tuple[str, str]]] = {key: [] for key in examples}
    for row in rows:
        if row["role"] == "beside":
            assert row["objective"] == ""
            assert row["response_id"] != row["example_id"]
            assert row["question"] == examples[row["example_id"]]["question"]
            shown[row["example_id"]].append((row["origin"], row["verdict"]))
    for key, beside in shown.items():
        ce = examples[key]["objective"] == "ce"
        own = ["incorrect", "incorrect"] if ce else ["correct", "incorrect"]
        expected = [("teacher", "correct")] * num_beside + [("self", verdict) for verdict in own[:num_beside]]
        assert beside == expected


def test_a_row_brings_its_problem_with_the_answers_of_the_training_split(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    rows, _ = run(tmp_path, inputs, checkpoint, arm, data, num_examples=NUM_PROBLEMS)
    for row in rows:
        number = row["question"].split()[2]
        assert row["answers"] == [number, f"{number}.0"]
        assert row["problem_id"] == hashes.problem_id(row["question"])


def test_metrics_are_the_means_over_the_examples_alone(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    rows, metrics = run(tmp_path, inputs, checkpoint, arm, data)
    for objective in ("ce", "ul"):
        examples = [row for row in rows if row["objective"] == objective]
        changes = [a - b for row in examples for a, b in zip(row["after"], row["before"], strict=True)]
        expected = {
            "before": np.mean([np.mean(row["before"]) for row in examples]),
            "after": np.mean([np.mean(row["after"]) for row in examples]),
            "promoted": np.mean([change >= 0.1 for change in changes]),
            "suppressed": np.mean([change <= -0.1 for change in changes]),
        }
        assert metrics[objective] == pytest.approx(expected, abs=1e-5)
        assert 0 < metrics[objective]["promoted"] < 1


def test_a_problem_that_fills_the_models_context_is_left_out_and_counted(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    rows = records.read(inputs["problems"], schemas.PROBLEMS).to_pylist()
    rows[3]["question"] += "?" * 2000  # its id stays, so that the tables still belong together
    rows[4]["question"] += "?" * 960
    problems = tmp_path / "problems.parquet"
    records.write(problems, rows, schemas.PROBLEMS)
    data = train_set(inputs, tmp_path / "train", ul=False)
    shown, metrics = run(
        tmp_path, inputs | {"problems": problems}, checkpoint, arm, data, num_examples=NUM_PROBLEMS
    )
    assert metrics["no_room"] == 3
    assert metrics["examples"]["ce"] == NUM_PROBLEMS - 1
    assert rows[3]["problem_id"] not in {row["problem_id"] for row in shown}
    cut = [row for row in shown if row["problem_id"] == rows[4]["problem_id"]]
    assert cut
    assert all(row["cut"] and 0 < len(row["before"]) < row["num_tokens"] for row in cut)


def test_tables_that_do_not_belong_together_are_refused(
    tmp_path: Path, inputs: dict[str, Path], checkpoint: Path, arm: Path
):
    data = train_set(inputs, tmp_path / "train")
    swapped = inputs | {"self_responses": inputs["teacher"], "self_verdicts": inputs["teacher_verdicts"]}
    with pytest.raises(DataError, match=r"response s\d+\.1 is neither in"):
        run(tmp_path, swapped, checkpoint, arm, data)
    with pytest.raises(DataError, match="have no verdict in it"):
        run(tmp_path, inputs | {"self_verdicts": inputs["teacher_verdicts"]}, checkpoint, arm, data)


@given(st.text(max_size=20), st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_pieces_are_one_a_token_and_lose_no_character(text: str, ends: list[int]):
    found = spelling.pieces(text, sorted(min(end, len(text)) for end in ends))
    assert len(found) == len(ends)
    assert "".join(found) == text


def test_white_space_that_no_token_claims_stays_with_the_next_one():
    assert spelling.pieces("a cat ", [1, 5]) == ["a", " cat "]
    assert spelling.pieces("😀b", [1, 1, 1, 2]) == ["😀", "", "", "b"]
