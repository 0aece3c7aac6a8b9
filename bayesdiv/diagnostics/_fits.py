"""What a comparison keeps of each fit, and the numbers it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesdiv.diagnostics._accuracy import compare_posteriors
from bayesdiv.diagnostics._groups import Groups
from bayesdiv.diagnostics._psis import psis
from bayesdiv.objectives._pareto import MIN_PARTICLES

STATISTICS = (
    "log_evidence",
    "pareto_k",
    "ess",
    "mean_error",
    "sd_ratio",
    "coverage_50",
    "coverage_90",
    "sliced_wasserstein",
    "seconds",
)


@dataclass
class Fit:
    """One fit: its draws (one chain) and its losses, or the error that ended it."""

    groups: Groups | None
    losses: Sequence[float]
    seconds: float = np.nan
    error: str | None = None
    traceback: str | None = None
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def draws(self) -> dict[str, np.ndarray]:
        """``{variable: (draw, *shape)}``."""
        assert self.groups is not None
        return {name: value[0] for name, value in self.groups.variables["posterior"].items()}


def describe_fit(
    fit: Fit, reference: Mapping[str, np.ndarray] | None, variables: Sequence[str] | None
) -> dict[str, float]:
    """The statistics of a fit that succeeded; see :func:`bayesdiv.diagnostics.compare`."""
    assert fit.groups is not None
    found = dict.fromkeys(STATISTICS, np.nan) | {"seconds": fit.seconds}
    stats = fit.groups.variables["sample_stats"]
    if "log_p" in stats:
        log_weight = (stats["log_p"] - stats["log_q"])[0].astype(np.float64)
        top = log_weight.max()
        if np.isfinite(top):
            found["log_evidence"] = float(top + np.log(np.mean(np.exp(log_weight - top))))
            weights = np.exp(log_weight - top)
            found["ess"] = float(weights.sum() ** 2 / np.sum(weights**2))
            if len(log_weight) >= MIN_PARTICLES:
                found["pareto_k"] = psis(log_weight).k
    if reference is not None:
        accuracy = compare_posteriors(fit.draws, reference, variables=variables)
        found.update(accuracy.summary())
    return found


def aggregate(label: str, fits: Sequence[Fit]) -> dict[str, Any]:
    """One row: means over the fits that succeeded, ``*_spread`` their standard deviations."""
    good = [fit for fit in fits if fit.error is None]
    errors = list(dict.fromkeys(fit.error for fit in fits if fit.error is not None))
    row: dict[str, Any] = {"objective": label, "fits": len(fits), "failed": len(fits) - len(good)}
    for name in STATISTICS:
        values = np.array([fit.statistics[name] for fit in good if not _is_nan(fit, name)])
        row[name] = float(values.mean()) if len(values) else np.nan
        row[f"{name}_spread"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
    row["error"] = "; ".join(errors) if errors else None
    return row


def _is_nan(fit: Fit, name: str) -> bool:
    return bool(np.isnan(fit.statistics.get(name, np.nan)))
