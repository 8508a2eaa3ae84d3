"""Scoring and training of real shapes on a GPU: tokens/s, share of the peak, memory, by sequence length, beside TRL.

    python benchmarks/gpu.py [--models qwen3-0.6b qwen2.5-1.5b] [--lengths 8192 16384 32768 65536] [--tiny]

Random weights in the published shapes (nothing is downloaded), sequences of one length each, so that no padding
flatters anybody, half of the CE+UL step suppressed. Each cell runs in a process of its own: what does not fit ends that
process alone. `--tiny` runs the same code with a tiny shape on a CPU.

    score      lm.token_statistics, bfloat16 weights, one sequence at a time
    ce, ce+ul  oxa train: float32 weights, bfloat16 arithmetic, activations recomputed, AdamW; 2 sequences a step
    trl        SFTTrainer on the same sequences with the same settings
    liger      the same with use_liger_kernel, where it is installed

FLOPs are those of the matrix products and of causal attention, three times the forward pass for training; what is
recomputed does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

from oxa.config.fine_tuning import FineTuning, TrainArm
from oxa.model import log_probs
from oxa.model.trainer import on_one_device
from oxa.training import fine_tuning
from oxa.training.sft import OXATrainer

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "qwen3",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
}
WAYS = ("score", "ce", "ce+ul", "trl", "liger")
PROMPT = 16  # tokens that carry no loss
STEPS, WARM = 5, 2  # steps of a run, and how many of the first are left out
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by NVIDIA's data sheets (SXM), by what the device's name holds."""


class Cell(NamedTuple):
    tokens_per_second: float
    gib: float | None  # peak of allocated memory; none on a CPU
    flops: float  # a token


def network(shape: str, context: int, dtype: torch.dtype, device: torch.device) -> Any:
    config = AutoConfig.for_model(**SHAPES[shape], max_position_embeddings=context)
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def flops(model: Any, length: int, times: int) -> float:
    """A token's share of a sequence of that length: its products, and attention to half the sequence on average."""
    config = model.config
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    return times * (2 * weights + 2 * length * width * config.num_hidden_layers)


def sequences(vocab: int, length: int, num: int) -> list[list[int]]:
    return torch.randint(4, vocab, (num, length), generator=torch.Generator().manual_seed(0)).tolist()


def score(shape: str, length: int, device: torch.device) -> Cell:
    model = network(shape, length, torch.bfloat16, device).eval()
    seconds = []
    for ids in sequences(model.config.vocab_size, length, STEPS):
        row = torch.tensor([ids], device=device)
        scored = torch.ones_like(row, dtype=torch.bool)
        scored[:, :PROMPT] = False
        begun = time.perf_counter()
        found = log_probs.token_statistics(model, row, torch.ones_like(row), scored, chunk=1024)
        float(found.log_probs.sum())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return Cell(length / statistics.median(seconds[WARM:]), peak(device), flops(model, length, 1))


def fit(shape: str, length: int, way: str, device: torch.device) -> Cell:
    model = network(shape, length, torch.float32, device)
    raw = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
    num_ul = 1 if way == "ce+ul" else 0
    shared = FineTuning(
        num_ce=2 - num_ul,
        micro_batch_size=1,
        dtype="bfloat16",
        gradient_checkpointing=True,
        checkpoint_every=10**6,
    )
    ends: list[float] = []

    def log(*args: Any, **values: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    ids = sequences(model.config.vocab_size, length, 2 * STEPS)
    with tempfile.TemporaryDirectory() as folder:
        # what train itself sets, for TRL as well
        common = fine_tuning.settings(shared, STEPS, 1, 2, Path(folder), seed=0)
        settings = on_one_device(SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}))
        if way in ("ce", "ce+ul"):
            suppressed = [i % 2 == 1 and num_ul == 1 for i in range(len(ids))]
            rows = {"input_ids": ids, "num_prompt": [PROMPT] * len(ids), "suppressed": suppressed}
            plan = [[i] for i in range(len(ids))]
            arm = TrainArm(num_ul=num_ul)
            OXATrainer(
                model,
                tokenizer,
                Dataset.from_dict(rows),
                plan,
                shared,
                arm,
                settings,
                log=log,
                epochs_a_step=1,
            ).train()
        else:
            settings.use_liger_kernel = way == "liger"
            labels = [[-100] * PROMPT + row[PROMPT:] for row in ids]

            class Timed(SFTTrainer):
                def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
                    if "learning_rate" in logs:
                        log()

            trainer = Timed(
                model=model,
                args=settings,
                train_dataset=Dataset.from_dict({"input_ids": ids, "labels": labels}),
                processing_class=tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return Cell(2 * length / statistics.median(steps[WARM - 1 :]), peak(device), flops(model, length, 3))


def peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def one(shape: str, length: int, way: str) -> Cell | str:
    """The cell, measured in a process of its own, or why there is none."""
    if way == "liger" and importlib.util.find_spec("liger_kernel") is None:
        return "not installed"
    command = [sys.executable, __file__, "--one", shape, str(length), way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return Cell(*json.loads(done.stdout.splitlines()[-1]))
    if "OutOfMemoryError" in done.stderr:
        return "out of memory"
    print(done.stderr[-3000:], file=sys.stderr)
    raise SystemExit(f"{shape}, {length} tokens, {way}: failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["qwen3-0.6b", "qwen2.5-1.5b"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--tiny", "--quick", action="store_true", help="a tiny shape on a CPU: a trial of the code"
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        shape, length, way = options.one[0], int(options.one[1]), options.one[2]
        device = torch.device("cuda" if torch.cuda.is_available() and shape != "tiny" else "cpu")
        cell = score(shape, length, device) if way == "score" else fit(shape, length, way, device)
        print(json.dumps(cell))
        return
    if options.tiny:
        options.models, options.lengths = ["tiny"], [64, 128]
    elif not torch.cuda.is_available():
        print("gpu.py needs a CUDA GPU; `--tiny` tries its code on a CPU", file=sys.stderr)
        return
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    best = next((value for part, value in PEAK.items() if part in name), None)
    print(
        f"""## Real shapes on a GPU: `benchmarks/gpu.py`

Random weights, sequences of one length, {name}. Scoring: bfloat16, one sequence at a time. Training: float32 weights,
bfloat16 arithmetic, activations recomputed, AdamW, two sequences a step, one a micro-batch; `trl` is `SFTTrainer` with
the same settings. MFU is the share of the device's dense bfloat16 peak, recomputation not counted. For comparison:
prime-rl's published full fine-tuning of Qwen3-0.6B on one H100 reaches 25.5k tokens/s at 16k tokens in 52.8 GiB, and
does not fit at 65k.

| model | tokens | way | tokens/s | MFU, % | peak, GiB |
|---|---|---|---|---|---|""",
        flush=True,
    )
    for shape in options.models:
        for length in options.lengths:
            for way in options.ways:
                cell = one(shape, length, way)
                if isinstance(cell, str):
                    print(f"| {shape} | {length:,} | {way} | {cell} | | |", flush=True)
                    continue
                mfu = f"{100 * cell.flops * cell.tokens_per_second / best:.0f}" if best else "–"
                gib = "–" if cell.gib is None else f"{cell.gib:.1f}"
                print(
                    f"| {shape} | {length:,} | {way} | {cell.tokens_per_second:,.0f} | {mfu} | {gib} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
