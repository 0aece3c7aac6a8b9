"""How sure an instant is, by draws of the signal it is read from; and whether that is right."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bayesdiv.diagnostics._epoch_metrics import checked_instants

# Draws in which an instant must be found for a standard deviation to be given.
_LEAST_FOUND = 3
_NORMAL_90 = 1.6448536269514722


class InstantSpread(NamedTuple):
    """For each instant its standard deviation, in samples, and the share of draws that have it.

    Parameters
    ----------
    standard_deviation
        ``(n,)``; NaN where fewer than three draws have the instant.
    found
        ``(n,)``, from 0 to 1.
    """

    standard_deviation: np.ndarray
    found: np.ndarray


def instant_spread(instants: Any, drawn: Sequence[Any], *, reach: float) -> InstantSpread:
    """The spread of instants over draws: posterior draws, an ensemble, or several chains.

    In each draw the nearest instant counts, if it is within ``reach``. The deviation is from the
    draws' own mean.

    Parameters
    ----------
    instants
        ``(n,)``, increasing, in samples: what is reported.
    drawn
        Instants of each draw, ``(m,)`` of any length.
    reach
        Largest distance in samples; half of the shortest period is sensible.

    Raises
    ------
    ValueError
        If there are fewer than three draws, ``reach`` is not positive, or instants are not finite
        and increasing.
    """
    center = checked_instants("instants", instants)
    if len(drawn) < _LEAST_FOUND:
        raise ValueError(f"drawn must hold at least {_LEAST_FOUND} draws, got {len(drawn)}.")
    if not reach > 0.0:
        raise ValueError(f"reach must be a positive number of samples, got {reach!r}.")
    gaps = np.stack(
        [_nearest_gap(center, checked_instants("drawn", each), reach) for each in drawn]
    )
    counts = np.isfinite(gaps).sum(axis=0)
    safe = np.where(np.isfinite(gaps), gaps, 0.0)
    mean = safe.sum(axis=0) / np.maximum(counts, 1)
    squares = np.where(np.isfinite(gaps), (gaps - mean) ** 2, 0.0).sum(axis=0)
    deviation = np.sqrt(squares / np.maximum(counts - 1, 1))
    deviation = np.where(counts >= _LEAST_FOUND, deviation, np.nan)
    return InstantSpread(deviation, counts / len(drawn))


def timing_errors(instants: Any, reference: Any, *, reach: float) -> np.ndarray:
    """Instant less the nearest reference, in samples, ``(n,)``; NaN where none is within ``reach``.

    Parameters
    ----------
    instants, reference
        ``(n,)`` and ``(m,)``, in samples.
    reach
        In samples.

    Raises
    ------
    ValueError
        If ``reach`` is not positive, or instants are not finite and increasing.
    """
    center, truth = (
        checked_instants(name, values)
        for name, values in (("instants", instants), ("reference", reference))
    )
    if not reach > 0.0:
        raise ValueError(f"reach must be a positive number of samples, got {reach!r}.")
    # The gap is from the instant to the reference.
    return -_nearest_gap(center, truth, reach)


class TimingCalibration(NamedTuple):
    """Whether standard deviations of instants say how wrong the instants are.

    Parameters
    ----------
    coverage_90
        Share of errors within ±1.645 standard deviations; 0.9 where they are right and errors
        normal.
    error_ratio
        Root mean square of error over deviation; 1 where they are right, above where too small.
    rank_correlation
        Spearman's, between deviation and size of the error: whether it knows which instants are
        bad.
    num_instants
        Instants with a deviation and a reference.
    """

    coverage_90: float
    error_ratio: float
    rank_correlation: float
    num_instants: int


def timing_calibration(
    instants: Any, standard_deviation: Any, reference: Any, *, reach: float
) -> TimingCalibration:
    """Errors of instants, less their mean, against their standard deviations.

    The mean error, a delay that all instants share, is no question of uncertainty and is reported
    as a bias elsewhere.

    Parameters
    ----------
    instants, standard_deviation
        ``(n,)`` each, in samples; instants without a deviation (NaN) are left out.
    reference
        ``(m,)``, in samples. The nearest one counts, within ``reach``.
    reach
        In samples.

    Raises
    ------
    ValueError
        If shapes differ, ``reach`` is not positive, or instants are not finite and increasing.

    Warns
    -----
    RuntimeWarning
        If fewer than two instants are left; the numbers are then NaN.
    """
    error = timing_errors(instants, reference, reach=reach)
    center = np.asarray(instants, dtype=np.float64)
    deviation = np.asarray(standard_deviation, dtype=np.float64)
    if deviation.shape != center.shape:
        raise ValueError(
            f"standard_deviation must have one entry an instant, shape {center.shape}, got "
            f"{deviation.shape}."
        )
    keep = np.isfinite(error) & (deviation > 0.0)
    error, deviation = error[keep], deviation[keep]
    if len(error) < 2:
        warnings.warn(
            f"{len(error)} instants have a standard deviation and a reference: no calibration.",
            RuntimeWarning,
            stacklevel=2,
        )
        return TimingCalibration(np.nan, np.nan, np.nan, len(error))
    ratio = (error - error.mean()) / deviation
    return TimingCalibration(
        float((np.abs(ratio) <= _NORMAL_90).mean()),
        float(np.sqrt((ratio**2).mean())),
        _rank_correlation(deviation, np.abs(error - error.mean())),
        len(error),
    )


def _nearest_gap(center: np.ndarray, others: np.ndarray, reach: float) -> np.ndarray:
    """From each centre to the nearest of the others; NaN beyond ``reach``."""
    if not len(others):
        return np.full(len(center), np.nan)
    right = np.clip(np.searchsorted(others, center), 1, max(len(others) - 1, 1))
    candidates = others[np.stack([right - 1, np.minimum(right, len(others) - 1)])] - center
    nearest = np.take_along_axis(candidates, np.abs(candidates).argmin(0)[None], axis=0)[0]
    return np.where(np.abs(nearest) <= reach, nearest, np.nan)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return 0.0
    return float(spearmanr(x, y).statistic)
