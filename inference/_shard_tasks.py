"""What runs where a shard lies: its description, a sample of its predictors, and its fit.

Everything here is picklable, and random numbers come from the shard's index: a task that is run
again, on whatever worker, gives the same answer.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._moe_em_checks import check_data
from bayesdiv.inference.moe_em import MixtureOfExpertsFit, fit_experts

__all__ = [
    "LocalFit",
    "ShardDescription",
    "ShardTask",
    "describe_shard",
    "fit_shard",
    "local_fit",
    "sample_shard",
    "shard_rows",
]


class ShardTask(NamedTuple):
    """What every worker is told of the fit: settings, and the key's data, which pickles."""

    shard_index: int
    key_data: np.ndarray
    num_experts: int
    experts: str
    settings: tuple[tuple[str, Any], ...]
    use_x64: bool
    start: MixtureOfExpertsParameters | None = None


class ShardDescription(NamedTuple):
    """Rows, predictors, their mean ``(dim,)`` and covariance ``(dim, dim)``; what was warned of."""

    num_rows: int
    dim: int
    mean: np.ndarray
    covariance: np.ndarray
    warnings: tuple[str, ...]


class LocalFit(NamedTuple):
    """What a shard sends back.

    Parameters
    ----------
    parameters
        NumPy arrays in the units of the data.
    log_likelihood
        In nats an observation, of its own rows.
    num_iterations, converged, num_at_floor
        Of EM, and experts whose variance is at its floor.
    seconds, cpu_seconds, compile_seconds
        Wall clock and processor time of the fit without compilation, and wall clock of that.
    """

    parameters: MixtureOfExpertsParameters
    log_likelihood: float
    num_iterations: int
    converged: bool
    num_at_floor: int
    seconds: float
    cpu_seconds: float
    compile_seconds: float


def shard_rows(shard: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictors and outcome of a shard, which is a pair, or a function that returns one."""
    rows = shard() if callable(shard) else shard
    if not isinstance(rows, tuple | list) or len(rows) != 2:
        raise TypeError(
            f"shard {index} must be a pair (predictors, outcome), or a function without arguments "
            f"that returns one, got {type(rows).__name__}."
        )
    return np.asarray(rows[0]), np.asarray(rows[1])


def describe_shard(shard: Any, index: int, num_experts: int, experts: str) -> ShardDescription:
    """Check a shard and say what it is; see `fit_distributed` for what it raises."""
    predictors, outcome = shard_rows(shard, index)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_data(
            predictors,
            outcome,
            num_experts=num_experts,
            experts=experts,
            name=f"shard {index}: ",
        )
    rows, dim = predictors.shape
    mean = predictors.mean(axis=0)
    centred = predictors - mean
    return ShardDescription(
        rows, dim, mean, centred.T @ centred / rows, tuple(str(entry.message) for entry in caught)
    )


def sample_shard(shard: Any, index: int, num_rows: int, seed: int) -> np.ndarray:
    """``num_rows`` rows of the predictors, drawn without replacement."""
    predictors, _ = shard_rows(shard, index)
    chosen = np.random.default_rng([seed, index]).choice(len(predictors), num_rows, replace=False)
    return np.asarray(predictors[np.sort(chosen)], float)


def fit_shard(shard: Any, task: ShardTask) -> LocalFit:
    """EM on one shard, from random starts or from ``task.start``."""
    predictors, outcome = shard_rows(shard, task.shard_index)
    with jax.enable_x64(task.use_x64), warnings.catch_warnings():
        # Described, and warned of, already.
        warnings.simplefilter("ignore", UserWarning)
        dtype = jnp.result_type(float)
        begin = time.perf_counter()
        compiled = _compiled(
            predictors.shape,
            task.num_experts,
            task.experts,
            task.settings,
            task.start is None,
            task.use_x64,
        )
        arguments = [
            jax.random.wrap_key_data(jnp.asarray(task.key_data)),
            jnp.asarray(predictors, dtype),
            jnp.asarray(outcome, dtype),
        ]
        if task.start is not None:
            arguments.append(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), task.start))
        jax.block_until_ready(arguments)
        ready, cpu = time.perf_counter(), time.process_time()
        fit = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - ready
        return local_fit(fit, len(outcome), seconds, time.process_time() - cpu, ready - begin)


def local_fit(
    fit: MixtureOfExpertsFit,
    num_rows: int,
    seconds: float,
    cpu_seconds: float,
    compile_seconds: float,
) -> LocalFit:
    """``fit`` as what a shard sends back."""
    return LocalFit(
        jax.tree.map(np.asarray, fit.parameters),
        float(fit.log_likelihood) / num_rows,
        int(fit.num_iterations),
        bool(fit.converged),
        int(np.sum(fit.at_floor)),
        seconds,
        cpu_seconds,
        compile_seconds,
    )


@lru_cache(maxsize=64)
def _compiled(
    shape: tuple[int, int],
    num_experts: int,
    experts: str,
    settings: tuple[tuple[str, Any], ...],
    is_random_start: bool,  # noqa: FBT001 - part of a cache's key
    use_x64: bool,  # noqa: FBT001 - part of a cache's key
) -> Callable[..., MixtureOfExpertsFit]:
    """`fit_experts` compiled for shards of one shape, so that time is measured without it."""
    dtype = jnp.float64 if use_x64 else jnp.float32
    rows, dim = shape

    def fit(key: Any, predictors: Any, outcome: Any, start: Any = None) -> MixtureOfExpertsFit:
        return fit_experts(
            key, predictors, outcome, num_experts, experts=experts, start=start, **dict(settings)
        )

    arguments = [
        jax.random.key(0),
        jax.ShapeDtypeStruct((rows, dim), dtype),
        jax.ShapeDtypeStruct((rows,), dtype),
    ]
    if not is_random_start:
        row = jax.ShapeDtypeStruct((num_experts, dim + 1), dtype)
        scale = jax.ShapeDtypeStruct((num_experts,), dtype) if experts == "normal" else None
        arguments.append(MixtureOfExpertsParameters(row, row, scale))
    return jax.jit(fit).lower(*arguments).compile()
