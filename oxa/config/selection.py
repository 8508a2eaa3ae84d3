"""Section `selection`: how an arm's training set is chosen."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from oxa.config.section import Arm, Count, Positive, Section, Seed, Share, Verdict, argument, is_number

_QUANTILE = re.compile(r"quantile\((0?\.\d+)\)")


_TOKENS = re.compile(r"tokens\(([1-9]\d*)\)")


def quantile_of(mean: float | str) -> float | None:
    """q of `quantile(q)`; None of a number."""
    q = argument(_QUANTILE, mean)
    return None if q is None else float(q)


def tokens_of(num_ce: int | str) -> int | None:
    """N of `tokens(N)`; None of a number of sequences."""
    budget = argument(_TOKENS, num_ce)
    return None if budget is None else int(budget)


def _mean(value: Any) -> Any:
    if not is_number(value) and quantile_of(value) is None:
        raise ValueError("expected a number above 0, or `quantile(q)` with q between 0 and 1")
    return value


def _number_or_tokens(value: Any) -> Any:
    if not (is_number(value) and isinstance(value, int)) and tokens_of(value) is None:
        raise ValueError("expected a number of sequences, or `tokens(N)` with N above 0")
    return value


CeRule = Literal["random", "lowest", "highest", "gaussian"]
"""A rule of the CE set, by its name in selection/rules.py."""

By = Literal["ppl", "rsr", "hes", "ifd", "length", "pass_rate"]
"""What a response is chosen by: a column of the scores, `length` being that of its tokens, or how often its problem was
solved."""


class CeSet(Section):
    """How an arm's CE set is chosen. A rule's name alone, as in `oxa_mle: gaussian`, is that rule by ppl."""

    by: By = "ppl"
    """What the rule looks at: perplexity, a measure that score computes where `score.measures` names it, the response's
    tokens, or the share of answers that solved its problem, where `pass_rate.splits` names train."""
    rule: CeRule
    """`lowest` and `highest` take those from one end, `gaussian` those whose values follow one, and `random` looks at
    none."""
    mean: Annotated[float | str, BeforeValidator(_mean)] | None = None
    """Mean of the Gaussian, or `quantile(q)` of all eligible responses; none: that of `selection.shared`, by ppl
    alone."""
    std: Positive | None = None
    """Its standard deviation; none: that of `selection.shared`. By another measure than ppl, the bins are a fifth of it
    wide and reach 4 to either side of the mean."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_what_the_rule_needs(self) -> CeSet:
        own = (self.mean, self.std)
        if self.rule != "gaussian" and own != (None, None):
            raise ValueError(f"mean and std belong to the rule gaussian; leave them out beside {self.rule}")
        if self.rule == "gaussian" and self.by != "ppl" and None in own:
            raise ValueError(
                f"a gaussian by {self.by} needs a mean (a number or `quantile(q)`) and a std of its own: those of "
                "selection.shared are ppl's"
            )
        return self

    @model_serializer(mode="wrap")
    def _plain(self, as_mapping: SerializerFunctionWrapHandler) -> Any:
        """By ppl, the rule's name alone: as it is mostly written."""
        return self.rule if (self.by, self.mean, self.std) == ("ppl", None, None) else as_mapping(self)


class SelectionShared(Section):
    """What all arms select by (METHOD §3)."""

    num_ce: Annotated[int | str, BeforeValidator(_number_or_tokens)]
    """CE sequences of every arm (the paper: 50,000); `tokens(30000)`: as many as have so many tokens together, so that
    arms have equal shares of tokens, and not of sequences."""
    per_problem: Count = 1
    """CE sequences from one problem, at most."""
    mean: Annotated[float | str, BeforeValidator(_mean)] = 2.5
    """Mean μ of the Gaussian over ppl; `quantile(0.7)`: that quantile of the ppl of all eligible teacher responses,
    since the scale of ppl is the student's own."""
    std: Positive = 0.25
    """Standard deviation σ of the Gaussian over ppl."""
    ppl_min: Annotated[float, Field(ge=1)] = 1.0
    """Lower end of the bins."""
    ppl_max: Positive = 5.0
    """Upper end of the bins."""
    bin_width: Positive = 0.05
    """Width of a bin, in ppl."""
    within_bin: Literal["longest", "random"] = "longest"
    """Which responses of a bin go first; `longest` is the paper's rule."""
    max_shortage: Share = 0.1
    """Share of num_ce that the Gaussian's empty bins may leave unfilled before the stage fails."""
    seed: Seed = 0
    """Seed of every draw."""

    @model_validator(mode="after")
    def _range(self) -> SelectionShared:
        if self.ppl_max <= self.ppl_min:
            raise ValueError("ppl_max must be above ppl_min")
        return self


class UnlikelihoodSet(Section):
    """Which incorrect self-samples an arm suppresses."""

    num: Count
    """UL sequences (the paper: as many as CE)."""
    min_ppl: Annotated[float, Field(ge=1)] = 1.2
    """Floor: what is more likely than this is a degenerate loop."""
    per_problem: Count = 1
    """UL sequences from one problem, at most."""
    verdicts: list[Verdict] = ["incorrect"]
    """Verdicts taken as evidence of a wrong pattern."""
    allow_length: bool = False
    """Take responses that were cut by length, too. Their tokens are suppressed, and no end token behind them: the
    student never wrote one."""
    consensus: Literal[False, True, "judge"] = False
    """Take a response only where a second check agrees that it is wrong. `true`: its answer and the gold one are plain
    numbers and differ (oxa/grading/second_check.py); `judge`: the language model of verify.judge calls it incorrect."""


class Selection(Section):
    shared: SelectionShared
    """What holds for every arm."""
    ce: dict[Arm, CeSet]
    """Rule of each arm's CE set."""
    ul: dict[Arm, UnlikelihoodSet] = {}
    """UL sets of the arms that have one."""
