"""What detectors of glottal instants share."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import convolve1d

__all__ = ["checked_signal", "parabolic_peak", "smoothed", "voiced_mask"]

_VOICED_POINTS, _VOICED_SECONDS, _VOICED_LEVEL = 100, 501 / 16_000, 0.01


def checked_signal(name: str, values: Any) -> np.ndarray:
    """``values`` as float64.

    Raises
    ------
    ValueError
        If they are not one channel, finite, and different from 0 somewhere.
    """
    signal = np.asarray(values, dtype=np.float64)
    if signal.ndim == 2:
        raise ValueError(
            f"{name} must be one channel, shape (n,), got {signal.shape}; choose the channel."
        )
    if signal.ndim != 1 or len(signal) < 3:
        raise ValueError(f"{name} must have shape (n,) with n at least 3, got {signal.shape}.")
    if not np.isfinite(signal).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    if not signal.any():
        raise ValueError(f"{name} is zero all through; check the channel.")
    return signal


def smoothed(signal: np.ndarray, num_points: int) -> np.ndarray:
    """Convolved with a Hann window of so many points, none of them 0, of sum 1."""
    window = np.hanning(num_points + 2)[1:-1]
    return convolve1d(signal, window / window.sum(), mode="nearest")


def parabolic_peak(signal: np.ndarray, top: Any) -> Any:
    """Where a parabola through a maximum and its two neighbours is largest, in samples."""
    inner = np.clip(top, 1, len(signal) - 2)
    left, middle, right = signal[inner - 1], signal[inner], signal[inner + 1]
    bend = left - 2.0 * middle + right
    shift = np.where(bend < 0.0, 0.5 * (left - right) / np.where(bend < 0.0, bend, 1.0), 0.0)
    return np.where(inner == top, top + np.clip(shift, -0.5, 0.5), top)


def voiced_mask(egg: Any, rate: float) -> np.ndarray:
    """Where the folds swing, ``(n,)`` of bool: smoothed power at least 0.01.

    The EGG is divided by the median of its 100 largest magnitudes and squared, and smoothed by a
    Hann window of 31 ms.

    Raises
    ------
    ValueError
        If the EGG is not one finite channel that is not 0.
    """
    contact = checked_signal("egg", egg)
    largest = np.sort(np.abs(contact))[-_VOICED_POINTS:]
    power = (contact / np.median(largest)) ** 2
    # Odd, so that the mask is centred.
    return smoothed(power, 2 * int(_VOICED_SECONDS * rate / 2.0) + 1) >= _VOICED_LEVEL
