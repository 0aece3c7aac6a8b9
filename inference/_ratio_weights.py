r"""From log-ratios at many noise levels to the weights of score differences, in log space."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, logsumexp, stop_gradient


class RatioWeights(NamedTuple):
    """``weights``, ``(n,)``, what stage 1 remembers, ``(bins,)``, and the log-ratio it left."""

    weights: Array
    log_means: Array
    log_ratio: Array


def bin_of_level(sigma: Array, sigma_min: float, sigma_max: float, num_bins: int) -> Array:
    """The bin of each level, ``(n,)`` floats 0 … num_bins − 1; bins are equal in log σ.

    Bins that were equal in σ would hold most levels of the usual schedules in the first of them.
    """
    xp = array_namespace(sigma)
    if num_bins == 1 or sigma_min == sigma_max:
        return xp.zeros_like(sigma)
    width = math.log(sigma_max / sigma_min) / num_bins
    position = xp.floor((xp.log(sigma) - math.log(sigma_min)) / width)
    return xp.clip(position, 0.0, num_bins - 1.0)


def members_of_bins(bins: Array, like: Array) -> Array:
    """Which row is in which bin, ``(n, bins)``, for ``like`` of shape ``(bins,)``."""
    xp = array_namespace(like)
    index = xp.cumulative_sum(xp.ones_like(like), axis=0) - 1.0
    return bins[:, None] == index


def log_mean_of_bins(log_ratio: Array, member: Array) -> Array:
    """log of the mean ratio of each bin, ``(bins,)``; −∞ where a bin is empty."""
    xp = array_namespace(log_ratio)
    wide = log_ratio[:, None] + xp.zeros_like(xp.astype(member, log_ratio.dtype))
    logs = logsumexp(xp.where(member, wide, xp.full_like(wide, -math.inf)), axis=0)
    counts = xp.sum(xp.astype(member, log_ratio.dtype), axis=0)
    return logs - xp.log(xp.clip(counts, 1.0, None))


def ratio_weights(
    rule: Any,
    log_ratio: Array,
    bins: Array,
    log_means: Array,
    *,
    keep: Array,
    decay: float,
    normalize_ratio: bool,
    normalize_weight: bool,
) -> RatioWeights:
    r"""h(l − log b_k), h the divergence's path weight, over its mean: both stages.

    Stage 1 rests on E_q[p/q] = 1 at every level: b_k is a running average over steps of the mean
    ratio in bin k, the first mean of a bin taken whole. It repairs a ratio that is off by a factor,
    and stands for the evidence where p is known up to it. Stage 2 divides by the mean weight, so
    that constants of the divergence drop out. Rows that are not in ``keep`` get weight 0.
    """
    xp = array_namespace(log_ratio)
    log_ratio = stop_gradient(log_ratio)
    if normalize_ratio:
        member = members_of_bins(bins, log_means)
        fresh = log_mean_of_bins(log_ratio, member & keep[:, None])
        mixed = fresh
        if decay:
            mixed = xp.logaddexp(log_means + math.log(decay), fresh + math.log1p(-decay))
        seen, known = fresh != -math.inf, log_means != -math.inf
        log_means = xp.where(seen, xp.where(known, mixed, fresh), log_means)
        each = xp.sum(xp.where(member, log_means, xp.zeros_like(log_means)), axis=1)
        log_ratio = xp.where(keep, log_ratio - each, xp.zeros_like(log_ratio))
    log_weight = rule.log_path_weight(log_ratio)
    kept = xp.astype(keep, log_ratio.dtype)
    if not normalize_weight:
        return RatioWeights(xp.exp(log_weight) * kept, log_means, log_ratio)
    # Not by a log-sum: constant weights must come out as 1 to the last bit.
    absent = xp.full_like(log_weight, -math.inf)
    top = xp.max(xp.where(keep, log_weight, absent))
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    weights = xp.exp(xp.where(keep, log_weight - top, absent))
    mean = xp.sum(weights) / xp.clip(xp.sum(kept), 1.0, None)
    positive = xp.where(mean > 0.0, mean, xp.ones_like(mean))
    return RatioWeights(weights / positive, log_means, log_ratio)


def effective_sample_size(weights: Array) -> Array:
    """(Σh)²/Σh², a scalar; 0 where all are 0."""
    xp = array_namespace(weights)
    squares = xp.sum(weights**2)
    safe = xp.where(squares > 0.0, squares, xp.ones_like(squares))
    return xp.sum(weights) ** 2 / safe
