"""The shape of the weights' tail, and the weights smoothed by it, from whichever ArviZ there is."""

from typing import Any

import numpy as np

MIN_PARTICLES = 25
"""The fit takes the largest fifth of the weights and needs five of them."""


def pareto_k(log_weight: Any) -> Any:
    """Pareto shape k of exp(log_weight), ``(num_particles, *plates)`` → ``plates``, NumPy.

    Below 0.5 the weights have finite variance, below 0.7 smoothed estimates are reliable, above 1
    they have no mean (Vehtari et al. 2024, §3). NaN with fewer than 25 particles, whose five
    largest the fit needs; minus infinity where all weights are equal.
    """
    values = np.asarray(log_weight.detach().cpu() if hasattr(log_weight, "detach") else log_weight)
    values = values.astype(np.float64)
    if values.shape[0] < MIN_PARTICLES:
        return np.full(values.shape[1:], np.nan)[()]
    flat = values.reshape(values.shape[0], -1)
    shapes = [smooth_log_weights(column)[1] for column in flat.T]
    return np.asarray(shapes, dtype=np.float64).reshape(values.shape[1:])[()]


def smooth_log_weights(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed, normalised log-weights and k, from ``(num_particles,)`` in float64.

    NaN for k where any weight is NaN or plus infinity, or all are zero; then nothing is smoothed.
    """
    top = log_weight.max()
    if not np.isfinite(top):
        return log_weight, np.nan
    centred = log_weight - top
    spread = np.ptp(centred)
    if spread < 1e-9:
        return np.full_like(centred, -np.log(len(centred))), -np.inf
    # A zero weight would make the fit's arithmetic NaN; e^-700 is the smallest that counts.
    smoothed, shape = _psislw(np.maximum(centred, -700.0))
    return np.asarray(smoothed), float(shape)


def _psislw(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """ArviZ's function; arviz-stats takes the negative of what ArviZ 0.x takes."""
    try:
        from arviz_stats.base import array_stats

        psislw = array_stats.psislw
    except ImportError:
        import arviz

        psislw = arviz.psislw
    smoothed, shape = psislw(log_weight)
    if smoothed[log_weight.argmax()] < smoothed[log_weight.argmin()]:
        smoothed, shape = psislw(-log_weight)
    return smoothed, shape
