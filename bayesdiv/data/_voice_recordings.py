"""Recorded speech and electroglottograms (EGG), made ready for learning."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import signal
from scipy.io import wavfile

from bayesdiv.data._voice_noise import checked_signal

__all__ = [
    "SpeechEGG",
    "high_pass",
    "load_speech_egg",
    "polarity_skewness",
    "prepare_speech_egg",
    "read_speech",
    "read_wav",
    "split_by_speaker",
]

_CUTOFF, _ORDER = 50.0, 4
# On real recordings 4 to 5; a signal without closures has none.
_CLEAR_SKEWNESS = 1.0
# What a filter leaves of a constant.
_FLAT = 1e-9
_SPEECH_ENDING, _EGG_ENDING = "_AUD.wav", "_EGG.wav"
POLARITIES = ("auto", "upright", "inverted")


class SpeechEGG(NamedTuple):
    """A recording: speech and EGG ``(n,)`` on one clock, largest absolute value 1.

    Parameters
    ----------
    speech, egg
        float32. The EGG rises with contact and has nothing below 50 Hz.
    rate
        Samples a second.
    name
        The file's, without ending and without channel.
    speaker
        Who speaks.
    """

    speech: np.ndarray
    egg: np.ndarray
    rate: int
    name: str
    speaker: str


def high_pass(egg: np.ndarray, rate: int) -> np.ndarray:
    """Without what is below 50 Hz: Butterworth of order 4, forward and backward, zero phase."""
    sections = signal.butter(_ORDER, _CUTOFF, "highpass", fs=rate, output="sos")
    return signal.sosfiltfilt(sections, egg)


def polarity_skewness(egg: Any) -> float:
    """Skewness of the EGG's differences: positive where it rises with contact.

    Folds close faster than they open, so the derivative has its sharp peaks at closures.

    Raises
    ------
    ValueError
        If the EGG is not one finite channel, or constant.
    """
    slope = np.diff(checked_signal("egg", egg))
    spread = slope.std() if len(slope) else 0.0
    if spread == 0.0:
        raise ValueError("egg is constant or a straight line, so that it has no polarity.")
    return float((((slope - slope.mean()) / spread) ** 3).mean())


def prepare_speech_egg(
    speech: Any,
    egg: Any,
    rate: int,
    *,
    new_rate: int = 16_000,
    polarity: str = "auto",
    delay: float = 0.0,
    name: str = "recording",
    speaker: str = "",
) -> SpeechEGG:
    """Resample, align, filter and normalise one recording.

    Parameters
    ----------
    speech, egg
        ``(n,)`` at ``rate`` samples a second.
    new_rate
        Wanted, polyphase-resampled.
    polarity
        ``"upright"`` where the EGG rises with contact, ``"inverted"`` where it falls, ``"auto"`` to
        decide by `polarity_skewness`. A wrong one swaps closures with openings.
    delay
        Seconds by which the speech comes later, mouth to microphone: 0.3 to 1 ms as a rule. It is
        rounded to samples of ``new_rate``, and the ends without a partner are dropped.
    name, speaker
        Kept with the recording, and named in errors.

    Raises
    ------
    ValueError
        If lengths differ, a channel is empty, not finite, silent or two-dimensional, a rate is not
        above 0, or the delay is negative or as long as the recording.

    Warns
    -----
    UserWarning
        If the skewness is between −1 and 1, so that ``"auto"`` is a guess, or contradicts the
        polarity given.
    """
    if polarity not in POLARITIES:
        raise ValueError(f"polarity must be one of {', '.join(POLARITIES)}; got {polarity!r}.")
    for label, value in (("rate", rate), ("new_rate", new_rate)):
        if value != int(value) or value <= 2.0 * _CUTOFF:
            raise ValueError(f"{label} must be a whole number above 100 a second, got {value!r}.")
    channels = {
        label: checked_signal(f"{label} of {name}", values)
        for label, values in (("speech", speech), ("egg", egg))
    }
    lengths = [len(values) for values in channels.values()]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"speech and egg of {name} must be equally long, got {lengths[0]} and {lengths[1]} "
            "samples; cut them to what was recorded together."
        )
    largest = {label: np.abs(values).max() for label, values in channels.items()}
    for label, value in largest.items():
        if value == 0.0:
            raise ValueError(f"{label} of {name} is zero all through; check the channel.")
    heard, contact = (
        _resampled(channels[label] / largest[label], int(rate), int(new_rate))
        for label in ("speech", "egg")
    )
    shift = round(delay * new_rate)
    # Forward-backward filters are padded with this many samples.
    shortest = 3 * (_ORDER + 1) + 1
    if not 0 <= shift <= len(heard) - shortest:
        raise ValueError(
            f"delay must be at least 0 and leave {shortest} samples of {name}, got {delay!r} "
            f"seconds of {len(heard) / new_rate:.3f}."
        )
    heard, contact = heard[shift:], high_pass(contact[: len(contact) - shift], new_rate)
    if np.abs(contact).max() < _FLAT:
        raise ValueError(f"egg of {name} is constant; check the channel.")
    contact = _upright(contact, polarity, name)
    return SpeechEGG(
        (heard / np.abs(heard).max()).astype(np.float32),
        (contact / np.abs(contact).max()).astype(np.float32),
        int(new_rate),
        name,
        speaker,
    )


def _resampled(values: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    common = math.gcd(rate, new_rate)
    return signal.resample_poly(values, new_rate // common, rate // common)


def _upright(egg: np.ndarray, polarity: str, name: str) -> np.ndarray:
    skewness = polarity_skewness(egg)
    if polarity == "auto":
        if abs(skewness) < _CLEAR_SKEWNESS:
            warnings.warn(
                f"the polarity of {name}'s EGG is a guess: its derivative has skewness "
                f"{skewness:.2f}, and a clear one is beyond ±1; pass polarity='upright' or "
                "'inverted'.",
                stacklevel=3,
            )
        return egg if skewness >= 0.0 else -egg
    sign = 1.0 if polarity == "upright" else -1.0
    if sign * skewness < -_CLEAR_SKEWNESS:
        warnings.warn(
            f"polarity={polarity!r} contradicts {name}'s EGG, whose derivative has skewness "
            f"{skewness:.2f}; closures and openings may be swapped.",
            stacklevel=3,
        )
    return sign * egg


def load_speech_egg(
    folder: str | Path,
    *,
    new_rate: int = 16_000,
    polarity: str = "auto",
    delay: float = 0.0,
    channels: tuple[int, int] = (0, 1),
    speaker: Callable[[str], str] | None = None,
) -> tuple[SpeechEGG, ...]:
    """Every recording in a folder and below it, by name.

    Either two-channel WAV files, or pairs ``NAME_AUD.wav`` and ``NAME_EGG.wav`` of one channel
    each. Other endings are passed over.

    Parameters
    ----------
    folder
        Of the user's.
    new_rate, polarity, delay
        As for `prepare_speech_egg`.
    channels
        Which channel of a two-channel file is speech and which EGG.
    speaker
        From a recording's name to its speaker. By default the name up to the first underscore or
        hyphen; for files in folders, the innermost folder's name.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist, holds no WAV file, or a partner is missing.
    ValueError
        If a file has another number of channels, partners differ in rate, or a recording is refused
        by `prepare_speech_egg`; with the file's name.
    """
    folder = Path(folder).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav")
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no WAV file; give a folder of two-channel files, or of pairs "
            f"NAME{_SPEECH_ENDING} and NAME{_EGG_ENDING}."
        )
    found = []
    for path in files:
        if path.name.endswith(_EGG_ENDING):
            _partner(path, _EGG_ENDING, _SPEECH_ENDING)
            continue
        name, values, rate = _read_pair(path, channels)
        relative = path.relative_to(folder).parent / name
        found.append(
            prepare_speech_egg(
                *values,
                rate,
                new_rate=new_rate,
                polarity=polarity,
                delay=delay,
                name=relative.as_posix(),
                speaker=(speaker or _speaker_of)(relative.as_posix()),
            )
        )
    return tuple(found)


def _read_pair(
    path: Path, channels: tuple[int, int]
) -> tuple[str, tuple[np.ndarray, np.ndarray], int]:
    if path.name.endswith(_SPEECH_ENDING):
        partner = _partner(path, _SPEECH_ENDING, _EGG_ENDING)
        (speech, rate), (egg, other) = read_wav(path), read_wav(partner)
        if rate != other:
            raise ValueError(
                f"{path.name} and {partner.name} must have one rate, got {rate} and {other} Hz."
            )
        return path.name.removesuffix(_SPEECH_ENDING), (speech, egg), rate
    values, rate = read_wav(path)
    if values.ndim != 2 or not all(0 <= channel < values.shape[1] for channel in channels):
        count = 1 if values.ndim == 1 else values.shape[1]
        raise ValueError(
            f"{path} must have the channels {channels[0]} (speech) and {channels[1]} (EGG), got "
            f"{count} channel{'s' if count > 1 else ''}; pass channels=(speech, EGG), or name "
            f"files NAME{_SPEECH_ENDING} and NAME{_EGG_ENDING}."
        )
    return path.stem, (values[:, channels[0]], values[:, channels[1]]), rate


def _partner(path: Path, ending: str, other: str) -> Path:
    partner = path.with_name(path.name.removesuffix(ending) + other)
    if not partner.exists():
        raise FileNotFoundError(f"{path} has no partner {partner.name} beside it.")
    return partner


def read_wav(path: str | Path) -> tuple[np.ndarray, int]:
    """Samples as float64, ``(n,)`` or ``(n, channels)``, whole numbers scaled to ±1; the rate."""
    with warnings.catch_warnings():
        # Other programs' chunks of notes and marks.
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, values = wavfile.read(path)
    if values.dtype == np.uint8:
        return values / 128.0 - 1.0, rate
    if values.dtype.kind == "i":
        return values / -float(np.iinfo(values.dtype).min), rate
    return values.astype(np.float64), rate


def read_speech(path: str | Path, rate: int = 16_000, *, channel: int | None = None) -> np.ndarray:
    """Speech of a WAV file at ``rate`` samples a second, ``(n,)``, float32, largest magnitude 1.

    Parameters
    ----------
    path
        A file of any rate and sample format.
    rate
        Wanted, polyphase-resampled.
    channel
        Which one, from 0, of a file that has several.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has several channels and none is chosen, no such channel, no sound, or values that are
        not finite.
    """
    if rate != int(rate) or rate <= 2.0 * _CUTOFF:
        raise ValueError(f"rate must be a whole number of samples above 100, got {rate!r}.")
    values, own = read_wav(path)
    if values.ndim == 2:
        count = values.shape[1]
        if channel is None and count > 1:
            raise ValueError(f"{path} has {count} channels; choose one, channel=0 for the first.")
        if not 0 <= (channel or 0) < count:
            raise ValueError(f"channel must be from 0 to {count - 1} for {path}, got {channel!r}.")
        values = values[:, channel or 0]
    elif channel not in (None, 0):
        raise ValueError(f"channel must be 0 or None for {path}, which has one, got {channel!r}.")
    if not np.isfinite(values).all() or not len(values) or not values.any():
        raise ValueError(f"{path} must hold finite sound, got NaN, infinity or silence.")
    resampled = _resampled(values, own, int(rate))
    return (resampled / np.abs(resampled).max()).astype(np.float32)


def _speaker_of(name: str) -> str:
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else re.split("[_-]", parts[0])[0]


def split_by_speaker(
    recordings: Sequence[Any], seed: int, *, shares: tuple[float, ...] = (0.7, 0.1, 0.2)
) -> tuple[tuple[Any, ...], ...]:
    """Parts in which no speaker is in two: a split by file would test on voices it has learnt.

    Parameters
    ----------
    recordings
        Each with an attribute ``speaker``.
    seed
        Shuffles the speakers.
    shares
        Of the speakers, summing to 1; each part gets at least one.

    Raises
    ------
    ValueError
        If shares are not positive or do not sum to 1, or there are fewer speakers than parts.
    """
    if not all(share > 0.0 for share in shares) or not math.isclose(sum(shares), 1.0):
        raise ValueError(f"shares must be positive and sum to 1, got {shares!r}.")
    speakers = np.array(sorted({recording.speaker for recording in recordings}))
    if len(speakers) < len(shares):
        raise ValueError(
            f"{len(shares)} parts need as many speakers at least, got {len(speakers)}; name them "
            "with speaker=, or ask for fewer parts."
        )
    np.random.default_rng(seed).shuffle(speakers)
    ends: list[int] = []
    for part, share in enumerate(np.cumsum(shares), start=1):
        # At least one speaker, and one left for each part to come.
        lowest = ends[-1] + 1 if ends else 1
        highest = len(speakers) - len(shares) + part
        ends.append(int(np.clip(np.rint(share * len(speakers)), lowest, highest)))
    parts = np.split(speakers, ends[:-1])
    return tuple(
        tuple(recording for recording in recordings if recording.speaker in part) for part in parts
    )
