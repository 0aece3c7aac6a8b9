"""What torch and JAX arrays both need and the array standard lacks.

Functions here infer the library from their arguments, so that mathematics is written once. Neither
torch nor JAX is imported unless an array of that library was passed.
"""

import math
from typing import Any

from array_api_compat import array_namespace, is_jax_array, is_torch_array

Array = Any
"""A ``torch.Tensor`` or a ``jax.Array``."""

__all__ = [
    "Array",
    "absolute",
    "array_namespace",
    "as_array_like",
    "clip",
    "identity_like",
    "is_jax_array",
    "is_torch_array",
    "leaky_relu",
    "log_gamma",
    "log_mean_exp",
    "logsumexp",
    "softmax",
    "softplus",
    "solve_lower_triangular",
    "stop_gradient",
]


def stop_gradient(x: Array) -> Array:
    """``x`` as a constant of differentiation."""
    if is_torch_array(x):
        return x.detach()
    import jax

    return jax.lax.stop_gradient(x)


def softplus(x: Array) -> Array:
    """log(1 + eˣ), exact in both tails."""
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def logsumexp(x: Array, axis: int | tuple[int, ...] = 0, *, keepdims: bool = False) -> Array:
    """log Σ eˣ over ``axis``; −inf where every entry is −inf."""
    if is_torch_array(x):
        return x.logsumexp(axis, keepdim=keepdims)
    import jax.scipy.special

    return jax.scipy.special.logsumexp(x, axis=axis, keepdims=keepdims)


def log_gamma(x: Array) -> Array:
    """log |Γ(x)|."""
    if is_torch_array(x):
        return x.lgamma()
    import jax.scipy.special

    return jax.scipy.special.gammaln(x)


def log_mean_exp(x: Array, axis: int = 0) -> Array:
    """log of the mean of eˣ over ``axis``."""
    return logsumexp(x, axis) - math.log(x.shape[axis])


def softmax(x: Array, axis: int = 0) -> Array:
    """Normalised eˣ over ``axis``."""
    return array_namespace(x).exp(x - logsumexp(x, axis, keepdims=True))


def clip(x: Array, low: float, high: float) -> Array:
    """``x`` limited to [low, high]; NaN stays NaN."""
    return array_namespace(x).clip(x, low, high)


def as_array_like(value: Any, like: Array) -> Array:
    """``value`` as an array of the library, dtype and device of ``like``."""
    xp = array_namespace(like)
    if is_torch_array(like):
        return xp.asarray(value, dtype=like.dtype, device=like.device)
    return xp.asarray(value, dtype=like.dtype)


def identity_like(vector: Array) -> Array:
    """The identity matrix, ``(k, k)``, in the library, dtype and device of ``vector``, ``(k,)``."""
    xp = array_namespace(vector)
    index = xp.cumulative_sum(xp.ones_like(vector), axis=0)
    return xp.astype(index[:, None] == index, vector.dtype)


def leaky_relu(x: Array, slope: float) -> Array:
    """max(x, slope · x) for a slope below 1, in one pass with one backward pass."""
    if is_torch_array(x):
        import torch

        return torch.nn.functional.leaky_relu(x, slope)
    import jax

    return jax.nn.leaky_relu(x, slope)


def solve_lower_triangular(matrix: Array, right: Array) -> Array:
    """matrix⁻¹ right; ``matrix`` lower triangular (..., n, n), ``right`` (..., n, m)."""
    if is_torch_array(matrix):
        import torch

        return torch.linalg.solve_triangular(matrix, right, upper=False)
    import jax

    batch = jax.numpy.broadcast_shapes(matrix.shape[:-2], right.shape[:-2])
    matrix = jax.numpy.broadcast_to(matrix, batch + matrix.shape[-2:])
    right = jax.numpy.broadcast_to(right, batch + right.shape[-2:])
    return jax.scipy.linalg.solve_triangular(matrix, right, lower=True)


def absolute(x: Array) -> Array:
    """|x| with slope 0 at 0 in both libraries; JAX's own has slope 1 there."""
    return x * stop_gradient(array_namespace(x).sign(x))
