"""A Gaussian random walk that learns its covariance and its scale."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Times that the start counts in the first averages.
_START = 10


class RandomWalk(NamedTuple):
    """Proposal of a Metropolis chain, and the averages that it is learnt from.

    Parameters
    ----------
    mean
        Of the positions so far, ``(dim,)``.
    covariance
        Likewise, ``(dim, dim)``.
    root
        Lower triangular, of the covariance.
    log_scale
        Of a step, which is exp(log_scale) · root · ε.
    """

    mean: jax.Array
    covariance: jax.Array
    root: jax.Array
    log_scale: jax.Array


def start_walk(position: jax.Array, step_size: float) -> RandomWalk:
    """Steps of about ``step_size`` in every coordinate, of the scale that suits a normal target."""
    identity = jnp.eye(len(position), dtype=position.dtype)
    return RandomWalk(
        position,
        step_size**2 * identity,
        step_size * identity,
        jnp.asarray(_best_log_scale(len(position)), position.dtype),
    )


def step_of(walk: RandomWalk, key: jax.Array) -> jax.Array:
    """One step, ``(dim,)``."""
    noise = jax.random.normal(key, walk.mean.shape, walk.mean.dtype)
    return jnp.exp(walk.log_scale) * (walk.root @ noise)


def learn(
    walk: RandomWalk, position: jax.Array, accept_prob: jax.Array, count: jax.Array, target: float
) -> RandomWalk:
    r"""The walk after ``position``, which is number ``count``, from 0.

    Averages weigh position n by about n², so that the way from the start is forgotten. The scale
    follows the acceptance rate,

    .. math:: \log s_{n+1} = \log s_n + (n + 1)^{-0.6} (\alpha_n - \alpha^*),

    within a factor of 10 of 2.56 / √dim: a noisy density holds acceptance down at any scale, and
    must not drive it to zero.

    References
    ----------
    Haario, Saksman and Tamminen (2001), "An adaptive Metropolis algorithm"; Andrieu and Thoms
    (2008), "A tutorial on adaptive MCMC", algorithm 4.
    """
    count = count.astype(position.dtype)
    rate = 3.0 / (count + 3.0 + _START)
    difference = position - walk.mean
    outer = jnp.outer(difference, difference)
    covariance = (1.0 - rate) * (walk.covariance + rate * outer)
    log_scale = walk.log_scale + (count + 1.0) ** -0.6 * (accept_prob - target)
    middle = _best_log_scale(len(position))
    # A share of the diagonal keeps the root of a covariance of few positions a number.
    floor = 1e-5 * jnp.diag(jnp.diagonal(covariance))
    return RandomWalk(
        walk.mean + rate * difference,
        covariance,
        jnp.linalg.cholesky(covariance + floor),
        jnp.clip(log_scale, middle - math.log(10.0), middle + math.log(10.0)),
    )


def _best_log_scale(dim: int) -> float:
    """For a noisy density of a normal law: Sherlock, Thiery, Roberts and Rosenthal (2015)."""
    return math.log(2.56 / math.sqrt(dim))
