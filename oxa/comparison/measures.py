"""What is measured of an arm: names, units, and which measures a comparison is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxa.comparison import estimators as statistics
from oxa.comparison.outcomes import Outcomes

OF_COUNTS = {"pass_at": statistics.pass_at_k, "pass_hat": statistics.pass_hat_k}


Floats = NDArray[np.float64]


Members = NDArray[np.bool_]


POOLED = "pooled"


def family(found: Outcomes, members: Members) -> list[str]:
    """Metrics that Holm's correction covers and that may be shown to differ."""
    return asked(int(found.num_samples[members].min()))


def measures(found: Outcomes, members: Members) -> list[str]:
    """Metrics that have an interval; maj@n where all problems have as many samples."""
    num_samples = found.num_samples[members]
    ks = statistics.k_values(int(num_samples.min()))
    voted = [f"maj_at_{ks[-1]}"] if num_samples.min() == num_samples.max() else []
    return [
        *(f"pass_at_{k}" for k in ks),
        *(f"pass_hat_{k}" for k in ks),
        *voted,
        "mean_entropy",
        "mean_tokens",
    ]


def kind_of(name: str) -> tuple[str, int]:
    """`pass_at_8` as pass_at and 8; of a metric that is a field of Outcomes, the field's name."""
    kind, _, k = name.rpartition("_")
    if kind in OF_COUNTS:
        return kind, int(k)
    return ("majority" if kind == "maj_at" else name), 0


Summary = Mapping[str, Any]


Row = Mapping[str, Any]


def asked(num_samples: int) -> list[str]:
    """Metrics that the question is about, where a problem has so many samples."""
    return ["pass_at_1", *([f"pass_at_{num_samples}"] if num_samples > 1 else []), "mean_entropy"]
