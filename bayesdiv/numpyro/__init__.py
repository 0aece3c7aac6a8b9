"""Objectives by name for NumPyro's SVI, and a fit that needs no settings."""

from bayesdiv.numpyro._fit import FitResult, fit
from bayesdiv.numpyro._objective import DivergenceELBO, objective
from bayesdiv.numpyro._pytrees import register_divergence
from bayesdiv.numpyro._sample_objective import SampleObjective
from bayesdiv.numpyro._state import StatefulGuide

__all__ = [
    "DivergenceELBO",
    "FitResult",
    "SampleObjective",
    "StatefulGuide",
    "fit",
    "objective",
    "register_divergence",
]
