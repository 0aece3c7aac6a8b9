"""What the stochastic-gradient samplers share: checks, norms and the end of burn-in."""

from collections.abc import Callable
from typing import Any

from bayesdiv._array import (
    Array,
    array_namespace,
    is_jax_array,
    is_torch_array,
)
from bayesdiv._control import branch, is_traced

PotentialAndGradient = Callable[[Array, Any], tuple[Array, Array]]


def check_positive(name: str, value: Any) -> None:
    _check_number(name, value)
    if not is_traced(value) and not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def check_fraction(name: str, value: Any) -> None:
    _check_number(name, value)
    if not is_traced(value) and not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value!r}.")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, str | bytes | bool | type(None)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}.")


def check_step_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of steps, 0 or more, got {value!r}.")


def check_position(position: Any) -> None:
    if not (is_torch_array(position) or is_jax_array(position)):
        raise TypeError(
            f"position must be a torch tensor or a JAX array, got {type(position).__name__}."
        )
    if position.ndim not in (1, 2) or 0 in position.shape:
        raise ValueError(
            "position must have shape (dim,) or (num_chains, dim), none of them 0, got "
            f"{tuple(position.shape)}; flatten the latent variables of a chain into one row."
        )
    if not array_namespace(position).isdtype(position.dtype, "real floating"):
        raise ValueError(f"position must have a floating dtype, got {position.dtype}.")


def step_counter(like: Array) -> Any:
    """Zero: a Python integer for torch, which must not wait for a device to compare it."""
    return 0 if is_torch_array(like) else array_namespace(like).zeros((), dtype="int32")


def evaluated(
    potential_and_gradient: PotentialAndGradient, position: Array, rng: Any
) -> tuple[Array, Array]:
    """Its two answers, of the right shapes and without history."""
    potential, gradient = potential_and_gradient(position, rng)
    if gradient.shape != position.shape:
        raise ValueError(
            "potential_and_gradient must return a gradient of the shape of the position, "
            f"{tuple(position.shape)}, got {tuple(gradient.shape)}."
        )
    if potential.shape != position.shape[:-1]:
        raise ValueError(
            "potential_and_gradient must return one potential a chain, shape "
            f"{tuple(position.shape[:-1])}, got {tuple(potential.shape)}."
        )
    if is_torch_array(position) and (potential.requires_grad or gradient.requires_grad):
        return potential.detach(), gradient.detach()
    return potential, gradient


def where_warm(step: Any, num_burn_in: int, adapt: Callable, scales: tuple) -> tuple:
    """``adapt(scales)`` while ``step`` is below ``num_burn_in``, then ``scales`` as they are."""
    if num_burn_in == 0:
        return scales
    if isinstance(step, int):
        return adapt(scales) if step < num_burn_in else scales
    return branch(step < num_burn_in, adapt, lambda kept: kept, scales)


def row_norm(rows: Array) -> Array:
    """Euclidean norm over the last axis."""
    if is_torch_array(rows):
        import torch

        # The array namespace's spelling of it takes thrice the time of small rows.
        return torch.linalg.vector_norm(rows, dim=-1)
    return array_namespace(rows).linalg.vector_norm(rows, axis=-1)
