"""Distributions that Pyro lacks, or has with other numerics."""

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.pyro._autoregressive import AutoregressiveSequence
from bayesdiv.pyro._continuous_bernoulli import ContinuousBernoulli
from bayesdiv.pyro._mixture_of_experts import MixtureOfExperts
from bayesdiv.pyro._von_mises_fisher import VonMisesFisher

__all__ = [
    "AutoregressiveSequence",
    "ContinuousBernoulli",
    "MixtureOfExperts",
    "MixtureOfExpertsParameters",
    "VonMisesFisher",
]
