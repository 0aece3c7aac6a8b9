"""Elementwise derivatives of a function in the library of its argument."""

from collections.abc import Callable

from bayesdiv._array import Array, array_namespace, is_torch_array


def elementwise_derivative(function: Callable[[Array], Array], x: Array) -> Array:
    """dφ/dx for an elementwise φ, any shape; differentiable again.

    Forward mode, which keeps the shape and composes with the caller's backward pass.
    """
    direction = array_namespace(x).ones_like(x)
    if is_torch_array(x):
        from torch.func import jvp
    else:
        from jax import jvp
    return jvp(function, (x,), (direction,))[1]
