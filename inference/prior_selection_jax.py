"""Choose a prior by what it predicts, in JAX: a pure ``init``/``step`` pair, and a loop over it."""

from __future__ import annotations

import io
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayesdiv._loop import EarlyStopping, LoopProgress, check_step_count, write_atomically
from bayesdiv.divergences import get_divergence
from bayesdiv.inference.prior_selection import (
    PriorPredictiveObjective,
    Sampler,
    SelectedPrior,
    as_objective,
    check_parameters,
    learning_rates,
)

__all__ = [
    "PriorSelection",
    "PriorSelectionInfo",
    "PriorSelectionState",
    "prior_predictive_distance",
    "select_prior",
]


class PriorSelectionState(NamedTuple):
    """What the next step needs; ``adversary`` is None where the divergence learns nothing."""

    parameters: dict[str, jax.Array]
    optimizer: Any
    adversary: Any
    step: jax.Array
    rng: jax.Array


class PriorSelectionInfo(NamedTuple):
    """The divergence of a step's batch to its predictions, and the norm of its gradient."""

    loss: jax.Array
    gradient_norm: jax.Array


@dataclass(frozen=True, eq=False)
class PriorSelection:
    """Adam on hyper-parameters of a prior, down D(data‖prior predictive).

    Attributes
    ----------
    sample
        The prior predictive; see `bayesdiv.inference.prior_selection.Sampler`. It is traced.
    objective
        A `PriorPredictiveObjective`, or the name or object of a divergence.
    learning_rate
        A number, or numbers by name or pattern: ``{"*.mean": 1e-3, "*.log_variance": 1e-2}``.
    num_inner_only : int
        First steps, in which only the adversary learns; 0 where there is none.
    schedule
        Multiplies the learning rates: a function of the number of moves made, which is traced.

    References
    ----------
    Tran et al. (2021), Model selection for Bayesian autoencoders, algorithm 1.
    """

    sample: Sampler
    objective: Any = "distributional_sliced_wasserstein"
    learning_rate: float | Mapping[str, float] = 1e-3
    num_inner_only: int = 50
    schedule: Callable[[Any], Any] | None = None
    _adam: optax.GradientTransformation = field(default_factory=optax.scale_by_adam, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_step_count("num_inner_only", self.num_inner_only, 0)

    def init(
        self, parameters: Mapping[str, jax.Array], batch: jax.Array, rng: jax.Array
    ) -> PriorSelectionState:
        """At ``parameters``; ``batch``, ``(rows, ...)``, is of the shape of those to come."""
        check_parameters(parameters)
        parameters = {name: jnp.asarray(value) for name, value in parameters.items()}
        learning_rates(self.learning_rate, list(parameters))
        rng, sample_rng, inner_rng = jax.random.split(rng, 3)
        predicted = self.sample(parameters, batch, self.objective.num_draws, sample_rng)
        adversary = (
            self.objective.init(batch, predicted, inner_rng) if self.objective.learns else None
        )
        optimizer = self._adam.init(parameters)
        return PriorSelectionState(parameters, optimizer, adversary, jnp.zeros((), "int32"), rng)

    def step(
        self, state: PriorSelectionState, batch: jax.Array
    ) -> tuple[PriorSelectionState, PriorSelectionInfo]:
        """One step on ``batch``, ``(rows, ...)``."""
        objective: PriorPredictiveObjective = self.objective
        rng, sample_rng, inner_rng, value_rng = jax.random.split(state.rng, 4)

        def loss_of(parameters: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            predicted = self.sample(parameters, batch, objective.num_draws, sample_rng)
            adversary = state.adversary
            if objective.learns:
                fixed = jax.lax.stop_gradient(predicted)
                adversary = objective.inner_step(adversary, batch, fixed, inner_rng)
                # The gradient holds the adversary fixed, as at its maximum.
                adversary = jax.lax.stop_gradient(adversary)
            return objective.value(adversary, batch, predicted, value_rng), adversary

        (loss, adversary), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        waiting = self.num_inner_only if objective.learns else 0
        moves = state.step - waiting
        updates, optimizer = self._adam.update(gradient, state.optimizer)
        rates = learning_rates(self.learning_rate, list(state.parameters))
        factor = 1.0 if self.schedule is None else self.schedule(jnp.maximum(moves, 0))
        parameters = {
            name: value - rates[name] * factor * updates[name]
            for name, value in state.parameters.items()
        }
        parameters, optimizer, gradient_norm = jax.tree.map(
            lambda moved, kept: jnp.where(moves >= 0, moved, kept),
            (parameters, optimizer, _norm(gradient)),
            (state.parameters, state.optimizer, jnp.zeros_like(loss)),
        )
        new = PriorSelectionState(parameters, optimizer, adversary, state.step + 1, rng)
        return new, PriorSelectionInfo(loss, gradient_norm)


def select_prior(
    sample: Sampler,
    parameters: Mapping[str, jax.Array],
    data: jax.Array,
    objective: Any = "distributional_sliced_wasserstein",
    *,
    num_steps: int = 300,
    batch_size: int = 64,
    learning_rate: float | Mapping[str, float] = 1e-3,
    num_inner_only: int = 50,
    schedule: Callable[[Any], Any] | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    log_every: int = 10,
    resume: bool = True,
    progress_bar: bool = True,
    seed: int = 0,
) -> SelectedPrior:
    """Hyper-parameters whose prior predictive looks like ``data``.

    ``log_every`` steps run in one compiled loop; then progress is shown, early stopping asked and
    ``checkpoint`` written, from which an interrupted run goes on to the numbers of an uninterrupted
    one.

    Parameters
    ----------
    sample, objective, learning_rate, num_inner_only, schedule
        See `PriorSelection`.
    parameters
        Where the hyper-parameters start, arrays by name.
    data
        The tuning set, ``(n, ...)``, disjoint from what the prior will be used for: see
        `bayesdiv.inference.prior_selection.check_disjoint`.
    num_steps
        Those of ``num_inner_only`` included.
    batch_size
        Rows a step, drawn without replacement; at most n are.
    early_stopping
        See `bayesdiv.training.EarlyStopping`.
    resume
        False ignores a checkpoint that exists, and overwrites it.
    seed
        Of everything that is drawn.

    Raises
    ------
    ValueError
        If a count is not positive, or ``checkpoint`` is of another run.
    """
    for name, count in (("num_steps", num_steps), ("batch_size", batch_size)):
        check_step_count(name, count)
    check_step_count("log_every", log_every)
    check_parameters(parameters)
    begin = time.perf_counter()
    routine = PriorSelection(sample, objective, learning_rate, num_inner_only, schedule)
    data = jnp.asarray(data)
    rows = min(batch_size, len(data))
    start_rng, order_rng = jax.random.split(jax.random.key(seed))
    state = jax.jit(routine.init)(dict(parameters), data[:rows], start_rng)
    history: dict[str, np.ndarray] = {name: np.zeros(0) for name in PriorSelectionInfo._fields}
    if checkpoint is not None and resume and Path(checkpoint).exists():
        state, history = _load(checkpoint, state, history)

    def one(state: PriorSelectionState, data: jax.Array) -> tuple[PriorSelectionState, Any]:
        # The batch depends on the step alone, so that a resumed run finds the same one.
        key = jax.random.fold_in(order_rng, state.step)
        return routine.step(state, data[jax.random.choice(key, len(data), (rows,), replace=False)])

    @jax.jit
    def window(state: PriorSelectionState, data: jax.Array, count: int) -> tuple[Any, Any]:
        # A traced count serves the last window, which may be shorter, without another compilation.
        def body(index: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, found = carry
            state, info = one(state, data)
            return state, jax.tree.map(lambda all, new: all.at[index].set(new), found, info)

        shapes = jax.eval_shape(one, state, data)[1]
        empty = jax.tree.map(lambda leaf: jnp.zeros(log_every, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, empty))

    step, stopped = int(state.step), "completed"
    with LoopProgress("prior", num_steps, enabled=progress_bar) as progress:
        while step < num_steps:
            if early_stopping and step and early_stopping.should_stop(history, log_every):
                stopped = "early_stopping"
                break
            count = min(log_every - step % log_every, num_steps - step)
            new, info = window(state, data, count)
            found = {
                name: np.asarray(values, dtype=np.float64)[:count]
                for name, values in info._asdict().items()
            }
            bad = ~np.isfinite(np.stack(list(found.values()))).all(0)
            if bad.any():
                stopped = "not_finite"
                warnings.warn(
                    f"the loss or its gradient is not finite at step {step + bad.argmax() + 1}; "
                    f"the state after step {step} is kept and the run stops. Lower the learning "
                    "rate.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            history = {name: np.concatenate([history[name], found[name]]) for name in found}
            state, step = new, step + count
            progress.update(step, history)
            if checkpoint is not None:
                _save(checkpoint, state, history)
    return SelectedPrior(state.parameters, history, step, stopped, time.perf_counter() - begin)


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def _plain(state: PriorSelectionState) -> list[Any]:
    return jax.tree.leaves(state._replace(rng=jax.random.key_data(state.rng)))


def _save(path: Any, state: PriorSelectionState, history: Mapping[str, np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"history_{name}": values for name, values in history.items()}
    for number, leaf in enumerate(_plain(state)):
        arrays[f"state_{number}"] = np.asarray(leaf)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def _load(
    path: Any, state: PriorSelectionState, history: Mapping[str, np.ndarray]
) -> tuple[PriorSelectionState, dict[str, np.ndarray]]:
    expected = _plain(state)
    try:
        with np.load(path) as file:
            leaves = [jnp.asarray(file[f"state_{number}"]) for number in range(len(expected))]
            old = {name: file[f"history_{name}"] for name in history}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"checkpoint must be a file of this run, got {os.fspath(path)!r}, which cannot be read "
            f"({error}); remove it or pass resume=False."
        ) from error
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in expected]:
        raise ValueError(
            f"checkpoint must be a file of this run, got {os.fspath(path)!r} with other shapes; "
            "remove it or pass resume=False."
        )
    plain = state._replace(rng=jax.random.key_data(state.rng))
    found = jax.tree.unflatten(jax.tree.structure(plain), leaves)
    return found._replace(rng=jax.random.wrap_key_data(found.rng)), old


def prior_predictive_distance(
    sample: Sampler,
    parameters: Mapping[str, jax.Array],
    data: jax.Array,
    divergence: Any = "sliced_wasserstein",
    *,
    num_draws: int = 8,
    seed: int = 0,
    **settings: Any,
) -> float:
    """D(data‖prior predictive) of fresh draws, for reports; the same seed gives the same draws.

    ``data`` has shape ``(n, ...)``; ``settings`` are those of a named divergence.
    """
    objective = PriorPredictiveObjective(get_divergence(divergence, **settings), num_draws)
    first, second = jax.random.split(jax.random.key(seed))
    predicted = sample(parameters, data, num_draws, first)
    return float(objective.from_scratch(data, predicted, second))
