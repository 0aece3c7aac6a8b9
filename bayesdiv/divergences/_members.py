"""The named f-divergences. All take log u with u = p/q, p the target and q the approximation."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bayesdiv._array import Array, array_namespace, softplus
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._checks import is_concrete_number, require_finite
from bayesdiv.divergences._numeric import (
    below_cap,
    cap,
    cap_above,
    largest_exponent,
    log_mixture,
    mixture_generator,
)

_LOG_2 = math.log(2.0)
_INFINITY = math.inf


@dataclass(frozen=True)
class ReverseKL(FDivergence):
    r"""KL(q‖p): f(u) = u − 1 − log u. Mode seeking; minus the ELBO up to the evidence."""

    tail_exponents = (0.0, 0.0)
    value_at_zero = _INFINITY
    slope_at_infinity = 1.0
    second_derivative_at_one = 1.0
    needs_normalizer = False

    def generator(self, log_ratio: Array) -> Array:
        x = cap_above(log_ratio, 1.0 + largest_exponent(log_ratio))
        return array_namespace(x).expm1(x) - x

    def derivative(self, log_ratio: Array) -> Array:
        return -array_namespace(log_ratio).expm1(-log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        inside = t < 1.0
        value = -xp.log1p(-xp.where(inside, t, xp.zeros_like(t)))
        return xp.where(inside, value, xp.full_like(t, _INFINITY))

    def log_path_weight(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).zeros_like(log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return log_ratio

    def reversed(self) -> FDivergence:
        return ForwardKL()


@dataclass(frozen=True)
class ForwardKL(FDivergence):
    r"""KL(p‖q): f(u) = u log u − u + 1. Mass covering; self-normalised it is the wake phase."""

    tail_exponents = (1.0, 1.0)
    value_at_zero = 1.0
    slope_at_infinity = _INFINITY
    second_derivative_at_one = 1.0

    def generator(self, log_ratio: Array) -> Array:
        x = cap(log_ratio)
        xp = array_namespace(x)
        return xp.exp(x) * (xp.expm1(-x) + x)

    def derivative(self, log_ratio: Array) -> Array:
        return log_ratio

    def conjugate(self, t: Array) -> Array:
        return array_namespace(t).expm1(t)

    def log_path_weight(self, log_ratio: Array) -> Array:
        return log_ratio

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(log_ratio)

    def reversed(self) -> FDivergence:
        return ReverseKL()


@dataclass(frozen=True)
class JensenShannon(FDivergence):
    r"""½ KL(p‖m) + ½ KL(q‖m), m = ½p + ½q, in [0, log 2]. Its weights saturate at ½."""

    tail_exponents = (1.0, 0.0)
    value_at_zero = 0.5 * _LOG_2
    slope_at_infinity = 0.5 * _LOG_2
    second_derivative_at_one = 0.25

    def generator(self, log_ratio: Array) -> Array:
        return mixture_generator(log_ratio)

    def derivative(self, log_ratio: Array) -> Array:
        return -0.5 * log_mixture(-log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        inside = t < 0.5 * _LOG_2
        safe = xp.where(inside, t, xp.zeros_like(t))
        value = -0.5 * xp.log1p(-xp.expm1(2.0 * safe))
        return xp.where(inside, value, xp.full_like(t, _INFINITY))

    def log_path_weight(self, log_ratio: Array) -> Array:
        return -softplus(-log_ratio) - _LOG_2

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return 0.5 * log_mixture(log_ratio)

    def reversed(self) -> FDivergence:
        return self


@dataclass(frozen=True)
class SquaredHellinger(FDivergence):
    r"""∫(√p − √q)² = 2 − 2∫√(pq), in [0, 2]: f(u) = (√u − 1)²."""

    tail_exponents = (0.5, 0.5)
    value_at_zero = 1.0
    slope_at_infinity = 1.0
    second_derivative_at_one = 0.5

    def generator(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(0.5 * log_ratio) ** 2

    def derivative(self, log_ratio: Array) -> Array:
        return -array_namespace(log_ratio).expm1(-0.5 * log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        inside = t < 1.0
        safe = xp.where(inside, t, xp.zeros_like(t))
        return xp.where(inside, safe / (1.0 - safe), xp.full_like(t, _INFINITY))

    def log_path_weight(self, log_ratio: Array) -> Array:
        return 0.5 * log_ratio - _LOG_2

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(0.5 * log_ratio)

    def reversed(self) -> FDivergence:
        return self


@dataclass(frozen=True)
class PearsonChi2(FDivergence):
    r"""χ²(p‖q) = ∫(p − q)²/q: f(u) = (u − 1)². Strongly mass covering, heavy-tailed weights."""

    tail_exponents = (2.0, 2.0)
    value_at_zero = 1.0
    slope_at_infinity = _INFINITY
    second_derivative_at_one = 2.0

    def generator(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(log_ratio) ** 2

    def derivative(self, log_ratio: Array) -> Array:
        return 2.0 * array_namespace(log_ratio).expm1(log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        # Below f'(0) = −2 the supremum sits at u = 0.
        return xp.where(t >= -2.0, t + 0.25 * t * t, xp.full_like(t, -1.0))

    def log_path_weight(self, log_ratio: Array) -> Array:
        return 2.0 * log_ratio + _LOG_2

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(2.0 * log_ratio)

    def reversed(self) -> FDivergence:
        return NeymanChi2()


@dataclass(frozen=True)
class NeymanChi2(FDivergence):
    r"""χ²(q‖p) = ∫(q − p)²/p: f(u) = (u − 1)²/u. The most mode-seeking member."""

    tail_exponents = (-1.0, -1.0)
    value_at_zero = _INFINITY
    slope_at_infinity = 1.0
    second_derivative_at_one = 2.0

    def generator(self, log_ratio: Array) -> Array:
        expm1 = array_namespace(log_ratio).expm1
        return expm1(log_ratio) + expm1(-log_ratio)

    def derivative(self, log_ratio: Array) -> Array:
        return -array_namespace(log_ratio).expm1(-2.0 * log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        inside = t <= 1.0
        safe = xp.where(inside, t, xp.zeros_like(t))
        return xp.where(inside, 2.0 - 2.0 * xp.sqrt(1.0 - safe), xp.full_like(t, _INFINITY))

    def log_path_weight(self, log_ratio: Array) -> Array:
        return _LOG_2 - log_ratio

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return -2.0 * array_namespace(log_ratio).expm1(-log_ratio)

    def reversed(self) -> FDivergence:
        return PearsonChi2()


@dataclass(frozen=True)
class Jeffreys(FDivergence):
    r"""KL(p‖q) + KL(q‖p): f(u) = (u − 1) log u."""

    tail_exponents = (0.0, 1.0)
    value_at_zero = _INFINITY
    slope_at_infinity = _INFINITY
    second_derivative_at_one = 2.0

    def generator(self, log_ratio: Array) -> Array:
        x = cap(log_ratio)
        return array_namespace(x).expm1(x) * x + below_cap(log_ratio, x)

    def derivative(self, log_ratio: Array) -> Array:
        return log_ratio - array_namespace(log_ratio).expm1(-log_ratio)

    def log_path_weight(self, log_ratio: Array) -> Array:
        return softplus(log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return log_ratio + array_namespace(log_ratio).expm1(log_ratio)

    def reversed(self) -> FDivergence:
        return self


@dataclass(frozen=True)
class SoftenedReverseKL(FDivergence):
    r"""2 KL(½p + ½q‖p): f(u) = (u + 1) log((u + 1)/(2u)) + u − 1. Bounded weights σ(−l)."""

    tail_exponents = (0.0, -1.0)
    value_at_zero = _INFINITY
    slope_at_infinity = 1.0 - _LOG_2
    second_derivative_at_one = 0.5

    def generator(self, log_ratio: Array) -> Array:
        x = cap(log_ratio)
        xp = array_namespace(x)
        # (u − 1)/(u + 1) = tanh(l/2); one product, so that nothing cancels at large u.
        value = (xp.exp(x) + 1.0) * (log_mixture(-x) + xp.tanh(0.5 * x))
        return value + below_cap(log_ratio, x)

    def derivative(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        x = cap_above(-log_ratio, 1.0 + largest_exponent(log_ratio))
        return log_mixture(x) - xp.expm1(x)

    def log_path_weight(self, log_ratio: Array) -> Array:
        return -softplus(log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return -log_mixture(-log_ratio)


@dataclass(frozen=True)
class Alpha(FDivergence):
    r"""Amari's α: f(u) = (u^a − 1 − a(u − 1)) / (a(a − 1)), a = ``order``.

    Continuous in the order: KL(q‖p) at 0, twice the squared Hellinger at ½, KL(p‖q) at 1, half of
    χ²(p‖q) at 2, half of χ²(q‖p) at −1. The orders 0 and 1 are limits and have names of their own.
    ``order`` may be a traced JAX value, so that one compilation serves every order.

    Raises
    ------
    ValueError
        ``order`` is 0, 1 or not finite.
    """

    order: Any = 0.5

    def __post_init__(self) -> None:
        require_finite("order", self.order)
        if is_concrete_number(self.order) and self.order in (0.0, 1.0):
            raise ValueError(
                f"order must be neither 0 nor 1, got {self.order!r}; "
                "use 'reverse_kl' for 0 and 'forward_kl' for 1."
            )

    @property
    def tail_exponents(self) -> tuple[float, float] | None:
        return (self.order, self.order)

    def _where_order(self, positive: Any, value: Any, other: Any) -> Any:
        """``value`` where the number ``positive`` is above 0, for settled and for traced orders."""
        if is_concrete_number(positive):
            return value if positive > 0 else other
        xp = array_namespace(positive)
        return xp.where(positive > 0, value, xp.full_like(positive, other))

    @property
    def value_at_zero(self) -> Any:
        return self._where_order(self.order, 1.0 / self.order, _INFINITY)

    @property
    def slope_at_infinity(self) -> Any:
        return self._where_order(1.0 - self.order, 1.0 / (1.0 - self.order), _INFINITY)

    second_derivative_at_one = 1.0

    def generator(self, log_ratio: Array) -> Array:
        a = self.order
        if not is_concrete_number(a) or min(abs(a), abs(a - 1.0)) < 0.1:
            return self._generator_near_limits(log_ratio)
        # Above the cap the larger of u^a and u is +∞, the other is not.
        x = cap_above(log_ratio, (1.0 + largest_exponent(log_ratio)) / max(a, 1.0))
        expm1 = array_namespace(x).expm1
        return (expm1(a * x) - a * expm1(x)) * (1.0 / (a * (a - 1.0)))

    def _generator_near_limits(self, log_ratio: Array) -> Array:
        """f(u) for orders that may be close to 0 or 1."""
        xp, a = array_namespace(log_ratio), self.order
        b = a - 1.0
        # f or u overflows with the larger of the exponents a l and l.
        exponent = xp.where(a * log_ratio > log_ratio, a * log_ratio, log_ratio)
        over = exponent > largest_exponent(log_ratio)
        safe = xp.where(over, xp.zeros_like(log_ratio), log_ratio)
        absent = safe == -_INFINITY
        safe = xp.where(absent, xp.zeros_like(log_ratio), safe)
        # f = u f' − (u f' − f) keeps its digits at orders near 0 and 1, where the two parts tend to
        # those of the KL divergences. In u f' = (u^a − u)/b the difference cancels for small b l.
        near = xp.abs(b * safe) < 1.0
        short = xp.where(near, safe, xp.zeros_like(safe))
        product = xp.exp(short) * xp.expm1(b * short)
        rise = xp.where(near, product, xp.exp(a * safe) - xp.exp(safe)) / b
        value = rise - xp.expm1(a * safe) / a
        value = xp.where(absent, xp.zeros_like(value) + self.value_at_zero, value)
        return xp.where(over, xp.exp(exponent), value)

    def derivative(self, log_ratio: Array) -> Array:
        xp, b = array_namespace(log_ratio), self.order - 1.0
        return xp.expm1(b * log_ratio) / b

    def conjugate(self, t: Array) -> Array:
        xp, a = array_namespace(t), self.order
        base = (a - 1.0) * t
        inside = base > -1.0
        value = xp.expm1(a / (a - 1.0) * xp.log1p(xp.where(inside, base, xp.zeros_like(t)))) / a
        # The formula ends where u would leave (0, ∞): above the slope at infinity for a < 1,
        # below f'(0) for a > 1.
        outside = self._where_order(1.0 - a, _INFINITY, -1.0 / a)
        return xp.where(inside, value, xp.zeros_like(t) + outside)

    def log_path_weight(self, log_ratio: Array) -> Array:
        return self.order * log_ratio

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return array_namespace(log_ratio).expm1(self.order * log_ratio) / self.order

    def reversed(self) -> FDivergence:
        return Alpha(1.0 - self.order)


@dataclass(frozen=True)
class TotalVariation(FDivergence):
    r"""½∫|p − q|, in [0, 1]. f'' is a point mass at u = 1, so only the score gradient exists."""

    has_path_gradient: ClassVar[bool] = False
    value_at_zero = 0.5
    slope_at_infinity = 0.5
    second_derivative_at_one = _INFINITY

    def generator(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        return 0.5 * xp.abs(xp.expm1(log_ratio))

    def derivative(self, log_ratio: Array) -> Array:
        return 0.5 * array_namespace(log_ratio).sign(log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        value = xp.where(t >= -0.5, t, xp.full_like(t, -0.5))
        return xp.where(t <= 0.5, value, xp.full_like(t, _INFINITY))

    def log_path_weight(self, log_ratio: Array) -> Array:
        raise NotImplementedError(
            "total variation has no path gradient (f'' is a point mass at u = 1); "
            "use gradient='score', or 'jensen_shannon' for a bounded divergence with one."
        )

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return 0.5 * array_namespace(log_ratio).sign(log_ratio)

    def reversed(self) -> FDivergence:
        return self


_RANKED = sorted(
    member.tail_exponents[::-1]
    for member in (
        ReverseKL,
        ForwardKL,
        JensenShannon,
        SquaredHellinger,
        PearsonChi2,
        NeymanChi2,
        Jeffreys,
        SoftenedReverseKL,
    )
)


def rank_of_tails(tail_exponents: tuple[Any, Any]) -> int | None:
    """Position of a pair of tail exponents among the named members, 1 for most mode seeking.

    None for exponents that cannot be compared yet (a traced order).
    """
    if not all(map(is_concrete_number, tail_exponents)):
        return None
    return 1 + sum(tails < tail_exponents[::-1] for tails in _RANKED)
