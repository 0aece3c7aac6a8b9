"""What a fit runs through: reverse KL, then the objective that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bayesdiv.fitting._run import WINDOW
from bayesdiv.fitting._schedule import StageSchedule
from bayesdiv.objectives import is_two_sample

GUIDES = ("mean_field", "full_rank", "flow")
"""The built-in guides, by the names that ``fit`` takes."""

Stage = tuple[Any, dict[str, Any]]


def check_fit_arguments(guide: Any, *, num_restarts: int, max_steps: int) -> None:
    """Raise ValueError or TypeError for what no fit can start with."""
    if isinstance(guide, str):
        if guide not in GUIDES:
            raise ValueError(
                f"guide must be one of {', '.join(GUIDES)}, or a guide; got {guide!r}."
            )
    elif not callable(guide):
        raise TypeError(
            f"guide must be one of {', '.join(GUIDES)}, or a callable with the model's arguments; "
            f"got {type(guide).__name__}."
        )
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}.")
    if max_steps < WINDOW:
        raise ValueError(f"max_steps must be at least {WINDOW}, one window, got {max_steps}.")


def plan_stages(
    objective: Callable[..., Any],
    divergence: Any,
    num_particles: int | None,
    arguments: dict[str, Any],
    *,
    gradient: str,
) -> list[Stage]:
    """Pairs (divergence, arguments of the host's ``objective``), one a stage.

    ``gradient`` is that of reverse KL: "path" has the least noise, and none at all where the guide
    is exact, but every site of the guide must be reparameterised.
    """
    probe = objective(divergence, **arguments)
    if not is_two_sample(divergence) and probe.settings.is_linear:
        options = {"gradient": gradient, "num_particles": num_particles or 16, **arguments}
        return [(divergence, options)]
    warm = ("reverse_kl", {"gradient": gradient, "num_particles": 16})
    return [warm, (divergence, {"num_particles": num_particles or 64, **arguments})]


def first_schedule(guide: Any, max_steps: int) -> StageSchedule:
    """The schedule of reverse KL; a flow's networks take smaller steps."""
    initial = 0.01 if guide == "flow" else 0.05
    return StageSchedule(initial=initial, max_windows=math.ceil(max_steps / WINDOW))


def next_schedule(max_steps: int) -> StageSchedule:
    """The schedule of an objective that starts from the optimum of reverse KL."""
    return StageSchedule(initial=0.02, max_windows=math.ceil(max_steps / WINDOW))


def name_of(divergence: Any) -> str:
    """How a report calls a divergence."""
    return divergence if isinstance(divergence, str) else repr(divergence)
