"""From a Pyro model to a posterior, with no settings to tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from bayesdiv.fitting import (
    BaseFitResult,
    check_fit_arguments,
    find_starts,
    first_schedule,
    name_of,
    plan_stages,
)
from bayesdiv.objectives import is_two_sample
from bayesdiv.pyro._objective import DivergenceELBO, objective
from bayesdiv.pyro._optimise import Problem, Run
from bayesdiv.pyro._target import PyroTarget
from bayesdiv.pyro._whitened import WhitenedGuide


def fit(
    model: Callable,
    *args: Any,
    guide: Any = "full_rank",
    objective: Any = "reverse_kl",
    num_particles: int | None = None,
    num_restarts: int = 2,
    max_steps: int = 10_000,
    seed: int = 0,
    progress_bar: bool = True,
    checkpoint: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **objective_arguments: Any,
) -> FitResult:
    r"""Fit a guide to the posterior of ``model``, by any objective, without tuning.

    A few quasi-Newton paths with exact curvature give a mode and a whitening, in whose coordinates
    the guide is parameterised; units and collinear predictors then do not matter. Reverse KL is run
    until it stops, by a step-size schedule with a stopping rule; another objective starts from
    there. Restarts begin half a posterior standard deviation apart and must agree.

    Everything is computed in float64, floating-point arguments included, unless the model cannot.

    Parameters
    ----------
    model, args, model_kwargs
        A Pyro model on its full data, with continuous latent sites. It is run under one more plate,
        on the left, where it broadcasts; otherwise particles are a loop, which is slower.
    guide
        "mean_field", "full_rank", "flow", or a guide of your own (no whitening then).
    objective
        A name or a divergence, as in :func:`bayesdiv.pyro.objective`; ``objective_arguments`` are
        its further arguments, such as ``order=0.5``.
    num_particles
        A step's samples. None: 16 for reverse KL, 64 for others.
    num_restarts
        Independent fits; they are the chains of :meth:`FitResult.to_arviz`.
    max_steps
        Upper limit on the steps of each restart and stage.
    checkpoint
        A file that is rewritten after every window; :func:`FitResult.load` and ``resume()`` go on
        from it to the same numbers.

    Raises
    ------
    ValueError
        Discrete latent sites or subsampled plates with a built-in guide, an unknown guide or
        objective, or no starting point with a finite density.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from bayesdiv.pyro import fit
    >>> def model(y):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> result = fit(model, torch.tensor([1.0, 2.0, 3.0]), progress_bar=False)
    >>> result.verdict.converged
    True
    """
    check_fit_arguments(guide, num_restarts=num_restarts, max_steps=max_steps)
    kwargs = dict(model_kwargs or {})
    gradient = "path" if isinstance(guide, str) else "auto"
    stages = _stages(objective, num_particles, objective_arguments, gradient)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        double, args, kwargs = _precision(model, args, kwargs)
        with _default_dtype(double=double):
            result = FitResult(
                model=model,
                args=args,
                kwargs=kwargs,
                guide_name=guide if isinstance(guide, str) else _guide_name(guide),
                stages=stages,
                max_steps=max_steps,
                double=double,
            )
            result._prepare(guide, num_restarts, seed)
            result.checkpoint = None if checkpoint is None else Path(checkpoint)
            result._advance(progress_bar=progress_bar)
    return result


@dataclass(kw_only=True)
class FitResult(BaseFitResult):
    """A fitted posterior: guides of independent restarts, their history and a verdict.

    Pickles whenever the model does, with the parameters that a guide of your own keeps in Pyro's
    global store. ``print(result)`` gives the verdict.
    """

    double: bool
    vectorizes: bool = True
    nesting: int | None = None

    @property
    def guides(self) -> list[Any]:
        """One a restart, best first."""
        return [run.guide for run in self.runs]

    @property
    def guide(self) -> Any:
        """The restart with the largest evidence bound: an ordinary Pyro guide."""
        return self.runs[0].guide

    def to_arviz(self, *, num_draws: int = 1000, resample: bool = False, **options: Any) -> Any:
        """Draws as an ArviZ object, restarts as chains; :func:`bayesdiv.diagnostics.to_arviz`."""
        from bayesdiv.diagnostics import to_arviz

        with self._scope():
            return to_arviz(
                self.guides,
                self.model,
                *self.args,
                model_kwargs=self.kwargs,
                num_draws=num_draws,
                resample=resample,
                objective=name_of(self.stages[-1][0]),
                losses=self.losses,
                **{"seed": 0, **options},
            )

    def predictive(
        self, *args: Any, num_samples: int = 1000, seed: int = 0, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Posterior-predictive draws of the model at ``args`` (default: those of the fit).

        Pass None for observed arguments, as for :class:`pyro.infer.Predictive`.
        """
        args = _as_double(args, double=self.double) if args else self.args
        kwargs = {**self.kwargs, **_as_double(kwargs, double=self.double)}
        with self._scope(), torch.no_grad():
            torch.manual_seed(seed)
            draws = pyro.infer.Predictive(self.guide, num_samples=num_samples)(
                *self.args, **self.kwargs
            )
            latent = set(self._latent_names())
            kept = {name: value for name, value in draws.items() if name in latent}
            return pyro.infer.Predictive(self.model, kept)(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        store = pyro.get_param_store()
        leaves = [leaf for run in self.runs for leaf in run.parameters]
        for leaf in leaves:
            # A weak reference that Pyro leaves behind, and that does not pickle.
            leaf.__dict__.pop("unconstrained", None)
        names = [name for name in map(store.param_name, leaves) if name is not None]
        state: dict[str, Any] = dict(store.get_state())
        kept = {part: {name: state[part][name] for name in names} for part in state}
        return {**self.__dict__, "_store": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pyro.get_param_store().set_state(state.pop("_store"))
        self.__dict__.update(state)

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]), _default_dtype(double=self.double):
            yield

    def _latent_names(self) -> list[str]:
        from bayesdiv.pyro._sites import sample_sites

        trace = pyro.poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        return [
            site["name"] for site in sample_sites(trace) if not site["infer"].get("is_auxiliary")
        ]

    def _prepare(self, guide: Any, num_restarts: int, seed: int) -> None:
        """Starting points and runs that have taken no step yet."""
        schedules = [first_schedule(guide, self.max_steps) for _ in range(num_restarts)]
        if not isinstance(guide, str):
            self.runs = [Run(schedules[0], guide=guide)]
            return
        target = PyroTarget(self.model, self.args, self.kwargs)
        self.vectorizes, self.nesting = target.vectorizes, target.nesting
        rng = np.random.default_rng(seed)
        first = target.initial_point()
        points = [first, first + rng.uniform(-0.5, 0.5, target.dim)]
        self.starts = find_starts(target, points, rng)
        for schedule in schedules:
            fresh = WhitenedGuide(self.model, guide, self.starts[0], *self.args, **self.kwargs)
            with torch.no_grad():
                fresh.shift.add_(0.5 * torch.randn_like(fresh.shift))
                if guide != "flow":
                    fresh.log_scale.add_(0.2 * torch.randn_like(fresh.log_scale))
            self.runs.append(Run(schedule, guide=fresh))

    def _problem(self, stage: int) -> Problem:
        divergence, options = self.stages[stage]
        if not is_two_sample(divergence):
            options = {**self._host_options(), **options}
        return Problem(self.model, self.args, self.kwargs, objective(divergence, **options))

    def _log_weights(self, run: Run, num_particles: int) -> np.ndarray:
        probe = objective("reverse_kl", **self._host_options())
        assert isinstance(probe, DivergenceELBO)
        count = num_particles if self.vectorizes else min(num_particles, 500)
        result = probe.estimate(
            self.model, run.guide, *self.args, num_particles=count, **self.kwargs
        )
        return result.log_weight.reshape(count, -1).sum(-1).double().numpy()

    def _host_options(self) -> dict[str, Any]:
        """Particles in one run or a loop, and the depth of plates where it is known."""
        options: dict[str, Any] = {"vectorize_particles": self.vectorizes}
        return options if self.nesting is None else {**options, "max_plate_nesting": self.nesting}

    def _agreement(self) -> float:
        # The starting approximation's unit: a mean-field guide's own can be far too small.
        if len(self.runs) < 2 or not isinstance(self.guide, WhitenedGuide):
            return math.nan
        unit = torch.linalg.vector_norm(self.guide.whitening, dim=-1)
        with torch.no_grad():
            moments = [guide._loc_scale(*self.args, **self.kwargs) for guide in self.guides]
        gaps = [float(((loc - moments[0][0]) / unit).abs().max()) for loc, _ in moments[1:]]
        return max(gaps)


def _stages(
    divergence: Any, num_particles: int | None, arguments: dict[str, Any], gradient: str
) -> list[Any]:
    return plan_stages(objective, divergence, num_particles, arguments, gradient=gradient)


def _guide_name(guide: Any) -> str:
    return getattr(guide, "__name__", type(guide).__name__)


@contextmanager
def _default_dtype(*, double: bool) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _as_double(value: Any, *, double: bool) -> Any:
    """Floating-point tensors in ``value`` as float64; containers are rebuilt."""
    if not double:
        return value
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _as_double(entry, double=True) for name, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_as_double(entry, double=True) for entry in value))
    if isinstance(value, list | tuple):
        return type(value)(_as_double(entry, double=True) for entry in value)
    return value


def _precision(
    model: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[bool, tuple, dict[str, Any]]:
    """Whether the model runs in float64, and its arguments in the precision that it runs in."""
    wide_args, wide_kwargs = _as_double(args, double=True), _as_double(kwargs, double=True)
    with _default_dtype(double=True):
        try:
            with torch.no_grad():
                pyro.poutine.block(model)(*wide_args, **wide_kwargs)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            return False, args, kwargs
    return True, wide_args, wide_kwargs
