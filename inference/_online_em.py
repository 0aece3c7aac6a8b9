r"""Weighted EM for a mixture of experts with Gaussian or Student's experts, in batches.

What is maximised is Σ_n w̄_n log Σ_k π_k(φ_n) ρ_k(x_n | φ_n) plus κ pseudo-observations of a prior.
All of what the experts need is linear in a few moments of z = (φ, x), with ω = w̄ τ and Student's
latent scale u (1 for Gaussian experts):

.. math:: p_k = Σ_n ω_{nk}, \qquad M_k = Σ_n ω_{nk} u_{nk} z_n z_n^⊤, \qquad
          F = Σ_n \bar w_n φ_n φ_n^⊤,

so that batches, each drawn with other parameters, blend by averaging: online EM. Pooled with κ
times the moments of the prior, a Cholesky factor of M is the whole M-step: with blocks L₁₁, L₂₁
and L₂₂, the coefficients are L₂₁ L₁₁⁻¹ and the scale is L₂₂ / √(p + κ).

Cappé and Moulines (2009), "On-line expectation-maximization algorithm for latent data models";
Cornebise, Moulines and Olsson (2014), section 4.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp

from bayesdiv._mixture_of_experts import (
    MixtureOfExpertsParameters,
    expert_locations,
    expert_log_densities,
    log_gates,
    referenced_gate,
)
from bayesdiv.divergences import FDivergence
from bayesdiv.inference.proposal_criteria import log_ratios

__all__ = [
    "Statistics",
    "blended",
    "expectations",
    "gate_step",
    "joint_log_densities",
    "maximised",
    "particle_weights",
    "penalty",
    "prior_statistics",
]


class Statistics(NamedTuple):
    """Sufficient statistics of a weighted batch.

    Parameters
    ----------
    counts
        p, ``(experts,)``.
    moments
        M, ``(experts, features + dim, features + dim)``.
    features
        F, ``(features, features)``.
    """

    counts: jax.Array
    moments: jax.Array
    features: jax.Array


def particle_weights(divergence: FDivergence, log_weights: jax.Array) -> jax.Array:
    r"""Weights, summing to 1, with which EM on particles minimises D_f(μ‖π_θ).

    Particles come from π_θ and u = dμ/dπ_θ, estimated by `log_ratios`. Since
    ∇D = −E_π[pseudo_reward(log u) ∇ log r_θ] and E_π[∇ log r_θ] = 0, the minimiser is where

    .. math:: E_π\{(u f'(u) − f(u) + c) ∇ \log r_θ\} = 0

    for any constant c: where θ is a fixed point of EM with these weights. With c = f(0), minus the
    pseudo-reward at u = 0, they are not negative and a particle that the target does not know
    weighs nothing: u for forward KL, √u for the squared Hellinger distance, u² for χ², u^a for
    `Alpha` of order a > 0, log(1 + u) for Jensen-Shannon, 1{u > 1} for total variation. The path
    weight, by contrast, belongs to gradients through the draws, and has another fixed point.

    Close to the minimiser these weights are f(0) + f''(1) (u − 1), and an M-step is f''(1)/f(0)
    times Newton's: a times for order a. Orders of 2 and more need the damping of `blended`.

    Raises
    ------
    ValueError
        If f(0) is infinite (reverse KL, Neyman's χ², Jeffreys, softened reverse KL, `Alpha` of
        order 0 or less): no constant makes the weights non-negative.
    """
    constant = value_at_zero(divergence)
    found = log_ratios(log_weights)
    weights = divergence.pseudo_reward(jnp.maximum(found, -80.0)) + constant
    weights = jnp.where(jnp.isneginf(found), 0.0, jnp.maximum(weights, 0.0))
    return weights / weights.sum(-1, keepdims=True)


def value_at_zero(divergence: FDivergence) -> float:
    """f(0), which has to be finite for `particle_weights`."""
    found = float(divergence.value_at_zero)
    if not math.isfinite(found):
        raise ValueError(
            f"divergence {divergence!r} has f(0) = ∞, so that EM has no non-negative weights for "
            "it; use one that covers the target: 'forward_kl', 'pearson_chi2', "
            "'squared_hellinger', 'jensen_shannon', 'total_variation' or Alpha of order above 0."
        )
    return found


def joint_log_densities(
    values: jax.Array,
    features: jax.Array,
    parameters: MixtureOfExpertsParameters,
    degrees_of_freedom: float | None,
) -> jax.Array:
    """log π_k(φ) + log ρ_k(x | φ), ``(n, experts)``, of values ``(n, dim)``."""
    densities = expert_log_densities(
        values,
        features,
        parameters,
        experts="normal" if degrees_of_freedom is None else "student_t",
        degrees_of_freedom=degrees_of_freedom,
    )
    return log_gates(features, parameters.gate) + densities


def expectations(
    values: jax.Array,
    features: jax.Array,
    weights: jax.Array,
    parameters: MixtureOfExpertsParameters,
    degrees_of_freedom: float | None = None,
    *,
    joint: jax.Array | None = None,
) -> tuple[Statistics, jax.Array]:
    """E-step: statistics, and the gradient of the gate's objective, ``(experts, features)``.

    Parameters
    ----------
    values
        x, ``(n, dim)``.
    features
        φ, ``(n, features)``.
    weights
        w̄, ``(n,)``, summing to 1.
    parameters
        Multivariate: coefficients ``(experts, dim, features)``, scale ``(experts, dim, dim)``.
    degrees_of_freedom
        ν of Student's experts; None for Gaussian ones.
    joint
        `joint_log_densities`, where they are known already.
    """
    if joint is None:
        joint = joint_log_densities(values, features, parameters, degrees_of_freedom)
    responsibilities = jnp.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    shares = weights[:, None] * responsibilities
    scaled = shares
    if degrees_of_freedom is not None:
        dim = values.shape[1]
        distances = _squared_distances(values, features, parameters)
        scaled = shares * (degrees_of_freedom + dim) / (degrees_of_freedom + distances)
    rows = jnp.concatenate([features, values], axis=1)
    width = rows.shape[1]
    products = (rows[:, :, None] * rows[:, None, :]).reshape(-1, width * width)
    moments = (scaled.T @ products).reshape(-1, width, width)
    gates = jnp.exp(log_gates(features, parameters.gate))
    gradient = (shares - weights[:, None] * gates).T @ features
    return Statistics(shares.sum(0), moments, (weights[:, None] * features).T @ features), gradient


def blended(old: Statistics, new: Statistics, step: Any) -> Statistics:
    """(1 − γ) old + γ new: one step of stochastic approximation."""
    return jax.tree.map(lambda before, now: before + step * (now - before), old, new)


def prior_statistics(coefficients: jax.Array, scale: jax.Array) -> jax.Array:
    """Moments of one pseudo-observation of each expert, its features having second moment I.

    ``(experts, features + dim, features + dim)``, of coefficients ``(experts, dim, features)`` and
    scale ``(experts, dim, dim)``.
    """
    num_features = coefficients.shape[-1]
    top = jnp.broadcast_to(jnp.eye(num_features, dtype=scale.dtype), _square(coefficients))
    corner = coefficients @ coefficients.mT + scale @ scale.mT
    return jnp.block([[top, coefficients.mT], [coefficients, corner]])


def maximised(
    statistics: Statistics, prior_moments: jax.Array, kappa: Any
) -> tuple[jax.Array, jax.Array]:
    """M-step: coefficients ``(experts, dim, features)`` and scale ``(experts, dim, dim)``.

    An expert without observations is given the prior's. Even κ = 0 counts the prior with a few
    units of the last place, so that no covariance is singular.
    """
    num_features = statistics.features.shape[0]
    least = 16.0 * jnp.finfo(prior_moments.dtype).eps
    kappa = jnp.maximum(kappa, least)
    factor = jnp.linalg.cholesky(statistics.moments + kappa * prior_moments)
    upper = factor[:, :num_features, :num_features].mT
    coefficients = solve_triangular(upper, factor[:, num_features:, :num_features].mT).mT
    total = jnp.sqrt(statistics.counts + kappa)[:, None, None]
    return coefficients, factor[:, num_features:, num_features:] / total


def gate_step(
    gate: jax.Array,
    gradient: jax.Array,
    features: jax.Array,
    *,
    start: jax.Array,
    step: Any = 1.0,
    kappa: Any = 0.0,
) -> jax.Array:
    r"""One step that never decreases the gate's objective less ½ κ ‖b − b₀‖², at ``step`` 1.

    The Hessian of Σ_n w̄_n Σ_k τ_nk log π_k is bounded by ½ (I − 11ᵀ/K) ⊗ F, whose inverse, on rows
    that sum to zero, is twice F⁻¹: one small system whatever the number of experts.

    Parameters
    ----------
    gate
        b, ``(experts, features)``; returned with its last row 0.
    gradient
        As `expectations` returns it; rows sum to zero.
    features
        F, ``(features, features)``.
    start
        b₀.
    step
        γ in (0, 1].
    kappa
        κ.

    References
    ----------
    Böhning (1992), "Multinomial logistic regression algorithm".
    """
    identity = jnp.eye(features.shape[0], dtype=features.dtype)
    least = 16.0 * jnp.finfo(features.dtype).eps
    ascent = gradient - kappa * _centred(gate - start)
    factor = jnp.linalg.cholesky(features + (2.0 * kappa + least) * identity)
    return referenced_gate(gate + 2.0 * step * cho_solve((factor, True), ascent.T).T)


def penalty(
    parameters: MixtureOfExpertsParameters, prior_moments: jax.Array, start: jax.Array, kappa: Any
) -> jax.Array:
    """What κ adds to the objective that EM climbs: the log-density of its pseudo-observations."""
    coefficients, scale = parameters.coefficients, parameters.scale
    inverse = solve_triangular(scale, jnp.eye(scale.shape[-1], dtype=scale.dtype)[None], lower=True)
    identity = jnp.broadcast_to(jnp.eye(scale.shape[-1], dtype=scale.dtype), scale.shape)
    residual = jnp.concatenate([-coefficients, identity], axis=-1)
    spread = residual @ prior_moments @ residual.mT
    squared = jnp.trace(inverse @ spread @ inverse.mT, axis1=-2, axis2=-1)
    logs = jnp.log(jnp.diagonal(scale, axis1=-2, axis2=-1)).sum(-1)
    gate = 0.5 * (_centred(parameters.gate - start) ** 2).sum()
    return -kappa * (gate + (logs + 0.5 * squared).sum())


def _squared_distances(
    values: jax.Array, features: jax.Array, parameters: MixtureOfExpertsParameters
) -> jax.Array:
    """‖L_k⁻¹ (x − B_k φ)‖², ``(n, experts)``."""
    scale = parameters.scale
    identity = jnp.broadcast_to(jnp.eye(scale.shape[-1], dtype=scale.dtype), scale.shape)
    inverse = solve_triangular(scale, identity, lower=True)
    means = expert_locations(features, parameters.coefficients, multivariate=True)
    return (jnp.einsum("kde,nke->nkd", inverse, values[:, None] - means) ** 2).sum(-1)


def _centred(rows: jax.Array) -> jax.Array:
    return rows - rows.mean(0)


def _square(coefficients: jax.Array) -> tuple[int, ...]:
    return (*coefficients.shape[:-2], coefficients.shape[-1], coefficients.shape[-1])
