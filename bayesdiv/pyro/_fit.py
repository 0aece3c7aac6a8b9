"""From a Pyro model to a posterior, with no settings to tune."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from bayesdiv._array import logsumexp
from bayesdiv.fitting import StageSchedule, Start, Verdict, find_starts, judge
from bayesdiv.fitting._progress import FitProgress
from bayesdiv.objectives import Estimate, is_two_sample
from bayesdiv.pyro._objective import DivergenceELBO, objective
from bayesdiv.pyro._optimise import WINDOW, Run, estimate_in_chunks, set_objective
from bayesdiv.pyro._target import PyroTarget
from bayesdiv.pyro._whitened import GUIDES, WhitenedGuide


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
    if isinstance(guide, str) and guide not in GUIDES:
        raise ValueError(f"guide must be one of {', '.join(GUIDES)}, or a guide; got {guide!r}.")
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}.")
    if max_steps < WINDOW:
        raise ValueError(f"max_steps must be at least {WINDOW}, one window, got {max_steps}.")
    kwargs = dict(model_kwargs or {})
    stages = _stages(objective, num_particles, objective_arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        double, args, kwargs = _precision(model, args, kwargs)
        with _default_dtype(double=double):
            result = _prepare(
                model, args, kwargs, guide, stages, num_restarts, max_steps, seed, double=double
            )
            result.checkpoint = None if checkpoint is None else Path(checkpoint)
            result._advance(progress_bar=progress_bar)
    return result


@dataclass
class FitResult:
    """A fitted posterior: guides of independent restarts, their history and a verdict.

    Pickles whenever the model does. ``print(result)`` gives the verdict.
    """

    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    guide_name: str
    stages: list[tuple[Any, dict[str, Any]]]
    runs: list[Run]
    max_steps: int
    double: bool
    vectorizes: bool
    starts: list[Start] = field(default_factory=list)
    stage: int = 0
    verdict: Verdict | None = None
    checkpoint: Path | None = None

    @property
    def guides(self) -> list[Any]:
        """One a restart, best first."""
        return [run.guide for run in self.runs]

    @property
    def guide(self) -> Any:
        """The restart with the largest evidence bound: an ordinary Pyro guide."""
        return self.runs[0].guide

    @property
    def losses(self) -> list[np.ndarray]:
        """The loss at every step of each restart."""
        return [np.asarray(run.losses) for run in self.runs]

    @property
    def converged(self) -> bool:
        """Whether every restart met the stopping rule of its last stage."""
        return self.stage == len(self.stages) and all(run.schedule.converged for run in self.runs)

    def __str__(self) -> str:
        name = _name(self.stages[-1][0])
        return f"{self.guide_name} guide, {name}, {len(self.runs)} restarts: {self.verdict}"

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
                objective=_name(self.stages[-1][0]),
                losses=self.losses,
                **{"seed": 0, **options},
            )

    def psis_resample(self, *, num_draws: int = 1000, **options: Any) -> Any:
        """Draws corrected by Pareto-smoothed importance resampling, as an ArviZ object.

        Good where the verdict's Pareto k is below 0.7.
        """
        return self.to_arviz(num_draws=num_draws, resample=True, **options)

    def predictive(
        self, *args: Any, num_samples: int = 1000, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Posterior-predictive draws of the model at ``args`` (default: those of the fit).

        Pass None for observed arguments, as for :class:`pyro.infer.Predictive`.
        """
        args = _as_double(args, double=self.double) if args else self.args
        with self._scope(), torch.no_grad():
            draws = pyro.infer.Predictive(self.guide, num_samples=num_samples)(
                *self.args, **self.kwargs
            )
            latent = set(self._latent_names())
            kept = {name: value for name, value in draws.items() if name in latent}
            return pyro.infer.Predictive(self.model, kept)(*args, **{**self.kwargs, **kwargs})

    def resume(self, max_steps: int | None = None, *, progress_bar: bool = True) -> FitResult:
        """Go on where the fit stopped, for up to ``max_steps`` further steps of each restart."""
        extra = (self.max_steps if max_steps is None else max_steps) // WINDOW
        if self.stage < len(self.stages) or not self.converged:
            self.stage = min(self.stage, len(self.stages) - 1)
            for run in self.runs:
                if not run.schedule.converged:
                    run.schedule.max_windows = max(
                        run.schedule.max_windows, run.schedule.windows + extra
                    )
                    run.failures.clear()
        with torch.random.fork_rng(devices=[]), self._scope():
            self._advance(progress_bar=progress_bar)
        return self

    def save(self, path: str | Path) -> None:
        """Pickle to ``path``, whole or not at all."""
        path = Path(path)
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_bytes(pickle.dumps(self))
        temporary.replace(path)

    @staticmethod
    def load(path: str | Path) -> FitResult:
        """What :meth:`save` or ``checkpoint`` wrote. Load only files that you trust."""
        return pickle.loads(Path(path).read_bytes())

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with _default_dtype(double=self.double):
            yield

    def _latent_names(self) -> list[str]:
        from bayesdiv.pyro._sites import sample_sites

        trace = pyro.poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
        return [
            site["name"] for site in sample_sites(trace) if not site["infer"].get("is_auxiliary")
        ]

    def _make_objective(self, stage: int) -> Any:
        divergence, options = self.stages[stage]
        return objective(divergence, vectorize_particles=self.vectorizes, **options)

    def _advance(self, *, progress_bar: bool) -> None:
        with FitProgress(enabled=progress_bar) as progress:
            while self.stage < len(self.stages):
                title = f"{self.guide_name}, {_name(self.stages[self.stage][0])}"
                for index, run in enumerate(self.runs):
                    task = progress.start(f"{title} ({index + 1}/{len(self.runs)})", run.schedule)
                    if run.generator_state is not None:
                        torch.set_rng_state(run.generator_state)
                    with _antithetic(run.guide):
                        run.advance(
                            self.model,
                            self.args,
                            self.kwargs,
                            on_window=lambda run, task=task: self._after_window(
                                progress, task, run
                            ),
                        )
                    progress.finish(task, run.schedule)
                if not all(run.schedule.converged for run in self.runs):
                    break
                self.stage += 1
                if self.stage < len(self.stages):
                    for run in self.runs:
                        schedule = StageSchedule(
                            initial=0.02, max_windows=math.ceil(self.max_steps / WINDOW)
                        )
                        set_objective(run, self._make_objective(self.stage), schedule)
        self._judge()
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def _after_window(self, progress: FitProgress, task: Any, run: Run) -> None:
        progress.update(task, run.schedule, run.losses[-1])
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def _judge(self, num_particles: int = 2000) -> None:
        probe = objective("reverse_kl", vectorize_particles=self.vectorizes)
        assert isinstance(probe, DivergenceELBO)
        count = num_particles if self.vectorizes else 500
        weights = [
            estimate_in_chunks(
                probe, self.model, run.guide, self.args, self.kwargs, num_particles=count
            )
            for run in self.runs
        ]
        flat = [weight.reshape(count, -1).sum(-1) for weight in weights]
        order = sorted(range(len(flat)), key=lambda index: -float(flat[index].mean()))
        self.runs = [self.runs[index] for index in order]
        best = Estimate(surrogate=None, value=None, log_weight=flat[order[0]])
        self.verdict = judge(
            converged=self.converged,
            pareto_k=float(best.pareto_k),
            ess_fraction=float(best.ess) / count,
            agreement=self._agreement(),
            log_evidence=float(logsumexp(flat[order[0]]) - math.log(count)),
            guide=self.guide_name,
            objective=_name(self.stages[-1][0]),
        )

    def _agreement(self) -> float:
        """Largest difference of unconstrained means between restarts, in standard deviations.

        Those of the starting approximation: a mean-field guide's own can be far too small.
        """
        if len(self.runs) < 2 or not isinstance(self.guide, WhitenedGuide):
            return math.nan
        unit = torch.linalg.vector_norm(self.guide.whitening, dim=-1)
        with torch.no_grad():
            moments = [guide._loc_scale(*self.args, **self.kwargs) for guide in self.guides]
        gaps = [float(((loc - moments[0][0]) / unit).abs().max()) for loc, _ in moments[1:]]
        return max(gaps)


def _prepare(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    guide: Any,
    stages: list[tuple[Any, dict[str, Any]]],
    num_restarts: int,
    max_steps: int,
    seed: int,
    *,
    double: bool,
) -> FitResult:
    max_windows = math.ceil(max_steps / WINDOW)
    result = FitResult(
        model=model,
        args=args,
        kwargs=kwargs,
        guide_name=guide if isinstance(guide, str) else type(guide).__name__,
        stages=stages,
        runs=[],
        max_steps=max_steps,
        double=double,
        vectorizes=True,
    )
    if not isinstance(guide, str):
        made = result._make_objective(0)
        result.runs.append(Run(guide, made, StageSchedule(max_windows=max_windows)))
        return result
    target = PyroTarget(model, args, kwargs)
    result.vectorizes = target.vectorizes
    rng = np.random.default_rng(seed)
    first = target.initial_point()
    points = [first, first + rng.uniform(-0.5, 0.5, target.dim)]
    result.starts = find_starts(target, points, rng)
    for _ in range(num_restarts):
        fresh = WhitenedGuide(model, guide, result.starts[0], *args, **kwargs)
        with torch.no_grad():
            fresh.shift.add_(0.5 * torch.randn_like(fresh.shift))
            if guide != "flow":
                fresh.log_scale.add_(0.2 * torch.randn_like(fresh.log_scale))
        schedule = StageSchedule(max_windows=max_windows, initial=0.05 if guide != "flow" else 0.01)
        result.runs.append(Run(fresh, result._make_objective(0), schedule))
    return result


def _stages(
    divergence: Any, num_particles: int | None, arguments: dict[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    """Reverse KL by path gradients, then the objective unless that is reverse KL itself."""
    probe = objective(divergence, **arguments)
    linear = not is_two_sample(divergence) and probe.settings.is_linear
    if linear:
        options = {"gradient": "path", "num_particles": num_particles or 16, **arguments}
        return [(divergence, options)]
    warm = ("reverse_kl", {"gradient": "path", "num_particles": 16})
    return [warm, (divergence, {"num_particles": num_particles or 64, **arguments})]


def _name(divergence: Any) -> str:
    return divergence if isinstance(divergence, str) else repr(divergence)


@contextmanager
def _antithetic(guide: Any) -> Iterator[None]:
    """Draw particles in pairs while optimising; draws for the user stay independent."""
    if isinstance(guide, WhitenedGuide):
        guide.antithetic = True
    try:
        yield
    finally:
        if isinstance(guide, WhitenedGuide):
            guide.antithetic = False


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
