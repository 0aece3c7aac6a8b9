"""The regressions that an adaptive proposal solves, from a state-space model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bayesdiv.inference._adaptive_fit import Problem

Features = Callable[[jax.Array, Any, jax.Array], jax.Array]


def of_initial_law(law: Any, model: Any, observation: jax.Array, dtype: Any) -> Problem:
    """Of x_0, which has no parent: its only feature is 1."""
    shape = law.event_shape

    def moments(parents: jax.Array) -> tuple[jax.Array, jax.Array]:
        means, covariance = _moments(law)
        return jnp.broadcast_to(means, (len(parents), len(covariance))), covariance

    return Problem(
        sample=lambda key, parents: rows(law.sample(key, (len(parents),))),
        log_transition=lambda values, parents: law.log_prob(values.reshape(-1, *shape)),
        log_emission=_emission(model, 0, shape, observation),
        features=lambda parents: jnp.ones((len(parents), 1), dtype),
        moments=moments,
        log_adjustments=lambda parents: jnp.zeros(len(parents), dtype),
    )


def of_transition(
    model: Any,
    time: Any,
    states: jax.Array,
    log_adjustments: jax.Array,
    kind: str | Features,
    observation: jax.Array,
) -> Problem:
    """Of a move from ``states``, which are seen by `features_of` this ``kind``."""
    shape = states.shape[1:]

    def law(parents: jax.Array) -> Any:
        return model.transition(states[parents], time)

    return Problem(
        sample=lambda key, parents: rows(law(parents).sample(key)),
        log_transition=lambda values, parents: law(parents).log_prob(values.reshape(-1, *shape)),
        log_emission=_emission(model, time, shape, observation),
        features=lambda parents: features_of(kind, model, time, states[parents], observation),
        moments=lambda parents: _moments(law(parents)),
        log_adjustments=lambda parents: log_adjustments[parents],
    )


def features_of(
    kind: str | Features, model: Any, time: Any, states: jax.Array, observation: jax.Array
) -> jax.Array:
    """φ with a 1 in front, ``(n, features)``."""
    if kind == "state":
        found = rows(states)
    elif callable(kind):
        found = kind(states, time, observation)
    elif getattr(model, "transition_mean", None) is not None:
        found = rows(model.transition_mean(states, time))
    else:
        found = rows(model.transition(states, time).mean)
    if found.ndim != 2 or len(found) != len(states):
        raise ValueError(
            "features must return one row a particle, (num_particles, num_features), got "
            f"shape {found.shape} for {len(states)} particles."
        )
    return jnp.concatenate([jnp.ones((len(found), 1), found.dtype), found], axis=1)


def count_features(kind: str | Features, model: Any, states: jax.ShapeDtypeStruct) -> int:
    """Features beside the 1."""
    if not callable(kind):
        return math.prod(states.shape[1:])

    def features(states: jax.Array) -> jax.Array:
        row = jnp.zeros(model.emission(states, 0).event_shape, states.dtype)
        return features_of(kind, model, 1, states, row)

    return jax.eval_shape(features, states).shape[1] - 1


def rows(states: jax.Array) -> jax.Array:
    """``(n, *event)`` as ``(n, dim)``."""
    return states.reshape(len(states), -1)


def _emission(
    model: Any, time: Any, shape: tuple[int, ...], observation: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    return lambda values: model.emission(values.reshape(-1, *shape), time).log_prob(observation)


def _moments(law: Any) -> tuple[jax.Array, jax.Array]:
    """Means ``(n, dim)`` and the mean covariance ``(dim, dim)`` of a law with n rows or none."""
    dim = math.prod(law.event_shape)
    means = jnp.reshape(law.mean, (-1, dim))
    if hasattr(law, "covariance_matrix"):
        return means, jnp.reshape(law.covariance_matrix, (-1, dim, dim)).mean(0)
    variance = jnp.broadcast_to(law.variance, (*law.batch_shape, *law.event_shape))
    return means, jnp.diag(jnp.reshape(variance, (-1, dim)).mean(0))


def nothing(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """In place of what was not computed: NaN, or zero where there is none."""
    is_real = jnp.issubdtype(shape.dtype, jnp.floating)
    return jnp.full(shape.shape, jnp.nan if is_real else 0, shape.dtype)
