"""State-space models with what is known of them in closed form.

Functions of their parameters, which may be traced, that return a
:class:`bayesdiv.models.state_space.StateSpaceModel`.
"""

from bayesdiv.models._state_space_plane import bearings_only, norm_observed_walk, tobit
from bayesdiv.models._state_space_scalar import (
    arch_in_noise,
    growth,
    linear_gaussian,
    simulate_volatility_with_leverage,
    stochastic_volatility,
    stochastic_volatility_with_leverage,
)
from bayesdiv.models.kalman import LinearGaussianParameters

__all__ = [
    "LinearGaussianParameters",
    "arch_in_noise",
    "bearings_only",
    "growth",
    "linear_gaussian",
    "norm_observed_walk",
    "simulate_volatility_with_leverage",
    "stochastic_volatility",
    "stochastic_volatility_with_leverage",
    "tobit",
]
