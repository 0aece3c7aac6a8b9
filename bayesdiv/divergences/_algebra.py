"""New divergences from old ones: reversal, weighted sums, generalised Jensen–Shannon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, array_namespace, logsumexp
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._checks import is_concrete_number, require_finite


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
        return array_namespace(log_ratio).exp(log_ratio) * self.base.generator(-log_ratio)

    def derivative(self, log_ratio: Array) -> Array:
        return -self.base.pseudo_reward(-log_ratio)

    def log_path_weight(self, log_ratio: Array) -> Array:
        return log_ratio + self.base.log_path_weight(-log_ratio)

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

    def log_path_weight(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        logs = [
            member.log_path_weight(log_ratio)
            + (math.log(weight) if is_concrete_number(weight) else xp.log(weight))
            for weight, member in self.terms
        ]
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
    merged: dict[FDivergence, Any] = {}
    for weight, member in flat:
        merged[member] = merged[member] + weight if member in merged else weight
    return WeightedSum(tuple((weight, member) for member, weight in merged.items()))


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

    def _logs(self, like: Array) -> tuple[Any, Any]:
        if is_concrete_number(self.weight):
            return math.log(self.weight), math.log1p(-self.weight)
        xp = array_namespace(like)
        return xp.log(self.weight), xp.log1p(-self.weight)

    def _log_mixture(self, log_ratio: Array) -> Array:
        """log(m/q)."""
        log_w, log_rest = self._logs(log_ratio)
        xp = array_namespace(log_ratio)
        return xp.logaddexp(log_ratio + log_w, xp.zeros_like(log_ratio) + log_rest)

    @property
    def value_at_zero(self) -> Any:
        return -(1.0 - self.weight) * math.log1p(-self.weight)

    @property
    def slope_at_infinity(self) -> Any:
        return -self.weight * math.log(self.weight)

    @property
    def second_derivative_at_one(self) -> Any:
        return self.weight * (1.0 - self.weight)

    def derivative(self, log_ratio: Array) -> Array:
        log_w, log_rest = self._logs(log_ratio)
        xp = array_namespace(log_ratio)
        # log(u/m) without the difference of two large numbers.
        return -self.weight * xp.logaddexp(xp.zeros_like(log_ratio) + log_w, log_rest - log_ratio)

    def pseudo_reward(self, log_ratio: Array) -> Array:
        return (1.0 - self.weight) * self._log_mixture(log_ratio)

    def generator(self, log_ratio: Array) -> Array:
        xp = array_namespace(log_ratio)
        rise = xp.exp(log_ratio) * self.derivative(log_ratio)
        rise = xp.where(log_ratio == -math.inf, xp.zeros_like(rise), rise)
        return rise - self.pseudo_reward(log_ratio)

    def log_path_weight(self, log_ratio: Array) -> Array:
        log_w, log_rest = self._logs(log_ratio)
        xp = array_namespace(log_ratio)
        share = xp.logaddexp(xp.zeros_like(log_ratio) + log_w, log_rest - log_ratio)
        return log_w + log_rest - share

    def conjugate(self, t: Array) -> Array:
        xp = array_namespace(t)
        log_w, log_rest = self._logs(t)
        exponent = log_w + t / self.weight
        inside = exponent < 0.0
        safe = xp.where(inside, exponent, xp.full_like(t, -1.0))
        value = (1.0 - self.weight) * (log_rest - xp.log(-xp.expm1(safe)))
        return xp.where(inside, value, xp.full_like(t, math.inf))

    def reversed(self) -> FDivergence:
        return GeneralizedJensenShannon(1.0 - self.weight)
