"""From a NumPyro model to a posterior, with no settings to tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer import Predictive

from bayesdiv.fitting import (
    BaseFitResult,
    check_fit_arguments,
    find_starts,
    first_schedule,
    name_of,
    plan_stages,
)
from bayesdiv.numpyro._objective import DivergenceELBO, objective
from bayesdiv.numpyro._optimise import Problem, Run
from bayesdiv.numpyro._target import NumPyroTarget
from bayesdiv.numpyro._whitened import WhitenedGuide, mirrored_particles
from bayesdiv.objectives import is_two_sample

# Particles that the verdict evaluates at once.
_BATCH = 250


def fit(
    model: Callable,
    *args: Any,
    guide: Any = "full_rank",
    objective: Any = "reverse_kl",
    num_particles: int | None = None,
    num_restarts: int = 2,
    max_steps: int = 10_000,
    seed: Any = 0,
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

    Everything is computed in float64, floating-point arguments included, whatever
    ``jax_enable_x64`` says, unless the model cannot. Results are NumPy arrays.

    Parameters
    ----------
    model, args, model_kwargs
        A NumPyro model on its full data, with continuous latent sites.
    guide
        "mean_field", "full_rank", "flow", or a guide of your own (no whitening and one run then).
    objective
        A name or a divergence, as in :func:`bayesdiv.numpyro.objective`; ``objective_arguments``
        are its further arguments, such as ``order=0.5``.
    num_particles
        A step's samples. None: 16 for reverse KL, 64 for others.
    num_restarts
        Independent fits; they are the chains of :meth:`FitResult.to_arviz`.
    max_steps
        Upper limit on the steps of each restart and stage.
    seed
        A number or a JAX key.
    checkpoint
        A file that is rewritten after every window; :func:`FitResult.load` and ``resume()`` go on
        from it to the same numbers.

    Raises
    ------
    ValueError
        Discrete latent sites or subsampled plates with a built-in guide, an unknown guide or
        objective, or no starting point with a finite density.
    TypeError
        ``guide`` is neither a name nor callable.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from bayesdiv.numpyro import fit
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("data", len(y)):
    ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> result = fit(model, jnp.array([1.0, 2.0, 3.0]), progress_bar=False)
    >>> result.verdict.converged
    True
    """
    check_fit_arguments(guide, num_restarts=num_restarts, max_steps=max_steps)
    kwargs = dict(model_kwargs or {})
    number = _as_number(seed)
    gradient = "path" if isinstance(guide, str) else "auto"
    stages = _stages(objective, num_particles, objective_arguments, gradient)
    double, args, kwargs = _precision(model, args, kwargs)
    with _x64(double=double):
        result = FitResult(
            model=model,
            args=args,
            kwargs=kwargs,
            guide_name=guide if isinstance(guide, str) else _guide_name(guide),
            stages=stages,
            max_steps=max_steps,
            guide=guide,
            double=double,
            seed=number,
        )
        result._prepare(num_restarts)
        result.checkpoint = None if checkpoint is None else Path(checkpoint)
        result._advance(progress_bar=progress_bar)
    return result


@dataclass(kw_only=True)
class FitResult(BaseFitResult):
    """A fitted posterior: a guide, the parameters of independent restarts, and a verdict.

    Pickles whenever the model does. ``print(result)`` gives the verdict.
    """

    guide: Any
    double: bool
    seed: int

    @property
    def guides(self) -> list[Any]:
        """The guide, once for each restart."""
        return [self.guide for _ in self.runs]

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the restart with the largest evidence bound, as SVI would return them."""
        return self.runs[0].params

    @property
    def all_params(self) -> list[dict[str, Any]]:
        """Parameters of every restart, best first."""
        return [run.params for run in self.runs]

    def to_arviz(self, *, num_draws: int = 1000, resample: bool = False, **options: Any) -> Any:
        """Draws as an ArviZ object, restarts as chains; :func:`bayesdiv.diagnostics.to_arviz`."""
        from bayesdiv.diagnostics import to_arviz

        options = {"seed": 0, **options}
        with self._scope():
            options.setdefault("rng_key", jax.random.PRNGKey(options["seed"]))
            return to_arviz(
                self.guide,
                self.model,
                *self.args,
                params=self.all_params,
                model_kwargs=self.kwargs,
                num_draws=num_draws,
                resample=resample,
                objective=name_of(self.stages[-1][0]),
                losses=self.losses,
                **options,
            )

    def predictive(
        self, *args: Any, num_samples: int = 1000, seed: Any = 0, **kwargs: Any
    ) -> dict[str, np.ndarray]:
        """Posterior-predictive draws of the model at ``args`` (default: those of the fit).

        Pass None for observed arguments, as for :class:`numpyro.infer.Predictive`.
        """
        with self._scope():
            args = _as_double(args, double=self.double) if args else self.args
            guide_key, model_key = jax.random.split(jax.random.PRNGKey(_as_number(seed)))
            draws = Predictive(self.guide, params=self.params, num_samples=num_samples)(
                guide_key, *self.args, **self.kwargs
            )
            latent = self._latent_names()
            kept = {name: value for name, value in draws.items() if name in latent}
            kwargs = {**self.kwargs, **_as_double(kwargs, double=self.double)}
            predict = Predictive(self.model, kept, params=self.params, num_samples=num_samples)
            return jax.device_get(predict(model_key, *args, **kwargs))

    @contextmanager
    def _scope(self) -> Iterator[None]:
        with _x64(double=self.double):
            yield

    def _latent_names(self) -> set[str]:
        fitted = handlers.substitute(self.guide, data=self.params)
        seeded = handlers.seed(fitted, jax.random.PRNGKey(0))
        trace = handlers.trace(seeded).get_trace(*self.args, **self.kwargs)
        return {
            name
            for name, site in trace.items()
            if site["type"] == "sample" and not site["infer"].get("is_auxiliary")
        }

    def _prepare(self, num_restarts: int) -> None:
        """Starting points and runs that have taken no step yet."""
        keys = jax.random.split(jax.random.PRNGKey(self.seed), num_restarts + 1)
        schedules = [first_schedule(self.guide, self.max_steps) for _ in range(num_restarts)]
        if not isinstance(self.guide, str):
            self.runs = [Run(schedules[0], rng_key=np.asarray(keys[1]))]
            return
        self.guide = WhitenedGuide(self.model, self.guide)
        target = NumPyroTarget(self.guide, keys[0], self.args, self.kwargs)
        rng = np.random.default_rng(self.seed)
        first = target.initial_point()
        points = [first, first + rng.uniform(-0.5, 0.5, target.dim)]
        self.starts = find_starts(target, points, rng)
        self.guide.start = self.starts[0]
        self.runs = [
            Run(schedule, rng_key=np.asarray(key), params=self.guide.initial_parameters(rng))
            for schedule, key in zip(schedules, keys[1:], strict=True)
        ]

    def _problem(self, stage: int) -> Problem:
        divergence, options = self.stages[stage]
        whitened = isinstance(self.guide, WhitenedGuide)
        if whitened and not is_two_sample(divergence):
            options = {"vectorize_particles": mirrored_particles(self.guide), **options}
        return Problem(
            self.model,
            self.guide,
            objective(divergence, **options),
            self.args,
            self.kwargs,
            is_whitened=whitened and self.guide.is_whitened,
        )

    def _log_weights(self, run: Run, num_particles: int) -> np.ndarray:
        def in_batches(function: Callable, keys: jax.Array) -> Any:
            return jax.lax.map(function, keys, batch_size=_BATCH)

        if self._evaluate is None:
            probe = objective("reverse_kl", vectorize_particles=in_batches)
            assert isinstance(probe, DivergenceELBO)

            def evaluate(key: jax.Array, params: dict[str, Any]) -> jax.Array:
                result = probe.estimate(
                    key,
                    params,
                    self.model,
                    self.guide,
                    *self.args,
                    num_particles=num_particles,
                    **self.kwargs,
                )
                return result.log_weight.reshape(num_particles, -1).sum(-1)

            self._evaluate = jax.jit(evaluate)
        key = jax.random.fold_in(jnp.asarray(run.rng_key), len(run.losses))
        return np.asarray(self._evaluate(key, run.params), dtype=np.float64)

    def _agreement(self) -> float:
        # The starting approximation's unit: a mean-field guide's own can be far too small.
        if len(self.runs) < 2 or not isinstance(self.guide, WhitenedGuide):
            return math.nan
        unit = np.linalg.norm(self.starts[0].scale_tril, axis=-1)
        means = [np.asarray(self.guide.loc_and_scale(params)[0]) for params in self.all_params]
        return max(float(np.max(np.abs(mean - means[0]) / unit)) for mean in means[1:])

    _evaluate: Any = field(default=None, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled does not pickle.
        return {name: value for name, value in self.__dict__.items() if name != "_evaluate"}


def _stages(
    divergence: Any, num_particles: int | None, arguments: dict[str, Any], gradient: str
) -> list[Any]:
    return plan_stages(objective, divergence, num_particles, arguments, gradient=gradient)


def _guide_name(guide: Any) -> str:
    return getattr(guide, "__name__", type(guide).__name__)


def _as_number(seed: Any) -> int:
    """A seed for NumPy and JAX alike, whether a number or any kind of key came."""
    if isinstance(seed, int | np.integer):
        return int(seed)
    return int(jax.random.bits(seed, dtype=jnp.uint32))


@contextmanager
def _x64(*, double: bool) -> Iterator[None]:
    if not double:
        yield
        return
    with jax.enable_x64(new_val=True):
        yield


def _as_double(value: Any, *, double: bool) -> Any:
    """Floating-point arrays in ``value`` as float64, NumPy's and JAX's as what they are."""

    def widen(leaf: Any) -> Any:
        is_array = isinstance(leaf, np.ndarray | jax.Array)
        if is_array and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.astype(np.float64)
        return leaf

    return jax.tree.map(widen, value) if double else value


def _precision(
    model: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[bool, tuple, dict[str, Any]]:
    """Whether the model runs in float64, and its arguments in the precision that it runs in."""
    with jax.enable_x64(new_val=True):
        wide_args, wide_kwargs = _as_double(args, double=True), _as_double(kwargs, double=True)
        try:
            seeded = handlers.block(handlers.seed(model, jax.random.PRNGKey(0)))
            seeded(*wide_args, **wide_kwargs)
        except TypeError as error:
            # JAX's message where a loop's carry is tied to float32.
            if "float32" not in str(error) or "float64" not in str(error):
                raise
            return False, args, kwargs
    return True, wide_args, wide_kwargs
