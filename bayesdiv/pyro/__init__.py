"""Objectives by name for Pyro: ``objective`` goes wherever ``Trace_ELBO()`` goes."""

from bayesdiv.pyro._fit import FitResult, fit
from bayesdiv.pyro._objective import DivergenceELBO, objective

__all__ = ["DivergenceELBO", "FitResult", "fit", "objective"]
