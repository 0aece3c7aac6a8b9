"""The path of a state-space model, and its observations, as NumPyro distributions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, constraints


class StatePath(Distribution):
    r"""Law of x_0, …, x_{T−1}: one event of shape ``(num_times, *event)``.

    .. math:: \log p(x) = \log p_0(x_0) + \sum_{t=1}^{T-1} \log q_t(x_{t-1}, x_t).

    The density is computed at all times at once; only drawing goes from one to the next.
    """

    reparametrized_params: list[str] = []
    pytree_aux_fields = ("model", "num_times")

    def __init__(self, model: Any, num_times: int, *, validate_args: bool | None = None) -> None:
        self.model, self.num_times = model, num_times
        event = model.initial().event_shape
        super().__init__(event_shape=(num_times, *event), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(self.model.initial().support, 1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        def one(path_key: jax.Array) -> jax.Array:
            return self.model.simulate(path_key, self.num_times)[0]

        paths = jax.vmap(one)(jax.random.split(key, math.prod(sample_shape)))
        return paths.reshape(sample_shape + self.event_shape)

    def log_prob(self, value: jax.Array) -> jax.Array:
        if value.ndim > len(self.event_shape):
            return jax.vmap(self.log_prob)(value)

        def step(before: jax.Array, after: jax.Array, time: jax.Array) -> jax.Array:
            return self.model.transition(before[None], time).log_prob(after[None])[0]

        times = jnp.arange(1, self.num_times)
        steps = jax.vmap(step)(value[:-1], value[1:], times)
        return self.model.initial().log_prob(value[0]) + steps.sum()


class Emissions(Distribution):
    """Laws of observations given a path, ``(num_times, *event)``; missing ones have density 1."""

    pytree_data_fields = ("states",)
    pytree_aux_fields = ("model",)

    def __init__(self, model: Any, states: jax.Array, *, validate_args: bool | None = None) -> None:
        self.model, self.states = model, states
        first = model.emission(states[:1], 0)
        self._support = first.support
        super().__init__((states.shape[0],), first.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self._support

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        def one(at_key: jax.Array, state: jax.Array, time: jax.Array) -> jax.Array:
            return self.model.emission(state[None], time).sample(at_key)[0]

        def series(series_key: jax.Array) -> jax.Array:
            keys = jax.random.split(series_key, len(self.states))
            return jax.vmap(one)(keys, self.states, jnp.arange(len(self.states)))

        keys = jax.random.split(key, math.prod(sample_shape))
        drawn = jax.vmap(series)(keys)
        return drawn.reshape(sample_shape + drawn.shape[1:])

    def log_prob(self, value: jax.Array) -> jax.Array:
        if value.ndim > 1 + len(self.event_shape):
            return jax.vmap(self.log_prob)(value)
        value = jnp.asarray(value)
        rows = jnp.isnan(value).reshape(len(value), -1)

        def one(state: jax.Array, time: jax.Array, row: jax.Array, is_missing: Any) -> jax.Array:
            emission = self.model.emission(state[None], time)
            # A value that can occur in place of NaN: no derivative of the branch not taken is NaN.
            possible = jax.lax.stop_gradient(emission.sample(jax.random.key(0))[0])
            row = jnp.where(is_missing, possible.astype(row.dtype), row)
            return jnp.where(is_missing, 0.0, emission.log_prob(row[None])[0])

        return jax.vmap(one)(self.states, jnp.arange(len(value)), value, rows.any(-1))
