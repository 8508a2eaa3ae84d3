"""What a training step costs: ours beside plain TRL, with and without unlikelihood, beside the bare matrix products.

    python benchmarks/training_step.py [--steps 10] [--rounds 3] [--threads 2] [--micro 8 16] [--lengths even tailed]

A random Llama of the small world's shape (4 layers, hidden 128, a step of 32 sequences), made here. All runs take the
same settings and see the same 32 sequences in each step, so that their steps can be compared one by one:

    TRL        SFTTrainer as it comes, its own collator, a step's sequences in a random order
    CE         oxa train, cross-entropy alone
    CE+UL      oxa train, half of each step's sequences suppressed
    grouped    SFTTrainer with its `group_by_length`, which fills a step with sequences of like length: the same data,
               but other steps, so that only its tokens a second are comparable
    products   forward and backward matrix products of all linear layers at CE's padded shapes, and nothing else

A step's time is the least of the rounds, since other work on the machine only adds, and the steps after the first are
summed. Padded tokens are those that go through the model.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from results import row
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from oxa import prompts
from oxa.config.fine_tuning import Adapter, FineTuning, TrainArm
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.training import batches, fine_tuning

SEQUENCES = 32
WORDS = [f"w{i}" for i in range(104)]
SEED = 0
TARGETS = {"even": 1.0, "tailed": 1.3}  # times as fast as TRL, at least, by kind of lengths


def make_base(folder: Path) -> None:
    """One token a word; the rendered prompt is the question between two markers.

    A Llama, since AutoTokenizer would give a Qwen2 model Qwen's own splitting of words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<end>", "<user>", "<assistant>", "<unk>", *WORDS])
    }
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template="<user> {{ messages[0]['content'] }} <assistant>",
    )
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary) + 3,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
        )
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(num: int, lengths: str) -> list[dict[str, Any]]:
    """Sequences of about 80 tokens: 60-100 (even), or log-normal with a tail up to 500 (tailed)."""
    draw = np.random.default_rng(0)
    if lengths == "even":
        sizes = draw.integers(60, 101, num)
    else:
        sizes = np.clip(draw.lognormal(np.log(60), 0.8, num), 20, 500).astype(int)
    rows = []
    for i, size in enumerate(sizes):
        words = [WORDS[j] for j in draw.integers(len(WORDS), size=size)]
        rows.append(
            {
                "response_id": str(i),
                "problem_id": str(i),
                "prompt": " ".join(words[:12]),
                "completion": " ".join(words[12:]),
                "objective": "ce",
                "ppl": 2.0,
                "num_tokens": int(size) - 12,
                "finish_reason": "stop",
            }
        )
    return rows


class Clock(TrainerCallback):
    """When each optimiser step ended, data loading and logging included."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> np.ndarray:
        """[2, steps - 1]: by the clock and of processor time, of every step after the first, which warms up."""
        return np.diff(np.transpose(self.ends))


class Setting(NamedTuple):
    base: Path
    rows: list[dict[str, Any]]
    lengths: np.ndarray  # of the rows, tokens, prompt and end included
    micro: int
    folder: Path
    sequences: int = SEQUENCES  # of a step
    adapter: Adapter | None = None

    @property
    def steps(self) -> np.ndarray:
        """Rows of each step, [steps, sequences]."""
        return batches.step_order(len(self.rows), 0, self.sequences, 0, 1.0, SEED)


class Steps(NamedTuple):
    """Of every step after the first, which warms up."""

    seconds: np.ndarray
    processor: np.ndarray  # seconds of processor time
    tokens: np.ndarray
    padded: np.ndarray  # tokens, padding included


def trl(setting: Setting, *, grouped: bool = False) -> Steps:
    network, tokenizer = loading.load(setting.base, dtype=torch.float32, device=torch.device("cpu"))
    examples = []
    for index in setting.steps.ravel():
        item = setting.rows[index]
        context = prompts.prompt_ids(tokenizer, item["prompt"])
        response = prompts.response_ids(tokenizer, item["completion"], end=True)
        examples.append({"input_ids": context + response, "labels": [-100] * len(context) + response})
        assert len(context) + len(response) == setting.lengths[index]
    clock = Clock()
    sizes: list[tuple[int, int]] = []

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append((int(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Counting(
        model=network,
        args=SFTConfig(
            output_dir=str(setting.folder / "trl"),
            per_device_train_batch_size=setting.micro,
            gradient_accumulation_steps=setting.sequences // setting.micro,
            train_sampling_strategy="group_by_length" if grouped else "sequential",
            num_train_epochs=1,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            adam_beta2=0.95,
            weight_decay=0.1,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            dataloader_pin_memory=False,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=setting.adapter and lora(setting.adapter),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    tokens, padded = np.reshape(sizes, (len(clock.ends), -1, 2)).sum(1)[1:].T
    return Steps(*clock.seconds(), tokens, padded)


def lora(adapter: Adapter) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        task_type="CAUSAL_LM",
    )


def ours(setting: Setting, num_ul: int) -> Steps:
    """num_ul sequences of each step are suppressed."""
    place = setting.folder / f"ours-{num_ul}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    num_ce, num_steps = setting.sequences - num_ul, len(setting.steps)
    where = batches.step_order(num_ce * num_steps, num_ul * num_steps, num_ce, num_ul, 1.0, SEED)
    table: list[dict[str, Any]] = [{}] * len(setting.rows)
    for at, index in zip(where.ravel(), setting.steps.ravel(), strict=True):
        table[at] = {**setting.rows[index], "objective": "ul" if at >= num_ce * num_steps else "ce"}
    for name in ("ce", "ul"):
        part = [row for row in table if row["objective"] == name]
        tables.write(place / "rows" / f"{name}.parquet", part, schemas.TRAIN)
    clock = Clock()

    def log(step: int, **values: float) -> None:
        clock.on_step_end()

    fine_tuning.run(
        FineTuning(
            learning_rate=1e-3,
            epochs=1.0,
            num_ce=num_ce,
            micro_batch_size=setting.micro,
            checkpoint_every=10**6,
            adapter=setting.adapter,
        ),
        TrainArm(num_ul=num_ul, ul_weight=0.1),
        model=setting.base,
        data=place / "rows",
        output=place / "model",
        scratch=place,
        seed=SEED,
        log=log,
    )
    padded = np.array([sum(rows * longest for rows, longest in step) for step in cut(setting)])
    return Steps(*clock.seconds(), setting.lengths[setting.steps].sum(1)[1:], padded[1:])


def cut(setting: Setting) -> list[list[tuple[int, int]]]:
    """(rows, longest) of every micro-batch of ours, by step."""
    pieces = setting.sequences // setting.micro
    plans = (batches.micro_batches(setting.lengths[step], pieces) for step in setting.steps)
    return [
        [(len(rows), int(setting.lengths[step][rows].max())) for rows in plan]
        for step, plan in zip(setting.steps, plans, strict=True)
    ]


def products(setting: Setting) -> Steps:
    """As if a step were the products of its linear layers alone: x Wᵀ, g W and gᵀ x."""
    network, _ = loading.load(setting.base, dtype=torch.float32, device=torch.device("cpu"))
    weights = [m.weight.detach() for m in network.modules() if isinstance(m, torch.nn.Linear)]
    seconds = []
    for step in cut(setting)[1:]:
        spent = np.zeros(2)
        for rows, longest in step:
            of_width = {k: torch.randn(rows * longest, k) for weight in weights for k in weight.shape}
            begun = np.array([time.perf_counter(), time.process_time()])
            for weight in weights:
                gradient, x = (of_width[k] for k in weight.shape)
                x @ weight.T, gradient @ weight, gradient.T @ x
            spent += np.array([time.perf_counter(), time.process_time()]) - begun
        seconds.append(spent)
    nothing = np.zeros(len(seconds))
    return Steps(*np.transpose(seconds), nothing, nothing)


def measure(setting: Setting, rounds: int) -> dict[str, Steps]:
    ways: dict[str, Callable[[], Steps]] = {
        "trl": lambda: trl(setting),
        "ce": lambda: ours(setting, 0),
        "ul": lambda: ours(setting, SEQUENCES // 2),
        "grouped": lambda: trl(setting, grouped=True),
        "products": lambda: products(setting),
    }
    found: dict[str, list[Steps]] = {name: [] for name in ways}
    for i in range(rounds):
        for name, way in ways.items():
            print(f"micro-batches of {setting.micro}, round {i + 1} of {rounds}: {name}", file=sys.stderr)
            found[name].append(way())
    return {
        name: Steps(
            *np.min([(one.seconds, one.processor) for one in each], axis=0), each[0].tokens, each[0].padded
        )
        for name, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--micro", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--lengths", choices=list(TARGETS), nargs="+", default=list(TARGETS))
    parser.add_argument(
        "--quick", action="store_true", help="a trial: 4 steps, one round, micro-batches of 16"
    )
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rounds, options.micro = 4, 1, [16]
    print(
        f"""## Training step: `benchmarks/training_step.py`

The small world's shape, {SEQUENCES} sequences a step, the same ones in each step of every run; float32. TRL is
`SFTTrainer` with the same data and settings; CE+UL suppresses half of the sequences; `micro` is the mean number of
sequences of a micro-batch; in brackets the tokens of a step with padding, in thousands. Seconds are the mean of
{options.steps - 1} steps, the least of {options.rounds} rounds each. `products` are the bare forward and backward
matrix products of the linear layers at CE's shapes: the next bound.

| lengths | threads | micro | TRL, s | CE, s | CE+UL, s | products, s | TRL / CE | CE+UL / CE |
|---|---|---|---|---|---|---|---|---|""",
        flush=True,
    )
    gains: dict[str, list[float]] = {name: [] for name in options.lengths}
    prices: list[float] = []
    grouped: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "base")
        settings = [
            (lengths, threads, micro)
            for lengths in options.lengths
            for threads in options.threads
            for micro in options.micro
        ]
        for lengths, threads, micro in settings:
            torch.set_num_threads(threads)
            rows = make_rows(options.steps * SEQUENCES, lengths)
            sizes = np.array(
                [item["num_tokens"] + 15 for item in rows]
            )  # a prompt of 12 words, 2 markers, the end
            found = measure(Setting(folder / "base", rows, sizes, micro, folder), options.rounds)
            seconds = {way: steps.seconds.mean() for way, steps in found.items()}
            gains[lengths].append(seconds["trl"] / seconds["ce"])
            prices.append(seconds["ul"] / seconds["ce"])
            shown = (
                f"{seconds[way]:.3f} ({found[way].padded.mean() / 1000:.1f})" for way in ("trl", "ce", "ul")
            )
            print(
                f"| {lengths} | {threads} | {micro} | {' | '.join(shown)} | {seconds['products']:.3f} | "
                f"{gains[lengths][-1]:.2f} | {prices[-1]:.2f} |",
                flush=True,
            )
            speeds = [found[way].tokens.sum() / found[way].seconds.sum() for way in ("ce", "grouped")]
            grouped.append(
                f"| {lengths} | {threads} | {micro} | {speeds[1]:,.0f} | {speeds[0]:,.0f} | "
                f"{speeds[0] / speeds[1]:.2f} |"
            )
    print(
        "\nTRL with its `group_by_length` fills steps with sequences of like length, and so trains in other steps; "
        "only tokens a second (without padding) can be compared:\n\n"
        "| lengths | threads | micro | TRL grouped, tokens/s | CE, tokens/s | ratio |\n|---|---|---|---|---|---|\n"
        + "\n".join(grouped)
    )
    for lengths, ratios in gains.items():
        what = f"training step, CE only, {lengths} lengths"
        row(what, "TRL SFTTrainer, same data, same settings", min(ratios), TARGETS[lengths])
    row("training step, CE+UL", "our CE only on the same tokens", max(prices), 1.05, better="lower")


if __name__ == "__main__":
    main()
