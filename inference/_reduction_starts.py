"""Distances between the models to be reduced, the models that look wrong, and where to start."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from bayesdiv.inference._ground_cost_updates import Experts
from bayesdiv.inference._ground_costs import GroundCost, get_ground_cost
from bayesdiv.inference._pooled_experts import PooledExperts

__all__ = [
    "ModelDistances",
    "align",
    "aligned_start",
    "cluster_start",
    "distance_matrix",
    "greedy_groups",
    "greedy_start",
    "mean_costs",
    "model_distances",
]

_MAX_ROWS = 300
_MAX_CANDIDATES = 64
_MAD_OF_NORMAL = 1.4826


class ModelDistances(NamedTuple):
    """How far every model is from the medoid, in nats.

    Parameters
    ----------
    medoid
        Index of the model whose median distance from the others is smallest.
    distances
        Expected transportation divergence (forward KL) of each to the medoid, ``(models,)``.
    threshold
        median + 6 · 1.4826 · MAD of the distances, the median absolute deviation being that of the
        lower half; at least 1.5 times the median.
    flags
        Which exceed it, ``(models,)``.
    """

    medoid: int
    distances: np.ndarray
    threshold: float
    flags: np.ndarray


def model_distances(pooled: PooledExperts) -> ModelDistances:
    """Distances to the medoid on up to 300 rows, and the outliers among them.

    With more than 64 models, candidates for the medoid are 64 of them, evenly spread.
    """
    candidates = _spread(len(pooled.parameters), _MAX_CANDIDATES)
    matrix = distance_matrix(pooled, candidates)
    column = int(np.argmin(np.median(matrix, axis=0)))
    distances = matrix[:, column]
    median = np.median(distances)
    # Of the lower half alone: the upper may hold outliers by the dozen.
    spread = _MAD_OF_NORMAL * np.median(median - distances[distances <= median])
    # Six copies of one model have no spread at all, and rounding is no reason to distrust one.
    threshold = float(median + max(6.0 * spread, 0.5 * median, 1e-6))
    return ModelDistances(int(candidates[column]), distances, threshold, distances > threshold)


def distance_matrix(pooled: PooledExperts, candidates: np.ndarray) -> np.ndarray:
    """E_x Σ_j π_pj min_k KL(p_j‖q_k) from each model p to each candidate q, ``(models, q)``."""
    rows = _spread(len(pooled.features), _MAX_ROWS)
    slots, filled = _slots(pooled)
    gates = np.where(filled, np.asarray(pooled.mass)[rows][:, slots], 0.0)
    gates = gates / np.maximum(gates.sum(axis=2, keepdims=True), np.finfo(gates.dtype).tiny)
    scale = None if pooled.local.scale is None else pooled.local.scale[slots]
    cost = get_ground_cost("forward_kl", experts=pooled.experts)
    places = pooled.local.places[rows][:, slots]
    found = _distances_to(gates, places, scale, filled, candidates, cost=cost)
    return np.asarray(found, float)


def _spread(size: int, most: int) -> np.ndarray:
    """At most ``most`` indices below ``size``, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(int))


@partial(jax.jit, static_argnames="cost")
def _distances_to(
    gates: jax.Array,
    places: jax.Array,
    scale: jax.Array | None,
    filled: jax.Array,
    candidates: jax.Array,
    *,
    cost: GroundCost,
) -> jax.Array:
    def to(candidate: jax.Array) -> jax.Array:
        costs = cost.between(
            places[..., None],
            None if scale is None else scale[..., None],
            places[:, candidate][:, None, None],
            None if scale is None else scale[candidate],
        )
        least = jnp.min(jnp.where(filled[candidate], costs, jnp.inf), axis=-1)
        return jnp.mean(jnp.sum(jnp.where(gates > 0.0, gates * least, 0.0), axis=2), axis=0)

    return jax.lax.map(to, candidates).T


def _slots(pooled: PooledExperts) -> tuple[np.ndarray, np.ndarray]:
    """Columns of each model, ``(models, most experts)``, and which of these exist."""
    counts = pooled.counts
    slot = np.arange(counts.max())
    filled = slot < counts[:, None]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.where(filled, first[:, None] + slot, 0), filled


def align(pooled: PooledExperts, reference: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every model ``(own, theirs)``: its experts, and those of ``reference`` they match.

    Hungarian assignment on the mean forward KL between experts over the support (Kuhn 1955).
    """
    columns = np.flatnonzero(pooled.shard == reference)
    matrix = mean_costs(pooled.local.places, pooled.local.scale, columns, experts=pooled.experts)
    return [
        linear_sum_assignment(matrix[pooled.shard == index])
        for index in range(len(pooled.parameters))
    ]


def mean_costs(
    places: jax.Array, scale: jax.Array | None, columns: np.ndarray, *, experts: str
) -> np.ndarray:
    """Mean forward KL over the support from every expert to those in ``columns``."""
    cost = get_ground_cost("forward_kl", experts=experts)
    return np.asarray(_mean_costs(places, scale, columns, cost=cost), float)


@partial(jax.jit, static_argnames="cost")
def _mean_costs(
    places: jax.Array, scale: jax.Array | None, columns: jax.Array, *, cost: GroundCost
) -> jax.Array:
    def to(column: jax.Array) -> jax.Array:
        reduced = None if scale is None else scale[column]
        return jnp.mean(cost.between(places, scale, places[:, column][:, None], reduced), axis=0)

    return jax.lax.map(to, columns).T


def aligned_start(pooled: PooledExperts, reference: int) -> Experts:
    """Average of the experts that match each expert of ``reference``, and of their variances."""
    group = np.full(len(pooled.shard), -1)
    for index, (own, theirs) in enumerate(align(pooled, reference)):
        group[np.flatnonzero(pooled.shard == index)[own]] = theirs
    share = pooled.mean_weights[pooled.shard]
    return _group_averages(pooled, group, share, int(pooled.counts[reference]), spread=0.0)


def cluster_start(pooled: PooledExperts, num_experts: int, seed: int) -> Experts:
    """Averages of the groups that k-means makes of the experts' predictions on the support."""
    from sklearn.cluster import KMeans

    values, vectors = np.linalg.eigh(pooled.gram)
    # |X(b − b')|² in as many coordinates as there are features, not rows.
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    share = np.asarray(pooled.mass, float).mean(axis=0)
    points = np.asarray(pooled.local.coefficients, float) @ root
    means = KMeans(num_experts, n_init=1, random_state=seed)
    group = means.fit_predict(points, sample_weight=np.maximum(share, 1e-12))
    return _group_averages(pooled, group, np.maximum(share, 1e-12), num_experts)


def greedy_start(pooled: PooledExperts, num_experts: int) -> tuple[Experts, np.ndarray]:
    """Experts left after greedy merging, and the group ``(L,)`` that each local one ended in."""
    group = greedy_groups(pooled, num_experts)
    share = np.asarray(pooled.mass, float).mean(axis=0)
    return _group_averages(pooled, group, np.maximum(share, 1e-12), num_experts), group


def greedy_groups(pooled: PooledExperts, num_experts: int) -> np.ndarray:
    r"""Merge, two at a time, the experts whose merger loses least until ``num_experts`` are left.

    With D² the mean squared gap of two experts' places, w their mean gates and v their variances,

    .. math:: ½ (w \log v - w_i \log v_i - w_j \log v_j), \qquad
              v = (w_i v_i + w_j v_j)/w + w_i w_j D²/w²,

    is Runnalls's bound (2007). Bernoulli experts use the gap of their logits and v = 4.
    """
    gram, coefficients = pooled.gram, np.array(pooled.local.coefficients, float)
    share = np.maximum(np.asarray(pooled.mass, float).mean(axis=0), 1e-12)
    scale = pooled.local.scale
    variance = np.full(len(share), 4.0) if scale is None else np.asarray(scale, float) ** 2
    group = np.arange(len(share))
    loss = np.stack(
        [_merge_losses(index, coefficients, variance, share, gram) for index in range(len(share))]
    )
    alive = np.ones(len(share), bool)
    np.fill_diagonal(loss, np.inf)
    while alive.sum() > num_experts:
        place = np.unravel_index(np.argmin(loss), loss.shape)
        first, second = sorted(int(index) for index in place)
        total = share[first] + share[second]
        parts = share[[first, second]] / total
        gap = coefficients[first] - coefficients[second]
        variance[first] = parts @ variance[[first, second]] + parts.prod() * (gap @ gram @ gap)
        coefficients[first] = parts @ coefficients[[first, second]]
        share[first] = total
        group[group == second] = first
        alive[second] = False
        loss[second] = loss[:, second] = np.inf
        losses = _merge_losses(first, coefficients, variance, share, gram)
        loss[first] = loss[:, first] = np.where(alive, losses, np.inf)
        loss[first, first] = np.inf
    return np.unique(group, return_inverse=True)[1]


def _merge_losses(
    index: int,
    coefficients: np.ndarray,
    variance: np.ndarray,
    share: np.ndarray,
    gram: np.ndarray,
) -> np.ndarray:
    gap = coefficients - coefficients[index]
    square = np.einsum("lf,lf->l", gap @ gram, gap)
    total = share + share[index]
    merged = (share * variance + share[index] * variance[index]) / total
    merged = merged + share * share[index] * square / total**2
    own = share * np.log(variance)
    return 0.5 * (total * np.log(merged) - own - own[index])


def _group_averages(
    pooled: PooledExperts,
    group: np.ndarray,
    share: np.ndarray,
    num_experts: int,
    *,
    spread: float = 1.0,
) -> Experts:
    """Weighted averages by group of coefficients and variances; ``spread`` times that between."""
    member = (group[:, None] == np.arange(num_experts)) * share[:, None]
    member = member / np.maximum(member.sum(axis=0), np.finfo(float).tiny)
    own = np.asarray(pooled.local.coefficients, float)
    coefficients = member.T @ own
    dtype = pooled.features.dtype
    if pooled.local.scale is None:
        return Experts(jnp.asarray(coefficients, dtype), None)
    gap = own - coefficients[np.maximum(group, 0)]
    between = np.einsum("lf,lf->l", gap @ pooled.gram, gap)
    variance = member.T @ (np.asarray(pooled.local.scale, float) ** 2 + spread * between)
    return Experts(jnp.asarray(coefficients, dtype), jnp.asarray(np.sqrt(variance), dtype))
