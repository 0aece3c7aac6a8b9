"""Simpler ways to make one mixture of experts of several, for comparison and as starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._pooled_experts import PooledExperts, pool_experts
from bayesdiv.inference._reduction_starts import (
    align,
    distance_matrix,
    greedy_start,
    model_distances,
)
from bayesdiv.inference._soft_gate import fit_gate

__all__ = ["BASELINES", "baseline"]

BASELINES = ("aligned_average", "naive_average", "coordinate_median", "middle", "greedy_merge")


def baseline(
    name: str,
    models: Sequence[MixtureOfExpertsParameters],
    support: Any,
    *,
    weights: Any = None,
    num_experts: int | None = None,
    experts: str = "normal",
) -> MixtureOfExpertsParameters:
    """One model made of ``models`` by a simpler rule than a transport reduction.

    ===================== ====================================================================
    name                  rule
    ===================== ====================================================================
    ``aligned_average``   experts matched to those of the medoid, then gates, coefficients and
                          variances averaged with the weights
    ``naive_average``     experts ordered by intercept, by variance where these tie, then averaged
    ``coordinate_median`` matched, then the median of every number
    ``middle``            the model nearest the others, by weighted transportation divergence
    ``greedy_merge``      the two experts whose merger loses least, again and again; gate fitted
                          to the merged experts' mass
    ===================== ====================================================================

    Parameters
    ----------
    name
        One of `BASELINES`.
    models, support, weights, experts
        As for `TransportReduction.run`.
    num_experts
        For ``greedy_merge``; the others need models of one size, and keep it.

    Raises
    ------
    ValueError
        An unknown name, or models of different sizes where they must be alike.
    """
    if name not in BASELINES:
        raise ValueError(f"name must be one of {', '.join(BASELINES)}, got {name!r}.")
    pooled = pool_experts(models, weights, support, experts=experts)
    counts = pooled.counts
    if name == "middle":
        matrix = distance_matrix(pooled, np.arange(len(counts)))
        return _as_jax(pooled.parameters[int(np.argmin(pooled.mean_weights @ matrix))])
    if name == "greedy_merge":
        return _merged(pooled, int(counts.max()) if num_experts is None else num_experts)
    if (counts != counts[0]).any():
        raise ValueError(
            f"{name} needs models with one number of experts, got {counts.tolist()}; use "
            "greedy_merge or a TransportReduction."
        )
    if name == "naive_average":
        return _average([_ordered(model) for model in pooled.parameters], pooled.mean_weights)
    matched = _matched(pooled, model_distances(pooled).medoid)
    if name == "aligned_average":
        return _average(matched, pooled.mean_weights)
    gates, coefficients, scales = _stacked(matched)
    return _as_jax(
        MixtureOfExpertsParameters(
            np.median(gates, axis=0),
            np.median(coefficients, axis=0),
            None if scales is None else np.median(scales, axis=0),
        )
    )


def _matched(pooled: PooledExperts, reference: int) -> list[MixtureOfExpertsParameters]:
    """The models with their experts in the order of those of ``reference``."""
    found = []
    pairs = align(pooled, reference)
    for model, (own, theirs) in zip(pooled.parameters, pairs, strict=True):
        found.append(_permuted(model, own[np.argsort(theirs)]))
    return found


def _permuted(model: MixtureOfExpertsParameters, order: np.ndarray) -> MixtureOfExpertsParameters:
    gate = model.gate[order]
    scale = None if model.scale is None else model.scale[order]
    return MixtureOfExpertsParameters(gate - gate[-1:], model.coefficients[order], scale)


def _ordered(model: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
    intercepts = model.coefficients[:, 0]
    ties = intercepts if model.scale is None else model.scale
    return _permuted(model, np.lexsort((ties, intercepts)))


def _stacked(models: Sequence[MixtureOfExpertsParameters]) -> tuple:
    gates = np.stack([model.gate for model in models])
    coefficients = np.stack([model.coefficients for model in models])
    scales = [model.scale for model in models if model.scale is not None]
    return gates, coefficients, np.stack(scales) if scales else None


def _average(
    models: Sequence[MixtureOfExpertsParameters], weights: np.ndarray
) -> MixtureOfExpertsParameters:
    """Weighted averages of gates, coefficients and variances."""
    gates, coefficients, scales = _stacked(models)
    scale = None if scales is None else np.sqrt(np.tensordot(weights, scales**2, 1))
    return _as_jax(
        MixtureOfExpertsParameters(
            np.tensordot(weights, gates, 1), np.tensordot(weights, coefficients, 1), scale
        )
    )


def _merged(pooled: PooledExperts, num_experts: int) -> MixtureOfExpertsParameters:
    if not 1 <= num_experts <= len(pooled.shard):
        raise ValueError(
            f"num_experts must be from 1 to {len(pooled.shard)}, the experts of all models, got "
            f"{num_experts}."
        )
    merged, group = greedy_start(pooled, num_experts)
    member = jnp.asarray(group[:, None] == np.arange(num_experts), pooled.features.dtype)
    gate = fit_gate(pooled.features, pooled.mass @ member).gate
    return pooled.parameters_of(merged, gate)


def _as_jax(parameters: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
    return MixtureOfExpertsParameters(
        *(None if part is None else jnp.asarray(part) for part in parameters)
    )
