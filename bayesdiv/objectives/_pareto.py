"""The shape of the weights' tail."""

from typing import Any

import numpy as np


def pareto_k(log_weight: Any) -> Any:
    """Pareto shape k of exp(log_weight), ``(num_particles, *plates)`` → ``plates``, NumPy.

    Below 0.5 the weights have finite variance, below 0.7 smoothed estimates are reliable, above 1
    they have no mean (Vehtari et al. 2024, §3). NaN with fewer than 25 particles, whose five
    largest the fit needs.
    """
    values = np.asarray(log_weight.detach().cpu() if hasattr(log_weight, "detach") else log_weight)
    values = values.astype(np.float64)
    if values.shape[0] < 25:
        return np.full(values.shape[1:], np.nan)[()]
    import arviz

    flat = values.reshape(values.shape[0], -1)
    shapes = [arviz.psislw(column - column.max())[1] for column in flat.T]
    return np.asarray(shapes, dtype=np.float64).reshape(values.shape[1:])[()]
