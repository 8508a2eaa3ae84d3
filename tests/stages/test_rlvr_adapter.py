"""RL with an adapter: who draws the rollouts, what the KL is taken to, and that kept steps are plain checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from spellers import SECTION, Reference, Result, fit, make_speller, write_problems

from conftest import Kept
from oxa.config.rlvr import Rlvr

LORA = {"rank": 2, "alpha": 8.0, "save": True}


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speller(tmp_path_factory.mktemp("speller"))


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("tables") / "problems.parquet")


@pytest.fixture(scope="module")
def unbroken(speller: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(speller, problems, tmp_path_factory.mktemp("unbroken"), adapter=LORA)


def test_rollouts_come_from_the_adapter_and_the_kl_is_to_the_base(
    speller: Path, tmp_path: Path, unbroken: Result
) -> None:
    """Of the second and fourth step, from the merged weights before it and the base as a model of its own."""
    assert any(0 < row["reward"] < 1 for row in unbroken.log.rows), [
        (r["reward"], r["kl"]) for r in unbroken.log.rows
    ]
    for step in (2, 4):
        policy = unbroken.output / f"step-{step - 1}"
        section = Rlvr(**SECTION)
        expected = Reference(policy, speller, section, step, tmp_path).logged()
        del expected["grad_norm"]  # that of all weights
        row = unbroken.log.rows[step - 1]
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=2e-6)
        assert row["kl"] > 1e-5


def test_kept_steps_are_plain_checkpoints(speller: Path, unbroken: Result) -> None:
    before = load_file(speller / "model.safetensors")
    for step in range(1, 5):
        folder = unbroken.output / f"step-{step}"
        assert {path.name for path in folder.iterdir()} == {
            *(path.name for path in speller.iterdir()),
            "adapter",
        }
        after = unbroken.weights(step)
        assert after.keys() == before.keys()
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert moved == {name for name in before if name.endswith("proj.weight")}
    first, last = (
        load_file(unbroken.output / f"step-{step}/adapter/adapter_model.safetensors") for step in (1, 4)
    )
    assert not any(torch.equal(first[name], last[name]) for name in first)


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_stopped_run_goes_on_with_the_same_bits(
    speller: Path, problems: Path, tmp_path: Path, unbroken: Result
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(speller, problems, tmp_path, log=Kept(stop_after=3), adapter=LORA)
    resumed = fit(speller, problems, tmp_path, adapter=LORA)
    assert resumed.log.curve() == unbroken.log.curve()[2:]
    assert resumed.metrics == unbroken.metrics
    assert_same_files(unbroken.output, resumed.output)


def test_micro_batches_and_kept_steps_do_not_change_the_training(
    speller: Path, problems: Path, tmp_path: Path, unbroken: Result
) -> None:
    other = fit(speller, problems, tmp_path, micro_batch_size=24, batch_size=5, save_every=4, adapter=LORA)
    assert [path.name for path in other.output.iterdir()] == ["step-4"]
    for before, after in zip(unbroken.log.curve(), other.log.curve(), strict=True):
        assert after == pytest.approx(before, rel=1e-4, abs=1e-5)
    for name, value in unbroken.weights(4).items():
        torch.testing.assert_close(other.weights(4)[name], value, rtol=0, atol=1e-5)


def test_an_adapter_in_bfloat16_of_a_base_in_bfloat16(problems: Path, tmp_path: Path) -> None:
    base = make_speller(tmp_path / "half", torch.bfloat16)
    rough: dict[str, Any] = {
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "temperature": "entropy(2.25)",
    }
    done = fit(base, problems, tmp_path, steps=2, save_every=2, adapter={**LORA, "save": False}, **rough)
    output = done.output / "step-2"
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()}
    before, after = load_file(base / "model.safetensors"), done.weights(2)
    assert {name: v.dtype for name, v in before.items()} == {name: v.dtype for name, v in after.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])
    assert done.log.rows[1]["kl"] > 1e-5
    shutil.rmtree(tmp_path / "scratch")


def test_what_would_make_two_policies_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"adapter\.dropout must be 0"):
        Rlvr(**SECTION, adapter={"dropout": 0.1})
    with pytest.raises(ValidationError, match=r"adapter\.quantize takes the engine torch"):
        Rlvr(**SECTION, adapter={"quantize": "nf4"}, engine="vllm_colocate")
