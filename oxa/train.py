"""Fine-tunes the base on an arm's training set: TRL's SFTTrainer with the objective of losses.py.

One optimiser step over exactly n_ce cross-entropy and n_ul unlikelihood sequences (METHOD §4):

    L = 1/n_ce Σ_ce mean_t( -ln p_t ) + λ · 1/n_ul Σ_ul mean_t( -ln(1 - p_t) )

An arm without unlikelihood takes the same path with n_ul = 0. What one run does depends on the section, the data and
the seed, and not on micro-batches or processes: a step's rows are fixed beforehand (batches.py), every micro-batch adds
its share of L, and no share is divided by the number of micro-batches.

Log-probabilities and entropies come from TRL's fused LM head: no [tokens, vocabulary] tensor larger than a tile.

The work can be killed at any time. Checkpoints lie in scratch, a rerun goes on from the last whole one, and on a CPU
ends with the same bits as an unbroken run (on CUDA up to kernels that add in no fixed order).

Left out on purpose: no validation loss (the stages measure what the model generates), no packing and no LoRA, no
KL to the base, no entropy bonus, no early stopping, no best checkpoint: the last weights are the arm's weights.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from oxa import batches, lm, losses, prompts, records
from oxa.config import TrainArm, TrainShared
from oxa.errors import ConfigError, DataError

OBJECTIVES = ("ce", "ul")
TOKENIZED_AT_ONCE = 1000
FINAL_SHARE = 0.1
"""Share of the steps, at the end, over which the returned losses and entropies are averaged."""


def run(
    shared: TrainShared,
    arm: TrainArm,
    *,
    model: Path,
    data: Path,
    output: Path,
    scratch: Path,
    seed: int,
    log: records.Log,
) -> dict[str, Any]:
    """Trains `model` on the table `data` and saves the result as a checkpoint folder `output`.

    Logs loss, ce_loss, ul_loss (nats), ce_entropy, ul_entropy (nats a token), ul_probability (mean p of the tokens
    that are suppressed), grad_norm, learning_rate, tokens_per_second and epoch (passes over the CE set); the ul_ values
    only where the arm has a UL set. Returns counts and the means over the last tenth of the steps.

    Under torchrun or accelerate every process calls this; the first alone logs and writes.
    """
    disable_progress_bar()  # transformers' own, one for every file of weights
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    accumulation = _accumulation(shared, arm, num_processes)
    network, tokenizer = lm.load(model, dtype=torch.float32, device=torch.device("cpu"))
    configs = copy.deepcopy(
        (network.config, network.generation_config)
    )  # the Trainer edits its special tokens
    rows = _tokenize(data, tokenizer, min(shared.max_length, network.config.max_position_embeddings))
    _check(data, shared, arm, rows)
    order = batches.longest_first(
        batches.step_order(rows.num["ce"], rows.num["ul"], shared.num_ce, arm.num_ul, shared.epochs, seed),
        rows.lengths,
    )
    checkpoints = scratch / "checkpoints"
    settings = _settings(shared, len(order), accumulation, checkpoints, seed)
    assert settings.world_size == num_processes
    trainer = OXATrainer(
        network,
        tokenizer,
        rows.dataset,
        order,
        shared,
        arm,
        settings,
        log=log,
        epochs_a_step=shared.num_ce / rows.num["ce"],
    )
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(checkpoints, trainer.is_world_process_zero()))
    network.config, network.generation_config = configs
    _save(trainer, model, output)
    return {
        "steps": len(order),
        "ce_rows": rows.num["ce"],
        "ul_rows": rows.num["ul"],
        "dropped": rows.dropped,
        "tokens": _num_tokens(rows, order),
        "final": trainer.final(),
    }


class Rows(NamedTuple):
    """The training set as token ids; CE rows first, then UL rows, each in the table's order."""

    dataset: Dataset  # input_ids, num_prompt (ids before the response), objective
    lengths: np.ndarray  # [rows], tokens, the prompt's included
    num_scored: np.ndarray  # [rows], tokens of the response
    num: dict[str, int]  # rows kept, by objective
    dropped: dict[str, int]  # rows longer than the limit, by objective


def _tokenize(data: Path, tokenizer: Any, limit: int) -> Rows:
    table = records.read(data, records.TRAIN, ["prompt", "completion", "objective"])
    unknown = set(pc.unique(table["objective"]).to_pylist()) - set(OBJECTIVES)
    if unknown:
        raise DataError(f"{data}: objective must be one of {', '.join(OBJECTIVES)}; found {sorted(unknown)}")
    parts: list[pa.Table] = []
    num, dropped = dict.fromkeys(OBJECTIVES, 0), dict.fromkeys(OBJECTIVES, 0)
    bar = tqdm(total=len(table), desc="tokenizing", unit="row", disable=None)
    for objective in OBJECTIVES:
        chosen = table.filter(pc.equal(table["objective"], objective))
        for part in chosen.to_batches(TOKENIZED_AT_ONCE):
            ids, num_prompt = [], []
            for row in part.to_pylist():
                context = prompts.prompt_ids(tokenizer, row["prompt"])
                response = prompts.response_ids(tokenizer, row["completion"], end=True)
                if len(context) + len(response) <= limit:
                    ids.append(np.asarray([*context, *response], np.int32))
                    num_prompt.append(len(context))
            num[objective] += len(ids)
            dropped[objective] += len(part) - len(ids)
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
    whole = pa.concat_tables(parts) if parts else pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))})
    lengths = pc.list_value_length(whole["input_ids"]).to_numpy().astype(np.int64)
    num_scored = lengths - whole["num_prompt"].to_numpy() if len(whole) else lengths
    return Rows(Dataset(whole), lengths, num_scored, num, dropped)


def _check(data: Path, shared: TrainShared, arm: TrainArm, rows: Rows) -> None:
    for objective, per_step in (("ce", shared.num_ce), ("ul", arm.num_ul)):
        kept, dropped = rows.num[objective], rows.dropped[objective]
        if per_step and not kept and dropped:
            raise DataError(
                f"{data}: all {dropped} {objective} rows are longer than train.shared.max_length or the model's "
                "context allow; raise them or select shorter responses"
            )
        if per_step and not kept:
            raise DataError(
                f"{data}: holds no row with objective {objective}, of which every step takes {per_step}; select some"
            )
        if kept and not per_step:
            raise DataError(
                f"{data}: holds {kept} rows with objective {objective}, but train.arms.*.num_ul is 0 for this arm; "
                "set it or select none"
            )


def _accumulation(shared: TrainShared, arm: TrainArm, num_processes: int) -> int:
    """Micro-batches that each process adds up for one step; ConfigError where the step cannot be cut evenly."""
    size = shared.num_ce + arm.num_ul
    step = f"a step of {shared.num_ce} CE + {arm.num_ul} UL = {size} sequences"
    if size % num_processes:
        raise ConfigError(
            f"train: {step} cannot be shared by {num_processes} processes evenly; "
            f"run one of {_divisors(size)} processes or change num_ce and num_ul"
        )
    if (size // num_processes) % shared.micro_batch_size:
        raise ConfigError(
            f"train.shared.micro_batch_size: {shared.micro_batch_size} sequences on {num_processes} process(es) do not "
            f"divide {step}; take one of {_divisors(size // num_processes)}"
        )
    return size // num_processes // shared.micro_batch_size


def _divisors(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


def _settings(
    shared: TrainShared, num_steps: int, accumulation: int, checkpoints: Path, seed: int
) -> SFTConfig:
    return SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=shared.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,  # the sampler lays all passes out flat, so that a resume only skips
        learning_rate=shared.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(shared.warmup_ratio * num_steps),
        adam_beta1=shared.adam_beta1,
        adam_beta2=shared.adam_beta2,
        weight_decay=shared.weight_decay,
        max_grad_norm=shared.max_grad_norm,
        bf16=shared.dtype == "bfloat16",
        gradient_checkpointing=shared.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=seed % 2**32,  # NumPy takes no more
        logging_steps=1,
        save_strategy="steps",
        save_steps=shared.checkpoint_every,
        save_total_limit=2,  # the last may be half-written when the process dies
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),  # without it several processes on CPUs would each train alone
        disable_tqdm=True,
        report_to=[],
        push_to_hub=False,
    )


@dataclass
class Collator(DataCollatorForLanguageModeling):
    """TRL's right-padded batch with -100 as label of the prompt, and `suppressed` [B]."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(
            [
                {
                    "input_ids": row["input_ids"],
                    "labels": [-100] * row["num_prompt"] + row["input_ids"][row["num_prompt"] :],
                }
                for row in examples
            ]
        )
        batch["suppressed"] = torch.tensor([row["suppressed"] for row in examples])
        return batch


class OXATrainer(SFTTrainer):
    """SFTTrainer with fixed steps, the mixed objective, and metrics that are exact over a step's micro-batches."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        dataset: Dataset,
        order: np.ndarray,
        shared: TrainShared,
        arm: TrainArm,
        settings: SFTConfig,
        *,
        log: records.Log,
        epochs_a_step: float,
    ) -> None:
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._order = order
        self._shared, self._arm = shared, arm
        self._user_log, self._epochs_a_step = log, epochs_a_step
        super().__init__(
            model=model,
            args=settings,
            data_collator=Collator(pad_token_id=pad),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[Bar()],
        )
        add_fused_lm_head(self.model, outputs=("log_probs", "entropy"))  # TRL's own also finds the argmax
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # our loss is a share of a sum: nothing is to be divided
        self._sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=self.args.device)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> list[int]:
        return self._order.ravel().tolist()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one into every checkpoint; ours are scratch."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The step's micro-batches of this process, and losses.Totals over all processes as a tensor [4]."""
        self._step_begun = time.perf_counter()
        micro_batches = [next(epoch_iterator) for _ in range(num_batches)]
        counts = torch.zeros(4, dtype=torch.int64, device=device)
        for batch in micro_batches:
            suppressed = batch["suppressed"]
            num_tokens = (batch["labels"][:, 1:] != -100).sum(1)
            counts += torch.stack(
                [
                    (~suppressed).sum(),
                    suppressed.sum(),
                    (num_tokens * ~suppressed).sum(),
                    (num_tokens * suppressed).sum(),
                ]
            )
        totals = self.accelerator.reduce(counts, "sum")
        self._totals = losses.Totals(*totals.unbind())
        return micro_batches, totals

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The micro-batch's share of the step's L, times the number of processes, over which DDP takes the mean."""
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            fused_lm_head=True,
        )
        suppressed = inputs["suppressed"]
        share = losses.mix(
            outputs.log_probs,
            outputs.label_mask,
            suppressed,
            self._totals,
            ul_weight=self._arm.ul_weight,
            normalization=self._shared.normalization,
        )
        with torch.no_grad():  # what is not scored is 0 in both
            entropy = outputs.entropy.sum(1, dtype=torch.float64)
            probability = (outputs.log_probs.exp() * outputs.label_mask).sum(1, dtype=torch.float64)
            self._sums += torch.stack(
                Sums(
                    ce_loss=share.ce_loss.double(),
                    ul_loss=share.ul_loss.double(),
                    ce_entropy=(entropy * ~suppressed).sum(),
                    ul_entropy=(entropy * suppressed).sum(),
                    ul_probability=(probability * suppressed).sum(),
                    tokens=inputs["attention_mask"].sum().double(),
                )
            )
        return share.loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called after every optimiser step, and once at the end with a summary that is of no use here."""
        is_step = "learning_rate" in logs
        if is_step:
            logs = {**logs, **self._step_metrics()}
        super().log(logs, start_time)  # into state.log_history, which a checkpoint keeps
        step, every = self.state.global_step, self._shared.log_every
        if is_step and self.is_world_process_zero() and (step % every == 0 or step == self.state.max_steps):
            self._report(step, self._history()[-((step - 1) % every + 1) :])

    def _step_metrics(self) -> dict[str, float]:
        sums = Sums(*self.accelerator.reduce(self._sums, "sum").tolist())
        self._sums.zero_()
        num_ce, num_ul = int(self._totals.ce_tokens), int(self._totals.ul_tokens)
        loss = sums.ce_loss + self._arm.ul_weight * sums.ul_loss
        if not math.isfinite(loss):
            raise ConfigError(
                f"train.shared.learning_rate: the loss is {loss} at step {self.state.global_step}; "
                f"take a lower one than {self._shared.learning_rate}"
            )
        metrics = {
            "loss": loss,
            "ce_loss": sums.ce_loss,
            "ce_entropy": sums.ce_entropy / num_ce,
            "tokens": sums.tokens,
            "seconds": time.perf_counter() - self._step_begun,
        }
        if num_ul:
            metrics |= {
                "ul_loss": sums.ul_loss,
                "ul_entropy": sums.ul_entropy / num_ul,
                "ul_probability": sums.ul_probability / num_ul,
            }
        return metrics

    def _history(self) -> list[dict[str, float]]:
        """Every step's metrics so far, those before a resume included."""
        return [row for row in self.state.log_history if "ce_loss" in row]

    def _report(self, step: int, window: list[dict[str, float]]) -> None:
        self._user_log(
            step,
            **_means(window),
            learning_rate=window[-1]["learning_rate"],
            tokens_per_second=sum(row["tokens"] for row in window) / sum(row["seconds"] for row in window),
            epoch=step * self._epochs_a_step,
        )

    def final(self) -> dict[str, float]:
        """Means over the last steps."""
        history = self._history()
        return _means(history[-max(1, round(FINAL_SHARE * len(history))) :])


class Sums(NamedTuple):
    """What a step's micro-batches add up, [] float64 each."""

    ce_loss: Any  # L's first term, nats
    ul_loss: Any  # L's second term before λ, nats
    ce_entropy: Any  # nats, over scored CE tokens
    ul_entropy: Any  # nats, over scored UL tokens
    ul_probability: Any  # p, over scored UL tokens
    tokens: Any  # all tokens but padding


class Bar(TrainerCallback):
    """One bar over the steps; the Trainer's own would also print every step's log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="training",
            unit="step",
            disable=None if state.is_world_process_zero else True,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    names = ("loss", "ce_loss", "ul_loss", "ce_entropy", "ul_entropy", "ul_probability", "grad_norm")
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names if name in rows[0]}


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


def _last_whole_checkpoint(folder: Path, may_remove: bool) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are removed."""
    found = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*")}
    for _, path in sorted(found.items(), reverse=True):
        if _is_whole(path):
            return str(path)
        if may_remove:
            shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    """Whether the file that the Trainer writes last is there and none is cut.

    safetensors checks its header against the file's size; a file of torch.save is a zip, whose index comes last. FSDP
    and DeepSpeed keep weights in folders.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    has_weights = bool(weights) or any(path.is_dir() for path in checkpoint.iterdir())
    return has_weights and all(zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt*"))


def _save(trainer: OXATrainer, base: Path, output: Path) -> None:
    """Weights in the base's own type, tokenizer, chat template, generation settings."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainer.model.to(AutoConfig.from_pretrained(base).dtype or torch.float32)
    trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        (output / "training_args.bin").unlink(missing_ok=True)  # names this machine's folders
    trainer.accelerator.wait_for_everyone()
