"""How well glottal instants are found: scores over larynx cycles."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["EpochMetrics", "average_epoch_metrics", "checked_instants", "epoch_metrics"]

# Seconds between two closures of one voice, at 500 and at 20 Hz.
SHORTEST_CYCLE, LONGEST_CYCLE = 1.0 / 500.0, 1.0 / 20.0
_NEAR_MILLISECONDS = 0.25


@dataclass(frozen=True)
class EpochMetrics:
    """What `epoch_metrics` finds.

    The three rates are shares of cycles and sum to 1.

    Attributes
    ----------
    identification_rate
        IDR, of cycles with exactly one estimate.
    miss_rate
        MR, with none.
    false_alarm_rate
        FAR, with two or more.
    accuracy
        IDA, standard deviation of estimate − reference over cycles with one, in milliseconds. A
        constant error does not show in it.
    bias
        The mean of the same, in milliseconds.
    share_near
        A25, of cycles with one estimate: those within 0.25 ms of the mean error.
    num_cycles
        That were scored.
    """

    identification_rate: float
    miss_rate: float
    false_alarm_rate: float
    accuracy: float
    bias: float
    share_near: float
    num_cycles: int

    def as_dict(self) -> dict[str, float]:
        """By name, for a table or a file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


_SCORES = tuple(field.name for field in dataclasses.fields(EpochMetrics))[:-1]


def epoch_metrics(estimated: Any, reference: Any, rate: float) -> EpochMetrics:
    r"""Score estimated instants in the larynx cycles of reference instants.

    The cycle of r_i is the open interval from r_i − (r_i − r_{i−1})/2 to r_i + (r_{i+1} − r_i)/2,
    and counts where both intervals are from 2 to 50 ms; the first and last instants have none.
    For openings as for closures.

    Parameters
    ----------
    estimated, reference
        In samples, ascending, ``(m,)`` and ``(n,)``. Both detectors must smooth alike: smoothing
        moves peaks.
    rate
        Samples a second.

    Raises
    ------
    ValueError
        If instants are not one-dimensional, finite and strictly ascending, or the rate not
        positive.

    Warns
    -----
    UserWarning
        If no cycle counts; the scores are then NaN. If none has exactly one estimate; then
        accuracy, bias and share are.

    References
    ----------
    Naylor, Kounoudes, Gudnason and Brookes (2007), "Estimation of glottal closure instants in
    voiced speech using the DYPSA algorithm", section V.
    """
    if not 0.0 < rate < np.inf:
        raise ValueError(f"rate must be a positive number of samples a second, got {rate!r}.")
    found = checked_instants("estimated", estimated)
    truth = checked_instants("reference", reference)
    gaps = np.diff(truth)
    usable = (gaps >= SHORTEST_CYCLE * rate) & (gaps <= LONGEST_CYCLE * rate)
    counted = np.flatnonzero(usable[:-1] & usable[1:]) + 1
    if not len(counted):
        warnings.warn(
            f"reference has no larynx cycle, two neighbouring intervals of 2 to 50 ms, among "
            f"{len(truth)} instants; the scores are NaN. Instants are in samples.",
            stacklevel=2,
        )
        return EpochMetrics(**dict.fromkeys(_SCORES, math.nan), num_cycles=0)
    start = truth[counted] - 0.5 * gaps[counted - 1]
    end = truth[counted] + 0.5 * gaps[counted]
    first = np.searchsorted(found, start, side="right")
    inside = np.searchsorted(found, end, side="left") - first
    hit = inside == 1
    errors = (found[first[hit]] - truth[counted[hit]]) * (1000.0 / rate)
    if not len(errors):
        warnings.warn(
            f"none of {len(counted)} larynx cycles has exactly one estimate; accuracy and bias are "
            "NaN.",
            stacklevel=2,
        )
        errors = np.array([np.nan])
    near = float((np.abs(errors - errors.mean()) <= _NEAR_MILLISECONDS).mean())
    return EpochMetrics(
        identification_rate=float(hit.mean()),
        miss_rate=float((inside == 0).mean()),
        false_alarm_rate=float((inside > 1).mean()),
        accuracy=float(errors.std()),
        bias=float(errors.mean()),
        share_near=near if hit.any() else math.nan,
        num_cycles=len(counted),
    )


def average_epoch_metrics(metrics: Sequence[EpochMetrics]) -> EpochMetrics:
    """Means over files, each file counting once; cycles are added up.

    Files without a cycle do not count, nor do those without a single hit for accuracy and bias.

    Raises
    ------
    ValueError
        If there is no file with a cycle.
    """
    counted = [each for each in metrics if each.num_cycles]
    if not counted:
        raise ValueError(
            f"metrics must have at least one file with larynx cycles, got {len(metrics)} without."
        )
    means = {}
    for name in _SCORES:
        values = [getattr(each, name) for each in counted]
        kept = [value for value in values if not math.isnan(value)]
        means[name] = sum(kept) / len(kept) if kept else math.nan
    return EpochMetrics(**means, num_cycles=sum(each.num_cycles for each in counted))


def checked_instants(name: str, instants: Any) -> np.ndarray:
    """``instants`` as float64.

    Raises
    ------
    ValueError
        If they are not one-dimensional, finite and strictly ascending.
    """
    values = np.asarray(instants, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    if (np.diff(values) <= 0.0).any():
        raise ValueError(f"{name} must be strictly ascending, in samples; sort them.")
    return values
