"""Where shards are worked on: Dask's workers, any executor, or one vmapped EM in this process.

A backend has `describe`, `sample` and `fit`, each for some shards, in the order of their indices;
and `close`. Only what the tasks return travels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._shard_tasks import (
    LocalFit,
    ShardDescription,
    ShardTask,
    describe_shard,
    fit_shard,
    local_fit,
    sample_shard,
    shard_rows,
)
from bayesdiv.inference.moe_em import fit_experts

__all__ = ["ONE_THREAD", "ShardBackend", "describe", "fit", "open_backend", "sample"]

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""Environment of a worker with one thread; many with more would start cores² threads."""

# How often a shard that was lost with its worker is sent again.
_MAX_SENDINGS = 4


class ShardBackend(Protocol):
    """See the module."""

    def run(self, function: Callable[..., Any], arguments: Mapping[int, tuple]) -> dict[int, Any]:
        """``function(shard, *arguments)`` where each shard lies, by the shard's index."""

    def close(self) -> None:
        """Let go of what this backend started itself."""


def open_backend(
    backend: Any, shards: Sequence[Any], *, scheduler: str | None, num_workers: int | None
) -> ShardBackend:
    """The backend called ``backend``; "dask", "vmap", a Dask client, or an executor."""
    if scheduler is not None and backend != "dask":
        raise ValueError(
            f"scheduler={scheduler!r} goes with backend='dask' alone, got backend={backend!r}."
        )
    if backend == "vmap":
        return InProcess(shards)
    if backend == "dask" or _is_dask_client(backend):
        return OnDask(shards, backend, scheduler=scheduler, num_workers=num_workers)
    if isinstance(backend, Executor):
        return OnExecutor(shards, backend)
    raise ValueError(
        "backend must be 'dask', 'vmap', a Dask client or a concurrent.futures.Executor, got "
        f"{backend!r}."
    )


def _is_dask_client(backend: Any) -> bool:
    return any(cls.__module__.startswith("distributed.") for cls in type(backend).__mro__)


class OnExecutor:
    """Tasks of ``concurrent.futures``; the rows go along with every task."""

    def __init__(self, shards: Sequence[Any], executor: Executor) -> None:
        self.shards, self.executor = shards, executor

    def run(self, function: Callable[..., Any], arguments: Mapping[int, tuple]) -> dict[int, Any]:
        futures = {
            index: self.executor.submit(function, self.shards[index], *rest)
            for index, rest in arguments.items()
        }
        return {index: future.result() for index, future in futures.items()}

    def close(self) -> None:
        """The executor is the caller's."""


class OnDask:
    """Tasks on Dask's workers; every shard is sent to one of them once, and stays.

    Rows that die with their worker are sent again, and the task with them.
    """

    def __init__(
        self,
        shards: Sequence[Any],
        backend: Any,
        *,
        scheduler: str | None,
        num_workers: int | None,
    ) -> None:
        from distributed import Client, LocalCluster

        self.shards = shards
        self.remote: dict[int, Any] = {}
        self.cluster, self.is_own = None, not _is_dask_client(backend)
        if not self.is_own:
            self.client = backend
        elif scheduler is not None:
            self.client = Client(scheduler)
        else:
            workers = num_workers or min(len(shards), os.cpu_count() or 1)
            self.cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                env=ONE_THREAD,
            )
            self.client = Client(self.cluster)

    def run(self, function: Callable[..., Any], arguments: Mapping[int, tuple]) -> dict[int, Any]:
        from concurrent.futures import CancelledError

        results: dict[int, Any] = {}
        waiting = dict(arguments)
        for _ in range(_MAX_SENDINGS):
            futures = {
                index: self.client.submit(
                    function, self._sent(index), *rest, pure=False, key=_name(function, index)
                )
                for index, rest in waiting.items()
            }
            for index, future in futures.items():
                try:
                    results[index] = future.result()
                except CancelledError:
                    # Its rows were on a worker that is gone.
                    self.remote.pop(index, None)
            waiting = {i: rest for i, rest in waiting.items() if i not in results}
            if not waiting:
                return results
        raise RuntimeError(
            f"shards {sorted(waiting)} were lost with their workers {_MAX_SENDINGS} times; look at "
            "the workers' logs and memory."
        )

    def _sent(self, index: int) -> Any:
        """The shard on its worker; functions that load rows are small, and go as they are."""
        shard = self.shards[index]
        if callable(shard):
            return shard
        if index not in self.remote:
            self.remote[index] = self.client.scatter(shard, hash=False)
        return self.remote[index]

    def close(self) -> None:
        self.remote.clear()
        if self.is_own:
            self.client.close()
        if self.cluster is not None:
            self.cluster.close()


def _name(function: Callable[..., Any], index: int) -> str:
    """A key of its own for every submission, that says what it is in Dask's displays."""
    return f"{function.__name__}-{index}-{os.urandom(8).hex()}"


class InProcess:
    """Everything here: shards of one number of experts are one vmapped EM, padded by weight 0."""

    def __init__(self, shards: Sequence[Any]) -> None:
        self.shards = shards

    def close(self) -> None:
        """Nothing was started."""

    def run(self, function: Callable[..., Any], arguments: Mapping[int, tuple]) -> dict[int, Any]:
        if function is not fit_shard:
            return {index: function(self.shards[index], *rest) for index, rest in arguments.items()}
        groups: dict[tuple, list[int]] = {}
        for index, (task,) in arguments.items():
            groups.setdefault((task.num_experts, task.start is None), []).append(index)
        found: dict[int, Any] = {}
        for indices in groups.values():
            found |= self._fitted({index: arguments[index][0] for index in indices})
        return found

    def _fitted(self, tasks: Mapping[int, ShardTask]) -> dict[int, LocalFit]:
        first = next(iter(tasks.values()))
        rows = [shard_rows(self.shards[index], index) for index in tasks]
        dtype = jnp.result_type(float)
        longest = max(len(outcome) for _, outcome in rows)
        dim = rows[0][0].shape[1]
        predictors = np.zeros((len(rows), longest, dim))
        outcome, weights = np.zeros((2, len(rows), longest))
        for place, (own_predictors, own_outcome) in enumerate(rows):
            count = len(own_outcome)
            predictors[place, :count] = own_predictors
            outcome[place, :count], weights[place, :count] = own_outcome, 1.0
        keys = jax.vmap(jax.random.wrap_key_data)(
            jnp.asarray(np.stack([task.key_data for task in tasks.values()]))
        )
        arrays = [keys, *(jnp.asarray(part, dtype) for part in (predictors, outcome, weights))]
        if first.start is not None:
            starts = [task.start for task in tasks.values()]
            arrays.append(
                jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), dtype), *starts)
            )

        begin = time.perf_counter()
        compiled = _compiled(
            predictors.shape,
            first.num_experts,
            first.experts,
            first.settings,
            first.start is None,
            jnp.dtype(dtype).name,
        )
        ready, cpu = time.perf_counter(), time.process_time()
        fits = jax.block_until_ready(compiled(*arrays))
        # All run to the end together: each has its share of the time.
        seconds = (time.perf_counter() - ready) / len(rows)
        cpu_seconds = (time.process_time() - cpu) / len(rows)
        return {
            index: local_fit(
                jax.tree.map(lambda leaf, at=place: leaf[at], fits),
                len(rows[place][1]),
                seconds,
                cpu_seconds,
                (ready - begin) / len(rows),
            )
            for place, index in enumerate(tasks)
        }


@lru_cache(maxsize=16)
def _compiled(
    shape: tuple[int, int, int],
    num_experts: int,
    experts: str,
    settings: tuple[tuple[str, Any], ...],
    is_random_start: bool,  # noqa: FBT001 - part of a cache's key
    dtype: str,
) -> Callable[..., Any]:
    """EM of ``(shards, rows, dim)`` at once, compiled."""

    def fit(key: Any, predictors: Any, outcome: Any, weights: Any, start: Any = None) -> Any:
        return fit_experts(
            key,
            predictors,
            outcome,
            num_experts,
            experts=experts,
            weights=weights,
            start=start,
            **dict(settings),
        )

    shards, _, dim = shape
    keys = jax.random.split(jax.random.key(0), shards)
    arrays: list[Any] = [
        jax.ShapeDtypeStruct(part, dtype) for part in (shape, shape[:2], shape[:2])
    ]
    if not is_random_start:
        matrix = jax.ShapeDtypeStruct((shards, num_experts, dim + 1), dtype)
        scale = jax.ShapeDtypeStruct((shards, num_experts), dtype) if experts == "normal" else None
        arrays.append(MixtureOfExpertsParameters(matrix, matrix, scale))
    return jax.jit(jax.vmap(fit)).lower(keys, *arrays).compile()


def describe(backend: ShardBackend, sizes: Sequence[int], experts: str) -> list[ShardDescription]:
    """Every shard's description."""
    tasks = {index: (index, size, experts) for index, size in enumerate(sizes)}
    return _in_order(backend.run(describe_shard, tasks))


def sample(backend: ShardBackend, counts: Iterable[int], seed: int) -> np.ndarray:
    """The support: ``counts`` rows of the shards, ``(rows, dim)``."""
    tasks = {index: (index, count, seed) for index, count in enumerate(counts) if count}
    return np.concatenate(_in_order(backend.run(sample_shard, tasks)))


def fit(backend: ShardBackend, tasks: Sequence[ShardTask]) -> dict[int, LocalFit]:
    """The fits that ``tasks`` ask for, by the shard's index."""
    return backend.run(fit_shard, {task.shard_index: (task,) for task in tasks})


def _in_order(found: Mapping[int, Any]) -> list[Any]:
    return [found[index] for index in sorted(found)]
