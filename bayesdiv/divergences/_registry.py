"""Divergences by name."""

from __future__ import annotations

import inspect
from typing import Any

from bayesdiv.divergences import _algebra, _members
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._distributional_sliced import DistributionalSlicedWasserstein
from bayesdiv.divergences._energy import EnergyDistance
from bayesdiv.divergences._max_sliced import MaxSlicedWasserstein
from bayesdiv.divergences._mmd import MMD
from bayesdiv.divergences._sinkhorn import Sinkhorn
from bayesdiv.divergences._sliced import SlicedWasserstein
from bayesdiv.divergences._two_sample import TwoSampleDivergence
from bayesdiv.divergences._wasserstein import Wasserstein

_F_DIVERGENCES: dict[str, type[FDivergence]] = {
    "reverse_kl": _members.ReverseKL,
    "forward_kl": _members.ForwardKL,
    "jensen_shannon": _members.JensenShannon,
    "squared_hellinger": _members.SquaredHellinger,
    "pearson_chi2": _members.PearsonChi2,
    "neyman_chi2": _members.NeymanChi2,
    "jeffreys": _members.Jeffreys,
    "softened_reverse_kl": _members.SoftenedReverseKL,
    "alpha": _members.Alpha,
    "total_variation": _members.TotalVariation,
    "generalized_jensen_shannon": _algebra.GeneralizedJensenShannon,
}
_TWO_SAMPLE: dict[str, type[TwoSampleDivergence]] = {
    "wasserstein": Wasserstein,
    "sinkhorn": Sinkhorn,
    "sliced_wasserstein": SlicedWasserstein,
    "max_sliced_wasserstein": MaxSlicedWasserstein,
    "distributional_sliced_wasserstein": DistributionalSlicedWasserstein,
    "energy_distance": EnergyDistance,
    "mmd": MMD,
}


def list_divergences(kind: str = "all") -> list[str]:
    """Names that :func:`get_divergence` knows: ``kind`` is "all", "f" or "two_sample"."""
    kinds = {
        "f": list(_F_DIVERGENCES),
        "two_sample": list(_TWO_SAMPLE),
        "all": [*_F_DIVERGENCES, *_TWO_SAMPLE],
    }
    if kind not in kinds:
        raise ValueError(f"kind must be 'all', 'f' or 'two_sample', got {kind!r}.")
    return kinds[kind]


def get_divergence(
    divergence: str | FDivergence | TwoSampleDivergence, **parameters: Any
) -> FDivergence | TwoSampleDivergence:
    """The divergence called ``divergence``, built with ``parameters``; an object is returned as is.

    Raises
    ------
    ValueError
        An unknown name (the known ones are listed), or a parameter that the divergence lacks.
    TypeError
        Neither a name nor a divergence, or parameters given beside an object.

    Examples
    --------
    >>> get_divergence("alpha", order=0.5)
    Alpha(order=0.5)
    """
    if isinstance(divergence, FDivergence | TwoSampleDivergence):
        if parameters:
            raise TypeError(
                f"parameters {sorted(parameters)} were given beside the object {divergence!r}; "
                "set them where it is built, or pass its name."
            )
        return divergence
    if not isinstance(divergence, str):
        raise TypeError(
            "divergence must be a name, an FDivergence or a TwoSampleDivergence, "
            f"got {divergence!r} of type {type(divergence).__name__}."
        )
    members: dict[str, type[FDivergence] | type[TwoSampleDivergence]] = {
        **_F_DIVERGENCES,
        **_TWO_SAMPLE,
    }
    if divergence not in members:
        raise ValueError(
            f"divergence must be one of {', '.join(members)}, or a divergence object; "
            f"got {divergence!r}."
        )
    cls = members[divergence]
    accepted = inspect.signature(cls).parameters
    unknown = sorted(set(parameters) - set(accepted))
    if unknown:
        raise ValueError(
            f"{divergence!r} has no parameter {', '.join(map(repr, unknown))}; "
            f"it takes {', '.join(accepted) or 'none'}."
        )
    return cls(**parameters)
