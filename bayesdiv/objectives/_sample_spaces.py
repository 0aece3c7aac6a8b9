"""What the spaces of two-sample objectives ask of sites and plates, in either host."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from bayesdiv.objectives._plates import Plate


class Codes(NamedTuple):
    """Latent sites of the data plate, the data plates' names, and the plates' full size."""

    names: list[str]
    plates: frozenset[str]
    full_size: int


def find_codes(
    latent: Mapping[str, frozenset[Plate]], observed: Iterable[frozenset[Plate]]
) -> Codes:
    """The latent sites that share a plate with an observed site.

    Raises
    ------
    ValueError
        There is none, or they stand in different plates and so have no common rows.
    """
    data_plates = {plate.name for plates in observed for plate in plates}
    codes = {
        name: plates
        for name, plates in latent.items()
        if data_plates & {plate.name for plate in plates}
    }
    if not codes:
        raise ValueError(
            "space='codes' needs a latent site and an observed site in one vectorised plate, the "
            "data plate; put both into a plate of the data's size, or use space='latent'."
        )
    if len(set(codes.values())) > 1:
        described = {name: sorted(p.name for p in plates) for name, plates in codes.items()}
        raise ValueError(
            f"space='codes' needs all codes in the same plates, got {described}; move inner "
            "plates into the event shape with .to_event(1)."
        )
    plates = next(iter(codes.values()))
    return Codes(
        list(codes),
        frozenset(plate.name for plate in plates) & frozenset(data_plates),
        math.prod(plate.full_size for plate in plates),
    )


def check_whole_plates(latent: Mapping[str, frozenset[Plate]]) -> None:
    """Raise where a latent site's plate is subsampled: its coordinates change from step to step."""
    for name, plates in latent.items():
        for plate in plates:
            if plate.size < plate.full_size:
                raise ValueError(
                    f"latent site {name!r} stands in plate {plate.name!r}, of which {plate.size} "
                    f"of {plate.full_size} are subsampled; space='latent' compares all latent "
                    "sites jointly, so use the whole plate, space='codes' or an f-divergence."
                )


def check_outside_codes(name: str, codes: Collection[str], global_sites: Collection[str]) -> None:
    """Raise if the guide site ``name``, outside the data plate, is not a global site's own."""
    if name in codes or name.removesuffix("_unconstrained") not in global_sites:
        raise ValueError(
            f"guide site {name!r} stands outside the data plate, so its density covers the codes "
            f"{sorted(codes)}; for space='codes' write an encoder that samples them inside the "
            "plate."
        )


def check_guide_site(name: str, distribution: Any, space: str) -> None:
    """Raise unless gradients flow through the site's draws."""
    if not getattr(distribution, "has_rsample", False):
        raise ValueError(
            f"guide site {name!r} ({type(distribution).__name__}) is not reparameterised, so a "
            f"divergence of samples (space={space!r}) has no gradient through it; use a "
            "reparameterised site or an f-divergence."
        )


def check_likelihood(name: str, distribution: Any) -> None:
    """Raise unless gradients flow through the likelihood's draws."""
    if not getattr(distribution, "has_rsample", False):
        raise ValueError(
            f"likelihood {name!r} ({type(distribution).__name__}) is not reparameterised, so "
            "space='data' has no gradient through it; use space='latent', an f-divergence, or a "
            "reparameterised likelihood."
        )


def refuse_without_observations() -> None:
    """Raise: there is nothing to compare in the data space."""
    raise ValueError(
        "space='data' compares observed sites, and the model has none; pass observations, or use "
        "space='latent'."
    )


def check_predicted_rows(
    name: str, observed: tuple[int, ...], predicted: tuple[int, ...], rows: int, num_rows: int
) -> None:
    """Raise unless predictions have the ``num_rows`` rows that observations call for."""
    if rows != num_rows:
        raise ValueError(
            f"observed site {name!r} has observations of shape {observed} but predicts shape "
            f"{predicted}: {rows} rows instead of {num_rows}; put its rows in a plate and its "
            "columns in the event shape with .to_event(1)."
        )
