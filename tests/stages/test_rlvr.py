"""RL: a step against plain arithmetic, and that nothing but the section, problems, checkpoint and seed matters."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spellers import PROBLEMS, SECTION, Reference, Result, fit, make_speller, problem, write_problems

from conftest import Kept
from oxa import hashes, prompts
from oxa.config.prompt import Prompt
from oxa.config.rlvr import Rlvr
from oxa.errors import ConfigError, DataError
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.rl import grpo, order, rollouts
from oxa.stages import rlvr


@pytest.fixture(scope="module")
def speller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speller(tmp_path_factory.mktemp("speller"))


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("tables") / "problems.parquet")


@pytest.fixture(scope="module")
def unbroken(speller: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(speller, problems, tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def dynamic(speller: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(speller, problems, tmp_path_factory.mktemp("dynamic"), sampling="dynamic")


@pytest.fixture(scope="module")
def matched(speller: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fit(speller, problems, tmp_path_factory.mktemp("matched"), temperature="entropy(2.25)")


def assert_same_bits(one: Result, other: Result, steps: int = 4) -> None:
    assert one.metrics == other.metrics
    names = sorted(f"step-{step}" for step in range(1, steps + 1))
    assert sorted(path.name for path in one.output.iterdir()) == names
    assert sorted(path.name for path in other.output.iterdir()) == names
    for name in names:
        for path in (one.output / name).iterdir():
            assert path.read_bytes() == (other.output / name / path.name).read_bytes(), path


def assert_close(one: Result, other: Result, tolerance: float = 1e-5) -> None:
    for before, after in zip(one.log.curve(), other.log.curve(), strict=True):
        assert after == pytest.approx(before, rel=10 * tolerance, abs=tolerance)
    for name, value in one.weights(4).items():
        torch.testing.assert_close(other.weights(4)[name], value, rtol=0, atol=tolerance)


def test_an_entropy_in_place_of_a_temperature_only_chooses_the_number(
    speller: Path, problems: Path, tmp_path: Path, matched: Result
) -> None:
    number = matched.metrics["temperature"]
    assert matched.metrics["token_entropy_before"] == pytest.approx(2.25, abs=0.03)
    assert any(row["reward"] for row in matched.log.rows)  # else Adam would step along rounding errors
    assert matched.log.rows[0]["token_entropy"] == pytest.approx(2.25, abs=0.2)  # of other rollouts
    given = fit(speller, problems, tmp_path, temperature=number)
    assert given.metrics["temperature"] == number
    assert matched.log.curve() == given.log.curve()
    for name, value in given.weights(4).items():
        assert torch.equal(matched.weights(4)[name], value)


def test_an_entropy_out_of_reach_is_refused(speller: Path, problems: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rlvr\.temperature: entropy\(9\) is out of reach"):
        fit(speller, problems, tmp_path, temperature="entropy(9)")


@pytest.mark.parametrize(
    ("loss", "scale_rewards", "advantage"),
    [
        ("grpo", "group", "group"),
        ("dapo", "batch", "group"),
        ("dr_grpo", "none", "group"),
        ("dapo", "group", "nsr"),
        ("dapo", "group", "pass_at_k(3)"),
    ],
)
def test_a_step_equals_plain_arithmetic_on_rollouts_drawn_outside_the_training(
    speller: Path,
    problems: Path,
    tmp_path: Path,
    unbroken: Result,
    loss: str,
    scale_rewards: str,
    advantage: str,
) -> None:
    changed: dict[str, Any] = {"loss": loss, "scale_rewards": scale_rewards, "advantage": advantage}
    changed["top_p"] = 0.9 if loss == "dr_grpo" else 1.0
    done = unbroken if loss == "grpo" else fit(speller, problems, tmp_path, steps=2, **changed)
    for step, policy in ((1, speller), (2, done.output / "step-1")):
        section = Rlvr(**{**SECTION, **changed})
        expected = Reference(policy, speller, section, step, tmp_path).logged()
        row = done.log.rows[step - 1]
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=2e-6)
        assert 0 < row["reward"] < 1
        assert row["grad_norm"] > 0.05
        assert row["kl"] < 1e-9 if step == 1 else row["kl"] > 1e-4
        assert loss == "grpo" or abs(row["loss"]) > 1e-3


@pytest.mark.parametrize("max_resamplings", [1, 3])
def test_a_dynamic_step_trains_on_groups_of_unequal_rewards_in_the_seeded_order(
    speller: Path, problems: Path, tmp_path: Path, dynamic: Result, max_resamplings: int
) -> None:
    changed: dict[str, Any] = {"sampling": "dynamic", "max_resamplings": max_resamplings}
    done = dynamic if max_resamplings == 3 else fit(speller, problems, tmp_path, steps=2, **changed)
    section, num_read = Rlvr(**{**SECTION, **changed}), 0
    passes = islice(order.passes(sorted(row["problem_id"] for row in PROBLEMS), 0), 9)
    stream = [problem_id for one in passes for problem_id in one]
    for step, policy in ((1, speller), (2, done.output / "step-1")):
        seen: list[str] = []
        unequal: list[str] = []
        for _ in range(1 + max_resamplings):
            fresh = 3 - len(unequal)
            while fresh and len(seen) < len(PROBLEMS):
                fresh -= stream[num_read] not in seen
                seen += [stream[num_read]] * (stream[num_read] not in seen)
                num_read += 1
            drawn = Reference(policy, speller, section, step, tmp_path, seen)
            groups = drawn.rewards.view(-1, 8)
            unequal = [name for name, group in zip(seen, groups, strict=True) if 0 < group.sum() < 8]
        equal = [name for name in seen if name not in unequal]
        trained = Reference(policy, speller, section, step, tmp_path, (unequal + equal)[:3]).logged()
        row = done.log.rows[step - 1]
        for name in ("loss", "grad_norm", "kl", "token_entropy"):
            assert row[name] == pytest.approx(trained[name], rel=1e-4, abs=2e-6), name
        assert row["reward"] == pytest.approx(float(drawn.rewards.mean()))  # of all that was drawn
        assert row["replaced"] == len(seen) - 3
    replaced = [row["replaced"] for row in done.log.rows]
    assert done.metrics["replaced"] == sum(replaced) > 0
    assert done.metrics["rollouts"] == 8 * sum(done.metrics["groups"].values())
    assert sum(done.metrics["groups"].values()) == 3 * len(replaced) + sum(replaced)


def test_the_reward_rises(speller: Path, problems: Path, tmp_path: Path) -> None:
    done = fit(
        speller,
        problems,
        tmp_path,
        steps=30,
        learning_rate=3e-2,
        kl_weight=1e-3,
        micro_batch_size=24,
        save_every=30,
    )
    rewards = [row["reward"] for row in done.log.rows]
    assert max(rewards[:3]) < 0.3
    assert min(rewards[-3:]) > 0.6
    assert done.log.rows[-1]["token_entropy"] < 0.5 * done.log.rows[0]["token_entropy"]
    assert [path.name for path in done.output.iterdir()] == ["step-30"]


def test_micro_batches_batches_and_recomputation_do_not_change_the_training(
    speller: Path, problems: Path, tmp_path: Path, unbroken: Result
) -> None:
    other = fit(speller, problems, tmp_path, micro_batch_size=24, batch_size=5, gradient_checkpointing=True)
    assert_close(unbroken, other)


def test_nor_do_they_change_what_a_dynamic_step_draws(
    speller: Path, problems: Path, tmp_path: Path, dynamic: Result
) -> None:
    assert_close(
        dynamic, fit(speller, problems, tmp_path, micro_batch_size=24, batch_size=5, sampling="dynamic")
    )


def test_arms_differ_in_their_checkpoint_alone(
    speller: Path, problems: Path, tmp_path: Path, unbroken: Result
) -> None:  # METHOD §6.4
    assert set(inspect.signature(rlvr.run).parameters) == {
        "section",
        "prompt",
        "verify",
        "model",
        "problems",
        "pass_rates",
        "output",
        "scratch",
        "seed",
        "log",
    }
    shutil.copytree(speller, tmp_path / "another-arm")
    again = fit(tmp_path / "another-arm", problems, tmp_path)
    assert_same_bits(unbroken, again)
    assert again.log.curve() == unbroken.log.curve()
    other = fit(speller, problems, tmp_path / "other", seed=2**62 + 1, steps=1)
    assert other.log.rows[0]["loss"] != unbroken.log.rows[0]["loss"]


def test_metrics_count_what_was_drawn(unbroken: Result) -> None:
    metrics, rows = unbroken.metrics, unbroken.log.rows
    assert [row["learning_rate"] for row in rows] == [1e-2] * 4
    assert (metrics["split"], metrics["problems"], metrics["steps"]) == ("rlvr", 8, 4)
    assert metrics["dropped"] == {"too_long": 0, "no_room": 0}
    assert metrics["rollouts"] == 4 * 3 * 8
    assert metrics["tokens"] == pytest.approx(24 * sum(row["mean_tokens"] for row in rows))
    assert metrics["verdicts"]["correct"] == round(24 * sum(row["reward"] for row in rows)) > 0
    assert sum(metrics["verdicts"].values()) == 4 * 3 * 8
    assert metrics["groups"]["all_wrong"] == round(3 * sum(row["all_wrong"] for row in rows)) > 0
    assert sum(metrics["groups"].values()) == 4 * 3
    assert metrics["final"] == {name: rows[-1][name] for name in metrics["final"]}
    assert set(rows[-1]) - set(metrics["final"]) == {"step", "learning_rate", "tokens_per_second"}


CHILD = """
import json, os, signal, sys
from pathlib import Path

def main():
    import torch
    from oxa.config.prompt import Prompt
    from oxa.config.rlvr import Rlvr
    from oxa.config.verify import Verify
    from oxa.records import schemas, tables
    from oxa.stages import rlvr

    model, problems, folder, section, kill_after = (json.loads(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    folder = Path(folder)
    (folder / "scratch").mkdir(parents=True, exist_ok=True)

    def log(step, **values):
        with open(folder / "log.txt", "a") as file:
            file.write(json.dumps({"step": step, **values}) + chr(10))
        if step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    tables.write(folder / "pass_rates.parquet", [], schemas.PASS_RATES)
    rlvr.run(Rlvr(**section), Prompt(suffix=""), Verify(workers=1), model=Path(model), problems=Path(problems),
             pass_rates=folder / "pass_rates.parquet", output=folder / "output",
             scratch=folder / "scratch", seed=0, log=log)

if __name__ == "__main__":
    main()
"""


def child(
    launcher: list[str], model: Path, problems: Path, folder: Path, kill_after: int, **section: Any
) -> int:
    arguments = [str(model), str(problems), str(folder), {**SECTION, **section}, kill_after]
    script = folder / "child.py"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(CHILD)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(script), *map(json.dumps, arguments)], env=environment, timeout=300
    ).returncode


@pytest.mark.whole
@pytest.mark.parametrize("sampling", ["fixed", "dynamic"])
def test_kill_9_and_run_again_ends_with_the_same_bits(
    speller: Path, problems: Path, tmp_path: Path, unbroken: Result, dynamic: Result, sampling: str
) -> None:
    unbroken = unbroken if sampling == "fixed" else dynamic
    code = child([sys.executable], speller, problems, tmp_path, kill_after=3, sampling=sampling)
    assert code == -signal.SIGKILL
    assert not (tmp_path / "output").exists()
    assert {path.name for path in (tmp_path / "scratch/kept").iterdir()} == {"step-1", "step-2", "step-3"}
    resumed = fit(speller, problems, tmp_path, sampling=sampling)
    assert resumed.log.curve() == unbroken.log.curve()[2:]
    assert_same_bits(unbroken, resumed)
    shutil.rmtree(tmp_path / "output")
    again = fit(speller, problems, tmp_path, sampling=sampling)
    assert again.log.rows == []
    assert_same_bits(unbroken, again)


@pytest.mark.whole
@pytest.mark.parametrize("setting", [{}, {"temperature": "entropy(2.25)"}, {"sampling": "dynamic"}])
def test_two_processes_train_like_one(
    speller: Path, problems: Path, tmp_path: Path, request: pytest.FixtureRequest, setting: dict[str, Any]
) -> None:
    preset = Path(__file__).resolve().parents[2] / "presets/accelerate/multi-gpu.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(preset)]
    launcher += ["--num_processes", "2", "--main_process_port", "0"]
    changed = {"micro_batch_size": 4, **setting}
    of_one = {"temperature": "matched", "sampling": "dynamic"}.get(next(iter(setting), ""), "unbroken")
    assert child(launcher, speller, problems, tmp_path, kill_after=-1, **changed) == 0
    log = Kept()
    log.rows = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert_close(request.getfixturevalue(of_one), Result({}, tmp_path / "output", log))


def test_a_step_is_a_checkpoint_with_the_files_and_the_type_of_the_one_it_came_from(
    problems: Path, tmp_path: Path
) -> None:
    base = make_speller(tmp_path / "half", torch.bfloat16)
    rough: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": True}
    done = fit(base, problems, tmp_path, steps=2, save_every=2, warmup_ratio=0.5, **rough)
    output = done.output / "step-2"
    assert {path.name for path in output.iterdir()} == {path.name for path in base.iterdir()}
    for path in base.iterdir():
        if path.name != "model.safetensors":
            assert path.read_bytes() == (output / path.name).read_bytes(), path.name
    before, after = load_file(base / "model.safetensors"), done.weights(2)
    assert {name: (v.dtype, v.shape) for name, v in before.items()} == {
        name: (v.dtype, v.shape) for name, v in after.items()
    }
    assert not torch.equal(
        before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"]
    )
    assert done.log.rows[0]["token_entropy"] == pytest.approx(2.29, abs=0.02)
    for row in done.log.rows:  # the cache rounds otherwise than training: every weight is near 1, few are 1
        assert row["weight"] == pytest.approx(1, abs=0.02)
        assert 0.99 < row["weight_size"] < 1
        assert row["weight_cut"] == 0
    assert done.metrics["weight"] == pytest.approx(sum(row["weight"] for row in done.log.rows) / 2)
    unweighed = fit(base, problems, tmp_path / "none", steps=1, **rough, rollout_correction="none")
    assert "weight" not in unweighed.log.rows[0] | unweighed.metrics
    assert [row["learning_rate"] for row in done.log.rows] == [0.0, 1e-2]


def test_every_step_takes_different_problems_and_every_pass_all_that_fill_a_step() -> None:
    ids = [f"p{i}" for i in range(10)]
    steps = list(islice(order.steps(ids, 3, seed=0), 9))
    assert all(len(set(step)) == 3 for step in steps)
    for start in (0, 3, 6):
        assert len({problem for step in steps[start : start + 3] for problem in step}) == 9
    assert steps[:3] != steps[3:6]
    assert steps == list(islice(order.steps(ids[::-1], 3, seed=0), 9))
    assert steps != list(islice(order.steps(ids, 3, seed=1), 9))


def chosen(
    model: Path,
    rows: list[dict[str, Any]],
    folder: Path,
    rates: dict[str, int] | None = None,
    **section: Any,
) -> rlvr.Chosen:
    problems, pass_rates = folder / "problems.parquet", folder / "pass_rates.parquet"
    tables.write(problems, rows, schemas.PROBLEMS)
    tables.write(
        pass_rates,
        [
            {"problem_id": name, "split": "rlvr", "model": "m"}
            | {"num_samples": 4, "num_correct": num, "num_truncated": 0}
            for name, num in (rates or {}).items()
        ],
        schemas.PASS_RATES,
    )
    made, tokenizer = Rlvr(**{**SECTION, **section}), loading.load_tokenizer(model)
    return rlvr._choose(made, Prompt(suffix="?"), problems, pass_rates, tokenizer, 32)


def test_problems_out_of_the_range_of_pass_rates_are_dropped_and_counted(
    speller: Path, tmp_path: Path
) -> None:
    names = sorted(row["problem_id"] for row in PROBLEMS)
    rates = dict(zip(names, (0, 1, 2, 3, 4, 4, 3), strict=False))  # of 4; the last one is not measured
    found = chosen(speller, PROBLEMS, tmp_path, rates, pass_rate=[0.25, 0.75])
    assert found.dropped == {"too_long": 0, "no_room": 0, "too_hard": 1, "too_easy": 2, "unmeasured": 1}
    assert list(found.problems) == [names[i] for i in (1, 2, 3, 6)]
    few = chosen(speller, PROBLEMS, tmp_path, rates, pass_rate=[0.25, 0.75], num_problems=3)
    assert list(few.problems) == [names[i] for i in (1, 2, 3)]
    with pytest.raises(
        DataError, match=r"no problem for RL has a pass rate within rlvr.pass_rate \[0.9, 0.95\]"
    ):
        chosen(speller, PROBLEMS, tmp_path, rates, pass_rate=[0.9, 0.95])
    with pytest.raises(ValueError, match="its first number is above its second"):
        Rlvr(**{**SECTION, "pass_rate": [0.9, 0.1]})


def test_problems_are_chosen_by_hash_and_prompts_that_do_not_fit_are_counted(
    speller: Path, tmp_path: Path
) -> None:
    rows = [*PROBLEMS, problem("0" * 20), problem("1" * 40), problem("1" * 41), problem("22", "train")]
    found = chosen(speller, rows, tmp_path, max_prompt_tokens=20)
    assert found.split == "rlvr"
    assert found.dropped == {"too_long": 3, "no_room": 0}
    assert set(found.problems) == {row["problem_id"] for row in PROBLEMS}
    assert chosen(speller, rows, tmp_path).dropped == {"too_long": 0, "no_room": 2}
    few = chosen(speller, rows[::-1], tmp_path, max_prompt_tokens=20, num_problems=5)
    assert list(few.problems) == sorted(found.problems)[:5]
    of_training = chosen(speller, [problem(str(i), "train") for i in range(4)], tmp_path)
    assert (of_training.split, len(of_training.problems)) == ("train", 4)
    control = [*PROBLEMS, problem("<|user|>1"), problem("2<|end|>")]
    assert chosen(speller, control, tmp_path).num_control == 2
    with_vllm = chosen(speller, control, tmp_path, engine="vllm_colocate")
    assert (with_vllm.dropped["control_token"], len(with_vllm.problems)) == (2, len(PROBLEMS))
    one = found.problems[hashes.problem_id("021")]
    assert one.user == "021?"
    assert one.prompt == [2, 6, 8, 7, 4, 3]


def test_vllm_gets_the_same_tokens_and_its_own_settings(
    speller: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for model in (speller, checkpoint):
        tokenizer = loading.load_tokenizer(model)
        problems = {
            f"p{i}": rollouts.Problem(text, prompts.prompt_ids(tokenizer, text), ["1"])
            for i, text in enumerate(["021?", "  3\n", "1 "])
        }
        section = Rlvr(**{**SECTION, "engine": "vllm_colocate"})
        rows = rlvr._dataset(section, problems, [["p2", "p0"], ["p1", "p2"]])
        assert rows["problem_id"] == ["p2", "p0", "p1", "p2"]
        ids = tokenizer.apply_chat_template(  # as TRL's trainer calls it
            conversation=list(rows["prompt"]), add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        assert ids == [problems[name].prompt for name in rows["problem_id"]]
    settings = grpo.config(section, 6, 4, 4096, tmp_path, 0)
    assert (settings.use_vllm, settings.vllm_mode) == (True, "colocate")
    assert settings.vllm_max_model_length == 1536 + 3
    assert settings.vllm_gpu_memory_utilization == 0.3
    assert settings.vllm_importance_sampling_mode == "token_truncate"
    assert settings.vllm_importance_sampling_clip_max == 3.0
    assert settings.vllm_importance_sampling_correction is True
    unweighed = section.model_copy(update={"rollout_correction": "none"})
    assert grpo.config(unweighed, 6, 4, 4096, tmp_path, 0).vllm_importance_sampling_correction is False
    server = Rlvr(**{**SECTION, "engine": "vllm_server", "vllm": {"url": "http://gpu:1"}})
    settings = grpo.config(server, 6, 4, 512, tmp_path, 0)
    assert (settings.vllm_mode, settings.vllm_server_base_url) == ("server", "http://gpu:1")
    assert settings.vllm_max_model_length == 512
    assert grpo.config(Rlvr(**SECTION), 6, 4, 512, tmp_path, 0).use_vllm is False


def test_what_cannot_be_trained_is_refused_in_a_sentence(
    speller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(rows: list[dict[str, Any]], **section: Any) -> str:
        with pytest.raises((ConfigError, DataError)) as caught:
            chosen(speller, rows, tmp_path, **section)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no problem of split 'rlvr' or 'train'" in refused([problem("1", "world")])
    assert "all 8 prompts for RL are longer than rlvr.max_prompt_tokens 2" in refused(
        PROBLEMS, max_prompt_tokens=2
    )
    assert "takes 9 different problems, and there are 8" in refused(PROBLEMS, num_prompts=9)
    assert "there are 2; take fewer" in refused(PROBLEMS, num_problems=2)
    with pytest.raises(ConfigError, match="run one of 1, 2, 3, 4, 6, 8, 12, 24 processes"):
        rlvr._cut(Rlvr(**SECTION), 5)


def test_a_policy_that_is_no_number_ends_the_training(speller: Path, problems: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^rlvr\.learning_rate: the \w+ is nan at step \d; take a lower one"
    ):
        fit(speller, problems, tmp_path, learning_rate=1e30)
    assert not (tmp_path / "output").exists()
