"""State-space models written by hand, with the exact answers that filters are tested against."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayesdiv.inference.proposals import GuidedProposal

SLOPE = 0.9
# Log-evidence of the series of `linear_series`, by the emission's standard deviation.
KALMAN = {0.1: -141.31366772722137, 0.5: -161.34059152153986}


def linear_series(emission_scale: float, num_times: int = 100) -> np.ndarray:
    """x_0 ~ N(0, 1), x_t = 0.9 x_{t−1} + N(0, 1), y_t = x_t + N(0, emission_scale²)."""
    rng = np.random.default_rng(0)
    states = np.empty(num_times)
    states[0] = rng.normal()
    for time in range(1, num_times):
        states[time] = SLOPE * states[time - 1] + rng.normal()
    return states + emission_scale * rng.normal(size=num_times)


def linear_model(emission_scale: Any, slope: Any = SLOPE) -> SimpleNamespace:
    """The model of `linear_series`, with its exact predictive density."""
    return SimpleNamespace(
        initial=lambda: dist.Normal(0.0, 1.0),
        transition=lambda states, time: dist.Normal(slope * states, 1.0),
        emission=lambda states, time: dist.Normal(states, emission_scale),
        log_predictive=lambda states, time, observation: dist.Normal(
            slope * states, jnp.sqrt(1.0 + emission_scale**2)
        ).log_prob(observation),
        log_emission_supremum=lambda time, observation: (
            -jnp.log(emission_scale * math.sqrt(2.0 * math.pi))
        ),
    )


def optimal_proposal(emission_scale: float, slope: float = SLOPE) -> GuidedProposal:
    """p(x_t | x_{t−1}, y_t) of `linear_model`, at time 0 too."""
    variance = 1.0 / (1.0 + 1.0 / emission_scale**2)

    def law(states: Any, time: Any, observation: Any) -> dist.Normal:
        mean = variance * (observation / emission_scale**2 + slope * states)
        return dist.Normal(mean, math.sqrt(variance))

    return GuidedProposal(law, lambda observation: law(jnp.zeros(()), 0, observation))


def kalman(
    observations: np.ndarray, emission_scale: float, slope: float = SLOPE
) -> SimpleNamespace:
    """Exact filter and smoother of `linear_model`; NaN observations are missing."""
    count = len(observations)
    mean, variance = np.empty(count), np.empty(count)
    predicted, spread = np.zeros(count), np.ones(count)
    increments = np.zeros(count)
    for time, observed in enumerate(observations):
        if time:
            predicted[time] = slope * mean[time - 1]
            spread[time] = slope**2 * variance[time - 1] + 1.0
        mean[time], variance[time] = predicted[time], spread[time]
        if not np.isnan(observed):
            total = spread[time] + emission_scale**2
            gap = observed - predicted[time]
            increments[time] = -0.5 * (np.log(2.0 * np.pi * total) + gap**2 / total)
            mean[time] += spread[time] / total * gap
            variance[time] *= emission_scale**2 / total
    smooth_mean, smooth_variance = mean.copy(), variance.copy()
    for time in range(count - 2, -1, -1):
        gain = variance[time] * slope / spread[time + 1]
        smooth_mean[time] += gain * (smooth_mean[time + 1] - predicted[time + 1])
        smooth_variance[time] += gain**2 * (smooth_variance[time + 1] - spread[time + 1])
    return SimpleNamespace(
        increments=increments,
        log_evidence=increments.sum(),
        mean=mean,
        variance=variance,
        smooth_mean=smooth_mean,
        smooth_variance=smooth_variance,
    )


VOLATILITY = {"mean": -1.02, "slope": 0.9702, "scale": 0.178}


def volatility_model(*, capped: bool) -> SimpleNamespace:
    """Stochastic volatility y ~ N(0, e^x) with the exploding lookahead of a Taylor expansion.

    The expansion of log g about the transition's mean m, integrated against the transition, has a
    term in (y² e^{−m} − 1)², which is unbounded in m; the true p(y | x_{t−1}) is not.
    """
    mean, slope, scale = VOLATILITY["mean"], VOLATILITY["slope"], VOLATILITY["scale"]

    def centre(states: Any) -> Any:
        return mean + slope * (states - mean)

    def linearised(states: Any, time: Any, observation: Any) -> Any:
        middle = centre(states)
        excess = observation**2 * jnp.exp(-middle) - 1.0
        value = -0.5 * (math.log(2.0 * math.pi) + middle + excess + 1.0)
        return value + scale**2 * excess**2 / 8.0

    def supremum(time: Any, observation: Any) -> Any:
        return -0.5 * (1.0 + jnp.log(2.0 * math.pi * observation**2))

    return SimpleNamespace(
        initial=lambda: dist.Normal(mean, scale / math.sqrt(1.0 - slope**2)),
        transition=lambda states, time: dist.Normal(centre(states), scale),
        emission=lambda states, time: dist.Normal(0.0, jnp.exp(0.5 * states)),
        log_lookahead=linearised,
        log_emission_supremum=supremum if capped else None,
    )


def volatility_series(num_times: int, seed: int, outlier: float | None = None) -> np.ndarray:
    """Draws of `volatility_model`; ``outlier`` replaces the observation in the middle."""
    rng = np.random.default_rng(seed)
    mean, slope, scale = VOLATILITY["mean"], VOLATILITY["slope"], VOLATILITY["scale"]
    state = mean + scale / math.sqrt(1.0 - slope**2) * rng.normal()
    observations = np.empty(num_times)
    for time in range(num_times):
        observations[time] = math.exp(0.5 * state) * rng.normal()
        state = mean + slope * (state - mean) + scale * rng.normal()
    if outlier is not None:
        observations[num_times // 2] = outlier
    return observations


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)
