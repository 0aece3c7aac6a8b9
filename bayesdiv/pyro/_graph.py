"""What a tensor was computed from, read off autograd's graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.distributions import Distribution
from torch.distributions.transforms import Transform

_PLAIN = (bool, int, float, str, torch.Size, type(None))


def graph_nodes(values: Iterable[torch.Tensor]) -> set[Any]:
    """The nodes of autograd's graph that made ``values``; values without a gradient have none."""
    return {value.grad_fn for value in values if value.grad_fn is not None}


def reaches(
    tensors: Iterable[torch.Tensor], targets: set[Any], visited: set[Any] | None = None
) -> bool:
    """Whether any of ``tensors`` was computed from a value whose node is in ``targets``.

    ``visited`` holds nodes that are known not to lead there, and grows.
    """
    visited = set() if visited is None else visited
    stack = [tensor.grad_fn for tensor in tensors]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        if node in targets:
            return True
        visited.add(node)
        stack.extend(entry[0] for entry in node.next_functions)
    return False


def reaches_parameters(tensors: Iterable[torch.Tensor], cut: set[Any]) -> bool:
    """Whether a leaf that requires a gradient is reached other than through a node in ``cut``."""
    visited: set[Any] = set(cut)
    stack = []
    for tensor in tensors:
        if tensor.requires_grad and tensor.grad_fn is None:
            return True
        stack.append(tensor.grad_fn)
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        if hasattr(node, "variable"):  # AccumulateGrad, the end of the graph at a leaf.
            return True
        visited.add(node)
        stack.extend(entry[0] for entry in node.next_functions)
    return False


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors that a distribution is made of; those in closures and modules are not found."""
    found, stack, seen = [], [value], set()
    while stack:
        entry = stack.pop()
        if isinstance(entry, torch.Tensor):
            found.append(entry)
        elif isinstance(entry, list | tuple):
            stack.extend(entry)
        elif _can_look_into(entry) and id(entry) not in seen:
            seen.add(id(entry))
            stack.extend(part for name, part in vars(entry).items() if name != "_cached_x_y")
    return found


def detached(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """A distribution with every tensor that :func:`tensors_of` finds detached."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, list):
        return [detached(entry, copies) for entry in value]
    if type(value) is tuple:
        return tuple(detached(entry, copies) for entry in value)
    if not _can_look_into(value):
        return value
    # A transform and its inverse may hold each other.
    copies = {} if copies is None else copies
    if id(value) not in copies:
        clone = copies[id(value)] = object.__new__(type(value))
        contents = clone.__dict__
        for name, entry in vars(value).items():
            contents[name] = entry if type(entry) in _PLAIN else detached(entry, copies)
        if isinstance(value, Transform):
            contents["_cached_x_y"] = (None, None)
            # An inverse transform holds its forward one there, any other at most a weak reference.
            if not isinstance(contents.get("_inv"), Transform):
                contents["_inv"] = None
    return copies[id(value)]


def _can_look_into(value: Any) -> bool:
    # Modules are shared with later steps and refer to themselves: they are left as they are.
    return isinstance(value, Distribution | Transform) and not isinstance(value, torch.nn.Module)


def forget_cached_inverses(fn: Any) -> None:
    """Make transforms invert afresh: a cached inverse still hangs on the parameters."""
    stack, seen = [fn], set()
    while stack:
        entry = stack.pop()
        if entry is None or id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, Transform):
            entry._cached_x_y = (None, None)
            inverse = getattr(entry, "_inv", None)
            stack += [*getattr(entry, "parts", ()), getattr(entry, "base_transform", None)]
            stack += [inverse] if isinstance(inverse, Transform) else []
        else:
            stack += [*getattr(entry, "transforms", ()), getattr(entry, "base_dist", None)]
