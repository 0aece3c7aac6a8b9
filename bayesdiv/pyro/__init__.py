"""Objectives by name for Pyro, a fit that needs no settings, and kernels on minibatch gradients."""

from bayesdiv.pyro._empirical_prior import EmpiricalPrior
from bayesdiv.pyro._fit import FitResult, fit
from bayesdiv.pyro._non_finite import NonFinitePotentialError
from bayesdiv.pyro._objective import DivergenceELBO, objective
from bayesdiv.pyro._sample_objective import SampleObjective
from bayesdiv.pyro._stochastic_gradient import StochasticGradientKernel

__all__ = [
    "DivergenceELBO",
    "EmpiricalPrior",
    "FitResult",
    "NonFinitePotentialError",
    "SampleObjective",
    "StochasticGradientKernel",
    "fit",
    "objective",
]
