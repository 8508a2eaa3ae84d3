"""RL on the smallest scale: a model that spells digits, problems that it can answer, and what a step should log."""

from __future__ import annotations

import math
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from conftest import Kept
from oxa import hashes, prompts
from oxa.config.generate import Generate
from oxa.config.prompt import Prompt
from oxa.config.rlvr import Rlvr, k_of
from oxa.config.section import Sampling
from oxa.config.verify import Verify
from oxa.generation import generate
from oxa.generation.requests import Request
from oxa.grading.grader import Grader
from oxa.model import loading
from oxa.records import schemas, tables
from oxa.rl.order import steps
from oxa.stages import rlvr

SECTION: dict[str, Any] = {
    "steps": 4,
    "save_every": 1,
    "checkpoint_every": 2,
    "num_prompts": 3,
    "num_generations": 8,
    "max_tokens": 3,
    "temperature": 0.9,
    "learning_rate": 1e-2,
    "kl_weight": 0.1,
    "micro_batch_size": 6,
}
"""4 micro-batches a step; a checkpoint after every other step, while the weights of each are kept."""
VERIFY = Verify(workers=1)
TEMPLATE = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}<|assistant|>"


def make_speller(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of 10 tokens, 4 of them digits, which closes a thought and writes a digit in 1 of 20 tries."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "?", "</think>", *"0123"]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"</think>|."), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    )
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        attention_dropout=0.3,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config.eos_token_id = [1]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def problem(question: str, split: str = "rlvr", golds: list[str] | None = None) -> dict[str, Any]:
    return {
        "problem_id": hashes.problem_id(question),
        "source": "test",
        "question": question,
        "answers": golds or ["0", "1", "2", "3"],
        "tier": "",
        "split": split,
    }


PROBLEMS = [problem(question) for question in ("0", "11", "2", "30", "13", "021", "3", "12")]


def write_problems(path: Path) -> Path:
    """PROBLEMS for RL, and two of other splits."""
    tables.write(path, [*PROBLEMS, problem("1", "train"), problem("22", "world")], schemas.PROBLEMS)
    return path


class Result:
    def __init__(self, metrics: dict[str, Any], output: Path, log: Kept) -> None:
        self.metrics, self.output, self.log = metrics, output, log

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        return load_file(self.output / f"step-{step}" / "model.safetensors")


def fit(
    model: Path, problems: Path, folder: Path, *, seed: int = 0, log: Kept | None = None, **section: Any
) -> Result:
    log = log or Kept()
    scratch, output = folder / "scratch", folder / "output"
    scratch.mkdir(parents=True, exist_ok=True)
    pass_rates = scratch / "pass_rates.parquet"
    tables.write(pass_rates, [], schemas.PASS_RATES)
    metrics = rlvr.run(
        Rlvr(**{**SECTION, **section}),
        Prompt(suffix=""),
        VERIFY,
        model=model,
        problems=problems,
        pass_rates=pass_rates,
        output=output,
        scratch=scratch,
        seed=seed,
        log=log,
    )
    return Result(metrics, output, log)


def over_subsets(rewards: list[float], k: int) -> torch.Tensor:
    """Each rollout's mean advantage over all subsets of k, written out (arXiv 2508.10751, before it is solved)."""
    subsets = list(combinations(range(len(rewards)), k))
    worth = torch.tensor([max(rewards[i] for i in subset) for subset in subsets]).double()
    if worth.std(correction=0) == 0:
        return torch.zeros(len(rewards)).double()
    scaled = (worth - worth.mean()) / worth.std(correction=0)
    of = [torch.tensor([i in subset for subset in subsets]) for i in range(len(rewards))]
    return torch.stack([scaled[mine].mean() for mine in of])


class Reference:
    """What a step should log, from responses drawn outside the training and plain logits in float32."""

    def __init__(
        self,
        policy: Path,
        start: Path,
        section: Rlvr,
        step: int,
        scratch: Path,
        order: list[str] | None = None,
    ) -> None:
        self.section = section
        network, tokenizer = loading.load(policy)
        reference, _ = loading.load(start)
        ids = sorted(row["problem_id"] for row in PROBLEMS)
        order = order or list(islice(steps(ids, section.num_prompts, 0), step))[-1]
        question = {row["problem_id"]: row["question"] for row in PROBLEMS}
        golds = {row["problem_id"]: row["answers"] for row in PROBLEMS}
        requests = [
            Request(
                hashes.response_id(problem_id, "rollout", "", f"0/{step - 1}/{index}"),
                prompts.prompt_ids(tokenizer, question[problem_id]),
            )
            for problem_id in order
            for index in range(section.num_generations)
        ]
        drawn = Sampling(
            temperature=section.temperature, top_p=section.top_p, max_tokens=section.max_tokens, seed=0
        )
        found = generate.generate(
            policy, requests, drawn, Generate(batch_size=7), scratch=scratch, description="rollouts"
        )
        owners = [problem_id for problem_id in order for _ in range(section.num_generations)]
        with Grader(VERIFY) as grader:
            graded = grader.grade(
                [(golds[p], f.text, f.finish_reason) for p, f in zip(owners, found, strict=True)]
            )
        self.verdicts = [grade.verdict for grade in graded]
        self.truncated = [f.finish_reason == "length" for f in found]
        self.rewards = torch.tensor([float(verdict == "correct") for verdict in self.verdicts]).double()
        self.log_p, self.log_q, self.entropy = [], [], []
        for request, one in zip(requests, found, strict=True):
            response = tokenizer(one.text, add_special_tokens=False)[
                "input_ids"
            ]  # control tokens are drawn, too
            response += [tokenizer.eos_token_id] * (one.finish_reason == "stop")
            assert len(response) == one.num_tokens
            whole = torch.tensor([request.prompt + response])
            kept = slice(len(request.prompt) - 1, -1)
            log_p = (network(whole).logits[0, kept] / section.temperature).log_softmax(-1)
            with torch.no_grad():
                log_q = (reference(whole).logits[0, kept] / section.temperature).log_softmax(-1)
            chosen = torch.tensor(response)[:, None]
            self.log_p.append(log_p.gather(-1, chosen)[:, 0])
            self.log_q.append(log_q.gather(-1, chosen)[:, 0])
            self.entropy.append(-(log_p.exp() * log_p).sum(-1).detach())
        self.network = network

    def advantages(self) -> torch.Tensor:
        groups = self.rewards.view(-1, self.section.num_generations)
        difference = groups - groups.mean(1, keepdim=True)
        if k := k_of(self.section.advantage):
            return torch.cat([over_subsets(group.tolist(), k) for group in groups])
        if self.section.scale_rewards == "group":
            difference = difference / (groups.std(1, keepdim=True) + 1e-4)
        elif self.section.scale_rewards == "batch":
            difference = difference / (self.rewards.std() + 1e-4)
        if self.section.advantage == "nsr":
            difference = difference * (1 - 0.9 * (difference > 0))
        return difference.view(-1)

    def logged(self) -> dict[str, float]:
        k3 = [(q - p).exp() - (q - p) - 1 for p, q in zip(self.log_p, self.log_q, strict=True)]
        per_token = [
            -(p - p.detach()).exp() * a + self.section.kl_weight * k
            for p, a, k in zip(self.log_p, self.advantages(), k3, strict=True)
        ]
        num_tokens = [len(p) for p in self.log_p]
        if self.section.loss == "grpo":
            loss = torch.stack([tokens.mean() for tokens in per_token]).mean()
        elif self.section.loss == "dapo":
            loss = torch.cat(per_token).mean()
        else:
            loss = torch.cat(per_token).sum() / (len(per_token) * self.section.max_tokens)
        loss.backward()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        right = (self.rewards == 1).view(-1, self.section.num_generations)
        return {
            "loss": loss.item(),
            "grad_norm": math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients)),
            "kl": torch.cat(k3).mean().item(),
            "token_entropy": torch.cat(self.entropy).mean().item(),
            "reward": self.rewards.mean().item(),
            "all_right": right.all(1).double().mean().item(),
            "all_wrong": (~right).all(1).double().mean().item(),
            "mean_tokens": sum(num_tokens) / len(num_tokens),
            "truncated": sum(self.truncated) / len(self.truncated),
            "unsure": self.verdicts.count("unsure") / len(self.verdicts),
            "unparsable": self.verdicts.count("unparsable") / len(self.verdicts),
            "timeout": self.verdicts.count("timeout") / len(self.verdicts),
        }
