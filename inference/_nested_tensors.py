"""States that are nested named tuples of tensors, as flat lists that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def leaves_of(state: Any) -> list[torch.Tensor]:
    """The tensors of a nested state, in order, without history."""
    if torch.is_tensor(state):
        return [state.detach()]
    return [leaf for part in state for leaf in leaves_of(part)]


def filled(template: Any, leaves: Iterator[torch.Tensor]) -> Any:
    """A state built as ``template`` from tensors in the order of `leaves_of`."""
    if torch.is_tensor(template):
        return next(leaves)
    parts = [filled(part, leaves) for part in template]
    return type(template)(*parts) if hasattr(template, "_fields") else type(template)(parts)
