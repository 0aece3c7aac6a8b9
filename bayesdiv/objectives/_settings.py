"""What the two hosts' ``objective(...)`` have in common: names, checks, schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bayesdiv.divergences import (
    FDivergence,
    ReverseKL,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)
from bayesdiv.divergences._checks import is_concrete_number
from bayesdiv.objectives._bounds import RenyiBound, TailAdaptive, importance_weighted
from bayesdiv.objectives._estimate import is_linear
from bayesdiv.objectives._normalizer import Normalizer, SelfNormalizer, get_normalizer

_BOUNDS: dict[str, Callable[..., Any]] = {
    "renyi": RenyiBound,
    "iwae": importance_weighted,
    "tail_adaptive": TailAdaptive,
}
_LOG_WEIGHT_OBJECTIVES = (FDivergence, RenyiBound, TailAdaptive)

DEFAULT_NUM_PARTICLES = 16


def list_objectives() -> list[str]:
    """Every name that ``objective(...)`` takes."""
    return [*list_divergences("f"), *_BOUNDS, *list_divergences("two_sample")]


def get_objective(objective: Any, **parameters: Any) -> Any:
    """The divergence or bound called ``objective``; an object is returned as it is.

    Raises
    ------
    ValueError
        An unknown name (the known ones are listed) or a parameter that it does not take.
    """
    if isinstance(objective, RenyiBound | TailAdaptive):
        if parameters:
            raise TypeError(f"parameters {sorted(parameters)} were given beside {objective!r}.")
        return objective
    if isinstance(objective, str):
        if objective in _BOUNDS:
            try:
                return _BOUNDS[objective](**parameters)
            except TypeError as error:
                raise ValueError(f"{objective!r}: {error}.") from None
        if objective not in list_divergences():
            raise ValueError(
                f"objective must be one of {', '.join(list_objectives())}, or a divergence object; "
                f"got {objective!r}."
            )
    return get_divergence(objective, **parameters)


def is_two_sample(objective: Any) -> bool:
    """Whether ``objective`` names or is a divergence of samples rather than of log-ratios."""
    return isinstance(objective, TwoSampleDivergence) or (
        isinstance(objective, str) and objective in list_divergences("two_sample")
    )


@dataclass(frozen=True)
class ObjectiveSettings:
    """An objective on log-weights with its estimator, checked once at construction.

    Parameters
    ----------
    objective
        A name, an :class:`FDivergence`, a :class:`RenyiBound` or a :class:`TailAdaptive`.
    parameters
        Of a named objective; a callable is a schedule, called with the step.
    num_particles
        None: 1 for reverse KL, as the hosts' ELBO; otherwise 16.
    gradient
        "path", "reparam", "score" or "auto": reverse KL as the host's ELBO differentiates it
        ("reparam"), everything else by "path", with score terms for sites that need them.
    normalizer
        "self", "running" or a known log Z.
    warmup
        Steps of reverse KL before the objective takes over.
    """

    objective: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    num_particles: int | None = None
    gradient: str = "auto"
    normalizer: Any = "self"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.gradient not in ("auto", "path", "reparam", "score"):
            raise ValueError(
                f"gradient must be 'auto', 'path', 'reparam' or 'score', got {self.gradient!r}."
            )
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup must be a number of steps >= 0, got {self.warmup!r}.")
        first = self.at(0)
        if not isinstance(first, _LOG_WEIGHT_OBJECTIVES):
            raise TypeError(
                f"{first!r} compares samples, not log-ratios; pass it to objective(...) itself, "
                "which takes both."
            )
        if self.gradient == "path" and not first.has_path_gradient:
            raise ValueError(
                f"gradient='path' does not exist for {type(first).__name__}: its f'' is a point "
                "mass at u = 1; use gradient='score' or 'auto'."
            )
        count = self.num_particles
        if count is None:
            default = 1 if is_linear(first) and self.gradient != "score" else DEFAULT_NUM_PARTICLES
            object.__setattr__(self, "num_particles", default)
        elif isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"num_particles must be an integer >= 1, got {count!r}.")
        needed = max(2 if self.gradient == "score" else 1, getattr(first, "min_particles", 1))
        if self.count < needed:
            raise ValueError(
                f"num_particles must be at least {needed} for {type(first).__name__} with "
                f"gradient={self.gradient!r}, got {self.count}."
            )
        object.__setattr__(self, "normalizer", get_normalizer(self.normalizer))

    @property
    def count(self) -> int:
        """The number of particles."""
        assert self.num_particles is not None
        return self.num_particles

    @property
    def has_schedule(self) -> bool:
        """Whether a parameter of the divergence depends on the step."""
        return isinstance(self.objective, str) and any(map(callable, self.parameters.values()))

    @property
    def is_stateful(self) -> bool:
        """Whether the objective must know the step or keep log Z between steps."""
        return self.warmup > 0 or self.has_schedule or self.normalizer.is_stateful

    @property
    def is_linear(self) -> bool:
        """Whether plates may be subsampled freely."""
        return is_linear(self.at(0))

    def at(self, step: Any) -> Any:
        """The objective at ``step``, a number or a traced value; the warm start is not included."""
        parameters = {
            name: value(step) if self.has_schedule and callable(value) else value
            for name, value in self.parameters.items()
        }
        return get_objective(self.objective, **parameters)

    def current(self, step: int) -> Any:
        """The objective at a known ``step``, reverse KL during the warm start."""
        return ReverseKL() if step < self.warmup else self.at(step)

    def resolve_gradient(self, objective: Any) -> str:
        """The estimator of "auto" for ``objective``, were every guide site reparameterised."""
        if self.gradient != "auto":
            return self.gradient
        if is_linear(objective):
            return "reparam"
        return "path" if objective.has_path_gradient else "score"


def linear_schedule(start: float, end: float, num_steps: int) -> Callable[[Any], Any]:
    """A parameter that goes from ``start`` to ``end`` in ``num_steps`` steps and stays there.

    >>> linear_schedule(0.25, 0.75, 100)(50)
    0.5
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps!r}.")

    def schedule(step: Any) -> Any:
        if is_concrete_number(step):
            share = min(step / num_steps, 1.0)
        else:
            share = (step / num_steps).clip(0.0, 1.0)
        return start + (end - start) * share

    return schedule


__all__ = [
    "Normalizer",
    "ObjectiveSettings",
    "SelfNormalizer",
    "get_objective",
    "is_two_sample",
    "linear_schedule",
    "list_objectives",
]
