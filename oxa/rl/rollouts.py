"""Rollouts of a training step: drawn from the model as it is, and graded as evaluation grades.

The random numbers of a rollout follow from (seed, response_id), and its id from the problem, the seed, the step and its
place in the group: they are the same for every arm, however the step is cut into batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from oxa import hashes
from oxa.config.rlvr import Rlvr
from oxa.config.section import Sampling
from oxa.generation import sampler
from oxa.generation.requests import Request
from oxa.grading.grader import Grader
from oxa.rl import temperature
from oxa.rl.order import passes, unseen
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
    num_tokens: int


class Rollout(NamedTuple):
    problem_id: str
    drawn: Drawn
    judged: Judged


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
        self.judged: list[Judged] = []
        """Of all that a dynamic step drew, group after group, what gave way included."""
        self.num_read = 0
        """How far a dynamic step has read the order of problems."""
        self.temperature = math.nan if isinstance(section.temperature, str) else section.temperature

    def draw(self, problem_ids: Sequence[str], trainer: Any) -> dict[str, Any]:
        """This process's rollouts of the next step, for TRL's `rollout_func`; one for every entry of `problem_ids`.

        TRL lays a step's rollouts out problem by problem and hands every process one part of them, in its turn. Dynamic
        sampling finds problems of its own; further entries then go to the trainer's reward.
        """
        first = trainer.accelerator.process_index * len(problem_ids)
        places = [place % self.section.num_generations for place in range(first, first + len(problem_ids))]
        names, of_reward = list(problem_ids), {}
        if self.section.sampling == "dynamic":
            whole = self._resampled(trainer)
            part = whole[first : first + len(problem_ids)]
            names, drawn = [one.problem_id for one in part], [one.drawn for one in part]
            of_reward = {"problem_id": names, "judged": [one.judged for one in part]}
        else:
            drawn = self._drawn(trainer, list(zip(names, places, strict=True)))
        return {
            "prompt_ids": [self._problems[name].prompt for name in names],
            "completion_ids": [one.tokens for one in drawn],
            "logprobs": [one.log_p for one in drawn] if self._is_rough else None,
            **of_reward,
        }

    def _drawn(self, trainer: Any, rows: Sequence[tuple[str, int]]) -> list[Drawn]:
        """To each problem, the rollout of that place in its group, by the policy as it is."""
        model, step = trainer.model, trainer.state.global_step
        model.eval()  # in training mode, gradient checkpointing would take the cache away
        try:
            with self._arithmetic(trainer):
                requests = [self._request(name, f"{step}/{place}") for name, place in rows]
                return self._complete(model, requests, step, self.temperature)
        finally:
            model.train()

    def _arithmetic(self, trainer: Any) -> AbstractContextManager[Any]:
        """That of training, but where it is bfloat16 on a CPU: at every token it would round all weights anew."""
        if trainer.accelerator.device.type == "cpu" and not self.section.adapter:
            return nullcontext()
        context: AbstractContextManager[Any] = trainer.accelerator.autocast()
        return context

    def _resampled(self, trainer: Any) -> list[Rollout]:
        """A step's rollouts, of all processes: groups of unequal rewards as far as they can be had.

        How far earlier steps have read the order of problems stands in their log, which checkpoints keep.
        """
        section, process = self.section, trainer.accelerator
        self.num_read = sum(row["num_read"] for row in trainer.history())
        order = chain.from_iterable(passes(sorted(self._problems), self._seed))
        stream = islice(order, self.num_read, None)
        unequal: list[list[Rollout]] = []
        equal: list[list[Rollout]] = []
        seen: set[str] = set()
        self.judged = []
        for _ in range(1 + section.max_resamplings):
            missing = section.num_prompts - len(unequal)
            names, num_read = unseen(stream, seen, missing, len(self._problems))
            self.num_read += num_read
            rows = [(name, place) for name in names for place in range(section.num_generations)]
            start, end = (
                len(rows) * i // process.num_processes
                for i in (process.process_index, process.process_index + 1)
            )
            drawn = self._drawn(trainer, rows[start:end])
            own = [name for name, _ in rows[start:end]]
            judged = self.grade(own, [one.tokens for one in drawn])
            found: list[Rollout] = gather_object(list(map(Rollout, own, drawn, judged)))
            self.judged += [one.judged for one in found]
            for at in range(0, len(found), section.num_generations):
                group = found[at : at + section.num_generations]
                rewards = {one.judged.verdict == "correct" for one in group}
                (unequal if len(rewards) > 1 else equal).append(group)
            if len(unequal) == section.num_prompts or len(seen) == len(self._problems):
                break
        return list(chain.from_iterable((unequal + equal)[: section.num_prompts]))

    @property
    def _is_rough(self) -> bool:
        """Whether what draws and what trains differ: by 1e-6 a token in float32, and weights of 1 are taken for it.

        In bfloat16, with the cache and without, ln p differs by 0.005 a token in the small world's student.
        """
        return self.section.dtype == "bfloat16"

    def entropy_at(self, model: Any, problem_ids: Sequence[str], of_rollouts: float) -> float:
        """Token entropy, nats a token, of a group of rollouts to each of these problems, at that temperature.

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
        return [
            Judged(grade.verdict, short, len(ids))
            for grade, short, ids in zip(graded, truncated, completions, strict=True)
        ]
