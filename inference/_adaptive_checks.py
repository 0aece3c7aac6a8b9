"""What the settings and models of an adaptive proposal have to satisfy."""

from __future__ import annotations

from typing import Any

import numpyro.distributions as dist

# Intervals, a square bracket where the end belongs to it.
RANGES = {
    "degrees_of_freedom": ("(2", "inf)"),
    "step_exponent": ("(0.5", "1]"),
    "kappa": ("[0", "inf)"),
    "defensive_fraction": ("[0", "1)"),
    "offset": ("[0", "inf)"),
    "gate_strength": ("[0", "inf)"),
    "tempering_ess": ("[0", "inf)"),
    "kl_threshold": ("[0", "inf)"),
    "ess_threshold": ("[0", "1]"),
}


def check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}.")


def check_range(name: str, value: Any, low: str, high: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}.")
    above = value > float(low[1:]) or (low[0] == "[" and value == float(low[1:]))
    below = value < float(high[:-1]) or (high[-1] == "]" and value == float(high[:-1]))
    if not (above and below):
        raise ValueError(f"{name} must be in {low}, {high}, got {value}.")


def check_law(law: Any, name: str) -> None:
    """Raise unless Gaussian experts can stand in for ``law``."""
    if len(law.event_shape) > 1:
        raise ValueError(
            f"model.{name} has event shape {law.event_shape}; states must be numbers or vectors."
        )
    support, base = law.support, law
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if isinstance(base, dist.Delta):
        raise ValueError(
            f"model.{name} has no density: {type(base).__name__}. Let the state be the part that "
            "is random, and compute the rest from it."
        )
    if support not in (dist.constraints.real, dist.constraints.real_vector):
        raise ValueError(
            f"model.{name} has support {support}, and experts are on all of the real line; "
            "transform the state to be unbounded."
        )
