"""Reinforcement learning from verifiable rewards: GRPO from an arm's checkpoint, with TRL's GRPOTrainer.

A rollout is worth 1 when what stands behind its last </think> verifies, else 0 (METHOD §5). The stage is told nothing
of the arm: arms differ in the checkpoint alone.

With `sampling: dynamic` (Yu et al. 2025, DAPO, arXiv 2503.14476) a step goes on drawing until num_prompts groups have
unequal rewards, or max_resamplings is reached: groups that are all right or all wrong give way to the next problems of
the seeded order, and only what is still missing then is filled with such groups. Which problems an arm trains on then
depends on what it can do; metrics and log are of all that was drawn, the replaced groups included.

What one run does depends on the section, the problems, the checkpoint and the seed, and not on micro-batches,
processes or batches of generation. The order of problems is fixed beforehand, by hashes of (seed, pass,
problem_id), and token t of a rollout is drawn at uniform(seed, response_id, t), where the id names the problem, the
step and the place in the group (sampler.py): all arms are trained on the same problems with the same random numbers.

The engine `torch` generates with the transformers model that is being trained, through sampler.py. `vllm_colocate`
and `vllm_server` are TRL's own ways to vLLM on CUDA, which draws with random numbers of its own. Tests hold their
settings and their prompts' tokens; nothing has been generated with them yet.

The work can be killed at any time. Checkpoints lie in scratch, a rerun goes on from the last whole one, and on a CPU
with the engine `torch` ends with the same bits as an unbroken run.

Left out on purpose: no entropy bonus, no penalty for length, no format reward, no several updates a batch of rollouts,
no dropout, no change of the reference model.

With an adapter (oxa/training/adapters.py) the rollouts come from the model as it trains, frozen weights and adapter
apart: a sum taken for them would have to be taken back, and what is left of that, step after step, changes the base.
TRL does so for vLLM, in float32; the checkpoints are merged into the base read anew, whatever is left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from oxa import prompts
from oxa.config.prompt import Prompt
from oxa.config.rlvr import Rlvr, entropy_of
from oxa.config.verify import Verify
from oxa.errors import ConfigError, DataError
from oxa.generation import attention
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.model.trainer import on_one_device
from oxa.records import schemas, tables
from oxa.rl import grpo, temperature
from oxa.rl.grpo import RLVRTrainer
from oxa.rl.order import steps
from oxa.rl.rollouts import Problem, Rollouts
from oxa.runtime import journal
from oxa.training import adapters, batches, resume


def run(
    section: Rlvr,
    prompt: Prompt,
    verify: Verify,
    *,
    model: Path,
    problems: Path,
    pass_rates: Path,
    output: Path,
    scratch: Path,
    seed: int,
    log: journal.Log,
) -> dict[str, Any]:
    """Trains `model`; the folder `output` gets a checkpoint folder `step-N` every save_every steps and at the end.

    Logs, each step: reward (mean), token_entropy and kl (k3 to `model`; only where it has a weight), nats at the
    sampling temperature, mean_tokens and truncated (share) of the rollouts, all_right and all_wrong (shares of the
    groups, which teach nothing), replaced (groups over the step's; with dynamic sampling alone), unsure, unparsable and
    timeout (shares of the rollouts, worth 0 like wrong ones), weight, weight_size and weight_cut where rollouts are
    weighed (oxa/rl/weights.py: mean, effective share, share cut), grad_norm, loss, learning_rate and tokens_per_second
    (generated tokens over the whole step). Returns counts, the
    temperature and the means over the last tenth of the steps.

    Under torchrun or accelerate every process calls this; the first alone logs and writes.
    """
    disable_progress_bar()  # transformers' own, one for every file of weights
    adapters.check(section.adapter)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    micro_batch_size, accumulation = _cut(section, num_processes)
    network, tokenizer = adapters.load(model, section.adapter, section.dtype)
    attention.share_keys_among_query_heads(network)
    for module in network.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # a number, which TRL's disable_dropout does not reach
    context = loading.context_length(network.config)
    lora = adapters.settings(section.adapter, network)
    chosen = _choose(section, prompt, problems, pass_rates, tokenizer, context)
    order = list(islice(steps(sorted(chosen.problems), section.num_prompts, seed), section.steps))
    ends = loading.end_ids(network, tokenizer)  # before the trainer edits the model's settings
    checkpoints, for_output = resume.folder(scratch), scratch / "kept"
    settings = on_one_device(grpo.config(section, micro_batch_size, accumulation, context, checkpoints, seed))
    assert settings.world_size == num_processes
    with Grader(_share_of(verify)) as grader:
        rollouts = Rollouts(section, chosen.problems, tokenizer, ends, context, grader, seed)
        explored = _set_temperature(section, settings, rollouts, network, order[0])
        if lora and section.dtype == "bfloat16" and section.engine == "torch":
            adapters.round_frozen(network)  # for vLLM, TRL adds the adapter to them and takes it away
        trainer = RLVRTrainer(
            network,
            tokenizer,
            _dataset(section, chosen.problems, order),
            settings,
            peft_config=lora,
            rollouts=rollouts,
            keep=partial(_keep, section, model, for_output),
            log=log,
        )
        if section.engine == "torch" and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise ConfigError(
                "rlvr.engine: torch generates with whole weights in every process, and these are spread over several; "
                "take vllm_colocate or vllm_server, or launch without FSDP and DeepSpeed"
            )
        adapters.keep_float32(trainer)
        resume.train(trainer, checkpoints)
    if trainer.is_world_process_zero():
        shutil.copytree(for_output, output, dirs_exist_ok=True)
    trainer.accelerator.wait_for_everyone()
    return {
        "split": chosen.split,
        "problems": len(chosen.problems),
        "dropped": chosen.dropped,
        "control_tokens": chosen.num_control,
        **explored,
        **trainer.summary(),
    }


def _share_of(verify: Verify) -> Verify:
    """The grading workers of one of the processes that share this machine."""
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    if neighbours == 1:
        return verify
    workers = (verify.workers or os.cpu_count() or 1) // neighbours
    return verify.model_copy(update={"workers": max(1, workers)})


def _set_temperature(
    section: Rlvr, settings: GRPOConfig, rollouts: Rollouts, network: Any, problem_ids: Sequence[str]
) -> dict[str, float]:
    """The rollouts' temperature; of `entropy(x)` found here, from rollouts on these problems.

    Every process finds it, and the first one's counts: waiting for it could take longer than processes wait.
    """
    wanted = entropy_of(section.temperature)
    if wanted is None:
        return {"temperature": rollouts.temperature}
    network.to(settings.device)
    match = temperature.matching(wanted, partial(rollouts.entropy_at, network, tuple(problem_ids)))
    ((rollouts.temperature, entropy),) = broadcast_object_list([match])
    settings.temperature = rollouts.temperature
    return {"temperature": rollouts.temperature, "token_entropy_before": entropy}


class Chosen(NamedTuple):
    problems: dict[str, Problem]  # by id
    split: str  # rlvr, or train where there are none
    dropped: dict[str, int]  # by reason
    num_control: int  # problems that spell a control token, which is read as text


def _choose(
    section: Rlvr, prompt: Prompt, path: Path, pass_rates: Path, tokenizer: Any, context: int
) -> Chosen:
    """The problems of lowest id whose prompts and pass rates fit, from split `rlvr`, without one from split `train`."""
    table = tables.read(path, schemas.PROBLEMS, ["problem_id", "question", "answers", "split"])
    split = "rlvr" if "rlvr" in table["split"].unique().to_pylist() else "train"
    rows = table.filter(pc.equal(table["split"], split)).to_pylist()
    if not rows:
        raise DataError(
            f"{path}: no problem of split 'rlvr' or 'train' for RL; check the sources under ingest.rlvr"
        )
    # TRL hands prompts to vLLM as texts, and would read what a problem spells as control
    keeps_control = section.engine == "torch"
    dropped = {"too_long": 0, "no_room": 0} | ({} if keeps_control else {"control_token": 0})
    misses = _misses(section.pass_rate, pass_rates) if section.pass_rate else None
    by_rate = ("too_hard", "too_easy", "unmeasured") if misses is not None else ()
    dropped |= dict.fromkeys(by_rate, 0)
    problems: dict[str, Problem] = {}
    for row in sorted(rows, key=lambda row: str(row["problem_id"])):
        user = prompts.user_turn(row["question"], prompt.suffix)
        ids = prompts.prompt_ids(tokenizer, user)
        if len(ids) > section.max_prompt_tokens:
            dropped["too_long"] += 1
        elif len(ids) >= context:
            dropped["no_room"] += 1
        elif not keeps_control and prompts.holds_control(tokenizer, user):
            dropped["control_token"] += 1
        elif misses is not None and (reason := misses.get(row["problem_id"], "unmeasured")):
            dropped[reason] += 1
        else:
            problems[row["problem_id"]] = Problem(user, ids, row["answers"])
    if not problems and any(dropped[reason] for reason in by_rate):
        raise DataError(
            f"{path}: no problem for RL has a pass rate within rlvr.pass_rate {list(section.pass_rate or ())}; widen "
            "it, or look at the histogram in metrics/pass_rate.json"
        )
    if not problems:
        raise DataError(
            f"{path}: all {len(rows)} prompts for RL are longer than rlvr.max_prompt_tokens "
            f"{section.max_prompt_tokens} or fill the model's context of {context} tokens; raise them"
        )
    problems = dict(islice(problems.items(), section.num_problems))
    if len(problems) < section.num_prompts:
        raise ConfigError(
            f"rlvr.num_prompts: a step takes {section.num_prompts} different problems, and there are "
            f"{len(problems)}; take fewer, or raise rlvr.num_problems or the sources under ingest.rlvr"
        )
    num_control = sum(prompts.holds_control(tokenizer, one.user) for one in problems.values())
    return Chosen(problems, split, dropped, num_control)


def _misses(bounds: tuple[float, float], pass_rates: Path) -> dict[str, str]:
    """Of every problem that was measured why its pass rate lies outside of the bounds, "" where it is within."""
    low, high = bounds
    table = tables.read(pass_rates, schemas.PASS_RATES, ["problem_id", "num_samples", "num_correct"])
    found = {}
    for row in table.to_pylist():
        rate = row["num_correct"] / row["num_samples"]
        found[row["problem_id"]] = "too_hard" if rate < low else "too_easy" if rate > high else ""
    return found


def _dataset(section: Rlvr, problems: dict[str, Problem], order: list[list[str]]) -> Dataset:
    """The steps' prompts, one after the other: the ids for our sampler, the user turns for TRL's template and vLLM."""
    ids = [problem_id for step in order for problem_id in step]
    if section.engine == "torch":
        return Dataset.from_dict({"prompt": ids, "problem_id": ids})
    turns = [[{"role": "user", "content": problems[problem_id].user}] for problem_id in ids]
    return Dataset.from_dict({"prompt": turns, "problem_id": ids})


def _cut(section: Rlvr, num_processes: int) -> tuple[int, int]:
    """Rollouts of a micro-batch, and micro-batches that each process adds up for one step."""
    size = section.num_prompts * section.num_generations
    step = f"rlvr: a step of {section.num_prompts} x {section.num_generations} = {size} rollouts"
    micro_batch_size = batches.micro_batch_size(step, size, num_processes, section.micro_batch_size)
    return micro_batch_size, size // num_processes // micro_batch_size


def _keep(section: Rlvr, base: Path, folder: Path, trainer: RLVRTrainer, step: int) -> None:
    """Saves a step's weights in the base's own type; all other files are the base's."""
    if step % section.save_every and step != section.steps:
        return
    part, whole = folder / ".part", folder / f"step-{step}"
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if section.adapter:
        adapters.save(trainer, base, part, section.adapter)
    else:
        trainer.save_model(str(part))
    if trainer.is_world_process_zero():
        dtype = AutoConfig.from_pretrained(base).dtype
        if dtype not in (None, torch.float32) and not section.adapter:
            AutoModelForCausalLM.from_pretrained(part, dtype=dtype).save_pretrained(part)
        for path in part.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                path.unlink()
        for path in base.iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copyfile(path, part / path.name)
        shutil.rmtree(whole, ignore_errors=True)
        part.rename(whole)
    trainer.accelerator.wait_for_everyone()
