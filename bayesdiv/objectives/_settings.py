"""What the two hosts' ``objective(...)`` have in common: settings and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bayesdiv.divergences import ReverseKL
from bayesdiv.objectives._estimate import GRADIENTS, check_gradient, is_linear
from bayesdiv.objectives._normalizer import get_normalizer
from bayesdiv.objectives._registry import get_objective, require_log_weight_objective

DEFAULT_NUM_PARTICLES = 16


@dataclass(frozen=True)
class ObjectiveSettings:
    """An objective on log-weights with its estimator, checked once at construction.

    Parameters
    ----------
    objective
        A name, an :class:`FDivergence`, a :class:`RenyiBound` or a :class:`TailAdaptive`.
    parameters
        Of a named objective; a callable is a schedule, called with the step, which counts from the
        first of the run, warm start included.
    num_particles
        None: 1 for reverse KL, as the hosts' ELBO; otherwise 16.
    gradient
        "path", "reparam", "score" or "auto": reverse KL as the host's ELBO differentiates it
        ("reparam"), everything else by "path", with score terms for sites that need them.
    normalizer
        "self", "running" or a known log Z.
    warmup
        Steps of reverse KL before the objective takes over.

    Raises
    ------
    ValueError
        An unknown name, parameter, gradient or normaliser, an excluded order, an estimator that the
        objective does not have, too few particles for it, or a negative warm start.
    TypeError
        The objective compares samples, or is neither a name nor an objective.
    """

    objective: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    num_particles: int | None = None
    gradient: str = "auto"
    normalizer: Any = "self"
    warmup: int = 0
    _constant: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.gradient not in ("auto", *GRADIENTS):
            raise ValueError(
                f"gradient must be 'auto', 'path', 'reparam' or 'score', got {self.gradient!r}."
            )
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup must be a number of steps >= 0, got {self.warmup!r}.")
        first = self._build(0)
        # Looking a name up costs as much as a few sites of a model do; a schedule has to.
        object.__setattr__(self, "_constant", None if self.has_schedule else first)
        require_log_weight_objective(first)
        count = self.num_particles
        if count is None:
            default = 1 if is_linear(first) and self.gradient != "score" else DEFAULT_NUM_PARTICLES
            object.__setattr__(self, "num_particles", default)
        elif isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"num_particles must be an integer >= 1, got {count!r}.")
        gradient = self.resolve_gradient(first)
        check_gradient(first, gradient, self.count, with_score=gradient == "score")
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
        return self._build(step) if self._constant is None else self._constant

    def _build(self, step: Any) -> Any:
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
