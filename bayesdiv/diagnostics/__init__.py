"""Diagnostics: the ArviZ bridge, Pareto-smoothed weights, accuracy, comparison of objectives."""

from bayesdiv.diagnostics._accuracy import PosteriorAccuracy, compare_posteriors
from bayesdiv.diagnostics._arviz import to_arviz
from bayesdiv.diagnostics._compare import compare
from bayesdiv.diagnostics._comparison import Comparison
from bayesdiv.diagnostics._psis import SmoothedWeights, describe_k, psis, psis_resample

__all__ = [
    "Comparison",
    "PosteriorAccuracy",
    "SmoothedWeights",
    "compare",
    "compare_posteriors",
    "describe_k",
    "psis",
    "psis_resample",
    "to_arviz",
]
