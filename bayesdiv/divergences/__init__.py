"""Divergences between a target p and an approximation q, on torch and JAX arrays alike."""

from bayesdiv.divergences._algebra import GeneralizedJensenShannon, Reversed, WeightedSum
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._categorical import between_logits
from bayesdiv.divergences._closed_form import closed_form
from bayesdiv.divergences._custom import CustomDivergence
from bayesdiv.divergences._distributional_sliced import DistributionalSlicedWasserstein
from bayesdiv.divergences._energy import EnergyDistance
from bayesdiv.divergences._gaussian import between_gaussians, gaussian_wasserstein2
from bayesdiv.divergences._max_sliced import MaxSlicedWasserstein
from bayesdiv.divergences._members import (
    Alpha,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    NeymanChi2,
    PearsonChi2,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
    TotalVariation,
)
from bayesdiv.divergences._mmd import MMD
from bayesdiv.divergences._registry import get_divergence, list_divergences
from bayesdiv.divergences._sinkhorn import Sinkhorn
from bayesdiv.divergences._sliced import SlicedWasserstein
from bayesdiv.divergences._two_sample import TwoSampleDivergence
from bayesdiv.divergences._wasserstein import Wasserstein

__all__ = [
    "MMD",
    "Alpha",
    "CustomDivergence",
    "DistributionalSlicedWasserstein",
    "EnergyDistance",
    "FDivergence",
    "ForwardKL",
    "GeneralizedJensenShannon",
    "Jeffreys",
    "JensenShannon",
    "MaxSlicedWasserstein",
    "NeymanChi2",
    "PearsonChi2",
    "Reversed",
    "ReverseKL",
    "Sinkhorn",
    "SlicedWasserstein",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "TotalVariation",
    "TwoSampleDivergence",
    "Wasserstein",
    "WeightedSum",
    "between_gaussians",
    "between_logits",
    "closed_form",
    "gaussian_wasserstein2",
    "get_divergence",
    "list_divergences",
]
