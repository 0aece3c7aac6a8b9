"""Noise at a chosen ratio to a signal."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["add_noise"]


def add_noise(
    speech: Any,
    snr: float,
    noise: Any = None,
    *,
    rng: int | np.random.Generator,
) -> np.ndarray:
    r"""Speech in noise of a chosen signal-to-noise ratio.

    .. math:: y_t = s_t + n_t \, \frac{\sigma_s}{\sigma_n} \, 10^{-\mathrm{SNR} / 20}

    A recorded noise enters as one stretch, from a place that ``rng`` draws, in its own order:
    shuffled samples of babble would be white noise.

    Parameters
    ----------
    speech
        ``(n,)``.
    snr
        In dB over the whole of both.
    noise
        Noise such as `simulate_babble` makes, at the speech's rate, ``(m,)``; a shorter one is
        repeated. None for white noise.
    rng
        A seed or a NumPy generator.

    Returns
    -------
    ``(n,)``, float64, not normalised again.

    Raises
    ------
    ValueError
        If an array is not one-dimensional, empty, not finite or constant, or ``snr`` is not finite.
    """
    clean = checked_signal("speech", speech)
    if not np.isfinite(snr):
        raise ValueError(f"snr must be a finite number of dB, got {snr!r}; add no noise for none.")
    rng = np.random.default_rng(rng)
    if noise is None:
        added = rng.standard_normal(len(clean))
    else:
        recorded = checked_signal("noise", noise)
        start = int(rng.integers(max(len(recorded) - len(clean), 0) + 1))
        # np.resize repeats the whole from its first sample on.
        added = np.resize(recorded[start:], len(clean))
        added = added - added.mean()
    for name, values in (("speech", clean), ("noise", added)):
        if values.std() == 0.0:
            raise ValueError(f"{name} is constant, so that no signal-to-noise ratio exists.")
    return clean + added * (clean.std() / added.std() * 10.0 ** (-snr / 20.0))


def checked_signal(name: str, values: Any) -> np.ndarray:
    """``values`` as float64 of one dimension, finite and not empty.

    Raises
    ------
    ValueError
        Otherwise, with ``name``.
    """
    signal = np.asarray(values, dtype=np.float64)
    if signal.ndim == 2:
        raise ValueError(
            f"{name} must be one channel, shape (n,), got {signal.shape}; choose the channel."
        )
    if signal.ndim != 1 or not len(signal):
        raise ValueError(f"{name} must have shape (n,) with n at least 1, got {signal.shape}.")
    if not np.isfinite(signal).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return signal
