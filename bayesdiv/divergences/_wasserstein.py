r"""The exact Wasserstein distance."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace, stop_gradient
from bayesdiv._control import call_on_host
from bayesdiv.divergences._quantiles import absolute_power, transport_on_lines
from bayesdiv.divergences._two_sample import (
    Samples,
    TwoSampleDivergence,
    check_order,
    safe_root,
    uniform_weights,
)

LARGEST_SIMPLEX_ITERATIONS = 10_000_000


@dataclass(frozen=True)
class Wasserstein(TwoSampleDivergence):
    r"""Exact Wasserstein distance of order p with the Euclidean ground norm.

    .. math:: W_p(\mu, \nu) = \Big(\min_P \sum_{ij} P_{ij} \|x_i - y_j\|^p\Big)^{1/p},
              \qquad P 1 = a,\; P^T 1 = b

    ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``; symmetric in them. In one dimension by
    sorting; otherwise POT's network simplex finds the plan on the host (under `jax.jit` through a
    callback), in roughly cubic time. The gradient holds the plan fixed, which is exact wherever the
    distance is differentiable (envelope theorem). In more than one dimension it runs into the
    samples, not into the weights.

    Attributes
    ----------
    order : float
        p, at least 1.
    root : bool
        Whether to report the distance, in units of the data, or its p-th power.

    Raises
    ------
    ValueError
        If a setting is outside its domain, and as `TwoSampleDivergence` says of the samples.

    References
    ----------
    Peyré and Cuturi (2019), Computational optimal transport, eq. 2.18 and remark 2.30.
    """

    order: float = 2.0
    root: bool = True

    def __post_init__(self) -> None:
        check_order(self.order)

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        if samples.x.shape[1] == 1:
            x, y, a, b = samples
            power = transport_on_lines(x.T, y.T, a, b, self.order)[0]
        else:
            power = self._planned_power(samples)
        return safe_root(power, self.order) if self.root else power

    def _planned_power(self, samples: Samples) -> Array:
        xp = array_namespace(samples.x)
        a = uniform_weights(samples.x_weights, samples.x)
        b = uniform_weights(samples.y_weights, samples.y)
        fixed = tuple(stop_gradient(array) for array in (samples.x, samples.y, a, b))
        x_index, y_index, mass = _optimal_pairs(*fixed, order=self.order)
        gap = xp.take(samples.x, x_index, axis=0) - xp.take(samples.y, y_index, axis=0)
        squared = xp.sum(absolute_power(gap, 2), axis=1)
        powers = squared if self.order == 2 else _half_power(squared, self.order)
        return mass @ powers


def _half_power(squared: Array, order: float) -> Array:
    """‖·‖^order from ‖·‖², with slope 0 at 0."""
    return safe_root(squared, 2.0 / order)


def _optimal_pairs(
    x: Array, y: Array, x_weights: Array, y_weights: Array, *, order: float
) -> tuple[Array, Array, Array]:
    """Indices of the matched pairs and their masses, each of shape ``(n + m - 1,)``."""

    size = x.shape[0] + y.shape[0] - 1
    # Named by its last word, as NumPy does, in both libraries.
    dtype = str(x.dtype).rpartition(".")[2]
    return call_on_host(
        partial(_simplex_pairs, order=order),
        ((size, "int32"), (size, "int32"), (size, dtype)),
        x,
        y,
        x_weights,
        y_weights,
    )


def _simplex_pairs(
    x: np.ndarray, y: np.ndarray, x_weights: np.ndarray, y_weights: np.ndarray, *, order: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import ot
    from scipy.spatial.distance import cdist

    # The simplex works in double precision, in which float32 weights need not sum to one.
    x_weights, y_weights = x_weights.astype(np.float64), y_weights.astype(np.float64)
    cost = cdist(x, y, "sqeuclidean")
    if order != 2:
        cost **= order / 2
    plan = ot.emd(
        x_weights / x_weights.sum(),
        y_weights / y_weights.sum(),
        cost,
        numItermax=LARGEST_SIMPLEX_ITERATIONS,
    )
    # A vertex of the polytope has at most n + m - 1 positive entries; padding carries no mass.
    size = x.shape[0] + y.shape[0] - 1
    rows, columns = np.nonzero(plan)
    padding = size - rows.size
    return (
        np.pad(rows, (0, padding)),
        np.pad(columns, (0, padding)),
        np.pad(plan[rows, columns], (0, padding)),
    )
