r"""A mixture of experts fitted to data in shards: EM where each shard lies, then one reduction.

Every shard sends its fitted parameters and a share of the support sample of predictors, once. Rows
stay where they are. Shards are worked on by Dask (a cluster on this machine by default, or a
scheduler's address), by any executor, or in this process by one vmapped EM.

Chamroukhi and Pham (2023), "Distributed learning of mixtures of experts".
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference import _shard_backends as backends
from bayesdiv.inference._pooled_experts import check_support
from bayesdiv.inference._shard_backends import ONE_THREAD
from bayesdiv.inference._shard_tasks import LocalFit, ShardDescription, ShardTask
from bayesdiv.inference.moe_em import EMSettings
from bayesdiv.inference.moe_reduction import Reduction, TransportReduction

__all__ = ["ONE_THREAD", "DistributedFit", "LocalFit", "density_weights", "fit_distributed"]


class DistributedFit(NamedTuple):
    """What `fit_distributed` found.

    Parameters
    ----------
    parameters
        The reduced model, for features (1, predictors), in the units of the data.
    reduction
        How it came about: objectives, plan, costs of the shards, flags; see `Reduction`.
    local_fits
        Of the shards, refitted ones included.
    weights
        λ, ``(shards,)``, or by row of the support.
    support
        ``(rows, dim)``.
    refitted
        Indices of the shards that were fitted again from the first reduction.
    seconds
        Wall clock: "local_max", the longest local fit; "local_sum"; "local_cpu_max" and
        "reduction_cpu", processor time of the longest and of the reduction; "local_compile_max";
        "reduction", compilation included; "total", workers' start included.
    """

    parameters: MixtureOfExpertsParameters
    reduction: Reduction
    local_fits: list[LocalFit]
    weights: np.ndarray
    support: np.ndarray
    refitted: tuple[int, ...]
    seconds: dict[str, float]

    @property
    def models(self) -> list[MixtureOfExpertsParameters]:
        """The shards' own models."""
        return [fit.parameters for fit in self.local_fits]

    def predict(self, predictors: Any) -> jax.Array:
        """E[y | x], ``(n,)``, for ``predictors`` ``(n, dim)``."""
        return formulas.mean(self._features(predictors), self.parameters, experts=self._experts)

    def log_prob(self, predictors: Any, outcome: Any) -> jax.Array:
        """log p(y | x), ``(n,)``."""
        features = self._features(predictors)
        return formulas.log_prob(
            jnp.asarray(outcome, features.dtype), features, self.parameters, experts=self._experts
        )

    @property
    def _experts(self) -> str:
        return "bernoulli" if self.parameters.scale is None else "normal"

    def _features(self, predictors: Any) -> jax.Array:
        predictors = jnp.asarray(predictors, self.parameters.gate.dtype)
        return jnp.concatenate([jnp.ones_like(predictors[..., :1]), predictors], axis=-1)


def fit_distributed(
    key: Any,
    shards: Sequence[Any],
    num_experts: int,
    *,
    num_local_experts: int | Sequence[int] | None = None,
    reduction: TransportReduction | None = None,
    support: Any = None,
    support_size: int = 2000,
    refit: bool = False,
    weighting: str = "rows",
    backend: Any = "dask",
    scheduler: str | None = None,
    num_workers: int | None = None,
    **settings: Any,
) -> DistributedFit:
    """Fit each shard by EM where it lies, then reduce the shards' models to one.

    Parameters
    ----------
    key
        Every shard's random starts, and the support, come from it and the shard's index: neither
        workers nor their number change the answer.
    shards
        Pairs (predictors ``(n, dim)``, outcome ``(n,)``), or functions without arguments that
        return one and are called where the shard is worked on, so that rows need not pass here.
    num_experts
        K of the reduced model.
    num_local_experts
        Of the shards' models, one number or one for each; K by default.
    reduction
        Cost, plan and the rest; forward KL by default. Its ``experts`` says which family is fitted.
    support
        Predictors ``(rows, dim)`` on which experts are compared; by default ``support_size`` rows
        drawn from the shards in proportion to their sizes.
    support_size
        See there. Take 100 (K − 1) (dim + 1) / K or more for the gate.
    refit
        Fit flagged shards again, from the reduction of the others, then reduce once more.
    weighting
        "rows", λ in proportion to the shards' sizes, or "density": at a predictor x in proportion
        to λ_m N(x; mean, covariance of the shard's predictors), for shards that cover different
        regions, where a gate says nothing far from its own data.
    backend
        "dask", "vmap", a Dask client or a ``concurrent.futures.Executor``.
    scheduler
        Address of a Dask scheduler, such as "tcp://10.0.0.1:8786"; a cluster of processes with one
        thread each is started on this machine by default.
    num_workers
        Of the cluster on this machine; as many as cores or shards by default.
    settings
        Of the local fits, those of `bayesdiv.inference.moe_em.EMSettings`.

    Returns
    -------
    DistributedFit

    Raises
    ------
    TypeError, ValueError
        A shard with fewer rows than an expert has coefficients, or whose arrays do not fit or hold
        NaN, named by its index; shards that disagree on the number of predictors; an unknown
        setting, backend or weighting.
    RuntimeError
        Rows that are lost with their workers again and again.

    Warns
    -----
    UserWarning
        As `fit_experts`, by shard.

    Notes
    -----
    A script that starts Dask's processes needs ``if __name__ == "__main__":``.
    """
    begin = time.perf_counter()
    reduction = TransportReduction() if reduction is None else reduction
    if weighting not in ("rows", "density"):
        raise ValueError(f"weighting must be 'rows' or 'density', got {weighting!r}.")
    if not len(shards):
        raise ValueError("shards must hold at least one pair (predictors, outcome), got none.")
    if isinstance(support_size, bool) or not isinstance(support_size, int) or support_size < 1:
        raise ValueError(f"support_size must be a positive whole number, got {support_size!r}.")
    if reduction.gate_target == "posterior":
        raise ValueError(
            "gate_target='posterior' needs outcomes, which do not travel; use gate_target='plan', "
            "or reduce fit.models with TransportReduction.run(..., outcome=...)."
        )
    sizes = _local_sizes(num_local_experts, num_experts, len(shards))
    for size in {*sizes, num_experts}:
        EMSettings(size, reduction.experts, **settings)
    shard_key, support_key, start_key = jax.random.split(key, 3)
    opened = backends.open_backend(backend, shards, scheduler=scheduler, num_workers=num_workers)
    try:
        descriptions = backends.describe(opened, sizes, reduction.experts)
        _check_agreement(descriptions)
        tasks = _tasks(shard_key, sizes, reduction.experts, settings)
        fits = [fit for _, fit in sorted(backends.fit(opened, tasks).items())]
        rows = np.array([description.num_rows for description in descriptions], float)
        if support is None:
            counts = _support_counts(rows, support_size)
            seed = int(jax.random.randint(support_key, (), 0, 2**31 - 1))
            support = backends.sample(opened, counts, seed)
        support = check_support(support)
        weights = rows / rows.sum()
        if weighting == "density":
            weights = density_weights(
                support,
                np.stack([description.mean for description in descriptions]),
                np.stack([description.covariance for description in descriptions]),
                weights,
            )
        reduced, spent = _reduced(reduction, start_key, fits, support, weights, num_experts)
        refitted: tuple[int, ...] = ()
        if refit and reduced.distances.flags.any():
            refitted = tuple(np.flatnonzero(reduced.distances.flags).tolist())
            again = _again(tasks, refitted, reduced.parameters)
            for index, fit in backends.fit(opened, again).items():
                fits[index] = _added(fits[index], fit)
            reduced, more = _reduced(reduction, start_key, fits, support, weights, num_experts)
            spent = {name: spent[name] + more[name] for name in spent}
    finally:
        opened.close()
    return DistributedFit(
        reduced.parameters,
        reduced,
        fits,
        weights,
        support,
        refitted,
        {
            "local_max": max(fit.seconds for fit in fits),
            "local_sum": sum(fit.seconds for fit in fits),
            "local_cpu_max": max(fit.cpu_seconds for fit in fits),
            "local_compile_max": max(fit.compile_seconds for fit in fits),
            **spent,
            "total": time.perf_counter() - begin,
        },
    )


def density_weights(
    support: Any, means: np.ndarray, covariances: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """λ_m N(x; mean_m, covariance_m), normalised over m: ``(rows, models)``.

    ``means`` ``(models, dim)``, ``covariances`` ``(models, dim, dim)``; a ridge of 1e-3 times the
    mean variance over models keeps constant predictors from deciding alone.
    """
    support = check_support(support)
    typical = np.mean([np.diag(covariance) for covariance in covariances], axis=0)
    ridge = np.diag(1e-3 * np.where(typical > 0.0, typical, 1.0))
    scores = []
    for mean, covariance, weight in zip(means, covariances, weights, strict=True):
        factor = np.linalg.cholesky(covariance + ridge)
        whitened = np.linalg.solve(factor, (support - mean).T)
        log_density = -0.5 * (whitened**2).sum(axis=0) - np.log(np.diag(factor)).sum()
        scores.append(np.log(weight) + log_density)
    columns = np.stack(scores, axis=1)
    shares = np.exp(columns - columns.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _reduced(
    reduction: TransportReduction,
    key: Any,
    fits: Sequence[LocalFit],
    support: np.ndarray,
    weights: np.ndarray,
    num_experts: int,
) -> tuple[Reduction, dict[str, float]]:
    """The reduction of ``fits``, and its time."""
    start, cpu = time.perf_counter(), time.process_time()
    models = [fit.parameters for fit in fits]
    found = reduction.run(key, models, support, weights=weights, num_experts=num_experts)
    return found, {
        "reduction": time.perf_counter() - start,
        "reduction_cpu": time.process_time() - cpu,
    }


def _local_sizes(
    num_local_experts: int | Sequence[int] | None, num_experts: int, num_shards: int
) -> list[int]:
    if num_local_experts is None:
        return [num_experts] * num_shards
    if isinstance(num_local_experts, int):
        return [num_local_experts] * num_shards
    sizes = [int(size) for size in num_local_experts]
    if len(sizes) != num_shards:
        raise ValueError(
            f"num_local_experts must be one number, or one for each of the {num_shards} shards, "
            f"got {len(sizes)}."
        )
    return sizes


def _check_agreement(descriptions: Sequence[ShardDescription]) -> None:
    dims = np.array([description.dim for description in descriptions])
    usual = np.bincount(dims).argmax()
    wrong = np.flatnonzero(dims != usual)
    if len(wrong):
        raise ValueError(
            f"shards must have one number of predictors; most have {usual}, shards "
            f"{wrong.tolist()} have {dims[wrong].tolist()}."
        )
    messages = [message for description in descriptions for message in description.warnings]
    if messages:
        more = f" (and {len(messages) - 1} more such warnings)" if len(messages) > 1 else ""
        warnings.warn(messages[0] + more, UserWarning, stacklevel=3)


def _tasks(key: Any, sizes: Sequence[int], experts: str, settings: dict) -> list[ShardTask]:
    options = tuple(sorted(settings.items()))
    return [
        ShardTask(
            index,
            np.asarray(jax.random.key_data(jax.random.fold_in(key, index))),
            size,
            experts,
            options,
            jnp.result_type(float) == jnp.float64,
        )
        for index, size in enumerate(sizes)
    ]


def _again(
    tasks: Sequence[ShardTask], indices: Sequence[int], start: MixtureOfExpertsParameters
) -> list[ShardTask]:
    plain = jax.tree.map(np.asarray, start)
    return [tasks[index]._replace(start=plain, num_experts=len(plain.gate)) for index in indices]


def _added(first: LocalFit, second: LocalFit) -> LocalFit:
    """``second``, and the time of both."""
    return second._replace(
        seconds=first.seconds + second.seconds,
        cpu_seconds=first.cpu_seconds + second.cpu_seconds,
        compile_seconds=first.compile_seconds + second.compile_seconds,
    )


def _support_counts(rows: np.ndarray, size: int) -> np.ndarray:
    """``size`` rows, or all there are, in proportion to the shards' own; largest remainders."""
    size = min(size, int(rows.sum()))
    exact = size * rows / rows.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    return counts
