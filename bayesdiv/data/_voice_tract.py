"""From flow to speech: five resonators, radiation, aspiration and frication."""

from __future__ import annotations

import numpy as np
from scipy import signal

__all__ = ["VOWELS", "frication_noise", "resonate"]

# F1 to F3 of men, i ɪ ɛ æ ɑ ɔ ʊ u ʌ ɝ: Peterson and Barney (1952), table II. F4 and F5 are fixed.
VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    dtype=np.float64,
)
VOWELS = np.concatenate([VOWELS, np.tile([3500.0, 4500.0], (len(VOWELS), 1))], axis=1)
_BANDWIDTHS = np.array([60.0, 90.0, 150.0, 200.0, 250.0])
_FRICATION_HERTZ = (2500.0, 7000.0)


def resonate(source: np.ndarray, formants: np.ndarray, rate: int, frame: int) -> np.ndarray:
    """The source, ``(n,)``, through resonators in cascade whose state goes on from frame to frame.

    ``formants`` has shape ``(ceil(n / frame), 5)``, in Hz. Each resonator passes 0 Hz unchanged.
    """
    radius = np.exp(-np.pi * _BANDWIDTHS / rate)
    sections = np.zeros((len(formants), len(_BANDWIDTHS), 6))
    sections[..., 3] = 1.0
    sections[..., 4] = -2.0 * radius * np.cos(2.0 * np.pi * formants / rate)
    sections[..., 5] = radius**2
    sections[..., 0] = sections[..., 3:].sum(axis=-1)
    # Frames with the same formants are one call.
    changes = np.flatnonzero((formants[1:] != formants[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(formants)]
    speech = np.empty(len(source))
    state = np.zeros((len(_BANDWIDTHS), 2))
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        part = slice(first * frame, last * frame)
        speech[part], state = signal.sosfilt(sections[first], source[part], zi=state)
    return speech


def frication_noise(rng: np.random.Generator, num_samples: int, rate: int) -> np.ndarray:
    """Noise between 2.5 and 7 kHz, of variance 1."""
    band = signal.butter(2, _FRICATION_HERTZ, "bandpass", fs=rate, output="sos")
    noise = signal.sosfilt(band, rng.standard_normal(num_samples, dtype=np.float32))
    return noise / noise.std()
