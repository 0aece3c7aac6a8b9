"""When the folds swing: the plan of an utterance, its F0 and the phase of the glottal cycle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d

from bayesdiv.data._voice_tract import VOWELS

__all__ = ["Plan", "crossings", "make_phase", "make_plan", "sustained_plan"]

_VOWEL_SECONDS, _FRICATIVE_SECONDS, _SILENCE_SECONDS = (0.12, 0.35), (0.06, 0.12), (0.05, 0.15)
_VOICING_SECONDS, _FRICATION_SECONDS = 0.03, 0.01
_TRANSITION_SECONDS = 0.05
_WANDER_HERTZ = (0.3, 0.8)


class Plan(NamedTuple):
    """``voicing`` and ``frication`` in [0, 1], ``(n,)``; formants in Hz, ``(frames, 5)``."""

    voicing: np.ndarray
    frication: np.ndarray
    formants: np.ndarray


def make_plan(
    rng: np.random.Generator, num_samples: int, rate: int, *, scale: float, frame: int
) -> Plan:
    """Vowels, with fricatives and silences between some of them.

    Formants stay at a vowel's and move to the next one's within 50 ms, or all through what is
    between the two; they are multiplied by ``scale`` and given every ``frame`` samples.
    """
    voicing, frication = np.zeros(num_samples), np.zeros(num_samples)
    knots: list[float] = []
    values: list[np.ndarray] = []
    # However short the utterance is, there is a vowel in it.
    position = min(rng.uniform(*_SILENCE_SECONDS) * rate, 0.2 * num_samples)
    while position < num_samples:
        end = position + rng.uniform(*_VOWEL_SECONDS) * rate
        voicing[int(position) : int(end)] = 1.0
        margin = 0.5 * _TRANSITION_SECONDS * rate
        knots += [position + margin, end - margin]
        values += 2 * [scale * VOWELS[rng.integers(len(VOWELS))]]
        position = end
        follows = rng.uniform()
        if follows < 0.4:
            end = position + rng.uniform(*_FRICATIVE_SECONDS) * rate
            frication[int(position) : int(end)] = rng.uniform(0.5, 1.0)
            position = end
        elif follows < 0.65:
            position += rng.uniform(*_SILENCE_SECONDS) * rate
    centres = np.arange(0.5 * frame, num_samples, frame)
    formants = np.stack([np.interp(centres, knots, track) for track in np.stack(values).T], axis=1)
    return Plan(
        _smoothed(voicing, _VOICING_SECONDS * rate),
        _smoothed(frication, _FRICATION_SECONDS * rate),
        formants,
    )


def sustained_plan(rng: np.random.Generator, num_samples: int, *, scale: float, frame: int) -> Plan:
    """One vowel from the first sample to the last."""
    formants = scale * VOWELS[rng.integers(len(VOWELS))]
    frames = -(-num_samples // frame)
    return Plan(np.ones(num_samples), np.zeros(num_samples), np.tile(formants, (frames, 1)))


def _smoothed(gate: np.ndarray, width: float) -> np.ndarray:
    """Moved by a triangle of ``width`` samples, which two boxes of half the width make."""
    half = max(int(width / 2), 1)
    return uniform_filter1d(uniform_filter1d(gate, half, mode="nearest"), half, mode="nearest")


def make_phase(
    rng: np.random.Generator,
    num_samples: int,
    rate: int,
    *,
    f0: float,
    wander: float,
    jitter: float,
    shimmer: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F0 in Hz, the cumulative phase in cycles and the cycles' amplitude; ``(n,)`` each.

    F0 follows a slow sine of ± ``wander`` and has an independent relative error of standard
    deviation ``jitter`` in each cycle; amplitudes differ by ``shimmer``.
    """
    time = np.arange(num_samples) / rate
    turns = rng.uniform(*_WANDER_HERTZ) * time + rng.uniform()
    smooth = f0 * (1.0 + wander * np.sin(2.0 * np.pi * turns))
    cycle = np.floor(np.cumsum(smooth) / rate).astype(np.int64)
    hertz = smooth * (1.0 + jitter * rng.standard_normal(cycle[-1] + 1))[cycle]
    phase = np.concatenate([[0.0], np.cumsum(hertz[:-1]) / rate])
    levels = 1.0 + shimmer * rng.standard_normal(int(phase[-1]) + 2)
    # Steps of amplitude would be seen as instants; between two cycles it changes gradually.
    return hertz, phase, np.interp(phase, np.arange(len(levels)), levels)


def crossings(phase: np.ndarray, within: float) -> np.ndarray:
    """Where the cumulative phase passes k + ``within``, k = 0, 1, …, in samples, ascending."""
    wanted = np.arange(np.ceil(phase[0] - within), np.floor(phase[-1] - within) + 1.0) + within
    return np.interp(wanted, phase, np.arange(len(phase), dtype=np.float64))
