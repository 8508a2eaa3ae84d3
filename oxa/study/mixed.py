"""The mean difference over worlds by another way, as a check: a mixed model by statsmodels.

    d_wp = μ + b_w + e_wp        b_w ~ N(0, τ²) of world w, e_wp ~ N(0, σ²) of problem p in it

fitted by REML to the differences of paired rows, means over their seeds; what a problem adds to both rows alike falls
out. With as many problems in every world μ and its standard error are those of the t interval where τ² > 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oxa.errors import UserError


class Fitted(NamedTuple):
    mean: float
    error: float
    """Standard error of the mean."""
    spread: float
    """τ, in the unit of the differences."""


def fit(differences: Sequence[NDArray[np.float64]]) -> Fitted:
    """Of every world's differences, one a problem [P]. UserError where statsmodels is not installed."""
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM
        from statsmodels.tools.sm_exceptions import ConvergenceWarning
    except ImportError:
        raise UserError(
            "the study's mixed model needs statsmodels: pip install 'oxa[dev]', or take its mark out of the page"
        ) from None
    values = np.concatenate(differences)
    group = np.repeat(np.arange(len(differences)), [len(of) for of in differences])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # τ = 0 lies at the edge, and is an answer
        # by a method without derivatives: those with them stop short where τ is small
        found = MixedLM(values, np.ones((len(values), 1)), groups=group).fit(reml=True, method=["powell"])
    return Fitted(
        float(found.fe_params[0]), float(found.bse_fe[0]), math.sqrt(max(0.0, float(found.cov_re[0, 0])))
    )
