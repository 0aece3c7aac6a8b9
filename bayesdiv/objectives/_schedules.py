"""Parameters of an objective that depend on the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bayesdiv.divergences._checks import is_concrete_number, require_finite


@dataclass(frozen=True)
class LinearSchedule:
    """What :func:`linear_schedule` returns; an object, so that settings can be pickled."""

    start: float
    end: float
    num_steps: int

    def __post_init__(self) -> None:
        require_finite("start", self.start)
        require_finite("end", self.end)
        if not is_concrete_number(self.num_steps) or self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps!r}.")

    def __call__(self, step: Any) -> Any:
        """The value at ``step``, a number or a traced value."""
        share = step / self.num_steps
        share = min(share, 1.0) if is_concrete_number(step) else share.clip(0.0, 1.0)
        return self.start + (self.end - self.start) * share


def linear_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """A parameter that goes from ``start`` to ``end`` in ``num_steps`` steps and stays there.

    Steps count from the first of the run, a warm start included. Keep clear of the orders that
    the objective excludes: from 0.05 to 0.95 rather than from 0 to 1.

    Raises
    ------
    ValueError
        ``num_steps`` is below 1, or ``start`` or ``end`` is not finite.

    Examples
    --------
    >>> linear_schedule(0.25, 0.75, 100)(50)
    0.5
    """
    return LinearSchedule(start, end, num_steps)
