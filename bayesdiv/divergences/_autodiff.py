"""Elementwise derivatives of a function in the library of its argument."""

from collections.abc import Callable

from bayesdiv._array import Array, array_namespace, is_torch_array


def elementwise_derivative(function: Callable[[Array], Array], x: Array) -> Array:
    """dφ/dx for an elementwise φ, any shape; differentiable again.

    Reverse mode, also where torch records no gradients; torch's forward mode warns on first use.
    """
    if is_torch_array(x):
        from torch.func import vjp
    else:
        from jax import vjp
    value, pull_back = vjp(function, x)
    return pull_back(array_namespace(x).ones_like(value))[0]
