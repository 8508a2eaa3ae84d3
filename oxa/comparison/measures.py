"""The metrics of the report: what each is called, how it is computed from a checkpoint's outcomes, how it is written.

To add one, add an entry to METRICS, and a field to Tally (outcomes.py) where it takes what is not counted there yet.
A benchmark's number is the mean of a metric's values over its problems, and over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxa.comparison import estimators
from oxa.comparison.outcomes import Floats, Integers, Tally

Members = NDArray[np.bool_]
"""Which problems belong to a group, [P]."""
Summary = Mapping[str, Any]
"""What arms.summarize returns."""
Row = Mapping[str, Any]
"""A part of it: an arm's numbers on a group, or a difference."""

POOLED = "pooled"
"""All problems of all benchmarks, each weighing the same."""
MACRO = "macro"
"""The mean over benchmarks of their means, each weighing the same: the paper's average."""


class Unit(NamedTuple):
    """How the values of a metric are written."""

    value: str
    """`nats a token`; empty where a metric's title says what is counted. Narrow columns leave ` a …` out."""
    difference: str
    scale: float = 1
    """Written values are this times larger."""
    digits: int = 1
    """Decimals."""
    digits_alone: int = 1
    """Decimals where neither an interval nor a difference stands beside the value."""
    highest: float = math.inf
    """What no value exceeds; none is below 0."""


SHARE = Unit("%", "points", scale=100, highest=1.0)
NATS = Unit("nats a token", "nats a token", digits=3)


class Metric(NamedTuple):
    """One thing that is measured of an arm."""

    name: str
    """Its key in summary.json; the ends of its interval are NAME_low and NAME_high."""
    title: str
    unit: Unit
    values: Callable[[Integers, Tally], Floats | Integers]
    """Of problems' numbers of samples and what these amount to, a value a problem [P]; NaN where one has none."""
    role: Literal["question", "beside", "summary"] = "beside"
    """`question`: among those that the comparison is about: first in every table, with claims and differences, in the
    family of Holm's correction. `beside`: a column of the tables. `summary`: in summary.json alone."""
    interval: Literal["shown", "stored", ""] = "shown"
    """Whether it has an interval: in the tables, too, in summary.json alone, or none."""
    more_is_better: bool | None = None
    """None: neither more nor less is."""
    solved: str = ""
    """`at the first try`: when a problem counts as solved, of a metric that counts these."""
    words: str = ""
    """Its title where there is room, if that is another."""
    of_several: bool = False
    """Whether it says something only where a problem has several samples."""

    @property
    def heading(self) -> str:
        """Of a narrow column: `token entropy, nats`."""
        return _with_unit(self.title, _short(self.unit.value))

    @property
    def long_heading(self) -> str:
        return _with_unit(self.words or self.title, self.unit.value)

    @property
    def difference_heading(self) -> str:
        """Of a narrow column of differences: `Δ token entropy, nats`."""
        return _with_unit(f"Δ {self.title}", _short(self.unit.difference))

    def text(self, value: float) -> str:
        return f"{self.unit.scale * value:.{self.unit.digits}f}"

    def signed(self, value: float) -> str:
        """A difference, with its sign; what rounds to 0 has none that says something, and gets a +."""
        return f"{round(self.unit.scale * value, self.unit.digits) + 0.0:+.{self.unit.digits}f}"

    def alone(self, value: float, separator: str = "") -> str:
        """A value without an interval; `separator` of thousands."""
        return f"{self.unit.scale * value:{separator}.{self.unit.digits_alone}f}"


def _with_unit(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def _short(unit: str) -> str:
    return unit.partition(" a ")[0]


def pass_at(k: int, role: Literal["question", "summary"] = "summary") -> Metric:
    values = partial(_of_counts, estimators.pass_at_k, k)
    solved = "at the first try" if k == 1 else f"in at least one of {k} tries"
    return Metric(f"pass_at_{k}", f"pass@{k}", SHARE, values, role, more_is_better=True, solved=solved)


def pass_hat(k: int, role: Literal["beside", "summary"] = "summary") -> Metric:
    values = partial(_of_counts, estimators.pass_hat_k, k)
    metric = Metric(f"pass_hat_{k}", f"pass^{k}", SHARE, values, role, more_is_better=True, of_several=True)
    return metric._replace(solved=f"in all of {k} tries", words=f"all {k} right")


def _of_counts(formula: Callable[..., Floats], k: int, num_samples: Integers, tally: Tally) -> Floats:
    return formula(num_samples, tally.num_correct, k)


def maj_at(n: int) -> Metric:
    """Of all n samples of every problem."""
    metric = Metric(f"maj_at_{n}", f"maj@{n}", SHARE, lambda _, tally: tally.majority, more_is_better=True)
    return metric._replace(words=f"majority of {n}", of_several=True)


TOKENS = Metric(
    "mean_tokens",
    "tokens",
    Unit("", "tokens", digits_alone=0),
    lambda _, tally: tally.mean_tokens,
    interval="stored",
)
METRICS = [
    Metric("response_entropy", "response entropy", NATS, lambda _, tally: tally.response_entropy, "question"),
    Metric(
        "token_entropy",
        "token entropy",
        NATS,
        lambda _, tally: estimators.token_entropy(tally.entropy, tally.entropy_tokens),
        "question",
    ),
    Metric(
        "distinct_answers",
        "distinct answers",
        Unit("", "answers"),
        lambda _, tally: tally.distinct_answers,
        interval="",
        of_several=True,
    ),
    TOKENS,
    Metric("truncated", "cut", SHARE, lambda _, tally: tally.truncated, interval="", more_is_better=False),
]
"""Those that do not depend on how many samples a problem has, in the order of their columns."""


def metrics(num_samples: ArrayLike) -> list[Metric]:
    """All metrics of problems that have so many samples; maj@n where all have as many."""
    fewest, most = int(np.min(num_samples)), int(np.max(num_samples))
    ks = estimators.k_values(fewest)
    return [
        *(pass_at(k, "question" if k in (1, fewest) else "summary") for k in ks),
        *([maj_at(fewest)] if fewest == most else []),
        *(pass_hat(k, "beside" if k == fewest else "summary") for k in ks),
        *METRICS,
    ]


def question(num_samples: ArrayLike) -> list[Metric]:
    """Those that the comparison is about; the answer gives the first in numbers, the others in words."""
    return [metric for metric in metrics(num_samples) if metric.role == "question"]


def beside(num_samples: ArrayLike) -> list[Metric]:
    """Those with a column beside these."""
    return [metric for metric in metrics(num_samples) if metric.role == "beside"]
