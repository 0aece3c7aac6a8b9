"""Distributions that NumPyro lacks."""

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.numpyro._continuous_bernoulli import ContinuousBernoulli
from bayesdiv.numpyro._mixture_of_experts import MixtureOfExperts

__all__ = ["ContinuousBernoulli", "MixtureOfExperts", "MixtureOfExpertsParameters"]
