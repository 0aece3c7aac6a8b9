"""Objectives by name: every divergence, and the bounds that are none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from bayesdiv.divergences import (
    FDivergence,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)
from bayesdiv.objectives._bounds import RenyiBound, TailAdaptive, importance_weighted

_BOUNDS: dict[str, Callable[..., Any]] = {
    "renyi": RenyiBound,
    "iwae": importance_weighted,
    "tail_adaptive": TailAdaptive,
}
LOG_WEIGHT_OBJECTIVES = (FDivergence, RenyiBound, TailAdaptive)


def list_objectives() -> list[str]:
    """Every name that ``objective(...)`` takes."""
    return [*list_divergences("f"), *_BOUNDS, *list_divergences("two_sample")]


def get_objective(objective: Any, **parameters: Any) -> Any:
    """The divergence or bound called ``objective``; an object is returned as it is.

    Raises
    ------
    ValueError
        An unknown name (the known ones are listed) or a parameter that it does not take.
    TypeError
        Neither a name nor an objective, or parameters given beside an object.

    Examples
    --------
    >>> get_objective("renyi", order=0.5)
    RenyiBound(order=0.5)
    """
    if isinstance(objective, RenyiBound | TailAdaptive):
        if parameters:
            raise TypeError(
                f"parameters {sorted(parameters)} were given beside the object {objective!r}; "
                "set them where it is built, or pass its name."
            )
        return objective
    if isinstance(objective, str):
        if objective in _BOUNDS:
            accepted = inspect.signature(_BOUNDS[objective]).parameters
            unknown = sorted(set(parameters) - set(accepted))
            if unknown:
                raise ValueError(
                    f"{objective!r} has no parameter {', '.join(map(repr, unknown))}; "
                    f"it takes {', '.join(accepted) or 'none'}."
                )
            return _BOUNDS[objective](**parameters)
        if objective not in list_divergences():
            raise ValueError(
                f"objective must be one of {', '.join(list_objectives())}, or a divergence object; "
                f"got {objective!r}."
            )
    elif not isinstance(objective, FDivergence | TwoSampleDivergence):
        raise TypeError(
            "objective must be a name, an FDivergence, a RenyiBound, a TailAdaptive or a "
            f"TwoSampleDivergence, got {objective!r} of type {type(objective).__name__}."
        )
    return get_divergence(objective, **parameters)


def is_two_sample(objective: Any) -> bool:
    """Whether ``objective`` names or is a divergence of samples rather than of log-ratios."""
    return isinstance(objective, TwoSampleDivergence) or (
        isinstance(objective, str) and objective in list_divergences("two_sample")
    )


def require_log_weight_objective(rule: Any) -> None:
    """Raise unless ``rule`` is one that acts on log-weights."""
    if not isinstance(rule, LOG_WEIGHT_OBJECTIVES):
        raise TypeError(
            f"{rule!r} compares samples, not log-ratios; pass it to objective(...) of "
            "bayesdiv.pyro or bayesdiv.numpyro, which take both."
        )
