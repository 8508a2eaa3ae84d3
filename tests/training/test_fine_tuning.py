"""Training: the step's objective against plain arithmetic, and that nothing but the section, data and seed matters."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import training_sets
from fine_tuned import Result, fine_tune
from training_rows import ROWS, SHARED, WITH_UL, row
from transformers import TrainerCallback

from conftest import Kept
from oxa import prompts
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.errors import ConfigError, DataError
from oxa.model import loading, log_probs
from oxa.training import fine_tuning, losses


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    for name, rows in (("full", ROWS), ("ce", ROWS[:12])):
        training_sets.write(folder / name, rows)
    return {name: folder / name for name in ("full", "ce")}


def fit(
    model: Path,
    data: Path,
    folder: Path,
    *,
    seed: int = 0,
    log: Kept | None = None,
    arm: Any = None,
    **shared: Any,
) -> Result:
    section = FineTuning(**{**SHARED, **shared})
    own = TrainArm(**(WITH_UL if arm is None else arm))
    return fine_tune(section, own, model, data, folder, seed=seed, log=log)


def assert_same_bits(one: Result, other: Result) -> None:
    assert one.metrics == other.metrics
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


def assert_close(one: Result, other: Result, tolerance: float = 1e-6) -> None:
    for before, after in zip(one.log.curve(), other.log.curve(), strict=True):
        assert after == pytest.approx(before, rel=10 * tolerance, abs=tolerance)
    for name, value in one.weights.items():
        torch.testing.assert_close(other.weights[name], value, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(checkpoint, tables["full"], tmp_path_factory.mktemp("unbroken"))


def reference(model: Path, *, by_token_statistics: bool, ul_tokens: int | None = None) -> dict[str, float]:
    """What the first step over all rows should log, from plain logits in float32 or log_probs.token_statistics."""
    network, tokenizer = loading.load(model)
    rows = []
    for item in ROWS:
        context = prompts.prompt_ids(tokenizer, item["prompt"])
        ids = torch.tensor([context + prompts.response_ids(tokenizer, item["completion"], end=True)])
        scored = torch.zeros_like(ids, dtype=torch.bool)
        scored[:, len(context) :] = True
        if by_token_statistics:
            log_p, entropy, _ = log_probs.token_statistics(
                network, ids, torch.ones_like(ids), scored, chunk=7
            )
        else:
            with torch.no_grad():
                everywhere = network(ids).logits.log_softmax(-1)[0, len(context) - 1 : -1]
            log_p = everywhere.gather(-1, ids[0, len(context) :, None])[:, 0]
            entropy = -(everywhere.exp() * everywhere).sum(-1)
        rows.append((item["objective"], log_p.double(), entropy.double()))
    of = {name: [(p, h) for objective, p, h in rows if objective == name] for name in ("ce", "ul")}
    pushed = [(p[h.argsort()[:ul_tokens]], len(p)) for p, h in of["ul"]]
    every_ul = torch.cat([p for p, _ in of["ul"]])
    return {
        "ce_loss": sum(-p.mean().item() for p, _ in of["ce"]) / 12,
        "dft": sum(-(p.exp() * p).mean().item() for p, _ in of["ce"]) / 12,
        "ul_loss": sum(-torch.log1p(-p.exp()).sum().item() / length for p, length in pushed) / 8,
        "ce_entropy": torch.cat([h for _, h in of["ce"]]).mean().item(),
        "ul_entropy": torch.cat([h for _, h in of["ul"]]).mean().item(),
        "ul_probability": every_ul.exp().mean().item(),
    }


@pytest.mark.parametrize("by_token_statistics", [False, True])
def test_the_first_steps_metrics_equal_a_plain_reference(  # METHOD §6.2, §6.3
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, by_token_statistics: bool
) -> None:
    arm = {"num_ul": 8, "ul_weight": 0.5}
    done = fit(checkpoint, tables["full"], tmp_path, arm=arm, num_ce=12, micro_batch_size=5, epochs=1.0)
    (first,) = done.log.rows
    expected = reference(checkpoint, by_token_statistics=by_token_statistics)
    expected.pop("dft")
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=2e-6)
    assert first["loss"] == pytest.approx(first["ce_loss"] + 0.5 * first["ul_loss"], rel=1e-6)
    assert first["ce_entropy"] > 0.1
    assert first["ul_entropy"] > 0.1
    assert first["epoch"] == 1.0


def test_an_arm_may_push_the_surest_tokens_alone_and_weigh_ce_by_probability(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    arm = {"num_ul": 8, "ul_weight": 0.5, "ul_tokens": 3, "ce_loss": "dft"}
    done = fit(checkpoint, tables["full"], tmp_path, arm=arm, num_ce=12, micro_batch_size=5, epochs=1.0)
    (first,) = done.log.rows
    expected = reference(checkpoint, by_token_statistics=False, ul_tokens=3)
    assert first["loss"] == pytest.approx(expected.pop("dft") + 0.5 * expected["ul_loss"], rel=2e-6)
    assert {name: first[name] for name in expected} == pytest.approx(expected, rel=2e-6)


def first_gradient(
    model: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **arm: Any
) -> dict[str, torch.Tensor]:
    """Of one step over all rows."""
    found: dict[str, torch.Tensor] = {}

    class Watcher(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **at_work: Any) -> None:
            found.update((name, value.grad.clone()) for name, value in at_work["model"].named_parameters())

    class Watched(fine_tuning.OXATrainer):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.add_callback(Watcher())

    monkeypatch.setattr(fine_tuning, "OXATrainer", Watched)
    fit(model, data, folder, arm=arm, num_ce=12, micro_batch_size=5, epochs=1.0, max_grad_norm=1e9)
    return found


@pytest.mark.parametrize("ce_loss", ["nll", "dft", "eaft", "psft", "gem"])
@pytest.mark.parametrize("num_ul", [0, 8])
def test_gradients_equal_those_of_the_published_formula_in_float64(
    checkpoint: Path,
    tables: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ce_loss: str,
    num_ul: int,
) -> None:
    data = tables["full" if num_ul else "ce"]
    arm = {"ce_loss": ce_loss, "num_ul": num_ul, "ul_weight": 0.5}
    found = first_gradient(checkpoint, data, tmp_path, monkeypatch, **arm)
    network, tokenizer = loading.load(checkpoint)
    network.double()
    total = torch.zeros((), dtype=torch.float64)
    for item in ROWS:
        context = prompts.prompt_ids(tokenizer, item["prompt"])
        ids = torch.tensor([context + prompts.response_ids(tokenizer, item["completion"], end=True)])
        logits = network(ids).logits[0, len(context) - 1 : -1]
        log_p = logits.log_softmax(-1)
        own = log_p.gather(1, ids[0, len(context) :, None])[:, 0]
        if item["objective"] == "ul":
            total = total - (num_ul > 0) * 0.5 / 8 * torch.log1p(-own.exp()).mean()
            continue
        top = logits.detach().topk(20).values.log_softmax(-1)
        q = (logits.detach() / 0.7).softmax(-1)
        per_token = {
            "nll": -own,
            "dft": -own.exp().detach() * own,
            "eaft": (top.exp() * top).sum(-1) / math.log(20) * own,
            "psft": -(own - own.detach()).exp(),
            "gem": (q * (log_p - own[:, None])).sum(-1),
        }[ce_loss]
        total = total + per_token.mean() / 12
    total.backward()
    assert len(found) > 10
    for name, value in network.named_parameters():
        torch.testing.assert_close(found[name].double(), value.grad, rtol=2e-4, atol=2e-6)


def begins(done: Result) -> list[int]:
    """The steps at which psft's ratio is 1, since a round begins."""
    return [step for step, row in enumerate(done.log.rows) if abs(row["loss"] + 1) < 1e-6]


def test_psft_holds_on_to_what_a_round_began_with_and_goes_on_with_the_same_bits(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    """Steps of 3 rows, so that 8 of them see every row twice, and checkpoints after every third."""
    settings = {"arm": {"ce_loss": "psft"}, "num_ce": 3, "epochs": 4.0}
    settings |= {"learning_rate": 0.1, "warmup_ratio": 0.0}
    long = fit(checkpoint, tables["ce"], tmp_path / "long", checkpoint_every=100, **settings)
    assert begins(long) == [0, 8]
    lowest = min(row["loss"] for row in long.log.rows)
    assert -1.28 <= lowest < -1.05, "a ratio grows, as far as it may"
    unbroken = fit(checkpoint, tables["ce"], tmp_path / "unbroken", checkpoint_every=3, **settings)
    assert begins(unbroken) == [0, 3, 6, 8, 9, 12, 15]
    with pytest.raises(KeyboardInterrupt):
        fit(
            checkpoint, tables["ce"], tmp_path / "run", checkpoint_every=3, log=Kept(stop_after=5), **settings
        )
    resumed = fit(checkpoint, tables["ce"], tmp_path / "run", checkpoint_every=3, **settings)
    assert resumed.log.curve() == unbroken.log.curve()[3:]
    assert_same_bits(unbroken, resumed)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_losses_that_read_the_head_are_refused_where_it_is_spread(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ConfigError, match="ce_loss gem reads the model's head by itself, which"):
        fit(checkpoint, tables["ce"], tmp_path, arm={"ce_loss": "gem"})


@pytest.mark.parametrize(
    "own",
    [
        *({"ce_loss": name} for name in ("eaft", "psft", "gem")),
        {},
        pytest.param({"ul_tokens": 3, "ce_loss": "dft"}, marks=pytest.mark.whole),
    ],
)
@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_micro_batches_do_not_change_the_training(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, normalization: str, own: dict[str, Any]
) -> None:
    shape = {
        "arm": {"num_ul": 8, "ul_weight": 0.5} | own,
        "num_ce": 8,
        "epochs": 4.0,
        "normalization": normalization,
    }
    whole = fit(checkpoint, tables["full"], tmp_path / "16", micro_batch_size=16, **shape)
    assert len(whole.log.rows) == 6
    for size in (4, 1):
        assert_close(
            whole, fit(checkpoint, tables["full"], tmp_path / str(size), micro_batch_size=size, **shape)
        )


def test_the_two_normalizations_differ(checkpoint: Path, tables: dict[str, Path], tmp_path: Path) -> None:
    one = fit(checkpoint, tables["full"], tmp_path / "s", epochs=0.3)
    other = fit(checkpoint, tables["full"], tmp_path / "t", epochs=0.3, normalization="token")
    assert one.log.rows[0]["ce_loss"] != pytest.approx(other.log.rows[0]["ce_loss"], rel=1e-4)
    assert one.log.rows[0]["ce_entropy"] == pytest.approx(other.log.rows[0]["ce_entropy"], rel=1e-12)


def test_another_ce_loss_is_one_function_and_its_name(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(losses.CE_LOSSES) == set(get_args(TrainArm.model_fields["ce_loss"].annotation))
    monkeypatch.setitem(losses.CE_LOSSES, "doubled", lambda log_probs: -2 * log_probs)
    log = Kept()
    fine_tuning.run(
        FineTuning(**SHARED | {"epochs": 0.3}),
        TrainArm().model_copy(update={"ce_loss": "doubled"}),
        model=checkpoint,
        data=tables["ce"],
        output=tmp_path / "model",
        scratch=tmp_path,
        seed=0,
        log=log,
    )
    assert [row["loss"] for row in log.rows] == pytest.approx([2 * row["ce_loss"] for row in log.rows])


def test_unlikelihood_of_weight_zero_is_ce_alone(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    without = fit(checkpoint, tables["ce"], tmp_path / "without", arm={})
    at_zero = fit(checkpoint, tables["full"], tmp_path / "zero", arm={"num_ul": 4, "ul_weight": 0.0})
    names = ("step", "loss", "ce_loss", "ce_entropy", "grad_norm")
    for one, other in zip(without.log.rows, at_zero.log.rows, strict=True):
        assert {n: other[n] for n in names} == pytest.approx({n: one[n] for n in names}, rel=1e-5)
        assert one["loss"] == one["ce_loss"]
        assert other["ul_loss"] > 0
        assert not [name for name in one if name.startswith("ul_")]
    for name, value in without.weights.items():
        torch.testing.assert_close(at_zero.weights[name], value, rtol=0, atol=1e-6)


def test_unlikelihood_lowers_the_probability_of_its_tokens(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    ends = []
    for weight in (0.0, 20.0):
        done = fit(
            checkpoint,
            tables["full"],
            tmp_path / str(weight),
            arm={"num_ul": 4, "ul_weight": weight},
            epochs=6.0,
        )
        ends.append(done.log.rows[-1])
    assert ends[1]["ul_probability"] < 0.7 * ends[0]["ul_probability"]
    assert ends[1]["ul_loss"] < ends[0]["ul_loss"]
    assert ends[0]["ce_loss"] < 4.5  # it learns: ln 261 = 5.6 at the start


@pytest.mark.parametrize(("num_ce", "num_ul", "micro"), [(4, 4, 2), (3, 1, 4), (5, 3, 1), (6, 0, 3)])
def test_every_step_of_the_loader_holds_the_exact_mix(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, num_ce: int, num_ul: int, micro: int
) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(fine_tuning.OXATrainer):
        def get_batch_samples(self, *args: Any) -> Any:
            micro_batches, totals = super().get_batch_samples(*args)
            suppressed = torch.cat([batch["suppressed"] for batch in micro_batches])
            assert len(micro_batches) == (num_ce + num_ul) // micro
            seen.append((int((~suppressed).sum()), int(suppressed.sum())))
            return micro_batches, totals

    original, fine_tuning.OXATrainer = fine_tuning.OXATrainer, Watching  # type: ignore[misc]
    try:
        fit(
            checkpoint,
            tables["full" if num_ul else "ce"],
            tmp_path,
            arm={"num_ul": num_ul, "ul_weight": 0.1},
            num_ce=num_ce,
            micro_batch_size=micro,
        )
    finally:
        fine_tuning.OXATrainer = original  # type: ignore[misc]
    assert seen == [(num_ce, num_ul)] * round(2 * 12 / num_ce)


def test_two_runs_give_the_same_bits_and_another_seed_does_not(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, unbroken: Result
) -> None:
    again = fit(checkpoint, tables["full"], tmp_path / "again")
    assert_same_bits(unbroken, again)
    assert again.log.curve() == unbroken.log.curve()
    other = fit(checkpoint, tables["full"], tmp_path / "other", seed=2**62 + 1)
    assert other.metrics["final"] != unbroken.metrics["final"]


def test_metrics_count_what_was_trained_on(unbroken: Result, checkpoint: Path) -> None:
    tokenizer = loading.load_tokenizer(checkpoint)
    responses = {
        name: [
            len(prompts.response_ids(tokenizer, r["completion"], end=True))
            for r in ROWS
            if r["objective"] == name
        ]
        for name in ("ce", "ul")
    }
    assert unbroken.metrics["steps"] == 6
    assert unbroken.metrics["ce_rows"] == 12
    assert unbroken.metrics["ul_rows"] == 8
    tokens = unbroken.metrics["tokens"]
    assert tokens["ce"] == 2 * sum(responses["ce"])
    assert tokens["ul"] == 3 * sum(responses["ul"])
    assert tokens["all"] > tokens["ce"] + tokens["ul"]
    last = unbroken.log.rows[-1]
    assert unbroken.metrics["final"] == {name: last[name] for name in unbroken.metrics["final"]}
    assert set(unbroken.metrics["final"]) >= {
        "ce_loss",
        "ul_loss",
        "ce_entropy",
        "ul_entropy",
        "ul_probability",
    }


def test_the_schedule_warms_up_and_falls_to_zero(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    done = fit(checkpoint, tables["ce"], tmp_path, arm={}, epochs=4.0, warmup_ratio=0.25)
    rates = [row["learning_rate"] for row in done.log.rows]
    assert rates[:4] == pytest.approx([0.0, 1e-3, 2e-3, 3e-3])
    assert rates[3:] == pytest.approx([1.5e-3 * (1 + math.cos(math.pi * i / 9)) for i in range(9)])


def test_log_every_gives_means_over_the_steps_between(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, unbroken: Result
) -> None:
    done = fit(checkpoint, tables["full"], tmp_path, log_every=4)
    assert [row["step"] for row in done.log.rows] == [4, 6]
    each = [row["ce_loss"] for row in unbroken.log.rows]
    assert [row["ce_loss"] for row in done.log.rows] == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2])
    assert_same_bits(unbroken, done)


@pytest.fixture(scope="module")
def stopped(checkpoint: Path, tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended after its fifth of six steps, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, tables["full"], folder, log=Kept(stop_after=5))
    assert sorted(path.name for path in (folder / "scratch/checkpoints").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    return folder


def test_a_stopped_run_goes_on_from_its_checkpoint_with_the_same_bits(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, stopped: Path, unbroken: Result
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    resumed = fit(checkpoint, tables["full"], tmp_path / "run")
    assert_same_bits(unbroken, resumed)
    assert resumed.log.curve() == unbroken.log.curve()[4:]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage", ["model.safetensors", "optimizer.pt", "trainer_state.json", "only weights"]
)
def test_a_half_written_checkpoint_is_passed_over(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, stopped: Path, unbroken: Result, damage: str
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    last = tmp_path / "run/scratch/checkpoints/checkpoint-4"
    if damage == "only weights":
        for path in last.iterdir():
            if path.name != "model.safetensors":
                path.unlink()
    else:
        cut(last / damage)
    resumed = fit(checkpoint, tables["full"], tmp_path / "run")
    assert_same_bits(unbroken, resumed)
    assert [row["step"] for row in resumed.log.rows] == [3, 4, 5, 6]


def test_a_run_killed_between_its_last_step_and_its_output_does_not_train_again(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    first = fit(checkpoint, tables["full"], tmp_path)
    shutil.rmtree(tmp_path / "model")
    again = fit(checkpoint, tables["full"], tmp_path)
    assert_same_bits(first, again)
    assert again.log.rows == []


CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from oxa.config.fine_tuning import TrainArm, FineTuning
from oxa.training import fine_tuning

model, data, folder, shared, arm, kill_after = (json.loads(argument) for argument in sys.argv[1:])
torch.set_num_threads(1)
folder = Path(folder)
(folder / "scratch").mkdir(parents=True, exist_ok=True)

def log(step, **values):
    with open(folder / "log.txt", "a") as file:
        file.write(json.dumps({"step": step, **values}) + chr(10))
    if step == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

fine_tuning.run(FineTuning(**shared), TrainArm(**arm), model=Path(model), data=Path(data), output=folder / "model",
          scratch=folder / "scratch", seed=0, log=log)
"""


def child(launcher: list[str], model: Path, data: Path, folder: Path, kill_after: int, **shared: Any) -> int:
    arguments = [str(model), str(data), str(folder), {**SHARED, **shared}, WITH_UL, kill_after]
    script = folder / "child.py"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(CHILD)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(script), *map(json.dumps, arguments)], env=environment, timeout=300
    ).returncode


def test_kill_9_and_run_again_ends_with_the_same_bits(  # METHOD §6.5
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, unbroken: Result
) -> None:
    assert child([sys.executable], checkpoint, tables["full"], tmp_path, kill_after=3) == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    resumed = fit(checkpoint, tables["full"], tmp_path)
    assert [row["step"] for row in resumed.log.rows] == [3, 4, 5, 6]
    assert_same_bits(unbroken, resumed)


@pytest.mark.whole
@pytest.mark.parametrize("adapter", [None, {"rank": 3}])
def test_two_processes_killed_and_started_again_train_like_one(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, adapter: dict[str, int] | None
) -> None:
    shared = {"micro_batch_size": 2, "normalization": "token", "adapter": adapter}
    alone = fit(checkpoint, tables["full"], tmp_path / "one", **shared)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert child(launcher, checkpoint, tables["full"], tmp_path / "two", kill_after=3, **shared) != 0
    assert child(launcher, checkpoint, tables["full"], tmp_path / "two", kill_after=-1, **shared) == 0
    rows = [json.loads(line) for line in (tmp_path / "two/log.txt").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4, 5, 6]
    log = Kept()
    log.rows = list({row["step"]: row for row in rows}.values())
    assert_close(alone, Result({}, tmp_path / "two/model", log))


def test_the_output_is_a_checkpoint_with_the_bases_settings_and_nothing_else(
    unbroken: Result, checkpoint: Path
) -> None:
    names = {path.name for path in unbroken.output.iterdir()}
    assert names == {path.name for path in checkpoint.iterdir()}
    for name in ("config.json", "generation_config.json", "chat_template.jinja"):
        assert (unbroken.output / name).read_bytes() == (checkpoint / name).read_bytes(), name
    network, tokenizer = loading.load(unbroken.output)
    base, base_tokenizer = loading.load(checkpoint)
    assert tokenizer.get_vocab() == base_tokenizer.get_vocab()
    assert prompts.prompt_ids(tokenizer, "1 + 1?") == prompts.prompt_ids(base_tokenizer, "1 + 1?")
    assert not torch.equal(network.get_output_embeddings().weight, base.get_output_embeddings().weight)


def test_bfloat16_and_gradient_checkpointing_train(
    checkpoint: Path, tables: dict[str, Path], tmp_path: Path, unbroken: Result
) -> None:
    recomputed = fit(checkpoint, tables["full"], tmp_path / "gc", gradient_checkpointing=True)
    assert_close(unbroken, recomputed)
    rough = fit(checkpoint, tables["full"], tmp_path / "bf16", dtype="bfloat16")
    assert rough.log.rows[-1]["ce_loss"] == pytest.approx(unbroken.log.rows[-1]["ce_loss"], rel=0.02)
    assert {value.dtype for value in rough.weights.values()} == {torch.float32}


def test_only_what_the_model_ended_itself_is_trained_with_an_end_token(
    checkpoint: Path, tmp_path: Path
) -> None:
    rows = [one | {"finish_reason": "length"} if one["objective"] == "ul" else one for one in ROWS]
    rows[0] = rows[0] | {"completion": "1<|end|>1"}
    whole, cut = (
        fine_tuning._tokenize(training_sets.write(tmp_path / name, given), True, tokenizer, 1000)
        for tokenizer in [loading.load_tokenizer(checkpoint)]
        for name, given in (("whole", ROWS), ("cut", rows))
    )
    end = loading.load_tokenizer(checkpoint).eos_token_id
    assert (whole.num_control, cut.num_control) == (0, 1)
    assert cut.dataset[0]["input_ids"].count(end) == 1
    for before, after in list(zip(whole.dataset, cut.dataset, strict=True))[1:]:
        assert before["input_ids"][-1] == end
        assert after["input_ids"] == (
            before["input_ids"][:-1] if after["suppressed"] else before["input_ids"]
        )
    assert (whole.num_scored - cut.num_scored).tolist()[1:] == [0] * 11 + [1] * 8


def refused(model: Path, rows: list[dict[str, Any]], folder: Path, arm: Any = None, **shared: Any) -> str:
    data = training_sets.write(folder / "t", rows)
    with pytest.raises((ConfigError, DataError)) as caught:
        fit(model, data, folder, arm=arm, **shared)
    assert not (folder / "model").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_training_set_that_cannot_serve_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    long_ul = [*ROWS[:12], row(0, "ul", "x" * 900)]
    assert "holds no row with objective ce" in refused(checkpoint, ROWS[12:], tmp_path)
    assert "holds no row with objective ce" in refused(checkpoint, [], tmp_path)
    assert "holds no row with objective ul" in refused(checkpoint, ROWS[:12], tmp_path)
    assert "1 of 1 ul rows are longer than the 300 tokens" in refused(
        checkpoint, long_ul, tmp_path, max_length=300
    )
    long_ce = [*ROWS, row(90, "ce", "long " * 60), row(91, "ce", "long " * 300)]
    assert "2 of 14 ce rows are longer than the 200" in refused(checkpoint, long_ce, tmp_path, max_length=200)
    assert "1 of 14 ce rows are longer than the 1024" in refused(checkpoint, long_ce, tmp_path)  # its context
    assert "found ['kl']" in refused(checkpoint, [*ROWS, row(0, "kl", "x")], tmp_path)


def test_a_step_that_cannot_be_cut_evenly_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    sentence = refused(checkpoint, ROWS, tmp_path)
    assert "4 CE + 4 UL = 8 sequences" in sentence
    assert "run one of 1, 2, 4, 8 processes" in sentence


def test_a_loss_that_is_no_number_ends_the_training(checkpoint: Path, tmp_path: Path) -> None:
    sentence = refused(checkpoint, ROWS, tmp_path, learning_rate=1e30)
    assert sentence.startswith("train.shared.learning_rate: the loss is")
