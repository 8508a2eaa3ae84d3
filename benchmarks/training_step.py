"""What a training step costs: ours beside plain TRL, with and without unlikelihood, by micro-batch size and threads.

    python benchmarks/training_step.py [--steps 12] [--threads 1 2] [--lengths even|tailed]

A random Llama of the small world's shape (4 layers, hidden 128, a step of 32 sequences), made here. Every run trains
on the same sequences with the same settings; plain TRL is SFTTrainer as it comes (random order, its own collator),
CE+UL marks half of CE-only's sequences as suppressed, so that both see the same tokens. Prints seconds a step (the
median, the first two left out) and their ratios; a ratio is taken within one round, and the median of the rounds is
shown, since other work on the machine slows all runs of a round alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from oxa import records, train
from oxa.config import TrainArm, TrainShared

SEQUENCES = 32
WORDS = [f"w{i}" for i in range(104)]
SKIPPED = 2


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
            }
        )
    return rows


class Clock(TrainerCallback):
    """Wall time of each optimiser step, data loading and logging included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        return statistics.median(np.diff(self.ends)[SKIPPED - 1 :])


def plain_trl(base: Path, rows: list[dict[str, Any]], micro: int, folder: Path) -> float:
    from oxa import lm, prompts

    network, tokenizer = lm.load(base, dtype=torch.float32, device=torch.device("cpu"))
    examples = []
    for row in rows:
        context = prompts.prompt_ids(tokenizer, row["prompt"])
        response = prompts.response_ids(tokenizer, row["completion"], end=True)
        examples.append({"input_ids": context + response, "labels": [-100] * len(context) + response})
        assert len(response) == row["num_tokens"] + 1
    clock = Clock()
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=SEQUENCES // micro,
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
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds()


def ours(base: Path, rows: list[dict[str, Any]], micro: int, num_ul: int, folder: Path) -> float:
    """The same sequences; the last num_ul of every 32 are suppressed."""
    marked = [
        {**row, "objective": "ul" if i % SEQUENCES >= SEQUENCES - num_ul else "ce"}
        for i, row in enumerate(rows)
    ]
    records.write(folder / "rows.parquet", marked, records.TRAIN)
    clock = Clock()

    def log(step: int, **values: float) -> None:
        clock.ends.append(time.perf_counter())

    train.run(
        TrainShared(
            learning_rate=1e-3,
            epochs=1.0,
            num_ce=SEQUENCES - num_ul,
            micro_batch_size=micro,
            checkpoint_every=10**6,
        ),
        TrainArm(num_ul=num_ul, ul_weight=0.1),
        model=base,
        data=folder / "rows.parquet",
        output=folder / "model",
        scratch=folder,
        seed=0,
        log=log,
    )
    return clock.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--micro", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--lengths", choices=["even", "tailed"], nargs="+", default=["even", "tailed"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "base")
        for lengths in options.lengths:
            rows = make_rows(options.steps * SEQUENCES, lengths)
            tokens = sum(row["num_tokens"] + 15 for row in rows) / options.steps  # with 2 markers and the end
            print(f"\n{lengths} lengths, {tokens:.0f} tokens a step")
            print("threads micro  TRL s/step  ours CE  ours CE+UL  tokens/s  TRL/ours  CE+UL/CE")
            for threads in options.threads:
                torch.set_num_threads(threads)
                for micro in options.micro:
                    rounds = []
                    for i in range(options.rounds):
                        place = folder / f"{lengths}-{threads}-{micro}-{i}"
                        for part in ("trl", "ce", "ul"):
                            (place / part).mkdir(parents=True)
                        rounds.append(
                            (
                                plain_trl(folder / "base", rows, micro, place / "trl"),
                                ours(folder / "base", rows, micro, 0, place / "ce"),
                                ours(folder / "base", rows, micro, SEQUENCES // 2, place / "ul"),
                            )
                        )
                    trl, ce, ul = (statistics.median(column) for column in zip(*rounds, strict=True))
                    gain = statistics.median(a / b for a, b, _ in rounds)
                    price = statistics.median(c / b for _, b, c in rounds)
                    print(
                        f"{threads:7d} {micro:5d} {trl:11.3f} {ce:8.3f} {ul:11.3f} {tokens / ce:9.0f} {gain:9.2f} "
                        f"{price:9.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
