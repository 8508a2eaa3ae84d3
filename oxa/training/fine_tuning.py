"""Fine-tunes a checkpoint on a training set: its rows as tokens, the steps, going on after a kill, the result.

What one run does depends on the section, the data and the seed, and not on micro-batches or processes: a step's rows
are fixed beforehand (batches.py), and its objective adds up over the micro-batches (sft.py). An arm without
unlikelihood takes the same path with n_ul = 0.

The work can be killed at any time. Checkpoints lie in scratch, a rerun goes on from the last whole one, and on a CPU
ends with the same bits as an unbroken run (on CUDA up to kernels that add in no fixed order).

Left out on purpose: no validation loss (the stages measure what the model generates), no packing, no KL to
the base, no entropy bonus, no early stopping, no best checkpoint: the last weights are the arm's weights.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
from transformers.utils.logging import disable_progress_bar
from trl import KTOConfig, SFTConfig

from oxa import prompts
from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.errors import ConfigError, DataError
from oxa.model import loading
from oxa.model.trainer import on_one_device
from oxa.records import training_set
from oxa.records.training_set import OBJECTIVES
from oxa.runtime import journal, progress
from oxa.training import adapters, batches, kto, resume, steps
from oxa.training.sft import OXATrainer

TOKENIZED_AT_ONCE = 1000


def run(
    shared: FineTuning,
    arm: TrainArm,
    *,
    model: Path,
    data: Path,
    output: Path,
    scratch: Path,
    seed: int,
    log: journal.Log,
) -> dict[str, Any]:
    """Trains `model` on the table `data` and saves the result as a checkpoint folder `output`.

    Logs loss, ce_loss, ul_loss (nats), ce_entropy, ul_entropy (nats a token), ul_probability (mean p of the tokens
    that are suppressed), grad_norm, learning_rate, tokens_per_second and epoch (passes over the CE set); the ul_ values
    only where the arm has a UL set. Of objective `kto`: loss, kl, ce_reward, ul_reward (β r, nats), entropy (nats a
    token) in place of the first six. Returns counts and the means over the last tenth of the steps.

    Under torchrun or accelerate every process calls this; the first alone logs and writes.
    """
    disable_progress_bar()  # transformers' own, one for every file of weights
    adapters.check(shared.adapter, shared.optimizer)
    if arm.ce_loss in ("eaft", "gem") and resume.spread_by():
        raise ConfigError(
            f"train.arms: ce_loss {arm.ce_loss} reads the model's head by itself, which {resume.spread_by()} spreads "
            "over processes; take another loss, or launch with presets/accelerate/multi-gpu.yaml"
        )
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    size = shared.num_ce + arm.num_ul
    if arm.objective == "kto":
        micro_batch_size = kto.micro_batch_size(
            shared.num_ce, arm.num_ul, num_processes, shared.micro_batch_size
        )
    else:
        step = f"train: a step of {shared.num_ce} CE + {arm.num_ul} UL = {size} sequences"
        micro_batch_size = batches.micro_batch_size(step, size, num_processes, shared.micro_batch_size)
    network, tokenizer = adapters.load(model, shared.adapter, shared.dtype)
    configs = copy.deepcopy(
        (network.config, network.generation_config)
    )  # the Trainer edits its special tokens
    longest = min(shared.max_length, loading.context_length(network.config))
    rows = _tokenize(data, arm.num_ul > 0, tokenizer, longest)
    _check(data, shared, arm, rows)
    order = batches.step_order(rows.num["ce"], rows.num["ul"], shared.num_ce, arm.num_ul, shared.epochs, seed)
    num_micro_batches = size // micro_batch_size  # of a step, over all processes
    checkpoints = resume.folder(scratch)
    accumulation = num_micro_batches // num_processes
    common = settings(shared, len(order), micro_batch_size, accumulation, checkpoints, seed)
    to_trainer: dict[str, Any] = {
        "log": log,
        "epochs_a_step": shared.num_ce / rows.num["ce"],
        "peft_config": adapters.settings(shared.adapter, network),
    }
    if shared.adapter and shared.dtype == "bfloat16" and not resume.spread_by():
        adapters.round_frozen(network)
    trainer: OXATrainer | kto.UnpairedTrainer
    config: SFTConfig | KTOConfig
    if arm.objective == "kto":
        plan = [cut for step in order.tolist() for cut in kto.micro_batches(step, num_micro_batches)]
        config = KTOConfig(**common, beta=arm.kto_beta, undesirable_weight=arm.ul_weight)
        reference = None  # the model without its adapter
        if shared.adapter is None:
            reference, _ = loading.load(model, dtype=torch.float32, device=torch.device("cpu"))
        trainer = kto.UnpairedTrainer(
            network,
            reference,
            tokenizer,
            rows.dataset,
            plan,
            shared,
            on_one_device(config),
            longest=longest,
            **to_trainer,
        )
    else:
        plan = [
            step[cut].tolist()
            for step in order
            for cut in batches.micro_batches(rows.lengths[step], num_micro_batches)
        ]
        config = SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = OXATrainer(
            network, tokenizer, rows.dataset, plan, shared, arm, on_one_device(config), **to_trainer
        )
    assert config.world_size == num_processes
    adapters.keep_float32(trainer)
    resume.train(trainer, checkpoints)
    if shared.adapter:
        adapters.save(trainer, model, output, shared.adapter)
    else:
        network.config, network.generation_config = configs
        _save(trainer, model, output)
    return {
        "steps": len(order),
        "ce_rows": rows.num["ce"],
        "ul_rows": rows.num["ul"],
        "control_tokens": rows.num_control,
        "tokens": _num_tokens(rows, order),
        "final": trainer.final(),
    }


def settings(
    shared: FineTuning,
    num_steps: int,
    micro_batch_size: int,
    accumulation: int,
    checkpoints: Path,
    seed: int,
) -> dict[str, Any]:
    """What the configs of both trainers are given."""
    return steps.settings(shared, num_steps, micro_batch_size, accumulation, checkpoints, seed) | {
        "num_train_epochs": 1,  # the sampler lays all passes out flat, so that a resume only skips
        "lr_scheduler_type": "cosine",
        "adam_beta1": shared.adam_beta1,
        "adam_beta2": shared.adam_beta2,
        "optim": adapters.OPTIMIZERS.get(shared.optimizer, TrainingArguments.default_optim),
        "max_length": None,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


class Rows(NamedTuple):
    """The training set as token ids; CE rows first, then UL rows, each in the table's order."""

    dataset: Dataset  # input_ids, num_prompt (ids before the response), objective
    lengths: np.ndarray  # [rows], tokens, the prompt's included
    num_scored: np.ndarray  # [rows], tokens of the response
    num: dict[str, int]  # rows, by objective
    num_control: int  # rows that spell a control token, which is read as text


def _tokenize(data: Path, suppresses: bool, tokenizer: Any, limit: int) -> Rows:
    columns = ["prompt", "completion", "objective", "finish_reason"]
    table = training_set.read(data, columns, suppresses=suppresses)
    unknown = set(pc.unique(table["objective"]).to_pylist()) - set(OBJECTIVES)
    if unknown:
        raise DataError(f"{data}: objective must be one of {', '.join(OBJECTIVES)}; found {sorted(unknown)}")
    parts: list[pa.Table] = []
    num, too_long = dict.fromkeys(OBJECTIVES, 0), dict.fromkeys(OBJECTIVES, 0)
    num_control = 0
    bar = progress.bar(total=len(table), desc="tokenizing", unit="row")
    for objective in OBJECTIVES:
        chosen = table.filter(pc.equal(table["objective"], objective))
        for part in chosen.to_batches(TOKENIZED_AT_ONCE):
            ids, num_prompt = [], []
            for row in part.to_pylist():
                context = prompts.prompt_ids(tokenizer, row["prompt"])
                is_whole = row["finish_reason"] != "length"  # a cut response has no end to be learnt
                response = prompts.response_ids(tokenizer, row["completion"], end=is_whole)
                ids.append(np.asarray([*context, *response], np.int32))
                num_prompt.append(len(context))
                texts = (row["prompt"], row["completion"])
                num_control += any(prompts.holds_control(tokenizer, text) for text in texts)
                too_long[objective] += len(ids[-1]) > limit
            num[objective] += len(ids)
            parts.append(
                pa.table(
                    {
                        "input_ids": pa.array(ids, pa.list_(pa.int32())),
                        "num_prompt": pa.array(num_prompt, pa.int32()),
                        "suppressed": pa.array([objective == "ul"] * len(ids), pa.bool_()),
                    }
                )
            )
            bar.update(len(part))
    bar.close()
    for objective, number in too_long.items():
        if number:
            raise DataError(
                f"{data}: {number} of {num[objective]} {objective} rows are longer than the {limit} tokens that "
                "train.shared.max_length and the model's context allow, and without them arms would be trained on "
                "unequal numbers; `dvc repro` selects others"
            )
    whole = pa.concat_tables(parts) if parts else pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))})
    lengths = pc.list_value_length(whole["input_ids"]).to_numpy().astype(np.int64)
    num_scored = lengths - whole["num_prompt"].to_numpy() if len(whole) else lengths
    return Rows(Dataset(whole), lengths, num_scored, num, num_control)


def _check(data: Path, shared: FineTuning, arm: TrainArm, rows: Rows) -> None:
    for objective, per_step in (("ce", shared.num_ce), ("ul", arm.num_ul)):
        if per_step and not rows.num[objective]:
            raise DataError(
                f"{data}: holds no row with objective {objective}, of which every step takes {per_step}; select some"
            )


def _num_tokens(rows: Rows, order: np.ndarray) -> dict[str, int]:
    """Tokens over the whole training: `all` that went through the model, and the scored ones by objective."""
    times = np.bincount(order.ravel(), minlength=len(rows.lengths))
    scored = times * rows.num_scored
    num_ce = rows.num["ce"]
    return {
        "all": int(times @ rows.lengths),
        "ce": int(scored[:num_ce].sum()),
        "ul": int(scored[num_ce:].sum()),
    }


def _save(trainer: OXATrainer | kto.UnpairedTrainer, base: Path, output: Path) -> None:
    """Weights in the base's own type, tokenizer, chat template, generation settings."""
    dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if not spread:
        trainer.model.to(dtype)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        if spread:  # they were gathered in the type of the training, and tied ones twice
            AutoModelForCausalLM.from_pretrained(output, dtype=dtype).save_pretrained(output)
        (output / "training_args.bin").unlink(missing_ok=True)  # names this machine's folders
    trainer.accelerator.wait_for_everyone()
