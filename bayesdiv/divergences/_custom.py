"""A divergence of the user's own, from its generator alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace
from bayesdiv.divergences._autodiff import elementwise_derivative
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._probe import evaluate_on_numbers

_GRID = np.linspace(-8.0, 8.0, 161)


@dataclass(frozen=True)
class CustomDivergence(FDivergence):
    r"""D(p‖q) = E_q[f(u)] for a convex f with f(1) = 0 that you supply.

    With g(l) = f(eˡ) and l = log u the other functions follow by automatic differentiation, in torch
    or JAX: f' = g' e⁻ˡ, pseudo_reward = g' − g, path_weight = g'' − g'. The line f'(1)(u − 1) is
    subtracted, which leaves D as it is and makes every term of it non-negative.

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

    def _slope(self, log_ratio: Array) -> Array:
        return elementwise_derivative(self._composed, log_ratio)

    def _slope_at_one(self, like: Array) -> Array:
        return self._slope(array_namespace(like).zeros_like(like[..., :1] if like.ndim else like))

    def generator(self, log_ratio: Array) -> Array:
        line = array_namespace(log_ratio).expm1(log_ratio) * self._slope_at_one(log_ratio)
        return self._composed(log_ratio) - line

    def derivative(self, log_ratio: Array) -> Array:
        falling = array_namespace(log_ratio).exp(-log_ratio)
        return self._slope(log_ratio) * falling - self._slope_at_one(log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        # u f' − f of the line a (u − 1) is the constant a.
        slope_at_one = self._slope_at_one(log_ratio)
        return self._slope(log_ratio) - self._composed(log_ratio) - slope_at_one

    def path_weight(self, log_ratio: Array) -> Array:
        curvature = elementwise_derivative(self._slope, log_ratio)
        return curvature - self._slope(log_ratio)

    def log_path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        weight = self.path_weight(log_ratio)
        tiny = xp.finfo(weight.dtype).smallest_normal
        return xp.log(xp.clip(weight, tiny, None))

    def _limit(self, tail: Callable[[np.ndarray], np.ndarray]) -> float:
        """The limit of ``tail`` at large arguments; +∞ unless it has settled by e²⁰."""
        near, far = tail(np.asarray([20.0, 40.0]))
        return float(far) if abs(far - near) < 1e-4 * (1.0 + abs(far)) else math.inf

    @property
    def _numeric_slope_at_one(self) -> float:
        step = 1e-4
        low, high = self._numbers(np.asarray([-step, step]))
        return float((high - low) / (2.0 * step))

    @property
    def value_at_zero(self) -> Any:
        return self._limit(lambda x: self._numbers(-x) + self._numeric_slope_at_one)

    @property
    def slope_at_infinity(self) -> Any:
        return self._limit(lambda x: self._numbers(x) * np.exp(-x) - self._numeric_slope_at_one)

    @property
    def second_derivative_at_one(self) -> Any:
        step = 1e-3
        low, centre, high = self._numbers(np.log1p(np.asarray([-step, 0.0, step])))
        return float((high - 2.0 * centre + low) / step**2)
