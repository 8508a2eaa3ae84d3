"""Weights of rollouts: their formula, and that a training step whose rollouts were drawn otherwise has its gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from spellers import SECTION, make_speller

from conftest import Kept
from oxa.config.rlvr import Rlvr, RolloutCorrection
from oxa.model import loading
from oxa.report import wording
from oxa.rl import grpo, weights

CORRECTIONS = get_args(RolloutCorrection)
BOUND = 3.0
DEVIATION = 0.02


def reference(trained: list[float], drawn: list[float], correction: str) -> list[float]:
    """A rollout's weights in plain float64 arithmetic, one a token."""
    if correction == "none":
        return [1.0] * len(trained)
    logs = [p - q for p, q in zip(trained, drawn, strict=True)]
    if correction.startswith("sequence"):
        logs = [math.fsum(logs)] * len(logs)
    ratios = [math.exp(log) for log in logs]
    if correction.endswith("truncate"):
        return [min(ratio, BOUND) for ratio in ratios]
    return [ratio if ratio <= BOUND else 0.0 for ratio in ratios]


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speller(tmp_path_factory.mktemp("speller"))


def trainer_of(model: Path, folder: Path, **section: Any) -> grpo.RLVRTrainer:
    """A trainer that never draws: micro-batches are handed to its loss."""
    made = Rlvr(**{**SECTION, "kl_weight": 0.0, "loss": "dapo", "rollout_bound": BOUND, **section})
    network, tokenizer = loading.load(model)
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.0  # as the stage does
    rollouts = grpo.Rollouts(made, {}, tokenizer, torch.tensor([1]), 32, None, 0)  # type: ignore[arg-type]
    settings = grpo.config(made, 6, 4, 32, folder, 0)
    return grpo.RLVRTrainer(
        network,
        tokenizer,
        Dataset.from_dict({"prompt": ["p"] * 24, "problem_id": ["p"] * 24}),
        settings,
        rollouts=rollouts,
        keep=lambda trainer, step: None,
        log=Kept(),
    )


def log_p_of(model: Any, ids: torch.Tensor, start: int, temperature: float) -> torch.Tensor:
    logits = model(input_ids=ids).logits[:, start - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


@pytest.mark.parametrize("length", [10, 300, pytest.param(10_000, marks=pytest.mark.whole)])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_gradient_of_rollouts_drawn_otherwise_is_that_of_the_formula(
    speller: Path, tmp_path: Path, correction: RolloutCorrection, length: int
) -> None:
    """ln μ = ln π - ε with ε of the deviation 0.02 and the mean -0.0002, as of rollouts that μ drew."""
    deviation = DEVIATION if length > 10 else 0.5  # so that the bound cuts something
    trainer = trainer_of(speller, tmp_path, rollout_correction=correction)
    generator = torch.Generator().manual_seed(length)
    prompts = torch.tensor([[2, 6, 3], [0, 2, 3]])
    lengths = [length, length * 2 // 3]
    completions = torch.randint(4, 10, (2, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    exact = loading.load(speller)[0].double()
    for model in (exact, trainer.model):
        model.model.layers = model.model.layers[:1]  # attention to 10,000 tokens takes its time
    ids = [torch.cat([prompts[0], completions[0]]), torch.cat([prompts[1, 1:], completions[1, : lengths[1]]])]
    log_p = [log_p_of(exact, row[None], len(row) - n, 0.9)[0] for row, n in zip(ids, lengths, strict=True)]
    noise = torch.randn(2, length, generator=generator).double() * deviation - deviation**2 / 2
    noise[0, ::7] += 1.2 * (length == 10)
    drawn = [one.detach() - noise[i, : lengths[i]] for i, one in enumerate(log_p)]
    advantages = [0.7, -1.3]
    expected = [
        torch.tensor(reference(p.tolist(), q.tolist(), correction)).double()
        for p, q in zip(log_p, drawn, strict=True)
    ]
    loss = -sum(a * (w * p).sum() for a, w, p in zip(advantages, expected, log_p, strict=True)) / sum(lengths)
    loss.backward()

    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
        "completion_ids": completions,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": mask.sum(),
        "sampling_per_token_logps": torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True).float(),
    }
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    trainer.model.train()
    trainer.compute_loss(trainer.model, inputs).backward()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), exact.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(
            ours.grad.double(),
            theirs.grad,
            rtol=0,
            atol=3e-4 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    if correction == "none":
        assert not trainer._micro_weights
        return
    is_sequence = correction.startswith("sequence")
    flat = torch.stack([one[0] for one in expected]) if is_sequence else torch.cat(expected)
    summary = weights.summary(*trainer._micro_weights[0].tolist())
    assert summary["weight"] == pytest.approx(float(flat.mean()), rel=1e-3)
    assert summary["weight_size"] == pytest.approx(
        float(flat.sum() ** 2 / (flat**2).sum()) / len(flat), rel=1e-3
    )
    assert summary["weight_cut"] == pytest.approx(float(((flat >= BOUND) | (flat == 0)).double().mean()))
    if not is_sequence and length > 10:
        assert weights.is_equal(summary["weight"])


@pytest.mark.parametrize("correction", CORRECTIONS[:-1])
def test_trl_weighs_vllms_rollouts_by_the_same_formula(
    speller: Path, tmp_path: Path, correction: RolloutCorrection
) -> None:
    section = Rlvr(**{**SECTION, "rollout_correction": correction, "engine": "vllm_colocate"})
    settings = grpo.config(section, 6, 4, 32, tmp_path, 0)
    trainer = trainer_of(speller, tmp_path, rollout_correction=correction)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 25, (24,), generator=generator).tolist()
    drawn = [(torch.randn(n, generator=generator) - 2).tolist() for n in lengths]
    completions = [torch.randint(4, 10, (n,), generator=generator).tolist() for n in lengths]
    trainer.use_vllm = True  # which no CPU has: what follows the drawing is then TRL's, as it would be
    trainer._last_loaded_step = 0
    trainer.vllm_importance_sampling_correction = settings.vllm_importance_sampling_correction
    trainer.vllm_importance_sampling_mode = settings.vllm_importance_sampling_mode
    trainer.vllm_importance_sampling_clip_max = settings.vllm_importance_sampling_clip_max
    trainer.rollout_func = lambda ids, _: {
        "prompt_ids": [[2, 6, 3]] * 24,
        "completion_ids": completions,
        "logprobs": drawn,
    }
    trainer._reward = lambda *args, **kwargs: [float(i % 3 == 0) for i in range(24)]
    trainer.reward_funcs = [trainer._reward]
    made = trainer._generate_and_score_completions([{"prompt": "p", "problem_id": "p"}] * 24)
    mask, log_p = made["completion_mask"], made["old_per_token_logps"]
    expected = weights.weights(log_p, made["sampling_per_token_logps"], mask, correction, BOUND)
    ratio = made["importance_sampling_ratio"]
    kept = mask.bool() if ratio.shape[1] > 1 else torch.ones_like(ratio, dtype=torch.bool)
    torch.testing.assert_close(ratio[kept], expected[kept])
    assert ((expected[kept] >= BOUND) | (expected[kept] == 0)).any()
    before = made["advantages"].clone()
    assert (
        trainer._weighed(trainer.model, made)["advantages"] is made["advantages"]
    )  # TRL multiplies by them itself
    assert torch.equal(made["advantages"], before)
    assert float(trainer._micro_weights[0][0]) == int(kept.sum())


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=9), min_size=1, max_size=5),
    st.sampled_from(CORRECTIONS[:-1]),
)
def test_weights_are_those_of_plain_arithmetic_and_know_nothing_of_padding(
    rows: list[list[float]], correction: RolloutCorrection
) -> None:
    width = max(map(len, rows)) + 2
    drawn = torch.full((len(rows), width), -7.0, dtype=torch.float64)
    trained = torch.full_like(drawn, torch.nan)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        drawn[i, : len(row)], trained[i, : len(row)], mask[i, : len(row)] = -1, torch.tensor(row) - 1, 1
    made = weights.weights(trained, drawn, mask, correction, BOUND).expand(-1, width)
    for i, row in enumerate(rows):
        expected = reference([float(x) - 1 for x in torch.tensor(row)], [-1.0] * len(row), correction)
        near_bound = [abs(x - BOUND) < 1e-5 for x in expected]
        if correction.endswith("mask") and any(near_bound):
            continue
        assert made[i, : len(row)].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_mean_weight_falls_with_the_length_as_the_docstring_says() -> None:
    length, generator = 16_384, torch.Generator().manual_seed(0)
    noise = torch.randn(400, length, generator=generator) * DEVIATION - DEVIATION**2 / 2
    mask = torch.ones(400, length)
    zero = torch.zeros_like(noise)
    means = {
        name: float(weights.weights(noise, zero, mask, name, BOUND).mean())
        for name in ("sequence_mask", "token_truncate")
    }
    s = DEVIATION * math.sqrt(length)
    expected = 0.5 * (1 + math.erf((math.log(BOUND) - s * s / 2) / s / math.sqrt(2)))
    assert expected == pytest.approx(0.20, abs=0.005)
    assert means["sequence_mask"] == pytest.approx(expected, abs=0.08)
    assert means["token_truncate"] == pytest.approx(1, abs=1e-3)
    assert (weights.is_equal(means["sequence_mask"]), weights.is_equal(means["token_truncate"])) == (
        False,
        True,
    )


def test_the_report_calls_the_same_weights_equal_as_the_stage() -> None:
    assert wording.EQUAL_WEIGHTS == weights.EQUAL
    assert "for sft 0.40, so the arms' steps differ" in wording.unequal_steps({"sft": 0.4, "oxa": 1.0})
    assert wording.unequal_steps({"oxa": 1.0}) == ""
    assert wording.unequal_steps({}) == ""
