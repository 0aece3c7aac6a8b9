"""Objectives by name for Pyro: ``objective`` goes wherever ``Trace_ELBO()`` goes."""

from bayesdiv.pyro._fit import FitResult, fit
from bayesdiv.pyro._objective import DivergenceELBO, objective
from bayesdiv.pyro._sample_objective import SampleObjective

__all__ = ["DivergenceELBO", "FitResult", "SampleObjective", "fit", "objective"]
