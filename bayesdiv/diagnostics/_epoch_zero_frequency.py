"""Closures from speech alone, by zero-frequency filtering."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import signal

from bayesdiv.diagnostics._epoch_metrics import LONGEST_CYCLE, SHORTEST_CYCLE
from bayesdiv.diagnostics._epoch_signals import checked_signal

__all__ = ["ZeroFrequencyEpochs", "mean_pitch_period", "zero_frequency_epochs"]

_PERIODS_OF_TREND = 1.5
# Of the mean of the largest tenth of slopes: weaker crossings are where there is no voice.
_WEAKEST, _STEEPEST_SHARE = 0.1, 0.1
_FRAME_SECONDS, _PERIODIC, _NEARLY = 0.05, 0.5, 0.85
_LOUD = 0.05


class ZeroFrequencyEpochs(NamedTuple):
    """What `zero_frequency_epochs` finds.

    Parameters
    ----------
    closures
        In samples, ascending, ``(n,)``.
    strengths
        Slope of the filtered signal at each, ``(n,)``: the strength of excitation.
    inverted
        Whether the speech was turned over.
    mean_period
        That was used, in seconds.
    """

    closures: np.ndarray
    strengths: np.ndarray
    inverted: bool
    mean_period: float


def zero_frequency_epochs(
    speech: Any,
    rate: float,
    *,
    mean_period: float | None = None,
    polarity: str = "auto",
    voiced: Any = None,
) -> ZeroFrequencyEpochs:
    r"""Upward zero crossings of speech filtered by two resonators at 0 Hz.

    The published filter is a difference, four running sums, and three subtractions of a running
    mean over 1.5 mean periods. The sums grow without bound; each double sum with one subtraction
    is however a filter of finite length,

    .. math:: \frac{1 - b(z)}{(1 - z^{-1})^2}, \qquad b \text{ the running mean},

    since b has value 1 and slope 0 at z = 1. The same numbers come out at any length of recording,
    without delay.

    Parameters
    ----------
    speech
        ``(n,)``.
    rate
        Samples a second.
    mean_period
        In seconds; by default `mean_pitch_period`. Twice or half of it spoils the result.
    polarity
        ``"upright"`` where excitations are downward, as pressure at a microphone has them,
        ``"inverted"``, or ``"auto"`` for that with the steeper crossings.
    voiced
        ``(n,)`` of bool; by default, where the crossing is at least a tenth as steep as the
        steepest ones.

    Raises
    ------
    ValueError
        If the speech is not one finite channel that is not 0, the period is not from 2 to 50 ms, or
        the recording is shorter than ten of them.

    Warns
    -----
    UserWarning
        If there is no crossing, or no period is found in the speech.

    References
    ----------
    Murty and Yegnanarayana (2008), "Epoch extraction from speech signals", section III.
    """
    values = checked_signal("speech", speech)
    if polarity not in ("auto", "upright", "inverted"):
        raise ValueError(f"polarity must be auto, upright or inverted; got {polarity!r}.")
    period = mean_pitch_period(values, rate) if mean_period is None else float(mean_period)
    nothing = ZeroFrequencyEpochs(np.empty(0), np.empty(0), polarity == "inverted", period)
    if mean_period is None and np.isnan(period):
        return nothing
    if not SHORTEST_CYCLE <= period <= LONGEST_CYCLE:
        raise ValueError(
            f"mean_period must be from 0.002 to 0.05 seconds, got {mean_period!r}; it is not in "
            "samples."
        )
    if len(values) < 10.0 * period * rate:
        raise ValueError(
            f"speech must be ten mean periods long, {10.0 * period:.3f} s, got "
            f"{len(values) / rate:.3f} s."
        )
    mask = None if voiced is None else np.asarray(voiced, dtype=bool)
    if mask is not None and mask.shape != values.shape:
        raise ValueError(f"voiced must have the speech's shape, {values.shape}, got {mask.shape}.")
    filtered = _zero_frequency(values, round(0.5 * _PERIODS_OF_TREND * period * rate))
    up, down = _crossings(filtered), _crossings(-filtered)
    if polarity == "auto":
        inverted = _steepest(down[1]) > _steepest(up[1])
    else:
        inverted = polarity == "inverted"
    instants, slopes = down if inverted else up
    if mask is None:
        kept = slopes >= _WEAKEST * _steepest(slopes)
    else:
        kept = mask[np.rint(instants).astype(np.int64)]
    if not kept.any():
        warnings.warn("speech has no voiced zero crossing: no closure.", stacklevel=2)
        return nothing
    return ZeroFrequencyEpochs(instants[kept], slopes[kept], inverted, period)


def _zero_frequency(values: np.ndarray, half: int) -> np.ndarray:
    """Centred: the k-th output belongs to the k-th sample."""
    mean = np.full(2 * half + 1, -1.0 / (2 * half + 1))
    mean[half] += 1.0
    # Both sums end at 0, so that the last two samples are rounding; they are the filter's delay.
    double_sum = np.cumsum(np.cumsum(mean))[:-2]
    kernel = np.convolve(np.convolve(double_sum, double_sum), mean)
    # A difference centred on the sample, (x[k + 1] − x[k − 1]) / 2.
    return signal.fftconvolve(np.gradient(values), kernel, mode="same")


def _crossings(filtered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upward: where, between two samples, and how steep."""
    before = np.flatnonzero((filtered[:-1] < 0.0) & (filtered[1:] >= 0.0))
    slopes = filtered[before + 1] - filtered[before]
    return before - filtered[before] / slopes, slopes


def _steepest(slopes: np.ndarray) -> float:
    """Mean of the largest tenth; all of them would be ruled by noise between words."""
    if not len(slopes):
        return 0.0
    return float(np.sort(slopes)[-max(int(_STEEPEST_SHARE * len(slopes)), 1) :].mean())


def mean_pitch_period(
    speech: Any, rate: float, *, shortest: float = 0.002, longest: float = 0.0125
) -> float:
    """Median over voiced frames of the pitch period, in seconds, by autocorrelation.

    Frames of 50 ms. Of the peaks that reach 0.85 of the highest, the one with the shortest lag
    counts, so that multiples of the period do not.

    Parameters
    ----------
    speech
        ``(n,)``.
    rate
        Samples a second.
    shortest, longest
        Periods looked for, in seconds; 500 and 80 Hz by default.

    Raises
    ------
    ValueError
        If the speech is not one finite channel that is not 0, or the limits are not ascending and
        positive.

    Warns
    -----
    UserWarning
        If no frame is periodic; the result is then NaN.

    References
    ----------
    Boersma (1993), "Accurate short-term analysis of the fundamental frequency", section 3.
    """
    values = checked_signal("speech", speech)
    if not 0.0 < shortest < longest <= _FRAME_SECONDS / 2.0:
        raise ValueError(
            f"shortest and longest must be ascending, above 0 and at most "
            f"{_FRAME_SECONDS / 2.0} seconds, got {shortest!r} and {longest!r}."
        )
    size = round(_FRAME_SECONDS * rate)
    periods = np.empty(0)
    if len(values) >= size:
        frames = np.lib.stride_tricks.sliding_window_view(values, size)[:: size // 2]
        frames = frames - frames.mean(axis=1, keepdims=True)
        power = (frames**2).mean(axis=1)
        frames = frames[power >= _LOUD * power.max()]
        correlation = _correlations(frames, round(longest * rate) + 2)
        periods = _first_peaks(correlation, round(shortest * rate), round(longest * rate))
    if not len(periods):
        warnings.warn("no frame of the speech is periodic: no mean period.", stacklevel=2)
        return float("nan")
    return float(np.median(periods)) / rate


def _correlations(frames: np.ndarray, num_lags: int) -> np.ndarray:
    """Normalised and free of the window's own fall, ``(frames, num_lags)``."""
    size = frames.shape[1]
    window = signal.windows.hann(size, sym=False)
    stacked = np.concatenate([frames * window, window[None]])
    spectrum = np.fft.rfft(stacked, 2 * size, axis=1)
    raw = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :num_lags]
    raw = raw / raw[:, :1]
    return raw[:-1] / raw[-1]


def _first_peaks(correlation: np.ndarray, first: int, last: int) -> np.ndarray:
    inner = correlation[:, first : last + 1]
    peak = (inner > correlation[:, first - 1 : last]) & (
        inner >= correlation[:, first + 1 : last + 2]
    )
    heights = np.where(peak, inner, -np.inf)
    highest = heights.max(axis=1, keepdims=True)
    lags = first + np.argmax(heights >= _NEARLY * highest, axis=1)
    return lags[highest[:, 0] >= _PERIODIC].astype(np.float64)
