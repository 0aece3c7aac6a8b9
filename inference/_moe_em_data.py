"""Rows of a regression in the layout that EM for mixtures of experts reads, and the way back."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, referenced_gate

__all__ = ["EMData", "prepare", "to_data_units", "to_standard_units"]

# Rows a block on a CPU: products of 20 predictors stay in the second-level cache.
_CPU_BLOCK = 1024
_ACCELERATOR_BLOCK = 65_536
# A block's length is a multiple of it, for vector registers.
_LANES = 16


class EMData(NamedTuple):
    """Standardised rows in blocks, each with one column a row; a pytree.

    Parameters
    ----------
    features
        ``(blocks, features, block)``; the first feature is 1, the others have mean 0 and sd 1.
    outcome
        ``(blocks, block)``; mean 0 and sd 1 for normal experts, 0 or 1 for Bernoulli ones.
    weights
        ``(blocks, block)``; 0 for padding.
    gram
        Σ w φ φᵀ, ``(features, features)``.
    total_weight
        Σ w, ``()``.
    predictor_mean, predictor_scale
        ``(features − 1,)``.
    outcome_mean, outcome_scale
        ``()``.
    """

    features: jax.Array
    outcome: jax.Array
    weights: jax.Array
    gram: jax.Array
    total_weight: jax.Array
    predictor_mean: jax.Array
    predictor_scale: jax.Array
    outcome_mean: jax.Array
    outcome_scale: jax.Array


def prepare(
    predictors: jax.Array,
    outcome: jax.Array,
    weights: jax.Array,
    *,
    standardise_outcome: bool,
    block_size: int | None = None,
) -> EMData:
    """Standardise by weighted moments, and cut into blocks.

    ``predictors`` is ``(n, dim)`` without intercept, ``outcome`` and ``weights`` are ``(n,)``. Rows
    of weight 0 may hold anything. A constant column keeps scale 1.
    """
    used = weights > 0.0
    total = jnp.sum(weights)
    predictors = jnp.where(used[:, None], predictors, 0.0)
    outcome = jnp.where(used, outcome, 0.0)
    centre, scale = _moments(predictors, weights[:, None], total)
    standard = jnp.where(used[:, None], (predictors - centre) / scale, 0.0)
    middle, spread = jnp.zeros_like(total), jnp.ones_like(total)
    if standardise_outcome:
        middle, spread = _moments(outcome, weights, total)
        outcome = jnp.where(used, (outcome - middle) / spread, 0.0)
    features = jnp.concatenate([jnp.ones_like(standard[:, :1]), standard], axis=1)
    gram = (weights[:, None] * features).T @ features
    count, length = _blocks(len(outcome), block_size)
    padding = count * length - len(outcome)
    return EMData(
        jnp.pad(features, ((0, padding), (0, 0))).reshape(count, length, -1).swapaxes(1, 2),
        jnp.pad(outcome, (0, padding)).reshape(count, length),
        jnp.pad(weights, (0, padding)).reshape(count, length),
        gram,
        total,
        centre,
        scale,
        middle,
        spread,
    )


def to_data_units(
    parameters: MixtureOfExpertsParameters, data: EMData
) -> MixtureOfExpertsParameters:
    """Parameters on the standardised scale as those of (1, predictors) and the outcome itself."""
    gate = referenced_gate(_unscaled(parameters.gate, data))
    coefficients = _unscaled(parameters.coefficients, data) * data.outcome_scale
    coefficients = coefficients.at[:, 0].add(data.outcome_mean)
    scale = None if parameters.scale is None else parameters.scale * data.outcome_scale
    return MixtureOfExpertsParameters(gate, coefficients, scale)


def to_standard_units(
    parameters: MixtureOfExpertsParameters, data: EMData
) -> MixtureOfExpertsParameters:
    """The inverse of `to_data_units`."""
    gate = referenced_gate(_rescaled(parameters.gate, data))
    coefficients = _rescaled(
        parameters.coefficients.at[:, 0].add(-data.outcome_mean) / data.outcome_scale, data
    )
    scale = None if parameters.scale is None else parameters.scale / data.outcome_scale
    return MixtureOfExpertsParameters(gate, coefficients, scale)


def _moments(
    values: jax.Array, weights: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and sd over rows, the sd 1 where rounding is all there is."""
    centre = jnp.sum(weights * values, axis=0) / total
    # What the first pass lost to rounding, which matters far from 0.
    centre = centre + jnp.sum(weights * (values - centre), axis=0) / total
    scale = jnp.sqrt(jnp.sum(weights * (values - centre) ** 2, axis=0) / total)
    noise = 10.0 * jnp.finfo(values.dtype).eps * jnp.abs(centre)
    return centre, jnp.where(scale > noise, scale, 1.0)


def _blocks(num_rows: int, block_size: int | None) -> tuple[int, int]:
    if block_size is None:
        on_cpu = jax.default_backend() == "cpu"
        block_size = _CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK
    count = max(1, math.ceil(num_rows / block_size))
    length = math.ceil(num_rows / count / _LANES) * _LANES
    return count, length


def _unscaled(rows: jax.Array, data: EMData) -> jax.Array:
    slopes = rows[:, 1:] / data.predictor_scale
    return jnp.concatenate([rows[:, :1] - (slopes @ data.predictor_mean)[:, None], slopes], axis=1)


def _rescaled(rows: jax.Array, data: EMData) -> jax.Array:
    intercepts = rows[:, :1] + (rows[:, 1:] @ data.predictor_mean)[:, None]
    return jnp.concatenate([intercepts, rows[:, 1:] * data.predictor_scale], axis=1)
