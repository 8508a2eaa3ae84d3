"""Rollouts of a training step: drawn from the model as it is, and graded as evaluation grades.

The random numbers of a rollout follow from (seed, response_id), and its id from the problem, the seed, the step and its
place in the group: they are the same for every arm, however the step is cut into batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oxa import hashes
from oxa.config.rlvr import Rlvr
from oxa.config.section import Sampling
from oxa.generation import sampler
from oxa.generation.requests import Request
from oxa.grading.grader import Grader
from oxa.rl import temperature
from oxa.training.steps import not_finite


class Problem(NamedTuple):
    user: str
    """The user turn: question and suffix."""
    prompt: list[int]
    """Token ids up to where the rollout begins."""
    answers: list[str]
    """Accepted gold answers."""


class Drawn(NamedTuple):
    tokens: list[int]
    log_p: list[float]
    """Of each token when it was drawn, at the rollouts' temperature."""


class Judged(NamedTuple):
    verdict: str
    truncated: bool
    """Whether it reached max_tokens or the model's context without an end token."""


class Rollouts:
    """Draws and grades the rollouts of one training; `problems` by id, `ends` the tokens that end a response.

    `temperature` is theirs; where the section names an entropy, it has to be set first (`entropy_at` helps to find it).
    """

    def __init__(
        self,
        section: Rlvr,
        problems: dict[str, Problem],
        tokenizer: Any,
        ends: Tensor,
        context: int,
        grader: Grader,
        seed: int,
    ) -> None:
        self.section = section
        self._problems, self._tokenizer, self._ends = problems, tokenizer, ends
        self._context, self._grader, self._seed = context, grader, seed
        self.temperature = math.nan if isinstance(section.temperature, str) else section.temperature

    def draw(self, problem_ids: Sequence[str], trainer: Any) -> dict[str, Any]:
        """This process's rollouts of the next step, for TRL's `rollout_func`; one for every entry of `problem_ids`.

        TRL lays a step's rollouts out problem by problem and hands every process one part of them, in its turn.
        """
        first, step = trainer.accelerator.process_index * len(problem_ids), trainer.state.global_step
        requests = [
            self._request(problem_id, f"{step}/{place % self.section.num_generations}")
            for place, problem_id in enumerate(problem_ids, first)
        ]
        model = trainer.model
        model.eval()  # in training mode, gradient checkpointing would take the cache away
        try:
            with trainer.accelerator.autocast():
                drawn = self._complete(model, requests, step, self.temperature)
        finally:
            model.train()
        return {
            "prompt_ids": [request.prompt for request in requests],
            "completion_ids": [one.tokens for one in drawn],
            "logprobs": [one.log_p for one in drawn] if self._is_rough else None,
        }

    @property
    def _is_rough(self) -> bool:
        """Whether what draws and what trains differ: by 1e-6 a token in float32, and weights of 1 are taken for it.

        In bfloat16, with the cache and without, ln p differs by 0.005 a token in the small world's student.
        """
        return self.section.dtype == "bfloat16"

    def entropy_at(self, model: Any, problem_ids: Sequence[str], of_rollouts: float) -> float:
        """Mean entropy, nats a token, of a group of rollouts to each of these problems, at that temperature.

        They are others than those of the training, and drawn with the same random numbers at every temperature.
        """
        places = range(self.section.num_generations)
        requests = [self._request(name, f"temperature/{place}") for name in problem_ids for place in places]
        drawn = self._complete(model, requests, 0, of_rollouts)
        prompts, completions = [one.prompt for one in requests], [one.tokens for one in drawn]
        return temperature.entropy(model, prompts, completions, of_rollouts)

    def _request(self, problem_id: str, key: str) -> Request:
        response_id = hashes.response_id(problem_id, "rollout", "", f"{self._seed}/{key}")
        return Request(response_id, self._problems[problem_id].prompt)

    def _complete(self, model: Any, requests: list[Request], step: int, of_rollouts: float) -> list[Drawn]:
        section = self.section
        sampling = Sampling(
            temperature=of_rollouts,
            top_p=section.top_p,
            max_tokens=section.max_tokens,
            seed=self._seed,
        )
        drawn: list[Drawn] = [Drawn([], [])] * len(requests)
        by_length = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
        for start in range(0, len(by_length), section.batch_size):
            rows = by_length[start : start + section.batch_size]
            shard = [requests[i] for i in rows]
            limits = [min(section.max_tokens, self._context - len(request.prompt)) for request in shard]
            tokens, num_tokens, _, entropy, log_p = sampler.complete(
                model, shard, limits, self._ends.to(model.device), sampling
            )
            if not torch.isfinite(entropy).all():
                raise not_finite("rlvr.learning_rate", section.learning_rate, "entropy", "nan", step + 1)
            found = zip(rows, tokens.tolist(), log_p.tolist(), num_tokens.tolist(), strict=True)
            for i, row, of_tokens, n in found:
                drawn[i] = Drawn(row[:n], of_tokens[:n])
        return drawn

    def grade(self, problem_ids: Sequence[str], completions: Sequence[list[int]]) -> list[Judged]:
        """Verdicts as evaluation gives them: on the text with its special tokens, without the end token."""
        ends = set(self._ends.tolist())
        truncated = [ids[-1] not in ends for ids in completions]
        cut = [ids if short else ids[:-1] for ids, short in zip(completions, truncated, strict=True)]
        texts = self._tokenizer.batch_decode(
            cut, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        items = [
            (self._problems[problem_id].answers, text, "length" if short else "stop")
            for problem_id, text, short in zip(problem_ids, texts, truncated, strict=True)
        ]
        graded = self._grader.grade(items, description="")
        return [Judged(grade.verdict, short) for grade, short in zip(graded, truncated, strict=True)]
