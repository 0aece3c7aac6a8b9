r"""What one pass over the rows says about a mixture of experts.

Every weighted Gram matrix Σ w φ φᵀ of the step, the experts' and the blocks of the gate's Hessian,
comes out of one product of matrices: distinct products φ_a φ_b of a block of rows, times the
weights that belong to each matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._moe_em_data import EMData

__all__ = ["EMStatistics", "block_gates", "collect"]

_LOG_TWO_PI = math.log(2.0 * math.pi)


class EMStatistics(NamedTuple):
    """Sums over rows at given parameters; w weights, τ responsibilities, π gates, e residuals.

    Parameters
    ----------
    log_likelihood
        Σ w log p(y | φ), ``()``.
    counts
        Σ w τ_k, ``(experts,)``.
    residual_squares
        Σ w τ_k e_k², ``(experts,)``.
    expert_gradient
        Σ w τ_k e_k φ, ``(experts, features)``.
    expert_gram
        Σ w τ_k φ φᵀ, ``(experts, features, features)``, for Bernoulli experts times p_k (1 − p_k).
    gate_gradient
        Σ w (τ_k − π_k) φ, ``(experts, features)``.
    gate_gram
        Σ w π_j (1{j = k} − π_k) φ φᵀ for j ≤ k < experts − 1, ``(pairs, features, features)``; no
        pairs where the gate takes steps of the bound.
    log_gates, responsibilities
        log π and τ, ``(blocks, experts, block)``.
    """

    log_likelihood: jax.Array
    counts: jax.Array
    residual_squares: jax.Array
    expert_gradient: jax.Array
    expert_gram: jax.Array
    gate_gradient: jax.Array
    gate_gram: jax.Array
    log_gates: jax.Array
    responsibilities: jax.Array


def block_gates(gate: jax.Array, features: jax.Array) -> jax.Array:
    """log π of one block, ``(experts, block)``."""
    logits = gate @ features
    return logits - jax.nn.logsumexp(logits, axis=0)


def collect(
    parameters: MixtureOfExpertsParameters, data: EMData, *, gate_hessian: bool
) -> EMStatistics:
    """One pass over the blocks; the log-likelihood's sum is compensated (Kahan)."""
    num_experts, width = parameters.gate.shape
    first, second = np.triu_indices(width)
    pairs = np.triu_indices(num_experts - 1 if gate_hessian else 0)

    def block(carry: tuple, rows: tuple) -> tuple:
        total, lost, sums = carry
        features, outcome, weights = rows
        log_gates = block_gates(parameters.gate, features)
        densities, residuals, curvature = _experts(parameters, features, outcome)
        joint = log_gates + densities
        evidence = jax.nn.logsumexp(joint, axis=0)
        gates, responsibilities = jnp.exp(log_gates), jnp.exp(joint - evidence)
        shares = weights * responsibilities
        gram_weights = jnp.concatenate([shares * curvature, _pair_weights(gates, weights, pairs)])
        # (features · (features + 1) / 2, block) times (block, matrices).
        grams = (features[first] * features[second]) @ gram_weights.T
        linear = jnp.concatenate([shares * residuals, shares - weights * gates])
        squares = jnp.sum(shares * residuals**2, axis=1)
        found = (grams, linear @ features.T, jnp.sum(shares, axis=1), squares)
        term = jnp.sum(weights * evidence) - lost
        larger = total + term
        carry = (larger, (larger - total) - term, jax.tree.map(jnp.add, sums, found))
        return carry, (log_gates, responsibilities)

    like = data.features
    zero = jnp.zeros((), like.dtype)
    start = (
        jnp.zeros((len(first), num_experts + len(pairs[0])), like.dtype),
        jnp.zeros((2 * num_experts, width), like.dtype),
        jnp.zeros((num_experts,), like.dtype),
        jnp.zeros((num_experts,), like.dtype),
    )
    rows = (data.features, data.outcome, data.weights)
    each: tuple[jax.Array, jax.Array]
    carry, each = jax.lax.scan(block, (zero, zero, start), rows)
    total, _, (grams, linear, counts, squares) = carry
    log_gates, responsibilities = each
    place = np.zeros((width, width), dtype=int)
    place[first, second] = place[second, first] = np.arange(len(first))
    matrices = jnp.moveaxis(grams, 1, 0)[:, place]
    return EMStatistics(
        total,
        counts,
        squares,
        linear[:num_experts],
        matrices[:num_experts],
        linear[num_experts:],
        matrices[num_experts:],
        log_gates,
        responsibilities,
    )


def _experts(
    parameters: MixtureOfExpertsParameters, features: jax.Array, outcome: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | float]:
    """log densities, residuals y − m_k and weights of the Gram matrices, ``(experts, block)``."""
    places = parameters.coefficients @ features
    if parameters.scale is None:
        success = jax.nn.sigmoid(places)
        densities = -jax.nn.softplus((1.0 - 2.0 * outcome) * places)
        return densities, outcome - success, success * jax.nn.sigmoid(-places)
    scale = parameters.scale[:, None]
    residuals = outcome - places
    densities = -0.5 * ((residuals / scale) ** 2 + _LOG_TWO_PI) - jnp.log(scale)
    return densities, residuals, 1.0


def _pair_weights(gates: jax.Array, weights: jax.Array, pairs: tuple) -> jax.Array:
    """w π_j (1{j = k} − π_k), ``(pairs, block)``; 1 − π summed from the others where j = k."""
    first, second = pairs
    if not len(first):
        return gates[:0]
    factors = jnp.where((first == second)[:, None], 1.0 - gates[second], -gates[second])
    return weights * gates[first] * factors
