"""Adapters: what they change, that the merged checkpoint computes the same, and what holds of training without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import training_sets
from fine_tuned import Result, fine_tune
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from training_rows import ROWS, SHARED, WITH_UL

from conftest import Kept
from oxa.config.fine_tuning import Adapter, FineTuning, TrainArm
from oxa.errors import ConfigError
from oxa.model import loading, preflight
from oxa.training import adapters, fine_tuning

LORA = Adapter(rank=3, alpha=12, save=True)
KTO: dict[str, Any] = {"objective": "kto", "num_ul": 4, "ul_weight": 0.7, "kto_beta": 0.3}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_sets.write(tmp_path_factory.mktemp("table") / "full", ROWS)


def fit(
    model: Path,
    data: Path,
    folder: Path,
    *,
    arm: dict[str, Any] = WITH_UL,
    seed: int = 0,
    log: Kept | None = None,
    **shared: Any,
) -> Result:
    section = FineTuning(**{**SHARED, "adapter": LORA, **shared})
    return fine_tune(section, TrainArm(**arm), model, data, folder, seed=seed, log=log)


def assert_same_bits(one: Result, other: Result) -> None:
    assert one.metrics == other.metrics
    names = sorted(path.relative_to(one.output) for path in one.output.rglob("*") if path.is_file())
    assert names == sorted(
        path.relative_to(other.output) for path in other.output.rglob("*") if path.is_file()
    )
    for name in names:
        assert (one.output / name).read_bytes() == (other.output / name).read_bytes(), name


def assert_close(one: Result, other: Result, tolerance: float = 1e-6) -> None:
    for before, after in zip(one.log.curve(), other.log.curve(), strict=True):
        assert after == pytest.approx(before, rel=10 * tolerance, abs=tolerance)
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(checkpoint, table, tmp_path_factory.mktemp("unbroken"))


def changed(base: Path, weights: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that are not the base's."""
    before = load_file(base / "model.safetensors")
    assert before.keys() == weights.keys()  # tied embeddings stay one
    assert {name: value.dtype for name, value in before.items()} == {
        name: value.dtype for name, value in weights.items()
    }
    return {name for name, value in before.items() if not torch.equal(value, weights[name])}


def test_an_adapter_changes_all_linear_layers_but_the_head_by_its_rank(
    checkpoint: Path, unbroken: Result
) -> None:
    expected = {
        name
        for name in load_file(checkpoint / "model.safetensors")
        if name.endswith("proj.weight")  # of attention and feed-forward; no bias, no norm, no embeddings
    }
    assert len(expected) == 2 * 7
    assert changed(checkpoint, unbroken.weights) == expected
    before = load_file(checkpoint / "model.safetensors")
    for name in expected:
        difference = unbroken.weights[name].double() - before[name].double()
        values = torch.linalg.svdvals(difference)
        assert values[2] > 1e-3
        assert values[3] < 1e-5  # rank 3, up to rounding
    assert unbroken.log.rows[-1]["ce_loss"] < unbroken.log.rows[0]["ce_loss"] - 0.3


def test_named_targets_are_changed_and_nothing_else(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    lora = Adapter(rank=2, targets=("q_proj", "1.mlp.down_proj"))
    done = fit(checkpoint, table, tmp_path, adapter=lora, epochs=0.7)
    assert changed(checkpoint, done.weights) == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }
    for name in ("k", "lm_head", "embed_tokens"):
        with pytest.raises(
            ConfigError, match=rf"adapter\.targets: {name} is no linear layer of .* take of down"
        ):
            fit(checkpoint, table, tmp_path, adapter=Adapter(targets=("q_proj", name)))


@torch.no_grad()
def test_the_merged_checkpoint_computes_what_base_and_adapter_do(checkpoint: Path, unbroken: Result) -> None:
    ids = torch.arange(5, 60)[None]
    base, _ = loading.load(checkpoint)
    plain = base(ids).logits
    apart = PeftModel.from_pretrained(base, str(unbroken.output / "adapter"))(ids).logits
    merged = loading.load(unbroken.output)[0](ids).logits
    torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)
    assert (merged - plain).abs().max() > 0.1


def test_the_output_is_a_plain_checkpoint_that_names_no_folder(
    checkpoint: Path, table: Path, tmp_path: Path, unbroken: Result
) -> None:
    assert {path.name for path in unbroken.output.iterdir()} == {
        *(path.name for path in checkpoint.iterdir()),
        "adapter",
    }
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (unbroken.output / name).read_bytes() == (checkpoint / name).read_bytes(), name
    preflight.check_files(unbroken.output)
    kept = unbroken.output / "adapter"
    assert {path.name for path in kept.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    settings = json.loads((kept / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    assert (settings["r"], settings["lora_alpha"]) == (3, 12)
    assert str(checkpoint) not in (kept / "adapter_config.json").read_text()
    assert {value.dtype for value in load_file(kept / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    without = fit(checkpoint, table, tmp_path, adapter=LORA.model_copy(update={"save": False}))
    assert not (without.output / "adapter").exists()
    assert all(torch.equal(without.weights[name], value) for name, value in unbroken.weights.items())


def test_a_base_in_bfloat16_is_merged_in_its_own_type(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    network, _ = loading.load(base, dtype=torch.bfloat16)
    network.save_pretrained(base)
    done = fit(base, table, tmp_path, dtype="bfloat16")
    assert {value.dtype for value in done.weights.values()} == {torch.bfloat16}
    assert len(changed(base, done.weights)) == 14


@pytest.mark.parametrize("arm", [WITH_UL, KTO])
def test_log_probabilities_come_from_the_fused_head(
    checkpoint: Path, table: Path, tmp_path: Path, arm: dict[str, Any]
) -> None:
    network, _ = loading.load(checkpoint)
    num_entries = network.config.vocab_size
    made: list[torch.Size] = []

    def watch(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(module, nn.Linear) and module.out_features == num_entries:
            made.append(out.shape)

    hook = register_module_forward_hook(watch)
    try:
        fit(checkpoint, table, tmp_path, arm=arm, epochs=0.3)
        assert made == []
        network(torch.arange(5, 9)[None])
        assert made == [(1, 4, num_entries)]
    finally:
        hook.remove()


def test_the_first_step_sees_the_base_itself(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):  # the frozen matrices' rounding is that of bfloat16 arithmetic
        shape: dict[str, Any] = {"epochs": 0.3, "dtype": dtype}
        whole = fit(checkpoint, table, tmp_path / f"whole-{dtype}", adapter=None, **shape)
        lora = fit(checkpoint, table, tmp_path / f"lora-{dtype}", **shape)
        for name in ("loss", "ce_loss", "ul_loss", "ce_entropy", "ul_probability"):
            assert lora.log.rows[0][name] == pytest.approx(whole.log.rows[0][name], rel=1e-6), (dtype, name)
        assert lora.log.rows[0]["grad_norm"] != whole.log.rows[0]["grad_norm"]


def test_micro_batches_and_recomputation_do_not_change_the_training(
    checkpoint: Path, table: Path, tmp_path: Path, unbroken: Result
) -> None:
    assert_close(unbroken, fit(checkpoint, table, tmp_path / "1", micro_batch_size=1))
    assert_close(
        unbroken, fit(checkpoint, table, tmp_path / "8", micro_batch_size=8, gradient_checkpointing=True)
    )


def test_the_seed_draws_the_adapter(checkpoint: Path, table: Path, tmp_path: Path, unbroken: Result) -> None:
    torch.manual_seed(7)  # what was drawn before is no matter
    assert_same_bits(unbroken, fit(checkpoint, table, tmp_path / "again"))
    other = fit(checkpoint, table, tmp_path / "other", seed=1)
    one, two = (load_file(done.output / "adapter/adapter_model.safetensors") for done in (unbroken, other))
    assert not any(torch.allclose(one[name], two[name]) for name in one if "lora_A" in name)


@pytest.mark.parametrize(
    ("arm", "dropout"), [(WITH_UL, 0.0), (WITH_UL, 0.3), pytest.param(KTO, 0.0, marks=pytest.mark.whole)]
)
def test_a_stopped_run_goes_on_from_its_checkpoint_with_the_same_bits(
    checkpoint: Path, table: Path, tmp_path: Path, arm: dict[str, Any], dropout: float
) -> None:
    shape: dict[str, Any] = {"arm": arm, "adapter": LORA.model_copy(update={"dropout": dropout})}
    whole = fit(checkpoint, table, tmp_path / "whole", **shape)
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, table, tmp_path / "run", log=Kept(stop_after=5), **shape)
    last = tmp_path / "run/scratch/checkpoints/checkpoint-4"
    assert not (last / "model.safetensors").exists()  # the adapter and its moments, and no frozen weight
    assert (last / "optimizer.pt").stat().st_size < 4 * (last / "adapter_model.safetensors").stat().st_size
    resumed = fit(checkpoint, table, tmp_path / "run", **shape)
    assert resumed.log.curve() == whole.log.curve()[4:]
    assert_same_bits(whole, resumed)


def test_a_half_written_adapter_is_passed_over(
    checkpoint: Path, table: Path, tmp_path: Path, unbroken: Result
) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, table, tmp_path, log=Kept(stop_after=5))
    weights = tmp_path / "scratch/checkpoints/checkpoint-4/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    resumed = fit(checkpoint, table, tmp_path)
    assert [row["step"] for row in resumed.log.rows] == [3, 4, 5, 6]
    assert_same_bits(unbroken, resumed)


def test_the_reference_of_kto_is_the_base(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    """β r of the fifth step, from the weights before it merged, with the base as a model of its own."""
    shape: dict[str, Any] = {"arm": KTO, "warmup_ratio": 0.0}
    done = fit(checkpoint, table, tmp_path / "kto", **shape)
    assert done.log.rows[0]["ce_reward"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, table, tmp_path / "stopped", log=Kept(stop_after=5), **shape)
    policy, tokenizer = loading.load(checkpoint)
    policy = PeftModel.from_pretrained(policy, str(tmp_path / "stopped/scratch/checkpoints/checkpoint-4"))
    base, _ = loading.load(checkpoint)
    rows = fine_tuning._tokenize(table, True, tokenizer, 1000)
    order = fine_tuning.batches.step_order(12, 8, 4, 4, 2.0, 0)[4].tolist()
    rewards: dict[bool, list[float]] = {False: [], True: []}
    for index in order:
        one = rows.dataset[index]
        ids = torch.tensor([one["input_ids"]])
        scored = slice(one["num_prompt"] - 1, -1)
        with torch.no_grad():
            log_p, log_q = (
                model(ids)
                .logits[0, scored]
                .log_softmax(-1)
                .gather(-1, ids[0, one["num_prompt"] :, None])
                .sum()
                for model in (policy, base)
            )
        rewards[one["suppressed"]].append(0.3 * float(log_p - log_q))
    fifth = done.log.rows[4]
    assert abs(fifth["ce_reward"]) > 0.05
    for suppressed, name in ((False, "ce_reward"), (True, "ul_reward")):
        assert fifth[name] == pytest.approx(sum(rewards[suppressed]) / 4, abs=1e-4)


def test_what_this_machine_lacks_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**shared: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            fit(tmp_path / "no model", tmp_path / "no table", tmp_path, **shared)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    quantized = LORA.model_copy(update={"quantize": "nf4"})
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        assert f"optimizer: {name} runs on CUDA alone" in refusal(optimizer=name)
    assert "adapter.quantize: nf4 runs on CUDA alone" in refusal(adapter=quantized)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    assert 'needs bitsandbytes, which is not installed; `pip install "oxa[quantized]"`' in refusal(
        optimizer="adamw_8bit"
    )
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "OXA_LAUNCH spreads them by FSDP; take null" in refusal(adapter=quantized)


def test_optimizers_have_the_names_that_transformers_knows() -> None:
    from transformers.training_args import OptimizerNames

    assert {OptimizerNames(name) for name in adapters.OPTIMIZERS.values()} == {
        OptimizerNames.ADAMW_BNB,
        OptimizerNames.PAGED_ADAMW_8BIT,
    }
    section = FineTuning(**SHARED, optimizer="adamw_8bit")
    given = fine_tuning.settings(section, 6, 4, 2, Path("checkpoints"), 0)
    assert given["optim"] == "adamw_bnb_8bit"
