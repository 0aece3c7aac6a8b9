"""Examples of state-space models whose state is a point of the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import i0e, log_ndtr, logsumexp
from numpyro.distributions import constraints

from bayesdiv.models._state_space_scalar import Number, normal_supremum, reach_above
from bayesdiv.models.state_space import StateSpaceModel


def bearings_only(
    emission_scale: Number = 1e-3,
    *,
    transition_scale: Number = 2e-4,
    initial_mean: Sequence[float] | jax.Array = (1.0, 1.0, 3e-3, -3e-3),
    initial_scale: Sequence[float] | jax.Array = (0.05, 0.05, 1e-3, 1e-3),
) -> StateSpaceModel:
    r"""A ship seen from the origin by its bearing alone: state (position, velocity), ``(4,)``.

    Velocity is a Brownian motion seen at whole times, so that position is its integral and the
    transition has a density: with I the identity of the plane and covariances of (position,
    velocity) in blocks,

    .. math:: x_t \sim N\left\{\begin{pmatrix} I & I \\ 0 & I \end{pmatrix} x_{t-1},\;
              s^2 \begin{pmatrix} I / 3 & I / 2 \\ I / 2 & I \end{pmatrix}\right\}, \quad
              y_t = \operatorname{angle}(x_t) + r \eta_t.

    The difference of two angles is taken around the circle, so that a ship may cross the negative
    axis; r must be small against π. ``log_lookahead`` linearises the angle at the mean.

    Parameters
    ----------
    emission_scale
        r, in radians.
    transition_scale
        s, of one step's change of velocity.
    initial_mean, initial_scale
        Of (position, velocity) at time 0, four independent normal laws.

    References
    ----------
    Gordon, Salmond and Smith (1993), section 4.2, with a density in all four coordinates.
    """
    identity = jnp.eye(2)
    zero = jnp.zeros((2, 2))
    matrix = jnp.block([[identity, identity], [zero, identity]])
    # The lower root of ((1/3, 1/2), (1/2, 1)), of every coordinate of the plane.
    third = 3.0**-0.5
    root = jnp.block([[third * identity, zero], [1.5 * third * identity, 0.5 * identity]])

    def move(states: jax.Array, time: Any) -> jax.Array:
        return states @ matrix.T.astype(states.dtype)

    def bearing(states: jax.Array) -> jax.Array:
        return jnp.arctan2(states[..., 1], states[..., 0])

    def log_lookahead(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        mean = move(states, time)
        squared_range = (mean[..., :2] ** 2).sum(-1)
        variance = emission_scale**2 + transition_scale**2 / (3.0 * squared_range)
        return Bearing(bearing(mean), jnp.sqrt(variance)).log_prob(observation)

    return StateSpaceModel(
        initial=lambda: dist.Normal(jnp.asarray(initial_mean), jnp.asarray(initial_scale)).to_event(
            1
        ),
        transition=lambda states, time: dist.MultivariateNormal(
            move(states, time), scale_tril=transition_scale * root.astype(states.dtype)
        ),
        emission=lambda states, time: Bearing(bearing(states), emission_scale),
        transition_mean=move,
        log_lookahead=log_lookahead,
        log_emission_supremum=lambda time, observation: normal_supremum(emission_scale),
    )


def norm_observed_walk(
    emission_scale: Number = 0.1,
    *,
    transition_scale: Number = 1.0,
    initial_scale: Number = 1.0,
    num_nodes: int = 32,
) -> StateSpaceModel:
    r"""A random walk of the plane seen through its distance from the origin: a Bessel process.

    .. math:: x_0 \sim N(0, s_0^2 I), \quad x_t \sim N(x_{t-1}, s^2 I), \quad
              y_t \sim N(\lVert x_t \rVert, r^2).

    The best proposal lies on a ring. ``log_predictive`` integrates over the distance ρ, whose
    density given v = ‖x_{t−1}‖ is Rice's, on ``num_nodes`` points of each particle:

    .. math:: p(\rho \mid v) = \frac{\rho}{s^2} \exp\Bigl(-\frac{\rho^2 + v^2}{2 s^2}\Bigr)
              I_0\Bigl(\frac{\rho v}{s^2}\Bigr).

    Parameters
    ----------
    emission_scale
        r.
    transition_scale
        s.
    initial_scale
        s₀.
    num_nodes
        Gauss-Legendre points.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(num_nodes)

    def log_predictive(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        before = jnp.linalg.norm(states, axis=-1)
        variance, noise = transition_scale**2, emission_scale**2
        # Without its slow factors the integrand is a normal density in ρ, cut off at zero.
        centre = (before * noise + observation * variance) / (variance + noise)
        reach = 7.0 * jnp.sqrt(variance * noise / (variance + noise))
        lower = jnp.maximum(centre - reach, 0.0)
        upper = jnp.maximum(centre, 0.0) + reach_above(jnp.minimum(centre, 0.0), reach)
        half = 0.5 * (upper - lower)[:, None]
        distance = lower[:, None] + half * (1.0 + jnp.asarray(nodes, states.dtype))
        # I₀ is scaled by its exponential, which turns ρ² + v² into (ρ − v)².
        rice = (
            jnp.log(distance / variance)
            - 0.5 * (distance - before[:, None]) ** 2 / variance
            + jnp.log(i0e(distance * before[:, None] / variance))
        )
        seen = dist.Normal(distance, emission_scale).log_prob(observation)
        weight = jnp.log(jnp.asarray(node_weights, states.dtype) * half)
        return logsumexp(rice + seen + weight, axis=1)

    def supremum(time: Any, observation: jax.Array) -> jax.Array:
        return dist.Normal(jnp.maximum(observation, 0.0), emission_scale).log_prob(observation)

    return StateSpaceModel(
        initial=lambda: dist.Normal(jnp.zeros(2), initial_scale).to_event(1),
        transition=lambda states, time: dist.Normal(states, transition_scale).to_event(1),
        emission=lambda states, time: dist.Normal(jnp.linalg.norm(states, axis=-1), emission_scale),
        transition_mean=lambda states, time: states,
        log_predictive=log_predictive,
        log_emission_supremum=supremum,
    )


def tobit(
    emission_scale: Number = 0.3,
    *,
    persistence: Number = 0.8,
    direction: Sequence[float] | jax.Array = (1.0, 0.5),
    transition_scale: Number = 1.0,
    initial_scale: Number = 1.0,
) -> StateSpaceModel:
    r"""A linear observation that is censored at zero; the state has as many entries as c.

    .. math:: x_0 \sim N(0, s_0^2 I), \quad x_t \sim N(\rho x_{t-1}, s^2 I), \quad
              y_t = \max\{c^\top x_t + r \eta_t, 0\}.

    ``log_predictive`` is the censored law N(ρ cᵀx_{t−1}, s² ‖c‖² + r²).

    Parameters
    ----------
    emission_scale
        r.
    persistence
        ρ.
    direction
        c, ``(dim,)``.
    transition_scale
        s.
    initial_scale
        s₀.

    References
    ----------
    Tobin (1958), "Estimation of relationships for limited dependent variables".
    """
    direction = jnp.asarray(direction)
    predictive_scale = jnp.sqrt(
        transition_scale**2 * (direction**2).sum() + jnp.square(emission_scale)
    )

    def move(states: jax.Array, time: Any) -> jax.Array:
        return persistence * states

    def log_predictive(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        mean = move(states, time) @ direction.astype(states.dtype)
        return CensoredNormal(mean, predictive_scale).log_prob(observation)

    return StateSpaceModel(
        initial=lambda: dist.Normal(jnp.zeros_like(direction), initial_scale).to_event(1),
        transition=lambda states, time: dist.Normal(move(states, time), transition_scale).to_event(
            1
        ),
        emission=lambda states, time: CensoredNormal(
            states @ direction.astype(states.dtype), emission_scale
        ),
        transition_mean=move,
        log_predictive=log_predictive,
        log_emission_supremum=lambda time, observation: jnp.where(
            observation > 0.0, normal_supremum(emission_scale), 0.0
        ),
    )


class CensoredNormal(dist.Normal):
    """max(z, 0) with z ~ N(loc, scale²): a density above zero and a probability at it."""

    support = constraints.nonnegative

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        return jnp.maximum(super().sample(key, sample_shape), 0.0)

    def log_prob(self, value: jax.Array) -> jax.Array:
        censored = log_ndtr(-self.loc / self.scale)
        return jnp.where(value > 0.0, super().log_prob(value), censored)


class Bearing(dist.Normal):
    """A normal law of an angle, whose difference from ``loc`` is taken around the circle."""

    def log_prob(self, value: jax.Array) -> jax.Array:
        turn = 2.0 * jnp.pi
        difference = value - self.loc
        return super().log_prob(self.loc + difference - turn * jnp.round(difference / turn))
