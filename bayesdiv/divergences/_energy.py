r"""The energy distance."""

from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, array_namespace
from bayesdiv.divergences._costs import pairwise_cost
from bayesdiv.divergences._two_sample import (
    Samples,
    TwoSampleDivergence,
    check_positive,
    safe_root,
    uniform_weights,
)


@dataclass(frozen=True)
class EnergyDistance(TwoSampleDivergence):
    r"""Energy distance with exponent β between two samples.

    .. math:: 2 E\|X - Y\|^\beta - E\|X - X'\|^\beta - E\|Y - Y'\|^\beta

    ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``; symmetric in them. In units of the data to the
    power β; `scipy.stats.energy_distance` reports the root.

    Attributes
    ----------
    exponent : float
        β, between 0 and 2, both excluded: at 2 only the means are compared.
    unbiased : bool
        Leave out the pairs of a point with itself (a U-statistic, which may be negative) instead of
        counting them (a V-statistic, which may not).
    root : bool
        Whether to report the square root; not with ``unbiased``.

    Raises
    ------
    ValueError
        If a setting is outside its domain, or ``unbiased`` meets a sample of one; and as
        `TwoSampleDivergence` says of the samples.

    References
    ----------
    Székely and Rizzo (2013), Energy statistics, eq. 2.5 and definition 2.
    """

    exponent: float = 1.0
    unbiased: bool = False
    root: bool = False

    def __post_init__(self) -> None:
        check_positive("exponent", self.exponent)
        if not self.exponent < 2:
            raise ValueError(
                f"exponent must be below 2, got {self.exponent!r}; at 2 only means are compared."
            )
        check_root(root=self.root, unbiased=self.unbiased)

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        x, y = samples.x, samples.y
        a, b = uniform_weights(samples.x_weights, x), uniform_weights(samples.y_weights, y)
        between = a @ self._distances(x, y) @ b
        within_x = mean_within(self._distances(x, x), a, unbiased=self.unbiased, diagonal=0.0)
        within_y = mean_within(self._distances(y, y), b, unbiased=self.unbiased, diagonal=0.0)
        value = 2.0 * between - within_x - within_y
        return nonnegative_root(value) if self.root else value

    def _distances(self, x: Array, y: Array) -> Array:
        distances = pairwise_cost(x, y, "euclidean")
        return distances if self.exponent == 1 else safe_root(distances, 1.0 / self.exponent)


def check_root(*, root: bool, unbiased: bool) -> None:
    """Refuse the root of an estimate that may be negative."""
    if root and unbiased:
        raise ValueError(
            "root must be False with unbiased=True, whose estimate may be negative, got root=True."
        )


def mean_within(matrix: Array, weights: Array, *, unbiased: bool, diagonal: float) -> Array:
    """Weighted mean of ``matrix`` over pairs of one sample, with or without a point and itself."""
    everything = weights @ matrix @ weights
    if not unbiased:
        return everything
    if weights.shape[0] < 2:
        raise ValueError("unbiased=True needs at least 2 points in each sample, got 1.")
    repeated = array_namespace(weights).sum(weights * weights)
    return (everything - diagonal * repeated) / (1.0 - repeated)


def nonnegative_root(value: Array) -> Array:
    """√value, with 0 for what rounding made negative."""
    return safe_root(array_namespace(value).clip(value, 0.0, None), 2.0)
