"""The filtered models in JAX: as the package has them, and as one writes them by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from bayesdiv.models.kalman import LinearGaussianParameters
from bayesdiv.models.state_space_examples import growth, linear_gaussian, stochastic_volatility
from benchmarks.filters_problem import LINEAR, VOLATILITY

LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class Formulas(NamedTuple):
    """A model with normal transitions, vectorised over states.

    Attributes
    ----------
    model
        Ours.
    initial
        Mean and scale of x_0.
    move
        ``move(states, time)``, mean of the transition.
    scale
        Of the transition.
    log_emission
        ``log_emission(states, observation)``.
    guide
        ``guide(states, time, observation)``, mean of a guided move.
    guide_scale
        Its scale: no less than that of the transition, whose tails are then no heavier, unless the
        move is optimal.
    lookahead
        ``lookahead(states, time, observation)``, log ψ.
    initial_guide
        ``initial_guide(observation)``, law that x_0 is drawn from; None is the model's own.
    """

    model: Any
    initial: tuple[float, float]
    move: Callable[[jax.Array, Any], jax.Array]
    scale: float
    log_emission: Callable[[jax.Array, jax.Array], jax.Array]
    guide: Callable[[jax.Array, Any, jax.Array], jax.Array]
    guide_scale: float
    lookahead: Callable[[jax.Array, Any, jax.Array], jax.Array]
    initial_guide: Callable[[jax.Array], dist.Normal] | None = None

    def guided(self, states: jax.Array, time: Any, observation: jax.Array) -> dist.Normal:
        """The guided move."""
        return dist.Normal(self.guide(states, time, observation), self.guide_scale)


def formulas(name: str) -> Formulas:
    """Of a model of :mod:`benchmarks.filters_problem`."""
    return {"growth": _growth, "volatility": _volatility, "linear": _linear}[name]()


def _growth() -> Formulas:
    model = growth()
    variance = 10.0

    def move(states: jax.Array, time: Any) -> jax.Array:
        drift = 8.0 * jnp.cos(1.2 * (jnp.asarray(time, states.dtype) - 1.0))
        return 0.5 * states + 25.0 * states / (1.0 + states**2) + drift

    def guide(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        # Toward the two states that explain y, each with a normal bump, as far as the transition
        # tells their signs apart.
        mean = move(states, time)
        peak2 = 10.0 * (observation + jnp.sqrt(observation**2 + 1.0))
        peak = jnp.sqrt(peak2)
        gain = variance / (variance + 100.0 / (peak2 + 10.0))
        return mean + gain * (peak * jnp.tanh(mean * peak / variance) - mean)

    return Formulas(
        model,
        (0.0, 2.0),
        move,
        math.sqrt(variance),
        lambda x, y: -LOG_ROOT_TWO_PI - 0.5 * (y - x * x / 20.0) ** 2,
        guide,
        1.25 * math.sqrt(variance),
        model.log_lookahead,
    )


def _volatility() -> Formulas:
    mean, persistence, scale = VOLATILITY
    model = stochastic_volatility(mean, persistence, scale)

    def move(states: jax.Array, time: Any) -> jax.Array:
        return mean + persistence * (states - mean)

    def guide(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        # Pitt and Shephard (1999): a linearised exp(−x) tilts the transition.
        moved = move(states, time)
        return moved + 0.5 * scale**2 * (observation**2 * jnp.exp(-moved) - 1.0)

    return Formulas(
        model,
        (mean, scale / math.sqrt(1.0 - persistence**2)),
        move,
        scale,
        lambda x, y: -LOG_ROOT_TWO_PI - 0.5 * (x + y * y * jnp.exp(-x)),
        guide,
        scale,
        model.log_lookahead,
    )


def _linear() -> Formulas:
    persistence, initial_scale, scale, noise_scale = LINEAR
    model = linear_gaussian(
        LinearGaussianParameters(persistence, scale, 1.0, noise_scale, initial_scale=initial_scale)
    )
    gain = scale**2 / (scale**2 + noise_scale**2)

    def guide(states: jax.Array, time: Any, observation: jax.Array) -> jax.Array:
        return persistence * states + gain * (observation - persistence * states)

    def initial_guide(observation: jax.Array) -> dist.Normal:
        first_gain = initial_scale**2 / (initial_scale**2 + noise_scale**2)
        return dist.Normal(first_gain * observation, math.sqrt(first_gain) * noise_scale)

    return Formulas(
        model,
        (0.0, initial_scale),
        lambda x, time: persistence * x,
        scale,
        lambda x, y: -LOG_ROOT_TWO_PI - math.log(noise_scale) - 0.5 * ((y - x) / noise_scale) ** 2,
        guide,
        math.sqrt(gain) * noise_scale,
        model.log_predictive,
        initial_guide,
    )
