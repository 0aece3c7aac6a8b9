"""Runs of the pure samplers on either backend; imported as ``from sampler_chains import ...``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from helpers import make_array, to_numpy
from scipy.linalg import solve_discrete_lyapunov

from bayesdiv._random import standard_normal


class Run(NamedTuple):
    """The last state; draws ``(kept, num_chains, dim)``; what ``info`` said at each of them."""

    state: Any
    draws: np.ndarray
    info: dict[str, np.ndarray]


def seed_of(backend: str, seed: int) -> Any:
    """An ``rng`` of the backend."""
    return seed if backend == "torch" else jax.random.PRNGKey(seed)


def started(backend: str, dynamics: Any, start: Any, seed: int = 0) -> Any:
    """``dynamics.init`` at ``start``, float64."""
    return dynamics.init(make_array(backend, start), seed_of(backend, seed))


@functools.lru_cache(maxsize=16)
def _jitted_step(dynamics: Any) -> Callable:
    return jax.jit(dynamics.step, static_argnums=1)


def advance(
    dynamics: Any, state: Any, target: Callable, *, steps: int, drop: int = 0, every: int = 1
) -> Run:
    """Drop ``drop`` steps, then keep one of ``every`` among ``steps``."""
    is_short = drop + steps <= 60
    if isinstance(state.rng, int) or is_short:
        step = dynamics.step if isinstance(state.rng, int) else _jitted_step(dynamics)
        for _ in range(drop):
            state, _ = step(state, target)
        kept = []
        for count in range(steps):
            state, info = step(state, target)
            if (count + 1) % every == 0:
                kept.append((state.position, info))
        draws, infos = zip(*kept, strict=True)
        return Run(
            state,
            np.stack([to_numpy(draw) for draw in draws]),
            {
                name: np.stack([to_numpy(getattr(info, name)) for info in infos])
                for name in infos[0]._fields
            },
        )

    @jax.jit
    def compiled(state: Any) -> Any:
        def block(state: Any, length: int) -> Any:
            body = lambda _, carry: dynamics.step(carry, target)[0]  # noqa: E731
            return jax.lax.fori_loop(0, length, body, state)

        def keep(state: Any, _: None) -> Any:
            state, info = dynamics.step(block(state, every - 1), target)
            return state, (state.position, info._asdict())

        return jax.lax.scan(keep, block(state, drop), None, length=steps // every)

    state, (draws, info) = compiled(state)
    return Run(state, np.asarray(draws), {name: np.asarray(v) for name, v in info.items()})


def quadratic(backend: str, precision: Any, gradient_noise: Any = 0.0) -> Callable:
    """U = wᵀ P w / 2, its gradient with independent noise of that standard deviation.

    ``precision`` is ``(dim,)``, a diagonal, or ``(dim, dim)``.
    """
    matrix = np.asarray(precision, dtype=float)
    rates = make_array(backend, matrix if matrix.ndim == 2 else np.diag(matrix))
    noise = make_array(backend, np.broadcast_to(gradient_noise, matrix.shape[-1:]).copy())

    def target(position: Any, rng: Any) -> tuple[Any, Any]:
        gradient = position @ rates
        potential = 0.5 * (gradient * position).sum(-1)
        return potential, gradient + noise * standard_normal(rng, tuple(position.shape), position)

    return target


def sghmc_covariance(
    precision: np.ndarray,
    second_moment: np.ndarray,
    gradient_variance: np.ndarray,
    *,
    step_size: float,
    friction: float,
    subtract: bool,
) -> np.ndarray:
    """Exact stationary covariance of (w, v), ``(2 dim, 2 dim)``, for a quadratic U and frozen V.

    The step is linear: v ← (1 − α) v − K w + noise and w ← w + v, so the covariance solves a
    discrete Lyapunov equation.
    """
    dim = len(precision)
    root = np.sqrt(second_moment)
    pull = step_size**2 * precision / root[:, None]
    kept = (1.0 - friction) * np.eye(dim)
    transition = np.block([[np.eye(dim) - pull, kept], [-pull, kept]])
    injected = 2.0 * friction * step_size**2 / root - step_size**4 * subtract
    noise = np.diag(np.maximum(injected, 1e-16) + step_size**4 * gradient_variance / root**2)
    return solve_discrete_lyapunov(transition, np.block([[noise, noise], [noise, noise]]))
