"""What a state-space model and a proposal must return, checked once, while shapes are traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

_ADVICE = "in NumPyro, .to_event(1) turns the last batch dimension into an event"


def check_model(model: Any) -> None:
    """Raise unless ``model`` has the three functions of a state-space model."""
    for name in ("initial", "transition", "emission"):
        if not callable(getattr(model, name, None)):
            raise TypeError(
                f"model must have a function {name}; initial(), transition(states, time) and "
                f"emission(states, time) return NumPyro distributions. Got {type(model).__name__}."
            )


def check_distribution(
    distribution: Any,
    name: str,
    batch_shape: tuple[int, ...],
    event_shape: tuple[int, ...] | None,
) -> Any:
    """``distribution``, if it has these shapes; ``event_shape=None`` accepts any.

    Raises
    ------
    TypeError
        If it is no distribution.
    ValueError
        If a shape differs; the message names the function that returned it.
    """
    if not (hasattr(distribution, "log_prob") and hasattr(distribution, "sample")):
        raise TypeError(
            f"{name} must return a NumPyro distribution, got {type(distribution).__name__}."
        )
    found_batch, found_event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if found_batch != batch_shape:
        raise ValueError(
            f"{name} must return a distribution with batch shape {batch_shape}, got batch shape "
            f"{found_batch} and event shape {found_event}; {_ADVICE}, and .expand adds particles."
        )
    if event_shape is not None and found_event != event_shape:
        raise ValueError(
            f"{name} must return a distribution with event shape {event_shape}, got event shape "
            f"{found_event}; {_ADVICE}."
        )
    return distribution


def log_density(distribution: Any, value: jax.Array, name: str, count: int) -> jax.Array:
    """The log-density at ``value``, ``(count,)``; −inf outside of the support.

    NumPyro computes a formula there and leaves the question to its validation, which is off, and
    which could not answer under ``jit``. Where the support is everything, nothing is asked.
    """
    found = distribution.log_prob(value)
    if jnp.shape(found) != (count,):
        raise ValueError(
            f"{name}.log_prob must return shape ({count},), one a particle, got "
            f"{jnp.shape(found)}; {_ADVICE}."
        )
    support = getattr(distribution, "support", None)
    elements: Any = support
    while hasattr(elements, "base_constraint"):
        elements = elements.base_constraint
    if support is None or elements is constraints.real:
        return found
    return jnp.where(support(value), found, -jnp.inf)


def cast_states(moved: jax.Array, states: jax.Array, name: str) -> jax.Array:
    """``moved`` in the dtype of ``states``, which a scan has to keep.

    Raises
    ------
    ValueError
        If that would lose more than precision.
    """
    if moved.dtype == states.dtype:
        return moved
    kinds = [jnp.issubdtype(entry.dtype, jnp.floating) for entry in (moved, states)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{name} must return states of the kind that model.initial returns, {states.dtype}, "
            f"got {moved.dtype}; both are to be floating, or both integers."
        )
    return moved.astype(states.dtype)


def check_observations(observations: Any, event_shape: tuple[int, ...]) -> jax.Array:
    """``observations`` as an array ``(num_times, *event_shape)`` with a time or more."""
    observations = jnp.asarray(observations)
    if observations.ndim == 0 or observations.shape[1:] != event_shape or not len(observations):
        raise ValueError(
            f"observations must have shape (num_times, *{event_shape}), as emission has event "
            f"shape {event_shape}, with one time or more; got {observations.shape}."
        )
    return observations


def check_observation(observation: Any, event_shape: tuple[int, ...]) -> jax.Array:
    """``observation`` as an array of one row."""
    observation = jnp.asarray(observation)
    if observation.shape != event_shape:
        raise ValueError(
            f"observation must have shape {event_shape}, the event shape of emission, got "
            f"{observation.shape}."
        )
    return observation


def has_nan(observations: Any) -> bool:
    """Whether any entry is not a number; by NumPy, since inside ``jit`` JAX would trace it."""
    observations = np.asarray(observations)
    return observations.dtype.kind == "f" and bool(np.isnan(observations).any())


def missing_rows(observations: jax.Array) -> jax.Array:
    """``(num_times,)``: whether any entry of a row is not a number."""
    if not jnp.issubdtype(observations.dtype, jnp.floating):
        return jnp.zeros(observations.shape[:1], bool)
    return jnp.any(jnp.isnan(observations).reshape(observations.shape[0], -1), axis=1)


def filled_rows(observations: jax.Array, missing: jax.Array) -> jax.Array:
    """``observations`` with a complete row in place of each missing one.

    The density of such a row is computed and thrown away; a row of the data keeps it finite, and
    its gradient too.
    """
    spare = observations[jnp.argmin(missing)]
    if jnp.issubdtype(observations.dtype, jnp.floating):
        spare = jnp.where(jnp.isnan(spare), 0.0, spare)
    mask = missing.reshape(missing.shape + (1,) * (observations.ndim - 1))
    return jnp.where(mask, spare, observations)
