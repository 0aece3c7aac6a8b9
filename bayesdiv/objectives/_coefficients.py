"""From log-weights to what multiplies the differentiable terms of the surrogate."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

from bayesdiv._array import (
    Array,
    array_namespace,
    clip,
    identity_like,
    log_mean_exp,
    softmax,
)
from bayesdiv.divergences import FDivergence
from bayesdiv.divergences._numeric import log_ratio_limit
from bayesdiv.objectives._bounds import RenyiBound, TailAdaptive


class Coefficients(NamedTuple):
    r"""With L the differentiable log-weight, the surrogate is −mean(weight · L + reward · log q).

    Shapes are ``(num_particles, *independent_plates)``, but ``value`` lacks the first axis.
    ``reward`` is None where no site needs the score function.
    """

    value: Array
    weight: Array
    reward: Array | None


@singledispatch
def coefficients(
    rule: Any,
    log_weight: Array,
    *,
    gradient: str,
    log_normalizer: Any,
    with_reward: bool,
) -> Coefficients:
    """Coefficients of ``rule`` at detached ``log_weight``, ``(num_particles, *plates)``."""
    raise TypeError(
        "objective must be an FDivergence, a RenyiBound or a TailAdaptive, "
        f"got {rule!r} of type {type(rule).__name__}."
    )


@coefficients.register
def _(
    rule: FDivergence,
    log_weight: Array,
    *,
    gradient: str,
    log_normalizer: Any,
    with_reward: bool,
) -> Coefficients:
    xp = array_namespace(log_weight)
    if not rule.needs_normalizer:
        # Reverse KL, maybe rescaled: linear in the log-weight, hence exact without log Z.
        reward = rule.pseudo_reward(log_weight)
        weight = rule.path_weight(log_weight)
        value = -xp.mean(reward, axis=0)
        return Coefficients(value, weight, _centred(reward) if with_reward else None)
    limit = log_ratio_limit(log_weight)
    log_ratio = clip(log_weight - log_normalizer, -limit, limit)
    generator = _bounded(rule.generator(log_ratio))
    value = xp.mean(generator, axis=0)
    if gradient == "reparam":
        # E_q[u ∇l] estimates 0, so f may be shifted by a multiple of u − 1; f''(1) makes one
        # particle give the ELBO's gradient.
        shift = rule.second_derivative_at_one if rule.has_path_gradient else 0.0
        ratio = xp.exp(log_ratio)
        weight = ratio * (shift - rule.derivative(log_ratio))
        reward = shift * (ratio - 1.0) - generator
    else:
        # Where f'' does not exist the model's parameters get the evidence's gradient.
        weight = rule.path_weight(log_ratio) if rule.has_path_gradient else xp.exp(log_ratio)
        reward = rule.pseudo_reward(log_ratio) if with_reward else None
    return Coefficients(
        value, _bounded(weight), _centred(_bounded(reward)) if with_reward else None
    )


@coefficients.register
def _(
    rule: RenyiBound,
    log_weight: Array,
    *,
    gradient: str,
    log_normalizer: Any,
    with_reward: bool,
) -> Coefficients:
    count = log_weight.shape[0]
    power = 1.0 - rule.order
    scaled = power * log_weight
    bound = log_mean_exp(scaled, axis=0) / power
    share = softmax(scaled, axis=0)
    weight = count * share
    if gradient == "path":
        # The doubly reparameterised form: the share itself moves with z.
        weight = weight * (rule.order + power * share)
    if not with_reward:
        return Coefficients(-bound, weight, None)
    reward = count * (bound - _bound_without_each(scaled) / power)
    if gradient != "reparam":
        reward = reward - count * share
    return Coefficients(-bound, weight, reward)


@coefficients.register
def _(
    rule: TailAdaptive,
    log_weight: Array,
    *,
    gradient: str,
    log_normalizer: Any,
    with_reward: bool,
) -> Coefficients:
    xp = array_namespace(log_weight)
    count = log_weight.shape[0]
    # The rank of w_k is the number of particles at least as large, so that equal weights share one.
    at_least = xp.astype(log_weight[None] >= log_weight[:, None], log_weight.dtype)
    rank = xp.sum(at_least, axis=1)
    weight = count * softmax(rule.exponent * xp.log(rank / count), axis=0)
    return Coefficients(-xp.mean(log_weight, axis=0), weight, None)


def _centred(reward: Array) -> Array:
    """Less the mean of the other particles: a baseline independent of the particle itself."""
    xp = array_namespace(reward)
    count = reward.shape[0]
    if count == 1:
        return reward
    return (reward - xp.mean(reward, axis=0)) * (count / (count - 1.0))


def _bound_without_each(scaled: Array) -> Array:
    """log-mean-exp with particle k's entry replaced by the mean of the others' (Mnih and Rezende
    2016, eq. 10), row k for particle k."""
    xp = array_namespace(scaled)
    count = scaled.shape[0]
    # A baseline must be finite: a weight of 0 among the others would make their mean −∞.
    floor = xp.max(scaled, axis=0) - log_ratio_limit(scaled)
    scaled = xp.where(scaled == -math.inf, floor, scaled)
    others = (xp.sum(scaled, axis=0) - scaled) / (count - 1.0)
    diagonal = identity_like(xp.reshape(scaled, (count, -1))[:, 0])
    own = xp.reshape(diagonal, (count, count) + (1,) * (scaled.ndim - 1)) > 0.0
    return log_mean_exp(xp.where(own, others[:, None], scaled[None]), axis=1)


def _bounded(x: Array) -> Array:
    """``x`` short of overflow, so that sums and products with log-weights stay finite too.

    Steep divergences (an order far from 0 and 1) overflow inside the range of log-ratios.
    """
    largest = float(array_namespace(x).finfo(x.dtype).max) ** 0.75
    return clip(x, -largest, largest)
