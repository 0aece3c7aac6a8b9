r"""Optimal transport on the line, for many lines at once.

On the line the optimal coupling of convex costs is monotone, so that

.. math:: W_p^p(\mu, \nu) = \int_0^1 |F_\mu^{-1}(t) - F_\nu^{-1}(t)|^p dt,

a finite sum over the merged levels of both distribution functions (Peyré and Cuturi, Computational
Optimal Transport, 2019, remark 2.30).
"""

from functools import lru_cache

import numpy as np

from bayesdiv._array import Array, absolute, array_namespace, as_array_like, is_torch_array
from bayesdiv._control import sorted_rows
from bayesdiv.divergences._two_sample import uniform_weights


def absolute_power(difference: Array, order: float) -> Array:
    """``|difference| ** order``, elementwise."""
    if order == 2:
        return difference * difference
    size = absolute(difference)
    return size if order == 1 else size**order


def transport_on_lines(
    x: Array, y: Array, x_weights: Array | None, y_weights: Array | None, order: float
) -> Array:
    r"""W_p^p between the rows of ``x``, shape ``(lines, n)``, and of ``y``, ``(lines, m)``.

    One vector of weights, ``(n,)`` and ``(m,)``, serves all lines; ``None`` is uniform. Returns
    shape ``(lines,)``. Differentiable in values and weights.
    """
    xp = array_namespace(x, y)
    if x_weights is not None or y_weights is not None:
        return _weighted(
            x,
            y,
            uniform_weights(x_weights, x.T),
            uniform_weights(y_weights, y.T),
            order,
        )
    x_sorted, y_sorted = sorted_rows(x), sorted_rows(y)
    if x.shape[-1] == y.shape[-1]:
        return xp.mean(absolute_power(x_sorted - y_sorted, order), axis=-1)
    x_index, y_index, mass = _uniform_coupling(x.shape[-1], y.shape[-1])
    gap = _take(x_sorted, x_index) - _take(y_sorted, y_index)
    return absolute_power(gap, order) @ as_array_like(mass, x)


def _take(rows: Array, index: np.ndarray) -> Array:
    xp = array_namespace(rows)
    if is_torch_array(rows):
        return xp.take(rows, xp.asarray(index, device=rows.device), axis=-1)
    return xp.take(rows, xp.asarray(index), axis=-1)


@lru_cache(maxsize=64)
def _uniform_coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks and masses of the monotone coupling of n with m equal weights, in exact integers."""
    # In units of 1/(n m) the levels of x are multiples of m, those of y multiples of n.
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    below, mass = levels[:-1], np.diff(levels)
    return below // m, below // n, mass / (n * m)


def _weighted(x: Array, y: Array, x_weights: Array, y_weights: Array, order: float) -> Array:
    xp = array_namespace(x, y)
    n, m = x.shape[-1], y.shape[-1]
    x_sorted, x_levels = _sorted_with_levels(x, x_weights)
    y_sorted, y_levels = _sorted_with_levels(y, y_weights)
    levels = xp.concat([x_levels, y_levels], axis=-1)
    order_of_levels = xp.argsort(levels, axis=-1, stable=True)
    levels = xp.take_along_axis(levels, order_of_levels, axis=-1)
    is_x = xp.astype(order_of_levels < n, order_of_levels.dtype)
    # The interval that ends at a level belongs to the first value whose own level is not before it.
    x_before = xp.cumulative_sum(is_x, axis=-1) - is_x
    y_before = xp.cumulative_sum(1 - is_x, axis=-1) - (1 - is_x)
    start = xp.concat([xp.zeros_like(levels[..., :1]), levels[..., :-1]], axis=-1)
    # Weights that sum to one only up to rounding leave a sliver past the last value: clip into it.
    x_value = xp.take_along_axis(x_sorted, xp.clip(x_before, 0, n - 1), axis=-1)
    y_value = xp.take_along_axis(y_sorted, xp.clip(y_before, 0, m - 1), axis=-1)
    return xp.sum(absolute_power(x_value - y_value, order) * (levels - start), axis=-1)


def _sorted_with_levels(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Sorted rows and the distribution function at each value."""
    xp = array_namespace(rows)
    rank = xp.argsort(rows, axis=-1, stable=True)
    weights = xp.broadcast_to(weights, rows.shape)
    return (
        xp.take_along_axis(rows, rank, axis=-1),
        xp.cumulative_sum(xp.take_along_axis(weights, rank, axis=-1), axis=-1),
    )
