"""How EM for mixtures of experts starts, steps and stops."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["EMSettings"]

_FAMILIES = ("normal", "bernoulli")
_GATE_STEPS = ("newton", "bound")


@dataclass(frozen=True)
class EMSettings:
    """How EM starts, steps and stops.

    Attributes
    ----------
    num_experts : int
        K.
    experts : str
        ``"normal"`` or ``"bernoulli"``.
    num_starts : int
        Random starts, of which the best after ``short_iterations`` goes on.
    short_iterations : int
        See there.
    max_iterations : int
        Of the start that goes on.
    tolerance : float
        EM stops where an iteration raises the objective by less, in nats an observation.
    gate_step : str
        ``"newton"``, with halving, or ``"bound"``: cheaper steps, many more of them.
    gate_ridge : float
        Precision of a normal prior on the gate's rows about their mean, on standardised predictors.
    coefficient_ridge : float
        The same of the experts' coefficients, on standardised predictors and outcome. Raise it, to
        1e-2 say, where Bernoulli outcomes are separable.
    variance_floor : float
        Least variance of a normal expert, over the variance of the outcome.
    block_size : int or None
        Rows that are worked on at once; by the device if None.

    Raises
    ------
    ValueError
        If a setting is outside its domain.
    """

    num_experts: int
    experts: str = "normal"
    num_starts: int = 5
    short_iterations: int = 15
    max_iterations: int = 500
    tolerance: float = 1e-6
    gate_step: str = "newton"
    gate_ridge: float = 1e-3
    coefficient_ridge: float = 1e-6
    variance_floor: float = 1e-6
    block_size: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("experts", _FAMILIES), ("gate_step", _GATE_STEPS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("num_experts", "num_starts", "max_iterations", "block_size"):
            value = getattr(self, name)
            if value is None and name == "block_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        value = self.short_iterations
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"short_iterations must be a whole number from 0, got {value!r}.")
        for name in ("tolerance", "gate_ridge", "coefficient_ridge"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {value!r}.")
        if not 0.0 < self.variance_floor < 1.0:
            raise ValueError(f"variance_floor must be in (0, 1), got {self.variance_floor!r}.")
