"""Sampling: oxa's loop against transformers' `generate` at its best batch size, both in this process, in turn.

    python benchmarks/sampling.py [--threads N] [--repeats N] [--problems N] [--batch-sizes N ...] [--cpu-time]

The model has the small world's shape (Qwen2, 4 layers, hidden 128, vocabulary 110, 0.8M parameters) and random weights.
Random weights never finish a sentence, so a hook on the head sets the end token's probability by the position in the
response, for both sides alike; workloads:

    even   every response ends between 60 and 100 tokens, all lengths equally likely
    loops  the same, but for 2% of the responses, which run into max_tokens (256), as degenerate loops do

8 samples of each problem, prompts of 14 to 24 tokens. Responses are drawn at temperature 1. `generate` gets its
prompts sorted by length and padded on the left, and every batch size; only its fastest counts. Tokens are those up to
the end token; model loading, tokenising and files are outside the clock on both sides. --cpu-time takes this process's
processor time in place of wall time: use it with one thread on a machine that others use, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from oxa import generate, sampler
from oxa.config import Sampling

BATCH_SIZES = (32, 64, 128, 256, 512)
MAX_TOKENS, END, NUM_SAMPLES = 256, 1, 8


def small_world_model() -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=110,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=END,
        pad_token_id=0,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def set_lengths(model: Any, loops: float) -> None:
    """Makes responses end at a uniform 60 to 100 tokens, a share `loops` of them never."""
    state = {"step": 0}

    def embedded(_: Any, args: tuple[Tensor], __: Tensor) -> None:
        state["step"] = 0 if args[0].shape[1] > 1 else state["step"] + 1

    def headed(_: Any, __: Any, logits: Tensor) -> Tensor:
        # the token drawn now is number step + 1; uniform over 60..100 with the rest spared has this hazard
        ahead = 101 - (state["step"] + 1)
        hazard = (1 - loops) / (loops * 41 + (1 - loops) * ahead) if 1 <= ahead <= 41 else 0.0
        logits[..., END] = -torch.inf
        if hazard > 0:
            others = logits[:, -1].logsumexp(-1)
            logits[:, -1, END] = others + float(torch.logit(torch.tensor(hazard).clamp(max=1 - 1e-7)))
        return logits

    model.model.embed_tokens.register_forward_hook(embedded)
    model.lm_head.register_forward_hook(headed)


def prompts(num_problems: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(14, 25, (num_problems,), generator=generator).tolist()
    return [torch.randint(2, 110, (n,), generator=generator).tolist() for n in lengths]


def with_generate(model: Any, problems: list[list[int]], batch_size: int) -> int:
    """Tokens made by transformers' generate."""
    rows = sorted((prompt for prompt in problems for _ in range(NUM_SAMPLES)), key=len)
    num_tokens = 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        whole = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
        )
        ended = (whole[:, width:] == END).cumsum(-1)  # what stands behind the end token is padding
        num_tokens += int(((ended == 0) | ((ended == 1) & (whole[:, width:] == END))).sum())
    return num_tokens


def with_oxa(model: Any, problems: list[list[int]], batch_size: int) -> int:
    """Tokens made by oxa."""
    requests = [
        generate.Request(f"{p}/{i}", prompt) for p, prompt in enumerate(problems) for i in range(NUM_SAMPLES)
    ]
    sampling = Sampling(max_tokens=MAX_TOKENS)
    num_tokens = 0
    for shard in generate._shards(requests, batch_size):
        _, counts, _, _ = sampler.complete(
            model, shard, [MAX_TOKENS] * len(shard), torch.tensor([END]), sampling
        )
        num_tokens += int(counts.sum())
    return num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    problems = prompts(options.problems)
    print(
        f"{options.threads} threads, {options.problems} problems x {NUM_SAMPLES} samples, best of {options.repeats}"
    )
    print("workload  batch  generate tok/s  oxa tok/s")
    for workload, loops in (("even", 0.0), ("loops", 0.02)):
        theirs_model, ours_model = small_world_model(), small_world_model()
        for model in (theirs_model, ours_model):
            set_lengths(model, loops)
        sampler.share_keys_among_query_heads(ours_model)
        sides: list[Callable[[int], int]] = [
            lambda size, model=theirs_model: with_generate(model, problems, size),  # type: ignore[misc]
            lambda size, model=ours_model: with_oxa(model, problems, size),  # type: ignore[misc]
        ]
        best = [0.0, 0.0]
        for batch_size in options.batch_sizes:
            rates = [0.0, 0.0]
            for _ in range(options.repeats):
                for side, make in enumerate(sides):
                    start = clock()
                    num_tokens = make(batch_size)
                    rates[side] = max(rates[side], num_tokens / (clock() - start))
            best = [max(b, r) for b, r in zip(best, rates, strict=True)]
            print(f"{workload:8}  {batch_size:5}  {rates[0]:14.0f}  {rates[1]:9.0f}", flush=True)
        print(
            f"{workload:8}   best  {best[0]:14.0f}  {best[1]:9.0f}  ratio {best[1] / best[0]:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
