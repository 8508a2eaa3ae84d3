"""The temperature that gives rollouts an entropy, against functions and models of which it is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oxa.errors import ConfigError
from oxa.model import loading
from oxa.rl import temperature


@given(st.floats(0.11, 2.9), st.floats(0.3, 3))
def test_the_temperature_of_a_known_entropy_is_found(wanted: float, power: float) -> None:
    found, entropy = temperature.matching(wanted**power, lambda t: t**power)
    assert found == pytest.approx(wanted, rel=0.004)
    assert entropy == found**power


def test_an_entropy_that_no_temperature_gives_is_refused() -> None:
    sentence = (
        r"entropy\(5\) is out of reach: .* 0\.1 nats a token at temperature 0\.1 and 3 at 3; name an entropy"
    )
    with pytest.raises(ConfigError, match=sentence):
        temperature.matching(5, lambda t: t)


def test_entropy_is_the_mean_over_tokens_of_the_tempered_distribution(checkpoint: Path) -> None:
    model, _ = loading.load(checkpoint)
    prompts, completions = [[7, 8, 9], [10]], [[11, 12], [13, 14, 15, 16]]
    values = []
    for prompt, completion in zip(prompts, completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        log_p = (logits.double() / 1.7).log_softmax(-1)
        values += (-(log_p.exp() * log_p).sum(-1)).tolist()
    found = temperature.entropy(model, prompts, completions, 1.7)
    assert len(values) == 6
    assert found == pytest.approx(math.fsum(values) / 6, rel=1e-5)
