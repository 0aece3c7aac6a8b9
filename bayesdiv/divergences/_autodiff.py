"""Elementwise derivatives of a function in the library of its argument."""

from collections.abc import Callable
from typing import Any

from bayesdiv._array import Array, array_namespace, is_torch_array


def elementwise_derivative(function: Callable[[Array], Array], x: Array) -> Array:
    """dφ/dx for an elementwise φ, any shape; differentiable again.

    Reverse mode, also where torch records no gradients; torch's forward mode warns on first use.
    """
    vjp: Callable[..., Any]
    if is_torch_array(x):
        import torch.func

        vjp = torch.func.vjp
    else:
        import jax

        vjp = jax.vjp
    value, pull_back = vjp(function, x)[:2]
    return pull_back(array_namespace(x).ones_like(value))[0]
