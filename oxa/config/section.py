"""What every section of params.yaml is: frozen, without unknown keys, each field explained below it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from oxa.errors import without_credentials

Count = Annotated[int, Field(ge=1)]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


Share = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def argument(pattern: re.Pattern[str], value: Any) -> str | None:
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    return match[1] if match else None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


# names become parts of file names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=100)]


# written down without user and password, wherever a section is
Address = Annotated[
    str, Field(pattern=r"^https?://[^/?#\s]+(/[^?#\s]*)?$"), PlainSerializer(without_credentials)
]


def _arm(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(
            "an arm's name is a letter, then letters, digits and _ (DVC reads a dot as the way into a section, and 1e5 "
            "as a number)"
        )
    return name


Arm = Annotated[str, Field(max_length=100), AfterValidator(_arm)]
"""Name of an arm, which is a key of params.yaml that DVC looks up, and a part of stages' names."""

Verdict = Literal["correct", "incorrect", "unsure", "unparsable", "timeout", "bad_gold"]
"""What grading an answer comes to."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sampling(Section):
    """Settings of one draw, which every section that generates text has."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: the fewest tokens whose probability reaches this; 1 keeps all."""
    max_tokens: Count
    """Longest response, tokens; one that reaches it has finish_reason `length`."""
    seed: Seed = 0
    """Seed of every draw."""
