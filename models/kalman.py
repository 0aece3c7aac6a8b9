"""Kalman's filter and smoother: exact answers for linear-Gaussian models."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular

__all__ = ["KalmanResult", "LinearGaussianParameters", "kalman_filter", "kalman_smoother"]


class LinearGaussianParameters(NamedTuple):
    r"""A linear-Gaussian state-space model.

    .. math:: x_0 \sim N(m, L_0 L_0^\top), \quad
              x_t = A x_{t-1} + a + L \epsilon_t, \quad y_t = C x_t + c + R \eta_t.

    All numbers are scalars where ``transition_matrix`` is one, and states and observations have
    event shape ``()``. Otherwise offsets and the initial mean broadcast to vectors, and scales are
    lower triangular, or numbers that multiply the identity.

    Parameters
    ----------
    transition_matrix
        A, ``()`` or ``(dim, dim)``.
    transition_scale
        L, ``()`` or ``(dim, dim)``.
    emission_matrix
        C, ``()`` or ``(width, dim)``.
    emission_scale
        R, ``()`` or ``(width, width)``.
    initial_mean
        m, ``()`` or ``(dim,)``.
    initial_scale
        L₀, ``()`` or ``(dim, dim)``.
    transition_offset
        a, ``()`` or ``(dim,)``.
    emission_offset
        c, ``()`` or ``(width,)``.
    """

    transition_matrix: Any
    transition_scale: Any
    emission_matrix: Any
    emission_scale: Any
    initial_mean: Any = 0.0
    initial_scale: Any = 1.0
    transition_offset: Any = 0.0
    emission_offset: Any = 0.0

    @property
    def is_scalar(self) -> bool:
        """Whether states are numbers."""
        return jnp.ndim(self.transition_matrix) == 0

    def as_matrices(self) -> LinearGaussianParameters:
        """Every entry as a matrix or a vector, numbers as 1×1.

        Raises
        ------
        ValueError
            If shapes do not fit each other; it names the entry.
        """
        dtype = jnp.result_type(float, *self)
        transition = jnp.asarray(self.transition_matrix, dtype)
        transition = transition[None, None] if transition.ndim == 0 else transition
        emission = jnp.asarray(self.emission_matrix, dtype)
        if emission.ndim == 0 and self.is_scalar:
            emission = emission[None, None]
        dim = transition.shape[0]
        if transition.shape != (dim, dim):
            raise ValueError(
                f"transition_matrix must be a number or (dim, dim), got {transition.shape}."
            )
        if emission.ndim != 2 or emission.shape[1] != dim:
            raise ValueError(
                f"emission_matrix must be (width, {dim}), as transition_matrix is ({dim}, {dim}), "
                f"got {emission.shape}."
            )
        width = emission.shape[0]
        entries = {"transition_matrix": transition, "emission_matrix": emission}
        for name, length in (
            ("transition_scale", dim),
            ("emission_scale", width),
            ("initial_scale", dim),
        ):
            entries[name] = _scale(name, jnp.asarray(getattr(self, name), dtype), length)
        for name, length in (
            ("initial_mean", dim),
            ("transition_offset", dim),
            ("emission_offset", width),
        ):
            value = jnp.asarray(getattr(self, name), dtype)
            if value.shape not in ((), (length,)):
                raise ValueError(f"{name} must be a number or ({length},), got {value.shape}.")
            entries[name] = jnp.broadcast_to(value, (length,))
        return LinearGaussianParameters(**entries)


class KalmanResult(NamedTuple):
    """What is known of each state.

    Parameters
    ----------
    log_evidence
        log p(y_0, …, y_{T−1}), a number.
    log_evidence_increments
        log p(y_t | y_0, …, y_{t−1}), ``(num_times,)``; 0 where y_t is missing.
    means
        ``(num_times, *event)``.
    covariances
        ``(num_times,)`` or ``(num_times, dim, dim)``.
    """

    log_evidence: jax.Array
    log_evidence_increments: jax.Array
    means: jax.Array
    covariances: jax.Array


def kalman_filter(parameters: LinearGaussianParameters, observations: jax.Array) -> KalmanResult:
    """Evidence, and moments of each state given the observations up to its time.

    Joseph's form of the covariance update keeps covariances positive in float32. Works under
    ``jit``, ``vmap`` and ``grad``.

    Parameters
    ----------
    parameters
        The model.
    observations
        ``(num_times, *event)``; a row with a NaN is missing.

    Raises
    ------
    ValueError
        If shapes do not fit each other.

    References
    ----------
    Kalman (1960), "A new approach to linear filtering and prediction problems".
    """
    return _unpack(parameters, _filter(parameters, observations)[0])


def kalman_smoother(parameters: LinearGaussianParameters, observations: jax.Array) -> KalmanResult:
    """Evidence, and moments of each state given all observations.

    Parameters and errors as :func:`kalman_filter`.

    References
    ----------
    Rauch, Tung and Striebel (1965), "Maximum likelihood estimates of linear dynamic systems".
    """
    return _unpack(parameters, _smooth(parameters, observations))


@jax.jit
def _smooth(parameters: LinearGaussianParameters, observations: jax.Array) -> KalmanResult:
    found, predicted = _filter(parameters, observations)
    matrix = parameters.as_matrices().transition_matrix

    def step(after: tuple, at: tuple) -> tuple[tuple, tuple]:
        mean, covariance, predicted_mean, predicted_covariance = at
        factor = jnp.linalg.cholesky(predicted_covariance)
        gain = cho_solve((factor, True), matrix @ covariance).T
        mean = mean + gain @ (after[0] - predicted_mean)
        covariance = covariance + gain @ (after[1] - predicted_covariance) @ gain.T
        return (mean, covariance), (mean, covariance)

    last = (found.means[-1], found.covariances[-1])
    rest = (found.means[:-1], found.covariances[:-1], predicted[0][1:], predicted[1][1:])
    _, (means, covariances) = jax.lax.scan(step, last, rest, reverse=True)
    return found._replace(
        means=jnp.concatenate([means, last[0][None]]),
        covariances=jnp.concatenate([covariances, last[1][None]]),
    )


@jax.jit
def _filter(
    parameters: LinearGaussianParameters, observations: jax.Array
) -> tuple[KalmanResult, tuple[jax.Array, jax.Array]]:
    """Filtered moments, and the predicted ones ahead of each observation."""
    model = parameters.as_matrices()
    width, dim = model.emission_matrix.shape
    event = () if parameters.is_scalar else (width,)
    observations = jnp.asarray(observations)
    if observations.shape[1:] != event or observations.ndim == 0 or len(observations) == 0:
        wanted = "(num_times,)" if parameters.is_scalar else f"(num_times, {width})"
        raise ValueError(
            f"observations must be {wanted} with at least one time, got {observations.shape}."
        )
    rows = observations.reshape(-1, width).astype(model.transition_matrix.dtype)
    is_missing = jnp.isnan(rows).any(-1)
    noise = model.transition_scale @ model.transition_scale.T
    emission, emission_scale = model.emission_matrix, model.emission_scale
    identity = jnp.eye(dim, dtype=rows.dtype)

    def step(predicted: tuple, at: tuple) -> tuple[tuple, tuple]:
        mean, covariance = predicted
        row, missing = at
        residual = jnp.where(missing, 0.0, row - emission @ mean - model.emission_offset)
        innovation = emission @ covariance @ emission.T + emission_scale @ emission_scale.T
        factor = jnp.linalg.cholesky(innovation)
        whitened = solve_triangular(factor, residual, lower=True)
        increment = -0.5 * (whitened**2).sum() - jnp.log(jnp.diagonal(factor)).sum()
        increment = increment - 0.5 * width * jnp.log(2.0 * jnp.pi)
        gain = cho_solve((factor, True), emission @ covariance).T
        gain = jnp.where(missing, 0.0, gain)
        rest = identity - gain @ emission
        spread = gain @ emission_scale
        filtered = (mean + gain @ residual, rest @ covariance @ rest.T + spread @ spread.T)
        ahead = (
            model.transition_matrix @ filtered[0] + model.transition_offset,
            model.transition_matrix @ filtered[1] @ model.transition_matrix.T + noise,
        )
        return ahead, (jnp.where(missing, 0.0, increment), filtered, predicted)

    start = (model.initial_mean, model.initial_scale @ model.initial_scale.T)
    rows = jnp.where(is_missing[:, None], 0.0, rows)
    _, (increments, filtered, predicted) = jax.lax.scan(step, start, (rows, is_missing))
    return KalmanResult(increments.sum(), increments, *filtered), predicted


def _scale(name: str, value: jax.Array, length: int) -> jax.Array:
    if value.ndim == 0:
        return value * jnp.eye(length, dtype=value.dtype)
    if value.shape != (length, length):
        raise ValueError(f"{name} must be a number or ({length}, {length}), got {value.shape}.")
    return value


def _unpack(parameters: LinearGaussianParameters, result: KalmanResult) -> KalmanResult:
    if not parameters.is_scalar:
        return result
    return result._replace(means=result.means[:, 0], covariances=result.covariances[:, 0, 0])
