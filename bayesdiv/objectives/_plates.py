"""From the log-probabilities of sites to log-weights with the independent plates kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, as_array_like


class Plate(NamedTuple):
    """A vectorised plate: ``dim`` counts from the right of the batch shape and is negative."""

    name: str
    dim: int
    size: int
    full_size: int


class SiteTerm(NamedTuple):
    """A sample site's log-probability, batch-shaped, with the plates it stands in."""

    name: str
    log_prob: Array
    plates: frozenset[Plate]


class PlateLayout(NamedTuple):
    """Plates common to every site, by dimension from the left, and their subsampling scale."""

    common: tuple[Plate, ...]
    scale: float


def find_layout(sites: Iterable[SiteTerm], *, linear: bool) -> PlateLayout:
    """The plates that enclose every site: elements of those have a log-weight each.

    Raises
    ------
    ValueError
        A plate is subsampled, encloses only some of the sites, and the objective is not linear in
        the log-weight: scaling inside the non-linearity would bias it.
    """
    stacks = [(site.name, site.plates) for site in sites]
    if not stacks:
        return PlateLayout((), 1.0)
    common = frozenset.intersection(*(plates for _, plates in stacks))
    if not linear:
        for plate in frozenset.union(*(plates for _, plates in stacks)) - common:
            if plate.size < plate.full_size:
                outside = [name for name, plates in stacks if plate not in plates]
                raise ValueError(
                    f"plate {plate.name!r} is subsampled ({plate.size} of {plate.full_size}) but "
                    f"does not enclose the sites {outside}. A non-linear objective is biased by "
                    "that: use 'reverse_kl', drop the subsampling, or put every site in the plate."
                )
    ordered = tuple(sorted(common, key=lambda plate: plate.dim))
    return PlateLayout(ordered, math.prod(plate.full_size / plate.size for plate in ordered))


def reduce_to_layout(term: Array, layout: PlateLayout, particle_dim: int | None) -> Array:
    """Sum ``term`` over every axis but the particles' and the common plates'.

    ``particle_dim`` is the (negative) particle axis of vectorised terms; the result is
    ``(num_particles, *common)`` then, and ``common`` without it. Terms may lack outer axes.
    """
    kept: Sequence[int] = [plate.dim for plate in layout.common]
    if particle_dim is not None:
        kept = [particle_dim, *kept]
    if not kept:
        return term.sum()
    xp = array_namespace(term)
    depth = max(term.ndim, -min(kept))
    term = xp.reshape(term, (1,) * (depth - term.ndim) + tuple(term.shape))
    drop = tuple(axis for axis in range(depth) if axis - depth not in kept)
    return xp.sum(term, axis=drop) if drop else term


def total(terms: Iterable[Any], shape: tuple[int, ...], like: Array) -> Array:
    """Σ terms, broadcast to ``shape``."""
    xp = array_namespace(like)
    result: Any = 0.0
    for term in terms:
        result = result + term
    if not hasattr(result, "shape"):
        result = as_array_like(result, like)
    return xp.broadcast_to(result, shape) if tuple(result.shape) != shape else result
