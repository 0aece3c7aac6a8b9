r"""The continuous Bernoulli law on [0, 1] as functions of its logit, for torch and JAX.

With logit ℓ and the even function S(ℓ) = log(sinh(ℓ/2) / (ℓ/2)) the density is

.. math:: \log p(x | ℓ) = (x - ½) ℓ - S(ℓ),

so that the mean is ½ + S′(ℓ) and the variance S″(ℓ). Every function first limits ℓ to
±`MAX_LOGIT`: log p(0 | ℓ) grows as log |ℓ|, without bound, so scores depend on the limit, and
training and scoring have to share it.

Loaiza-Ganem and Cunningham (2019), equations 5 to 8; the authors write λ = 1 / (1 + e^(−ℓ)).
"""

import math
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace, clip, is_jax_array

MAX_LOGIT = 15.9
"""Largest |ℓ|, the logit of the largest float32 probability below 1."""

# B_2n of the series S(ℓ) = Σ B_2n ℓ^2n / (2n (2n)!), which converges for |ℓ| < 2π.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798)
_SERIES = tuple(
    number / math.factorial(2 * order) for order, number in enumerate(_BERNOULLI, start=1)
)
# Nine terms reach float64 there, and the closed forms have lost no more than a digit.
_SMALL_LOGIT = 1.0
# The two distribution functions need shorter reach: their closed forms lose eps/ℓ.
_TINY_LOGIT = 0.05
_EXPM1_TERMS, _LOG1P_TERMS = 10, 13


def log_prob(value: Array, logits: Array) -> Array:
    """log p(x | ℓ), elementwise; ``value`` in [0, 1] broadcasts against ``logits``."""
    logits = _limited(logits)
    return (value - 0.5) * logits - _log_sinhc(logits)


def mean(logits: Array) -> Array:
    """E[x] = 1 / (1 − e^(−ℓ)) − 1/ℓ, and ½ at ℓ = 0: not the sigmoid of ℓ."""
    return 0.5 + _slope(_limited(logits))


def variance(logits: Array) -> Array:
    """Var[x] = 1/ℓ² − 1 / (4 sinh²(ℓ/2)), and 1/12 at ℓ = 0."""
    logits = _limited(logits)
    small, away = _split(logits, _SMALL_LOGIT)
    xp = array_namespace(logits)
    series = tuple((2 * n - 1) * term for n, term in enumerate(_SERIES, start=1))
    # 4 sinh²(ℓ/2) = (eᵃ − 1)(1 − e⁻ᵃ), which does not cancel.
    size = xp.abs(away)
    closed = 1.0 / (away * away) + 1.0 / (xp.expm1(size) * xp.expm1(-size))
    return xp.where(small, _polynomial(series, _zeroed(logits, small) ** 2), closed)


def cdf(value: Array, logits: Array) -> Array:
    """P(X ≤ x) = (e^(ℓx) − 1) / (e^ℓ − 1), and x at ℓ = 0; 0 below 0 and 1 above 1."""
    logits = _limited(logits)
    xp = array_namespace(logits)
    value = clip(value, 0.0, 1.0)
    small, away = _split(logits, _TINY_LOGIT)
    near = _zeroed(logits, small)
    closed = xp.expm1(away * value) / xp.expm1(away)
    return xp.where(small, value * _expm1_ratio(near * value) / _expm1_ratio(near), closed)


def icdf(probability: Array, logits: Array) -> Array:
    """The x with P(X ≤ x) = u: log(1 + u (e^ℓ − 1)) / ℓ, and u at ℓ = 0.

    Differentiable in ``logits``, so that x is a reparametrised draw where u is uniform.
    """
    logits = _limited(logits)
    xp = array_namespace(logits)
    small, away = _split(logits, _TINY_LOGIT)
    near = _zeroed(logits, small)
    growth = xp.expm1(away)
    # 1 + u (e^ℓ − 1) = (1 − u) + u e^ℓ: the second form is exact for u near 1, where the first
    # subtracts from 1 a number that has rounded to 1.
    cancels = (probability > 0.5) & (away < -1.0)
    plain = xp.where(cancels, xp.zeros_like(growth), probability * growth)
    exact = xp.where(cancels, (1.0 - probability) + probability * xp.exp(away), xp.ones_like(plain))
    closed = xp.where(cancels, xp.log(exact), xp.log1p(plain)) / away
    ratio = _expm1_ratio(near)
    series = probability * ratio * _log1p_ratio(probability * near * ratio)
    return clip(xp.where(small, series, closed), 0.0, 1.0)


def entropy(logits: Array) -> Array:
    """−E[log p] = S(ℓ) − ℓ S′(ℓ), in nats; at most 0, its value at ℓ = 0."""
    logits = _limited(logits)
    return _log_sinhc(logits) - logits * _slope(logits)


def kl_divergence(logits: Array, other_logits: Array) -> Array:
    """KL(p_ℓ‖p_m) = (ℓ − m) S′(ℓ) − S(ℓ) + S(m), in nats."""
    logits, other_logits = _limited(logits), _limited(other_logits)
    gap = (logits - other_logits) * _slope(logits)
    return gap - _log_sinhc(logits) + _log_sinhc(other_logits)


def check_unit_interval(value: Any, name: str = "images") -> None:
    """Raise a ValueError with the extremes unless all of ``value`` lies in [0, 1].

    Looks at the numbers, so call it once on the data, outside loops and compiled functions.
    """
    if is_jax_array(value):
        # In NumPy, because inside a compiled function JAX traces what it does with constants too.
        value = np.asarray(value)
    if math.prod(value.shape) == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}.")
    low, high = float(value.min()), float(value.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"{name} must lie in [0, 1] under the continuous Bernoulli, got values from {low:.6g} "
            f"to {high:.6g}; divide pixels by their largest possible value."
        )


def _limited(logits: Array) -> Array:
    return clip(logits, -MAX_LOGIT, MAX_LOGIT)


def _split(logits: Array, limit: float) -> tuple[Array, Array]:
    """Where |ℓ| is below ``limit``, and ℓ with 1 in those places, safe for the closed forms."""
    xp = array_namespace(logits)
    small = xp.abs(logits) < limit
    return small, xp.where(small, xp.ones_like(logits), logits)


def _zeroed(logits: Array, keep: Array) -> Array:
    """ℓ with 0 outside ``keep``, so that the branch not taken has finite slopes."""
    xp = array_namespace(logits)
    return xp.where(keep, logits, xp.zeros_like(logits))


def _log_sinhc(logits: Array) -> Array:
    """S(ℓ) = log(sinh(ℓ/2) / (ℓ/2)), for limited ℓ."""
    xp = array_namespace(logits)
    small, away = _split(logits, _SMALL_LOGIT)
    series = tuple(term / (2 * n) for n, term in enumerate(_SERIES, start=1))
    square = _zeroed(logits, small) ** 2
    size = xp.abs(away)
    closed = 0.5 * size + xp.log(-xp.expm1(-size) / size)
    return xp.where(small, square * _polynomial(series, square), closed)


def _slope(logits: Array) -> Array:
    """S′(ℓ) = ½ coth(ℓ/2) − 1/ℓ, for limited ℓ; odd."""
    xp = array_namespace(logits)
    small, away = _split(logits, _SMALL_LOGIT)
    near = _zeroed(logits, small)
    closed = 0.5 / xp.tanh(0.5 * away) - 1.0 / away
    return xp.where(small, near * _polynomial(_SERIES, near * near), closed)


def _expm1_ratio(x: Array) -> Array:
    """(eˣ − 1) / x for |x| ≤ `_TINY_LOGIT`."""
    return _polynomial(tuple(1.0 / math.factorial(k + 1) for k in range(_EXPM1_TERMS)), x)


def _log1p_ratio(x: Array) -> Array:
    """log(1 + x) / x for |x| a little above `_TINY_LOGIT`."""
    return _polynomial(tuple((-1.0) ** k / (k + 1) for k in range(_LOG1P_TERMS)), x)


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Σ c_k xᵏ by Horner's rule."""
    total = coefficients[-1] * x + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        total = total * x + coefficient
    return total
