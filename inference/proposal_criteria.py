r"""How far a proposal is from its target, seen from its importance weights.

A filter's N weights are draws of w = dμ/dπ up to a constant, with μ the target and π the proposal.
Normalised by their own mean, u_n = N w_n / Σ w, they estimate any f-divergence at cost O(N):

.. math:: \hat D_f(μ ‖ π) = \frac1N Σ_n f(u_n).

With forward KL this is Σ w̄ log(N w̄), minus the Shannon entropy of the weights up to log N; with
Pearson's χ² the squared coefficient of variation CV² = N Σ w̄² − 1, and N / (1 + CV²) is the
effective sample size. All are zero for equal weights, invariant to the order and to the scale of
w, and biased downwards where few draws carry the target.

Cornebise, Moulines and Olsson (2008), "Adaptive methods for sequential importance sampling with
application to state space models", sections 3 and 4.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bayesdiv.divergences import FDivergence, get_divergence

__all__ = [
    "alpha_moment",
    "coefficient_of_variation",
    "divergence_of_weights",
    "effective_sample_size",
    "entropy_kl",
    "log_ratios",
    "perplexity",
]


def log_ratios(log_weights: jax.Array) -> jax.Array:
    """log u = log(N w̄), of the shape of ``log_weights``; N is the last axis.

    −inf is legal; where every weight is zero, all are NaN.
    """
    count = log_weights.shape[-1]
    return log_weights - logsumexp(log_weights, axis=-1, keepdims=True) + math.log(count)


def entropy_kl(log_weights: jax.Array) -> jax.Array:
    """KL(μ‖π) as Σ w̄ log(N w̄) ≥ 0; ``(..., N)`` to ``(...)``."""
    found = log_ratios(log_weights)
    terms = jnp.exp(found) * jnp.where(jnp.isneginf(found), 0.0, found)
    return jnp.mean(terms, axis=-1)


def coefficient_of_variation(log_weights: jax.Array) -> jax.Array:
    """The squared coefficient of variation, an estimate of χ²(μ‖π); ``(..., N)`` to ``(...)``."""
    return jnp.expm1(logsumexp(2.0 * log_ratios(log_weights), axis=-1) - _log_count(log_weights))


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """N / (1 + CV²) = 1 / Σ w̄², in particles; ``(..., N)`` to ``(...)``."""
    return jnp.exp(2.0 * _log_count(log_weights) - logsumexp(2.0 * log_ratios(log_weights), -1))


def perplexity(log_weights: jax.Array) -> jax.Array:
    """N exp(−KL), the entropy's effective sample size; ``(..., N)`` to ``(...)``."""
    return log_weights.shape[-1] * jnp.exp(-entropy_kl(log_weights))


def alpha_moment(log_weights: jax.Array, order: float) -> jax.Array:
    """E_π[w^a] / (E_π w)^a as N^(a−1) Σ w̄^a; ``(..., N)`` to ``(...)``.

    It is 1 for equal weights and for a = 1, larger for a > 1 and smaller for 0 < a < 1.
    """
    return jnp.exp(logsumexp(order * log_ratios(log_weights), -1) - _log_count(log_weights))


def divergence_of_weights(log_weights: jax.Array, divergence: str | FDivergence) -> jax.Array:
    """D_f(μ‖π) for any f-divergence; ``(..., N)`` to ``(...)``.

    Raises
    ------
    ValueError
        If the divergence is unknown or is not an f-divergence.
    """
    member = f_divergence(divergence)
    return jnp.mean(member.generator(log_ratios(log_weights)), axis=-1)


def f_divergence(divergence: Any) -> FDivergence:
    """The f-divergence of that name, or the object itself."""
    member = get_divergence(divergence)
    if not isinstance(member, FDivergence):
        raise ValueError(
            f"divergence must be an f-divergence, a function of particles' weights, got "
            f"{divergence!r}; for instance 'forward_kl', 'jensen_shannon' or 'pearson_chi2'."
        )
    return member


def _log_count(log_weights: jax.Array) -> float:
    return math.log(log_weights.shape[-1])
