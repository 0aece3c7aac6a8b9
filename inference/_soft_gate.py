"""A softmax gate fitted to given probabilities: multinomial logistic regression, soft targets."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["GateFit", "fit_gate"]

_NUM_HALVINGS = 30


class GateFit(NamedTuple):
    """``gate`` ``(experts, features)`` with last row 0; penalised cross-entropy; Newton's steps."""

    gate: jax.Array
    loss: jax.Array
    num_steps: jax.Array


@partial(jax.jit, static_argnames=("max_steps",))
def fit_gate(
    features: jax.Array,
    targets: jax.Array,
    *,
    ridge: float = 1e-6,
    max_steps: int = 100,
) -> GateFit:
    r"""Minimise −Σ_s Σ_k t_sk log π_k(φ_s) + ½ ridge Σ_k |a_k − ā|² by damped Newton's method.

    The penalty is of gates centred over the experts, so that no expert is special; ``features``
    ``(rows, features)``, ``targets`` ``(rows, experts)``, whose rows sum to 1. Steps are halved
    until the loss falls.
    """
    num_experts, width = targets.shape[1], features.shape[1]
    num_free = num_experts - 1
    if num_free == 0:
        zero = jnp.zeros((), features.dtype)
        return GateFit(jnp.zeros((1, width), features.dtype), zero, jnp.zeros((), int))
    # |a_k − ā|² summed over experts is this quadratic form of the free rows.
    centring = jnp.eye(num_free, dtype=features.dtype) - 1.0 / num_experts
    penalty = ridge * jnp.kron(centring, jnp.eye(width, dtype=features.dtype))
    tolerance = 4.0 * jnp.finfo(features.dtype).eps

    def log_gates(free: jax.Array) -> jax.Array:
        rows = jnp.concatenate([free, jnp.zeros_like(free[:1])])
        return jax.nn.log_softmax(features @ rows.T, axis=1)

    def loss_of(free: jax.Array) -> jax.Array:
        vector = free.ravel()
        return -jnp.sum(targets * log_gates(free)) + 0.5 * vector @ penalty @ vector

    def newton(free: jax.Array) -> jax.Array:
        gates = jnp.exp(log_gates(free))[:, :-1]
        gradient = (targets[:, :-1] - gates).T @ features
        scaled = (gates[:, :, None] * features[:, None, :]).reshape(len(features), -1)
        diagonal = jnp.einsum("sjf,sg->jfg", scaled.reshape(-1, num_free, width), features)
        hessian = jax.scipy.linalg.block_diag(*diagonal) - scaled.T @ scaled + penalty
        # Rounding of the sums over rows, which a saturated gate would otherwise be lost in.
        noise = tolerance * jnp.trace(hessian) / len(hessian)
        hessian = hessian + noise * jnp.eye(len(hessian), dtype=hessian.dtype)
        right = gradient.ravel() - penalty @ free.ravel()
        factor = jax.scipy.linalg.cho_factor(hessian)
        return jax.scipy.linalg.cho_solve(factor, right).reshape(free.shape)

    def search(free: jax.Array, loss: jax.Array) -> tuple[jax.Array, jax.Array]:
        direction = newton(free)

        def is_worse(carry: tuple) -> jax.Array:
            _, new_loss, count = carry
            return ~(new_loss <= loss) & (count < _NUM_HALVINGS)

        def halve(carry: tuple) -> tuple:
            step, _, count = carry
            step = 0.5 * step
            return step, loss_of(free + step * direction), count + 1

        step = jnp.ones((), free.dtype)
        start = (step, loss_of(free + direction), jnp.zeros((), int))
        step, new_loss, _ = jax.lax.while_loop(is_worse, halve, start)
        falls = new_loss <= loss
        moved = jnp.where(falls, free + step * direction, free)
        return moved, jnp.where(falls, new_loss, loss)

    def go_on(carry: tuple) -> jax.Array:
        _, loss, fall, count = carry
        return (fall > tolerance * (1.0 + jnp.abs(loss))) & (count < max_steps)

    def body(carry: tuple) -> tuple:
        free, loss, _, count = carry
        free, new_loss = search(free, loss)
        return free, new_loss, loss - new_loss, count + 1

    free = jnp.zeros((num_free, width), features.dtype)
    loss = loss_of(free)
    infinite = jnp.asarray(jnp.inf, loss.dtype)
    free, loss, _, count = jax.lax.while_loop(
        go_on, body, (free, loss, infinite, jnp.zeros((), int))
    )
    return GateFit(jnp.concatenate([free, jnp.zeros_like(free[:1])]), loss, count)
