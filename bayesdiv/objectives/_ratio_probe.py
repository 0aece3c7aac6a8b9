r"""What held-out rows say of a learnt log-ratio: how far apart the classes are, and whether to
trust the number."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from bayesdiv._array import Array

# Bins of the calibration error, equally full.
_NUM_BINS = 10
# Keeps the fit finite where a critic separates the rows it is calibrated on.
_RIDGE = 1e-4
_SEPARABLE_ACCURACY = 0.999
_SEPARABLE_SHARE = 0.99


class Calibration(NamedTuple):
    """l ≈ slope · logit + intercept; (1, 0) says that the logit is right as it is."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logits: Array) -> Array:
        """The calibrated log-ratio, of the shape of ``logits``."""
        return self.slope * logits + self.intercept


class RatioProbe(NamedTuple):
    """Numbers from rows of both classes that the critic has not learnt from.

    ``implied_jensen_shannon`` is log 2 − ``loss``/2, a lower bound on JS(p, q) in expectation.
    ``accuracy`` is the mean of the two classes' and 2 · accuracy − 1 bounds the total variation
    from below; ``accuracy_error`` is its standard error where the classes are alike.
    ``calibration`` is fitted to these rows; ``calibration_error`` is the mean gap between the
    predicted and the observed share of p, over ten bins, before calibration. ``saturated`` is the
    share of rows at the clamp.
    """

    loss: float
    implied_jensen_shannon: float
    accuracy: float
    accuracy_error: float
    implied_total_variation: float
    calibration: Calibration
    calibration_error: float
    saturated: float

    @property
    def is_dead(self) -> bool:
        """Whether the classes cannot be told apart: accuracy within 2 standard errors of ½."""
        return self.accuracy <= 0.5 + 2.0 * self.accuracy_error

    @property
    def is_separable(self) -> bool:
        """Whether hardly a row is in doubt, so that l is as large as training made it."""
        close = self.implied_jensen_shannon > _SEPARABLE_SHARE * math.log(2.0)
        return self.accuracy > _SEPARABLE_ACCURACY or close

    def warn(self) -> RatioProbe:
        """Warn of a dead critic or of separable classes; returns itself."""
        numbers = (
            f"held-out accuracy {self.accuracy:.4f}, implied Jensen–Shannon divergence "
            f"{self.implied_jensen_shannon:.4f} of at most {math.log(2.0):.4f}"
        )
        if self.is_separable:
            warnings.warn(
                f"the classes are separable ({numbers}): the log-ratio has no finite truth to "
                "learn, and artefacts dominate it. Draw both classes alike (same lengths, "
                "temperature and format), or regularise the critic.",
                RuntimeWarning,
                stacklevel=2,
            )
        elif self.is_dead:
            warnings.warn(
                f"the critic is dead ({numbers}, within two standard errors of no signal): the "
                "classes are alike, or it needs more capacity, steps or data.",
                RuntimeWarning,
                stacklevel=2,
            )
        return self


def probe_logits(p_logits: Any, q_logits: Any, max_log_ratio: float) -> RatioProbe:
    """A `RatioProbe` from the unclamped log-ratios of held-out rows, ``(n,)`` and ``(m,)``."""
    p, q = (np.asarray(rows, dtype=np.float64) for rows in (p_logits, q_logits))
    for name, rows in (("p_logits", p), ("q_logits", q)):
        if rows.ndim != 1 or len(rows) < 2:
            raise ValueError(
                f"{name} must be the logits of at least 2 held-out rows, shape (n,), got shape "
                f"{rows.shape}."
            )
        if not np.isfinite(rows).all():
            raise ValueError(
                f"{name} must be finite, got {rows[~np.isfinite(rows)][0]} in row "
                f"{int(np.argmin(np.isfinite(rows)))}; the critic has diverged."
            )
    loss = float(np.logaddexp(0.0, -p).mean() + np.logaddexp(0.0, q).mean())
    hits = [(rows > 0).mean() + 0.5 * (rows == 0).mean() for rows in (p, -q)]
    accuracy = float(np.mean(hits))
    return RatioProbe(
        loss=loss,
        implied_jensen_shannon=math.log(2.0) - 0.5 * loss,
        accuracy=accuracy,
        accuracy_error=0.25 * math.sqrt(1.0 / len(p) + 1.0 / len(q)),
        implied_total_variation=2.0 * accuracy - 1.0,
        calibration=_calibrate(p, q),
        calibration_error=_calibration_error(p, q),
        saturated=float((np.abs(np.concatenate([p, q])) >= max_log_ratio).mean()),
    )


def _classes(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, and weights that give either class the half of the total."""
    logits = np.concatenate([p, q])
    labels = np.concatenate([np.ones(len(p)), np.zeros(len(q))])
    weights = np.concatenate([np.full(len(p), 0.5 / len(p)), np.full(len(q), 0.5 / len(q))])
    return logits, labels, weights


def _calibrate(p: np.ndarray, q: np.ndarray) -> Calibration:
    """Platt's logistic regression of the class on the logit, by damped Newton steps."""
    logits, labels, weights = _classes(p, q)
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    # A logit without spread says nothing of its slope, which then stays 1.
    start = np.array([1.0, 0.0])

    def loss(point: np.ndarray) -> float:
        value = np.logaddexp(0.0, design @ point) - labels * (design @ point)
        return float(weights @ value + 0.5 * _RIDGE * ((point - start) ** 2).sum())

    point, value = start, loss(start)
    for _ in range(50):
        share = 0.5 * (1.0 + np.tanh(0.5 * (design @ point)))
        gradient = design.T @ (weights * (share - labels)) + _RIDGE * (point - start)
        curvature = (design.T * (weights * share * (1.0 - share))) @ design
        move = np.linalg.solve(curvature + _RIDGE * np.eye(2), gradient)
        size = 1.0
        while size > 1e-6 and loss(point - size * move) > value:
            size *= 0.5
        point = point - size * move
        value = loss(point)
        if np.abs(size * move).max() < 1e-10:
            break
    return Calibration(float(point[0]), float(point[1]))


def _calibration_error(p: np.ndarray, q: np.ndarray) -> float:
    logits, labels, weights = _classes(p, q)
    share = 0.5 * (1.0 + np.tanh(0.5 * logits))
    # By value, so that rows of one logit share a bin.
    edges = np.unique(np.quantile(logits, np.linspace(0.0, 1.0, _NUM_BINS + 1)[1:-1]))
    gaps = np.bincount(np.searchsorted(edges, logits), weights=weights * (share - labels))
    return float(np.abs(gaps).sum())
