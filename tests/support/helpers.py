"""Arrays of either backend for tests that run on both; imported as ``from helpers import ...``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

BACKENDS = ("torch", "jax")


def make_array(
    backend: str, values: Any, dtype: str = "float64", *, requires_grad: bool = False
) -> Any:
    """``values`` as an array of ``backend``.

    Parameters
    ----------
    backend
        ``"torch"`` or ``"jax"``.
    values
        Anything NumPy turns into an array.
    dtype
        Name of the element type, e.g. ``"float64"`` or ``"bool"``.
    requires_grad
        Makes a torch leaf; JAX ignores it, since there one differentiates functions.

    Raises
    ------
    ValueError
        If ``backend`` is neither, or JAX would shorten ``dtype`` because x64 is off.
    """
    plain = np.asarray(values, dtype=dtype)
    if backend == "torch":
        return torch.tensor(plain).requires_grad_(requires_grad)
    if backend == "jax":
        array = jnp.asarray(plain)
        if array.dtype != plain.dtype:
            raise ValueError(
                f"dtype {dtype} became {array.dtype} in JAX; enable x64 in conftest.py"
            )
        return array
    raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def to_numpy(array: Any) -> np.ndarray:
    """A torch or JAX array, or a number, as a NumPy array without its graph."""
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().numpy()
    return np.asarray(array)


def gradient_of(backend: str, function: Any, *values: Any, dtype: str = "float64") -> tuple:
    """∂function/∂value for each of ``values``, as NumPy arrays; ``function`` returns a scalar."""
    arrays = [make_array(backend, value, dtype, requires_grad=True) for value in values]
    if backend == "torch":
        gradients = torch.autograd.grad(function(*arrays), arrays)
    else:
        gradients = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    return tuple(to_numpy(gradient) for gradient in gradients)


def assert_within_standard_errors(
    draws: Any, expected: Any, *, gate: float = 5.0, axis: int = 0
) -> None:
    """Fail unless the mean of independent ``draws`` lies within ``gate`` standard errors of truth.

    Per entry, ``|mean − expected| ≤ gate · sd / √n`` with the draws' own ``sd``, so that the gate
    is as narrow as the draws allow. Draws without spread must be exact to 1e-12.
    """
    draws, expected = to_numpy(draws), to_numpy(expected)
    count = draws.shape[axis]
    if count < 2:
        raise ValueError(f"draws must have at least 2 along axis {axis}, got {count}")
    error = np.abs(draws.mean(axis) - expected)
    limit = gate * draws.std(axis, ddof=1) / np.sqrt(count) + 1e-12 * np.maximum(
        1.0, np.abs(expected)
    )
    if not np.all(error <= limit):
        ratio = float(np.nanmax(gate * error / limit))
        raise AssertionError(
            f"mean of {count} draws is {ratio:.1f} standard errors off (gate {gate}): "
            f"got {draws.mean(axis)}, expected {expected}"
        )
