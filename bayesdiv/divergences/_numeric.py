"""Functions of the log-ratio that stay finite where u = eˡ does not, and numeric conjugates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bayesdiv._array import Array, array_namespace, stop_gradient

if TYPE_CHECKING:
    from bayesdiv.divergences._base import FDivergence


def log_ratio_limit(x: Array) -> float:
    """Largest |log u| for which u² is finite in the precision of ``x``: 43 or 350."""
    xp = array_namespace(x)
    return 43.0 if xp.finfo(x.dtype).bits <= 32 else 350.0


def largest_exponent(x: Array) -> float:
    """Largest l for which eˡ is finite in the precision of ``x``: 88.7 or 709.8."""
    return math.log(float(array_namespace(x).finfo(x.dtype).max))


def guard_overflow(function: Callable[[Array], Array], log_ratio: Array) -> Array:
    """``function`` where u is finite, and u = +∞ beyond: a generator's limit as u → ∞.

    Terms of a generator that cancel in exact arithmetic are ∞ − ∞ there, in value and gradient.
    """
    xp = array_namespace(log_ratio)
    over = log_ratio > largest_exponent(log_ratio)
    safe = xp.where(over, xp.zeros_like(log_ratio), log_ratio)
    return xp.where(over, xp.exp(log_ratio), function(safe))


def guard_limits(function: Callable[[Array], Array], log_ratio: Array, value_at_zero: Any) -> Array:
    """A generator with its limits at both ends: f(0) at l = −∞, and +∞ where u overflows."""
    xp = array_namespace(log_ratio)
    absent = log_ratio == -math.inf
    safe = xp.where(absent, xp.zeros_like(log_ratio), log_ratio)
    # Where f(0) = +∞ the limit is written −l, which has f's slope −1 (f ~ −log u) or its sign.
    diverges = isinstance(value_at_zero, float) and math.isinf(value_at_zero)
    limit = -log_ratio if diverges else xp.zeros_like(log_ratio) + value_at_zero
    return xp.where(absent, limit, guard_overflow(function, safe))


def log_mixture(log_ratio: Array, weight: Any = 0.5) -> Array:
    """log(w u + 1 − w), exact near u = 1 and in both tails; 0 < w < 1.

    Each half-line uses the form whose exponential is at most 1. ``where`` rather than an absolute
    value keeps every derivative right at u = 1.
    """
    xp = array_namespace(log_ratio)
    large = log_ratio > 0.0
    falling = xp.expm1(xp.where(large, -log_ratio, log_ratio))
    if isinstance(weight, float) and weight == 0.5:
        share = xp.log1p(0.5 * falling)
    else:
        share = xp.log1p(xp.where(large, (1.0 - weight) * falling, weight * falling))
    return xp.where(large, log_ratio + share, share)


def conjugate_by_inversion(divergence: FDivergence, t: Array) -> Array:
    """f*(t) from u with f'(u) = t, found by bisection in log u.

    As f*(f'(u)) = u f'(u) − f(u), the value is the pseudo-reward at the root; adding u (t − f'(u)),
    which is zero there, gives it the right gradient u.
    """
    xp = array_namespace(t)
    limit = log_ratio_limit(t)
    fixed = stop_gradient(t)
    low = xp.full_like(fixed, -limit)
    high = xp.full_like(fixed, limit)
    below = fixed < divergence.derivative(low)
    above = fixed > divergence.slope_at_infinity
    # Each step halves the bracket: 64 steps exhaust the 53 bits of a double.
    for _ in range(64):
        middle = 0.5 * (low + high)
        rising = divergence.derivative(middle) < fixed
        low = xp.where(rising, middle, low)
        high = xp.where(rising, high, middle)
    root = stop_gradient(0.5 * (low + high))
    slope = stop_gradient(divergence.derivative(root))
    value = stop_gradient(divergence.pseudo_reward(root)) + xp.exp(root) * (t - slope)
    value = xp.where(below, xp.full_like(t, -1.0) * divergence.value_at_zero, value)
    return xp.where(above, xp.full_like(t, float("inf")), value)
