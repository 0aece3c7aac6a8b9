"""Examples of state-space models whose state is a number, and the linear-Gaussian one."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from bayesdiv.models._log_variance_normal import LogVarianceNormal
from bayesdiv.models.kalman import LinearGaussianParameters
from bayesdiv.models.state_space import StateSpaceModel

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
    transition_scale: Number = 10.0**0.5,
    initial_scale: Number = 2.0,
    num_nodes: int = 32,
) -> StateSpaceModel:
    r"""The non-linear growth model, whose sign the observations do not tell.

    .. math:: x_0 \sim N(0, s_0^2), \quad
              x_t = \frac{x_{t-1}}{2} + \frac{25 x_{t-1}}{1 + x_{t-1}^2} + 8 \cos(1.2 (t - 1))
                    + s \epsilon_t, \quad y_t = x_t^2 / 20 + r \eta_t.

    ``log_predictive`` integrates the transition against the emission on ``num_nodes`` points on
    either side of zero, common to all particles, where the emission is not negligible.
    ``log_lookahead`` replaces the emission, as a function of the state, by two normal bumps at ±x̂
    and costs a sixtieth; its constant is not that of a density.

    .. math:: \hat x^2 = 10 \Bigl(y + \sqrt{y^2 + r^2}\Bigr), \qquad
              v = \frac{100 r^2}{\hat x^2 + 10 r}.

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

    def log_predictive(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        # Seven scales from the mode of the emission, which is zero where y is negative.
        reach = 7.0 * emission_scale
        below = jnp.minimum(observation, 0.0)
        lower = jnp.sqrt(20.0 * jnp.maximum(observation - reach, 0.0))
        upper = jnp.sqrt(20.0 * (jnp.maximum(observation, 0.0) + reach_above(below, reach)))
        half = 0.5 * (upper - lower)
        side = lower + half * (1.0 + jnp.asarray(nodes, states.dtype))
        points = jnp.concatenate([-side, side])
        log_weight = jnp.log(jnp.tile(jnp.asarray(node_weights, states.dtype), 2) * half)
        seen = dist.Normal(points**2 / 20.0, emission_scale).log_prob(observation)
        moved = dist.Normal(mean(states, time)[:, None], transition_scale).log_prob(points)
        return logsumexp(moved + seen + log_weight, axis=1)

    def log_lookahead(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        peak = jnp.sqrt(10.0 * (observation + jnp.sqrt(observation**2 + emission_scale**2)))
        width = 10.0 * emission_scale / jnp.sqrt(peak**2 + 10.0 * emission_scale)
        spread = jnp.sqrt(transition_scale**2 + width**2)
        moved = mean(states, time)
        sides = [dist.Normal(side, spread).log_prob(moved) for side in (peak, -peak)]
        return jnp.logaddexp(*sides)

    return StateSpaceModel(
        initial=lambda: dist.Normal(0.0, initial_scale),
        transition=lambda states, time: dist.Normal(mean(states, time), transition_scale),
        emission=lambda states, time: dist.Normal(states**2 / 20.0, emission_scale),
        transition_mean=mean,
        log_predictive=log_predictive,
        log_lookahead=log_lookahead,
        # Where y is negative the state at zero explains it best.
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
        emission=lambda states, time: LogVarianceNormal(states),
        transition_mean=move,
        log_lookahead=lambda states, time, observation: _log_variance_lookahead(
            move(states, time), scale, observation
        ),
        log_emission_supremum=_log_variance_supremum,
    )


def stochastic_volatility_with_leverage(
    mean: Number,
    persistence: Number,
    scale: Number,
    leverage: Number,
    observations: jax.Array,
    *,
    initial_scale: Number | None = None,
) -> StateSpaceModel:
    r"""Stochastic volatility whose shocks are correlated with the return before.

    .. math:: y_t = e^{x_t / 2} \eta_t, \quad x_{t+1} = \mu + \rho (x_t - \mu) + s \epsilon_{t+1},
              \quad \operatorname{corr}(\eta_t, \epsilon_{t+1}) = \phi.

    Given y_{t−1}, which the model takes as a covariate,

    .. math:: x_t \sim N\{\mu + \rho (x_{t-1} - \mu) + s \phi\, y_{t-1} e^{-x_{t-1} / 2},
              s^2 (1 - \phi^2)\},

    and where y_{t−1} is missing the shock is independent of what was seen. States drawn from this
    model are those that follow the series given; draw both with
    :func:`simulate_volatility_with_leverage`.

    Parameters
    ----------
    mean, persistence, scale, initial_scale
        As in :func:`stochastic_volatility`.
    leverage
        φ, between −1 and 1.
    observations
        The series ``(num_times,)`` that is filtered.

    References
    ----------
    Harvey and Shephard (1996), "Estimation of an asymmetric stochastic volatility model for asset
    returns".
    """
    if initial_scale is None:
        initial_scale = scale / jnp.sqrt(1.0 - jnp.square(persistence))
    series = jnp.asarray(observations)

    def move(states: jax.Array, time: Any) -> jax.Array:
        before = series[jnp.asarray(time) - 1]
        shock = jnp.where(jnp.isnan(before), 0.0, before) * jnp.exp(-0.5 * states)
        return mean + persistence * (states - mean) + scale * leverage * shock

    def spread(time: Any) -> jax.Array:
        is_missing = jnp.isnan(series[jnp.asarray(time) - 1])
        return scale * jnp.where(is_missing, 1.0, jnp.sqrt(1.0 - jnp.square(leverage)))

    return StateSpaceModel(
        initial=lambda: dist.Normal(mean, initial_scale),
        transition=lambda states, time: dist.Normal(move(states, time), spread(time)),
        emission=lambda states, time: LogVarianceNormal(states),
        transition_mean=move,
        log_lookahead=lambda states, time, observation: _log_variance_lookahead(
            move(states, time), spread(time), observation
        ),
        log_emission_supremum=_log_variance_supremum,
    )


def simulate_volatility_with_leverage(
    key: jax.Array,
    num_times: int,
    mean: Number,
    persistence: Number,
    scale: Number,
    leverage: Number,
) -> tuple[jax.Array, jax.Array]:
    """States and returns ``(num_times,)`` of :func:`stochastic_volatility_with_leverage`."""
    start_key, key = jax.random.split(key)
    start = mean + scale / jnp.sqrt(1.0 - jnp.square(persistence)) * jax.random.normal(start_key)

    def step(state: jax.Array, noise: jax.Array) -> tuple[jax.Array, tuple]:
        shock = leverage * noise[0] + jnp.sqrt(1.0 - jnp.square(leverage)) * noise[1]
        after = mean + persistence * (state - mean) + scale * shock
        return after, (state, jnp.exp(0.5 * state) * noise[0])

    return jax.lax.scan(step, start, jax.random.normal(key, (num_times, 2)))[1]


def arch_in_noise(
    intercept: Number, slope: Number, emission_scale: Number, *, initial_scale: Number | None = None
) -> StateSpaceModel:
    r"""An ARCH series seen with noise.

    .. math:: x_t \sim N(0, \beta_0 + \beta_1 x_{t-1}^2), \quad y_t \sim N(x_t, r^2), \quad
              \log p(y_t \mid x_{t-1}) = \log N(y_t; 0, \beta_0 + \beta_1 x_{t-1}^2 + r^2).

    Parameters
    ----------
    intercept
        β₀ > 0.
    slope
        β₁, between 0 and 1.
    emission_scale
        r.
    initial_scale
        Of x_0 ~ N(0, ·); None is the stationary √(β₀ / (1 − β₁)).

    References
    ----------
    Pitt and Shephard (1999), "Filtering via simulation: auxiliary particle filters", section 4.
    """
    if initial_scale is None:
        initial_scale = jnp.sqrt(intercept / (1.0 - slope))

    def variance(states: jax.Array) -> jax.Array:
        return intercept + slope * states**2

    def log_predictive(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        return dist.Normal(0.0, jnp.sqrt(variance(states) + emission_scale**2)).log_prob(
            observation
        )

    return StateSpaceModel(
        initial=lambda: dist.Normal(0.0, initial_scale),
        transition=lambda states, time: dist.Normal(0.0, jnp.sqrt(variance(states))),
        emission=lambda states, time: dist.Normal(states, emission_scale),
        transition_mean=lambda states, time: jnp.zeros_like(states),
        log_predictive=log_predictive,
        log_emission_supremum=lambda time, observation: normal_supremum(emission_scale),
    )


def normal_supremum(scale: Number) -> jax.Array:
    """The largest log-density of a normal law."""
    return -LOG_ROOT_TWO_PI - jnp.log(scale)


def reach_above(below: jax.Array, reach: Number) -> jax.Array:
    """u ≥ 0 with (u − y)² − y² = reach², where y = ``below`` ≤ 0."""
    return reach**2 / (jnp.sqrt(below**2 + reach**2) - below)


def _log_variance_lookahead(mean: jax.Array, scale: Any, observation: jax.Array) -> jax.Array:
    squared = observation**2 * jnp.exp(-mean + 0.5 * scale**2)
    return -LOG_ROOT_TWO_PI - 0.5 * (mean + squared)


def _log_variance_supremum(time: Any, observation: jax.Array) -> jax.Array:
    return -LOG_ROOT_TWO_PI - 0.5 - jnp.log(jnp.abs(observation))
