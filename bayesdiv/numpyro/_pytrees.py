"""Divergences as JAX pytrees, so that jitted functions take them as arguments.

Numbers and arrays are leaves: a jitted function is not compiled again when one of them changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

from bayesdiv.divergences import FDivergence, TwoSampleDivergence
from bayesdiv.objectives import RenyiBound, TailAdaptive

_registered: set[type] = set()


def register_divergence(cls: type, *, static: Iterable[str] = ()) -> type:
    """Make instances of the dataclass ``cls`` pytrees; usable as a decorator.

    Fields that hold floats, arrays or divergences are children; all other fields, and those named
    in ``static``, are part of the structure. The divergences of this package need no call.

    Raises
    ------
    TypeError
        ``cls`` is not a dataclass.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"cls must be a dataclass, got {cls!r}.")
    if cls not in _registered:
        flatten = partial(_flatten_with_keys, always_static=frozenset(static))
        jax.tree_util.register_pytree_with_keys(cls, flatten, _unflattener(cls))
        _registered.add(cls)
    return cls


def _is_static(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_static, value))
    if type(value) in _registered:
        return False
    # Anything else may be a number, or one of the placeholders that JAX puts in its place.
    return (
        value is None
        or isinstance(value, bool | int | str)
        or callable(value)
        or dataclasses.is_dataclass(value)
    )


def _flatten_with_keys(instance: Any, *, always_static: frozenset[str]) -> tuple[Any, Any]:
    names = [field.name for field in dataclasses.fields(instance)]
    static = tuple(
        (name, value)
        for name in names
        if name in always_static or _is_static(getattr(instance, name))
        for value in [getattr(instance, name)]
    )
    fixed = {name for name, _ in static}
    moving = tuple(name for name in names if name not in fixed)
    children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in moving]
    return children, (moving, static)


def _unflattener(cls: type) -> Any:
    def unflatten(description: Any, children: Any) -> Any:
        # Not through __init__: JAX also unflattens placeholders, which no check would pass.
        moving, static = description
        instance: Any = object.__new__(cls)
        for name, value in [*static, *zip(moving, children, strict=True)]:
            object.__setattr__(instance, name, value)
        return instance

    return unflatten


def _with_subclasses(cls: Any) -> list[Any]:
    return [cls, *(found for child in cls.__subclasses__() for found in _with_subclasses(child))]


# What steers a solver or chooses a formula (an order, a tolerance) is compared in Python.
_SMOOTH_PARAMETERS = {"epsilon", "bandwidth"}

for _base in (FDivergence, RenyiBound, TailAdaptive):
    for _cls in _with_subclasses(_base):
        register_divergence(_cls)
for _cls in _with_subclasses(TwoSampleDivergence):
    _names = {field.name for field in dataclasses.fields(_cls)}
    register_divergence(_cls, static=_names - _SMOOTH_PARAMETERS)
