"""Windows of a signal, and the signal from its windows again."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["overlap_add", "pad_for_windows", "strided_windows"]

# Values that a median holds at once, 64 MiB.
_VALUES_AT_ONCE = 2**23


def strided_windows(signal: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """A view of the ⌊(n − length) / stride⌋ + 1 windows, ``(windows, length)``, read-only.

    Nothing is copied: with stride 2, windows of 200 would take a hundred times the signal. Index
    it by batch.

    Parameters
    ----------
    signal
        ``(n,)``.
    length, stride
        In samples, at least 1.

    Raises
    ------
    ValueError
        If the signal is not one-dimensional or shorter than a window, or a number is below 1.
    """
    signal = np.asarray(signal)
    _check_positive(length=length, stride=stride)
    if signal.ndim != 1:
        raise ValueError(
            f"signal must be one channel, shape (n,), got {signal.shape}; choose the channel."
        )
    if len(signal) < length:
        raise ValueError(
            f"signal must be at least one window long, {length} samples, got {len(signal)}; pad it "
            "or leave it out."
        )
    return np.lib.stride_tricks.sliding_window_view(signal, length)[::stride]


def pad_for_windows(signal: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """The signal, with zeros after its end until the windows cover all of it.

    Raises
    ------
    ValueError
        If the signal is not one-dimensional, or a number is below 1.
    """
    signal = np.asarray(signal)
    _check_positive(length=length, stride=stride)
    if signal.ndim != 1:
        raise ValueError(f"signal must be one channel, shape (n,), got {signal.shape}.")
    missing = -(len(signal) - length) % stride if len(signal) > length else length - len(signal)
    return np.pad(signal, (0, missing))


def overlap_add(
    windows: Any, stride: int, *, num_samples: int | None = None, method: str = "mean"
) -> np.ndarray:
    """The signal whose windows these are, by the mean or median of all that cover a sample.

    Windows of one signal give it back exactly.

    Parameters
    ----------
    windows
        ``(windows, length)``, each ``stride`` samples after the one before.
    stride
        From 1 to ``length``.
    num_samples
        Of the result; all that is covered by default, (windows − 1) · stride + length.
    method
        ``"mean"`` or ``"median"``.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, strides leave gaps, or more samples are wanted
        than are covered.
    """
    windows = np.asarray(windows)
    if windows.ndim != 2 or not windows.size:
        raise ValueError(
            f"windows must have shape (windows, length), neither 0, got {windows.shape}."
        )
    if method not in ("mean", "median"):
        raise ValueError(f"method must be mean or median, got {method!r}.")
    count, length = windows.shape
    _check_positive(stride=stride)
    if stride > length:
        raise ValueError(
            f"stride must be at most the windows' length, {length}, got {stride}: samples between "
            "windows would be in none."
        )
    covered = (count - 1) * stride + length
    wanted = covered if num_samples is None else num_samples
    if not 1 <= wanted <= covered:
        raise ValueError(
            f"num_samples must be from 1 to the {covered} that are covered, got {num_samples!r}; "
            "cut the windows from pad_for_windows(signal, length, stride)."
        )
    if not np.issubdtype(windows.dtype, np.floating):
        windows = windows.astype(np.float64)
    if not np.isfinite(windows).all():
        raise ValueError("windows must be finite, got NaN or infinity.")
    combine = _mean if method == "mean" else _median
    return combine(windows, stride)[:wanted]


def _mean(windows: np.ndarray, stride: int) -> np.ndarray:
    count, length = windows.shape
    layers = -(-length // stride)
    total, first, times = (np.zeros((count + layers - 1, stride)) for _ in range(3))
    # Sample b · stride + r is sample j · stride + r of window b − j. Deviations from the last
    # window's value are summed, not values, so that equal ones have that value as their mean.
    for layer in reversed(range(layers)):
        part = windows[:, layer * stride : (layer + 1) * stride]
        place = (slice(layer, layer + count), slice(part.shape[1]))
        first[place] = np.where(times[place] == 0.0, part, first[place])
        total[place] += part - first[place]
        times[place] += 1.0
    mean = first + total / np.maximum(times, 1.0)
    return mean.ravel().astype(windows.dtype, copy=False)


def _median(windows: np.ndarray, stride: int) -> np.ndarray:
    count, length = windows.shape
    layers = -(-length // stride)
    blocks = count + layers - 1
    padded = np.full((count + 2 * (layers - 1), layers * stride), np.nan, windows.dtype)
    padded[layers - 1 : layers - 1 + count, :length] = windows
    cut = padded.reshape(len(padded), layers, stride)
    result = np.empty((blocks, stride), windows.dtype)
    step = max(_VALUES_AT_ONCE // (layers * stride), 1)
    order = np.arange(layers)
    for start in range(0, blocks, step):
        rows = np.arange(start, min(start + step, blocks))[:, None]
        # Window b − j, its j-th part: block b has them all.
        values = np.sort(cut[rows - order + layers - 1, order], axis=1)
        times = (~np.isnan(values)).sum(axis=1, keepdims=True)
        low, high = (
            np.take_along_axis(values, np.maximum(index, 0), axis=1)[:, 0]
            for index in ((times - 1) // 2, times // 2)
        )
        result[start : start + step] = low + 0.5 * (high - low)
    return result.ravel()


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
