r"""Smoothing: what the whole series says about each state, from the clouds of a particle filter.

Three ways, in rising order of cost and of what they are good for. The filter's own genealogy
(`ancestor_paths`) is free, and right for the last few times only, because resampling leaves few
distinct ancestors of the distant past. Fixed-lag smoothing (`fixed_lag_moments`) stops reading it
after a lag: biased where the future beyond the lag matters, but of small variance. Backward
sampling (`backward_trajectories`) draws paths anew, by

.. math:: P(i_t = i ∣ x_{t+1}) ∝ W_t^i \, q(x_{t+1} ∣ x_t^i),

from the last time to the first, and does not degenerate.

All take a `FilterResult` of one run with ``store="particles"``; several runs go through ``vmap``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv.inference._filter_checks import check_model, log_density
from bayesdiv.inference._filter_result import FilterResult
from bayesdiv.inference.resampling import multinomial

__all__ = [
    "SmoothedMoments",
    "ancestor_paths",
    "backward_trajectories",
    "distinct_ancestors",
    "fixed_lag_moments",
]


class SmoothedMoments(NamedTuple):
    """Means and variances of each state, ``(num_times, *event)``."""

    mean: jax.Array
    variance: jax.Array


def ancestor_paths(result: FilterResult) -> jax.Array:
    """The path that led to each particle of the last cloud.

    With the weights of that cloud, ``result.log_weights[-1]``, they estimate p(x_{0:T−1} | y), but
    paths merge backwards in time, after about N log N steps into one.

    Returns
    -------
    paths
        ``(num_particles, num_times, *event)``.

    Raises
    ------
    ValueError
        If particles were not stored, or ``result`` is of several runs.
    """
    _check_stored(result)
    particles = result.particles
    return jnp.swapaxes(_gather(particles, _genealogy(result)), 0, 1)


def distinct_ancestors(result: FilterResult) -> jax.Array:
    """How many particles of each time have a descendant in the last cloud, ``(num_times,)``.

    Where it is small, `ancestor_paths` says little about that time.

    Raises
    ------
    ValueError
        As in `ancestor_paths`.
    """
    _check_stored(result)

    def count(row: jax.Array) -> jax.Array:
        return jnp.sum(jnp.zeros(row.shape, jnp.int32).at[row].set(1))

    return jax.lax.map(count, _genealogy(result))


def fixed_lag_moments(result: FilterResult, lag: int) -> SmoothedMoments:
    r"""Moments of p(x_t | y_{0:min(t + lag, T−1)}).

    The particles of time t are weighted by what became of them: by the weights, at time t + lag, of
    their descendants. O(lag · N) a time.

    Parameters
    ----------
    result
        Of a filter with stored particles.
    lag
        0 gives the filter's moments.

    Raises
    ------
    ValueError
        If ``lag`` is not a whole number of 0 or more, and as in `ancestor_paths`.

    References
    ----------
    Kitagawa and Sato (2001); Olsson, Cappé, Douc and Moulines (2008).
    """
    if isinstance(lag, bool) or not isinstance(lag, int) or lag < 0:
        raise ValueError(f"lag must be a whole number of times, 0 or more, got {lag!r}.")
    _check_stored(result)
    particles, ancestors = result.particles, result.ancestors
    num_times, count = ancestors.shape
    own = jnp.arange(count, dtype=ancestors.dtype)

    def moments(time: jax.Array) -> SmoothedMoments:
        last = jnp.minimum(time + lag, num_times - 1)

        def older(index: jax.Array, rows: jax.Array) -> jax.Array:
            # From time `last − index` to the one before it.
            return ancestors[last - index][rows]

        rows = jax.lax.fori_loop(0, last - time, older, own)
        weights = jnp.exp(result.log_weights[last])
        weights = weights.reshape((count,) + (1,) * (particles.ndim - 2))
        states = particles[time][rows]
        mean = jnp.sum(weights * states, axis=0)
        return SmoothedMoments(mean, jnp.sum(weights * (states - mean) ** 2, axis=0))

    return jax.lax.map(moments, jnp.arange(num_times))


def backward_trajectories(
    key: jax.Array, model: Any, result: FilterResult, *, num_trajectories: int = 100
) -> jax.Array:
    """Draws from p(x_{0:T−1} | y), by forward filtering and backward sampling.

    Given the clouds the draws are independent, each with the same weight. O(N) a time and
    trajectory.

    Parameters
    ----------
    key
        A JAX key.
    model
        The model of the filter; its ``transition`` needs a density. Deterministic components make
        every weight but one zero: leave them out of the state.
    result
        Of a filter with stored particles.
    num_trajectories
        How many.

    Returns
    -------
    trajectories
        ``(num_trajectories, num_times, *event)``.

    Raises
    ------
    ValueError
        If ``num_trajectories`` is not a whole number of 1 or more, and as in `ancestor_paths`.

    References
    ----------
    Godsill, Doucet and West (2004), Monte Carlo smoothing for nonlinear time series, algorithm 1.
    """
    check_model(model)
    if (
        isinstance(num_trajectories, bool)
        or not isinstance(num_trajectories, int)
        or num_trajectories < 1
    ):
        raise ValueError(
            f"num_trajectories must be a whole number of 1 or more, got {num_trajectories!r}."
        )
    _check_stored(result)
    num_times = result.particles.shape[0]
    last_key, key = jax.random.split(key)
    last = multinomial(last_key, jnp.exp(result.log_weights[-1]), num_draws=num_trajectories)
    final = result.particles[-1][last]

    def back(following: jax.Array, row: tuple) -> tuple[jax.Array, jax.Array]:
        time, key, states, log_weights = row
        transition = model.transition(states, time + 1)

        def choose(key: jax.Array, destination: jax.Array) -> jax.Array:
            joint = log_weights + log_density(
                transition, destination, "model.transition", states.shape[0]
            )
            weights = jnp.exp(joint - jnp.max(joint))
            return states[multinomial(key, weights, num_draws=1)[0]]

        chosen = jax.vmap(choose)(jax.random.split(key, num_trajectories), following)
        return chosen, chosen

    rows = (
        jnp.arange(num_times - 1),
        jax.random.split(key, num_times - 1),
        result.particles[:-1],
        result.log_weights[:-1],
    )
    _, path = jax.lax.scan(back, final, rows, reverse=True)
    return jnp.swapaxes(jnp.concatenate([path, final[None]]), 0, 1)


def _genealogy(result: FilterResult) -> jax.Array:
    """``(num_times, num_particles)``: who at each time led to each particle of the last cloud."""
    count = result.ancestors.shape[1]
    own = jnp.arange(count, dtype=result.ancestors.dtype)

    def older(rows: jax.Array, ancestors: jax.Array) -> tuple[jax.Array, jax.Array]:
        return ancestors[rows], rows

    _, genealogy = jax.lax.scan(older, own, result.ancestors, reverse=True)
    return genealogy


def _gather(particles: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.vmap(lambda states, row: states[row])(particles, rows)


def _check_stored(result: FilterResult) -> None:
    if result.particles is None or result.ancestors is None or result.log_weights is None:
        raise ValueError(
            "result must hold particles, their weights and ancestors, got none; run the filter "
            "with store='particles'."
        )
    if result.ancestors.ndim != 2:
        raise ValueError(
            "result must be of one run, with ancestors of shape (num_times, num_particles), got "
            f"{result.ancestors.shape}; use vmap over the runs."
        )
