r"""The maximum mean discrepancy."""

import math
from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, array_namespace, stop_gradient
from bayesdiv.divergences._costs import pairwise_cost, squared_distances
from bayesdiv.divergences._energy import check_root, mean_within, nonnegative_root
from bayesdiv.divergences._two_sample import (
    Samples,
    TwoSampleDivergence,
    check_choice,
    check_positive,
    uniform_weights,
)

KERNELS = ("gaussian", "laplace", "rational_quadratic")
MEDIAN_POINTS = 256


@dataclass(frozen=True)
class MMD(TwoSampleDivergence):
    r"""Squared maximum mean discrepancy under a kernel, or a mean of kernels of several widths.

    .. math:: MMD^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y)

    ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``; symmetric in them, and without a unit. With r
    = ‖x − y‖ and bandwidth h the kernels are ``gaussian`` exp(−r²/(2h²)), ``laplace`` exp(−r/h) and
    ``rational_quadratic`` (1 + r²/(2αh²))^(−α).

    Attributes
    ----------
    kernel : {"gaussian", "laplace", "rational_quadratic"}
        Which kernel.
    bandwidth : float or None
        h, in units of the data; ``None`` is the median distance between distinct points of both
        samples (of at most 256 evenly spaced ones of each), a constant of differentiation.
    multipliers : tuple of float
        The kernel is the mean of those with bandwidths ``bandwidth * multiplier``.
    mixture : float
        α of the rational quadratic kernel.
    unbiased : bool
        Leave out the pairs of a point with itself (a U-statistic, which may be negative) instead of
        counting them (a V-statistic, which may not).
    root : bool
        Whether to report the discrepancy instead of its square; not with ``unbiased``.

    Raises
    ------
    ValueError
        If a setting is outside its domain, or ``unbiased`` meets a sample of one; and as
        `TwoSampleDivergence` says of the samples.

    References
    ----------
    Gretton et al. (2012), A kernel two-sample test, lemma 6 and eq. 5.
    """

    kernel: str = "gaussian"
    bandwidth: Any = None
    multipliers: tuple[float, ...] = (1.0,)
    mixture: float = 1.0
    unbiased: bool = False
    root: bool = False

    def __post_init__(self) -> None:
        check_choice("kernel", self.kernel, KERNELS)
        if self.bandwidth is not None:
            check_positive("bandwidth", self.bandwidth)
        if not isinstance(self.multipliers, tuple) or not self.multipliers:
            raise ValueError(f"multipliers must be a tuple of numbers, got {self.multipliers!r}.")
        for multiplier in self.multipliers:
            check_positive("multipliers", multiplier)
        check_positive("mixture", self.mixture)
        check_root(root=self.root, unbiased=self.unbiased)

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        x, y = samples.x, samples.y
        a, b = uniform_weights(samples.x_weights, x), uniform_weights(samples.y_weights, y)
        width = median_distance(x, y) if self.bandwidth is None else self.bandwidth
        between = a @ self._gram(x, y, width) @ b
        within_x = mean_within(self._gram(x, x, width), a, unbiased=self.unbiased, diagonal=1.0)
        within_y = mean_within(self._gram(y, y, width), b, unbiased=self.unbiased, diagonal=1.0)
        value = within_x + within_y - 2.0 * between
        return nonnegative_root(value) if self.root else value

    def _gram(self, x: Array, y: Array, bandwidth: Any) -> Array:
        xp = array_namespace(x)
        if self.kernel == "laplace":
            distances = pairwise_cost(x, y, "euclidean")
        else:
            distances = squared_distances(x, y)
        total = 0.0 * distances
        for multiplier in self.multipliers:
            width = bandwidth * multiplier
            if self.kernel == "laplace":
                total = total + xp.exp(-distances / width)
            elif self.kernel == "gaussian":
                total = total + xp.exp(-distances / (2.0 * width * width))
            else:
                ratio = distances / (2.0 * self.mixture * width * width)
                total = total + xp.exp(-self.mixture * xp.log1p(ratio))
        return total / len(self.multipliers)


def median_distance(x: Array, y: Array) -> Array:
    """Detached median distance between points of the pooled samples; 1 if all coincide."""
    xp = array_namespace(x, y)
    pooled = stop_gradient(xp.concat([_thinned(x), _thinned(y)], axis=0))
    count = pooled.shape[0]
    ordered = xp.sort(xp.reshape(pairwise_cost(pooled, pooled, "euclidean"), (-1,)))
    # The smallest ``count`` entries are a point with itself; each other pair is there twice.
    num_pairs = count * (count - 1) // 2
    low, high = (num_pairs - 1) // 2, num_pairs // 2
    median = 0.5 * (ordered[count + 2 * low] + ordered[count + 2 * high])
    return xp.where(median > 0, median, xp.ones_like(median))


def _thinned(sample: Array) -> Array:
    step = math.ceil(sample.shape[0] / MEDIAN_POINTS)
    return sample[::step]
