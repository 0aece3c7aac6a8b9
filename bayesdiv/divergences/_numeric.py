"""Functions of the log-ratio that are right where u = eˡ over- or underflows; conjugates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bayesdiv._array import Array, array_namespace, is_torch_array, stop_gradient

if TYPE_CHECKING:
    from bayesdiv.divergences._base import FDivergence


def log_ratio_limit(x: Array) -> float:
    """Largest |log u| for which u² is finite in the precision of ``x``: 43 or 350."""
    xp = array_namespace(x)
    return 43.0 if xp.finfo(x.dtype).bits <= 32 else 350.0


def largest_exponent(x: Array) -> float:
    """Largest l for which eˡ is finite in the precision of ``x``: 88.7 or 709.8."""
    return math.log(float(array_namespace(x).finfo(x.dtype).max))


def smallest_exponent(x: Array) -> float:
    """An l for which eˡ is a normal number, not one that XLA takes for 0, and e⁻ˡ is finite."""
    return 3.0 - largest_exponent(x)


def cap(log_ratio: Array) -> Array:
    """l with u = eˡ kept off 0 and at +∞ from where it overflows, no gradient beyond either end.

    A generator written so that u = ∞ gives ∞, not ∞ − ∞, then has its limits at both ends.
    """
    top = largest_exponent(log_ratio)
    low = smallest_exponent(log_ratio)
    if is_torch_array(log_ratio):
        return log_ratio.clamp(low, 1.0 + top)
    xp = array_namespace(log_ratio)
    # A selection, as JAX differentiates a minimum by products, in which 0 · ∞ is NaN.
    high = xp.where(log_ratio > 1.0 + top, xp.full_like(log_ratio, 1.0 + top), log_ratio)
    return xp.where(high < low, xp.full_like(log_ratio, low), high)


def cap_above(log_ratio: Array, top: Any) -> Array:
    """l, or ``top`` where l is larger, without a gradient there."""
    if is_torch_array(log_ratio):
        return log_ratio.clamp(max=top)
    xp = array_namespace(log_ratio)
    return xp.where(log_ratio > top, xp.zeros_like(log_ratio) + top, log_ratio)


def below_cap(log_ratio: Array, capped: Array) -> Array:
    """−l less what ``capped`` kept of it: the rest of an f ~ −log u where u vanishes, else 0."""
    xp = array_namespace(log_ratio)
    return xp.where(log_ratio < capped, capped - log_ratio, xp.zeros_like(log_ratio))


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


def mixture_generator(log_ratio: Array, weight: Any = 0.5) -> Array:
    """w u log(u/m) − (1 − w) log m with m = w u + 1 − w: generalised Jensen–Shannon, f.

    log m and log(m/u) share one logarithm, which is negative on either side of u = 1.
    """
    xp = array_namespace(log_ratio)
    x = cap(log_ratio)
    u = xp.exp(x)
    large = x > 0.0
    falling = xp.expm1(xp.where(large, -x, x))
    rest = 1.0 - weight
    if isinstance(weight, float) and weight == 0.5:
        share = xp.log1p(0.5 * falling)
        return -0.5 * ((u + 1.0) * share + xp.where(large, x, -u * x))
    share = xp.log1p(xp.where(large, rest * falling, weight * falling))
    return -((weight * u + rest) * share + xp.where(large, rest * x, -weight * u * x))


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
