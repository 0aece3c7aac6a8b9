"""What the weights of score distillation were like, noise level by noise level."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch

from bayesdiv.objectives import pareto_k

# Steps that a report looks back on.
_STEPS = 50


class NoiseReport(NamedTuple):
    """NumPy arrays of one entry a noise bin, over the last steps; NaN where a bin had no row.

    ``edges``, ``(bins + 1,)``, are the bins' ends in σ. ``weight_mean``, ``weight_min``,
    ``weight_max`` are of the weights as used, ``ess_share`` is their effective sample size over the
    number of rows. ``log_mean_ratio`` is what stage 1 takes off; near 0 the ratio is calibrated.
    ``pareto_k`` is that of the ratio: above 0.7 weights that grow like it are not to be trusted.
    """

    edges: np.ndarray
    num_rows: np.ndarray
    weight_mean: np.ndarray
    weight_min: np.ndarray
    weight_max: np.ndarray
    ess_share: np.ndarray
    log_mean_ratio: np.ndarray
    pareto_k: np.ndarray


class WeightHistory:
    """Log-ratios, weights and bins of the last steps, left on their device."""

    def __init__(self) -> None:
        self._rows: deque[torch.Tensor] = deque(maxlen=_STEPS)

    def add(self, log_ratio: torch.Tensor, weights: torch.Tensor, bins: torch.Tensor) -> None:
        self._rows.append(torch.stack([log_ratio, weights, bins]))

    def report(self, edges: np.ndarray, log_means: torch.Tensor) -> NoiseReport:
        num_bins = len(edges) - 1
        rows = (
            torch.cat(list(self._rows), dim=1).double().cpu().numpy()
            if self._rows
            else np.zeros((3, 0))
        )
        columns: dict[str, Any] = {name: np.full(num_bins, np.nan) for name in NoiseReport._fields}
        columns["num_rows"] = np.zeros(num_bins, dtype=int)
        for k in range(num_bins):
            log_ratio, weights, _ = rows[:, rows[2] == k]
            columns["num_rows"][k] = len(weights)
            if not len(weights):
                continue
            columns["weight_mean"][k] = weights.mean()
            columns["weight_min"][k], columns["weight_max"][k] = weights.min(), weights.max()
            squares = (weights**2).sum()
            columns["ess_share"][k] = weights.sum() ** 2 / squares / len(weights) if squares else 0
            columns["pareto_k"][k] = pareto_k(log_ratio)
        columns["edges"] = edges
        columns["log_mean_ratio"] = log_means.double().cpu().numpy()
        return NoiseReport(**columns)
