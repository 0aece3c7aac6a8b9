r"""The maximisation step of EM for mixtures of experts, for the gate and for the experts.

Both raise the expected log-likelihood less ridge penalties: ½ ρ Σ_k |a_k − ā|² on the gate, which
no relabelling of experts and no shift of all rows changes, and ½ ρ |B|² on the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._moe_em_data import EMData
from bayesdiv.inference._moe_em_statistics import EMStatistics

__all__ = ["coefficient_penalty", "gate_penalty", "update_experts", "update_gate"]

_MAX_HALVINGS = 25


def gate_penalty(gate: jax.Array, ridge: float) -> jax.Array:
    """½ ρ Σ_k |a_k − ā|²."""
    return 0.5 * ridge * jnp.sum(_centred(gate) ** 2)


def coefficient_penalty(coefficients: jax.Array, ridge: float) -> jax.Array:
    """½ ρ |B|²."""
    return 0.5 * ridge * jnp.sum(coefficients**2)


def update_gate(
    gate: jax.Array, statistics: EMStatistics, data: EMData, *, ridge: float
) -> tuple[jax.Array, jax.Array]:
    """The next gate, and the fraction of Newton's step that it took.

    Maximises Σ w τ_k log π_k − penalty. Without a Hessian in ``statistics`` the step is that of the
    bound −∇² ≤ ½ (I − 11ᵀ/K) ⊗ Σ w φ φᵀ (Böhning 1992), which needs no search. Newton's step is
    halved until the objective does not fall; its gain is summed from the rows' own differences,
    so that float32 tells a rise from a fall.
    """
    num_experts = gate.shape[0]
    if num_experts == 1:
        return gate, jnp.ones((), gate.dtype)
    gradient = statistics.gate_gradient - ridge * _centred(gate)
    bound = _bound_step(gradient, data.gram, ridge)
    if statistics.gate_gram.shape[0] == 0:
        return gate + bound, jnp.ones((), gate.dtype)
    direction = _newton_step(gradient, statistics.gate_gram, ridge)
    direction = jnp.where(jnp.all(jnp.isfinite(direction)), direction, bound)
    slope = jnp.sum(_centred(gate) * _centred(direction))
    curvature = jnp.sum(_centred(direction) ** 2)

    def gain(fraction: jax.Array) -> jax.Array:
        def block(total: jax.Array, rows: tuple) -> tuple:
            features, weights, log_gates, responsibilities = rows
            change = fraction * (direction @ features)
            normaliser = _normaliser_change(log_gates, change)
            rise = jnp.sum(responsibilities * change, axis=0) - normaliser
            return total + jnp.sum(jnp.where(weights > 0.0, weights * rise, 0.0)), None

        rows = (data.features, data.weights, statistics.log_gates, statistics.responsibilities)
        total, _ = jax.lax.scan(block, jnp.zeros((), gate.dtype), rows)
        return total - ridge * fraction * (slope + 0.5 * fraction * curvature)

    fraction = _halved(gain, jnp.ones((), gate.dtype))
    return gate + fraction * direction, fraction


def update_experts(
    parameters: MixtureOfExpertsParameters,
    statistics: EMStatistics,
    data: EMData,
    *,
    ridge: float,
    variance_floor: float,
) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Coefficients, scales and each expert's fraction of Newton's step, ``(experts,)``.

    Normal experts take weighted least squares, written as a step from the present coefficients:
    residuals stay small near the answer, and with them the rounding of their sum of squares.
    """
    if parameters.scale is None:
        coefficients, fractions = _logistic_step(parameters.coefficients, statistics, data, ridge)
        return coefficients, None, fractions
    variances = parameters.scale**2
    coefficients, gradient = parameters.coefficients, statistics.expert_gradient
    shrink = ridge * variances[:, None]
    width = coefficients.shape[1]
    step = _solve(
        statistics.expert_gram + shrink[:, :, None] * jnp.eye(width, dtype=gradient.dtype),
        gradient - shrink * coefficients,
    )
    step = jnp.where(jnp.isfinite(step), step, 0.0)
    curved = jnp.einsum("kfg,kg->kf", statistics.expert_gram, step)
    squares = statistics.residual_squares - jnp.sum(step * (2.0 * gradient - curved), axis=1)
    # An expert that nothing belongs to keeps its variance.
    counts, eps = statistics.counts, jnp.finfo(gradient.dtype).eps
    used = counts > eps * data.total_weight
    variances = jnp.where(used, squares / jnp.where(used, counts, 1.0), variances)
    scale = jnp.sqrt(jnp.maximum(variances, variance_floor))
    return coefficients + step, scale, jnp.ones_like(counts)


def _logistic_step(
    coefficients: jax.Array, statistics: EMStatistics, data: EMData, ridge: float
) -> tuple[jax.Array, jax.Array]:
    """Newton's step of every expert's weighted logistic regression, halved one by one."""
    width = coefficients.shape[1]
    hessian = statistics.expert_gram + ridge * jnp.eye(width, dtype=coefficients.dtype)
    direction = _solve(hessian, statistics.expert_gradient - ridge * coefficients)
    direction = jnp.where(jnp.isfinite(direction), direction, 0.0)
    slope = jnp.sum(coefficients * direction, axis=1)
    curvature = jnp.sum(direction**2, axis=1)

    def gain(fractions: jax.Array) -> jax.Array:
        def block(total: jax.Array, rows: tuple) -> tuple:
            features, outcome, weights, responsibilities = rows
            sign = 2.0 * outcome - 1.0
            margin = sign * (coefficients @ features)
            change = sign * ((fractions[:, None] * direction) @ features)
            rise = _log_sigmoid_change(margin, change)
            shares = weights * responsibilities
            return total + jnp.sum(jnp.where(shares > 0.0, shares * rise, 0.0), axis=1), None

        rows = (data.features, data.outcome, data.weights, statistics.responsibilities)
        total, _ = jax.lax.scan(block, jnp.zeros_like(fractions), rows)
        return total - ridge * fractions * (slope + 0.5 * fractions * curvature)

    fractions = _halved(gain, jnp.ones(coefficients.shape[0], coefficients.dtype))
    return coefficients + fractions[:, None] * direction, fractions


def _halved(gain: Callable[[jax.Array], jax.Array], fractions: jax.Array) -> jax.Array:
    """``fractions`` halved until each gain is at least 0, or 0 where none is."""

    def searching(state: tuple) -> jax.Array:
        _, accepted, count = state
        return ~jnp.all(accepted) & (count < _MAX_HALVINGS)

    def halve(state: tuple) -> tuple:
        fractions, accepted, count = state
        fractions = jnp.where(accepted, fractions, 0.5 * fractions)
        return fractions, accepted | (gain(fractions) >= 0.0), count + 1

    # NaN counts as a fall.
    start = (fractions, gain(fractions) >= 0.0, jnp.zeros((), int))
    fractions, accepted, _ = jax.lax.while_loop(searching, halve, start)
    return jnp.where(accepted, fractions, 0.0)


def _normaliser_change(log_gates: jax.Array, change: jax.Array) -> jax.Array:
    """log Σ π e^δ over experts, ``(block,)``.

    Small changes take the form without a difference of large numbers. For large ones that form
    takes the logarithm of what rounding left of 0, and would call any step a rise.
    """
    small = jnp.max(jnp.abs(change), axis=0) < 1.0
    limited = jnp.clip(change, -1.0, 1.0)
    near = jnp.log1p(jnp.sum(jnp.exp(log_gates) * jnp.expm1(limited), axis=0))
    return jnp.where(small, near, jax.nn.logsumexp(log_gates + change, axis=0))


def _log_sigmoid_change(margin: jax.Array, change: jax.Array) -> jax.Array:
    """log σ(m + δ) − log σ(m), with the two forms of `_normaliser_change`."""
    near = -jnp.log1p(jax.nn.sigmoid(-margin) * jnp.expm1(jnp.clip(-change, -1.0, 1.0)))
    far = jax.nn.softplus(-margin) - jax.nn.softplus(-(margin + change))
    return jnp.where(jnp.abs(change) < 1.0, near, far)


def _centred(gate: jax.Array) -> jax.Array:
    return gate - jnp.mean(gate, axis=0)


def _bound_step(gradient: jax.Array, gram: jax.Array, ridge: float) -> jax.Array:
    """Step of the bound, last row 0: (I − 11ᵀ/K)⁻¹ = I + 11ᵀ on the free rows."""
    matrix = 0.5 * gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    count = gradient.shape[0]
    steps = _solve(jnp.broadcast_to(matrix, (count, *matrix.shape)), gradient)
    return steps - steps[-1]


def _newton_step(gradient: jax.Array, pair_grams: jax.Array, ridge: float) -> jax.Array:
    """(H + penalty's Hessian)⁻¹ gradient on the free rows, ``(experts, features)``."""
    num_experts, width = gradient.shape
    free = num_experts - 1
    first, second = np.triu_indices(free)
    place = np.zeros((free, free), dtype=int)
    place[first, second] = place[second, first] = np.arange(len(first))
    blocks = pair_grams[place]
    penalty = np.eye(free) - 1.0 / num_experts
    identity = jnp.eye(width, dtype=gradient.dtype)
    blocks = blocks + (ridge * penalty)[:, :, None, None].astype(gradient.dtype) * identity
    size = free * width
    hessian = blocks.transpose(0, 2, 1, 3).reshape(size, size)
    step = _solve(hessian[None], gradient[:-1].reshape(1, size))[0].reshape(free, width)
    return jnp.concatenate([step, jnp.zeros_like(step[:1])])


def _solve(matrices: jax.Array, right: jax.Array) -> jax.Array:
    """matrix⁻¹ right for symmetric ``(batch, n, n)`` and ``(batch, n)``.

    On a CPU one at a time: jaxlib's batched factorisation waits, on a thread of XLA's pool, for
    tasks on that pool, so that as many at once as there are threads wait for ever (seen with jaxlib
    0.10.2 on two cores).
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda pair: _solve_alone(*pair), (matrices, right))
    return jax.vmap(_solve_one)(matrices, right)


def _solve_one(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """On a unit diagonal, to which a few rounding errors are added.

    Steps along directions that the data do not determine get shorter instead of infinite.
    """
    eps, tiny = jnp.finfo(matrix.dtype).eps, jnp.finfo(matrix.dtype).tiny
    root = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), tiny))
    jitter = 10.0 * eps * jnp.eye(len(root), dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(matrix / (root[:, None] * root) + jitter)
    return jax.scipy.linalg.cho_solve((factor, True), right / root) / root


_solve_alone = jax.custom_batching.sequential_vmap(_solve_one)
