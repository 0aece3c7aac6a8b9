"""Conjugates without a closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayesdiv._array import Array, array_namespace, stop_gradient

if TYPE_CHECKING:
    from bayesdiv.divergences._base import FDivergence


def log_ratio_limit(x: Array) -> float:
    """Largest |log u| for which u² is finite in the precision of ``x``: 43 or 350."""
    xp = array_namespace(x)
    return 43.0 if xp.finfo(x.dtype).bits <= 32 else 350.0


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
    above = fixed > divergence.derivative(high)
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
