"""Draws and what belongs to them, as NumPy arrays: what the hosts hand to the ArviZ bridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


def as_numpy(value: Any) -> np.ndarray:
    """A torch or JAX array, or a number, as a NumPy array without its graph."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.numpy()
    return np.asarray(value)


@dataclass
class Groups:
    """ArviZ groups before they become datasets.

    ``variables[group][name]`` has shape ``(chain, draw, *shape)``; groups whose name contains
    "data" have no leading axes. ``dims[name]`` names the axes of ``shape`` from the left, None
    where an axis has no name; later axes are unnamed. ``attrs`` describe the fit;
    ``deterministic`` names the variables that follow from others.
    """

    variables: dict[str, dict[str, np.ndarray]]
    dims: dict[str, list[str | None]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    deterministic: tuple[str, ...] = ()

    def with_attrs(self, **attrs: Any) -> Groups:
        """The same groups with more attributes; those that are None are left out."""
        known = {name: value for name, value in attrs.items() if value is not None}
        return replace(self, attrs={**self.attrs, **known})


def stack_chains(chains: Sequence[Groups]) -> Groups:
    """Independent runs, each with one chain or more, as the chains of one posterior.

    Raises
    ------
    ValueError
        If the runs have different variables, shapes or numbers of draws.
    """
    first = chains[0]
    variables: dict[str, dict[str, np.ndarray]] = {}
    for group, values in first.variables.items():
        variables[group] = {}
        for name, value in values.items():
            parts = [chain.variables.get(group, {}).get(name) for chain in chains]
            shapes = [None if part is None else part.shape[1:] for part in parts]
            if "data" in group:
                variables[group][name] = value
                continue
            if any(shape != value.shape[1:] for shape in shapes):
                raise ValueError(
                    f"runs must have the same variables and numbers of draws to be chains of one "
                    f"posterior; {group}[{name!r}] has shapes {shapes} (draw, ...)."
                )
            variables[group][name] = np.concatenate([part for part in parts if part is not None])
    return replace(first, variables=variables)


def group_weighted_draws(draws: Mapping[str, Any], log_weights: Any) -> Groups:
    """Draws with their log-weights, as groups.

    Parameters
    ----------
    draws
        ``{name: (draw, *shape)}``, or ``{name: (chain, draw, *shape)}`` where ``log_weights`` has
        shape ``(chain, draw)``.
    log_weights
        ``(draw,)`` or ``(chain, draw)``, nats, up to a constant; None for equal weights, in which
        case ``draws`` are those of one chain.

    Raises
    ------
    ValueError
        No draws, or shapes that do not fit ``log_weights``.
    """
    if not draws:
        raise ValueError("draws must hold at least one variable, got an empty mapping.")
    values = {name: as_numpy(value) for name, value in draws.items()}
    weights = None if log_weights is None else as_numpy(log_weights).astype(np.float64)
    if weights is not None and weights.ndim not in (1, 2):
        raise ValueError(
            f"log_weights must have shape (draw,) or (chain, draw), got {weights.shape}."
        )
    lead = next(iter(values.values())).shape[:1] if weights is None else weights.shape
    for name, value in values.items():
        if value.shape[: len(lead)] != lead or not lead:
            raise ValueError(
                f"draws[{name!r}] must have leading shape {lead or '(draw,)'}, got {value.shape}."
            )
    if len(lead) == 1:
        values = {name: value[None] for name, value in values.items()}
        weights = None if weights is None else weights[None]
    variables = {"posterior": values}
    if weights is not None:
        variables["sample_stats"] = {"log_weight": weights}
    return Groups(variables)
