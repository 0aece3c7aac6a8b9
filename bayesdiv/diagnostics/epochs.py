"""Glottal instants in electroglottograms (EGG): detectors and scores.

Everywhere the EGG rises with contact, and instants are in samples, not rounded.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import signal
from scipy.ndimage import maximum_filter1d

from bayesdiv.diagnostics._epoch_metrics import (
    LONGEST_CYCLE,
    SHORTEST_CYCLE,
    EpochMetrics,
    average_epoch_metrics,
    epoch_metrics,
)
from bayesdiv.diagnostics._epoch_quotients import (
    GlottalQuotients,
    glottal_quotients,
    harmonics_to_noise_ratio,
)
from bayesdiv.diagnostics._epoch_signals import (
    checked_signal,
    parabolic_peak,
    smoothed,
    voiced_mask,
)
from bayesdiv.diagnostics._epoch_uncertainty import (
    InstantSpread,
    TimingCalibration,
    instant_spread,
    timing_calibration,
    timing_errors,
)
from bayesdiv.diagnostics._epoch_zero_frequency import (
    ZeroFrequencyEpochs,
    mean_pitch_period,
    zero_frequency_epochs,
)

__all__ = [
    "EpochMetrics",
    "GlottalInstants",
    "GlottalQuotients",
    "InstantSpread",
    "TimingCalibration",
    "ZeroFrequencyEpochs",
    "average_epoch_metrics",
    "detect_glottal_instants",
    "epoch_metrics",
    "glottal_quotients",
    "harmonics_to_noise_ratio",
    "instant_spread",
    "mean_pitch_period",
    "timing_calibration",
    "timing_errors",
    "voiced_mask",
    "zero_frequency_epochs",
]

_LARGEST_SHARE, _OF_LARGEST, _OF_LOCAL, _LOCAL_SECONDS = 0.005, 0.15, 0.5, 0.0125


class GlottalInstants(NamedTuple):
    """In samples, ascending: ``closures`` ``(n,)``, and ``openings`` between two of them."""

    closures: np.ndarray
    openings: np.ndarray


def detect_glottal_instants(
    egg: Any, rate: float, *, smoothing: int = 5, voiced: Any = None
) -> GlottalInstants:
    """Peaks of the EGG's derivative: closures, and the lowest point between two as opening.

    The EGG is smoothed by a Hann window and differentiated. A closure is a maximum of at least 0.15
    of the mean of the largest 0.5 %, at least half of the largest within 12.5 ms on either side,
    2 ms or more from a larger one, and voiced; its place is refined by a parabola. Between two
    closures the derivative falls by as much as was asked of their height, so that a flat top is
    one. Two closures more than 50 ms apart have no opening between them. Unvoiced samples are left
    out where they are: without them the rest would be joined at places with peaks of their own.

    Parameters
    ----------
    egg
        ``(n,)``, rising with contact; upside down, closures and openings change places.
    rate
        Samples a second.
    smoothing
        Points of the window, odd; 1 for none. Compare instants only if they were smoothed alike.
    voiced
        ``(n,)`` of bool; `voiced_mask` of the EGG by default.

    Raises
    ------
    ValueError
        If the EGG is not one finite channel that is not 0, or a setting does not fit.

    Warns
    -----
    UserWarning
        If no closure is found.
    """
    contact = checked_signal("egg", egg)
    if isinstance(smoothing, bool) or smoothing != int(smoothing) or smoothing < 1:
        raise ValueError(f"smoothing must be a whole number of points, got {smoothing!r}.")
    if smoothing % 2 == 0:
        raise ValueError(f"smoothing must be odd, or instants move, got {smoothing}.")
    mask = voiced_mask(contact, rate) if voiced is None else np.asarray(voiced, dtype=bool)
    if mask.shape != contact.shape:
        raise ValueError(f"voiced must have the EGG's shape, {contact.shape}, got {mask.shape}.")
    slope = np.gradient(smoothed(contact, int(smoothing)))
    num_largest = max(int(_LARGEST_SHARE * len(slope)), 1)
    level = _OF_LARGEST * np.partition(slope, -num_largest)[-num_largest:].mean()
    local = maximum_filter1d(slope, 2 * round(_LOCAL_SECONDS * rate) + 1, mode="nearest")
    bar = np.maximum(level, _OF_LOCAL * local)
    tops, _ = signal.find_peaks(slope, height=bar, prominence=bar, distance=SHORTEST_CYCLE * rate)
    tops = tops[mask[tops]]
    if not len(tops):
        warnings.warn("egg has no voiced peak of its derivative: no closure.", stacklevel=2)
    pairs = zip(tops[:-1], tops[1:], strict=True)
    lows = [
        start + int(np.argmin(slope[start:end]))
        for start, end in pairs
        if end - start <= LONGEST_CYCLE * rate
    ]
    return GlottalInstants(
        parabolic_peak(slope, tops), parabolic_peak(-slope, np.array(lows, dtype=np.int64))
    )
