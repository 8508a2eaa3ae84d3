"""KTO on our rows: TRL's loss against plain arithmetic, and that a killed run ends with the same bits."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import training_sets
from fine_tuned import Result, fine_tune
from pydantic import ValidationError
from training_rows import ROWS

from conftest import Kept
from oxa import prompts
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.errors import ConfigError
from oxa.model import loading
from oxa.training import batches, kto

SHARED: dict[str, Any] = {
    "learning_rate": 3e-3,
    "epochs": 2.0,
    "num_ce": 4,
    "micro_batch_size": 4,
    "checkpoint_every": 2,
    "warmup_ratio": 0.0,
}
"""2 passes over 12 CE rows: 6 steps of 2 micro-batches, each of 2 CE and 2 UL rows."""
ARM = TrainArm(objective="kto", num_ul=4, ul_weight=0.7, kto_beta=0.3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_sets.write(tmp_path_factory.mktemp("table") / "kto", ROWS)


def fit(model: Path, data: Path, folder: Path, log: Kept | None = None, **shared: Any) -> Result:
    section = FineTuning(**{**SHARED, **shared})
    return fine_tune(section, ARM, model, data, folder, seed=3, log=log)


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(checkpoint, table, tmp_path_factory.mktemp("unbroken"))


def log_prob(model: Any, prompt: list[int], completion: list[int]) -> float:
    """ln p(completion | prompt), a sum over its tokens, by the model's own forward pass."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
    at = log_p.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
    return float(at.sum())


def expected(policy: Path, base: Path, step: int) -> dict[str, float]:
    """Loss, z and rewards of a step (from 0) for these weights, written out."""
    (model, tokenizer), (reference, _) = loading.load(policy), loading.load(base)
    ids = [
        (
            prompts.prompt_ids(tokenizer, one["prompt"]),
            prompts.response_ids(tokenizer, one["completion"], end=True),
        )
        for one in ROWS
    ]
    order = batches.step_order(12, 8, 4, 4, 2.0, 3)[step].tolist()
    losses, zs, rewards = [], [], {"ce": list[float](), "ul": list[float]()}
    for part in (order[0::2], order[1::2]):
        moved = [(ids[at][0], ids[before][1]) for before, at in pairwise([part[-1], *part])]
        z = max(0.0, sum(log_prob(model, *one) - log_prob(reference, *one) for one in moved) / len(moved))
        terms = []
        for at in part:
            ratio = log_prob(model, *ids[at]) - log_prob(reference, *ids[at])
            wanted = at < 12
            rewards["ce" if wanted else "ul"].append(0.3 * ratio)
            inner = 0.3 * (ratio - z) * (1 if wanted else -1)
            terms.append((1.0 if wanted else 0.7) * (1 - 1 / (1 + math.exp(-inner))))
        losses.append(sum(terms) / len(terms))
        zs.append(z)
    return {
        "loss": sum(losses) / 2,
        "kl": sum(zs) / 2,
        "ce_reward": sum(rewards["ce"]) / 4,
        "ul_reward": sum(rewards["ul"]) / 4,
    }


def test_the_first_and_the_last_step_equal_plain_arithmetic(
    checkpoint: Path, table: Path, unbroken: Result, tmp_path: Path
) -> None:
    first = expected(checkpoint, checkpoint, 0)
    assert first["loss"] == pytest.approx((0.5 + 0.7 * 0.5) / 2)  # policy and base are one
    # a checkpoint after 4 steps has the weights with which the fifth is taken
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, table, tmp_path, log=Kept(stop_after=5))
    weights = tmp_path / "scratch" / "checkpoints" / "checkpoint-4"
    fifth = expected(weights, checkpoint, 4)
    assert abs(fifth["ce_reward"]) > 0.1
    assert fifth["kl"] > 0
    for step, wanted in ((1, first), (5, fifth)):
        for name, value in wanted.items():
            assert unbroken.log.rows[step - 1][name] == pytest.approx(value, abs=1e-4), (step, name)


def test_training_moves_right_solutions_above_wrong_ones(unbroken: Result) -> None:
    final = unbroken.metrics["final"]
    assert final["ce_reward"] > final["ul_reward"] + 0.1
    assert unbroken.metrics["steps"] == 6
    assert unbroken.metrics["ul_rows"] == 8


CHILD = """
import os, signal, sys
from pathlib import Path
from oxa.config.fine_tuning import TrainArm, FineTuning
from oxa.training import fine_tuning
model, data, folder = map(Path, sys.argv[1:4])
def log(step, **values):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
fine_tuning.run(FineTuning.model_validate_json(sys.argv[4]), TrainArm.model_validate_json(sys.argv[5]), model=model,
          data=data, output=folder / "model", scratch=folder / "scratch", seed=3, log=log)
"""


@pytest.mark.whole
def test_kill_9_and_run_again_ends_with_the_same_bits(
    checkpoint: Path, table: Path, unbroken: Result, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", CHILD, str(checkpoint), str(table), str(tmp_path)]
    sections = [FineTuning(**SHARED).model_dump_json(), ARM.model_dump_json()]
    killed = subprocess.run([*command, *sections], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    again = fit(checkpoint, table, tmp_path)
    assert [row["step"] for row in again.log.rows] == [5, 6]
    assert again.weights.keys() == unbroken.weights.keys()
    assert all(torch.equal(again.weights[name], value) for name, value in unbroken.weights.items())


@pytest.mark.parametrize(
    ("num_ce", "num_ul", "processes", "at_most", "size"),
    [
        *(
            (6, 3, 1, 4, 3),
            (3, 3, 1, 3, 2),
            (3, 3, 1, 5, 2),
            (3, 3, 1, 6, 6),
            (4, 4, 1, 4, 4),
            (4, 4, 2, 8, 4),
        ),
        *((16, 16, 1, 16, 16), (12, 8, 2, 9, 5), (5, 5, 5, 100, 2)),
    ],
)
def test_every_micro_batch_holds_the_same_mix(
    num_ce: int, num_ul: int, processes: int, at_most: int, size: int
) -> None:
    assert kto.micro_batch_size(num_ce, num_ul, processes, at_most) == size
    num = (num_ce + num_ul) // size
    assert num % processes == 0
    step = [*range(num_ce), *range(100, 100 + num_ul)]
    parts = kto.micro_batches(step, num)
    assert sorted(at for part in parts for at in part) == step
    assert {(len(part), sum(at >= 100 for at in part)) for part in parts} == {(size, num_ul // num)}


def test_a_tokenizer_without_padding_token_gets_none(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    tokenizer = loading.load_tokenizer(bare)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bare)
    assert loading.load_tokenizer(bare).pad_token is None
    made = fit(bare, table, tmp_path, epochs=0.5)
    assert loading.load_tokenizer(made.output).pad_token is None


def test_rows_that_cannot_be_compared_are_refused(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="micro_batch_size: kto compares the rows of a micro-batch"):
        fit(checkpoint, table, tmp_path, micro_batch_size=1)
    with pytest.raises(ConfigError, match="same mix of a step's 3 CE and 4 UL sequences; take 7 or more"):
        kto.micro_batch_size(3, 4, 1, 6)
    with pytest.raises(ConfigError, match="2 processes cannot share evenly; run one of 1, 3 processes"):
        kto.micro_batch_size(3, 6, 2, 6)


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"num_ul": 0}, "num_ul must be above 0"),
        ({"num_ul": 2, "ul_tokens": 3}, "neither ul_tokens nor ce_loss"),
        ({"num_ul": 2, "ce_loss": "dft"}, "neither ul_tokens nor ce_loss"),
    ],
)
def test_settings_of_the_other_objective_are_refused(arm: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainArm(objective="kto", **arm)
