"""Ground costs between two samples, and their sum under a fixed plan."""

from collections.abc import Callable
from typing import Any

from bayesdiv._array import Array, absolute, array_namespace, is_torch_array, stop_gradient

GROUND_COSTS = ("sqeuclidean", "euclidean", "l1")


def check_ground_cost(cost: Any) -> None:
    """Refuse what is neither a known name nor callable."""
    if cost not in GROUND_COSTS and not callable(cost):
        known = ", ".join(repr(name) for name in GROUND_COSTS)
        raise ValueError(f"cost must be one of {known}, or a function of (x, y), got {cost!r}.")


def pairwise_cost(x: Array, y: Array, cost: str | Callable) -> Array:
    """The cost of every pair, shape ``(n, m)``.

    Squared distances come from one matrix product on samples around their common centre; distances
    from differences, because a root turns the product's rounding near zero into an error of 1e-3.
    """
    if callable(cost):
        matrix = cost(x, y)
        if tuple(matrix.shape) != (x.shape[0], y.shape[0]):
            raise ValueError(
                f"cost must return shape {(x.shape[0], y.shape[0])} for these samples, "
                f"got {tuple(matrix.shape)}."
            )
        return matrix
    if cost == "sqeuclidean":
        return squared_distances(x, y)
    return _norms(x, y, order=1 if cost == "l1" else 2)


def squared_distances(x: Array, y: Array) -> Array:
    """‖x − y‖² of every pair, shape ``(n, m)``."""
    xp = array_namespace(x, y)
    x, y = _centred(x, y)
    x_length, y_length = xp.sum(x * x, axis=1), xp.sum(y * y, axis=1)
    return xp.clip(x_length[:, None] + y_length[None, :] - 2.0 * (x @ y.T), 0.0, None)


def planned_cost(weights: Array, x: Array, y: Array, cost: str | Callable) -> Array:
    """Σ w C(x, y) for fixed ``weights``, shape ``(n, m)``, with gradients into the samples only."""
    xp = array_namespace(x, y)
    if cost != "sqeuclidean":
        return xp.sum(weights * pairwise_cost(x, y, cost))
    # Expanded, so that no (n, m) array enters the graph.
    x, y = _centred(x, y)
    rows, columns = xp.sum(weights, axis=1), xp.sum(weights, axis=0)
    separate = rows @ xp.sum(x * x, axis=1) + columns @ xp.sum(y * y, axis=1)
    return separate - 2.0 * xp.sum(x * (weights @ y))


def _centred(x: Array, y: Array) -> tuple[Array, Array]:
    """Both samples less their common centre, which cancels in every difference."""
    xp = array_namespace(x, y)
    centre = stop_gradient(0.5 * (xp.mean(x, axis=0) + xp.mean(y, axis=0)))
    return x - centre, y - centre


def _norms(x: Array, y: Array, *, order: int) -> Array:
    """‖x − y‖ of every pair, with slope 0 where it is 0."""
    xp = array_namespace(x, y)
    if is_torch_array(x):
        mode = "donot_use_mm_for_euclid_dist"
        return xp.cdist(x.contiguous(), y.contiguous(), p=float(order), compute_mode=mode)
    gap = x[:, None, :] - y[None, :, :]
    if order == 1:
        return xp.sum(absolute(gap), axis=-1)
    squared = xp.sum(gap * gap, axis=-1)
    apart = squared > 0
    return xp.where(apart, xp.sqrt(xp.where(apart, squared, 1.0)), 0.0)
