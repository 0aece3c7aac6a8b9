"""How far draws of an approximate posterior are from reference draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesdiv.diagnostics._container import posterior_draws

LEVELS = (0.5, 0.9)
_BY_COORDINATE = ("mean_error", "sd_ratio", "coverage_50", "coverage_90")


@dataclass(frozen=True, eq=False)
class PosteriorAccuracy:
    """Accuracy by coordinate, each a mapping from variable to an array of the variable's shape.

    Coordinates that are constant in the reference are NaN and left out of the summaries.

    Attributes
    ----------
    mean_error
        (mean − reference mean) / reference sd.
    sd_ratio
        sd / reference sd: below 1 where the approximation is too narrow.
    coverage_50, coverage_90
        Share of reference draws inside the approximation's central interval of that level.
    sliced_wasserstein
        Sliced 2-Wasserstein distance of the joint laws, each coordinate divided by its reference
        sd. With n draws it does not fall below about n^(-1/2).
    """

    mean_error: dict[str, np.ndarray]
    sd_ratio: dict[str, np.ndarray]
    coverage_50: dict[str, np.ndarray]
    coverage_90: dict[str, np.ndarray]
    sliced_wasserstein: float

    @property
    def worst_mean_error(self) -> float:
        """Largest absolute error of a mean, in reference sd."""
        return float(np.nanmax(np.abs(_flat(self.mean_error))))

    @property
    def typical_sd_ratio(self) -> float:
        """Geometric mean of the ratios of standard deviations."""
        with np.errstate(divide="ignore"):
            return float(np.exp(np.nanmean(np.log(_flat(self.sd_ratio)))))

    @property
    def typical_coverage_50(self) -> float:
        """Mean coverage of the 50 % intervals."""
        return float(np.nanmean(_flat(self.coverage_50)))

    @property
    def typical_coverage_90(self) -> float:
        """Mean coverage of the 90 % intervals."""
        return float(np.nanmean(_flat(self.coverage_90)))

    def summary(self) -> dict[str, float]:
        """The numbers that a table needs."""
        return {
            "mean_error": self.worst_mean_error,
            "sd_ratio": self.typical_sd_ratio,
            "coverage_50": self.typical_coverage_50,
            "coverage_90": self.typical_coverage_90,
            "sliced_wasserstein": self.sliced_wasserstein,
        }

    def to_dataset(self) -> Any:
        """An ``xarray.Dataset`` of the variables with a leading dim "statistic"."""
        import xarray

        arrays = {}
        for variable in self.mean_error:
            values = np.stack([getattr(self, name)[variable] for name in _BY_COORDINATE])
            dims = ["statistic", *(f"{variable}_dim_{i}" for i in range(values.ndim - 1))]
            arrays[variable] = (dims, values)
        attrs = {"sliced_wasserstein": self.sliced_wasserstein}
        return xarray.Dataset(arrays, coords={"statistic": list(_BY_COORDINATE)}, attrs=attrs)


def compare_posteriors(
    draws: Any,
    reference: Any,
    *,
    variables: Sequence[str] | None = None,
    num_projections: int = 256,
    seed: int = 0,
) -> PosteriorAccuracy:
    """Compare draws of an approximation with reference draws of the posterior.

    Parameters
    ----------
    draws, reference
        ArviZ objects of either generation, MCMC objects, or mappings ``{name: (draw, *shape)}``;
        they may have different numbers of draws.
    variables
        Which to compare; all that both have by default. Name the latent sites where deterministic
        ones would count twice.
    num_projections
        Random directions of the sliced distance.
    seed
        Of the directions.

    Raises
    ------
    ValueError
        No common variable, an unknown one, different shapes, or values that are not finite.
    """
    ours, theirs = posterior_draws(draws, "draws"), posterior_draws(reference, "reference")
    names = [name for name in theirs if name in ours] if variables is None else list(variables)
    if not names:
        raise ValueError(
            f"draws and reference must share a variable, got {sorted(ours)} and {sorted(theirs)}."
        )
    statistics: dict[str, dict[str, np.ndarray]] = {statistic: {} for statistic in _BY_COORDINATE}
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in names:
        if name not in ours or name not in theirs:
            raise ValueError(
                f"variables must be in draws and reference, got {name!r}; draws have "
                f"{sorted(ours)}, the reference has {sorted(theirs)}."
            )
        x, y = ours[name].astype(np.float64), theirs[name].astype(np.float64)
        if x.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"{name!r} must have the same shape in both, got {x.shape[1:]} in draws and "
                f"{y.shape[1:]} in the reference."
            )
        for side, values in (("draws", x), ("reference", y)):
            if not np.isfinite(values).all():
                raise ValueError(f"{name!r} must be finite, got NaN or infinity in {side}.")
        for statistic, values in zip(_BY_COORDINATE, _by_coordinate(x, y), strict=True):
            statistics[statistic][name] = values
        scale = np.where(y.std(axis=0) > 0, y.std(axis=0), np.nan)
        for column, values in zip(columns, (x, y), strict=True):
            column.append((values / scale).reshape(len(values), -1))
    x, y = (np.concatenate(column, axis=1) for column in columns)
    varies = np.isfinite(y[0])
    if not varies.any():
        raise ValueError("reference must vary in some coordinate, got constants only.")
    distance = _sliced_distance(x[:, varies], y[:, varies], num_projections, seed)
    return PosteriorAccuracy(**statistics, sliced_wasserstein=distance)


def _by_coordinate(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean error, sd ratio and coverages of draws ``x`` against ``y``, each of shape ``shape``."""
    sd = y.std(axis=0)
    sd = np.where(sd > 0, sd, np.nan)
    coverages = []
    for level in LEVELS:
        low, high = np.quantile(x, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        inside = ((y >= low) & (y <= high)).mean(axis=0)
        coverages.append(np.where(np.isnan(sd), np.nan, inside))
    return (x.mean(axis=0) - y.mean(axis=0)) / sd, x.std(axis=0) / sd, *coverages


def _sliced_distance(x: np.ndarray, y: np.ndarray, num_projections: int, seed: int) -> float:
    import torch

    from bayesdiv.divergences import SlicedWasserstein

    divergence = SlicedWasserstein(num_projections=num_projections)
    rng = torch.Generator().manual_seed(seed)
    return float(divergence(torch.as_tensor(x), torch.as_tensor(y), rng=rng))


def _flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in values.values()])
