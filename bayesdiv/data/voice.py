"""Speech with its electroglottogram (EGG): simulated, where every instant is known, or recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bayesdiv.data._voice_glottis import GlottalCycle, glottal_cycle
from bayesdiv.data._voice_noise import add_noise
from bayesdiv.data._voice_recordings import (
    SpeechEGG,
    high_pass,
    load_speech_egg,
    polarity_skewness,
    prepare_speech_egg,
    read_speech,
    split_by_speaker,
)
from bayesdiv.data._voice_timing import crossings, make_phase, make_plan, sustained_plan
from bayesdiv.data._voice_tract import frication_noise, resonate

__all__ = [
    "SpeechEGG",
    "Utterance",
    "VoiceSettings",
    "add_noise",
    "load_speech_egg",
    "polarity_skewness",
    "prepare_speech_egg",
    "read_speech",
    "simulate_babble",
    "simulate_voices",
    "split_by_speaker",
]

# Half-gap at rest, and aspiration as a share of the largest flow derivative.
_QUALITIES = {
    "modal": ((0.05, 0.25), (0.004, 0.015)),
    "breathy": ((0.3, 0.5), (0.015, 0.05)),
    "pressed": ((-0.25, 0.0), (0.004, 0.01)),
}
_REGISTERS = {"low": ((85.0, 150.0), 1.0), "high": ((160.0, 260.0), 1.16)}
_CONVERGENCE, _LAG, _SKEW = (0.1, 0.4), (0.8, 1.6), (0.56, 0.68)
_FRAME_SECONDS = 0.005
# Instants count from this share of full voicing on; below it the folds hardly swing.
_VOICED = 0.25
_EGG_NOISE, _EGG_WALK = 0.004, 0.3
_FRICATION_LEVEL = (0.1, 0.3)


class Utterance(NamedTuple):
    """Speech and EGG of one simulated speaker, with the truth behind them.

    Instants are in samples from the first, not rounded, and on the EGG's clock: the speech comes
    ``delay`` samples later, as it does with a microphone in front of the mouth.

    Parameters
    ----------
    speech, egg
        ``(n,)``, float32, largest absolute value 1. The EGG rises with contact.
    rate
        Samples a second.
    closures
        Glottal closure instants: contact rises fastest.
    openings
        Glottal opening instants: contact falls fastest.
    excitations
        Main excitations: flow falls fastest, about a tenth of a cycle before closure.
    f0
        In Hz, ``(n,)``; it also runs where there is no voice.
    voicing
        Share of full voicing, ``(n,)``.
    contact_quotient
        From closure to opening, as a share of the cycle.
    delay
        Whole number of samples.
    quality
        ``"modal"``, ``"breathy"`` or ``"pressed"``.
    """

    speech: np.ndarray
    egg: np.ndarray
    rate: int
    closures: np.ndarray
    openings: np.ndarray
    excitations: np.ndarray
    f0: np.ndarray
    voicing: np.ndarray
    contact_quotient: float
    delay: int
    quality: str


@dataclass(frozen=True)
class VoiceSettings:
    """What `simulate_voices` draws from.

    Parameters
    ----------
    seconds
        Length of an utterance, at least 0.1.
    quality
        ``"modal"``, ``"breathy"``, ``"pressed"``, or ``"any"`` of them.
    register
        ``"low"`` (85 to 150 Hz), ``"high"`` (160 to 260 Hz, shorter tract), or ``"any"``.
    plan
        ``"phrase"`` of vowels, fricatives and silences, or one ``"sustained"`` vowel.
    f0
        Mean F0 in Hz, from 40 to 500; None draws it from the register.
    wander, jitter, shimmer
        Slow change of F0, and the standard deviations of a cycle's F0 and amplitude; relative.
    snr
        Of white noise in the speech, in dB; infinity for none.
    delay
        Smallest and largest delay of the speech, in seconds.
    rate
        Samples a second, at least 16,000.

    Raises
    ------
    ValueError
        If a value is outside its domain.
    """

    seconds: float = 2.5
    quality: str = "any"
    register: str = "any"
    plan: str = "phrase"
    f0: float | None = None
    wander: float = 0.12
    jitter: float = 0.006
    shimmer: float = 0.04
    snr: float = 40.0
    delay: tuple[float, float] = (0.0005, 0.001)
    rate: int = 16_000

    def __post_init__(self) -> None:
        for name, known in (
            ("quality", (*_QUALITIES, "any")),
            ("register", (*_REGISTERS, "any")),
            ("plan", ("phrase", "sustained")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )
        if not 0.1 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be at least 0.1 and finite, got {self.seconds!r}.")
        if self.f0 is not None and not 40.0 <= self.f0 <= 500.0:
            raise ValueError(f"f0 must be None or from 40 to 500 Hz, got {self.f0!r}.")
        for name, largest in (("wander", 0.5), ("jitter", 0.1), ("shimmer", 0.2)):
            if not 0.0 <= getattr(self, name) <= largest:
                raise ValueError(
                    f"{name} must be a share from 0 to {largest}, got {getattr(self, name)!r}."
                )
        if math.isnan(self.snr) or self.snr == -math.inf:
            raise ValueError(f"snr must be in dB, or infinity for no noise, got {self.snr!r}.")
        if len(self.delay) != 2 or not 0.0 <= self.delay[0] <= self.delay[1] <= 0.02:
            raise ValueError(
                "delay must be the smallest and the largest, in seconds, from 0 to 0.02, got "
                f"{self.delay!r}."
            )
        if isinstance(self.rate, bool) or not isinstance(self.rate, int) or self.rate < 16_000:
            raise ValueError(
                f"rate must be a whole number of at least 16,000 samples a second, got "
                f"{self.rate!r}; resample afterwards for less."
            )


def simulate_voices(
    seed: int, num_utterances: int = 1, settings: VoiceSettings | None = None
) -> tuple[Utterance, ...]:
    """Utterances of as many speakers; the i-th is the same however many are asked for.

    A surface wave on the vocal folds gives contact and flow of one cycle; a phase with wandering
    F0, jitter and shimmer repeats it; five formants in cascade, aspiration and frication make the
    speech; the sensors add delay, noise and a slow drift, which a 50 Hz high-pass takes out of the
    EGG again.

    It leaves out creak, consonants other than fricatives, and what source and tract do to each
    other. Closing is only up to three times as steep as opening, so that the derivative's skewness
    (`polarity_skewness`) is 0.1 to 1.5, where recordings have 4 to 5.

    Parameters
    ----------
    seed
        Of all draws, at least 0.
    num_utterances
        How many, at least 1.
    settings
        `VoiceSettings`; None for the defaults.

    Raises
    ------
    ValueError
        If ``num_utterances`` is below 1, or ``seed`` below 0.

    References
    ----------
    Titze (1984), "Parameterization of the glottal area, glottal flow, and vocal fold contact
    area", for the folds; Klatt (1980), "Software for a cascade/parallel formant synthesizer", for
    the tract; Peterson and Barney (1952) for the vowels.

    Examples
    --------
    >>> settings = VoiceSettings(plan="sustained", f0=100.0, wander=0.0, jitter=0.0)
    >>> (voice,) = simulate_voices(0, settings=settings)
    >>> voice.speech.shape, round(float(voice.closures[1] - voice.closures[0]), 6)
    ((40000,), 160.0)
    """
    if isinstance(num_utterances, bool) or not num_utterances >= 1:
        raise ValueError(f"num_utterances must be at least 1, got {num_utterances!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}.")
    settings = VoiceSettings() if settings is None else settings
    streams = np.random.SeedSequence(seed).spawn(num_utterances)
    return tuple(_simulate(np.random.default_rng(stream), settings) for stream in streams)


def simulate_babble(
    seed: int, seconds: float, *, num_talkers: int = 6, rate: int = 16_000
) -> np.ndarray:
    """Several simulated voices at once, with variance 1, ``(seconds · rate,)``.

    It keeps what makes babble of it: pitch and formants that move. For `add_noise`.

    Raises
    ------
    ValueError
        If ``num_talkers`` is below 1, or a setting is outside its domain.
    """
    if isinstance(num_talkers, bool) or not num_talkers >= 1:
        raise ValueError(f"num_talkers must be at least 1, got {num_talkers!r}.")
    settings = VoiceSettings(seconds=seconds, snr=math.inf, rate=rate)
    voices = simulate_voices(seed, num_talkers, settings)
    babble = np.sum([voice.speech / voice.speech.std() for voice in voices], axis=0)
    return babble / babble.std()


def _simulate(rng: np.random.Generator, settings: VoiceSettings) -> Utterance:
    rate, num_samples = settings.rate, round(settings.seconds * settings.rate)
    frame = round(_FRAME_SECONDS * rate)
    quality = _choice(rng, settings.quality, tuple(_QUALITIES))
    range_of_f0, scale = _REGISTERS[_choice(rng, settings.register, tuple(_REGISTERS))]
    rest, aspiration = (rng.uniform(*span) for span in _QUALITIES[quality])
    cycle = glottal_cycle(rest, rng.uniform(*_CONVERGENCE), rng.uniform(*_LAG), rng.uniform(*_SKEW))
    drawn = rng.uniform(*range_of_f0)
    hertz, phase, amplitude = make_phase(
        rng,
        num_samples,
        rate,
        f0=drawn if settings.f0 is None else settings.f0,
        wander=settings.wander,
        jitter=settings.jitter,
        shimmer=settings.shimmer,
    )
    if settings.plan == "phrase":
        plan = make_plan(rng, num_samples, rate, scale=scale, frame=frame)
    else:
        plan = sustained_plan(rng, num_samples, scale=scale, frame=frame)
    swing = amplitude * plan.voicing
    contact, flow = _along(cycle, phase)
    noise = rng.standard_normal((3, num_samples), dtype=np.float32)
    flow *= swing
    source = np.diff(flow, prepend=flow[0])
    source += aspiration * np.abs(source).max() * flow * noise[0]
    speech = resonate(source, plan.formants, rate, frame)
    hiss = rng.uniform(*_FRICATION_LEVEL) * speech.std() * plan.frication
    speech += hiss * frication_noise(rng, num_samples, rate)
    delay = round(rng.uniform(*settings.delay) * rate)
    speech = np.concatenate([np.zeros(delay), speech[: num_samples - delay]])
    if settings.snr != math.inf:
        speech = add_noise(speech, settings.snr, rng=rng)
    egg = swing * contact + _EGG_NOISE * noise[1]
    egg += _EGG_WALK / math.sqrt(rate) * np.cumsum(noise[2], dtype=np.float64)
    egg = high_pass(egg, rate)
    instants = {
        name: _voiced(crossings(phase, getattr(cycle, name)), plan.voicing)
        for name in ("closure", "opening", "excitation")
    }
    return Utterance(
        speech=(speech / np.abs(speech).max()).astype(np.float32),
        egg=(egg / np.abs(egg).max()).astype(np.float32),
        rate=rate,
        closures=instants["closure"],
        openings=instants["opening"],
        excitations=instants["excitation"],
        f0=hertz.astype(np.float32),
        voicing=plan.voicing.astype(np.float32),
        contact_quotient=cycle.contact_quotient,
        delay=delay,
        quality=quality,
    )


def _choice(rng: np.random.Generator, wanted: str, known: tuple[str, ...]) -> str:
    # Drawn also where it is not needed, so that settings do not move the other draws.
    drawn = known[rng.integers(len(known))]
    return drawn if wanted == "any" else wanted


def _along(cycle: GlottalCycle, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contact, from 0 to 1, and flow at each sample, linear between a table's entries."""
    tables = np.stack([cycle.contact, cycle.flow], axis=1)
    tables[:, 0] = (tables[:, 0] - tables[:, 0].min()) / np.ptp(tables[:, 0])
    tables = np.concatenate([tables, tables[:1]])
    position = (phase % 1.0) * (len(tables) - 1)
    # The remainder of a phase just below a whole number may round to 1.
    index = np.minimum(position.astype(np.int64), len(tables) - 2)
    share = (position - index)[:, None]
    values = tables[index]
    values += share * (tables[index + 1] - values)
    return values[:, 0].copy(), values[:, 1].copy()


def _voiced(instants: np.ndarray, voicing: np.ndarray) -> np.ndarray:
    return instants[voicing[np.rint(instants).astype(np.int64)] >= _VOICED]
