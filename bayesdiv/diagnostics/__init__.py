"""Diagnostics: the ArviZ bridge and Pareto-smoothed importance sampling."""

from bayesdiv.diagnostics._arviz import to_arviz
from bayesdiv.diagnostics._psis import SmoothedWeights, describe_k, psis, psis_resample

__all__ = ["SmoothedWeights", "describe_k", "psis", "psis_resample", "to_arviz"]
