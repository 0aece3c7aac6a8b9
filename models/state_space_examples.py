"""State-space models with what is known of them in closed form: scalar states.

Parameters may be traced. Bounds and approximations are of log p(y_t | x_{t−1}), the density that
the best first stage of an auxiliary filter is proportional to.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from bayesdiv.models.kalman import LinearGaussianParameters
from bayesdiv.models.state_space import StateSpaceModel

__all__ = ["growth", "linear_gaussian", "stochastic_volatility"]

Number = jax.Array | float
LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def linear_gaussian(parameters: LinearGaussianParameters) -> StateSpaceModel:
    r"""Linear and Gaussian, of which :mod:`bayesdiv.models.kalman` knows everything.

    ``log_predictive`` is log N(y_t; C (A x_{t−1} + a) + c, C L Lᵀ Cᵀ + R Rᵀ).

    Parameters
    ----------
    parameters
        Numbers for states ``()``, matrices for states ``(dim,)``.

    Raises
    ------
    ValueError
        If shapes do not fit each other.
    """
    model = parameters.as_matrices()
    emission = model.emission_matrix
    spread = emission @ model.transition_scale
    noise = model.emission_scale @ model.emission_scale.T
    predictive_scale = jnp.linalg.cholesky(spread @ spread.T + noise)
    # The scale of the emission may be any root of its covariance.
    log_determinant = jnp.log(jnp.abs(jnp.diagonal(model.emission_scale))).sum()
    supremum = -log_determinant - len(noise) * LOG_ROOT_TWO_PI

    def law(mean: jax.Array, scale: jax.Array) -> dist.Distribution:
        if parameters.is_scalar:
            return dist.Normal(mean[..., 0], scale[0, 0])
        return dist.MultivariateNormal(mean, scale_tril=scale)

    def rows(states: jax.Array) -> jax.Array:
        return states[:, None] if parameters.is_scalar else states

    def move(states: jax.Array) -> jax.Array:
        return rows(states) @ model.transition_matrix.T + model.transition_offset

    def see(states: jax.Array) -> jax.Array:
        return rows(states) @ emission.T + model.emission_offset

    def log_predictive(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        mean = move(states) @ emission.T + model.emission_offset
        return law(mean, predictive_scale).log_prob(observation)

    return StateSpaceModel(
        initial=lambda: law(model.initial_mean, model.initial_scale),
        transition=lambda states, time: law(move(states), model.transition_scale),
        emission=lambda states, time: law(see(states), model.emission_scale),
        transition_mean=lambda states, time: move(states).reshape(states.shape),
        log_predictive=log_predictive,
        log_emission_supremum=lambda time, observation: supremum,
    )


def growth(
    emission_scale: Number = 1.0,
    *,
    transition_scale: Number = math.sqrt(10.0),
    initial_scale: Number = 2.0,
    num_nodes: int = 32,
) -> StateSpaceModel:
    r"""The non-linear growth model, whose sign the observations do not tell.

    .. math:: x_0 \sim N(0, s_0^2), \quad
              x_t = \frac{x_{t-1}}{2} + \frac{25 x_{t-1}}{1 + x_{t-1}^2} + 8 \cos(1.2 (t - 1))
                    + s \epsilon_t, \quad y_t = x_t^2 / 20 + r \eta_t.

    ``log_lookahead`` integrates the transition against the emission on ``num_nodes`` points on
    either side of zero, common to all particles, where the emission is not negligible.

    Parameters
    ----------
    emission_scale
        r.
    transition_scale
        s.
    initial_scale
        s₀.
    num_nodes
        Gauss-Legendre points a side.

    References
    ----------
    Gordon, Salmond and Smith (1993), "Novel approach to nonlinear/non-Gaussian Bayesian state
    estimation", section 4.1; Kitagawa (1987).
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(num_nodes)

    def mean(states: jax.Array, time: Any) -> jax.Array:
        drift = 8.0 * jnp.cos(1.2 * (jnp.asarray(time, states.dtype) - 1.0))
        return 0.5 * states + 25.0 * states / (1.0 + states**2) + drift

    def log_lookahead(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        # Seven scales from the mode of the emission, which is zero where y is negative.
        reach = 7.0 * emission_scale
        below = jnp.minimum(observation, 0.0)
        lower = jnp.sqrt(20.0 * jnp.maximum(observation - reach, 0.0))
        upper = jnp.sqrt(20.0 * (jnp.maximum(observation, 0.0) + _excess(below, reach)))
        half = 0.5 * (upper - lower)
        side = lower + half * (1.0 + jnp.asarray(nodes, states.dtype))
        points = jnp.concatenate([-side, side])
        log_weight = jnp.log(jnp.tile(jnp.asarray(node_weights, states.dtype), 2) * half)
        seen = dist.Normal(points**2 / 20.0, emission_scale).log_prob(observation)
        moved = dist.Normal(mean(states, time)[:, None], transition_scale).log_prob(points)
        return logsumexp(moved + seen + log_weight, axis=1)

    return StateSpaceModel(
        initial=lambda: dist.Normal(0.0, initial_scale),
        transition=lambda states, time: dist.Normal(mean(states, time), transition_scale),
        emission=lambda states, time: dist.Normal(states**2 / 20.0, emission_scale),
        transition_mean=mean,
        log_lookahead=log_lookahead,
        log_emission_supremum=lambda time, observation: dist.Normal(
            jnp.maximum(observation, 0.0), emission_scale
        ).log_prob(observation),
    )


def stochastic_volatility(
    mean: Number, persistence: Number, scale: Number, *, initial_scale: Number | None = None
) -> StateSpaceModel:
    r"""Log-variance as an autoregression.

    .. math:: x_t = \mu + \rho (x_{t-1} - \mu) + s \epsilon_t, \qquad y_t \sim N(0, e^{x_t}).

    ``log_lookahead`` is Jensen's bound E log g ≤ log p(y_t | x_{t−1}), with m the mean of the
    transition:

    .. math:: -\tfrac12 \{ \log 2\pi + m + y_t^2 \exp(-m + s^2 / 2) \},

    and no emission exceeds :math:`-\tfrac12 \{ 1 + \log(2 \pi y_t^2) \}`.

    Parameters
    ----------
    mean
        μ.
    persistence
        ρ.
    scale
        s.
    initial_scale
        Of x_0 around μ; None is that of the stationary law, s / √(1 − ρ²).

    References
    ----------
    Kim, Shephard and Chib (1998), "Stochastic volatility: likelihood inference and comparison
    with ARCH models", eq. 1; the bound: section 8 of Pitt and Shephard (1999) linearises instead.
    """
    if initial_scale is None:
        initial_scale = scale / jnp.sqrt(1.0 - jnp.square(persistence))

    def move(states: jax.Array, time: Any) -> jax.Array:
        return mean + persistence * (states - mean)

    return StateSpaceModel(
        initial=lambda: dist.Normal(mean, initial_scale),
        transition=lambda states, time: dist.Normal(move(states, time), scale),
        emission=lambda states, time: dist.Normal(0.0, jnp.exp(0.5 * states)),
        transition_mean=move,
        log_lookahead=lambda states, time, observation: _log_variance_lookahead(
            move(states, time), scale, observation
        ),
        log_emission_supremum=_log_variance_supremum,
    )


def _excess(below: jax.Array, reach: Number) -> jax.Array:
    """u ≥ 0 with (u − y)² − y² = reach², where y = ``below`` ≤ 0."""
    return reach**2 / (jnp.sqrt(below**2 + reach**2) - below)


def _log_variance_lookahead(mean: jax.Array, scale: Any, observation: jax.Array) -> jax.Array:
    squared = observation**2 * jnp.exp(-mean + 0.5 * scale**2)
    return -LOG_ROOT_TWO_PI - 0.5 * (mean + squared)


def _log_variance_supremum(time: Any, observation: jax.Array) -> jax.Array:
    return -LOG_ROOT_TWO_PI - 0.5 - jnp.log(jnp.abs(observation))
