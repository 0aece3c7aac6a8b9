"""New divergences from old ones: reversal, weighted sums, generalised Jensen–Shannon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, array_namespace, clip, logsumexp
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._checks import is_concrete_number, require_finite
from bayesdiv.divergences._numeric import (
    cap_above,
    largest_exponent,
    log_mixture,
    mixture_generator,
)


def _power_limit(exponent: Any) -> float:
    """log of the limit of v^exponent as v → ∞; 0 where the exponent is not known yet."""
    if not is_concrete_number(exponent) or exponent == 0:
        return 0.0
    return math.copysign(math.inf, exponent)


@dataclass(frozen=True)
class Reversed(FDivergence):
    r"""D(q‖p) read off log(p/q): the generator is u f(1/u).

    With f̃(u) = u f(1/u): f̃'u − f̃ = −f'(1/u), and u² f̃'' = u · path_weight(1/u).
    """

    base: FDivergence

    @property
    def has_path_gradient(self) -> bool:  # type: ignore[override]
        return self.base.has_path_gradient

    @property
    def tail_exponents(self) -> tuple[float, float] | None:
        tails = self.base.tail_exponents
        return None if tails is None else (1.0 - tails[1], 1.0 - tails[0])

    @property
    def value_at_zero(self) -> Any:
        return self.base.slope_at_infinity

    @property
    def slope_at_infinity(self) -> Any:
        return self.base.value_at_zero

    @property
    def second_derivative_at_one(self) -> Any:
        return self.base.second_derivative_at_one

    def generator(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        zeros = xp.zeros_like(log_ratio)
        large = log_ratio > 0.0
        absent = log_ratio == -math.inf
        # For u > 1 the definition, u f(1/u). Below, f'(v) − (v f'(v) − f(v))/v at v = 1/u, as f(v)
        # may overflow where its quotient by v does not; the quotient vanishes where v overflows.
        high = cap_above(xp.where(large, log_ratio, zeros), 1.0 + largest_exponent(log_ratio))
        above = xp.exp(high) * self.base.generator(-high)
        low = xp.where(large | absent, zeros, log_ratio)
        vanishing = -low > largest_exponent(log_ratio)
        finite = xp.where(vanishing, zeros, low)
        quotient = xp.exp(finite) * self.base.pseudo_reward(-finite)
        below = self.base.derivative(-low) - xp.where(vanishing, zeros, quotient)
        value = xp.where(large, above, below)
        return xp.where(absent, zeros + self.value_at_zero, value)

    def derivative(self, log_ratio: Array) -> Array:
        return -self.base.pseudo_reward(-log_ratio)

    def log_path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        # At infinite l the sum may be ∞ − ∞: the power law of that tail decides, and where it is
        # constant the largest finite exponent has reached it.
        limit = largest_exponent(log_ratio)
        finite = clip(log_ratio, -limit, limit)
        weight = finite + self.base.log_path_weight(-finite)
        at_zero, at_infinity = self.tail_exponents or (0.0, 0.0)
        weight = xp.where(log_ratio == -math.inf, weight + _power_limit(-at_zero), weight)
        return xp.where(log_ratio == math.inf, weight + _power_limit(at_infinity), weight)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return -self.base.derivative(-log_ratio)

    def reversed(self) -> FDivergence:
        return self.base


@dataclass(frozen=True)
class WeightedSum(FDivergence):
    """Σ aᵢ Dᵢ with positive weights: a divergence again, term by term."""

    terms: tuple[tuple[Any, FDivergence], ...]

    def __post_init__(self) -> None:
        for weight, _ in self.terms:
            require_finite("weight", weight)
            if is_concrete_number(weight) and weight <= 0.0:
                raise ValueError(
                    f"weight must be positive for the sum to be a divergence, got {weight!r}; "
                    "leave the term out, or use reversed() for the other direction."
                )

    @property
    def has_path_gradient(self) -> bool:  # type: ignore[override]
        return all(member.has_path_gradient for _, member in self.terms)

    @property
    def needs_normalizer(self) -> bool:
        return any(member.needs_normalizer for _, member in self.terms)

    @property
    def tail_exponents(self) -> tuple[float, float] | None:
        tails = [member.tail_exponents for _, member in self.terms]
        known = [pair for pair in tails if pair is not None]
        if len(known) < len(tails):
            return None
        return (min(low for low, _ in known), max(high for _, high in known))

    def _sum(self, values: Sequence[Any]) -> Any:
        total = self.terms[0][0] * values[0]
        for (weight, _), value in zip(self.terms[1:], values[1:], strict=True):
            total = total + weight * value
        return total

    @property
    def value_at_zero(self) -> Any:
        return self._sum([member.value_at_zero for _, member in self.terms])

    @property
    def slope_at_infinity(self) -> Any:
        return self._sum([member.slope_at_infinity for _, member in self.terms])

    @property
    def second_derivative_at_one(self) -> Any:
        return self._sum([member.second_derivative_at_one for _, member in self.terms])

    def generator(self, log_ratio: Array) -> Array:
        return self._sum([member.generator(log_ratio) for _, member in self.terms])

    def derivative(self, log_ratio: Array) -> Array:
        return self._sum([member.derivative(log_ratio) for _, member in self.terms])

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return self._sum([member.pseudo_reward(log_ratio) for _, member in self.terms])

    def path_weight(self, log_ratio: Array) -> Array:
        return self._sum([member.path_weight(log_ratio) for _, member in self.terms])

    def log_path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        logs = [member.log_path_weight(log_ratio) + _log(weight) for weight, member in self.terms]
        return logs[0] if len(logs) == 1 else logsumexp(xp.stack(logs), axis=0)

    def reversed(self) -> FDivergence:
        return WeightedSum(tuple((weight, member.reversed()) for weight, member in self.terms))


def combine(terms: Sequence[tuple[Any, FDivergence]]) -> WeightedSum:
    """One flat weighted sum; equal members share one term."""
    flat: list[tuple[Any, FDivergence]] = []
    for weight, member in terms:
        if isinstance(member, WeightedSum):
            flat.extend((weight * inner, part) for inner, part in member.terms)
        else:
            flat.append((weight, member))
    merged: dict[Any, tuple[Any, FDivergence]] = {}
    for weight, member in flat:
        # A member with a traced order or weight is equal to nothing but itself.
        key = member if _is_hashable(member) else id(member)
        total = merged[key][0] + weight if key in merged else weight
        merged[key] = (total, member)
    return WeightedSum(tuple(merged.values()))


def _is_hashable(member: FDivergence) -> bool:
    try:
        hash(member)
    except TypeError:
        return False
    return True


@dataclass(frozen=True)
class GeneralizedJensenShannon(FDivergence):
    r"""w KL(p‖m) + (1 − w) KL(q‖m) with m = w p + (1 − w) q and w = ``weight``.

    The usual Jensen–Shannon divergence at ½. Divided by w it tends to KL(p‖q) as w → 0; divided
    by 1 − w, to KL(q‖p) as w → 1 (Lin 1991, eq. 4.1).

    Raises
    ------
    ValueError
        ``weight`` is not strictly between 0 and 1.
    """

    weight: Any = 0.5

    def __post_init__(self) -> None:
        require_finite("weight", self.weight)
        if is_concrete_number(self.weight) and not 0.0 < self.weight < 1.0:
            raise ValueError(
                f"weight must be strictly between 0 and 1, got {self.weight!r}; "
                "use 'forward_kl' or 'reverse_kl' for the limits."
            )

    tail_exponents = (1.0, 0.0)

    @property
    def value_at_zero(self) -> Any:
        return -(1.0 - self.weight) * _log(1.0 - self.weight)

    @property
    def slope_at_infinity(self) -> Any:
        return -self.weight * _log(self.weight)

    @property
    def second_derivative_at_one(self) -> Any:
        return self.weight * (1.0 - self.weight)

    def _log_share(self, log_ratio: Array) -> Array:
        """log(m/p)."""
        return log_mixture(-log_ratio, 1.0 - self.weight)

    def derivative(self, log_ratio: Array) -> Array:
        return -self.weight * self._log_share(log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return (1.0 - self.weight) * log_mixture(log_ratio, self.weight)

    def generator(self, log_ratio: Array) -> Array:
        return mixture_generator(log_ratio, self.weight)

    def log_path_weight(self, log_ratio: Array) -> Array:
        log_curvature = _log(self.weight) + _log(1.0 - self.weight)
        return log_curvature - self._log_share(log_ratio)

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        rest = 1.0 - self.weight
        exponent = t / self.weight + _log(self.weight)
        inside = exponent < 0.0
        safe = xp.where(inside, t / self.weight, xp.zeros_like(t))
        # log((1 − w)/(1 − w e^{t/w})), whose argument is 1 at t = 0.
        value = -rest * xp.log1p(-self.weight / rest * xp.expm1(safe))
        return xp.where(inside, value, xp.full_like(t, math.inf))

    def reversed(self) -> FDivergence:
        return GeneralizedJensenShannon(1.0 - self.weight)


def _log(number: Any) -> Any:
    """log of a number or of an array, traced or not."""
    return math.log(number) if is_concrete_number(number) else array_namespace(number).log(number)
