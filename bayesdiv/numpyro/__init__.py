"""Objectives by name for NumPyro's SVI, a fit without settings, stochastic-gradient kernels."""

from bayesdiv.numpyro._chain_checks import check_chains
from bayesdiv.numpyro._fit import FitResult, fit
from bayesdiv.numpyro._objective import DivergenceELBO, objective
from bayesdiv.numpyro._pytrees import register_divergence
from bayesdiv.numpyro._sample_objective import SampleObjective
from bayesdiv.numpyro._state import StatefulGuide
from bayesdiv.numpyro._stochastic_gradient import StochasticGradientKernel

__all__ = [
    "DivergenceELBO",
    "FitResult",
    "SampleObjective",
    "StatefulGuide",
    "StochasticGradientKernel",
    "check_chains",
    "fit",
    "objective",
    "register_divergence",
]
