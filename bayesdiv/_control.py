"""Loops, branches, compilation, inner gradients and the host, by the library of an array.

Mathematics on the array namespace needs a few things that torch does with Python and JAX with
transformations. Each function here takes the arrays (or one array, ``like``) and chooses.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace, is_torch_array


def is_traced(value: Any) -> bool:
    """Whether ``value`` is a JAX tracer, whose number cannot be looked at."""
    if isinstance(value, int | float | bool | str | tuple | type(None)) or is_torch_array(value):
        return False
    import jax

    return isinstance(value, jax.core.Tracer)


def while_loop(like: Array, condition: Callable, body: Callable, state: Any) -> Any:
    """Apply ``body`` to ``state`` while ``condition(state)``.

    Torch looks at one scalar a round, which on an accelerator waits for it.
    """
    if not is_torch_array(like):
        import jax

        return jax.lax.while_loop(condition, body, state)
    while bool(condition(state)):
        state = body(state)
    return state


def repeat(like: Array, count: int, body: Callable, state: Any) -> Any:
    """Apply ``body`` to ``state`` a fixed number of times; reverse-mode differentiable."""
    if not is_torch_array(like):
        import jax

        return jax.lax.scan(lambda carry, _: (body(carry), None), state, None, length=count)[0]
    for _ in range(count):
        state = body(state)
    return state


def branch(predicate: Array, if_true: Callable, if_false: Callable, state: Any) -> Any:
    """``if_true(state)`` or ``if_false(state)``, which must return the same structure."""
    if not is_torch_array(predicate):
        import jax

        return jax.lax.cond(predicate, if_true, if_false, state)
    return if_true(state) if bool(predicate) else if_false(state)


@lru_cache(maxsize=64)
def _jitted(function: Callable) -> Callable:
    import jax

    return jax.jit(function, static_argnums=0)


def run_compiled(function: Callable, settings: Any, *arrays: Any) -> Any:
    """``function(settings, *arrays)``; for JAX arrays compiled once per hashable ``settings``.

    Loops that are closures would otherwise be compiled again at every eager call. ``function`` must
    be a module-level function, so that its compilation is found again. Settings that hold a traced
    value are inside somebody's compilation already.
    """
    if is_torch_array(arrays[0]) or any(is_traced(value) for value in vars(settings).values()):
        return function(settings, *arrays)
    return _jitted(function)(settings, *arrays)


def call_on_host(function: Callable, results: tuple[tuple[int, str], ...], *arrays: Array) -> tuple:
    """``function`` of NumPy arrays, inside JAX transformations too; not differentiable.

    ``results`` names length and dtype of each vector that it returns.
    """
    like = arrays[0]
    if is_torch_array(like):
        xp = array_namespace(like)
        answers = function(*(array.detach().cpu().numpy() for array in arrays))
        return tuple(
            xp.asarray(answer.astype(dtype), device=like.device)
            for answer, (_, dtype) in zip(answers, results, strict=True)
        )
    import jax

    def answer(*values: Any) -> tuple:
        answers = function(*(np.asarray(value) for value in values))
        return tuple(
            found.astype(dtype) for found, (_, dtype) in zip(answers, results, strict=True)
        )

    shapes = tuple(jax.ShapeDtypeStruct((length,), np.dtype(dtype)) for length, dtype in results)
    return jax.pure_callback(answer, shapes, *arrays, vmap_method="sequential")


def sorted_rows(rows: Array) -> Array:
    """``rows`` sorted along the last axis, differentiable.

    On the CPU NumPy finds the order: its vectorised argsort takes a sixth of torch's time. Torch's
    function transforms refuse to show it their tensors and sort themselves.
    """
    xp = array_namespace(rows)
    if is_torch_array(rows) and rows.device.type == "cpu":
        try:
            order = xp.asarray(np.argsort(rows.detach().numpy(), axis=-1))
        except RuntimeError:
            return xp.sort(rows, axis=-1)
        return xp.take_along_axis(rows, order, axis=-1)
    return xp.sort(rows, axis=-1)


def value_and_grad(function: Callable, parameters: tuple[Array, ...]) -> tuple[Array, tuple]:
    """``function(parameters)``, a scalar, and its gradient; both without history."""
    if not is_torch_array(parameters[0]):
        import jax

        return jax.value_and_grad(function)(parameters)
    import torch

    with torch.enable_grad():
        leaves = tuple(parameter.detach().requires_grad_() for parameter in parameters)
        value = function(leaves)
        gradient = torch.autograd.grad(value, leaves)
    return value.detach(), gradient
