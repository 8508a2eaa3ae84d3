"""Section `sample`: the student's own answers to the training problems."""

from __future__ import annotations

from pydantic import model_validator

from oxa.config.fine_tuning import FineTuning
from oxa.config.section import Count, Positive, Sampling, Seed

NUM_PROBED = 64
"""Problems that are answered before and after a warm-up, at most, to measure what it changed."""


class WarmUp(FineTuning):
    """A short plain fine-tuning of the base on verified teacher solutions, which makes what samples. For a base that
    does not write <think> and \\boxed{} when asked to: its own answers would all be unparsable."""

    num: Count = 300
    """Verified teacher solutions, chosen by hash, one a problem."""
    apart: bool = True
    """The problems of these solutions are kept from the arms: neither sampled nor selected."""
    seed: Seed = 0
    """Seed of the choice and of the order in training."""
    learning_rate: Positive = 2e-5
    """Peak of the schedule."""
    epochs: Positive = 2.0
    """Passes over the solutions."""
    num_ce: Count = 16
    """Sequences an optimiser step."""


class Sample(Sampling):
    """Self-samples: what the student itself answers to the training problems."""

    model: str | None = None
    """Checkpoint folder (not watched by DVC) or hub id that samples; none: the base itself, after its warm_up."""
    warm_up: WarmUp | None = None
    """Makes the sampler out of the base; none: the base samples as it is. The base scores in either case."""
    num_samples: Count = 4
    """Responses a training problem."""

    @model_validator(mode="after")
    def _one_sampler(self) -> Sample:
        if self.model is not None and self.warm_up is not None:
            raise ValueError(
                "either `model` names what samples, or `warm_up` makes it: leave one of them out"
            )
        return self
