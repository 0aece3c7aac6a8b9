r"""Best of N: draw N candidates, keep the one of highest reward, and the law that results.

With F(v) = P(r ≤ v) and F⁻(v) = P(r < v) under the policy π, and ties broken at random,

.. math::
    π_N(y) = π(y)\, \frac{F(r(y))^N - F^-(r(y))^N}{F(r(y)) - F^-(r(y))}, \qquad
    \mathrm{KL}(π_N\|π) \le \log N - \frac{N-1}{N},

with equality where no two outcomes have one reward. Arrays are torch's or JAX's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesdiv._array import (
    Array,
    array_namespace,
    as_array_like,
    is_jax_array,
    is_torch_array,
    log_gamma,
    logsumexp,
)
from bayesdiv._random import standard_uniform

__all__ = [
    "best_of_n",
    "best_of_n_bound",
    "best_of_n_curve",
    "best_of_n_kl",
    "best_of_n_law",
]

# Pairs of candidates that are compared at a time: 32 MB in float64.
_PAIRS_AT_ONCE = 2**22


def best_of_n_law(log_probs: Array, rewards: Array, num_candidates: int) -> Array:
    r"""log π_N, the exact law of the best of ``num_candidates`` draws, over an enumerated set.

    Parameters
    ----------
    log_probs
        log π of every outcome, ``(outcomes,)``, normalised; −∞ for one that is never drawn.
    rewards
        ``(outcomes,)``. Outcomes of one reward are tied and share its mass as π does.
    num_candidates
        N.

    Returns
    -------
    Array
        ``(outcomes,)``, nats, normalised.

    Raises
    ------
    ValueError
        Shapes that differ, N below 1, a reward that is not finite, or probabilities that do not
        sum to 1.

    Examples
    --------
    >>> import torch
    >>> law = best_of_n_law(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]), 2)
    >>> law.exp()
    tensor([0.2500, 0.7500])
    """
    _check_count("num_candidates", num_candidates)
    _check_law(log_probs, rewards)
    xp = array_namespace(log_probs)
    order = xp.argsort(rewards)
    ordered, probs = xp.take(rewards, order), xp.exp(xp.take(log_probs, order))
    cumulative = xp.concat([xp.zeros_like(probs[:1]), xp.cumulative_sum(probs)])
    first = xp.searchsorted(ordered, rewards, side="left")
    beyond = xp.searchsorted(ordered, rewards, side="right")
    up_to = xp.take(cumulative, beyond)
    # A difference of sums would lose the digits of an outcome that is tied with none.
    level = xp.where(beyond - first == 1, xp.exp(log_probs), up_to - xp.take(cumulative, first))
    drawn = (log_probs > -math.inf) & (level > 0.0)
    safe, up_to = (xp.where(drawn, mass, xp.ones_like(mass)) for mass in (level, up_to))
    # F^N − F⁻^N = F^N (1 − (1 − δ)^N), where δ is the level's share of F.
    share = xp.clip(safe / up_to, 0.0, 1.0)
    gain = xp.log(-xp.expm1(num_candidates * xp.log1p(-share)) / share)
    law = log_probs + (num_candidates - 1) * xp.log(up_to) + gain
    return xp.where(drawn, law, xp.full_like(law, -math.inf))


def best_of_n_kl(log_probs: Array, rewards: Array, num_candidates: int) -> Array:
    """KL(π_N‖π) in nats, a scalar, exactly; arguments and errors as in `best_of_n_law`."""
    xp = array_namespace(log_probs)
    law = best_of_n_law(log_probs, rewards, num_candidates)
    gain = xp.where(law == -math.inf, xp.zeros_like(law), law - log_probs)
    return xp.sum(xp.exp(law) * gain)


def best_of_n_bound(num_candidates: int) -> float:
    """log N − (N − 1)/N: what KL(π_N‖π) is without ties, and at most with them; nats.

    >>> [round(best_of_n_bound(n), 3) for n in (2, 4, 64)]
    [0.193, 0.636, 3.175]
    """
    _check_count("num_candidates", num_candidates)
    return math.log(num_candidates) - (num_candidates - 1) / num_candidates


def best_of_n(rewards: Array, *, num_candidates: int | None = None, rng: Any = None) -> Array:
    """The index of each prompt's best candidate, ``(prompts,)``; ties are broken at random.

    Parameters
    ----------
    rewards
        ``(prompts, candidates)``.
    num_candidates
        N: only the first N candidates of a prompt compete; None for all.
    rng
        A seed or generator for torch, a key for JAX: of the ties. An argmax would prefer what was
        drawn first.

    Raises
    ------
    ValueError
        N below 1 or above the candidates there are; a reward that is not finite, naming prompt and
        candidate.
    """
    _check_rewards(rewards)
    most = rewards.shape[1]
    count = most if num_candidates is None else num_candidates
    _check_count("num_candidates", count)
    if count > most:
        raise ValueError(
            f"num_candidates must be at most the candidates there are, {most}, got {count}; draw "
            "more."
        )
    xp = array_namespace(rewards)
    rewards = rewards[:, :count]
    best = rewards == xp.max(rewards, axis=1, keepdims=True)
    lots = standard_uniform(rng, tuple(rewards.shape), rewards)
    return xp.argmax(xp.where(best, lots, xp.full_like(lots, -1.0)), axis=1)


def best_of_n_curve(
    rewards: Array, scores: Array, num_candidates: Sequence[int]
) -> dict[int, Array]:
    r"""Expected score of the best of N, for several N, from one pool of candidates a prompt.

    The mean over *all* subsets of N out of the M candidates of a prompt, so that it is unbiased
    for every N ≤ M and far less noisy than picking once: the candidate of rank i is the best with
    probability C(i−1, N−1)/C(M, N), and tied ones share what their ranks have.

    Parameters
    ----------
    rewards
        What chooses, ``(prompts, M)``.
    scores
        What the choice is worth, ``(prompts, M)``, for example a judge's.
    num_candidates
        The N.

    Returns
    -------
    dict
        For each N the expected score of each prompt, ``(prompts,)``.

    Raises
    ------
    ValueError
        As in `best_of_n`, or shapes that differ.
    """
    _check_rewards(rewards)
    if scores.shape != rewards.shape:
        raise ValueError(
            f"scores must have the shape of rewards, {tuple(rewards.shape)}, got "
            f"{tuple(scores.shape)}."
        )
    xp, most = array_namespace(rewards), rewards.shape[1]
    for count in num_candidates:
        _check_count("num_candidates", count)
        if count > most:
            raise ValueError(
                f"num_candidates must be at most the candidates there are, {most}, got {count}; "
                "draw more."
            )
    order = xp.argsort(rewards, axis=1)
    ordered = xp.take_along_axis(rewards, order, axis=1)
    worth = xp.take_along_axis(scores, order, axis=1)
    level = _mean_within_ties(ordered, worth)
    curves = {}
    for count in num_candidates:
        weights = _rank_weights(level[0], most, count)
        curves[count] = xp.sum(level * weights, axis=1)
    return curves


def _mean_within_ties(ordered: Array, worth: Array) -> Array:
    """Each entry of ``worth`` replaced by the mean of the tied run of ``ordered`` it is in."""
    xp, most = array_namespace(ordered), ordered.shape[1]
    rows = max(1, _PAIRS_AT_ONCE // most**2)
    parts = []
    for start in range(0, ordered.shape[0], rows):
        level, each = ordered[start : start + rows], worth[start : start + rows]
        same = xp.astype(level[:, :, None] == level[:, None, :], worth.dtype)
        parts.append(xp.sum(same * each[:, None, :], axis=2) / xp.sum(same, axis=2))
    return xp.concat(parts, axis=0)


def _rank_weights(like: Array, most: int, count: int) -> Array:
    """C(i−1, N−1)/C(M, N) for the ranks i = 1, …, M."""
    xp = array_namespace(like)
    before = as_array_like(np.arange(most), like)
    total = math.lgamma(most + 1) - math.lgamma(count + 1) - math.lgamma(most - count + 1)
    enough = before >= count - 1
    held = xp.where(enough, before, xp.full_like(before, count - 1.0))
    log_ways = log_gamma(held + 1.0) - math.lgamma(count) - log_gamma(held - count + 2.0)
    return xp.where(enough, xp.exp(log_ways - total), xp.zeros_like(before))


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _check_law(log_probs: Array, rewards: Array) -> None:
    for name, values in (("log_probs", log_probs), ("rewards", rewards)):
        if not (is_torch_array(values) or is_jax_array(values)):
            raise TypeError(
                f"{name} must be a torch tensor or a JAX array, got {type(values).__name__}."
            )
    if log_probs.ndim != 1 or log_probs.shape != rewards.shape:
        raise ValueError(
            "log_probs and rewards must have one shape (outcomes,), got "
            f"{tuple(log_probs.shape)} and {tuple(rewards.shape)}."
        )
    xp = array_namespace(log_probs)
    total = float(logsumexp(log_probs, 0))
    if not abs(total) < 1e-3:
        raise ValueError(
            f"log_probs must be those of a normalised law, got one whose mass is {math.exp(total)};"
            " subtract its logsumexp."
        )
    finite = xp.isfinite(rewards)
    if not bool(xp.all(finite)):
        index = int(xp.argmin(xp.astype(finite, log_probs.dtype)))
        raise ValueError(f"rewards must be finite, got {float(rewards[index])} of outcome {index}.")


def _check_rewards(rewards: Array) -> None:
    if not (is_torch_array(rewards) or is_jax_array(rewards)):
        raise TypeError(
            f"rewards must be a torch tensor or a JAX array, got {type(rewards).__name__}."
        )
    if rewards.ndim != 2 or 0 in rewards.shape:
        raise ValueError(
            "rewards must have shape (prompts, candidates), none of them 0, got "
            f"{tuple(rewards.shape)}; give a single prompt's candidates as rewards[None]."
        )
    xp = array_namespace(rewards)
    finite = xp.isfinite(rewards)
    if not bool(xp.all(finite)):
        flat = int(xp.argmin(xp.reshape(xp.astype(finite, rewards.dtype), (-1,))))
        prompt, candidate = divmod(flat, rewards.shape[1])
        raise ValueError(
            f"rewards must be finite, got {float(rewards[prompt, candidate])} for prompt {prompt}, "
            f"candidate {candidate}; the reward model or that candidate is broken."
        )
