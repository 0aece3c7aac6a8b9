"""What the weights of score distillation were like, noise level by noise level."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups, as_numpy
from bayesdiv.objectives import pareto_k

# Steps that a report looks back on.
_STEPS = 50


class NoiseReport(NamedTuple):
    """NumPy arrays of one entry a noise bin, over the last steps; NaN where a bin had no row.

    ``edges``, ``(bins + 1,)``, are the bins' ends in σ. ``weight_mean``, ``weight_min``,
    ``weight_max`` are of the weights as used, ``ess_share`` is their effective sample size over the
    number of rows. ``log_mean_ratio`` is what stage 1 takes off; near 0 the ratio is calibrated.
    ``pareto_k`` is that of the ratio: above 0.7 weights that grow like it are not to be trusted.
    ``critic_accuracy`` is the critic's on the rows of its last updates: ½ where the two laws are
    alike or the critic is dead, 1 where its ratio has nothing to say but "far apart".
    """

    edges: np.ndarray
    num_rows: np.ndarray
    weight_mean: np.ndarray
    weight_min: np.ndarray
    weight_max: np.ndarray
    ess_share: np.ndarray
    log_mean_ratio: np.ndarray
    pareto_k: np.ndarray
    critic_accuracy: np.ndarray


class WeightHistory:
    """Log-ratios, weights and bins of the last steps, left on their device."""

    def __init__(self) -> None:
        self._rows: deque[torch.Tensor] = deque(maxlen=_STEPS)
        self._hits: deque[torch.Tensor] = deque(maxlen=_STEPS)

    def add(self, log_ratio: torch.Tensor, weights: torch.Tensor, bins: torch.Tensor) -> None:
        self._rows.append(torch.stack([log_ratio, weights, bins]))

    def add_critic(self, right: torch.Tensor, bins: torch.Tensor) -> None:
        """Whether the critic took each row for what it was, and the row's bin."""
        self._hits.append(torch.stack([right.to(bins.dtype), bins]))

    def report(self, edges: np.ndarray, log_means: torch.Tensor) -> NoiseReport:
        num_bins = len(edges) - 1
        rows, hits = _together(self._rows, 3), _together(self._hits, 2)
        columns: dict[str, Any] = {name: np.full(num_bins, np.nan) for name in NoiseReport._fields}
        columns["num_rows"] = np.zeros(num_bins, dtype=int)
        for k in range(num_bins):
            judged = hits[0, hits[1] == k]
            if len(judged):
                columns["critic_accuracy"][k] = judged.mean()
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


def reports_to_arviz(reports: Sequence[NoiseReport], samples: Sequence[Any]) -> Any:
    """Runs as chains: the student's samples as the posterior of ``x``, reports as its statistics.

    Parameters
    ----------
    reports
        `ScoreDistillation.report` of each run, over the same bins. They become ``sample_stats``
        with dimension ``noise_bin``, one draw a run; the bins' ends are the attribute
        ``noise_bin_edges``.
    samples
        Of each run, ``(draws, *event_shape)``, equally many.

    Returns
    -------
    An ``InferenceData``, or a ``DataTree`` with ArviZ 1.

    Raises
    ------
    ValueError
        No run, or numbers of runs, samples or bins that differ.
    """
    rows = [as_numpy(each) for each in samples]
    if not rows or len(reports) != len(rows) or len({row.shape for row in rows}) > 1:
        raise ValueError(
            "reports and samples must have one entry a run, at least one, and samples equal "
            f"shapes, got {len(reports)} reports and shapes {[row.shape for row in rows]}."
        )
    if len({len(report.num_rows) for report in reports}) > 1:
        raise ValueError(
            "reports must be over the same bins, got numbers of bins "
            f"{[len(report.num_rows) for report in reports]}."
        )
    names = [name for name in NoiseReport._fields if name != "edges"]
    stats = {name: np.stack([getattr(each, name) for each in reports])[:, None] for name in names}
    dims: dict[str, list[str | None]] = {name: ["noise_bin"] for name in names}
    groups = Groups({"posterior": {"x": np.stack(rows)}, "sample_stats": stats}, dims)
    edges = reports[0].edges.tolist()
    return build_container(groups.with_attrs(inference_library="bayesdiv", noise_bin_edges=edges))


def _together(parts: deque[torch.Tensor], num_rows: int) -> np.ndarray:
    if not parts:
        return np.zeros((num_rows, 0))
    return torch.cat(list(parts), dim=1).double().cpu().numpy()
