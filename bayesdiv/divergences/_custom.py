"""A divergence of the user's own, from its generator alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace, clip, stop_gradient
from bayesdiv.divergences._autodiff import elementwise_derivative
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._numeric import largest_exponent, log_ratio_limit, smallest_exponent
from bayesdiv.divergences._probe import evaluate_on_numbers

_GRID = np.linspace(-8.0, 8.0, 161)
_FAR, _NEAR = (170.0, 340.0), (20.0, 40.0)


@dataclass(frozen=True)
class CustomDivergence(FDivergence):
    r"""D(p‖q) = E_q[f(u)] for a convex f with f(1) = 0 that you supply.

    The other functions follow by automatic differentiation, in torch or JAX: of f in u, or, with
    ``log_space=True``, of g(l) = f(eˡ) in l = log u, where f' = g' e⁻ˡ, pseudo_reward = g' − g and
    path_weight = g'' − g'. The line f'(1)(u − 1) is subtracted, which leaves D as it is and makes
    every term of it non-negative; leave linear terms out of f, as −log u rather than u − 1 − log u,
    since at large u they cancel up to rounding only. Where u² would overflow (l beyond 43 in
    single, 350 in double precision) f continues along its tangent and the weights are constant.

    Parameters
    ----------
    generator
        f as an elementwise function of u (of log u with ``log_space=True``, which is safer for
        large ratios), written with operators and functions of torch, of ``jax.numpy``, or of
        neither.
    log_space
        Whether ``generator`` takes log u.
    name
        What tables and errors call it.
    check
        Test f(1) = 0 and convexity on a grid of u from e⁻⁸ to e⁸.

    Raises
    ------
    ValueError
        f(1) is not 0, or f is not convex; the message says where.

    Examples
    --------
    >>> import torch
    >>> from bayesdiv.divergences import FDivergence
    >>> mine = FDivergence.from_generator(lambda u: u * u.log() - u + 1, name="my_forward_kl")
    >>> [round(float(w), 4) for w in mine.path_weight(torch.tensor([0.0, 1.0]))]
    [1.0, 2.7183]
    """

    function: Callable[[Array], Array]
    log_space: bool = field(default=False, kw_only=True)
    name: str = field(default="custom", kw_only=True)
    check: bool = field(default=True, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"generator must be a function of u, got {self.function!r}.")
        if self.check:
            self._check_value_at_one()
            self._check_convexity()

    def _numbers(self, log_ratio: np.ndarray) -> np.ndarray:
        return evaluate_on_numbers(self._composed, log_ratio, self.name)

    def _check_value_at_one(self) -> None:
        at_one = float(self._numbers(np.zeros(1))[0])
        if not abs(at_one) < 1e-6:
            raise ValueError(
                f"generator of {self.name!r} must have f(1) = 0, got f(1) = {at_one:.6g}; "
                "subtract that constant."
            )

    def _check_convexity(self) -> None:
        u = np.exp(_GRID)
        values = self._numbers(_GRID)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"generator of {self.name!r} must be finite for u > 0, got "
                f"f({u[bad[0]]:.4g}) = {values[bad[0]]}; log_space=True may help."
            )
        middle = self._numbers(np.log(0.5 * (u[1:] + u[:-1])))
        chord = 0.5 * (values[1:] + values[:-1])
        slack = 1e-5 * (np.abs(values[1:]) + np.abs(values[:-1])) + 1e-9
        concave = np.flatnonzero(middle > chord + slack)
        if concave.size:
            k = concave[0]
            raise ValueError(
                f"generator of {self.name!r} must be convex, but f lies above its chord between "
                f"u = {u[k]:.4g} and u = {u[k + 1]:.4g} ({middle[k]:.6g} > {chord[k]:.6g})."
            )

    def _composed(self, log_ratio: Array) -> Array:
        if self.log_space:
            return self.function(log_ratio)
        return self.function(array_namespace(log_ratio).exp(log_ratio))

    def _raw_derivative(self, log_ratio: Array) -> Array:
        """f'(u) before the line is subtracted."""
        xp = array_namespace(log_ratio)
        if self.log_space:
            return elementwise_derivative(self.function, log_ratio) * xp.exp(-log_ratio)
        return elementwise_derivative(self.function, xp.exp(log_ratio))

    def _slope_at_one(self, like: Array) -> Array:
        return self._raw_derivative(_single(like, 0.0))

    def _finite(self, log_ratio: Array) -> Array:
        limit = log_ratio_limit(log_ratio)
        return clip(log_ratio, -limit, limit)

    def generator(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        over = log_ratio > largest_exponent(log_ratio)
        absent = log_ratio == -math.inf
        zeros = xp.zeros_like(log_ratio)
        value = self._extended_generator(xp.where(over | absent, zeros, log_ratio))
        value = xp.where(absent, zeros + self.value_at_zero, value)
        return xp.where(over, zeros + math.inf, value)

    def _extended_generator(self, log_ratio: Array) -> Array:
        """f(u), continued along its tangent in log u where u vanishes, in u where u² overflows."""
        xp = array_namespace(log_ratio)
        line = xp.expm1(log_ratio) * self._slope_at_one(log_ratio)
        if self.log_space:
            return self.function(log_ratio) - line
        edge, limit = smallest_exponent(log_ratio), log_ratio_limit(log_ratio)
        at_edge, at_limit = _single(log_ratio, edge), _single(log_ratio, limit)
        tangent = xp.exp(at_edge) * self._raw_derivative(at_edge)
        above = xp.where(
            log_ratio > limit, xp.exp(log_ratio) - math.exp(limit), xp.zeros_like(line)
        )
        rise = above * stop_gradient(self._raw_derivative(at_limit))
        inside = self._composed(clip(log_ratio, edge, limit))
        return inside - line + rise + _below(log_ratio, edge, tangent)

    def derivative(self, log_ratio: Array) -> Array:
        slope_at_one = self._slope_at_one(log_ratio)
        return self._raw_derivative(self._finite(log_ratio)) - slope_at_one

    def pseudo_reward(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        finite = self._finite(log_ratio)
        # u f' − f of the line a (u − 1) is the constant a.
        rise = xp.exp(finite) * self._raw_derivative(finite)
        value = rise - self._composed(finite) - self._slope_at_one(log_ratio)
        # Below the cut along the tangent, whose slope is the path weight.
        edge = -log_ratio_limit(log_ratio)
        slope = self.path_weight(_single(log_ratio, edge))
        value = value + _below(log_ratio, edge, slope)
        absent = log_ratio == -math.inf
        return xp.where(absent, xp.full_like(value, -self.value_at_zero), value)

    def path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        finite = self._finite(log_ratio)
        if self.log_space:
            slope = partial(elementwise_derivative, self.function)
            return elementwise_derivative(slope, finite) - slope(finite)
        u = xp.exp(finite)
        curvature = elementwise_derivative(partial(elementwise_derivative, self.function), u)
        return u * (u * curvature)

    def log_path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        weight = self.path_weight(log_ratio)
        tiny = xp.finfo(weight.dtype).smallest_normal
        return xp.log(xp.clip(weight, tiny, None))

    def _limit(self, tail: Callable[[np.ndarray], np.ndarray]) -> float:
        """The limit of ``tail`` at large arguments; +∞ unless it has settled."""
        # The nearer pair serves functions that compute in single precision.
        for points in (_FAR, _NEAR):
            first, last = tail(np.asarray(points))
            if np.isfinite(last):
                break
        settled = abs(last - first) < 1e-4 * (1.0 + abs(last))
        return float(last) if settled else math.inf

    @cached_property
    def _central_differences(self) -> tuple[float, float]:
        """First and second derivative of f(eˡ) at l = 0, from five points."""
        step = 1e-2
        far_low, low, centre, high, far_high = self._numbers(step * np.arange(-2.0, 3.0))
        slope = (8.0 * (high - low) - (far_high - far_low)) / (12.0 * step)
        curvature = (16.0 * (high + low) - (far_high + far_low) - 30.0 * centre) / (12.0 * step**2)
        return float(slope), float(curvature)

    @cached_property
    def value_at_zero(self) -> Any:
        slope, _ = self._central_differences
        return self._limit(lambda x: self._numbers(-x) + slope)

    @cached_property
    def slope_at_infinity(self) -> Any:
        slope, _ = self._central_differences
        return self._limit(lambda x: self._numbers(x) * np.exp(-x) - slope)

    @cached_property
    def second_derivative_at_one(self) -> Any:
        slope, curvature = self._central_differences
        return curvature - slope


def _single(like: Array, value: float) -> Array:
    """One ``value`` that broadcasts against ``like``."""
    one = like[..., :1] if like.ndim else like
    return array_namespace(like).full_like(one, value)


def _below(log_ratio: Array, edge: float, slope: Array) -> Array:
    """``slope · (l − edge)`` where l is finite and below ``edge``, 0 elsewhere.

    The slope is a constant, and 0 where it overflowed. The difference is masked, not cut: elsewhere
    its two halves would each carry a gradient of the size of the slope.
    """
    xp = array_namespace(log_ratio)
    slope = stop_gradient(slope)
    slope = xp.where(xp.isfinite(slope), slope, xp.zeros_like(slope))
    inside = (log_ratio < edge) & (log_ratio != -math.inf)
    return slope * xp.where(inside, log_ratio - edge, xp.zeros_like(log_ratio))
