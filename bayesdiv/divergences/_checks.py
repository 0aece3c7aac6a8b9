"""Checks of settings that may be traced JAX values."""

import math
import numbers
from typing import Any


def is_concrete_number(value: Any) -> bool:
    """Whether ``value`` can be compared now; a traced JAX value or an array cannot be."""
    return isinstance(value, numbers.Real)


def require_finite(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number or an array (whose value cannot be looked at)."""
    if isinstance(value, bool) or (
        not is_concrete_number(value) and not hasattr(value, "__array_namespace__")
    ):
        if hasattr(value, "dtype") and not isinstance(value, bool):
            return
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}.")
    if is_concrete_number(value) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}.")
