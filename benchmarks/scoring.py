"""Scoring: ours beside plain padded batches and TRL's fused head, on one random model and the same sequences.

    python benchmarks/scoring.py [--rows 24] [--longest 8192] [--hidden 256] [--ways NAME ...] [--quick]

A random Qwen2 (vocabulary 151,936) scores responses of 32 to `--longest` tokens, evenly spread over the logarithm of
the length and in random order, each from its 17th token on. Every way runs in a process of its own, one after the
other, and tells its seconds (median of `repeats`; making the model and a first short batch are left out), the peak
memory of its process (`ru_maxrss`, interpreter, libraries and weights included) and each response's mean NLL.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from results import row
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from oxa.config.score import Score
from oxa.model import log_probs
from oxa.training import batches

VOCABULARY = 151_936
START = 16  # tokens of a prompt, not scored
WAYS = {
    "padded": "padded batches in file order, full float32 logits",
    "fused": "TRL's fused head, the same batches",
    "ours": "oxa",
    "ours-bf16": "oxa, bfloat16 weights",
    "bare": "matrix products of `oxa` alone",
    "bare-bf16": "matrix products of `oxa, bfloat16 weights` alone",
}
REPEATS = {"padded": 1, "fused": 1}
Mean = tuple[list[float], list[float]]  # of each response: mean NLL, and mean entropy or nothing


def make_model(hidden: int, layers: int, dtype: torch.dtype) -> Any:
    """Random weights whose predictions are as sharp as a language model's: see `make_rows`."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        initializer_range=0.02,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(SHARPNESS / 0.02 / hidden)
    return model.to(dtype)


SHARPNESS = 20.0
"""Logit of the token that stands there already: the head is the embedding, so that a token predicts itself."""


def make_rows(num: int, longest: int) -> list[np.ndarray]:
    """Random tokens, three in four the same as the one before: likely ones and surprises, as in a text."""
    draw = np.random.default_rng(0)
    rows = []
    for length in draw.permutation(np.geomspace(32, longest, num).round().astype(int)):
        new = draw.random(length) < 0.25
        new[0] = True
        tokens = draw.integers(VOCABULARY, size=length, dtype=np.int32)
        rows.append(tokens[np.maximum.accumulate(np.where(new, np.arange(length), 0))])
    return rows


def in_file_order(rows: list[np.ndarray], budget: int) -> Iterator[list[int]]:
    """Rows that follow each other, as many as `budget` tokens hold with padding."""
    batch: list[int] = []
    for i in range(len(rows)):
        if batch and max(len(rows[j]) for j in (*batch, i)) * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def padded(rows: list[np.ndarray], batch: list[int]) -> tuple[Tensor, Tensor]:
    width = max(len(rows[i]) for i in batch)
    ids, mask = torch.zeros(2, len(batch), width, dtype=torch.long)
    for at, i in enumerate(batch):
        ids[at, : len(rows[i])] = torch.from_numpy(rows[i])
        mask[at, : len(rows[i])] = 1
    return ids, mask


@torch.no_grad()
def score_padded(model: Any, rows: list[np.ndarray], budget: int) -> Mean:
    nll = []
    for batch in in_file_order(rows, budget):
        ids, mask = padded(rows, batch)
        log_p = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        of_token = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        del log_p
        nll += [-of_token[at, START - 1 : len(rows[i]) - 1].mean().item() for at, i in enumerate(batch)]
    return nll, []


@torch.no_grad()
def score_fused(model: Any, rows: list[np.ndarray], budget: int) -> Mean:
    nll, entropies = [], []
    for batch in in_file_order(rows, budget):
        ids, mask = padded(rows, batch)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :START] = -100
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        counts = output.label_mask.sum(1)
        nll += (-output.log_probs.sum(1) / counts).tolist()
        entropies += (output.entropy.masked_fill(~output.label_mask, 0).sum(1) / counts).tolist()
    return nll, entropies


def score_ours(
    model: Any, rows: list[np.ndarray], section: Score, starts: Sequence[int] | None = None
) -> Mean:
    """Each row from its start on."""
    starts = starts or [START] * len(rows)
    means = np.empty((2, len(rows)))
    for batch in batches.by_token_budget([len(ids) for ids in rows], section.batch_tokens):
        statistics, counts = log_probs.batch_statistics(
            model, [rows[i] for i in batch], [starts[i] for i in batch], section.chunk
        )
        bounds = np.concatenate([[0], np.cumsum(counts)[:-1]])
        for values, of_row in zip((-statistics.log_probs, statistics.entropies), means, strict=True):
            of_row[batch] = np.add.reduceat(values.double().numpy(), bounds) / counts
    return means[0].tolist(), means[1].tolist()


@torch.no_grad()
def multiply_only(
    model: Any, rows: list[np.ndarray], section: Score, starts: Sequence[int] | None = None
) -> Mean:
    """The linear layers, both products of attention over half of the square, and the head over the scored positions."""
    starts = starts or [START] * len(rows)
    config = model.config
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    inputs = {n: torch.randn(1, n, dtype=model.dtype) for n in (config.hidden_size, config.intermediate_size)}
    layers = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    weight = model.get_output_embeddings().weight
    for batch in batches.by_token_budget([len(ids) for ids in rows], section.batch_tokens):
        width = len(rows[batch[0]])
        for layer in layers:
            log_probs.linear(
                inputs[layer.in_features].expand(len(batch) * width, -1), layer.weight, layer.bias
            )
        query, value = (torch.randn(len(batch) * heads, width, size, dtype=model.dtype) for _ in range(2))
        for start in range(0, width, 512) if width else ():
            part = query[:, start : start + 512]
            seen = (start + part.shape[1] // 2) or 1
            for _ in range(config.num_hidden_layers):
                (part @ value[:, :seen].mT) @ value[:, :seen]
        num = sum(len(rows[i]) - starts[i] for i in batch)
        for first in range(0, num, section.chunk):
            before = inputs[config.hidden_size].expand(min(section.chunk, num - first), -1).contiguous()
            columns = max(log_probs.MIN_WIDTH, log_probs.TILE["cpu"] // len(before))
            for start in range(0, len(weight), columns):
                log_probs.linear(before, weight[start : start + columns])
    return [], []


def run_one(way: str, arguments: argparse.Namespace) -> None:
    """Prints the seconds, the peak and the means as one line of JSON."""
    logging.set_verbosity_error()
    dtype = torch.bfloat16 if way.endswith("bf16") else torch.float32
    model = make_model(arguments.hidden, arguments.layers, dtype)
    rows = make_rows(arguments.rows, arguments.longest)
    section = Score(
        **{name: getattr(arguments, name) for name in ("batch_tokens", "chunk") if getattr(arguments, name)}
    )
    work: Callable[[Any, list[np.ndarray], Any], Mean]
    if way in ("padded", "fused"):
        work, setting = (score_padded if way == "padded" else score_fused), arguments.longest
    else:
        work, setting = (multiply_only if way.startswith("bare") else score_ours), section
    if way == "fused":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    work(model, [ids[:64] for ids in rows[:1]], setting)
    weights = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, cpu = [], []
    for _ in range(1 if arguments.quick else REPEATS.get(way, 3)):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        nll, entropy = work(model, rows, setting)
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - cpu_begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "seconds": statistics.median(seconds),
        "cpu": statistics.median(cpu),
        "spread": [min(seconds), max(seconds)],
    }
    print(json.dumps(found | {"peak": peak / 1024, "before": weights / 1024, "nll": nll, "entropy": entropy}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the longest response")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, help="default: that of config.Score")
    parser.add_argument("--chunk", type=int, help="default: that of config.Score")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--quick", action="store_true", help="a trial of seconds: 8 responses up to 512 tokens, once"
    )
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.longest = 8, 512
    if arguments.one:
        run_one(arguments.one, arguments)
        return
    found: dict[str, dict[str, Any]] = {}
    for way in arguments.ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout)
        shown = {name: value for name, value in found[way].items() if name not in ("nll", "entropy")}
        print(way, shown, file=sys.stderr, flush=True)
    report(arguments, found)


def report(arguments: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """The section of RESULTS.md."""
    lengths = [len(ids) for ids in make_rows(arguments.rows, arguments.longest)]
    rate = {way: sum(lengths) / values["seconds"] for way, values in found.items()}
    print("## Scoring: `benchmarks/scoring.py`\n")
    print(
        f"A random Qwen2 (hidden {arguments.hidden}, {arguments.layers} layers, vocabulary {VOCABULARY:,}) scores\n"
        f"{len(lengths)} responses of {min(lengths)} to {max(lengths):,} tokens ({sum(lengths):,}, spread evenly\n"
        "over the logarithm of the length, in random order), each from its 17th token on. Every way runs in a process\n"
        f"of its own. The first two take rows in order, as many as {arguments.longest:,} tokens hold with padding;\n"
        "the padded way computes no entropies, all others do. Peak memory is the process's, libraries and weights\n"
        "included. The matrix products alone are the bound: linear layers, causal attention and head at oxa's shapes,\n"
        "by the same kernels.\n"
    )
    print(
        "| way | seconds | CPU s | tokens/s | peak MiB | before the first batch, MiB | mean NLL off by at most |"
    )
    print("|---|---|---|---|---|---|---|")
    truth = found.get("padded") or found.get("ours")
    for way, values in found.items():
        gaps = [abs(a - b) for a, b in zip(values["nll"], truth["nll"], strict=False)] if truth else []
        off = f"{max(gaps):.1e}" if gaps and values is not truth else "–"
        print(
            f"| {WAYS[way]} | {values['seconds']:.1f} | {values['cpu']:.1f} | {rate[way]:,.0f} "
            f"| {values['peak']:,.0f} | {values['before']:,.0f} | {off} |"
        )
    print()
    if "ours" not in found:
        return
    if truth is not found["ours"]:
        nll = truth["nll"]
        print(
            f"Mean NLL of a response: {min(nll):.2f} to {max(nll):.2f} nats a token; the last column is against the "
            "padded way.\n"
        )
    for way, target in (("padded", 4.0), ("fused", 1.3)):
        if way in found:
            row("scoring, tokens/s", WAYS[way], rate["ours"] / rate[way], target)
    if "padded" in found:
        peak = found["ours"]["peak"] / found["padded"]["peak"]
        row("scoring, peak memory", WAYS["padded"], peak, 1 / 8, better="lower")
    for ours, bare in (("ours", "bare"), ("ours-bf16", "bare-bf16")):
        if ours in found and bare in found:
            row(f"scoring, tokens/s ({WAYS[ours]})", WAYS[bare], rate[ours] / rate[bare])
    if "ours-bf16" in found:
        row("scoring, tokens/s, bfloat16 weights", "oxa in float32", rate["ours-bf16"] / rate["ours"])


if __name__ == "__main__":
    main()
